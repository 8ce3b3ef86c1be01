"""Where do the bits of an .inr file go: header, init's name, grid, and the symbols of each layer?

Claim: everything but the symbols takes at most 48 bytes, 3 % of the smallest file.
Command: python -m experiments.sections        (photographs that come with scikit-image, fitted)
     or: python -m experiments.sections --run results/kodak_rd/HASH     (the streams of that run)
Minutes: about 6 on 2 cores (11 of processor time); seconds with --run.
Expected: the table in results/sections/<config hash>/table.md.

Streams are not committed, so what `experiments.figures sections` draws is measured here and kept as
rows.json: for each stream its bytes by section, and the ideal code length of each tensor's symbols
(`codecs.MetaSiren.code_lengths`). ``--run`` names a run folder whose ``streams/`` are still there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import tyro

from experiments.common import smoke_images
from experiments.kodak_rd import ROOT, markdown
from inrjax import codecs, datasets, results
from inrjax.init import packaged_init
from inrjax.types import Image


@dataclass(frozen=True)
class Config:
    """What is measured; ``streams``: of which run, or of which photographs, fitted here."""

    widths: tuple[int, ...] = (24, 32, 48, 64, 80, 104)
    num_steps: int = 2000
    seed: int = 0
    streams: str = "packaged"
    inits: tyro.conf.Suppress[tuple[str, ...]] = ()


Row = dict[str, Any]
"""setting, image, num_bytes; ``sections``: name -> bytes; ``tensors``: path -> bits."""


def run(
    config: Config, streams: Mapping[tuple[str, str], bytes], root: Path, device: str | None
) -> Path:
    """Measure streams, by (setting, image); writes rows.json, provenance.json (``device``: where
    they were fitted, None for those of a run), table.md."""
    folder = results.run_folder(root, config)
    results.write_json(folder / "provenance.json", results.provenance(device))
    rows = [measure(setting, image, data) for (setting, image), data in streams.items()]
    results.write_json(folder / "rows.json", rows)
    results.write_text(folder / "table.md", table(config, rows))
    return folder


def measure(setting: str, image: str, data: bytes) -> Row:
    """One stream's row."""
    found = codecs.describe(data)
    return {
        "setting": setting,
        "image": image,
        "num_bytes": found.num_bytes,
        "sections": found.sections,
        "tensors": codecs.MetaSiren().code_lengths(data),
    }


def fitted_streams(
    config: Config, images: Mapping[str, Image]
) -> tuple[Config, dict[tuple[str, str], bytes]]:
    """The config with the inits that it uses, and the streams of all images at all widths."""
    digests = tuple(packaged_init(width).short_digest for width in config.widths)
    streams = {}
    for width in config.widths:
        codec = codecs.MetaSiren(width, config.num_steps, config.seed)
        print(f"width {width}", flush=True)
        coded = codec.encode(list(images.values()))
        streams |= {(codec.setting, n): data for n, data in zip(images, coded, strict=True)}
    return replace(config, inits=digests), streams


def streams_of_run(folder: Path) -> tuple[Config, dict[tuple[str, str], bytes]]:
    """What `inrjax.evaluate` left in a run folder; ValueError if its streams are gone."""
    paths = sorted(folder.glob("streams/meta-siren/*/*.inr"))
    if not paths:
        raise ValueError(f"{folder} has no streams of MetaSiren: name a run folder that has them")
    streams = {(path.parent.name, path.stem): path.read_bytes() for path in paths}
    inits = dict.fromkeys(codecs.describe(data).init_digest or "" for data in streams.values())
    source = f"{folder.parent.name}/{folder.name}"
    return Config(widths=(), num_steps=0, streams=source, inits=tuple(inits)), streams


def mean_parts(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """By setting, mean bytes of each part: header and checksum, the init's name, the grid, and the
    symbols by layer, smallest files first.

    The bytes of the section 'symbols' are split in proportion to the code lengths of the tensors;
    the range coder's own few bytes go with them.
    """
    settings: dict[str, list[dict[str, float]]] = {}
    for row in sorted(rows, key=lambda row: row["num_bytes"]):
        sections, tensors = row["sections"], row["tensors"]
        layers: dict[str, float] = {}
        for path, bits in tensors.items():
            name = "biases" if path.endswith("bias") else path.split("/")[0]
            layers[name] = layers.get(name, 0.0) + bits
        scale = sections["symbols"] / sum(layers.values())
        weights = {n: scale * bits for n, bits in sorted(layers.items()) if n != "biases"}
        parts = {
            "header, checksum": sections["container"],
            "init's name": sections["init"],
            "grid": sections["grid"],
            "biases": scale * layers["biases"],
            **{f"weights, layer {i + 1}": size for i, size in enumerate(weights.values())},
        }
        settings.setdefault(row["setting"], []).append(parts)
    return {
        setting: {name: fmean(parts[name] for parts in group) for name in group[0]}
        for setting, group in settings.items()
    }


def table(config: Config, rows: Sequence[Row]) -> str:
    """Mean bytes of each part by setting, as Markdown."""
    means = mean_parts(rows)
    header = ["setting", "bytes", *next(iter(means.values()))]
    lines = [
        [setting, f"{sum(parts.values()):.0f}", *(f"{size:.1f}" for size in parts.values())]
        for setting, parts in means.items()
    ]
    images = len({row["image"] for row in rows})
    return (
        f"# Bytes of each part of an .inr file, mean of {images} images ({config.streams})\n\n"
        "The section 'symbols' is split among the layers in proportion to their code lengths.\n\n"
        f"{markdown(header, lines)}\n"
    )


SMOKE = Config(widths=(24,), num_steps=2, streams="smoke")


@dataclass(frozen=True)
class Options:
    """The command line."""

    config: Config = Config()
    run: Path | None = None
    output: Path = ROOT / "results" / "sections"
    smoke: bool = False


def main(options: Options) -> Path:
    """Read or make the streams, measure them; returns the run folder."""
    from inrjax import fit

    if options.run is not None:
        config, streams = streams_of_run(options.run)
    else:
        fit.use_every_core()
        images = smoke_images() if options.smoke else datasets.packaged()
        config, streams = fitted_streams(SMOKE if options.smoke else options.config, images)
    device = None if options.run else results.jax_device()
    folder = run(config, streams, options.output, device)
    print((folder / "table.md").read_text("utf-8"))
    return folder


if __name__ == "__main__":
    main(tyro.cli(tyro.conf.OmitArgPrefixes[Options]))
