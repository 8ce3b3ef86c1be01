"""Codecs of Strümpler et al. 2022 (arXiv:2112.04267): "INRs for image compression".

A sine network with positional encoding is fitted with an L1 penalty; then its params, or their
distance from a meta-learned init, are rounded to few bits (AdaRound, then some quantisation-aware
steps) and coded under one table of counts, which the file holds. Encoding imports JAX when it is
called; decoding needs numpy and the range coder alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from inrjax import bitstream, decoding, entropy, quantize, trees
from inrjax.init import Init, find_init
from inrjax.nets.siren import Encoding, Siren
from inrjax.quantize import Quantized
from inrjax.types import BitstreamError, Image, OnProgress, Params

if TYPE_CHECKING:
    from inrjax.optimizers import Optimizer
    from inrjax.overfit import Gridded, Origin

_INITS = {
    16: "d6194b8f",
    24: "515d84ee",
    32: "0c40f620",
    48: "eb38c7be",
    64: "43cd32db",
    96: "e0102664",
}
WIDTHS = tuple(_INITS)
"""Of a rate curve that both codecs have; the paper's are 32, 48, 64 and 128."""

MAX_WIDTH = 512
"""Of `StrumplerBasic`: a file of a few bytes may not claim more."""

LEARNING_RATE = 5e-4
"""Adam's, as published."""

NUM_STEPS = 6000
POINTS_PER_STEP = 4096

_ROUNDING_RATE = 1e-3  # of Adam on AdaRound's variables, AIMET's
_RETRAINING_RATE = 1e-6
_WINDOW = 32  # steps whose mean loss judges a snapshot: about an epoch of a Kodak image
_NUM_LAYERS = 4
_ENCODING = Encoding(num_frequencies=16, ratio=1.4)


def learned_init(width: int) -> Init:
    """The packaged init of the paper's net (w0 = 30, 16 frequencies of ratio 1.4), learned by 2000
    steps of MAML; from 24 to 64 `MetaSiren` had it earlier. ValueError names the widths there
    are."""
    init = find_init(bytes.fromhex(_INITS[width])) if width in _INITS else None
    if init is None:
        raise ValueError(
            f"got width {width}, expected one that has a packaged init of this net "
            f"({', '.join(map(str, WIDTHS))}), or an init of your own"
        )
    return init


