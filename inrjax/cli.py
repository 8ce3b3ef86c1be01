"""The command line: the only module of inrjax that prints or exits.

Answers go to stdout; progress, notes and errors to stderr. An error is one line that begins
``inrjax: error:`` and names the file and what to do. Exit codes: 0 all done; 1 a file or folder is
of no use (the others are done); 2 a wrong option; 130 stopped by Ctrl-C; 141 nobody reads stdout
any more. Every file is written whole or not at all.

What fits, measures or plots is imported inside the command that needs it, so that ``decode`` and
``info`` start fast.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import inspect
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro
from tyro.conf import Positional, arg, subcommand
from tyro.constructors import PrimitiveConstructorSpec

from inrjax import bitstream, codecs, images, ledger, trees
from inrjax.grids import GridBase
from inrjax.init import Init, add_init, init_files, load_init, packaged_init, save_init
from inrjax.machine import keep_buffers
from inrjax.types import Codec, Image, OnProgress

if TYPE_CHECKING:
    from inrjax.codecs import Coin, LatentGrid, MetaSiren
    from inrjax.compare import BDResult
    from inrjax.distributed import Team
    from inrjax.quickstart import Report
    from inrjax.ratecontrol import Target
    from inrjax.results import Summary
    from inrjax.runs import Run
    from inrjax.types import RDPoint

    InrCodec = Coin | MetaSiren | LatentGrid

BATCH_PIXELS = 10_000_000
"""Pixels in one batch of fits at most (24 Kodak images have 9.4 million), or one picture."""

BATCH_IMAGES = 64
"""Images in one batch of fits at most."""


# ---------------------------------------------------------------- the rate curves

COIN_SHAPES = ((20, 5), (30, 5), (28, 10), (40, 10), (49, 13))
"""(width, depth) of COIN's five published rates (Dupont et al. 2021)."""

CURVES: dict[str, Callable[[dict[str, Any]], Sequence[Codec]]] = {
    "meta-siren": lambda fit: [codecs.MetaSiren(width=w, **fit) for w in codecs.inr.WIDTHS],
    "coin": lambda fit: [codecs.Coin(width=w, depth=d, **fit) for w, d in COIN_SHAPES],
    "latent-grid": lambda fit: [
        codecs.LatentGrid(step, seed=fit.get("seed", 0)) for step in codecs.latent_grid.CURVE_STEPS
    ],
    "strumpler-basic": lambda fit: [
        codecs.StrumplerBasic(width=w, **fit) for w in codecs.strumpler.WIDTHS
    ],
    "strumpler-meta": lambda fit: [
        codecs.StrumplerMeta(width=w, **fit) for w in codecs.strumpler.WIDTHS
    ],
    "product-siren": lambda fit: [codecs.ProductSiren(w, **fit) for w in codecs.inr.WIDTHS],
    "jpeg": lambda _: [codecs.Jpeg(q, optimize=False) for q in codecs.classic.JPEG_QUALITIES],
    "jpeg-optimized": lambda _: [
        codecs.Jpeg(q, optimize=True) for q in codecs.classic.JPEG_QUALITIES
    ],
    "jpeg2000": lambda _: [codecs.Jpeg2000(r) for r in codecs.classic.JPEG2000_RATIOS],
    "webp": lambda _: [codecs.WebP(q) for q in codecs.classic.WEBP_QUALITIES],
    "jpeg-progressive": lambda _: [
        codecs.Jpeg(q, optimize=True, progressive=True) for q in codecs.classic.JPEG_QUALITIES
    ],
    "jpeg-optimized-444": lambda _: [
        codecs.Jpeg(q, optimize=True, subsample=False) for q in codecs.classic.JPEG_QUALITIES
    ],
    "jpeg-mozjpeg": lambda _: [codecs.MozJpeg(q) for q in codecs.classic.MOZJPEG_QUALITIES],
    "avif": lambda _: [codecs.Avif(q) for q in codecs.classic.AVIF_QUALITIES],
    "jpeg-xl": lambda _: [codecs.JpegXl(d) for d in codecs.modern.JPEG_XL_DISTANCES],
    "hevc": lambda _: [codecs.Hevc(qp) for qp in codecs.modern.HEVC_QPS],
    "vvc": lambda _: [codecs.Vvc(qp) for qp in codecs.vvc.VVC_QPS],
    "png": lambda _: [codecs.Png()],
    "fmm": lambda _: [codecs.Fmm()],
    "fmm-jpeg-optimized": lambda _: [
        codecs.FmmInside(codecs.Jpeg(q, optimize=True)) for q in codecs.fmm.FMM_JPEG_QUALITIES
    ],
}
"""Name -> options of a fit (seed, num_steps) -> the codec at each rate; the only such table."""


# ---------------------------------------------------------------- the options


def _number(low: float, high: float) -> PrimitiveConstructorSpec[Any]:
    """How tyro reads a number in a range."""

    def read(words: list[str]) -> float:
        try:
            value = float(words[0])
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(f"got {words[0]!r}, expected a number in {low:g}..{high:g}")
        return value

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, float),
        str_from_instance=lambda value: [str(value)],
    )


def _whole(low: int, high: int) -> PrimitiveConstructorSpec[Any]:
    """How tyro reads a whole number in a range."""

    def read(words: list[str]) -> int:
        if not re.fullmatch("[0-9]{1,12}", words[0]) or not low <= int(words[0]) <= high:
            raise ValueError(f"got {words[0]!r}, expected a whole number in {low}..{high}")
        return int(words[0])

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    )


_WIDTH, _STEPS, _SEED = _whole(1, 4096), _whole(1, 10**9), _whole(0, 2**32 - 1)
_ROUNDS = _whole(0, 1000)
_LEARNED_WIDTH = _whole(1, 1024)  # of wider nets the file would be larger than is read
_STEP = _whole(codecs.latent_grid.STEPS.start, codecs.latent_grid.STEPS.stop - 1)
_BPP, _PSNR, _BYTES = _number(1e-4, 24), _number(1, 100), _whole(1, 10**9)
_IMAGES = _whole(1, 10**6)
_PROCESSES, _PROCESS = _whole(1, 2**16), _whole(0, 2**16 - 1)
_OUTPUT = arg(aliases=("-o",), metavar="PATH")
_INIT = arg(metavar="NPZ", help_behavior_hint="(default: packaged)")
_FROM_CODEC = arg(help_behavior_hint="(default: the codec's own)")
_FROM_CLUSTER = arg(help_behavior_hint="(default: the cluster's)")
_REQUIRED = "(required)"
_BY_WIDTH = arg(help_behavior_hint="(default: by --width or --step)")


@dataclass(frozen=True)
class Encode:
    """Compress pictures to .inr files.

    A small neural network is fitted to each picture: its weights are the file.

    Several pictures in one command take less time each.

    Examples:
      inrjax encode photo.png -o photo.inr
      inrjax encode photos/*.png -o out/              out/NAME.inr for NAME.png
      inrjax encode photos/*.png -o out/ --width 48   larger and better
      inrjax encode photo.png -o out/ --target-bpp 0.2
      inrjax encode photo.png -o out/ --max-bytes 5000
      inrjax encode photos/*.png -o out/ --resume     goes on where it stopped
      srun inrjax encode photos/*.png -o out/ --distributed

    With --distributed, each of several processes fits its share of the pictures.
    """

    paths: Annotated[
        Positional[tuple[Path, ...]],
        arg(metavar="IMAGE [IMAGE ...]", help_behavior_hint=_REQUIRED),
    ]
    """PNG, JPEG, WebP, TIFF, BMP or PPM, 8 bits a channel."""
    output: Annotated[str, _OUTPUT]
    """A name ending in .inr for one picture, else a folder (made if it is not there)."""
    codec: Literal["meta-siren", "latent-grid", "coin"] = "meta-siren"
    """A network from a meta-learned start, entropy-coded; latents under learned networks: smaller
    files in seconds; or a network from random weights, 16 bits each."""
    width: Annotated[int | None, _WIDTH, arg(help_behavior_hint="(default: 32; coin: 30)")] = None
    """Width of the network's layers. It sets the size of the file."""
    step: Annotated[int | None, _STEP, arg(help_behavior_hint="(default: 28)")] = None
    """Step size of latent-grid, which sets the size of the file: 8 (large) to 52 (small)."""
    target_bpp: Annotated[float | None, _BPP, _BY_WIDTH] = None
    """Bits per pixel of each file, within 2 %. Takes several times as long."""
    target_psnr: Annotated[float | None, _PSNR, _BY_WIDTH] = None
    """PSNR of each file in dB, within 0.1 dB."""
    max_bytes: Annotated[int | None, _BYTES, _BY_WIDTH] = None
    """Bytes of each file at most, and not many fewer."""
    steps: Annotated[int | None, _STEPS, arg(help_behavior_hint="(default: by --preset)")] = None
    """Steps of the fit."""
    preset: Literal["fast", "default", "best"] = "default"
    """How long meta-siren fits, longer for smaller and better files; best also searches for better
    roundings."""
    seed: Annotated[int, _SEED] = 0
    """Of the random numbers: on one machine, the same seed gives the same file."""
    init: Annotated[Path | None, _INIT] = None
    """A meta-learned network from `inrjax meta-train`. The decoder needs the same file."""
    overwrite: bool = False
    """Replace files that are there already."""
    resume: bool = False
    """Keep files that were made of the same pictures by the same options; make the others."""
    distributed: bool = False
    """Be one of several processes with the same command: SLURM, Open MPI, or as named below."""
    coordinator: Annotated[str | None, arg(metavar="HOST:PORT"), _FROM_CLUSTER] = None
    """Where process 0 runs, and a port of its that is free."""
    num_processes: Annotated[int | None, _PROCESSES, _FROM_CLUSTER] = None
    """How many there are."""
    process_id: Annotated[int | None, _PROCESS, _FROM_CLUSTER] = None
    """Which this is, from 0."""


