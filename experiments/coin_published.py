"""Does our COIN reach its published PSNR when it is fitted as published?

Claim: within 0.3 dB of the published mean PSNR on Kodak, for each shape that was run: 50,000
full-image steps of Adam at 2e-4, best snapshot, float16 weights, w0 = 30 (arXiv:2103.03123).
Command, on an accelerator, which needs neither the range coder nor the command-line libraries:
  python -m experiments.coin_published fit --data DIR --width 30 --depth 5 --output coin_30_5.npz
and here: python -m experiments.coin_published measure --data DIR --input coin_30_5.npz
Minutes: on one H200, on paper, 2 with --fused and 7 without, for 5x30; a day on 2 cores. Which is
faster and whether it loses anything is measured by `experiments.benchmark_gpu`; run that first.
Expected: a table of measured and published bpp and PSNR, and where the fits were made.

``fit`` writes the fitted params of all images; ``measure`` packs them into files, decodes those in
another process and takes PSNR. ``--smoke`` does both on small crops, in a few steps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from experiments.common import print_progress
from inrjax import fit, optimizers, overfit, results, trees
from inrjax.images import read_image
from inrjax.nets import fused
from inrjax.nets.siren import Siren
from inrjax.types import Image

LEARNING_RATE = 2e-4


@dataclass(frozen=True)
class Config:
    """A shape, and how it is fitted."""

    width: int
    depth: int
    num_steps: int = 50_000
    tile: int = 393_216
    """Pixels of a tile: a whole Kodak image on an accelerator; 4096 on a CPU."""
    precision: str = "tensorfloat32"
    """Of plain XLA's matrix products, as `jax.default_matmul_precision` names them."""
    fused: bool = False
    """By the fused kernel, whose products are of its own default precision."""
    seed: int = 0


def fit_images(config: Config, images: Mapping[str, Image]) -> dict[str, np.ndarray]:
    """Fitted params as arrays "image/layer_00/weight", the config's fields, and where they were
    made."""
    sizes = [image.shape[0] * image.shape[1] for image in images.values()]
    num_tiles = max(-(-size // config.tile) for size in sizes)
    tiling = fit.Tiling(config.tile, num_tiles)
    points = [overfit.image_points(i, tiling, num_tiles, config.seed) for i in images.values()]
    net = Siren(config.width, config.depth)
    # Two layers of weights wider than 32 do not fit a program's shared memory at once.
    kernel = fused.Kernel(resident=config.width <= 32) if config.fused else None
    plan = overfit.PlainPlan(
        net, optimizers.Adam(LEARNING_RATE), config.num_steps, num_tiles, window=1, kernel=kernel
    )

    with jax.default_matmul_precision(config.precision):
        fitted = fit.fit_batch(plan, jax.random.key(config.seed), points, print_progress())
    failed = [name for name, r in zip(images, fitted, strict=True) if not r.finite]
    if failed:
        raise ValueError(f"the fits of {', '.join(failed)} diverged")
    flat = {
        f"{name}/{path}": np.asarray(leaf, np.float32)
        for name, result in zip(images, fitted, strict=True)
        for path, leaf in trees.leaves(result.params)
    }
    return flat | {
        "shape": np.array([config.width, config.depth, config.num_steps, config.seed]),
        "provenance": np.array(json.dumps(results.provenance(results.jax_device()))),
    }


def measure(fitted: Mapping[str, np.ndarray], images: Mapping[str, Image]) -> str:
    """Pack, decode in another process, and compare with the published point; says where the fits
    were made."""
    from experiments.kodak_rd import COIN_PUBLISHED, markdown
    from inrjax import codecs, metrics
    from inrjax.evaluate import decode_in_process

    width, depth, num_steps, seed = (int(v) for v in fitted["shape"])
    codec = codecs.Coin(width, depth, num_steps, seed)
    bpps, psnrs = [], []
    with tempfile.TemporaryDirectory() as folder, decode_in_process() as decode:
        for name, image in images.items():
            path = Path(folder, f"{name}.inr")
            path.write_bytes(codec.pack(image, _params_of(fitted, name)))
            [decoded] = decode(codec, [path])
            if decoded.image is None:
                raise ValueError(f"{name} was not decoded: {decoded.error}")
            bpps.append(metrics.bpp(path.stat().st_size, *image.shape[:2]))
            psnrs.append(metrics.psnr(image, decoded.image))
    published = COIN_PUBLISHED.get((width, depth), (float("nan"), float("nan")))
    header = [
        "layers x width",
        "steps",
        "images",
        "bpp",
        "PSNR dB",
        "published bpp",
        "published dB",
    ]
    line = [
        f"{depth}x{width}", str(num_steps), str(len(images)), f"{np.mean(bpps):.4f}",
        f"{np.mean(psnrs):.2f}", f"{published[0]:.4f}", f"{published[1]:.2f}",
    ]  # fmt: skip
    made = json.loads(str(fitted["provenance"]))
    where = f"Fitted on {made['device']}, {made['date']}, commit {made['commit']}."
    return f"{markdown(header, [line])}\n\n{where}"


def _params_of(fitted: Mapping[str, np.ndarray], name: str):
    prefix = f"{name}/"
    return trees.from_leaves(
        {key[len(prefix) :]: leaf for key, leaf in fitted.items() if key.startswith(prefix)}
    )


def smoke() -> str:
    """Both parts on one crop of a packaged photograph."""
    from inrjax.datasets import packaged

    images = {"astronaut": packaged()["astronaut"][100:124, 100:132]}
    return measure(fit_images(Config(8, 2, num_steps=4, tile=512), images), images)


def _kodak(data: Path) -> dict[str, Image]:
    from inrjax.datasets import kodak

    return {path.stem: read_image(path).image for path in kodak(data)}


def main(arguments: Sequence[str] | None = None) -> None:
    """``fit``, ``measure`` or ``--smoke``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("verb", choices=["fit", "measure"], nargs="?")
    parser.add_argument("--data", type=Path, help="the folder that holds kodak/")
    parser.add_argument("--width", type=int, default=30)
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--num-steps", type=int, default=50_000)
    parser.add_argument("--tile", type=int, default=Config.tile)
    parser.add_argument("--precision", default=Config.precision)
    parser.add_argument("--fused", action="store_true", help="by the fused kernel")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--input", type=Path)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    if options.smoke:
        print(smoke())
    elif options.verb == "fit" and options.output:
        names = ("width", "depth", "num_steps", "tile", "precision", "fused")
        config = Config(**{name: getattr(options, name) for name in names})
        np.savez(options.output, **fit_images(config, _kodak(options.data)))  # pyright: ignore
    elif options.verb == "measure" and options.input:
        with np.load(options.input, allow_pickle=False) as fitted:
            print(measure(dict(fitted), _kodak(options.data)))
    else:
        parser.error("give fit --output FILE, measure --input FILE, or --smoke")


if __name__ == "__main__":
    main()
