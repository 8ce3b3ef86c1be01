"""ProductSiren: a fitted SIREN whose weights are pieces from codebooks.

Encoding imports JAX when it is called; decoding needs numpy and the range coder alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from inrjax import bitstream, decoding, entropy, product_quantization, quantize, trees
from inrjax.images import coordinates
from inrjax.init import Init, packaged_init
from inrjax.nets.siren import Siren, layer_name
from inrjax.types import BitstreamError, Image, OnProgress, Params

if TYPE_CHECKING:
    from inrjax.optimizers import Optimizer

MAX_CENTROIDS, MAX_BLOCK = 4096, 16

TUNING_RATE = 1e-3
"""Adam's learning rate on the centroids; 3e-4, and Muon at 1e-3 and 3e-3, came out the same."""

ROUNDING_SHARE = 0.005
"""Rounding a codebook, a bias or the last layer may each add this share of the error that is there
already, were its errors independent. Centroids are shared, so they add up: at 0.02 a file loses
0.5 dB and saves 4 %, at 0.001 it gains 0.1 dB for 4 %."""

_SAMPLE = 4096  # pixels whose activations weight the errors
_WINDOW = 32
_FINEST = 2.0**-16  # step of values that carry no error yet
_CENTROID_BYTES = 2


class Coded(NamedTuple):
    """A quantised net: ``symbols`` and ``grid`` as in `quantize.Quantized`, the symbols of the
    centroids (num_centroids, block) where a weight has them; ``indices`` path -> (out, blocks)."""

    symbols: Mapping[str, Any]
    grid: Mapping[str, Any]
    indices: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class ProductSiren:
    """Product quantisation (Stock et al. 2020, arXiv:1907.05686) of a SIREN fitted to an image.

    The net, the init and the prior's mean are those of `inrjax.codecs.MetaSiren`; the fit sees mse
    alone. The distance of each sine layer's weights from the mean is cut along the inputs into
    pieces of ``block`` weights, and each becomes one of a codebook's, by k-means weighted by the
    layer's inputs at the image's own pixels (`product_quantization`), layer by layer, the inputs
    those of the layers quantised before. Codebooks, biases and the last layer are rounded, then
    tuned together to the image's mse. The file holds their symbols and the indices, range-coded.

    Attributes:
      width: neurons of a layer; one with a packaged init, or that of ``init``.
      num_centroids: of each codebook, 1..4096; a layer has at most a quarter of its pieces (the
        paper's limit). block: weights of a piece, 1..16.
      num_steps: steps of the fit. tune_steps: of the tuning, 0 for none.
      seed: of the pixel order and of k-means.
      init: a learned init; None for the packaged one of this width.
      optimizer: of the fit; None for Muon at 3e-3.
      points_per_step: pixels a step sees, rounded up to whole tiles (`fit.tiling`).
    """

    width: int = 32
    num_centroids: int = 64
    block: int = 2
    num_steps: int = 6000
    tune_steps: int = 300
    seed: int = 0
    init: Init | None = None
    optimizer: Optimizer | None = None
    points_per_step: int = 4096

    suffix: ClassVar[str] = ".inr"
    tag: ClassVar[int] = 5
    sections: ClassVar[tuple[str, ...]] = ("init", "grid", "symbols", "indices")

    def __post_init__(self):
        if not (1 <= self.num_centroids <= MAX_CENTROIDS and 1 <= self.block <= MAX_BLOCK):
            raise ValueError(
                f"got num_centroids {self.num_centroids} and block {self.block}, expected "
                f"num_centroids 1..{MAX_CENTROIDS} and block 1..{MAX_BLOCK}"
            )
        decoding.check_at_least(self, num_steps=1, tune_steps=0, points_per_step=1)
        decoding.check_init(self.shared, self.width)

    @property
    def name(self) -> str:
        """``product-siren``."""
        return "product-siren"

    @property
    def setting(self) -> str:
        """``width=W_centroids=K_block=B_steps=N``."""
        shape = f"width={self.width}_centroids={self.num_centroids}_block={self.block}"
        return f"{shape}_steps={self.num_steps}"

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One stream for each uint8 (height, width, 3) image; ValueError for another array."""
        first, second = _halves(on_progress)
        coded = self.quantize(images, self.fit(images, first), second)
        return decoding.pack_each(self.pack, images, coded)

    def fit(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[Params]:
        """The params fitted to each uint8 (height, width, 3) image: distortion alone."""
        import jax

        from inrjax import optimizers, overfit

        decoding.check_images(images)
        init = self.shared
        window = max(1, min(_WINDOW, self.num_steps // 4))
        fitting = overfit.Fitting(
            make_plan=lambda optimizer, tiles: overfit.InitPlan(
                init.net, optimizer, self.num_steps, tiles, window, overfit.distortion
            ),
            optimizer=self.optimizer or optimizers.Muon(overfit.LEARNING_RATE),
            points_per_step=self.points_per_step,
            seed=self.seed,
        )
        shared = overfit.init_shared(init, jax.random.key(self.seed))
        return overfit.fit_images(images, fitting, shared, on_progress)

    def quantize(
        self,
        images: Sequence[Image],
        fitted: Sequence[Params],
        on_progress: OnProgress | None = None,
    ) -> list[Coded]:
        """What `pack` writes of params that were fitted to the images."""
        import jax

        from inrjax import optimizers, overfit

        init = self.shared
        mean = init.mean()
        coded = [
            quantize_layers(init.net, params, mean, image, self)
            for image, params in zip(images, fitted, strict=True)
        ]
        if self.tune_steps == 0:
            _report(on_progress, len(images))
            return coded
        window = max(1, min(_WINDOW, self.tune_steps // 4))
        fitting = overfit.Fitting(
            make_plan=lambda optimizer, tiles: overfit.ProductPlan(
                init.net, optimizer, self.tune_steps, tiles, window
            ),
            optimizer=optimizers.Adam(TUNING_RATE, final=0.0),
            points_per_step=self.points_per_step,
            seed=self.seed,
            make_datum=lambda i, points: overfit.ProductDatum(points, *_to_tune(coded[i])),
        )
        shared = (mean, jax.random.key(self.seed))
        # A tuning that diverges keeps its last good snapshot, and so needs no second try.
        tuned = overfit.fit_once(dict(enumerate(images)), fitting, shared, on_progress)
        return [
            one._replace(symbols=quantize.uniform(tuned[i].params, one.grid).symbols)
            for i, one in enumerate(coded)
        ]

    def pack(self, image: Image, coded: Coded) -> bytes:
        """The stream of a quantised net, for an image of this size."""
        init = self.shared
        symbols = [np.ravel(leaf).astype(np.int64) for _, leaf in trees.leaves(coded.symbols)]
        levels = [_best_level(part) for part in symbols]
        flat, repeated = np.concatenate(symbols), np.repeat(levels, [len(s) for s in symbols])
        indices = list(coded.indices.values())
        grid = b"".join(
            [
                decoding.symbol_check(np.concatenate([flat, *map(np.ravel, indices)])),
                self.num_centroids.to_bytes(_CENTROID_BYTES, "little"),
                bytes([self.block]),
                bytes(int(index) for _, index in trees.leaves(coded.grid)),
                bytes(levels),
            ]
        )
        layout = layout_of(init.net, self.num_centroids, self.block)
        sections = [
            init.digest[: decoding.DIGEST_BYTES],
            grid,
            entropy.encode(flat, entropy.Laplace(repeated)),
            entropy.encode_indices(indices, layout.model()),
        ]
        height, width = image.shape[:2]
        return bitstream.pack(self.tag, height, width, sections, init.digest)

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images, of any init at hand; BitstreamError if bad."""
        return [self._decode_one(stream) for stream in streams]

    def context(self, stream: bitstream.Stream) -> bytes:
        """What the checksum covers beside the stream: the digest of the init that it names.

        Raises BitstreamError if the init is not known here, or the stream is not ProductSiren's.
        """
        return self._init_of(stream).digest

    @property
    def shared(self) -> Init:
        """What decoders have beside the files: ``init``, or the packaged one."""
        return self.init or packaged_init(self.width)

    def _init_of(self, stream: bitstream.Stream) -> Init:
        """The init that a stream names: this codec's own, or a packaged one."""
        decoding.check_sections(stream, self.tag, len(self.sections))
        return decoding.named_init(stream.sections[0], self.init)

    def _decode_one(self, data: bytes) -> Image:
        init = self._init_of(bitstream.peek(data))
        stream = decoding.unpack(data, self.tag, len(self.sections), init.digest)
        _, grid, payload, coded_indices = stream.sections
        values, indices = _decode_values(init.net, grid, payload, coded_indices)
        params = product_quantization.assemble(values, indices, init.mean())
        rounded = {path: leaf.astype(np.float32) for path, leaf in trees.leaves(params)}
        return decoding.reconstruct(
            init.net, trees.from_leaves(rounded), stream.height, stream.width
        )


