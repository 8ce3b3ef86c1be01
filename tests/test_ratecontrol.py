"""Rate control: a target is met or refused, never exceeded, whatever a picture is like."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from importlib import resources
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from conftest import photograph
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from inrjax import codecs, metrics, ratecontrol
from inrjax.init import packaged_init
from inrjax.ratecontrol import MaxBytes, Measured, TargetBpp, TargetPsnr, UnreachableError

HEIGHT, WIDTH = 50, 80
MODEL = {
    width: ratecontrol.WidthModel(math.log2(100 * width), 20 + 1.6 * math.log2(width / 24))
    for width in (24, 32, 48, 64)
}


@dataclass(frozen=True, eq=False)
class FakeCodec:
    """Sizes and qualities by formula: a stream is its PSNR and padding up to its size."""

    width: int = 32
    num_steps: int = 1000
    search_steps: int = 0
    slope: float = 0.3
    init: Any = None
    octaves: float = 0.0
    """By which this picture's files are larger than typical ones."""
    db: float = 0.0
    elasticity: float = -0.31
    wobble: float = 0.0
    """Of the size, as refinements do not fall on a line."""
    spent: Any = None
    """A list: the steps of every fit."""

    def fit(self, images, on_progress=None):
        self._spend(self.num_steps)
        return [{"refined": 0.0}]

    def refine(self, image, learned, num_steps, on_progress=None):
        self._spend(num_steps)
        return {"refined": 1.0}

    def search(self, images, fitted, on_progress=None):
        return [{**learned, "searched": self.search_steps} for learned in fitted]

    def _spend(self, steps: int) -> None:
        if self.spent is not None:
            self.spent.append(steps)

    def pack(self, image, learned) -> bytes:
        turns = math.log2(self.slope / 0.3)
        octaves = self.octaves + self.elasticity * turns + self.wobble * math.sin(5 * turns)
        size = max(8, round(2 ** (MODEL[self.width].log2_bytes + octaves) / 4) * 4)
        psnr = MODEL[self.width].psnr + self.db - 0.52 * turns + 0.05 * learned["refined"]
        return np.float64(psnr).tobytes().ljust(size, b"\0")

    def decode(self, streams):
        return [stream[:8] for stream in streams]


@pytest.fixture(autouse=True)
def psnr_by_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """The PSNR that a `FakeCodec` says, where it has decoded, and the real one of pictures."""
    psnr = metrics.psnr

    def said(image: np.ndarray, image_hat: np.ndarray | bytes) -> float:
        if isinstance(image_hat, bytes):
            return float(np.frombuffer(image_hat)[0])
        return psnr(image, image_hat)

    monkeypatch.setattr(metrics, "psnr", said)


IMAGE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def encode(target: Any, codec: Any) -> Measured:
    return ratecontrol.encode_to(IMAGE, target, codec, MODEL)


pictures = st.builds(
    FakeCodec,
    octaves=st.floats(-0.4, 0.4),
    db=st.floats(-4, 8),
    elasticity=st.floats(-0.5, -0.2),
    wobble=st.floats(0, 0.03),
)


@settings(deadline=None)
@given(codec=pictures, num_bytes=st.integers(2400, 6400))
def test_a_target_in_bits_is_met(codec: FakeCodec, num_bytes: int) -> None:
    target = TargetBpp(metrics.bpp(num_bytes, HEIGHT, WIDTH))
    made = encode(target, codec)
    assert target.is_met(made)
    assert abs(made.num_bytes / num_bytes - 1) <= 0.02
    assert made.bpp == metrics.bpp(len(made.stream), HEIGHT, WIDTH)


@settings(deadline=None)
@given(codec=pictures, above=st.floats(-0.3, 2.5))
def test_a_target_in_db_is_met(codec: FakeCodec, above: float) -> None:
    wanted = MODEL[24].psnr + codec.db + above
    assert abs(encode(TargetPsnr(wanted), codec).psnr - wanted) <= 0.1