@dataclass(frozen=True)
class Decode:
    """Turn .inr files back into PNG pictures.

    Examples:
      inrjax decode photo.inr -o photo.png
      inrjax decode out/*.inr -o decoded/     decoded/NAME.png for NAME.inr
    """

    paths: Annotated[
        Positional[tuple[Path, ...]],
        arg(metavar="INR [INR ...]", help_behavior_hint=_REQUIRED),
    ]
    """Files that `inrjax encode` wrote."""
    output: Annotated[str, _OUTPUT]
    """A name ending in .png for one file, else a folder (made if it is not there)."""
    init: Annotated[Path | None, _INIT] = None
    """The network that `inrjax encode` was given by --init."""
    max_pixels: Annotated[int, _whole(1, bitstream.MAX_PIXELS)] = codecs.DEFAULT_MAX_PIXELS
    """A file that claims more is refused. A pixel takes about 10 bytes of memory."""
    overwrite: bool = False
    """Replace files that are there already."""


@dataclass(frozen=True)
class Info:
    """Show what an .inr file holds: codec, size, bits per pixel, sections.

    Examples:
      inrjax info photo.inr
      inrjax info photo.inr --json
    """

    path: Annotated[Positional[Path], arg(metavar="INR")]
    """A file that `inrjax encode` wrote."""
    json: bool = False
    """Print one JSON object."""
    init: Annotated[Path | None, _INIT] = None
    """The network that `inrjax encode` was given by --init."""


@dataclass(frozen=True)
class Evaluate:
    """Measure codecs on your own pictures, from real files.

    Each codec writes files at each of its rates; another process decodes them.

    A picture is a row of RUN/rows.csv; the means are printed and RUN/rd.png drawn.

    The same command continues a run that was stopped.

    Examples:
      inrjax evaluate --images photos/ -o run/
      inrjax evaluate --images photos/ --codecs meta-siren,jpeg,webp -o run/
    """

    images: Annotated[Path, arg(metavar="DIR")]
    """A folder of pictures."""
    output: Annotated[Path, arg(aliases=("-o",), metavar="RUN")]
    """The folder of the run (made if it is not there)."""
    codecs: Annotated[str, arg(metavar="NAME[,NAME...]")] = (
        "meta-siren,jpeg,jpeg-optimized,jpeg2000,webp"
    )
    """Any of meta-siren, latent-grid, coin, product-siren, strumpler-basic, strumpler-meta, jpeg,
    jpeg-optimized, jpeg-progressive, jpeg-optimized-444, jpeg-mozjpeg, jpeg2000, webp, avif,
    jpeg-xl, hevc, vvc, png, fmm, fmm-jpeg-optimized."""
    steps: Annotated[int | None, _STEPS, _FROM_CODEC] = None
    """Steps of each fit."""
    seed: Annotated[int, _SEED] = 0
    """Of the random numbers."""


@dataclass(frozen=True)
class BdRate:
    """Compare two tables of measured rows: bits at equal quality, quality at equal bits.

    A is the anchor: below 0 %, B needs fewer bits. Intervals are over the pictures, by bootstrap.

    Picture by picture and on the curve of means, over what both curves cover.

    Without codec names, A has one codec, or the two tables share their codecs.

    Examples:
      inrjax bdrate jpeg/rows.csv ours/rows.csv
      inrjax bdrate old/rows.csv new/rows.csv --metric ms_ssim
      inrjax bdrate run/rows.csv run/rows.csv --codec-a jpeg --per-image
      inrjax bdrate results/published/kodak.csv run/rows.csv --anchor-published COIN
    """

    anchor: Annotated[Positional[Path], arg(metavar="A.csv")]
    """Rows of the anchor, or published curves (with --anchor-published)."""
    table: Annotated[Positional[Path], arg(metavar="B.csv")]
    """Rows of what is compared with it."""
    metric: Literal["psnr", "psnr_y", "psnr_ycbcr", "ssim", "ms_ssim"] = "psnr"
    """The quality; SSIM and MS-SSIM are compared as -10 log10(1 - value) dB."""
    codec_a: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """The codec in A."""
    codec_b: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: all)")] = None
    """The codec in B."""
    anchor_published: Annotated[str | None, arg(metavar="METHOD", help_behavior_hint="")] = None
    """The published curve in A that is the anchor. It was not measured here."""
    per_image: bool = False
    """Add a table of the pictures' own values. A dash: the curves of one do not overlap."""
    json: bool = False
    """Print one JSON list."""


@dataclass(frozen=True)
class ListRuns:
    """List the runs in a folder: what, when, on what, how much, whether it is whole.

    Examples:
      inrjax results list
      inrjax results list somewhere/
    """

    root: Annotated[Positional[Path], arg(metavar="DIR")] = Path("results")
    """A folder with run folders at any depth."""
    json: bool = False
    """Print one JSON list."""


@dataclass(frozen=True)
class ShowRun:
    """Show one run: its config, what made it, and the means of its rows.

    Examples:
      inrjax results show run/
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder: the one that holds config.json."""


@dataclass(frozen=True)
class VerifyRun:
    """Measure rows of a run again from its stored files, and say which no longer hold.

    Another process decodes a random sample of the files.

    Bytes, SHA-256 and size must be equal, PSNR within 0.01 dB, SSIM and MS-SSIM within 0.0001.

    Examples:
      inrjax results verify run/ --images photos/
      inrjax results verify run/ --images photos/ --sample 100 --seed 1
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder, with the files that were measured in it."""
    images: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """The folder of the original pictures. Quality is not checked without."""
    sample: Annotated[int, _whole(1, 10**9)] = 20
    """How many rows."""
    seed: Annotated[int, _SEED] = 0
    """Of the sample."""
    init: Annotated[Path | None, _INIT] = None
    """The network that the files were made with, if it was given by --init."""


@dataclass(frozen=True)
class Results:
    """Look at runs that were measured: list, show, verify.

    Examples:
      inrjax results list
      inrjax results show results/kodak_rd/f8b7f45e568a
      inrjax results verify run/ --images photos/
    """

    action: Annotated[
        Annotated[ListRuns, subcommand("list", prefix_name=False)]
        | Annotated[ShowRun, subcommand("show", prefix_name=False)]
        | Annotated[VerifyRun, subcommand("verify", prefix_name=False)],
        arg(name=""),
    ]


@dataclass(frozen=True)
class ListInits:
    """List the inits that files may name: packaged ones, and those that you added.

    Width and digest, bytes that decoders share, and what each was learned by and from.

    Examples:
      inrjax inits list
      inrjax inits list --json
    """

    json: bool = False
    """Print one JSON list."""


@dataclass(frozen=True)
class VerifyInits:
    """Compute the digests of inits anew, and say which files are damaged.

    Examples:
      inrjax inits verify                 all that are at hand
      inrjax inits verify init.npz
    """

    paths: Annotated[
        Positional[tuple[Path, ...]],
        arg(metavar="[NPZ ...]", help_behavior_hint="(default: all at hand)"),
    ] = ()
    """Files that `inrjax meta-train` wrote."""


@dataclass(frozen=True)
class AddInit:
    """Copy an init to where every command finds it, so that --init need not name it.

    The folder is that of the environment variable INRJAX_INITS, or ~/.local/share/inrjax/inits.

    Examples:
      inrjax inits add init.npz
    """

    path: Annotated[Positional[Path], arg(metavar="NPZ")]
    """A file that `inrjax meta-train` wrote."""


@dataclass(frozen=True)
class Inits:
    """Look at the inits that decoders share, and add your own: list, verify, add.

    Examples:
      inrjax inits list
      inrjax inits verify
      inrjax inits add init.npz
    """

    action: Annotated[
        Annotated[ListInits, subcommand("list", prefix_name=False)]
        | Annotated[VerifyInits, subcommand("verify", prefix_name=False)]
        | Annotated[AddInit, subcommand("add", prefix_name=False)],
        arg(name=""),
    ]


