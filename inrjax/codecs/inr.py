"""Codecs whose file is a network: COIN, and MetaSiren with a learned init and entropy coding.

Encoding imports JAX when it is called; decoding needs numpy and the range coder alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from inrjax import bitstream, decoding, entropy, quantize, trees
from inrjax.init import Init, packaged_init, packaged_widths
from inrjax.nets.siren import MAX_DEPTH, Siren
from inrjax.types import BitstreamError, Image, OnProgress, Params

if TYPE_CHECKING:
    from inrjax.optimizers import Optimizer

WIDTHS = packaged_widths()
"""Widths that MetaSiren has a packaged init for: a rate curve, one file size for each."""

PRESETS = {"fast": (2000, 0), "default": (6000, 0), "best": (24_000, 48)}
"""Steps of MetaSiren's fits, and of the search for better roundings after them, by how much time
they may take."""

MAX_WIDTH = 4096
"""Neurons of a layer of a COIN file at most."""

MAX_PARAMS = 1 << 19
"""Weights and biases of a COIN file at most, 17 times the largest published: what a small picture
can cost to decode, under a second, whatever its file says."""

_WINDOW = 32  # steps whose mean loss judges a snapshot: about an epoch of a Kodak image
_REFINING = 0.2  # share of the learning rate at which `MetaSiren.refine` goes on


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
      optimizer: None for Muon at 3e-3, and above depth 5 at 3e-3 * (5 / depth)^2: at 3e-3 fits
        of 10 and 13 layers can fail.
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
        if not _is_coin_net(self.width, self.depth):
            raise ValueError(
                f"got width {self.width} and depth {self.depth}, expected width 1..{MAX_WIDTH}, "
                f"depth 1..{MAX_DEPTH}, and at most {MAX_PARAMS} weights and biases"
            )
        decoding.check_at_least(self, num_steps=1)
        decoding.check_points_per_step(self.points_per_step)

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

        decoding.check_images(images)
        net, steps = Siren(self.width, self.depth), self.num_steps
        window = max(1, min(_WINDOW, steps // 4)) if self.points_per_step else 1
        fitting = overfit.Fitting(
            make_plan=lambda optimizer, tiles: overfit.PlainPlan(
                net, optimizer, steps, tiles, window
            ),
            optimizer=self.optimizer
            or optimizers.Muon(overfit.LEARNING_RATE * min(1.0, 5 / self.depth) ** 2),
            points_per_step=self.points_per_step or bitstream.MAX_PIXELS,
            seed=self.seed,
        )
        fitted = overfit.fit_images(images, fitting, jax.random.key(self.seed), on_progress)
        return decoding.pack_each(self.pack, images, fitted)

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
        decoding.check_sections(stream, self.tag, len(self.sections))
        return b""

    def _decode_one(self, data: bytes) -> Image:
        stream = decoding.unpack(data, self.tag, len(self.sections))
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
        return decoding.reconstruct(net, params, stream.height, stream.width)


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

    The net is the init's: a positional encoding and 4 sine layers, as Strümpler's
    (arXiv:2112.04267), but of half their frequency factor w0, or less. The fit sees distortion and
    rate together (`overfit.RatePlan`); the file holds, for each tensor, a step size and a Laplace
    scale in a byte each, and the range-coded symbols. What both sides share is the init file, named
    by the first bytes of its digest, and by all of it in the checksum.

    Attributes:
      width: neurons of a layer; one with a packaged init, or that of ``init``.
      num_steps: steps of the fit. seed: of the pixel order and the noise.
      slope: the share of rate that a share of mse is worth; see `overfit.RatePlan`.
      init: a learned init; None for the packaged one of this width.
      optimizer: None for Muon at 3e-3.
      points_per_step: pixels a step sees, rounded up to whole tiles (`fit.tiling`).
      search_steps: of a search for better roundings after the fit (`overfit.RoundingSearch`), each
        on all pixels, or 2^19; 0 for none.
    """

    width: int = 32
    num_steps: int = PRESETS["default"][0]
    seed: int = 0
    slope: float = 0.3
    init: Init | None = None
    optimizer: Optimizer | None = None
    points_per_step: int = 4096
    search_steps: int = 0

    suffix: ClassVar[str] = ".inr"
    tag: ClassVar[int] = 2
    sections: ClassVar[tuple[str, ...]] = ("init", "grid", "symbols")

    def __post_init__(self):
        decoding.check_at_least(self, num_steps=1, slope=0, points_per_step=1, search_steps=0)
        decoding.check_init(self.shared, self.width)

    @property
    def name(self) -> str:
        """``meta-siren``."""
        return "meta-siren"

    @property
    def setting(self) -> str:
        """``width=W_steps=N``, and ``_search=S`` if there is a search."""
        search = f"_search={self.search_steps}" if self.search_steps else ""
        return f"width={self.width}_steps={self.num_steps}{search}"

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One stream for each uint8 (height, width, 3) image; ValueError for another array."""
        fitting, searching = _two_parts(on_progress) if self.search_steps else (on_progress, None)
        fitted = self.fit(images, fitting)
        searched = self.search(images, fitted, searching)
        return decoding.pack_each(self.pack, images, searched)

    def fit(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[Params]:
        """What is learned of each uint8 (height, width, 3) image: ``net`` (its params), and for
        each tensor a ``log_step`` and a ``log_scale``; what `pack` and `refine` take."""
        from inrjax import optimizers, overfit

        decoding.check_images(images)
        chosen = self.optimizer or optimizers.Muon(overfit.LEARNING_RATE)
        plan = partial(self._plan, num_steps=self.num_steps)
        shared = overfit.rate_shared(self.shared, self.slope, self.seed)
        return self._run(images, plan, chosen, shared, on_progress)

    def refine(
        self,
        image: Image,
        learned: Params,
        num_steps: int,
        on_progress: OnProgress | None = None,
    ) -> Params:
        """Go on from what `fit` or `refine` learned of an image, at this codec's slope.

        Every step sees the params rounded, at a fifth of the learning rate: a file of another size
        in a fraction of the steps of a fit.
        """
        from inrjax import optimizers, overfit

        whole: Any = self.optimizer or optimizers.Muon(overfit.LEARNING_RATE)
        gentle = replace(whole, learning_rate=_REFINING * whole.learning_rate)
        plan = partial(self._plan, num_steps=num_steps, rounded_share=1.0)
        shared = overfit.rate_shared(self.shared, self.slope, self.seed)._replace(learned=learned)
        return self._run([image], plan, gentle, shared, on_progress)[0]

    def search(
        self,
        images: Sequence[Image],
        fitted: Sequence[Params],
        on_progress: OnProgress | None = None,
    ) -> list[Params]:
        """What `fit` or `refine` learned of each image, on the grid of its step sizes and with its
        roundings searched (`overfit.RoundingSearch`); as it is where ``search_steps`` is 0."""
        if not self.search_steps:
            return list(fitted)
        from inrjax import overfit

        init = self.shared
        tensors = [coded_tensors(learned, init) for learned in fitted]
        fitting = overfit.Fitting(
            make_plan=lambda *_: overfit.RoundingSearch(init.net, self.search_steps),
            optimizer=None,
            points_per_step=self.points_per_step,
            seed=self.seed,
            make_datum=lambda i, points: overfit.Rounded(points, *_flat(tensors[i])),
            every_tile=True,
        )
        shared = overfit.rate_shared(init, self.slope, self.seed)
        found = overfit.fit_once(dict(enumerate(images)), fitting, shared, on_progress)
        return [
            {**learned, "net": _on_grid(tensors[i], found[i].params, init)}
            for i, learned in enumerate(fitted)
        ]

    def pack(self, image: Image, learned: Params) -> bytes:
        """The stream of what `fit` learned of an image."""
        return _pack(image, learned, self.shared)

    @property
    def shared(self) -> Init:
        """What decoders have beside the files: ``init``, or the packaged one."""
        return self.init or packaged_init(self.width)

    def _plan(self, optimizer: Any, tiles: int, num_steps: int, **others: float) -> Any:
        from inrjax import overfit

        window = max(1, min(_WINDOW, num_steps // 40))
        net = self.shared.net
        return overfit.RatePlan(net, optimizer, num_steps, tiles, window, **others)

    def _run(
        self, batch: Sequence[Image], make_plan: Callable[[Any, int], Any], optimizer: Any,
        shared: Any, on_progress: OnProgress | None,
    ) -> list[Params]:  # fmt: skip
        from inrjax import overfit

        fitting = overfit.Fitting(make_plan, optimizer, self.points_per_step, self.seed)
        return overfit.fit_images(batch, fitting, shared, on_progress)

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
        stream = decoding.unpack(data, self.tag, len(self.sections), init.digest)
        symbols, levels = _decode_symbols(stream.sections[1], stream.sections[2], init)
        paths = [path for path, _ in trees.leaves(init.mean())]
        return {
            path: entropy.cost(values, entropy.Laplace(scales))
            for path, values, scales in zip(paths, symbols, levels, strict=True)
        }

    def _decode_one(self, data: bytes) -> Image:
        init = self._init_of(bitstream.peek(data))
        stream = decoding.unpack(data, self.tag, len(self.sections), init.digest)
        params = _decode_params(stream.sections[1], stream.sections[2], init)
        return decoding.reconstruct(init.net, params, stream.height, stream.width)

    def _init_of(self, stream: bitstream.Stream) -> Init:
        """The init that a stream names: this codec's own, or a packaged one."""
        decoding.check_sections(stream, self.tag, len(self.sections))
        return decoding.named_init(stream.sections[0], self.init)