@settings(deadline=None)
@given(codec=pictures, limit=st.integers(500, 20_000))
def test_a_limit_is_never_exceeded_and_used_up(codec: FakeCodec, limit: int) -> None:
    try:
        made = encode(MaxBytes(limit), codec)
    except UnreachableError as error:
        assert error.nearest.num_bytes > limit
        smallest = replace(codec, width=24, slope=ratecontrol.SLOPES[1])
        assert len(smallest.pack(IMAGE, {"refined": 0.0})) > limit
        return
    assert made.num_bytes <= limit
    largest = len(replace(codec, width=64).pack(IMAGE, {"refined": 0.0}))
    assume(limit < largest)
    assert made.num_bytes >= 0.9 * limit


@pytest.mark.parametrize(
    "target", [TargetBpp(1e-3), TargetBpp(60.0), TargetPsnr(5.0), TargetPsnr(60.0), MaxBytes(10)]
)
def test_what_cannot_be_reached_is_refused_with_what_is_nearest(target: Any) -> None:
    with pytest.raises(UnreachableError, match=r"cannot be reached.*nearest file has \d+ bytes"):
        encode(target, FakeCodec())


def test_every_file_of_a_codec_that_searches_is_searched() -> None:
    """But those that a width is chosen by."""

    @dataclass(frozen=True)
    class Noting(FakeCodec):
        packed: Any = None

        def pack(self, image, learned) -> bytes:
            self.packed.append((self.num_steps, learned["searched"]))
            return super().pack(image, learned)

    packed: list[tuple[int, int]] = []
    encode(TargetPsnr(MODEL[32].psnr + 0.3), Noting(search_steps=7, packed=packed))
    assert {steps for steps, searched in packed if searched == 0} == {250}
    assert {steps for steps, searched in packed if searched == 7} == {1000}


@settings(deadline=None)
@given(codec=pictures, num_bytes=st.integers(2400, 6400))
def test_the_search_costs_few_fits(codec: FakeCodec, num_bytes: int) -> None:
    spent: list[int] = []
    encode(TargetBpp(metrics.bpp(num_bytes, HEIGHT, WIDTH)), replace(codec, spent=spent))
    assert sum(spent) <= 3 * codec.num_steps


def test_where_no_slope_of_a_width_is_enough_its_neighbour_is_tried() -> None:
    """A picture whose quality the slope hardly moves: only a wider net reaches the target."""

    class Stiff(FakeCodec):
        def pack(self, image, learned) -> bytes:
            plain = super().pack(image, learned)
            psnr = MODEL[self.width].psnr - 0.02 * math.log2(self.slope / 0.3)
            return np.float64(psnr).tobytes().ljust(len(plain), b"\0")

    between = (MODEL[32].psnr + MODEL[48].psnr) / 2
    for wanted in (between - 0.25, between + 0.25):
        with pytest.raises(UnreachableError):
            encode(TargetPsnr(wanted), Stiff())
    for width in (32, 48):
        assert (
            abs(encode(TargetPsnr(MODEL[width].psnr + 0.12), Stiff()).psnr - MODEL[width].psnr)
            < 0.25
        )
    spent: list[int] = []
    with pytest.raises(UnreachableError):
        encode(TargetPsnr(between), Stiff(spent=spent))
    assert spent.count(1000) >= 2  # both neighbours were fitted


class Steep(FakeCodec):
    """A picture whose quality the slope hardly moves up to the last of `ratecontrol.SLOPES`; beyond
    it falls, and after another half octave the picture falls apart."""

    def pack(self, image, learned) -> bytes:
        plain = super().pack(image, learned)
        beyond = max(0.0, math.log2(self.slope / ratecontrol.SLOPES[1]))
        psnr = MODEL[self.width].psnr - 4 * beyond if beyond < 0.5 else 5.0
        size = len(plain) if beyond < 0.5 else 8
        return np.float64(psnr).tobytes().ljust(size, b"\0")