@dataclass(frozen=True)
class MetaTrain:
    """Learn the network that meta-siren starts from, on photographs of yours.

    Encoder and decoder both need the file: give it to them as --init.

    Examples:
      inrjax meta-train --data photos/ --width 32 -o init.npz
      inrjax meta-train --data photos/ --width 32 -o init.npz --resume
    """

    data: Annotated[Path, arg(metavar="DIR")]
    """A folder of pictures: some hundred photographs, each 200 pixels wide or more."""
    output: Annotated[Path, arg(aliases=("-o",), metavar="NPZ")]
    """The file to write, ending in .npz. Checkpoints go beside it until it is done."""
    width: Annotated[int, _LEARNED_WIDTH] = 32
    """Width of the network's layers."""
    steps: Annotated[int, _STEPS] = 3000
    """Steps of meta-training."""
    rounds: Annotated[int, _ROUNDS] = 3
    """Rounds after it, in each of which up to 48 of the pictures are fitted. None if it is 0, or
    for fewer than 8 pictures."""
    seed: Annotated[int, _SEED] = 0
    """Of the random numbers."""
    resume: bool = False
    """Go on from the checkpoints of the same command, if it was stopped."""
    overwrite: bool = False
    """Replace the file if it is there already."""


@dataclass(frozen=True)
class Quickstart:
    """See it work, in under three minutes, on three photographs.

    Compresses them at three rates, and decodes the files in another process.

    Measures them beside JPEG (default and optimised), JPEG 2000 and WebP.

    Examples:
      inrjax quickstart
      inrjax quickstart -o somewhere/
    """

    output: Annotated[Path, arg(aliases=("-o",), metavar="DIR")] = Path("quickstart_out")
    """The folder for files, table and pictures (made if it is not there)."""
    steps: Annotated[int | None, _STEPS, _FROM_CODEC] = None
    """Steps of each fit."""


@dataclass(frozen=True)
class WriteReport:
    """Show a run of `inrjax evaluate` as one HTML page, with plot, pictures and tables.

    Its viewer lays two pictures over each other: the original, ours, JPEG at as many bytes.

    The page is one file that needs no network. Needs: pip install 'inrjax[report]'

    Examples:
      inrjax report run/ -o report.html --images photos/
      inrjax report quickstart_out/ -o report.html
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The folder that `inrjax evaluate` or `inrjax quickstart` made."""
    output: Annotated[Path, arg(aliases=("-o",), metavar="HTML")]
    """The file to write, ending in .html."""
    images: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: none)")] = None
    """The folder of pictures that was evaluated. A run holds no originals."""
    max_images: Annotated[int, _IMAGES] = 6
    """Images in the viewer at most. Its pictures are most of the file's size."""
    overwrite: bool = False
    """Replace the file if it is there already."""


# ---------------------------------------------------------------- talking


class OptionError(ValueError):
    """A wrong option: exit code 2."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a sentence on what was kept."""


_KEPT: list[Callable[[], str]] = []
"""What to say of the work under way if it is stopped; the innermost last."""


@contextlib.contextmanager
def _interruptible(kept: Callable[[], str]) -> Iterator[None]:
    """The block may be stopped by Ctrl-C; ``kept`` says in a sentence what is there then."""
    _KEPT.append(kept)
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(kept()) from None
    finally:
        _KEPT.pop()


STOPPING_SECONDS = 1.0
"""How long after Ctrl-C the program may still end by itself."""

_stop_is_said = threading.Event()


def _end_soon_after_ctrl_c() -> None:
    """Have Ctrl-C end this process although Python does not hear of it: XLA compiles and computes
    for seconds, in which no KeyboardInterrupt is raised, and Python waits for it as it ends. Or it
    is raised in a callback of the garbage collector, which JAX has, where it goes no further.

    What is under way is lost in either case, and a file that is being written has another name.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # whoever set a handler means something else by it
    heard, tell = socket.socketpair()  # Windows takes no pipe here
    tell.setblocking(False)
    signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    show = sys.unraisablehook

    def show_others(unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            show(unraisable)

    sys.unraisablehook = show_others
    # The thread holds the ends of the pair, which must not be closed.
    threading.Thread(target=_end_after_ctrl_c, args=(heard, tell), daemon=True).start()


def _end_after_ctrl_c(heard: socket.socket, _: socket.socket) -> None:
    while heard.recv(1) != bytes([signal.SIGINT]):
        pass
    time.sleep(STOPPING_SECONDS)
    if not _stop_is_said.is_set():
        if sys.stderr.isatty():
            print("\x1b[?25h", file=sys.stderr)  # a bar has hidden the cursor
        _say_stopped(_KEPT[-1]() if _KEPT else "")
    sys.stderr.flush()
    os._exit(130)


def _say_stopped(kept: str) -> None:
    _stop_is_said.set()
    _note(f"stopped: {kept}" if kept else "stopped")


def _say(text: str) -> None:
    """Print a line that holds names of files."""
    print(_printable(text), flush=True)


def _printable(text: str) -> str:
    """A text as one line that any terminal can show: a file may be named with a line feed, with
    sequences that drive a terminal, or with bytes that are no text."""
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)
    encoding = sys.stdout.encoding or "utf-8"
    return plain.encode(encoding, "backslashreplace").decode(encoding)


def _note(text: str) -> None:
    print(f"inrjax: {_printable(text)}", file=sys.stderr)


def _error(text: object) -> None:
    # One line, whatever a library put into its message.
    print("inrjax: error:", _printable(" ".join(str(text).split())), file=sys.stderr)


def _use_every_core() -> None:
    """`fit.use_every_core`, whose module imports JAX; and compile nothing twice."""
    from inrjax import fit

    _keep_programs()
    fit.use_every_core()


def _prepare_memory(chosen: Iterable[Codec]) -> None:
    """Before there are threads: keep the large buffers of latent grids' fits, if there are any."""
    if any(isinstance(codec, codecs.LatentGrid) for codec in chosen):
        keep_buffers()


CACHE_BYTES = 1 << 28
"""Compiled programs kept on disk at most, about 0.4 MB each; those not used for long go first."""


def _cache_folder() -> Path | None:
    """Where the user's compiled programs are kept; None for nowhere."""
    given = os.environ.get("INRJAX_CACHE")
    if given is not None:
        return Path(given).absolute() if given else None
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        base = base if base.is_absolute() else Path.home() / ".cache"
    return base / "inrjax"


def _keep_programs() -> None:
    """Have JAX keep compiled programs on disk, and use those that are there.

    A user's own setting of JAX's cache stays. Whatever is wrong with the folder or with a file in
    it, the work goes on without: nothing is said, and what cannot be read is compiled again.
    """
    import jax

    if jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        return
    try:
        folder = _cache_folder()
        if folder is None:
            return
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds code that will be run
        _prune(folder, CACHE_BYTES)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    show = warnings.showwarning

    def show_others(message: Warning | str, *where: Any, **how: Any) -> None:
        if not _is_of_cache(str(message), folder):
            show(message, *where, **how)

    warnings.showwarning = show_others


def _is_of_cache(warning: str, folder: Path | None) -> bool:
    """Whether a warning is of kept programs. If one could not be read, all of that function are
    deleted, of which JAX says no more: it would not write over it."""
    if folder is None or "persistent compilation cache" not in warning:
        return False
    if program := re.match(r"Error reading .* for '(\w+)'", warning):
        for path in folder.glob(f"{program[1]}-*"):
            with contextlib.suppress(OSError):
                path.unlink()
    return True


def _prune(folder: Path, num_bytes: int) -> None:
    """Delete the programs in a folder that were not used for longest, down to ``num_bytes``; only
    those that JAX named: the folder may be the user's own choice, with other files in it."""
    files = []
    for path in folder.glob("jit_*-cache"):
        with contextlib.suppress(OSError):  # another process deleted it
            if path.is_file():
                stat = path.stat()
                files.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    excess = sum(size for _, size, _ in files) - num_bytes
    for _, size, path in sorted(files):
        if excess <= 0:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        excess -= size


