"""Learn the packaged base of latent grids, on the training part of cid22.

Claim: what experiments/grid_rd.py measures of it.
Command: python -m experiments.train_grid --data DIR --num-steps 2000 \\
    --start inrjax/grids/grid_fbb48406.npz           (DIR holds cid22/; or set INRJAX_DATA)
Minutes: about 35 on 2 cores; a stopped run goes on where it was.
Expected: inrjax/grids/grid.npz, with the digest that `inrjax info` shows for its files.

Without ``--start`` it begins with the wavelet, and knows nothing of other pictures; that takes more
steps, as the default has them.

Kodak is never seen, nor the part of cid22 that is held back for choosing defaults.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from experiments import common
from inrjax import datasets, grids, gridtrain
from inrjax.machine import keep_buffers

LICENCE = (
    "Learned from Cloudinary CID22 (CC BY-SA 4.0, https://cloudinary.com/labs/cid22); "
    "released under the same licence"
)


@dataclass(frozen=True)
class Config:
    """How many crops of which side, and how they are learned from."""

    num_crops: int = 256
    side: int = 256
    training: gridtrain.GridTrainConfig = field(default_factory=gridtrain.GridTrainConfig)


def cut(pictures: Sequence[np.ndarray], count: int, side: int, seed: int) -> np.ndarray:
    """uint8 (count, side, side, 3): crops at random places, of all pictures in turn."""
    rng = np.random.default_rng(seed)
    large = [picture for picture in pictures if min(picture.shape[:2]) >= side]
    if not large:
        raise ValueError(f"got no picture of at least {side} x {side} pixels to learn from")
    order, crops = rng.permutation(len(large)), []
    for place in range(count):
        picture = large[order[place % len(large)]]
        row, column = (int(rng.integers(0, size - side + 1)) for size in picture.shape[:2])
        crops.append(picture[row : row + side, column : column + side])
    return np.stack(crops)


def run(
    config: Config,
    data: Path | None,
    output: Path,
    checkpoints: Path,
    start: grids.GridBase | None = None,
) -> Path:
    """Learn and save the base; returns its file. ``start``: a base to begin with."""
    pictures = [*common.read(datasets.cid22_train, data).values()]
    crops = cut(pictures, config.num_crops, config.side, config.training.seed)
    losses = np.zeros(0)

    def note_losses(new: np.ndarray) -> None:
        nonlocal losses
        losses = new

    shared = gridtrain.train(config.training, crops, checkpoints, _progress, note_losses, start)
    info = gridtrain.noted(config.training, crops, losses) | {
        "command": f"python -m experiments.train_grid --num-steps {config.training.num_steps} "
        f"--num-crops {config.num_crops} --seed {config.training.seed}",
        "start": start.digest.hex() if start else "the wavelet",
        "data": f"cid22, {len(pictures)} images of its training part",
        "licence": LICENCE,
    }
    base = grids.make_base(config.training.net, shared.synthesis, shared.context, info)
    output.parent.mkdir(parents=True, exist_ok=True)
    grids.save_grid_base(output, base)
    print(f"{output.name}: digest {base.short_digest}, {base.shared_bytes} shared bytes")
    return output


def _progress(done: int, total: int) -> None:
    print(f"{done} of {total} steps", flush=True)


def main(arguments: Sequence[str] | None = None) -> Path:
    """argparse, so that a bare machine with a GPU can run it."""
    default, training = Config(), gridtrain.GridTrainConfig()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="the folder that holds cid22/")
    for name in ("num_crops", "side"):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=getattr(default, name))
    for name in ("num_steps", "crops_per_step", "inner_steps", "seed"):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=getattr(training, name))
    parser.add_argument("--start", type=Path, help="a base to begin with; default: the wavelet")
    parser.add_argument("--output", type=Path, default=Path("inrjax/grids/grid.npz"))
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/train_grid"))
    options = vars(parser.parse_args(arguments))
    data, output, checkpoints = (options.pop(n) for n in ("data", "output", "checkpoints"))
    try:
        path = options.pop("start")
        start = grids.load_grid_base(path) if path else None
    except ValueError as error:
        parser.error(str(error))
    keep_buffers()
    sizes = {name: options.pop(name) for name in ("num_crops", "side")}
    config = Config(**sizes, training=replace(training, **options))
    return run(config, data, output, checkpoints, start)


if __name__ == "__main__":
    main()
