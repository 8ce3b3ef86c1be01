"""A learned init: what encoder and decoder share, beside the file. Needs numpy alone.

It holds the net's spec, the params that fits start from, and the prior of the fitted params: a
Laplace distribution around ``keep * params`` whose scales are ``2^(envelope / 4)``.

Inits come with the package, or are the user's own: `add_init` puts one into a folder where
`find_init` finds it. Whatever their file, they are used only if their content has its digest.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from inrjax import trees
from inrjax.nets.siren import Siren, siren_from_dict, siren_to_dict
from inrjax.types import BitstreamError, Params

FORMAT = "inrjax-init-1"
_FOLDER = "inits"
_NAME = re.compile(r"siren_w\d{3,}(_[0-9a-f]{8})?\.npz")
_NAME_BYTES = 4  # first bytes of the digest that a name has, and an .inr file too


@dataclass(frozen=True, eq=False)
class Init:
    """A meta-learned init and prior.

    Attributes:
      net: the network.
      params: float16 tree: where fits start, and the shape of the prior's mean.
      keep: the same tree of float32 scalars in [0, 1]: the prior's mean is keep * params, and what
        is coded is the distance from it. The packaged inits have 1; experiments/defaults.py
        measures 0, too.
      envelope: the same tree of int8 arrays that broadcast to the params: the prior's Laplace
        scale is 2^(envelope / 4), in the params' own units.
      rates: float16 tree of (inner_steps, ...) inner learning rates, or None. Encoder only.
      info: how it was made: command, data and their digest, licence, steps, seed.
    """

    net: Siren
    params: Params
    keep: Mapping[str, Any]
    envelope: Mapping[str, Any]
    rates: Mapping[str, Any] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        expected = {path: tuple(shape) for path, shape in trees.leaves(self.net.shapes())}
        for name in ("params", "keep", "envelope"):
            self._check_paths(name, getattr(self, name), expected.keys())
        if self.rates is not None:
            self._check_paths("rates", self.rates, expected.keys())
        keep, envelope = (dict(trees.leaves(tree)) for tree in (self.keep, self.envelope))
        for path, leaf in trees.leaves(self.params):
            shape = expected[path]
            if np.shape(leaf) != shape:
                raise ValueError(f"the init's {path} is {np.shape(leaf)}, expected {shape}")
            if np.shape(keep[path]) != () or not _broadcasts(np.shape(envelope[path]), shape):
                raise ValueError(f"the init's prior of {path} does not fit its shape {shape}")

    def _check_paths(self, name: str, tree: Mapping[str, Any], expected: Iterable[str]) -> None:
        if {path for path, _ in trees.leaves(tree)} != set(expected):
            raise ValueError(f"the init's {name} do not fit {self.net}")

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of what a decoder uses: net, params, keep, envelope."""
        parts = {"params": self.params, "keep": self.keep, "envelope": self.envelope}
        return trees.digest(parts, json.dumps(siren_to_dict(self.net), sort_keys=True))

    @property
    def short_digest(self) -> str:
        """The digest's first 8 hexadecimal digits: what file names, configs and tables say."""
        return self.digest.hex()[:8]

    @property
    def shared_bytes(self) -> int:
        """Bytes that a decoder needs beside the file: params, keep and envelope as stored."""
        parts = (self.params, self.keep, self.envelope)
        return sum(np.asarray(leaf).nbytes for part in parts for _, leaf in trees.leaves(part))

    def mean(self) -> dict[str, Any]:
        """The prior's mean, keep * params, float32: one product, the same on every machine."""
        keep = dict(trees.leaves(self.keep))
        return trees.from_leaves(
            {
                path: np.float32(keep[path]) * np.asarray(leaf, np.float32)
                for path, leaf in trees.leaves(self.params)
            }
        )

    def levels(self) -> dict[str, np.ndarray]:
        """``envelope`` at full shape, path -> int64: what a level of scale is counted from."""
        shapes = dict(trees.leaves(self.net.shapes()))
        return {
            path: np.broadcast_to(np.asarray(leaf, np.int64), shapes[path])
            for path, leaf in trees.leaves(self.envelope)
        }


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    same_rank = len(shape) == len(to)
    return same_rank and all(own in (1, size) for own, size in zip(shape, to, strict=True))


def flat_init(net: Siren, params: Params) -> Init:
    """An init whose prior knows nothing: mean 0, one scale of 2^-7 for every param."""
    leaves = list(trees.leaves(params))
    return Init(
        net=net,
        params=trees.from_leaves({p: np.asarray(x, np.float16) for p, x in leaves}),
        keep=trees.from_leaves({p: np.float32(0) for p, _ in leaves}),
        envelope=trees.from_leaves(
            {p: np.full((1,) * np.ndim(x), -28, np.int8) for p, x in leaves}
        ),
    )