@contextlib.contextmanager
def _progress(label: str) -> Iterator[OnProgress]:
    """A bar on stderr while the block runs, if someone is watching; yields its on_progress."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns aligned by spaces: the first two to the left, numbers to the right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


# ---------------------------------------------------------------- files and folders


def _plan(paths: Sequence[Path], output: str, suffix: str, overwrite: bool) -> dict[Path, Path]:
    """Input -> output file, for one file or a folder of them; touches no file.

    Raises OptionError if ``output`` cannot be meant, and ValueError if two inputs would become
    one file, the folder cannot be written, or a file is there that may not be replaced.
    """
    if not paths:
        raise OptionError("no file was named: name at least one")
    target = Path(output)
    is_folder = target.is_dir() or output.endswith(("/", os.sep))
    if not is_folder and target.suffix.lower() == suffix:
        if len(paths) > 1:
            raise OptionError(f"{len(paths)} files cannot all become {output}: give -o a folder")
        pairs = {paths[0]: target}
    elif not is_folder and target.suffix.lower() in {*images.SUFFIXES, ".inr"}:
        raise OptionError(f"{output} does not end in {suffix}: rename it, or give -o a folder")
    else:
        pairs = {path: target / f"{path.stem}{suffix}" for path in paths}
    _require_distinct(pairs)
    _require_writable(next(iter(pairs.values())).parent)
    if not overwrite:
        _require_new(list(pairs.values()))
    return pairs


def _require_distinct(pairs: Mapping[Path, Path]) -> None:
    first: dict[Path, Path] = {}
    for path, target in pairs.items():
        if target in first:
            raise ValueError(
                f"{first[target]} and {path} would both become {target}: rename one, or give them "
                "different folders"
            )
        first[target] = path


def _require_new(targets: Sequence[Path]) -> None:
    existing = [target for target in targets if target.exists()]
    if existing:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise ValueError(
            f"{existing[0]}{more} would be replaced: add --overwrite, or choose another -o"
        )


def _require_writable(folder: Path) -> None:
    """Raise ValueError, before any work, if files cannot be made in a folder or it in its own."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir():
        raise ValueError(f"{existing} is a file, not a folder: choose another -o")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{existing} cannot be written into: choose another -o")


def _read(path: Path) -> bytes:
    """The bytes of an .inr file; ValueError names the file."""
    try:
        if path.is_dir():
            raise ValueError(f"{path} is a folder: name the .inr files in it")
        with path.open("rb") as file:
            data = file.read(bitstream.MAX_BYTES + 1)  # a device may have no end
        if len(data) > bitstream.MAX_BYTES:
            raise ValueError(f"{path} is no .inr file: it has over {bitstream.MAX_BYTES} bytes")
        return data
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: check the name") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): check its rights") from error


