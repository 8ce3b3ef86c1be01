"""Learn the packaged inits: MAML and the prior of each width, on the training part of cid22.

Claim: what experiments/init_gain.py measures of them.
Command: python -m experiments.train_inits --data DIR   (DIR holds cid22/; or set INRJAX_DATA)
Minutes: 20 to 40 on 2 cores for all widths; a stopped run goes on where it was.
Expected: inrjax/inits/siren_wNNN.npz, each with the digest that `inrjax info` shows for its files.

Kodak is never seen, nor the part of cid22 that is held back for choosing defaults.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments import common
from inrjax import datasets, fit, metatrain
from inrjax.init import Init, digest_name, find_init, load_init, save_init

LICENCE = (
    "Learned from Cloudinary CID22 (CC BY-SA 4.0, https://cloudinary.com/labs/cid22); "
    "released under the same licence"
)

ROUNDS = ("rounds", "round_images", "round_steps")
"""Options of `inrjax.metatrain.refine_prior`."""


@dataclass(frozen=True)
class Config:
    """Widths to learn, and how long; the rest is `metatrain.MetaTrainConfig`'s defaults."""

    widths: tuple[int, ...] = (24, 32, 48, 64, 80, 104)
    depth: int = metatrain.MetaTrainConfig.depth
    w0: float = metatrain.MetaTrainConfig.w0
    """See `metatrain.MetaTrainConfig`. From width 80 on, 15 is at the edge: 12 is safe there."""
    num_frequencies: int = metatrain.MetaTrainConfig.num_frequencies
    ratio: float = metatrain.MetaTrainConfig.ratio
    start: str = ""
    """Digest of an init of one width that rounds begin with, in place of MAML; "": MAML."""
    by_digest: bool = False
    """Name the file by its digest, too: for a codec that names its inits, not for `MetaSiren`."""
    num_steps: int = 2000
    """Outer steps of MAML at each width."""
    prior_images: int = 8
    prior_steps: int = 3000
    rounds: int = metatrain.MetaTrainConfig.rounds
    round_images: int = metatrain.MetaTrainConfig.round_images
    round_steps: int = metatrain.MetaTrainConfig.round_steps
    points: int = 4096
    max_images: int = 143
    seed: int = 0


def run(config: Config, data: Path | None, output: Path, checkpoints: Path) -> list[Path]:
    """Learn and save the init of each width; returns the files."""
    pictures = [*common.read(datasets.cid22_train, data, slice(config.max_images)).values()]
    return [_train(config, width, pictures, output, checkpoints) for width in config.widths]


def _train(config: Config, width: int, pictures, output: Path, checkpoints: Path) -> Path:
    training = metatrain.MetaTrainConfig(
        width=width,
        depth=config.depth,
        w0=config.w0,
        num_frequencies=config.num_frequencies,
        ratio=config.ratio,
        num_steps=config.num_steps,
        prior_images=config.prior_images,
        prior_steps=config.prior_steps,
        rounds=config.rounds,
        round_images=config.round_images,
        round_steps=config.round_steps,
        points=config.points,
        seed=config.seed,
    )
    info = {
        "command": _command(replace(config, widths=(width,))),
        "data": f"cid22, {len(pictures)} images of its training part",
        "licence": LICENCE,
    }
    folder = checkpoints / f"w{width:03d}"
    if config.start:
        init = _go_on(config, training, pictures, folder, info)
    else:
        init = metatrain.train_init(training, pictures, folder, _progress(width), info)
    if config.by_digest:
        path = output / digest_name(init)
    else:
        path = output / f"siren_w{width:03d}.npz"
        _retire(path, init)
    save_init(path, init)
    print(
        f"{path.name}: digest {init.digest.hex()[:8]}, {init.shared_bytes} shared bytes", flush=True
    )
    return path


def _go_on(
    config: Config, training: metatrain.MetaTrainConfig, pictures, folder: Path, info: dict
) -> Init:
    start = find_init(bytes.fromhex(config.start))
    if start is None or start.net != training.net():
        raise SystemExit(f"error: there is no packaged init {config.start} of {training.net()}")
    init = metatrain.refine_prior(
        training, start, pictures, folder / metatrain.ROUNDS, _progress(training.width)
    )
    rounds = {name: getattr(training, name) for name in ROUNDS}
    return replace(init, info=dict(start.info) | {"rounds": rounds | info})


def _command(config: Config) -> str:
    """What makes these inits, with every option: defaults change."""
    words = ["python -m experiments.train_inits"]
    for name, value in vars(config).items():
        if value is not False and value != "":
            values = () if value is True else value if isinstance(value, tuple) else (value,)
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return " ".join(words)


def _retire(path: Path, successor: Init) -> None:
    """Keep an init that files may name; what only an encoder needs of it, its rates, goes."""
    if path.exists() and (old := load_init(path)).digest != successor.digest:
        save_init(path.with_name(digest_name(old)), replace(old, rates=None))


def _progress(width: int):
    def report(done: int, total: int) -> None:
        print(f"width {width}: {100 * done // total} %", flush=True)

    return report


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    """Set one device a core, then run. argparse, so that a bare machine with a GPU can run it."""
    default = Config()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="the folder that holds cid22/")
    parser.add_argument("--widths", type=int, nargs="+", default=default.widths)
    counts = ("num_steps", "prior_images", "prior_steps", "points", "max_images", "seed")
    for name in (*counts, *ROUNDS, "depth", "num_frequencies", "w0", "ratio"):
        kind = type(getattr(default, name))
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=getattr(default, name)
        )
    parser.add_argument("--start", default="", help="digest of a packaged init to go on from")
    parser.add_argument("--by-digest", action="store_true", help="for a codec that names its init")
    parser.add_argument("--output", type=Path, default=Path("inrjax/inits"))
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/train_inits"))
    options = vars(parser.parse_args(arguments))
    data, output, checkpoints = (options.pop(n) for n in ("data", "output", "checkpoints"))
    config = Config(**options | {"widths": tuple(options["widths"])})
    fit.use_every_core()
    output.mkdir(parents=True, exist_ok=True)
    return run(config, data, output, checkpoints)


if __name__ == "__main__":
    main()