def save_init(path: Path, init: Init) -> None:
    """Write an init as npz, whole or not at all; `load_init` reads it back exactly.

    Raises ValueError if the file would be larger than `load_init` reads.
    """
    parts = {"params": init.params, "keep": init.keep, "envelope": init.envelope}
    arrays = dict(trees.leaves(parts | ({"rates": init.rates} if init.rates else {})))
    header = {"format": FORMAT, "net": siren_to_dict(init.net), "info": dict(init.info)}
    header["digest"] = init.digest.hex()
    # The digest covers what a decoder uses; this covers the inner rates too.
    header["file_digest"] = trees.digest(arrays).hex()
    data = trees.to_npz(header, arrays)
    if len(data) > trees.MAX_NPZ_BYTES:
        raise ValueError(
            f"an init of width {init.net.width} has {len(data)} bytes, more than the "
            f"{trees.MAX_NPZ_BYTES} that are read: learn a narrower one"
        )
    trees.write_atomic(Path(path), data)


def load_init(path: Path) -> Init:
    """Read an init, its digest verified.

    Raises:
      ValueError: the file is missing, damaged, not an init, or of another format; it says which.
    """
    return _parse(_read(Path(path)), str(path))


def _read(path: Path) -> bytes:
    """The bytes of an init file, which may be damaged; ValueError if it cannot be one."""
    return trees.read_npz_file(path, "an init", "inrjax meta-train")


def _parse(data: bytes, name: str) -> Init:
    try:
        header, leaves = trees.from_npz(data)
        tree = trees.from_leaves(leaves)
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']!r}, expected {FORMAT!r}")
        net = siren_from_dict(header["net"])
        init = Init(
            net, tree["params"], tree["keep"], tree["envelope"], tree.get("rates"), header["info"]
        )
        stated = (header["digest"], header["file_digest"])
    except Exception as error:  # a damaged archive makes its reader raise nearly anything
        raise ValueError(f"{name} is damaged or no init of inrjax: {error}") from None
    if stated != (init.digest.hex(), trees.digest(leaves).hex()):
        raise ValueError(f"{name} is damaged: its content does not match its digest")
    return init


def packaged_widths() -> tuple[int, ...]:
    """The widths that have a packaged init, rising."""
    return _widths_in(resources.files("inrjax").joinpath(_FOLDER))


@lru_cache(maxsize=4)
def _widths_in(folder: Traversable) -> tuple[int, ...]:
    """Read once: every file that is decoded asks."""
    names = (entry.name for entry in folder.iterdir())
    matches = (re.fullmatch(r"siren_w(\d+)\.npz", name) for name in names)
    return tuple(sorted(int(match[1]) for match in matches if match))


@lru_cache(maxsize=32)
def packaged_init(width: int) -> Init:
    """The packaged init of a width; ValueError names the widths there are."""
    entry = resources.files("inrjax").joinpath(_FOLDER, f"siren_w{width:03d}.npz")
    if not entry.is_file():
        raise ValueError(
            f"got width {width}, expected one that has a packaged init "
            f"({', '.join(map(str, packaged_widths()))}), or an init file of your own"
        )
    return _parse(entry.read_bytes(), entry.name)


def find_init(digest_start: bytes) -> Init | None:
    """The init whose digest begins so, or None: a packaged one in use, one that a codec names or
    an earlier version used, whose files stay readable, or one in the user's folder (`add_init`).

    Raises BitstreamError for the user's if its file is damaged, or not what its name says.
    """
    for width in packaged_widths():
        if packaged_init(width).digest.startswith(digest_start):
            return packaged_init(width)
    return _retired_init(digest_start.hex()) or _user_init(digest_start)


def digest_name(init: Init) -> str:
    """The file name of an init by its digest: of one that a codec names, or that new files do not
    use any more."""
    return f"siren_w{init.net.width:03d}_{init.short_digest}.npz"


@lru_cache(maxsize=32)
def _retired_init(digest_start: str) -> Init | None:
    folder = resources.files("inrjax").joinpath(_FOLDER)
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        match = re.fullmatch(r"siren_w\d+_([0-9a-f]{8})\.npz", entry.name)
        if match and digest_start.startswith(match[1]):
            init = _parse(entry.read_bytes(), entry.name)
            return init if init.digest.hex().startswith(digest_start) else None
    return None


# ---------------------------------------------------------------------------- all that are at hand


