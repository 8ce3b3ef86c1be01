"""Codecs whose file is a network: COIN, and MetaSiren with a learned init and entropy coding.

Encoding imports JAX when it is called; decoding needs numpy and the range coder alone.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from inrjax import bitstream, entropy, images, quantize, trees
from inrjax.init import Init, find_init, packaged_init, packaged_widths
from inrjax.machine import cpu_count
from inrjax.nets.siren import MAX_DEPTH, Siren
from inrjax.types import BitstreamError, Image, OnProgress, Params

if TYPE_CHECKING:
    from inrjax.optimizers import Optimizer

WIDTHS = packaged_widths()
"""Widths that MetaSiren has a packaged init for: a rate curve, one file size for each."""

PRESETS = {"fast": 2000, "default": 6000, "best": 24_000}
"""Steps of MetaSiren's fits, by how much time they may take."""

MAX_WIDTH = 4096
"""Neurons of a layer of a COIN file at most."""

MAX_PARAMS = 1 << 19
"""Weights and biases of a COIN file at most, 17 times the largest published: what a small picture
can cost to decode, under a second, whatever its file says."""

_RETRIES = 2
_WINDOW = 32  # steps whose mean loss judges a snapshot: about an epoch of a Kodak image
_DIGEST_BYTES = 4
_REFINING = 0.2  # share of the learning rate at which `MetaSiren.refine` goes on
_BLOCK_PIXELS = 1 << 15
_MAX_THREADS = 32  # each holds up to about 8 MB


def reconstruct(net: Siren, params: Params, height: int, width: int) -> Image:
    """The uint8 (height, width, 3) image that a net holds, by blocks on all cores.

    Memory: the image, and a few MB for each core, 32 of them at most. The bytes depend on the
    blocks, which depend on the image's size alone, so any number of cores gives the same. Raises
    BitstreamError for a pixel that is NaN.
    """
    image = np.empty((height, width, 3), np.uint8)

    def fill(block: tuple[slice, slice]) -> None:
        y, x = (images.centres(n, part) for n, part in zip((height, width), block, strict=True))
        with np.errstate(over="ignore", invalid="ignore"):  # said below, in a sentence
            values = (net.apply_grid_host(params, y, x) + 1) / 2
        if np.isnan(values).any():
            raise BitstreamError("a pixel is NaN: the file is damaged")
        image[block] = images.to_uint8(values)

    blocks = _blocks(height, width)
    if len(blocks) == 1:  # a thread costs more than a small picture
        fill(blocks[0])
        return image
    with ThreadPoolExecutor(min(cpu_count(), _MAX_THREADS, len(blocks))) as pool:
        for _ in pool.map(fill, blocks):  # raises what a thread raised
            pass
    return image