# ---------------------------------------------------------------------------- quantising


def quantize_layers(
    net: Siren, params: Params, mean: Params, image: Image, codec: ProductSiren
) -> Coded:
    """Codebooks, indices and steps of a fitted net: layer by layer, weighted by the inputs that the
    layers quantised before give at a sample of the image's pixels; nothing is tuned."""
    rng = np.random.default_rng(codec.seed)
    size = image.shape[0] * image.shape[1]
    chosen = rng.choice(size, min(_SAMPLE, size), replace=False)
    pixels = image.reshape(-1, 3)[chosen].T / 127.5 - 1
    h = net.encode_host(coordinates(*image.shape[:2])[chosen].T).astype(np.float64)
    leaves, means = dict(trees.leaves(params)), dict(trees.leaves(mean))
    values: dict[str, Any] = {}
    grid: dict[str, int] = {}
    indices: dict[str, np.ndarray] = {}
    for i in range(net.depth):
        weight, bias = f"{layer_name(i)}/weight", f"{layer_name(i)}/bias"
        distance = np.asarray(leaves[weight], np.float64) - means[weight]
        pieces = product_quantization.cut(distance, codec.block)
        grams = product_quantization.gram(h, codec.block)
        count = _num_centroids(pieces.shape[:2], codec.num_centroids)
        product = product_quantization.kmeans(pieces, grams, count, rng)
        error = product_quantization.objective(pieces, grams, product) / len(pieces)
        values[weight], indices[weight] = product.centroids, product.indices
        values[bias] = np.asarray(leaves[bias], np.float64) - means[bias]
        grid[weight], grid[bias] = _step(error, np.mean(h * h, axis=1).sum()), _step(error, 1.0)
        coarse = product_quantization.join(product.centroids[product.indices], len(h))
        h = np.sin(net.w0 * ((means[weight] + coarse) @ h + np.asarray(leaves[bias])[:, None]))
    weight, bias = f"{layer_name(net.depth)}/weight", f"{layer_name(net.depth)}/bias"
    out = np.asarray(leaves[weight], np.float64) @ h + np.asarray(leaves[bias])[:, None]
    error = float(np.mean((out - pixels) ** 2))
    for path, power in ((weight, np.mean(h * h, axis=1).sum()), (bias, 1.0)):
        values[path] = np.asarray(leaves[path], np.float64) - means[path]
        grid[path] = _step(error, power)
    quantized = quantize.uniform(trees.from_leaves(values), trees.from_leaves(grid))
    return Coded(quantized.symbols, quantized.grid, indices)