def _write(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all, and its folder if need be; ValueError names the file."""
    with _making(path):
        trees.write_atomic(path, data)


@contextlib.contextmanager
def _naming(path: Path | str) -> Iterator[None]:
    """A ValueError from the block, which knows of bytes or pixels only, gets the file's name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@contextlib.contextmanager
def _making(path: Path) -> Iterator[None]:
    """Make the folder of a file for the block; what goes wrong is a ValueError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}): choose another -o"
        ) from error


def _read_image(path: Path) -> Image:
    """A picture; what had to be converted is said."""
    loaded = images.read_image(path)
    for note in loaded.notes:
        _note(f"{path}: {note}")
    return loaded.image


_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def _is_of_the_disk(error: BaseException | None) -> bool:
    """Whether an error came of a disk that takes no more, whatever is written next."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return True
        error = error.__cause__
    return False


class Each:
    """Does something to each of many files: an error is reported, and the others go on."""

    def __init__(self) -> None:
        self.num_done = 0
        self.num_failed = 0

    @contextlib.contextmanager
    def file(self) -> Iterator[None]:
        """The block is one file's share; it may raise ValueError.

        One that says that nothing can be written any more is raised: the others would fail too.
        """
        try:
            yield
        except ValueError as error:
            if _is_of_the_disk(error):
                raise
            self.num_failed += 1
            _error(error)

    @contextlib.contextmanager
    def all(self, total: int) -> Iterator[None]:
        """The block is all the work; Ctrl-C says how many of ``total`` files are there."""

        def kept() -> str:
            if not self.num_done:
                return "nothing was written"
            return f"{self.num_done} of {total} files were written and are kept"

        with _interruptible(kept):
            try:
                yield
            except ValueError as error:
                if not _is_of_the_disk(error):
                    raise
                raise ValueError(f"{error}; {kept()}") from error

    @property
    def exit_code(self) -> int:
        """0, or 1 if any file failed."""
        return 1 if self.num_failed else 0


# ---------------------------------------------------------------- encode, decode, info


def _encode(options: Encode) -> int:
    codec, target = _inr_codec(options), _target(options)
    _prepare_memory([codec])
    _check_processes(options)
    each = Each()
    with _together(options, each) as team:
        keeps = options.overwrite or options.resume
        planned = _plan(options.paths, options.output, ".inr", keeps)
        settings = _settings(codec, target)
        # A single file that is named is not what --resume is for: it gets no list beside it.
        listed = options.resume or Path(options.output) not in planned.values()
        pairs = _own_share(settings, planned, options, team)
        _use_every_core()
        digests: dict[Path, str | None] = {}
        with each.all(len(pairs)):
            for batch in _batches(pairs, each, digests):
                for path, stream in _streams(codec, target, batch, each):
                    with each.file(), _naming(path):
                        picture = digests.pop(path)
                        if listed:
                            _record(pairs[path], stream, picture, settings)
                        _keep(codec, batch[path], stream, path, pairs[path])
                        each.num_done += 1
    return each.exit_code


def _target(options: Encode) -> Target | None:
    """What is wanted of each file, if its size is not left to the width."""
    wanted = {
        "--target-bpp": options.target_bpp,
        "--target-psnr": options.target_psnr,
        "--max-bytes": options.max_bytes,
    }
    given = [name for name, value in wanted.items() if value is not None]
    if not given:
        return None
    if len(given) > 1:
        raise OptionError(f"{given[0]} and {given[1]} exclude each other: give one of them")
    if options.width is not None:
        raise OptionError(f"{given[0]} chooses the width: drop --width")
    if options.step is not None:
        raise OptionError(f"{given[0]} chooses the step: drop --step")
    if options.codec == "coin":
        raise OptionError(f"coin's files have one size for each --width: drop {given[0]}")
    from inrjax import ratecontrol

    if options.target_bpp is not None:
        return ratecontrol.TargetBpp(options.target_bpp)
    if options.target_psnr is not None:
        return ratecontrol.TargetPsnr(options.target_psnr)
    assert options.max_bytes is not None
    return ratecontrol.MaxBytes(options.max_bytes)


def _streams(
    codec: InrCodec, target: Target | None, batch: Mapping[Path, Image], each: Each
) -> Iterator[tuple[Path, bytes]]:
    """A stream for each picture that can be encoded; the others are reported. With a target, each
    is there as soon as it is made."""
    if target is None:
        yield from _encode_batch(codec, batch, each).items()
        return
    from inrjax import ratecontrol

    for path, image in batch.items():
        with each.file(), _naming(path):
            with _progress(f"fitting {path.name}") as on_progress:
                if isinstance(codec, codecs.LatentGrid):
                    made = ratecontrol.encode_grid_to(image, target, codec, on_progress)
                else:
                    assert isinstance(codec, codecs.MetaSiren)
                    model = ratecontrol.packaged_model()
                    made = ratecontrol.encode_to(image, target, codec, model, on_progress)
            yield path, made.stream


def _check_processes(options: Encode) -> None:
    named = [options.coordinator, options.num_processes, options.process_id]
    given = [value for value in named if value is not None]
    if given and (not options.distributed or len(given) < len(named)):
        raise OptionError(
            "--coordinator, --num-processes and --process-id go together, with --distributed"
        )
    if options.coordinator and not re.fullmatch(r".+:[0-9]{1,5}", options.coordinator):
        raise OptionError(f"got --coordinator {options.coordinator!r}, expected HOST:PORT")
    if len(given) == len(named) and (options.process_id or 0) >= (options.num_processes or 0):
        raise OptionError(
            f"got --process-id {options.process_id} of {options.num_processes}: count from 0"
        )
    if options.resume and options.overwrite:
        raise OptionError("--resume keeps what --overwrite replaces: give one of them")


@contextlib.contextmanager
def _together(options: Encode, each: Each) -> Iterator[Team | None]:
    """The block is this process's part of the work; the team if there is one, else None.

    A process that dies is reported at once; at the end, each waits for the others.
    """
    if not options.distributed:
        yield None
        return
    from inrjax import distributed

    place = distributed.meet(options.coordinator, options.num_processes, options.process_id)

    def report(index: int) -> None:
        with each.file():
            raise ValueError(
                f"process {index} of {place.count} is dead: when the others have ended, the same "
                "command with --resume makes the files that are missing"
            )

    with distributed.Team(place, report) as team:
        yield team
        team.finish()


def _own_share(
    settings: str,
    pairs: Mapping[Path, Path],
    options: Encode,
    team: Team | None,
) -> dict[Path, Path]:
    """The pictures that are this process's to fit, with their files.

    What is missing is shared out anew by every run, so that all processes have some of what one
    left undone. They look for it together, each in its part of the list.
    """
    if team is None and not options.resume:
        return dict(pairs)
    from inrjax import distributed

    items = list(pairs.items())
    index, count = (team.place.index, team.place.count) if team else (0, 1)
    missing = distributed.share(range(len(items)), index, count)
    stale = 0
    if options.resume:
        entries = ledger.read(items[0][1].parent)
        missing = [i for i in missing if not _is_made(entries, settings, *items[i])]
        stale = sum(items[i][1].exists() for i in missing)
    command = repr(replace(options, process_id=None))
    found = {"missing": missing, "stale": stale, "command": command}
    everyone = team.gather(found) if team else [found]
    if any(other["command"] != found["command"] for other in everyone):
        raise ValueError(
            "the processes were given different commands: give all the same pictures, in the same "
            "order, and the same options"
        )
    to_fit = sorted(i for other in everyone for i in other["missing"])
    if options.resume and index == 0:
        stale = sum(other["stale"] for other in everyone)
        if stale:
            _note(
                f"{stale} of {len(items)} files are there and are made again: {ledger.NAME} does "
                "not say that they are of these pictures and options, as they are now"
            )
        _note(f"{len(items) - len(to_fit)} of {len(items)} files are there and are kept")
    return dict(items[i] for i in distributed.share(to_fit, index, count))


def _is_made(entries: Set[ledger.Entry], settings: str, path: Path, target: Path) -> bool:
    """Whether a file is there, as it was made of this picture, as it is now, by these settings."""
    try:
        file = ledger.digest_of_file(target)
        picture = ledger.digest_of_file(path)
    except OSError:
        return False
    if file is None or picture is None:
        return False
    return ledger.Entry(file, picture, settings) in entries


def _settings(codec: InrCodec, target: Target | None) -> str:
    """All by which a picture's bytes become a file's, as a line of JSON with sorted keys."""
    chosen: dict[str, Any] = {
        field.name: repr(getattr(codec, field.name))
        for field in fields(codec)
        if field.name not in codecs.GIVEN
    }
    shared = codecs.shared_of(codec)
    if shared is not None:
        chosen["shared"] = shared.digest.hex()
    if target is not None and isinstance(codec, codecs.MetaSiren) and codec.init is None:
        from inrjax import ratecontrol

        # Any of these widths may become the file's, by what they are said to cost.
        model = ratecontrol.packaged_model()
        chosen["widths"] = {
            width: [packaged_init(width).digest.hex(), *costs] for width, costs in model.items()
        }
    return json.dumps({"codec": codec.name, "target": repr(target), **chosen}, sort_keys=True)


def _record(target: Path, stream: bytes, picture: str | None, settings: str) -> None:
    """Note how a file is made, before it is there: no file is without, whenever we are killed."""
    if picture is None:  # a device or a pipe: nobody can tell later what it was
        return
    with _making(target):
        made = hashlib.sha256(stream).hexdigest()
        ledger.add(target.parent, ledger.Entry(made, picture, settings))


def _inr_codec(options: Encode) -> InrCodec:
    if options.codec == "latent-grid":
        return _latent_grid(options)
    if options.step is not None:
        raise OptionError(f"--step is latent-grid's: drop it, or --codec {options.codec}")
    if options.preset != "default" and (options.steps is not None or options.codec == "coin"):
        raise OptionError(
            f"--preset {options.preset} says how long meta-siren fits: drop it, or --steps "
            "and --codec coin"
        )
    steps, search_steps = options.steps, None
    if options.codec == "meta-siren" and steps is None:
        steps, search_steps = codecs.inr.PRESETS[options.preset]
    given = {
        "width": options.width, "num_steps": steps, "search_steps": search_steps,
        "seed": options.seed,
    }  # fmt: skip
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if options.init is not None:
        if options.codec == "coin":
            raise OptionError("coin starts from random weights: drop --init or --codec coin")
        init = load_init(options.init)
        chosen = {"width": init.net.width, "init": init, **chosen}
    try:
        return codecs.Coin(**chosen) if options.codec == "coin" else codecs.MetaSiren(**chosen)
    except ValueError as error:
        raise OptionError(error) from error


def _latent_grid(options: Encode) -> codecs.LatentGrid:
    given = {
        "--width": options.width is not None,
        "--steps": options.steps is not None,
        f"--preset {options.preset}": options.preset != "default",
    }
    wrong = [name for name, is_given in given.items() if is_given]
    if wrong:
        raise OptionError(f"latent-grid fits no network: drop {wrong[0]}, or --codec latent-grid")
    base = None
    if options.init is not None:
        base = codecs.load_shared(options.init)
        if not isinstance(base, GridBase):
            raise OptionError(f"{options.init} is no base of latent grids: drop --init")
    chosen = {} if options.step is None else {"step": options.step}
    return codecs.LatentGrid(**chosen, seed=options.seed, base=base)


def _batches(
    paths: Iterable[Path], each: Each, digests: dict[Path, str | None]
) -> Iterator[dict[Path, Image]]:
    """Pictures, read when they are needed, in batches of bounded size; bad files are reported.

    ``digests`` gets those of the pictures' files, taken before they are read: if one is replaced
    meanwhile, its digest is not that of what was read, and is not found again either.
    """
    batch: dict[Path, Image] = {}
    for path in paths:
        image = None
        with each.file():
            with contextlib.suppress(OSError):  # reading it says what is wrong
                digests[path] = ledger.digest_of_file(path)
            image = _read_image(path)
        if image is None:
            continue
        # A fit of nets holds every picture of a batch at the size of the largest.
        largest = max(item.size for item in [*batch.values(), image]) // 3
        pixels = largest * (len(batch) + 1)
        if batch and (pixels > BATCH_PIXELS or len(batch) == BATCH_IMAGES):
            yield batch
            batch = {}
        batch[path] = image
    if batch:
        yield batch


def _encode_batch(codec: Codec, batch: Mapping[Path, Image], each: Each) -> dict[Path, bytes]:
    """A stream for each picture that can be encoded; the others are reported."""
    try:
        with _progress(f"fitting {len(batch)} picture{'s' * (len(batch) > 1)}") as on_progress:
            streams = codec.encode(list(batch.values()), on_progress)
        return dict(zip(batch, streams, strict=True))
    except ValueError as error:
        if len(batch) == 1:
            with each.file(), _naming(next(iter(batch))):
                raise error
            return {}
    # One of them cannot be encoded: found by halves, so that the others are.
    items, half = list(batch.items()), len(batch) // 2
    parts = (dict(items[:half]), dict(items[half:]))
    return {path: s for part in parts for path, s in _encode_batch(codec, part, each).items()}


def _keep(codec: Codec, image: Image, stream: bytes, path: Path, target: Path) -> None:
    """Decode a stream, as proof that it can be, write it, and say what it costs."""
    from inrjax import metrics

    [image_hat] = codec.decode([stream])
    _write(target, stream)
    bpp = metrics.bpp(len(stream), *image.shape[:2])
    psnr = metrics.psnr(image, image_hat)
    _say(f"{path} -> {target}: {len(stream)} bytes, {bpp:.3f} bpp, {psnr:.2f} dB")


def _decode(options: Decode) -> int:
    pairs = _plan(options.paths, options.output, ".png", options.overwrite)
    init = None if options.init is None else codecs.load_shared(options.init)
    each = Each()
    with each.all(len(pairs)):
        for path, target in pairs.items():
            with each.file():
                stream = _read(path)
                with _naming(path):
                    image_hat = codecs.decode_stream(stream, init, options.max_pixels)
                with _making(target):
                    images.write_image(target, image_hat)
                each.num_done += 1
                _say(f"{path} -> {target}")
    return each.exit_code


def _info(options: Info) -> int:
    stream = _read(options.path)
    init = None if options.init is None else codecs.load_shared(options.init)
    with _naming(options.path):
        description = codecs.describe(stream, init)._asdict()
    if options.json:
        print(json.dumps(description, indent=2))
        return 0
    sections = description.pop("sections")
    print(_lines({**description, **{f"bytes of {name}": n for name, n in sections.items()}}))
    return 0


def _lines(values: Mapping[str, object]) -> str:
    """One ``name  value`` line each, aligned; a value that is not there is a dash."""
    width = max(map(len, values))
    return "\n".join(
        f"{name.replace('_', ' ').ljust(width)}  {_text(value)}" for name, value in values.items()
    )


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "-" if value is None else str(value)


# ---------------------------------------------------------------- bdrate


def _bdrate(options: BdRate) -> int:
    from inrjax import results

    if results.is_published(options.table):
        raise ValueError(
            f"{options.table} holds published curves, which were not measured here: one can only "
            "be the anchor, named first and with --anchor-published METHOD"
        )
    if options.anchor_published is not None:
        if options.per_image:
            raise OptionError("a published curve has no pictures: drop --per-image")
        compared = _against_published(options)
    else:
        compared = _against_measured(options)
    each, found = Each(), []
    for names, compare_pair in compared:
        with each.file(), _naming(f"{names['codec']} against {names['anchor']}"):
            found.append(names | compare_pair())
    if options.json:
        print(json.dumps(found, indent=2))
    elif found:
        print("\n\n".join(_comparison(one) for one in found))
    return each.exit_code


_Compared = list[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]
"""What is compared with what, and the work of it."""


def _against_measured(options: BdRate) -> _Compared:
    from inrjax import compare, results

    if results.is_published(options.anchor):
        methods = list(results.published_curves(results.read_published(options.anchor)))
        raise ValueError(
            f"{options.anchor} holds published curves, which were not measured here: add "
            f"--anchor-published METHOD, one of {', '.join(methods)}"
        )
    a, b = (_rows_by_codec(path) for path in (options.anchor, options.table))

    def compared(name_a: str, name_b: str) -> Callable[[], dict[str, Any]]:
        pair = a[name_a], b[name_b], options.metric, compare.BOOTSTRAP

        def work() -> dict[str, Any]:
            rate, quality = compare.bd_rate_of(*pair), compare.bd_psnr_of(*pair)
            return _results(rate, quality, "") | (
                _of_images(rate, quality, a[name_a]) if options.per_image else {}
            )

        return work

    return [
        (
            {"codec": name_b, "anchor": name_a},
            compared(name_a, name_b),
        )
        for name_a, name_b in _pairs(options, list(a), list(b))
    ]


def _against_published(options: BdRate) -> _Compared:
    from inrjax import compare, datasets, results

    if options.codec_a is not None:
        raise OptionError("--codec-a names measured rows: drop it, or --anchor-published")
    if not results.is_published(options.anchor):
        raise ValueError(
            f"{options.anchor} holds no published curves: name a table such as "
            "results/published/kodak.csv first, or drop --anchor-published"
        )
    points = results.read_published(options.anchor)
    methods = list(dict.fromkeys(point.method for point in points))
    method = options.anchor_published
    if method not in methods:
        raise OptionError(
            f"{options.anchor} has no curve {method!r}: choose from {', '.join(methods)}"
        )
    points = [point for point in points if point.method == method]
    b = _rows_by_codec(options.table)
    kodak = {Path(name).stem for name in datasets.KODAK_SHA256}
    if options.anchor.stem == "kodak" and {r.image for rows in b.values() for r in rows} != kodak:
        _note(f"{options.anchor} is about the 24 images of Kodak, {options.table} about others")

    def compared(name: str) -> Callable[[], dict[str, Any]]:
        pair = points, b[name], options.metric, compare.BOOTSTRAP
        return lambda: _results(
            compare.bd_rate_published(*pair), compare.bd_psnr_published(*pair), _PUBLISHED
        )

    return [
        ({"codec": name, "anchor": method}, compared(name))
        for name in (_named(options.codec_b, b, options.table) or b)
    ]


def _rows_by_codec(path: Path) -> dict[str, list[RDPoint]]:
    from inrjax import results

    codecs: dict[str, list[RDPoint]] = {}
    for row in results.read_rows(path):
        codecs.setdefault(row.codec, []).append(row)
    if not codecs:
        raise ValueError(f"{path} has no rows: measure something first")
    return codecs


def _named(name: str | None, found: Iterable[str], path: Path) -> list[str]:
    """The codec that an option names, in a list; nothing if it names none."""
    if name is None:
        return []
    if name not in found:
        raise OptionError(f"{path} has no codec {name!r}: choose from {', '.join(found)}")
    return [name]


def _pairs(options: BdRate, a: Sequence[str], b: Sequence[str]) -> list[tuple[str, str]]:
    """(anchor, codec) by name: the named anchor or the only one, else equal names."""
    same_file = options.anchor.resolve() == options.table.resolve()
    anchors = _named(options.codec_a, a, options.anchor) or (a if len(a) == 1 else [])
    chosen = _named(options.codec_b, b, options.table)
    if anchors:
        # The rows of a codec against themselves say nothing.
        others = chosen or [name for name in b if not (same_file and name == anchors[0])]
        pairs = [(anchors[0], name) for name in others]
    else:
        pairs = [(name, name) for name in chosen or b if name in a and not same_file]
    if not pairs:
        raise OptionError(
            f"{options.anchor} has the codecs {', '.join(a)} and {options.table} has "
            f"{', '.join(b)}: say which to compare by --codec-a NAME and --codec-b NAME"
        )
    return pairs


_PUBLISHED = "_against_published"


def _results(rate: BDResult, quality: BDResult, suffix: str) -> dict[str, Any]:
    """What is printed; ``suffix`` keeps what is against published curves under names of its own."""
    from inrjax import compare

    return {
        "metric": rate.metric,
        "num_images": rate.num_images,
        f"bd_rate_percent{suffix}": _plain(rate),
        f"bd_psnr_db{suffix}": _plain(quality),
        "bootstrap": asdict(compare.BOOTSTRAP),
    }


def _of_images(rate: BDResult, quality: BDResult, rows: Sequence[RDPoint]) -> dict[str, Any]:
    """What is printed of each picture in a table, by name; None where its curves do not overlap."""
    names = sorted({row.image for row in rows})
    return {
        "images": {
            name: {
                "bd_rate_percent": rate.of_images.get(name),
                "bd_psnr_db": quality.of_images.get(name),
            }
            for name in names
        }
    }


def _plain(result: BDResult) -> dict[str, Any]:
    mean = result.mean_of_images
    return {
        "curve_of_means": result.of_means._asdict(),
        "mean_of_images": None if mean is None else mean._asdict(),
        "low": result.low,
        "high": result.high,
        "num_overlapping": result.num_overlapping,
        "num_resamples": result.num_resamples,
    }


_METRIC_NAMES = {
    "psnr": "PSNR",
    "psnr_y": "PSNR-Y",
    "psnr_ycbcr": "PSNR-YCbCr",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
}


def _comparison(found: Mapping[str, Any]) -> str:
    """A comparison as lines."""
    is_published = f"bd_rate_percent{_PUBLISHED}" in found
    suffix = _PUBLISHED if is_published else ""
    metric = _METRIC_NAMES[found["metric"]]
    kinds = (("BD-rate", "bd_rate_percent", "%", "dB"), (f"BD-{metric}", "bd_psnr_db", "dB", "bpp"))
    cells = []
    for name, key, unit, scale in kinds:
        part = found[key + suffix]
        covered = f"{part['low']:.4g} to {part['high']:.4g} {scale}"
        name += suffix.replace("_", " ")
        cells.append((name, "curve of means", *_bd_cells(part["curve_of_means"], unit), covered))
        if part["mean_of_images"] is not None:
            which = f"mean of {part['num_overlapping']} images"
            cells.append((name, which, *_bd_cells(part["mean_of_images"], unit), ""))
    level = f"{100 * found['bootstrap']['level']:.0f} % interval"
    images = f"{found['num_images']} image{'s' * (found['num_images'] != 1)}"
    anchor = f"published {found['anchor']}, not measured here" if is_published else found["anchor"]
    heading = f"{found['codec']} against {anchor}; {metric}, {images}"
    means = _table(("", "", "value", level + " over ours" * is_published, "over"), cells)
    return "\n".join((heading, means, *_image_lines(found.get("images", {}), metric)))


def _image_lines(images: Mapping[str, Mapping[str, float | None]], metric: str) -> list[str]:
    """The table of --per-image below an empty line, nothing without images."""
    if not images:
        return []
    cells = [
        (name, "", _signed(of["bd_rate_percent"], "%"), _signed(of["bd_psnr_db"], "dB"))
        for name, of in images.items()
    ]
    return ["", _table(("picture", "", "BD-rate", f"BD-{metric}"), cells)]


def _signed(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:+.2f} {unit}"


def _bd_cells(estimate: Mapping[str, Any], unit: str) -> tuple[str, str]:
    ends = (estimate["low"], estimate["high"])
    interval = "-" if ends[0] is None else f"{ends[0]:+.2f} to {ends[1]:+.2f}"
    return _signed(estimate["value"], unit), interval


# ---------------------------------------------------------------- results


def _results_command(options: Results) -> int:
    action = options.action
    if isinstance(action, ListRuns):
        return _list_runs(action)
    return _show_run(action) if isinstance(action, ShowRun) else _verify_run(action)


def _list_runs(options: ListRuns) -> int:
    from inrjax import runs

    each, found = Each(), []
    folders = runs.find_runs(options.root)
    if not folders:
        raise ValueError(f"{options.root} holds no run folder: name one that does")
    for folder in folders:
        with each.file():
            found.append(_run_facts(runs.read_run(folder)))
    if options.json:
        print(json.dumps(found, indent=2))
    elif found:
        print(_table(tuple(found[0]), [[_text(value) for value in one.values()] for one in found]))
    return each.exit_code


def _run_facts(run: Run) -> dict[str, Any]:
    last = run.provenance[-1] if run.provenance else {}
    return {
        "experiment": run.experiment,
        "run": run.folder.absolute().name,
        "date": str(last["date"])[:10] if last.get("date") else None,
        "device": last.get("device"),
        "images": run.num_images,
        "rows": run.num_rows,
        "status": run.status,
    }


def _show_run(options: ShowRun) -> int:
    from inrjax import results, runs

    run = runs.read_run(options.run)
    print(_lines(_run_facts(run)), end="\n\n")
    if run.is_addressed is False:
        _note(f"{run.folder} is not named by the hash of its config")
    print("config.json", json.dumps(run.config, indent=2), sep="\n")
    for entry in run.provenance:
        print("\nprovenance.json", json.dumps(entry, indent=2), sep="\n")
    for path, rows in run.tables.items():
        print(f"\n{path.relative_to(run.folder)}: {len(rows)} rows, means over the pictures")
        print(_summary_table(results.summarise(rows)))
    return 0


def _verify_run(options: VerifyRun) -> int:
    from inrjax import runs

    run = runs.read_run(options.run)
    init = None if options.init is None else codecs.load_shared(options.init)
    stored = runs.stored_rows(run)
    there = [one for one in stored if one.is_there]
    chosen = runs.sample(there, options.sample, options.seed)
    pictures = _originals(options.images, {one.row.image for one in chosen})
    checks = runs.verify(chosen, pictures, init)
    failed = [check for check in checks if check.problems]
    for check in failed:
        row = check.row
        print(f"{row.image} under {row.codec} {row.setting}: {'; '.join(check.problems)}")
    if run.is_addressed is False:
        print(f"{run.folder} is not named by the hash of its config")
    print(f"{len(checks) - len(failed)} of {len(checks)} rows hold, {len(failed)} no longer hold")
    if without := sum(not check.has_qualities and not check.problems for check in checks):
        print(f"{without} of these without quality: --images DIR must hold their pictures")
    for count, reason in (
        (len(there) - len(chosen), "not in the sample"),
        (sum(one.stream is None for one in stored), "of a codec that is not known here"),
        (
            sum(one.stream is not None and not one.is_there for one in stored),
            "without their file, which the run's command makes again",
        ),
    ):
        if count:
            print(f"{count} of {len(stored)} rows not verified: {reason}")
    return 1 if failed or not checks or run.is_addressed is False else 0


def _originals(folder: Path | None, names: set[str]) -> dict[str, Image]:
    """The pictures of these names in a folder; without one, those that come with scikit-image."""
    from inrjax import datasets

    if folder is None:
        packaged = datasets.packaged() if names else {}
        return {name: image for name, image in packaged.items() if name in names}
    paths = {path.stem: path for path in datasets.images_in(folder)}
    return {name: images.read_image(paths[name]).image for name in names if name in paths}


# ---------------------------------------------------------------- inits


def _inits(options: Inits) -> int:
    action = options.action
    if isinstance(action, ListInits):
        return _list_inits(action)
    if isinstance(action, VerifyInits):
        return _verify_inits(action)
    target = add_init(action.path)
    _say(f"{action.path} -> {target}: files that need it are decoded without --init")
    return 0


def _list_inits(options: ListInits) -> int:
    each, found = Each(), []
    for file in init_files():
        with each.file():
            found.append(_about_init(file.name, file.origin, file.load()))
    if options.json:
        print(json.dumps(found, indent=2))
        return each.exit_code
    columns = ("init", "origin", "width", "digest", "shared bytes")
    cells = [
        (one["init"], one["origin"], f"{one['width']}", one["digest"][:8], f"{one['shared_bytes']}")
        for one in found
    ]
    print(_table(columns, cells))
    for words in ("command", "data", "licence"):
        print(f"\n{words.capitalize()}:")
        for text, same in itertools.groupby(found, key=lambda one: one[words]):
            names = [one["init"] for one in same]
            which = "all" if len(names) == len(found) else ", ".join(names)
            print(f"  {which}: {text or 'not said'}")
    return each.exit_code


def _about_init(name: str, origin: str, init: Init) -> dict[str, Any]:
    return {
        "init": name,
        "origin": origin,
        "width": init.net.width,
        "digest": init.digest.hex(),
        "shared_bytes": init.shared_bytes,
        **{word: init.info.get(word) for word in ("command", "data", "licence")},
    }


def _verify_inits(options: VerifyInits) -> int:
    each = Each()
    named = [(str(path), partial(load_init, path)) for path in options.paths]
    for name, load in named or [(file.name, file.load) for file in init_files()]:
        with each.file():
            init = load()
            _say(f"{name}: whole, width {init.net.width}, digest {init.digest.hex()}")
            each.num_done += 1
    print(f"{each.num_done} of {each.num_done + each.num_failed} are whole")
    return each.exit_code


# ---------------------------------------------------------------- evaluate, meta-train, quickstart


def _evaluate(options: Evaluate) -> int:
    from inrjax import datasets, quickstart

    chosen = _chosen(options)
    _prepare_memory(chosen)
    each = Each()
    pictures = _pictures(datasets.images_in(options.images), each)
    if not pictures:
        return each.exit_code
    _use_every_core()
    largest = max(image.size // 3 for image in pictures.values())
    batch_size = min(BATCH_IMAGES, max(1, BATCH_PIXELS // largest))
    with _resumable(options.output), _progress("measuring") as on_progress:
        report = quickstart.measure(chosen, pictures, options.output, batch_size, on_progress)
    _report(report, chosen, each)
    return each.exit_code


def _chosen(options: Evaluate) -> list[Codec]:
    """The codecs of every name in the option, at each of their rates."""
    names = [name.strip() for name in options.codecs.split(",")]
    for name in names:
        if name not in CURVES:
            raise OptionError(f"there is no codec {name!r}: choose from {', '.join(CURVES)}")
    fit: dict[str, Any] = {"seed": options.seed}
    if options.steps is not None:
        fit["num_steps"] = options.steps
    return [codec for name in dict.fromkeys(names) for codec in CURVES[name](fit)]


def _pictures(paths: Sequence[Path], each: Each) -> dict[str, Image]:
    """Pictures by the stems of their file names, which must differ; bad files are reported."""
    _require_distinct({path: Path(path.stem) for path in paths})
    pictures = {}
    for path in paths:
        with each.file():
            pictures[path.stem] = _read_image(path)
    return pictures


def _quickstart(options: Quickstart) -> int:
    from inrjax import quickstart

    _use_every_core()
    fit: dict[str, Any] = {} if options.steps is None else {"num_steps": options.steps}
    ours = [codecs.MetaSiren(width=width, **fit) for width in quickstart.WIDTHS]
    # Every second rate of the classic codecs is enough for a picture.
    names = ("jpeg", "jpeg-optimized", "jpeg2000", "webp")
    classic = [codec for name in names for codec in CURVES[name]({})[::2]]
    each = Each()
    with _resumable(options.output), _progress("compressing and measuring") as on_progress:
        report = quickstart.quickstart(options.output, ours, classic, on_progress)
    print(_file_table([row for row in report.rows if row.codec == ours[0].name]), end="\n\n")
    _report(report, ours, each)
    return each.exit_code


def _write_report(options: WriteReport) -> int:
    from inrjax import report

    target = options.output
    if target.suffix.lower() != ".html":
        raise OptionError(f"{target} does not end in .html: rename it")
    _require_writable(target.parent)
    if not options.overwrite:
        _require_new([target])
    decoders = {}
    for name in codecs.BY_NAME:
        with contextlib.suppress(ValueError):  # its package is not installed: the report says so
            decoders[name] = codecs.decoder(name)
    with _progress("decoding") as on_progress:
        made = report.build_report(
            options.run,
            decoders,
            options.images,
            max_images=options.max_images,
            on_progress=on_progress,
        )
    for note in made.notes:
        _note(note)
    _write(target, made.html)
    pictures = f"{made.num_shown} of {made.num_images} images in the viewer"
    print(f"{options.run} -> {target}: {len(made.html) / 1e6:.1f} MB, {pictures}")
    return 0


def _meta_train(options: MetaTrain) -> int:
    from inrjax import datasets, metatrain

    target = options.output
    if target.suffix.lower() != ".npz":
        raise OptionError(f"{target} does not end in .npz: rename it")
    _require_writable(target.parent)
    if target.is_dir():
        raise ValueError(f"{target} is a folder: choose another -o")
    if not options.overwrite:
        _require_new([target])
    checkpoints = target.with_suffix(".checkpoints")
    if checkpoints.exists() and not options.resume:
        raise ValueError(
            f"{checkpoints} is left of a run that was stopped: add --resume, or delete it"
        )
    each = Each()
    pictures = _pictures(datasets.images_in(options.data), each)
    if each.num_failed:
        _note("nothing was trained: take those pictures out of the folder")
        return each.exit_code
    _use_every_core()
    config = metatrain.MetaTrainConfig(
        options.width, num_steps=options.steps, rounds=options.rounds, seed=options.seed
    )
    _require_large(pictures, config.points)
    if config.rounds and not metatrain.done_with(config, len(pictures)).rounds:
        _note(
            f"no rounds of fits: they need {metatrain.MIN_ROUND_IMAGES} pictures or more, there "
            f"are {len(pictures)}"
        )
    folder = options.data.absolute().name  # of ".", too
    info = {
        "command": f"inrjax meta-train --data {folder} --width {options.width} "
        f"--steps {options.steps} --rounds {options.rounds} --seed {options.seed}",
        "data": f"{len(pictures)} pictures of the folder {folder}",
    }
    with _checkpointed(checkpoints), _progress("meta-training") as on_progress:
        init = metatrain.train_init(config, list(pictures.values()), checkpoints, on_progress, info)
    try:
        save_init(target, init)
    except OSError as error:
        raise ValueError(
            f"{target} cannot be written ({error.strerror}): what was learned is in {checkpoints}, "
            "the same command with --resume goes on from there"
        ) from error
    shutil.rmtree(checkpoints)
    _say(f"{target}: width {init.net.width}, {init.shared_bytes} bytes that decoders share")
    return 0


def _require_large(pictures: Mapping[str, Image], points: int) -> None:
    """ValueError for pictures of fewer pixels than a step of meta-training draws."""
    small = [name for name, image in pictures.items() if image.size // 3 < points]
    if small:
        raise ValueError(
            f"{', '.join(small)}: too small to learn from, {points} pixels or more are needed in "
            "each picture: take them out of the folder"
        )


@contextlib.contextmanager
def _checkpointed(folder: Path) -> Iterator[None]:
    """Ctrl-C and OSError in the block say what became of the checkpoints; so do warnings."""

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if not _is_of_cache(str(message), _cache_folder()):
            _note(str(message))

    def kept() -> str:
        if not any(path.name.isdecimal() for path in folder.glob("*")):
            return "there was no checkpoint yet, nothing is kept"
        return f"the same command with --resume goes on from the last checkpoint in {folder}"

    try:
        with _interruptible(kept), warnings.catch_warnings():
            warnings.showwarning = note
            yield
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be used ({error.strerror}): choose another -o, or make room; {kept()}"
        ) from error


@contextlib.contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """Ctrl-C in the block says that the same command goes on where it was."""
    with _interruptible(
        lambda: f"what was measured is in {folder}, and the same command goes on from there"
    ):
        yield


def _report(report: Report, measured: Sequence[Codec], each: Each) -> None:
    """Print the means, what decoders share, the BD-rates and the files; report what failed."""
    from inrjax import results

    for failure in report.failures:
        with each.file():
            raise ValueError(
                f"{failure.image} under {failure.codec} {failure.setting}: {failure.reason}"
            )
    summaries = results.summarise(report.rows)
    print("Means over the pictures:")
    print(_summary_table(summaries), end="\n\n")
    for line in [*_shared_bytes(measured), *_bd_rates(summaries, "jpeg-optimized")]:
        print(line)
    print("Written:", *report.files)


def _file_table(rows: Sequence[RDPoint]) -> str:
    """The size and quality of each file."""
    cells = [
        (row.image, row.setting, f"{row.num_bytes}", f"{row.bpp:.3f}", f"{row.psnr:.2f}")
        for row in sorted(rows, key=lambda row: row.image)
    ]
    return _table(("picture", "setting", "bytes", "bpp", "PSNR dB"), cells)


def _summary_table(summaries: Sequence[Summary]) -> str:
    header = ("codec", "setting", "bytes", "bpp", "PSNR dB", "SSIM", "MS-SSIM", "enc s", "dec s")
    rows = [
        (
            item.codec,
            item.setting,
            f"{item.num_bytes:.0f}",
            f"{item.bpp:.3f}",
            f"{item.psnr:.2f}",
            "-" if item.ssim is None else f"{item.ssim:.4f}",
            "-" if item.ms_ssim is None else f"{item.ms_ssim:.4f}",
            f"{item.encode_seconds:.2f}",
            f"{item.decode_seconds:.2f}",
        )
        for item in summaries
    ]
    return _table(header, rows)


def _shared_bytes(measured: Sequence[Codec]) -> list[str]:
    """A line for the bytes that decoders need once, beside the files and not counted in bpp."""
    sizes: dict[str, None] = {}  # an ordered set: many settings share one base
    for codec in measured:
        shared = codecs.shared_of(codec)
        if shared is not None:
            of_width = f" at width {shared.net.width}" if isinstance(shared, Init) else ""
            sizes[f"{shared.shared_bytes} of {codec.name}{of_width}"] = None
    return [f"Bytes that decoders share, once: {', '.join(sizes)}"] if sizes else []


def _bd_rates(summaries: Sequence[Summary], anchor: str) -> list[str]:
    """A line for each codec that is not the anchor, if the anchor was measured."""
    from inrjax import metrics, results

    curves = results.measured_curves(summaries)
    if anchor not in curves:
        return []
    rates, psnrs = zip(*curves.pop(anchor), strict=True)
    lines = []
    for name, curve in curves.items():
        try:
            bd_rate = metrics.bd_rate(rates, psnrs, *zip(*curve, strict=True))
            text = f"{bd_rate.percent:+.1f} % over {bd_rate.low_db:.2f}..{bd_rate.high_db:.2f} dB"
        except ValueError as error:
            text = f"none: {error}"
        lines.append(f"BD-rate of {name} against {anchor}: {text}")
    return lines


# ---------------------------------------------------------------- the entry point

COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "encode": (Encode, _encode),
    "decode": (Decode, _decode),
    "info": (Info, _info),
    "evaluate": (Evaluate, _evaluate),
    "bdrate": (BdRate, _bdrate),
    "results": (Results, _results_command),
    "inits": (Inits, _inits),
    "meta-train": (MetaTrain, _meta_train),
    "quickstart": (Quickstart, _quickstart),
    "report": (WriteReport, _write_report),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's own); returns the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open to the end)
    if arguments is None:  # this process is this command, and nobody else's
        _end_soon_after_ctrl_c()
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return code
    except OptionError as error:
        _error(error)
        return 2
    except ValueError as error:
        _error(error)
        return 1
    except MemoryError:
        _error(ValueError("there is not enough memory: give fewer or smaller pictures"))
        return 1
    except RuntimeError as error:  # what JAX raises when its device or its memory fails
        first = str(error).strip().splitlines() or ["no reason given"]
        _error(ValueError(f"the computation failed ({first[0]}): try fewer or smaller pictures"))
        return 1
    except KeyboardInterrupt as stop:
        _say_stopped(str(stop))
        return 130
    except OSError as error:  # most likely of stdout: where files are used, it is a ValueError
        # Python flushes stdout once more as it ends, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 141
        _error(f"{error.filename or 'the output'} cannot be used: {error.strerror}")
        return 1


def _run(arguments: Sequence[str]) -> int:
    name, *rest = arguments or [""]
    try:
        if name in ("-h", "--help"):
            _parse(_any_command(), "inrjax", OVERVIEW, ["--help"])
        if name not in COMMANDS:
            problem = f"there is no command {name!r}" if name else "no command was given"
            raise OptionError(f"{problem}: choose from {', '.join(COMMANDS)}; see inrjax --help")
        kind, run = COMMANDS[name]
        options = _parse(kind, f"inrjax {name}", inspect.cleandoc(kind.__doc__ or ""), rest)
    except SystemExit:
        return 0  # help was asked for, and tyro has printed it
    return run(options)


OVERVIEW = """Compress pictures to small files that hold a neural network, with JAX.

Try it:
  inrjax quickstart                              three photographs, beside JPEG and others
  inrjax encode photo.png -o photo.inr           a picture to a file
  inrjax decode photo.inr -o photo.png           and back
  inrjax encode --help                           more on one command

Compiled programs are kept in the user's cache folder, or in that of the environment variable
INRJAX_CACHE; if it is empty, nowhere. INRJAX_INITS does the same for inits that you added.
"""


def _any_command() -> Any:
    """What tyro needs to list the commands, a line each."""
    lines = {name: (kind.__doc__ or "").splitlines()[0] for name, (kind, _) in COMMANDS.items()}
    return Union[  # noqa: UP007 (a union of a list)
        tuple(
            Annotated[kind, subcommand(name, description=lines[name])]
            for name, (kind, _) in COMMANDS.items()
        )
    ]


def _parse(kind: Any, program: str, description: str, arguments: Sequence[str]) -> Any:
    """The options as a ``kind``; OptionError for wrong ones, SystemExit(0) for --help."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(
                kind,
                prog=program,
                description=description,
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        raise OptionError(f"{_sentence(told.getvalue())}; see {program} --help") from None


def _sentence(box: str) -> str:
    """What stands under the title of a box that tyro draws, without help texts, as one line."""
    plain = re.sub("\x1b\\[[0-9;]*m|[╭╮╰╯│─]|-{8,}", "", box)
    lines = itertools.dropwhile(lambda line: not line.strip(), plain.splitlines()[1:])
    paragraph = itertools.takewhile(lambda line: line.strip(), lines)
    return " ".join(line.strip() for line in paragraph if not line.startswith(" " * 8)).rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
