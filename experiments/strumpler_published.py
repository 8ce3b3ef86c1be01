"""Do the codecs of Strümpler et al. 2022 reach the paper's curves, fitted as the paper says?

Claim: within 0.3 dB of the published PSNR at equal bpp, on Kodak: 25,000 full-image steps of Adam
at 5e-4 that halves on a plateau, L1, AdaRound, retraining (arXiv:2112.04267).
Command, on an accelerator, which needs neither the range coder nor the command-line libraries:
  python -m experiments.strumpler_published fit --data DIR --output FOLDER
and here: python -m experiments.strumpler_published measure --data DIR --input FOLDER
Minutes: on one H200, on paper, 5 to 10 for each net of width 32 to 64 and 40 for width 128; days on
    2 cores. A stopped run goes on with the first net whose file is missing.
Expected: results/strumpler_published/<config hash>/table.md; fits.json names the fits' machines.

``fit`` writes the integers of all images, a file for each net; ``measure`` codes them into files,
which another process decodes. The learned inits are packaged ones; the paper's other
width, 128, has none and is fitted without. ``--smoke`` does both on a small crop, in a few steps.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from experiments import common
from inrjax import codecs, fit, optimizers, results, trees
from inrjax.quantize import Quantized
from inrjax.types import Image, OnProgress

PUBLISHED = {
    "basic, 8 bit": "Strumpler basic (8 bit)",
    "meta-learned, 7 bit": "Strumpler meta-learned (7 bit)",
}
"""The curve of the paper that each of ours is held against."""


@dataclass(frozen=True)
class Config:
    """The nets, and how they are fitted: ``points_per_step`` None is all pixels."""

    basic_widths: tuple[int, ...] = (32, 48, 64, 128)
    meta_widths: tuple[int, ...] = (32, 48, 64)
    num_steps: int = 25_000
    points_per_step: int | None = None
    rounding_steps: int = 1000
    retraining_steps: int = 300
    learning_rate: float = 5e-4
    seed: int = 0


SMOKE = Config(
    basic_widths=(8,), meta_widths=(), num_steps=4, rounding_steps=2, retraining_steps=2
)  # fmt: skip


def build_codecs(config: Config) -> dict[tuple[str, int], Any]:
    """(Curve, width) -> the codec."""
    fields: dict[str, Any] = {
        "num_steps": config.num_steps,
        "seed": config.seed,
        "optimizer": optimizers.PlateauAdam(config.learning_rate),
        "points_per_step": config.points_per_step,
        "rounding_steps": config.rounding_steps,
        "retraining_steps": config.retraining_steps,
    }
    basic, learned = PUBLISHED
    return {
        **{(basic, w): codecs.StrumplerBasic(w, 8, **fields) for w in config.basic_widths},
        **{(learned, w): codecs.StrumplerMeta(w, 7, **fields) for w in config.meta_widths},
    }


# ---------------------------------------------------------------------------- fitting


def fit_all(config: Config, images: Mapping[str, Image], folder: Path) -> None:
    """A file for each net; those that are there are kept, ValueError if one is of other steps."""
    fit.use_every_core()
    folder.mkdir(parents=True, exist_ok=True)
    for (curve, width), codec in build_codecs(config).items():
        path = fitted_path(folder, curve, width)
        if path.exists():
            load_fitted(codec, path)
            print(f"{path}: kept")
            continue
        print(f"{curve}, width {width}")
        params = codec.fit([*images.values()], common.print_progress())
        quantized = codec.quantize([*images.values()], params, common.print_progress())
        arrays = {
            f"{sha256(image.tobytes()).hexdigest()}/{part}/{leaf_path}": np.asarray(leaf)
            for image, coded in zip(images.values(), quantized, strict=True)
            for part, tree in coded._asdict().items()
            for leaf_path, leaf in trees.leaves(tree)
        }
        buffer = io.BytesIO()
        arrays |= {
            "setting": np.array(codec.setting),
            "provenance": np.array(json.dumps(results.provenance(results.jax_device()))),
        }
        np.savez_compressed(buffer, **arrays)  # pyright: ignore
        trees.write_atomic(path, buffer.getvalue())


def fitted_path(folder: Path, curve: str, width: int) -> Path:
    """Of the integers of all images under one net."""
    return folder / f"{curve.split(',')[0]}_{width:03d}.npz"


# ---------------------------------------------------------------------------- measuring


@dataclass(frozen=True, eq=False)
class Fitted(common.Wrapped):
    """The codec on integers that were found before, by the SHA-256 of an image's pixels."""

    arrays: Mapping[str, np.ndarray]

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """The streams of images that were fitted; ValueError for another."""
        return [self.codec.pack(image, self._quantized(image)) for image in images]

    def _quantized(self, image: Image) -> Quantized:
        prefix = f"{sha256(image.tobytes()).hexdigest()}/"
        own = {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}
        if not own:
            raise ValueError(f"no fit of one of the pictures for {self.setting}: fit them first")
        symbols, grid = (
            {k.removeprefix(part): leaf for k, leaf in own.items() if k.startswith(part)}
            for part in ("symbols/", "grid/")
        )
        indices = {path: int(index) for path, index in grid.items()}
        return Quantized(trees.from_leaves(symbols), trees.from_leaves(indices))