def _two_parts(on_progress: OnProgress | None) -> tuple[OnProgress | None, OnProgress | None]:
    """Progress of a fit, and of a search after it, which takes less, in hundredths of percents."""
    if on_progress is None:
        return None, None

    def part(first: int, last: int) -> OnProgress:
        return lambda done, total: on_progress(first + (last - first) * done // total, 10_000)

    return part(0, 8_000), part(8_000, 10_000)


def _pack(image: Image, learned: Params, init: Init) -> bytes:
    """The stream of a fit: ``learned`` as `overfit.RatePlan` returns it."""
    tensors = coded_tensors(learned, init)
    flat = np.concatenate([tensor.symbols for tensor in tensors])
    steps = bytes(tensor.step for tensor in tensors)
    offsets = bytes(tensor.offset for tensor in tensors)
    grid = decoding.symbol_check(flat) + steps + offsets
    levels = np.concatenate([tensor.levels for tensor in tensors])
    payload = entropy.encode(flat, entropy.Laplace(levels))
    sections = [init.digest[: decoding.DIGEST_BYTES], grid, payload]
    height, width = image.shape[:2]
    return bitstream.pack(MetaSiren.tag, height, width, sections, init.digest)


class CodedTensor(NamedTuple):
    """What a file holds of a tensor. ``symbols`` (size,): int64; ``step``: index of the step size,
    see `quantize.step_size`; ``offset``: the byte that moves the envelope; ``levels`` (size,): of
    the symbols' scales, see `entropy.scale`."""

    symbols: np.ndarray
    step: int
    offset: int
    levels: np.ndarray


def coded_tensors(learned: Params, init: Init) -> list[CodedTensor]:
    """What `MetaSiren.pack` codes of a fit under an init, in the order of the leaves."""
    quantized = _quantize(learned, init)
    base = init.levels()
    tensors = []
    for (path, leaf), (_, step) in zip(
        trees.leaves(quantized.symbols), trees.leaves(quantized.grid), strict=True
    ):
        symbols, own = np.ravel(leaf).astype(np.int64), base[path].ravel()
        offset = best_offset(symbols, own)
        tensors.append(CodedTensor(symbols, int(step), offset, _levels(own, offset)))
    return tensors


def _flat(tensors: Sequence[CodedTensor]) -> list[np.ndarray]:
    """Symbols, step sizes, and scales in symbols, of each param: float32 (num_params,)."""
    steps = [np.full(len(t.symbols), quantize.step_size(t.step)) for t in tensors]
    scales = [entropy.scale(t.levels) for t in tensors]
    parts = [t.symbols for t in tensors], steps, scales
    return [np.concatenate(part).astype(np.float32) for part in parts]


def _on_grid(tensors: Sequence[CodedTensor], symbols: np.ndarray, init: Init) -> dict[str, Any]:
    """The net of other symbols (num_params,) than those of its tensors."""
    mean, (_, steps, _) = init.mean(), _flat(tensors)
    return trees.unravel(trees.ravel(mean) + symbols.astype(np.float64) * steps, mean)


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
    steps = grid[decoding.CHECK_BYTES : decoding.CHECK_BYTES + len(paths)]
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
    if len(grid) != decoding.CHECK_BYTES + 2 * len(paths):
        raise BitstreamError("the section 'grid' is damaged")
    offsets = grid[decoding.CHECK_BYTES + len(paths) :]
    levels = [_levels(base[p].ravel(), o) for p, o in zip(paths, offsets, strict=True)]
    flat = entropy.decode(payload, entropy.Laplace(np.concatenate(levels)), sum(map(len, levels)))
    decoding.require_symbols(flat, grid[: decoding.CHECK_BYTES])
    return np.split(flat, np.cumsum([len(part) for part in levels])[:-1]), levels


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
