"""How far does a base that is never sent take small images, at COIN++'s rates, from real files?

Claim tested: patches coded as modulations of a shared SIREN (COIN++) trade rate for PSNR along a
curve of latent sizes. Published, of a base of 10 layers of 512: 1.10 bpp 27.03 dB, 2.20 bpp 30.45
dB on CIFAR-10; a base that a CPU can train in minutes is not expected to reach them.
Command: python -m experiments.coinpp run --data DIR   (DIR holds cifar10_subset/, kodak/; or set
INRJAX_DATA), or in two parts, the first on an accelerator, which needs neither the range coder nor
the command-line libraries:
  python -m experiments.coinpp train --data DIR --set cifar --width 512 --depth 10 \\
      --latent-dim 256 --tasks-per-step 64 --points 1024 --output base.npz --checkpoints FOLDER
  python -m experiments.coinpp measure --data DIR --bases base.npz ...
``--set cid22`` learns from 32 x 32 patches of cid22 photographs instead, ``both`` from both.
Minutes: run: about 30 on 2 cores. Stopped at any time, each part goes on where it was.
Expected: the table in results/coinpp/<config hash>/table.md.

Training images are the first 1000 of each CIFAR-10 training batch; test images are the first of the
CIFAR-10 test set, and the middles of Kodak's. Every rate is that of a whole file, its 21 bytes of
container included, which are 0.16 bpp of a picture of 32 x 32; bytes of the latents alone stand
beside it, and so do the base's, which no rate contains. ``--smoke``: seconds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import jax
import numpy as np

from experiments import common
from inrjax import basetrain, datasets, modulation
from inrjax.base import Base, load_base, save_base
from inrjax.basetrain import BaseTrainConfig
from inrjax.types import Image, OnProgress

ROOT = Path(__file__).parents[1]
PUBLISHED = ((1.10, 27.03), (2.20, 30.45))
"""(bpp, PSNR in dB) of COIN++ on CIFAR-10 (Dupont et al. 2022); rates without a container."""


TRAINING = BaseTrainConfig(width=128, depth=10, num_steps=2000, points=256, tasks_per_step=16)
"""A base that two cores learn in minutes."""


@dataclass(frozen=True)
class Config:
    """What ``run`` computes. ``latent_dims``: a base is learned for each; ``training``: all that
    they share; ``crop``: side of the middle of a Kodak picture; ``bases``: digests, filled in."""

    training: BaseTrainConfig = TRAINING
    training_set: str = "cifar"
    latent_dims: tuple[int, ...] = (64, 128, 256)
    bits: tuple[int, ...] = (4, 5, 6)
    inner_steps: int = 10
    cifar_images: int = 256
    kodak_images: int = 24
    crop: int = 64
    bases: tuple[str, ...] = ()


SMOKE = Config(
    training=BaseTrainConfig(
        width=8, depth=2, patch=16, num_steps=2, points=64, tasks_per_step=2, moments=4
    ),
    training_set="smoke", latent_dims=(4, 8), bits=(4,), inner_steps=2, cifar_images=2,
    kodak_images=1, crop=20,
)  # fmt: skip


# ---------------------------------------------------------------------------- pictures

SETS = ("cifar", "cid22", "both")
"""Of training patches."""


def training_patches(name: str, data: Path | None, patch: int) -> tuple[np.ndarray, str]:
    """uint8 (n, patch, patch, 3) patches of a training set, and its licence."""
    if name == "smoke":
        return _cut_all(list(datasets.packaged().values())[:1], patch)[:8], "of scikit-image"
    with common.exit_with_a_sentence():
        if name not in SETS:
            raise ValueError(f"got the training set {name!r}, expected one of {', '.join(SETS)}")
        if name != "cid22" and patch != 32:
            raise ValueError(f"got patches of {patch}, expected 32 for CIFAR-10")
    parts, licences = [], []
    if name != "cid22":
        parts.append(_cifar(data, "train_5x1000.npz"))
        licences.append("CIFAR-10: not stated")
    if name != "cifar":
        pictures = common.read(datasets.cid22_train, data)
        parts.append(_cut_all([*pictures.values()], patch))
        licences.append("CID22: CC BY-SA 4.0")
    return np.concatenate(parts), "; ".join(licences)


def _cut_all(images: Sequence[Image], patch: int) -> np.ndarray:
    """The whole patches of the images; what is left at their rims is not used."""
    whole = [i[: i.shape[0] // patch * patch, : i.shape[1] // patch * patch] for i in images]
    pixels = np.concatenate([modulation.cut(image, patch).pixels for image in whole])
    return pixels.reshape(-1, patch, patch, 3)


@common.exit_with_a_sentence()
def _cifar(data: Path | None, name: str) -> np.ndarray:
    path = datasets.data_root(data) / "cifar10_subset" / name
    if not path.is_file():
        raise ValueError(f"{path} does not exist: put the CIFAR-10 images there as an npz file")
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["images"]


def test_images(config: Config, data: Path | None) -> dict[str, dict[str, Image]]:
    """Name of a set -> name of a picture -> picture."""
    if config.training_set == "smoke":
        image = next(iter(datasets.packaged().values()))
        crops = {f"{i}": image[32 * i : 32 * i + 32, :32] for i in range(config.cifar_images)}
        return {"CIFAR-10": crops, "Kodak": {"middle": _middle(image, config.crop)}}
    cifar = _cifar(data, "test_first1000.npz")[: config.cifar_images]
    kodak = common.read(datasets.kodak, data, slice(config.kodak_images))
    return {
        "CIFAR-10": {f"test{i:04d}": image for i, image in enumerate(cifar)},
        "Kodak": {name: _middle(image, config.crop) for name, image in kodak.items()},
    }


def _middle(image: Image, side: int) -> Image:
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return image[top : top + side, left : left + side]


@common.exit_with_a_sentence()
def load_bases(paths: Sequence[Path]) -> list[Base]:
    """Bases whose latents have different sizes, by which their files are told apart; ends the
    process if one is missing or damaged, or two have latents of one size."""
    found: dict[int, tuple[Path, Base]] = {}
    for path in paths:
        base = load_base(path)
        if base.latent_dim in found:
            raise ValueError(
                f"{found[base.latent_dim][0]} and {path} both have latents of {base.latent_dim}: "
                "name one of them, once"
            )
        found[base.latent_dim] = path, base
    return [base for _, base in found.values()]


# ---------------------------------------------------------------------------- training


def train(
    config: BaseTrainConfig, name: str, data: Path | None, output: Path, checkpoints: Path | None
) -> Base:
    """Learn a base and write it; one that is there and was made by this config is read instead."""
    if output.is_file():
        with common.exit_with_a_sentence():
            return _trained(config, name, output)
    patches, licence = training_patches(name, data, config.patch)
    info = {"training_set": name, "licence": licence, "command": "python -m experiments.coinpp"}
    with jax.default_matmul_precision("tensorfloat32"):  # of accelerators; a CPU has float32
        base = basetrain.train_base(config, patches, checkpoints, _printing(output.name), info)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_base(output, base)
    return base


def _trained(config: BaseTrainConfig, name: str, path: Path) -> Base:
    base = load_base(path)
    if base.info.get("config") == _noted(config) and base.info.get("training_set") == name:
        return base
    raise ValueError(f"{path} holds another base: name another file, or delete it")


def _noted(config: BaseTrainConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in fields(config)}


def _printing(name: str) -> OnProgress:
    def report(done: int, total: int) -> None:
        print(f"{name}: {100 * done / total:.1f} %", flush=True)

    return report


def train_all(config: Config, data: Path | None, folder: Path) -> list[Base]:
    """A base for each latent size, written to the folder."""
    bases = []
    for latent_dim in config.latent_dims:
        own = replace(config.training, latent_dim=latent_dim)
        path = folder / f"base_{latent_dim:04d}.npz"
        checkpoints = folder / f"checkpoints_{latent_dim:04d}"
        bases.append(train(own, config.training_set, data, path, checkpoints))
    return bases


# ---------------------------------------------------------------------------- measuring

_LATENTS: dict[tuple[Any, ...], list[np.ndarray]] = {}


@dataclass(frozen=True, eq=False)
class FromLatents(common.Wrapped):
    """`ModulatedSiren` on latents that its settings share: they do not depend on the bits."""

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        base, steps = self.codec.base, self.codec.inner_steps
        key = (base.digest, steps, tuple((i.shape, i.tobytes()) for i in images))
        if key not in _LATENTS:
            patches = [modulation.cut(image, base.patch) for image in images]
            _LATENTS[key] = modulation.fit_latents(base, patches, steps, on_progress)
        return [self.codec.pack(i, z) for i, z in zip(images, _LATENTS[key], strict=True)]


def measure(config: Config, bases: Sequence[Base], data: Path | None, root: Path) -> Path:
    """Encode the test pictures with every base, decode in another process; the run folder."""
    from inrjax import codecs, results
    from inrjax.evaluate import evaluate, row_stream_path

    sets = test_images(config, data)
    config = replace(config, bases=tuple(base.short_digest for base in bases))
    folder = results.run_folder(root, config)
    results.note_provenance(folder, results.provenance(results.jax_device()))
    built = [
        FromLatents(codecs.ModulatedSiren(base, bits, config.inner_steps))
        for base in bases
        for bits in config.bits
    ]
    lines = []
    for name, images in sets.items():
        part = folder / name.lower()
        rows = evaluate(built, images, part, batch_size=len(images))
        for codec in built:
            own = [row for row in rows if row.setting == codec.setting]
            paths = [row_stream_path(part, r.codec, r.setting, r.image, codec.suffix) for r in own]
            sections = [codecs.describe(p.read_bytes(), codec.codec.base).sections for p in paths]
            latent_bytes = fmean(found["latents"] for found in sections)
            pixels = fmean(row.height * row.width for row in own)
            lines.append([
                name, str(len(own)), str(codec.codec.base.latent_dim), str(codec.codec.bits),
                f"{fmean(row.num_bytes for row in own):.1f}", f"{fmean(r.bpp for r in own):.3f}",
                f"{latent_bytes:.1f}", f"{8 * latent_bytes / pixels:.3f}",
                f"{fmean(row.psnr for row in own):.2f}", str(codec.codec.base.shared_bytes),
            ])  # fmt: skip
    results.write_text(folder / "table.md", table(config, bases, lines))
    return folder


def table(config: Config, bases: Sequence[Base], lines: Sequence[Sequence[str]]) -> str:
    """All measured numbers as Markdown, the published ones in a table of their own."""
    from experiments.kodak_rd import markdown

    header = [
        "set", "pictures", "latent", "bits", "bytes of a file", "bpp", "bytes of its latents",
        "their bits a pixel", "PSNR dB", "shared bytes",
    ]  # fmt: skip
    about = [
        f"- latent {base.latent_dim}: base {base.net.depth} x {base.net.width}, w0 "
        f"{base.net.w0:g}, {_of(base, 'num_steps')} outer steps of "
        f"{_of(base, 'tasks_per_step')} patches at {_of(base, 'points')} of their "
        f"{base.patch**2} pixels, {base.info.get('num_patches')} training patches "
        f"({base.info.get('training_set')}), mean training mse of the last steps "
        f"{base.info.get('losses', [float('nan')])[-1]:.4g}, digest {base.short_digest}"
        for base in bases
    ]
    published = markdown(
        ["COIN++ on CIFAR-10, published (10 x 512; not measured here): bpp", "PSNR dB"],
        [[f"{bpp:.2f}", f"{psnr:.2f}"] for bpp, psnr in PUBLISHED],
    )
    parts = [
        "# Modulations of a shared base (COIN++), from files",
        f"{config.inner_steps} inner steps at encoding. PSNR is the mean of the pictures' PSNRs. "
        "bpp is of whole files; their latents alone are beside it, and the bytes of the base that "
        "both sides need. CIFAR-10: the first pictures of the test set; Kodak: the middle "
        f"{config.crop} x {config.crop} pixels of each picture.",
        "\n".join(about),
        markdown(header, lines),
        published,
    ]
    return "\n\n".join(parts) + "\n"


def _of(base: Base, name: str) -> Any:
    return base.info.get("config", {}).get(name)


# ---------------------------------------------------------------------------- the command line


def run(config: Config, data: Path | None, root: Path, bases_folder: Path) -> Path:
    """Train, measure; returns the run folder."""
    return measure(config, train_all(config, data, bases_folder), data, root)


def smoke(root: Path) -> Path:
    """All of it on a few small patches; returns the run folder."""
    with tempfile.TemporaryDirectory() as bases:
        return run(SMOKE, None, root, Path(bases))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="experiments.coinpp", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    for name in ("run", "train", "measure"):
        own = commands.add_parser(name)
        own.add_argument("--data", type=Path, default=None)
        if name == "train":
            own.add_argument("--set", dest="training_set", default="cifar", choices=SETS)
            own.add_argument("--output", type=Path, required=True)
            own.add_argument("--checkpoints", type=Path, default=None)
            for field in fields(BaseTrainConfig):
                kind = type(getattr(BaseTrainConfig, field.name))
                option = f"--{field.name.replace('_', '-')}"
                own.add_argument(option, type=kind, default=getattr(BaseTrainConfig, field.name))
        else:
            own.add_argument("--output", type=Path, default=ROOT / "results" / "coinpp")
        if name == "measure":
            own.add_argument("--bases", type=Path, nargs="+", required=True)
        if name == "run":
            own.add_argument("--bases-folder", type=Path, default=ROOT / "runs" / "coinpp")
    parser.add_argument("--smoke", action="store_true")
    return parser


def _use_every_core() -> None:
    from inrjax import fit

    fit.use_every_core()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _use_every_core()
    if options.smoke:
        folder = smoke(ROOT / "results" / "coinpp")
    elif options.command == "train":
        chosen = {field.name: getattr(options, field.name) for field in fields(BaseTrainConfig)}
        config = BaseTrainConfig(**chosen)
        train(config, options.training_set, options.data, options.output, options.checkpoints)
        return
    elif options.command == "measure":
        bases = load_bases(options.bases)
        folder = measure(_config_of(bases), bases, options.data, options.output)
    elif options.command == "run":
        folder = run(Config(), options.data, options.output, options.bases_folder)
    else:
        parser.error("expected run, train, measure or --smoke")
    print((folder / "table.md").read_text("utf-8"))


def _config_of(bases: Sequence[Base]) -> Config:
    """A config that says what was measured, for bases that were trained elsewhere."""
    training = BaseTrainConfig(**bases[0].info["config"])
    return Config(
        training=replace(training, latent_dim=Config.training.latent_dim),
        training_set=str(bases[0].info["training_set"]),
        latent_dims=tuple(base.latent_dim for base in bases),
    )


if __name__ == "__main__":
    # By its own name, so that the process that decodes can import the codec above.
    from experiments import coinpp

    coinpp.main()