def _blocks(height: int, width: int) -> list[tuple[slice, slice]]:
    """Rows and columns of blocks that make up the image, of at most `_BLOCK_PIXELS` pixels."""
    columns = min(width, _BLOCK_PIXELS)
    count = -(-height // (_BLOCK_PIXELS // columns))
    rows = -(-height // count)  # about equal heights, since each is a share of a core's work
    return [
        (slice(top, min(top + rows, height)), slice(left, min(left + columns, width)))
        for top in range(0, height, rows)
        for left in range(0, width, columns)
    ]


# ---------------------------------------------------------------------------- fitting a batch


class _Fitting(NamedTuple):
    """How a codec fits: ``make_plan(optimizer, tiles_per_step)`` gives a `fit.Plan`."""

    make_plan: Callable[[Any, int], Any]
    optimizer: Any
    points_per_step: int
    seed: int


def _fit_all(
    batch: Sequence[Image], fitting: _Fitting, shared: Any, on_progress: OnProgress | None
) -> list[Params]:
    """The best params of each image.

    A fit that diverges is tried again at a quarter of its learning rate. Raises ValueError if an
    image diverges at every rate.
    """
    params: dict[int, Params] = {}
    waiting = list(range(len(batch)))
    for attempt in range(1 + _RETRIES):
        # The few that are tried again are not in the total that was announced.
        report = on_progress if attempt == 0 else None
        results = _fit_once([batch[i] for i in waiting], fitting, shared, report)
        params |= {i: r.params for i, r in zip(waiting, results, strict=True) if r.finite}
        waiting = [i for i in waiting if i not in params]
        if not waiting:
            return [params[i] for i in range(len(batch))]
        slower = replace(fitting.optimizer, learning_rate=fitting.optimizer.learning_rate / 4)
        fitting = fitting._replace(optimizer=slower)
    raise ValueError(
        f"the fit of image {waiting[0] + 1} of {len(batch)} diverged {1 + _RETRIES} times, the "
        f"last at a learning rate of {4 * fitting.optimizer.learning_rate:.1e}: set a lower one"
    )


def _fit_once(
    batch: Sequence[Image], fitting: _Fitting, shared: Any, on_progress: OnProgress | None
) -> list[Any]:
    """One `fit.FitResult` for each image; images of one tiling share a program and a batch: all
    that have at least ``points_per_step`` pixels, whatever their shapes."""
    from inrjax import fit, overfit

    sizes = [image.shape[0] * image.shape[1] for image in batch]
    # The plan of an image depends on its own size alone, or its bytes would on its neighbours.
    tilings = [fit.tiling(size, fitting.points_per_step) for size in sizes]
    results: list[Any] = [None] * len(batch)
    done = 0
    for tiling in sorted(set(tilings)):
        members = [i for i, own in enumerate(tilings) if own == tiling]
        num_tiles = fit.bucket(max(-(-sizes[i] // tiling.tile) for i in members))
        data = [overfit.image_points(batch[i], tiling, num_tiles, fitting.seed) for i in members]
        plan = fitting.make_plan(fitting.optimizer, tiling.tiles_per_step)
        report = _share(on_progress, done, len(members), len(batch))
        for i, result in zip(members, fit.fit_batch(plan, shared, data, report), strict=True):
            results[i] = result
        done += len(members)
    return results


def _share(on_progress: OnProgress | None, done: int, members: int, images: int):
    """Progress of ``members`` out of ``images``, of which ``done`` are behind, as hundredths."""
    if on_progress is None:
        return None

    def report(part: int, whole: int) -> None:
        on_progress(100 * done + 100 * members * part // whole, 100 * images)

    return report


def _check_images(batch: Sequence[Image]) -> None:
    for image in batch:
        images.check_image(image)
        bitstream.check_size(*image.shape[:2])


# ---------------------------------------------------------------------------- COIN


@dataclass(frozen=True, eq=False)
class Coin:
    """COIN (Dupont et al. 2021, arXiv:2103.03123): a SIREN from a random init, weights as float16.

    As published: no entropy coding, the snapshot of the lowest loss. The published points use
    50,000 full-image steps of Adam: ``num_steps=50_000, points_per_step=None,
    optimizer=optimizers.Adam(2e-4)``. The defaults are a CPU's budget: fewer steps, pixel subsets,
    Muon.

    Attributes:
      width, depth: neurons of a layer, and sine layers; depth counts the first.
      num_steps: steps of the fit. seed: of the init and the pixel order.
      optimizer: None for Muon at 3e-3.
      points_per_step: pixels a step sees, rounded up to whole tiles (`fit.tiling`); None for all.
    """

    width: int = 30
    depth: int = 5
    num_steps: int = 2000
    seed: int = 0
    optimizer: Optimizer | None = None
    points_per_step: int | None = 12_288

    suffix: ClassVar[str] = ".inr"
    tag: ClassVar[int] = 1
    sections: ClassVar[tuple[str, ...]] = ("net", "weights")

    def __post_init__(self):
        if not (_is_coin_net(self.width, self.depth) and self.num_steps >= 1):
            raise ValueError(
                f"got {self}, expected width 1..{MAX_WIDTH}, depth 1..{MAX_DEPTH}, at most "
                f"{MAX_PARAMS} weights and biases, num_steps >= 1"
            )
        if self.points_per_step is not None and self.points_per_step < 1:
            raise ValueError(f"got {self}, expected points_per_step >= 1, or None for all")

    @property
    def name(self) -> str:
        """``coin``."""
        return "coin"

    @property
    def setting(self) -> str:
        """``width=W_depth=D_steps=N``."""
        return f"width={self.width}_depth={self.depth}_steps={self.num_steps}"

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One stream for each uint8 (height, width, 3) image; ValueError for another array."""
        import jax

        from inrjax import optimizers, overfit

        _check_images(images)
        net, steps = Siren(self.width, self.depth), self.num_steps
        window = max(1, min(_WINDOW, steps // 4)) if self.points_per_step else 1
        fitting = _Fitting(
            make_plan=lambda optimizer, tiles: overfit.PlainPlan(
                net, optimizer, steps, tiles, window
            ),
            optimizer=self.optimizer or optimizers.Muon(overfit.LEARNING_RATE),
            points_per_step=self.points_per_step or bitstream.MAX_PIXELS,
            seed=self.seed,
        )
        fitted = _fit_all(images, fitting, jax.random.key(self.seed), on_progress)
        return [self.pack(image, params) for image, params in zip(images, fitted, strict=True)]

    def pack(self, image: Image, params: Params) -> bytes:
        """The stream of fitted params, for an image of this size; ValueError beyond float16."""
        with np.errstate(over="ignore"):  # said below, in a sentence
            weights = trees.ravel(params).astype("<f2")
        if not np.isfinite(weights).all():
            raise ValueError("a weight does not fit float16: fit with a lower learning rate")
        net = np.array([self.width], "<u2").tobytes() + bytes([self.depth])
        height, width = image.shape[:2]
        return bitstream.pack(self.tag, height, width, [net, weights.tobytes()])

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images, of any width and depth; BitstreamError if bad."""
        return [self._decode_one(stream) for stream in streams]

    def context(self, stream: bitstream.Stream) -> bytes:
        """What the checksum covers beside the stream: nothing. BitstreamError if not COIN's."""
        _check_sections(stream, type(self))
        return b""

    def _decode_one(self, data: bytes) -> Image:
        stream = _unpack(data, type(self))
        shape, weights = stream.sections
        if len(shape) != 3 or not _is_coin_net(int.from_bytes(shape[:2], "little"), shape[2]):
            raise BitstreamError("the section 'net' is damaged")
        net = Siren(int.from_bytes(shape[:2], "little"), shape[2])
        if len(weights) != 2 * net.num_params:
            raise BitstreamError(
                f"the section 'weights' has {len(weights)} bytes, expected {2 * net.num_params}"
            )
        values = np.frombuffer(weights, "<f2").astype(np.float32)
        if not np.isfinite(values).all():
            raise BitstreamError("the section 'weights' holds numbers that are not finite")
        like = trees.from_leaves({p: np.empty(s) for p, s in trees.leaves(net.shapes())})
        params = trees.unravel(values, like)
        return reconstruct(net, params, stream.height, stream.width)


def _is_coin_net(width: int, depth: int) -> bool:
    """Whether a file can hold such a net; it is asked before anything is allocated."""
    return (
        1 <= width <= MAX_WIDTH
        and 1 <= depth <= MAX_DEPTH
        and Siren(width, depth).num_params <= MAX_PARAMS
    )


# ---------------------------------------------------------------------------- MetaSiren


@dataclass(frozen=True, eq=False)
class MetaSiren:
    """A SIREN fitted from a learned init, its distance from the prior's mean quantised and coded.

    The net is Strümpler's (positional encoding, 4 sine layers, arXiv:2112.04267). The fit sees
    distortion and rate together (`overfit.RatePlan`); the file holds, for each tensor, a step
    size and a Laplace scale in a byte each, and the range-coded symbols. What both sides share is
    the init file, named by the first bytes of its digest, and by all of it in the checksum.

    Attributes:
      width: neurons of a layer; one with a packaged init, or that of ``init``.
      num_steps: steps of the fit. seed: of the pixel order and the noise.
      slope: the share of rate that a share of mse is worth; see `overfit.RatePlan`.
      init: a learned init; None for the packaged one of this width.
      optimizer: None for Muon at 3e-3.
      points_per_step: pixels a step sees, rounded up to whole tiles (`fit.tiling`).
    """

    width: int = 32
    num_steps: int = PRESETS["default"]
    seed: int = 0
    slope: float = 0.3
    init: Init | None = None
    optimizer: Optimizer | None = None
    points_per_step: int = 4096

    suffix: ClassVar[str] = ".inr"
    tag: ClassVar[int] = 2
    sections: ClassVar[tuple[str, ...]] = ("init", "grid", "symbols")

    def __post_init__(self):
        if self.num_steps < 1 or self.slope < 0 or self.points_per_step < 1:
            raise ValueError(f"got {self}, expected num_steps >= 1, slope >= 0, points >= 1")
        if self.init is not None and self.init.net.width != self.width:
            raise ValueError(
                f"got width {self.width} with an init of width {self.init.net.width}: "
                "expected the same"
            )
        if self.init is not None and (self.init.net.in_dim, self.init.net.out_dim) != (2, 3):
            raise ValueError(f"got an init of {self.init.net}, expected in_dim 2 and out_dim 3")
        if self.init is None:
            packaged_init(self.width)

    @property
    def name(self) -> str:
        """``meta-siren``."""
        return "meta-siren"

    @property
    def setting(self) -> str:
        """``width=W_steps=N``."""
        return f"width={self.width}_steps={self.num_steps}"

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One stream for each uint8 (height, width, 3) image; ValueError for another array."""
        fitted = self.fit(images, on_progress)
        return [self.pack(image, learned) for image, learned in zip(images, fitted, strict=True)]

    def fit(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[Params]:
        """What is learned of each uint8 (height, width, 3) image: ``net`` (its params), and for
        each tensor a ``log_step`` and a ``log_scale``; what `pack` and `refine` take."""
        from inrjax import optimizers, overfit

        _check_images(images)
        chosen = self.optimizer or optimizers.Muon(overfit.LEARNING_RATE)
        plan = partial(self._plan, num_steps=self.num_steps)
        shared = overfit.rate_shared(self._own_init(), self.slope, self.seed)
        return self._run(images, plan, chosen, shared, on_progress)

    def refine(self, image: Image, learned: Params, num_steps: int) -> Params:
        """Go on from what `fit` or `refine` learned of an image, at this codec's slope.

        Every step sees the params rounded, at a fifth of the learning rate: a file of another size
        in a fraction of the steps of a fit.
        """
        from inrjax import optimizers, overfit

        whole: Any = self.optimizer or optimizers.Muon(overfit.LEARNING_RATE)
        gentle = replace(whole, learning_rate=_REFINING * whole.learning_rate)
        plan = partial(self._plan, num_steps=num_steps, rounded_share=1.0)
        shared = overfit.rate_shared(self._own_init(), self.slope, self.seed)._replace(
            learned=learned
        )
        return self._run([image], plan, gentle, shared, None)[0]

    def pack(self, image: Image, learned: Params) -> bytes:
        """The stream of what `fit` learned of an image."""
        return _pack(image, learned, self._own_init())

    def _own_init(self) -> Init:
        return self.init or packaged_init(self.width)

    def _plan(self, optimizer: Any, tiles: int, num_steps: int, **others: float) -> Any:
        from inrjax import overfit

        window = max(1, min(_WINDOW, num_steps // 40))
        net = self._own_init().net
        return overfit.RatePlan(net, optimizer, num_steps, tiles, window, **others)

    def _run(
        self, batch: Sequence[Image], make_plan: Callable[[Any, int], Any], optimizer: Any,
        shared: Any, on_progress: OnProgress | None,
    ) -> list[Params]:  # fmt: skip
        fitting = _Fitting(make_plan, optimizer, self.points_per_step, self.seed)
        return _fit_all(batch, fitting, shared, on_progress)

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images, of any init at hand; BitstreamError if bad."""
        return [self._decode_one(stream) for stream in streams]

    def context(self, stream: bitstream.Stream) -> bytes:
        """What the checksum covers beside the stream: the digest of the init that it names.

        Raises BitstreamError if the init is not known here, or the stream is not MetaSiren's.
        """
        return self._init_of(stream).digest

    def code_lengths(self, data: bytes) -> dict[str, float]:
        """The ideal code length in bits of each tensor's symbols in a stream, path -> bits.

        Their sum is the section 'symbols' but for what the range coder adds, a few bytes: how the
        file is spent, never a rate. Raises BitstreamError as `decode` does.
        """
        init = self._init_of(bitstream.peek(data))
        stream = _unpack(data, type(self), init.digest)
        symbols, levels = _decode_symbols(stream.sections[1], stream.sections[2], init)
        paths = [path for path, _ in trees.leaves(init.mean())]
        return {
            path: entropy.cost(values, entropy.Laplace(scales))
            for path, values, scales in zip(paths, symbols, levels, strict=True)
        }

    def _decode_one(self, data: bytes) -> Image:
        init = self._init_of(bitstream.peek(data))
        stream = _unpack(data, type(self), init.digest)
        params = _decode_params(stream.sections[1], stream.sections[2], init)
        return reconstruct(init.net, params, stream.height, stream.width)

    def _init_of(self, stream: bitstream.Stream) -> Init:
        """The init that a stream names: this codec's own, or a packaged one."""
        _check_sections(stream, type(self))
        wanted = stream.sections[0]
        if len(wanted) != _DIGEST_BYTES:
            raise BitstreamError("the section 'init' is damaged")
        if self.init is not None and self.init.digest.startswith(wanted):
            return self.init
        init = find_init(wanted)
        if init is None:
            raise BitstreamError(
                f"the init {wanted.hex()} is not known here: give the init file it was encoded "
                "with, or the file is damaged"
            )
        return init


def _pack(image: Image, learned: Params, init: Init) -> bytes:
    """The stream of a fit: ``learned`` as `overfit.RatePlan` returns it."""
    quantized = _quantize(learned, init)
    base = init.levels()
    offsets, levels, symbols = [], [], []
    for path, leaf in trees.leaves(quantized.symbols):
        symbols.append(np.ravel(leaf).astype(np.int64))
        offset = best_offset(symbols[-1], base[path].ravel())
        offsets.append(offset)
        levels.append(_levels(base[path].ravel(), offset))
    flat = np.concatenate(symbols)
    steps = [int(index) for _, index in trees.leaves(quantized.grid)]
    grid = _symbol_check(flat) + bytes(steps) + bytes(offsets)
    payload = entropy.encode(flat, entropy.Laplace(np.concatenate(levels)))
    sections = [init.digest[:_DIGEST_BYTES], grid, payload]
    height, width = image.shape[:2]
    return bitstream.pack(MetaSiren.tag, height, width, sections, init.digest)


def _quantize(learned: Params, init: Init) -> quantize.Quantized:
    mean = dict(trees.leaves(init.mean()))
    delta = {p: np.asarray(x, np.float64) - mean[p] for p, x in trees.leaves(learned["net"])}
    grid = {
        path: quantize.nearest_index(float(np.exp(np.float64(log_step))))
        for path, log_step in zip(delta, learned["log_step"], strict=True)
    }
    return quantize.uniform(trees.from_leaves(delta), trees.from_leaves(grid))


def _decode_params(grid: bytes, payload: bytes, init: Init) -> dict[str, Any]:
    mean = init.mean()
    paths = [path for path, _ in trees.leaves(mean)]
    symbols, _ = _decode_symbols(grid, payload, init)
    steps = grid[_CHECK_BYTES : _CHECK_BYTES + len(paths)]
    grid_tree = trees.from_leaves(dict(zip(paths, steps, strict=True)))
    coded = quantize.Quantized(trees.unravel(np.concatenate(symbols), mean), grid_tree)
    delta = dict(trees.leaves(quantize.dequantize(coded)))
    return trees.from_leaves(
        {path: (leaf + delta[path]).astype(np.float32) for path, leaf in trees.leaves(mean)}
    )


def _decode_symbols(
    grid: bytes, payload: bytes, init: Init
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Each tensor's symbols and their scale levels, raveled, in the order of the leaves."""
    base = init.levels()
    paths = [path for path, _ in trees.leaves(init.mean())]
    if len(grid) != _CHECK_BYTES + 2 * len(paths):
        raise BitstreamError("the section 'grid' is damaged")
    offsets = grid[_CHECK_BYTES + len(paths) :]
    levels = [_levels(base[p].ravel(), o) for p, o in zip(paths, offsets, strict=True)]
    flat = entropy.decode(payload, entropy.Laplace(np.concatenate(levels)), sum(map(len, levels)))
    if _symbol_check(flat) != grid[:_CHECK_BYTES]:
        raise BitstreamError(
            "the symbols do not match their check: the file is damaged, or this machine's range "
            "coder differs from the encoder's"
        )
    return np.split(flat, np.cumsum([len(part) for part in levels])[:-1]), levels


_CHECK_BYTES = 2
_OFFSET_ZERO = 64  # an offset byte of 64 means the envelope as it stands


def _levels(base: np.ndarray, offset: int | np.ndarray) -> np.ndarray:
    """Scale levels: the envelope, in quarter octaves of a param, moved to symbols by the offset."""
    return np.clip(base + offset - _OFFSET_ZERO + _UNIT_LEVEL, 0, entropy.NUM_LEVELS - 1)


_UNIT_LEVEL = 16 + 4 * 9  # the level of scale 1 at a step of 2^-9


def best_offset(symbols: np.ndarray, base: np.ndarray) -> int:
    """The offset byte, 0..255, under which symbols cost least; ties go to the smallest."""
    lowest, highest = int(base.min()), int(base.max())
    shift = _OFFSET_ZERO - _UNIT_LEVEL
    candidates = np.arange(
        max(0, shift - highest), min(255, shift + entropy.NUM_LEVELS - 1 - lowest) + 1
    )
    # Only how often each magnitude comes at each base level matters.
    magnitudes, which = np.unique(np.abs(symbols), return_inverse=True)
    bases, place = np.unique(base, return_inverse=True)
    pairs = place.ravel() * len(magnitudes) + which.ravel()
    often = np.bincount(pairs, minlength=len(bases) * len(magnitudes))
    bits = np.stack([entropy.symbol_bits(magnitudes, n) for n in range(entropy.NUM_LEVELS)])
    costs = often.reshape(len(bases), -1) @ bits.T  # (bases, levels)
    levels = _levels(bases[:, None], candidates[None])
    return int(candidates[np.argmin(np.take_along_axis(costs, levels, axis=1).sum(axis=0))])


def _symbol_check(symbols: np.ndarray) -> bytes:
    """CRC-16 (CCITT) of the symbols as little-endian int32: what a drifting coder would break."""
    return binascii.crc_hqx(symbols.astype("<i4").tobytes(), 0).to_bytes(_CHECK_BYTES, "little")


def _check_sections(stream: bitstream.Stream, codec: type[Coin] | type[MetaSiren]) -> None:
    if stream.tag != codec.tag:
        raise BitstreamError(f"the stream has codec tag {stream.tag}, expected {codec.tag}")
    if len(stream.sections) != len(codec.sections):
        raise BitstreamError(
            f"the stream has {len(stream.sections)} sections, expected {len(codec.sections)}"
        )


def _unpack(
    data: bytes, codec: type[Coin] | type[MetaSiren], context: bytes = b""
) -> bitstream.Stream:
    _check_sections(bitstream.peek(data), codec)
    return bitstream.unpack(data, context)