class _Strumpler(ABC):
    """What both codecs do: a fit, then AdaRound and retraining, from an origin of their own."""

    width: int
    num_bits: int
    num_steps: int
    seed: int
    optimizer: Optimizer | None
    points_per_step: int | None
    l1: float
    rounding_steps: int
    retraining_steps: int

    @property
    def setting(self) -> str:
        """``width=W_bits=B_steps=N``."""
        return f"width={self.width}_bits={self.num_bits}_steps={self.num_steps}"

    def encode(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[bytes]:
        """One stream for each uint8 (height, width, 3) image; ValueError for another array."""
        later = self.rounding_steps + self.retraining_steps
        first, others = _parts(on_progress, self.num_steps, later)
        coded = self.quantize(images, self.fit(images, first), others)
        return decoding.pack_each(self.pack, images, coded)

    def fit(self, images: Sequence[Image], on_progress: OnProgress | None = None) -> list[Params]:
        """The params fitted to each uint8 (height, width, 3) image, the same for any ``num_bits``;
        ValueError for another array."""
        return _fit(self, *self._origin(), images, on_progress)

    def quantize(
        self,
        images: Sequence[Image],
        fitted: Sequence[Params],
        on_progress: OnProgress | None = None,
    ) -> list[Quantized]:
        """What `pack` writes of params that were fitted to the images: AdaRound and retraining."""
        return _quantize(self, *self._origin(), images, fitted, on_progress)

    @abstractmethod
    def pack(self, image: Image, coded: Quantized) -> bytes:
        """The stream of an image of this size, of what `quantize` made of it."""

    @abstractmethod
    def _origin(self) -> tuple[Siren, Origin]:
        """The net, and where its fits start."""

    def _check_fields(self) -> None:
        if not 2 <= self.num_bits <= 8:
            raise ValueError(f"got num_bits {self.num_bits}, expected 2..8")
        decoding.check_at_least(self, num_steps=1, rounding_steps=0, retraining_steps=0, l1=0)
        decoding.check_points_per_step(self.points_per_step)


@dataclass(frozen=True, eq=False)
class StrumplerBasic(_Strumpler):
    """The paper's codec without meta-learning: from a random init, the params themselves coded.

    As published: ``num_steps=25_000, points_per_step=None,
    optimizer=optimizers.PlateauAdam(5e-4)``, widths 32, 48, 64 and 128, 8 bits. The defaults are a
    CPU's budget: pixel subsets, and what stands for the halving on a plateau there is a decay of
    Adam's published rate along a cosine. `overfit.RoundingPlan` says how AdaRound differs.

    Attributes:
      width: neurons of a layer, 1..512. num_bits: of a symbol, 2..8.
      num_steps: steps of the first fit. seed: of the random init and the pixel order.
      optimizer: of the first fit; None for Adam at 5e-4, decaying to 0.
      points_per_step: pixels a step sees, rounded up to whole tiles (`fit.tiling`); None for all.
      l1: weight of the L1 norm, for the mean squared error on [-1, 1].
      rounding_steps, retraining_steps: of AdaRound, and of the quantisation-aware training; 0
        leaves that one out.
    """

    width: int = 32
    num_bits: int = 8
    num_steps: int = NUM_STEPS
    seed: int = 0
    optimizer: Optimizer | None = None
    points_per_step: int | None = POINTS_PER_STEP
    l1: float = 1e-5
    rounding_steps: int = 1000
    retraining_steps: int = 300

    suffix: ClassVar[str] = ".inr"
    tag: ClassVar[int] = 3
    sections: ClassVar[tuple[str, ...]] = ("net", "grid", "counts", "symbols")

    def __post_init__(self):
        self._check_fields()
        if not 1 <= self.width <= MAX_WIDTH:
            raise ValueError(f"got width {self.width}, expected 1..{MAX_WIDTH}")

    @property
    def name(self) -> str:
        """``strumpler-basic``."""
        return "strumpler-basic"

    def _origin(self) -> tuple[Siren, Origin]:
        import jax

        from inrjax import overfit

        key_init, key = jax.random.split(jax.random.key(self.seed))
        net = _basic_net(self.width)
        params = jax.tree.map(np.asarray, overfit.random_params(net, key_init))
        zeros = jax.tree.map(np.zeros_like, params)
        return net, overfit.Origin(params, None, zeros, np.float32(self.l1), key)

    def pack(self, image: Image, coded: Quantized) -> bytes:
        """The stream of an image of this size whose params these are."""
        sections = [self.width.to_bytes(2, "little"), *_coded_sections(coded)]
        height, width = image.shape[:2]
        return bitstream.pack(self.tag, height, width, sections)

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images, of any width and bits; BitstreamError if bad."""
        return [self._decode_one(stream) for stream in streams]

    def context(self, stream: bitstream.Stream) -> bytes:
        """What the checksum covers beside the stream: nothing. BitstreamError for another tag."""
        decoding.check_sections(stream, self.tag, len(self.sections))
        return b""

    def _decode_one(self, data: bytes) -> Image:
        stream = decoding.unpack(data, self.tag, len(self.sections))
        head, *coded = stream.sections
        width = int.from_bytes(head, "little")
        if len(head) != 2 or not 1 <= width <= MAX_WIDTH:
            raise BitstreamError("the section 'net' is damaged")
        net = _basic_net(width)
        zeros = {path: np.zeros(shape, np.float32) for path, shape in trees.leaves(net.shapes())}
        params = _decoded_params(coded, trees.from_leaves(zeros))
        return decoding.reconstruct(net, params, stream.height, stream.width)


@dataclass(frozen=True, eq=False)
class StrumplerMeta(_Strumpler):
    """The paper's codec from a meta-learned init: inner steps first, the distance from it coded.

    As published: ``num_steps=25_000, points_per_step=None,
    optimizer=optimizers.PlateauAdam(5e-4, warmup=100)``, 7 bits, an init that was learned on DIV2K
    for 24,000 outer steps of whole images; the packaged ones are learned on less, and a picture in
    portrait format is not turned, as the paper does. What both sides share is the init file, named
    by the first bytes of its digest, and by all of it in the checksum; of its prior nothing is
    used. Otherwise as `StrumplerBasic`.

    Attributes:
      width: neurons of a layer; one of `WIDTHS`, or that of ``init``.
      init: a learned init; None for `learned_init` of this width.
      num_bits, num_steps, seed, optimizer, points_per_step, l1, rounding_steps, retraining_steps:
        as those of `StrumplerBasic`.
    """

    width: int = 32
    num_bits: int = 7
    num_steps: int = NUM_STEPS
    seed: int = 0
    init: Init | None = None
    optimizer: Optimizer | None = None
    points_per_step: int | None = POINTS_PER_STEP
    l1: float = 1e-5
    rounding_steps: int = 1000
    retraining_steps: int = 300

    suffix: ClassVar[str] = ".inr"
    tag: ClassVar[int] = 4
    sections: ClassVar[tuple[str, ...]] = ("init", "grid", "counts", "symbols")

    def __post_init__(self):
        self._check_fields()
        decoding.check_init(self.shared, self.width)

    @property
    def name(self) -> str:
        """``strumpler-meta``."""
        return "strumpler-meta"

    def _origin(self) -> tuple[Siren, Origin]:
        import jax

        from inrjax import overfit

        init = self.shared
        params, rates = _float32(init.params), _float32(init.rates) if init.rates else None
        key = jax.random.key(self.seed)
        return init.net, overfit.Origin(params, rates, params, np.float32(self.l1), key)

    def pack(self, image: Image, coded: Quantized) -> bytes:
        """The stream of an image of this size, the distance of whose params from the init is
        this."""
        digest = self.shared.digest
        sections = [digest[: decoding.DIGEST_BYTES], *_coded_sections(coded)]
        height, width = image.shape[:2]
        return bitstream.pack(self.tag, height, width, sections, digest)

    def decode(self, streams: Sequence[bytes]) -> list[Image]:
        """The uint8 (height, width, 3) images, of any init at hand; BitstreamError if bad."""
        return [self._decode_one(stream) for stream in streams]

    def context(self, stream: bitstream.Stream) -> bytes:
        """What the checksum covers beside the stream: the digest of the init that it names.

        Raises BitstreamError if the init is not known here, or for a stream of another codec.
        """
        return self._init_of(stream).digest

    @property
    def shared(self) -> Init:
        """What decoders have beside the files: ``init``, or the packaged one."""
        return self.init or learned_init(self.width)

    def _init_of(self, stream: bitstream.Stream) -> Init:
        decoding.check_sections(stream, self.tag, len(self.sections))
        return decoding.named_init(stream.sections[0], self.init)

    def _decode_one(self, data: bytes) -> Image:
        init = self._init_of(bitstream.peek(data))
        stream = decoding.unpack(data, self.tag, len(self.sections), init.digest)
        params = _decoded_params(stream.sections[1:], _float32(init.params))
        return decoding.reconstruct(init.net, params, stream.height, stream.width)


def _basic_net(width: int) -> Siren:
    return Siren(width, _NUM_LAYERS, encoding=_ENCODING)


def _float32(tree: Params) -> dict[str, Any]:
    return trees.from_leaves({p: np.asarray(leaf, np.float32) for p, leaf in trees.leaves(tree)})


# ---------------------------------------------------------------------------- three fits


def _fit(
    codec: _Strumpler,
    net: Siren,
    origin: Origin,
    batch: Sequence[Image],
    on_progress: OnProgress | None,
) -> list[Params]:
    """The params of each image, before any rounding."""
    from inrjax import optimizers, overfit

    decoding.check_images(batch)
    steps, window = codec.num_steps, _window(codec, codec.num_steps)
    fitting = overfit.Fitting(
        lambda optimizer, tiles: overfit.InitPlan(
            net, optimizer, steps, tiles, window, overfit.sparse_distortion
        ),
        codec.optimizer or optimizers.Adam(LEARNING_RATE, final=0.0),
        _points(codec),
        codec.seed,
    )
    return overfit.fit_images(batch, fitting, origin, on_progress)


def _quantize(
    codec: _Strumpler,
    net: Siren,
    origin: Origin,
    batch: Sequence[Image],
    fitted: Sequence[Params],
    on_progress: OnProgress | None,
) -> list[Quantized]:
    """The symbols and step indices of each image's distance from the origin's centre."""
    from inrjax import optimizers, overfit

    bits, counts = codec.num_bits, (codec.rounding_steps, codec.retraining_steps)
    reports = _parts(on_progress, *counts)
    deltas = [_difference(params, origin.centre) for params in fitted]
    grids = [quantize.choose_grid(delta, bits) for delta in deltas]
    left = origin._replace(params=None, rates=None)  # both codecs then share these programs
    lowest, highest = map(np.float32, quantize.symbol_range(bits))

    def gridded(i: int, points: Any) -> Gridded:
        return overfit.Gridded(points, deltas[i], _steps(grids[i]), (lowest, highest))

    def run(make_plan: Any, optimizer: Any, report: OnProgress | None) -> list[Params]:
        fitting = overfit.Fitting(make_plan, optimizer, _points(codec), codec.seed, gridded)
        return overfit.fit_images(batch, fitting, left, report)

    if codec.rounding_steps:
        learned = run(
            lambda optimizer, tiles: overfit.RoundingPlan(net, optimizer, counts[0], tiles),
            optimizers.Adam(_ROUNDING_RATE),
            reports[0],
        )
        deltas = [
            _softly_rounded(delta, grid, overfit.soft_roundings(v))
            for delta, grid, v in zip(deltas, grids, learned, strict=True)
        ]
    if codec.retraining_steps:
        deltas = run(
            lambda optimizer, tiles: overfit.RetrainingPlan(
                net, optimizer, counts[1], tiles, _window(codec, counts[1])
            ),
            optimizers.Adam(_RETRAINING_RATE),
            reports[1],
        )
    return [_rounded(delta, grid, bits) for delta, grid in zip(deltas, grids, strict=True)]


def _points(codec: _Strumpler) -> int:
    return codec.points_per_step or bitstream.MAX_PIXELS


def _window(codec: _Strumpler, num_steps: int) -> int:
    return max(1, min(_WINDOW, num_steps // 4)) if codec.points_per_step else 1


def _parts(
    on_progress: OnProgress | None, first: int, second: int
) -> tuple[OnProgress | None, OnProgress | None]:
    """Progress of two fits of so many steps, one after the other, in thousandths of a step."""
    if on_progress is None:
        return None, None

    def part(before: int, steps: int) -> OnProgress:
        return lambda done, whole: on_progress(
            1000 * before + 1000 * steps * done // whole, 1000 * (first + second)
        )

    return part(0, first), part(first, second)


def _by_path(function: Callable[..., Any], *all_trees: Mapping[str, Any]) -> dict[str, Any]:
    """``function`` of the leaves of equal trees."""
    columns = [dict(trees.leaves(tree)) for tree in all_trees]
    return trees.from_leaves({p: function(*(column[p] for column in columns)) for p in columns[0]})


def _difference(params: Params, centre: Params) -> dict[str, Any]:
    return _by_path(lambda leaf, origin: np.asarray(leaf, np.float32) - origin, params, centre)


def _steps(grid: Mapping[str, Any]) -> dict[str, Any]:
    return _by_path(lambda index: np.float32(quantize.step_size(index)), grid)


def _softly_rounded(
    delta: Params, grid: Mapping[str, Any], shares: Mapping[str, Any]
) -> dict[str, Any]:
    """The delta whose weights AdaRound moved: each between its two neighbours on the grid, a share
    of the way up, where the next fit may still move it across the middle."""
    steps = _steps(grid)

    def weight(name: str) -> np.ndarray:
        values, step = delta[name]["weight"], steps[name]["weight"]
        return step * (np.floor(values / step) + shares[name])

    return {name: {"bias": layer["bias"], "weight": weight(name)} for name, layer in delta.items()}


def _rounded(delta: Params, grid: Mapping[str, Any], num_bits: int) -> Quantized:
    symbols = _by_path(
        lambda leaf, step: quantize.clipped(np.asarray(leaf), step, num_bits), delta, _steps(grid)
    )
    return Quantized(symbols, grid)


# ---------------------------------------------------------------------------- sections


def _coded_sections(coded: Quantized) -> list[bytes]:
    """The sections ``grid``, ``counts`` and ``symbols``."""
    symbols = trees.ravel(coded.symbols)
    table = entropy.table_of(symbols)
    steps = bytes(int(index) for _, index in trees.leaves(coded.grid))
    return [
        decoding.symbol_check(symbols) + steps,
        entropy.pack_table(table),
        entropy.encode_pooled(symbols, table),
    ]


def _decoded_params(sections: Sequence[bytes], centre: Params) -> dict[str, Any]:
    """The params of the three sections, whose distance from ``centre`` (float32) is coded."""
    grid, counts, payload = sections
    paths = [path for path, _ in trees.leaves(centre)]
    if len(grid) != decoding.CHECK_BYTES + len(paths):
        raise BitstreamError("the section 'grid' is damaged")
    table = entropy.unpack_table(counts)
    symbols = entropy.decode_pooled(payload, table, trees.count(centre))
    decoding.require_symbols(symbols, grid[: decoding.CHECK_BYTES])
    indices = dict(zip(paths, grid[decoding.CHECK_BYTES :], strict=True))
    coded = Quantized(trees.unravel(symbols, centre), trees.from_leaves(indices))
    return _by_path(
        lambda leaf, delta: (leaf + delta).astype(np.float32), centre, quantize.dequantize(coded)
    )