def load_fitted(codec: Any, path: Path) -> Fitted:
    """What `fit_all` wrote of this codec; ValueError if it is of another."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    if str(arrays["setting"]) != codec.setting:
        raise ValueError(
            f"{path} is of {arrays['setting']}, not of {codec.setting}: fit into another folder"
        )
    return Fitted(codec, arrays)


def measure(config: Config, images: Mapping[str, Image], fitted: Path, root: Path) -> Path:
    """Files, rows.csv and table.md of the nets whose fits are there, and fits.json, the provenance
    of these; returns the run folder."""
    from experiments.kodak_rd import note_provenance
    from inrjax.evaluate import evaluate

    there = {
        key: load_fitted(codec, path)
        for key, codec in build_codecs(config).items()
        if (path := fitted_path(fitted, *key)).exists()
    }
    if not there:
        raise ValueError(f"{fitted} holds no fits: run fit --output {fitted} first")
    folder = results.run_folder(root, config)
    note_provenance(folder)
    fits = {
        f"{curve}, width {width}": json.loads(str(codec.arrays["provenance"]))
        for (curve, width), codec in there.items()
    }
    results.write_json(folder / "fits.json", fits)
    rows = evaluate([*there.values()], images, folder, batch_size=len(images))
    results.write_text(folder / "table.md", table(config, there, rows))
    return folder


def table(config: Config, measured: Mapping[tuple[str, int], Any], rows: Sequence[Any]) -> str:
    """Each net beside the published curve at its rate."""
    from experiments.kodak_rd import ROOT, markdown

    published = results.read_published(ROOT / "results" / "published" / "kodak.csv")
    summaries = {(s.codec, s.setting): s for s in results.summarise(rows)}
    lines = []
    for (curve, width), codec in measured.items():
        s = summaries[codec.name, codec.setting]
        own = (point for point in published if point.method == PUBLISHED[curve])
        theirs = [(point.bpp, point.psnr_db) for point in own if point.psnr_db is not None]
        at = common.psnr_at(theirs, s.bpp)
        cells = ["-", "-"] if at is None else [f"{at:.2f}", f"{s.psnr - at:+.2f}"]
        lines.append(
            [curve, str(width), f"{s.num_bytes:.0f}", f"{s.bpp:.4f}", f"{s.psnr:.2f}", *cells]
        )
    header = [
        "codec", "width", "bytes", "bpp", "PSNR dB", "published dB at this bpp",
        "difference dB",
    ]  # fmt: skip
    points = config.points_per_step or "all"
    return (
        "# Strümpler's codecs, fitted as published\n\n"
        f"{len({row.image for row in rows})} images, seed {config.seed}: {config.num_steps} steps "
        f"of {points} pixels, Adam at {config.learning_rate:g} that halves on a plateau. Whole "
        "files, decoded by another process; the published curve was not measured here, and is "
        "read linearly in log bpp, not beyond its ends.\n\n" + markdown(header, lines) + "\n"
    )


# ---------------------------------------------------------------------------- the command line


def smoke(folder: Path) -> Path:
    """Both parts on one small crop; returns the run folder."""
    [(name, image), *_] = common.smoke_images().items()
    fit_all(SMOKE, {name: image}, folder / "fitted")
    return measure(SMOKE, {name: image}, folder / "fitted", folder / "results")


def main(arguments: Sequence[str] | None = None) -> None:
    """``fit`` or ``measure``, or ``--smoke`` into the folder of ``--output``."""
    default = Config()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("verb", choices=["fit", "measure"], nargs="?")
    parser.add_argument("--data", type=Path, help="the folder that holds kodak/")
    parser.add_argument("--num-steps", type=int, default=default.num_steps)
    parser.add_argument("--basic-widths", type=int, nargs="*", default=default.basic_widths)
    parser.add_argument("--meta-widths", type=int, nargs="*", default=default.meta_widths)
    parser.add_argument("--input", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    config = replace(
        default,
        num_steps=options.num_steps,
        basic_widths=tuple(options.basic_widths),
        meta_widths=tuple(options.meta_widths),
    )
    if options.smoke and options.output:
        common.show(smoke(options.output))
    elif options.verb == "fit" and options.output:
        fit_all(config, common.named("kodak", options.data), options.output)
    elif options.verb == "measure" and options.input:
        root = options.output or Path(__file__).parents[1] / "results" / "strumpler_published"
        images = common.named("kodak", options.data)
        common.show(measure(config, images, options.input, root))
    else:
        parser.error("give fit --output FOLDER, measure --input FOLDER, or --smoke --output FOLDER")


if __name__ == "__main__":
    # By its own name, so that the process that decodes can import `Fitted`.
    from experiments import strumpler_published

    strumpler_published.main()
