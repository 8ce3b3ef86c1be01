"""Learn the packaged inits: MAML, then the prior in rounds of fits, of each width, on the training
part of cid22.

Claim: what experiments/init_gain.py and siren_choices.py measure of them.
Command: python -m experiments.train_inits --data DIR   (DIR holds cid22/; or set INRJAX_DATA)
    The packaged ones differ in some options by width: results/README.md has each command.
Minutes: about 65 on 2 cores for all widths, 45 of them the rounds'; a stopped run goes on where it
was.
Expected: inrjax/inits/siren_wNNN.npz, each with the digest that `inrjax info` shows for its files.

Kodak is never seen, nor the part of cid22 that is held back for choosing defaults.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments import common
from inrjax import datasets, fit, metatrain
from inrjax.checkpoint import OtherRunError
from inrjax.init import Init, digest_name, find_init, load_init, save_init

LICENCE = (
    "Learned from Cloudinary CID22 (CC BY-SA 4.0, https://cloudinary.com/labs/cid22); "
    "released under the same licence"
)


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
    """The first 8 hexadecimal digits of a packaged init whose net is learned, from it on, by rounds
    alone; "": all widths, from MAML on."""
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
    start = started(config)
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
    folder = checkpoints / "_".join(filter(None, (f"w{width:03d}", config.start)))
    if start is not None:
        init = _go_on(start, training, pictures, folder, info)
    else:
        init = metatrain.train_init(training, pictures, folder, _progress(width), info)
    if config.by_digest:
        path = output / digest_name(init)
    else:
        path = output / f"siren_w{width:03d}.npz"
        _retire(path, init)
    save_init(path, init)
    print(f"{path.name}: digest {init.short_digest}, {init.shared_bytes} shared bytes", flush=True)
    return path


def started(config: Config) -> Init | None:
    """The init that the config names by its digest; None if it names none."""
    if not config.start:
        return None
    init = None
    if re.fullmatch("[0-9a-f]{8}", config.start):
        init = find_init(bytes.fromhex(config.start))
    if init is None or init.net.encoding is None:
        raise ValueError(
            f"got --start {config.start}, expected the first 8 digits of a packaged init's digest: "
            "inrjax inits list shows them"
        )
    return init


_OF_ROUNDS = (
    "start", "by_digest", "rounds", "round_images", "round_steps", "max_images", "seed",
)  # fmt: skip
"""The fields that play a part in going on from an init."""


def of_start(config: Config) -> Config:
    """The config with the net of the init it names, if any; ValueError if it says beside it what
    such an init has already, or no round."""
    start = started(config)
    if start is None:
        return config
    default = Config()
    for name in vars(config):
        if name not in _OF_ROUNDS and getattr(config, name) != getattr(default, name):
            raise ValueError(
                f"--start {config.start} goes on by rounds of fits alone: drop {_flag(name)}"
            )
    if not config.rounds:
        raise ValueError(f"--start {config.start} goes on by rounds of fits: ask for at least one")
    net, encoding = start.net, start.net.encoding
    assert encoding is not None
    return replace(
        config, widths=(net.width,), depth=net.depth, w0=net.w0,
        num_frequencies=encoding.num_frequencies, ratio=encoding.ratio,
    )  # fmt: skip


def _go_on(
    start: Init, training: metatrain.MetaTrainConfig, pictures, folder: Path, info: dict
) -> Init:
    folder = folder / metatrain.ROUNDS_FOLDER
    init = metatrain.refine_prior(training, start, pictures, folder, _progress(training.width))
    return replace(init, info=dict(init.info) | info)


def _command(config: Config) -> str:
    """What makes these inits, with every option that plays a part: defaults change."""
    words = ["python -m experiments.train_inits"]
    for name, value in vars(config).items():
        is_used = not config.start or name in _OF_ROUNDS
        if is_used and value is not False and value != "":
            values = () if value is True else value if isinstance(value, tuple) else (value,)
            words += [_flag(name), *map(str, values)]
    return " ".join(words)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _retire(path: Path, successor: Init) -> None:
    """Keep an init that files may name, and that ``--start`` may go on from."""
    if path.exists() and (old := load_init(path)).digest != successor.digest:
        save_init(path.with_name(digest_name(old)), old)


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
    rounds = ("rounds", "round_images", "round_steps")
    for name in (*counts, *rounds, "depth", "num_frequencies", "w0", "ratio"):
        kind = type(getattr(default, name))
        parser.add_argument(_flag(name), type=kind, default=getattr(default, name))
    parser.add_argument("--start", default="", help="digest of a packaged init to go on from")
    parser.add_argument("--by-digest", action="store_true", help="for a codec that names its init")
    parser.add_argument("--output", type=Path, default=Path("inrjax/inits"))
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/train_inits"))
    options = vars(parser.parse_args(arguments))
    data, output, checkpoints = (options.pop(n) for n in ("data", "output", "checkpoints"))
    config = Config(**options | {"widths": tuple(options["widths"])})
    with common.exit_with_a_sentence():
        config = of_start(config)
    fit.use_every_core()
    output.mkdir(parents=True, exist_ok=True)
    with common.exit_with_a_sentence(OtherRunError):
        return run(config, data, output, checkpoints)


if __name__ == "__main__":
    main()