@pytest.mark.parametrize("share", [0.15, 0.3, 0.5, 0.7, 0.85])
@pytest.mark.parametrize("widths", [(24, 32), (32, 48), (48, 64)])
def test_what_lies_between_two_widths_is_reached_by_a_steep_slope(
    widths: tuple[int, int], share: float
) -> None:
    low, high = (MODEL[width].psnr for width in widths)
    wanted = low + share * (high - low)
    spent: list[int] = []
    assert abs(encode(TargetPsnr(wanted), Steep(spent=spent)).psnr - wanted) <= 0.1
    assert spent.count(1000) <= 3  # no width but its two neighbours, and the one that was guessed


def test_less_than_the_smallest_width_gives_is_reached_by_a_steep_slope() -> None:
    wanted = MODEL[24].psnr - 1.5
    assert abs(encode(TargetPsnr(wanted), Steep()).psnr - wanted) <= 0.1
    with pytest.raises(UnreachableError):  # where the picture falls apart
        encode(TargetPsnr(MODEL[24].psnr - 3), Steep())


@dataclass(frozen=True, eq=False)
class WithInit(FakeCodec):
    """Of files as those of width 32, whatever its own; notes the width of every fit."""

    def fit(self, images, on_progress=None):
        self.spent.append(self.width)
        return [{"refined": 0.0}]

    def _spend(self, steps: int) -> None:
        pass

    def pack(self, image, learned) -> bytes:
        return replace(FakeCodec(), slope=self.slope, width=32).pack(image, learned)


@pytest.mark.parametrize("width", [40, 64])
@pytest.mark.parametrize("target", [TargetBpp(metrics.bpp(3500, HEIGHT, WIDTH)), TargetPsnr(20.8)])
def test_a_codec_with_an_init_keeps_its_width_in_the_model_or_not(width: int, target: Any) -> None:
    fitted: list[int] = []
    encode(target, WithInit(width=width, init=object(), spent=fitted))
    assert set(fitted) == {width}


@dataclass(frozen=True, eq=False)
class Perfect(FakeCodec):
    """Of a flat picture: PSNR is infinite up to a slope, and any number above."""

    up_to: float = math.inf

    def pack(self, image, learned) -> bytes:
        made = super().pack(image, learned)
        return np.float64(math.inf).tobytes() + made[8:] if self.slope <= self.up_to else made


def test_a_picture_that_every_net_shows_perfectly_has_no_lower_quality() -> None:
    with pytest.raises(UnreachableError):
        encode(TargetPsnr(28.0), Perfect())


@settings(deadline=None)
@given(up_to=st.floats(0.02, 1.0), wanted=st.floats(17, 24))
@example(up_to=0.82, wanted=19.9)
def test_a_quality_below_perfect_slopes_is_reached(up_to: float, wanted: float) -> None:
    # Refined files of a width at the slopes that are searched, and show less than all.
    best, worst = (0.05 - 0.52 * math.log2(slope / 0.3) for slope in (up_to, 1.2))
    assume(any(row.psnr + worst <= wanted < row.psnr + best for row in MODEL.values()))
    assert abs(encode(TargetPsnr(wanted), Perfect(up_to=up_to)).psnr - wanted) <= 0.1


def test_a_slope_of_0_is_a_place_to_start_from() -> None:
    target = TargetBpp(metrics.bpp(3500, HEIGHT, WIDTH))

    @dataclass(frozen=True, eq=False)
    class Free(FakeCodec):
        """At a slope of 0 as large as at the least that is searched."""

        def pack(self, image, learned) -> bytes:
            return FakeCodec.pack(replace(self, slope=max(self.slope, 0.02)), image, learned)

    assert target.is_met(encode(target, Free(slope=0.0)))


def test_of_several_files_that_meet_a_target_the_nearest_is_taken_and_no_other() -> None:
    """In octaves 10,202 bytes are nearer to 10,000 than 9,801 are, as a share they are not."""
    files = [Measured(bytes(size), size / 10_000, 30.0) for size in (10_202, 9_801, 9_805)]
    assert ratecontrol._best(files[:2], TargetBpp(1.0)) == files[1]
    assert ratecontrol._best(files, TargetBpp(1.0)) == files[2]
    with pytest.raises(UnreachableError, match="10202 bytes"):
        ratecontrol._best(files[:1], TargetBpp(1.0))