class InitFile(NamedTuple):
    """A file that `find_init` looks at. ``origin``: ``packaged``, ``packaged, earlier`` (named by
    its digest: `MetaSiren` reads it, and uses it for new files no more), or ``user``."""

    entry: Traversable
    origin: str

    @property
    def name(self) -> str:
        """The file's name, with its folder if it is the user's."""
        return self.entry.name if self.origin != "user" else str(self.entry)

    def load(self) -> Init:
        """The init, its digests computed anew.

        Raises ValueError, naming the file, if it is damaged, of another net than for pictures, or
        not what its name says.
        """
        path = self.entry if isinstance(self.entry, Path) else None
        init = _parse(_read(path) if path else self.entry.read_bytes(), self.name)
        _check_for_pictures(init, self.name)
        # Only packaged ones that are in use have a name without a digest.
        expected = {digest_name(init)}
        if self.origin == "packaged":
            expected = {f"siren_w{init.net.width:03d}.npz"}
        if self.entry.name not in expected:
            raise ValueError(
                f"{self.name} is not the init that its name says: its content is that of "
                f"{digest_name(init)}"
            )
        return init


def init_files() -> list[InitFile]:
    """Every init file at hand: packaged ones in use, earlier ones, the user's; damaged or not."""
    entries = sorted(
        resources.files("inrjax").joinpath(_FOLDER).iterdir(), key=lambda entry: entry.name
    )
    matches = [(entry, match) for entry in entries if (match := _NAME.fullmatch(entry.name))]
    current = [InitFile(entry, "packaged") for entry, match in matches if not match[1]]
    earlier = [InitFile(entry, "packaged, earlier") for entry, match in matches if match[1]]
    folder = user_folder()
    own = sorted(folder.glob("*.npz")) if folder is not None else []
    return [*current, *earlier, *(InitFile(path, "user") for path in own)]


def user_folder() -> Path | None:
    """Where inits of the user's own are: the environment variable INRJAX_INITS, nowhere if it is
    empty; without it ``inrjax/inits`` in XDG_DATA_HOME, whose default is ``~/.local/share``."""
    given = os.environ.get("INRJAX_INITS")
    if given is not None:
        return Path(given).absolute() if given else None
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    try:
        base = base if base.is_absolute() else Path.home() / ".local" / "share"
    except RuntimeError:  # the user has no home
        return None
    return base / "inrjax" / "inits"


def add_init(path: Path) -> Path:
    """Copy an init file into `user_folder`, so that `find_init` finds it; returns the copy.

    Raises:
      ValueError: it is damaged, not an init for pictures, packaged already, or its digest begins
        as that of another one at hand; or the folder cannot be written.
    """
    data = _read(Path(path))
    init = _parse(data, str(path))
    _check_for_pictures(init, str(path))
    folder = user_folder()
    if folder is None:
        raise ValueError(
            "there is no folder for inits: set INRJAX_INITS to one, or unset it for the default"
        )
    target = folder / digest_name(init)
    _check_new(init, str(path), target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trees.write_atomic(target, data)
    except OSError as error:
        raise ValueError(
            f"{target} cannot be written ({error.strerror}): set INRJAX_INITS to a folder that can"
        ) from error
    return target


def _check_new(init: Init, name: str, target: Path) -> None:
    for file in init_files():
        try:
            other = file.load()
        except ValueError:
            continue  # a damaged one is replaced, or in nobody's way
        if other.digest == init.digest and file.entry != target:
            raise ValueError(f"{name} is {file.name}, which is at hand: it need not be added")
        if other.digest[:_NAME_BYTES] == init.digest[:_NAME_BYTES] and other.digest != init.digest:
            raise ValueError(
                f"{name} begins with the digits of {file.name}, and is another init: train it "
                "with another seed"
            )


def _check_for_pictures(init: Init, name: str) -> None:
    if (init.net.in_dim, init.net.out_dim) != (2, 3):
        raise ValueError(f"{name} is of {init.net}, expected in_dim 2 and out_dim 3, for pictures")


def _user_init(digest_start: bytes) -> Init | None:
    folder = user_folder()
    if folder is None or len(digest_start) < _NAME_BYTES:
        return None
    try:
        for path in sorted(folder.glob(f"siren_w*_{digest_start[:_NAME_BYTES].hex()}.npz")):
            status = path.stat()
            init = _load_user(path, (status.st_mtime_ns, status.st_size, status.st_ino))
            return init if init.digest.startswith(digest_start) else None
    except (OSError, ValueError) as error:
        raise BitstreamError(f"the init that it needs is of no use: {error}") from error
    return None


@lru_cache(maxsize=32)
def _load_user(path: Path, status: tuple[int, ...]) -> Init:
    """``status`` tells apart what was at this path at different times."""
    return InitFile(path, "user").load()