def _step(error: float, power: float) -> int:
    """The ladder's index of the step whose rounding errors, of variance step^2 / 12 and through
    inputs of this total power, add `ROUNDING_SHARE` of an output's mean squared error."""
    step = np.sqrt(12 * ROUNDING_SHARE * error / max(power, 1e-12))
    return quantize.nearest_index(float(max(step, _FINEST)))


def _num_centroids(shape: tuple[int, int], wanted: int) -> int:
    """A layer's centroids: a quarter of its pieces (out, blocks) at most, and one at least."""
    return max(1, min(wanted, shape[0] * shape[1] // 4))


def _to_tune(coded: Coded) -> tuple[Any, Any, Any]:
    """The indices, values and steps of an `overfit.ProductDatum`."""
    values = quantize.dequantize(quantize.Quantized(coded.symbols, coded.grid))
    steps = {p: np.float32(quantize.step_size(i)) for p, i in trees.leaves(coded.grid)}
    return (
        {path: own.astype(np.int32) for path, own in coded.indices.items()},
        trees.from_leaves({path: leaf.astype(np.float32) for path, leaf in trees.leaves(values)}),
        trees.from_leaves(steps),
    )


# ---------------------------------------------------------------------------- the stream


class Layout(NamedTuple):
    """What a stream holds, in the order of the paths. ``values``: path -> shape of the values that
    are coded; ``indices``: path -> (out, blocks); ``sizes``: path -> number of centroids."""

    values: dict[str, tuple[int, ...]]
    indices: dict[str, tuple[int, int]]
    sizes: dict[str, int]

    def model(self) -> entropy.Adaptive:
        """The model that the indices are coded under."""
        return entropy.Adaptive(list(self.indices.values()), list(self.sizes.values()))


def layout_of(net: Siren, num_centroids: int, block: int) -> Layout:
    """The layout of a net's stream; the sine layers' weights have codebooks."""
    values, indices, sizes = {}, {}, {}
    for path, shape in trees.leaves(net.shapes()):
        if path.endswith("/weight") and not path.startswith(layer_name(net.depth)):
            indices[path] = shape[0], product_quantization.num_blocks(shape[1], block)
            sizes[path] = _num_centroids(indices[path], num_centroids)
            shape = sizes[path], block
        values[path] = tuple(shape)
    return Layout(values, indices, sizes)


def _best_level(symbols: np.ndarray) -> int:
    """The scale level under which symbols cost least; ties go to the lowest."""
    magnitudes, often = np.unique(np.abs(symbols), return_counts=True)
    costs = [often @ entropy.symbol_bits(magnitudes, n) for n in range(entropy.NUM_LEVELS)]
    return int(np.argmin(costs))


def _decode_values(
    net: Siren, grid: bytes, payload: bytes, coded_indices: bytes
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The values, float64, and the indices that the sections hold."""
    head = decoding.CHECK_BYTES + _CENTROID_BYTES + 1
    num_tensors = len(list(trees.leaves(net.shapes())))
    if len(grid) != head + 2 * num_tensors:
        raise BitstreamError("the section 'grid' is damaged")
    num_centroids = int.from_bytes(grid[decoding.CHECK_BYTES : head - 1], "little")
    block, steps, levels = grid[head - 1], grid[head:][:num_tensors], grid[head + num_tensors :]
    if not (1 <= num_centroids <= MAX_CENTROIDS and 1 <= block <= MAX_BLOCK):
        raise BitstreamError("the section 'grid' is damaged: no such codebook")
    if max(levels) >= entropy.NUM_LEVELS:
        raise BitstreamError("the section 'grid' is damaged: no such level")
    layout = layout_of(net, num_centroids, block)
    counts = [int(np.prod(shape)) for shape in layout.values.values()]
    model = entropy.Laplace(np.repeat(np.frombuffer(levels, np.uint8).astype(np.int64), counts))
    symbols = entropy.decode(payload, model, sum(counts))
    indices = entropy.decode_indices(coded_indices, layout.model())
    check = np.concatenate([symbols, *map(np.ravel, indices)])
    decoding.require_symbols(check, grid[: decoding.CHECK_BYTES])
    like = trees.from_leaves({path: np.empty(shape) for path, shape in layout.values.items()})
    own_grid = trees.from_leaves(dict(zip(layout.values, steps, strict=True)))
    quantized = quantize.Quantized(trees.unravel(symbols, like), own_grid)
    return quantize.dequantize(quantized), dict(zip(layout.indices, indices, strict=True))


# ---------------------------------------------------------------------------- progress


def _halves(on_progress: OnProgress | None) -> tuple[OnProgress | None, OnProgress | None]:
    """Progress of the fits and of the tuning, as the two halves of one total."""
    if on_progress is None:
        return None, None

    def half(start: int) -> OnProgress:
        return lambda done, total: on_progress(start * total + done, 2 * total)

    return half(0), half(1)


def _report(on_progress: OnProgress | None, images: int) -> None:
    if on_progress is not None and images:
        on_progress(100 * images, 100 * images)