@settings(deadline=None)
@given(st.floats(-3, 3), st.floats(0.2, 5), st.floats(-0.9, 3))
def test_the_place_where_a_bent_curve_crosses_0_is_found_soon(
    zero: float, slope: float, bend: float
) -> None:
    def curve(x: float) -> float:
        at = (x - zero) / 8
        return -slope * (at + bend * at * abs(at))

    bracket = ratecontrol._FalsePosition(most=1.0)
    for end in (-4.0, 4.0):
        bracket.add(end, curve(end))
    assert bracket.is_closed
    for _ in range(16):
        at = bracket.next()
        assert -4 <= at <= 4
        if abs(curve(at)) < 1e-3:
            return
        bracket.add(at, curve(at))
    pytest.fail("16 places were not enough")


@pytest.mark.parametrize("make", [TargetBpp, TargetPsnr, MaxBytes])
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_a_target_that_means_nothing_is_refused(make: Any, value: float) -> None:
    with pytest.raises(ValueError, match="expected a number above 0"):
        make(value)


def test_the_packaged_model_is_of_the_packaged_widths_and_their_files_grow() -> None:
    model = ratecontrol.packaged_model()
    assert tuple(sorted(model)) == codecs.inr.WIDTHS
    sizes = [model[width].log2_bytes for width in sorted(model)]
    assert all(a < b for a, b in pairwise(sizes))
    # Short fits say less of wide nets: their PSNR need not rise to the last.
    assert min(model.values(), key=lambda row: row.psnr) == model[min(model)]


def test_the_packaged_model_was_measured_with_the_packaged_inits() -> None:
    path = resources.files("inrjax").joinpath("inits", ratecontrol.MODEL_FILE)
    inits = json.loads(path.read_text("utf-8"))["inits"]
    packaged = {str(w): packaged_init(w).short_digest for w in codecs.inr.WIDTHS}
    assert inits == packaged, "run experiments.width_model again"


def test_a_real_file_has_the_size_that_was_asked_for() -> None:
    image = photograph(64, 96)
    codec = codecs.MetaSiren(24, num_steps=60, points_per_step=2048)
    [plain] = codec.encode([image])
    model = {24: ratecontrol.packaged_model()[24]}
    made = ratecontrol.encode_to(image, MaxBytes(round(0.93 * len(plain))), codec, model)
    assert made.num_bytes <= 0.93 * len(plain)
    [image_hat] = codec.decode([made.stream])
    assert made.psnr == metrics.psnr(image, image_hat)


def test_a_picture_that_every_grid_shows_perfectly_has_no_lower_quality(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    perfect = Measured(bytes(25), 0.2, math.inf)
    monkeypatch.setattr(ratecontrol, "_measured_at", lambda codec, image, place: perfect)
    with pytest.raises(UnreachableError):
        ratecontrol.encode_grid_to(IMAGE, TargetPsnr(28.0), codecs.LatentGrid())


def test_real_files_of_latent_grids_have_the_size_that_was_asked_for() -> None:
    image = photograph(64, 96)
    codec = codecs.LatentGrid(30, iterations=4)
    [plain] = codec.encode([image])
    for share in (0.6, 1.4):
        target = TargetBpp(share * metrics.bpp(len(plain), 64, 96))
        made = ratecontrol.encode_grid_to(image, target, codec)
        assert abs(made.bpp / target.bpp - 1) <= 0.02
        [image_hat] = codec.decode([made.stream])
        assert made.psnr == metrics.psnr(image, image_hat)
    limit = MaxBytes(round(0.8 * len(plain)))
    assert ratecontrol.encode_grid_to(image, limit, codec).num_bytes <= limit.num_bytes
    with pytest.raises(UnreachableError):
        ratecontrol.encode_grid_to(image, MaxBytes(20), codec)
