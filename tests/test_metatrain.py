"""Learning an init: tasks from the right pixels, and a stopped run that ends like a whole one."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import photograph

from inrjax import metatrain, optimizers, trees
from inrjax.images import coordinates
from inrjax.init import Init, load_init, save_init

IMAGES = [photograph(24, 20), photograph(17, 31, seed=1), photograph(20, 24, seed=2)]
CONFIG = metatrain.MetaTrainConfig(
    width=4, num_steps=5, inner_steps=2, points=64, prior_images=2, prior_steps=4, rounds=2,
    round_images=8, round_steps=3,
)  # fmt: skip
MANY = [*IMAGES, *(photograph(20, 24, seed=seed) for seed in range(3, 8))]
"""As many as rounds need."""


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints at steps 2, 4 and 5."""
    monkeypatch.setattr(metatrain, "CHECKPOINT_STEPS", 2)


@pytest.fixture(scope="module")
def whole() -> Init:
    """The init of a run that nothing stopped, in chunks of two steps, without checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metatrain, "CHECKPOINT_STEPS", 2)
        return metatrain.train_init(CONFIG, IMAGES, info={"licence": "none"})


class Stop(Exception):
    """What a user's interruption looks like to `train_init`."""


def stop_at(step: int):
    """Raise after an outer step of MAML."""

    def on_progress(done: int, total: int) -> None:
        if outer_step(done, total) == step:
            raise Stop

    return on_progress


def outer_step(done: int, total: int) -> float:
    fits = CONFIG.prior_images * CONFIG.prior_steps  # three images are too few for rounds
    share = metatrain._OUTER_STEP * CONFIG.num_steps
    return done / total * (share + fits) / metatrain._OUTER_STEP


def same(one: Init, other: Init) -> bool:
    """Equal in what decoders use, by digest, and in the rates, by their bits."""
    rates = [trees.digest(init.rates or {}) for init in (one, other)]
    return one.digest == other.digest and rates[0] == rates[1]


def test_the_init_is_whole(whole: Init, tmp_path: Path) -> None:
    assert (whole.net.width, whole.net.depth, whole.net.num_features) == (4, 4, 50)
    assert whole.rates is not None
    assert {leaf.shape[0] for _, leaf in trees.leaves(whole.rates)} == {2}
    envelope = dict(trees.leaves(whole.envelope))
    assert envelope["layer_00/weight"].shape == (1, 50)  # a scale for each column
    assert all(leaf.size == 1 for path, leaf in envelope.items() if path != "layer_00/weight")
    assert whole.info["licence"] == "none"
    assert whole.info["num_images"] == 3
    config = whole.info["config"]  # what was done, not what was asked
    assert (config["num_steps"], config["rounds"], config["prior_images"]) == (5, 0, 2)
    save_init(tmp_path / "init.npz", whole)
    assert same(load_init(tmp_path / "init.npz"), whole)


@pytest.mark.parametrize("stops", [(2,), (2, 4), (5,)])
def test_a_stopped_run_ends_like_a_whole_one(whole: Init, tmp_path: Path, stops) -> None:
    for step in stops:
        with pytest.raises(Stop):
            metatrain.train_init(CONFIG, IMAGES, tmp_path, stop_at(step))
    assert same(metatrain.train_init(CONFIG, IMAGES, tmp_path), whole)


def test_a_kill_while_a_checkpoint_is_written_loses_only_that_one(
    whole: Init, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stop):
        metatrain.train_init(CONFIG, IMAGES, tmp_path, stop_at(4))
    # As a kill leaves it: the folder of step 4 under its temporary name, half its files missing.
    half = (tmp_path / "4").rename(tmp_path / "4.orbax-checkpoint-tmp")
    for path in sorted(path for path in half.rglob("*") if path.is_file())[::2]:
        path.unlink()
    seen: list[float] = []
    again = metatrain.train_init(
        CONFIG, IMAGES, tmp_path, lambda *part: seen.append(outer_step(*part))
    )
    assert seen[0] == 4  # from step 2
    assert same(again, whole)


def test_a_damaged_newest_checkpoint_costs_its_steps_alone(whole: Init, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        metatrain.train_init(CONFIG, IMAGES, tmp_path, stop_at(4))
    files = [path for path in (tmp_path / "4").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert same(metatrain.train_init(CONFIG, IMAGES, tmp_path), whole)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        metatrain.train_init(CONFIG, IMAGES, tmp_path, stop_at(2))
    with pytest.raises(ValueError, match="another run"):
        metatrain.train_init(replace(CONFIG, learning_rate=2e-3), IMAGES, tmp_path)
    with pytest.raises(ValueError, match="another run"):
        metatrain.train_init(CONFIG, IMAGES[:2], tmp_path)
    with pytest.raises(ValueError, match="another run"):
        metatrain.train_init(replace(CONFIG, width=5), IMAGES, tmp_path)


def test_progress_rises_to_a_fixed_total() -> None:
    calls: list[tuple[int, int]] = []
    metatrain.train_init(CONFIG, IMAGES, on_progress=lambda *call: calls.append(call))
    done = [done for done, _ in calls]
    assert done == sorted(done)
    assert len({total for _, total in calls}) == 1
    assert calls[-1][0] == calls[-1][1]


def test_divergence_is_a_value_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverged(config, method, net, mesh, num_steps, state, data):
        return state, np.array(False)

    monkeypatch.setattr(metatrain, "_advance", diverged)
    with pytest.raises(ValueError, match="diverged"):
        metatrain.train_init(CONFIG, IMAGES)


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        metatrain.train_init(CONFIG, [])


@pytest.mark.parametrize(
    "field",
    [
        "width", "num_steps", "inner_steps", "tasks_per_step", "points", "prior_images",
        "prior_steps", "round_images", "round_steps",
    ],
)  # fmt: skip
def test_a_count_of_zero_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        replace(CONFIG, **{field: 0})


def test_rounds_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="0 rounds or more"):
        replace(CONFIG, rounds=-1)


@pytest.mark.parametrize(
    "change",
    [
        {"round_images": 7}, {"slope": -0.1}, {"inner_rate": math.nan}, {"learning_rate": math.inf},
        {"rate_learning_rate": -1.0}, {"bias_scale": math.nan}, {"seed": -1}, {"seed": 1 << 32},
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        replace(CONFIG, **change)


def test_what_is_done_is_what_the_images_are_enough_for() -> None:
    done = metatrain.done_with(replace(CONFIG, round_images=48, prior_images=20), 9)
    assert (done.rounds, done.round_images, done.prior_images) == (2, 9, 9)
    assert metatrain.done_with(CONFIG, 7).rounds == 0
    assert metatrain.done_with(CONFIG, 100) == CONFIG


# ---------------------------------------------------------------------------- methods

SHORT = replace(CONFIG, num_steps=3)


@pytest.mark.parametrize(
    "method", [metatrain.FixedRateMaml(), metatrain.Reptile(optimizers.Adam(1e-3))], ids=str
)
def test_another_method_moves_the_params_and_resumes(method, tmp_path: Path) -> None:
    whole = metatrain.meta_train(SHORT, method, IMAGES)
    begun = dict(trees.leaves(metatrain.initial_params(SHORT, whole.net)))
    for path, leaf in trees.leaves(whole.params):
        assert np.isfinite(leaf).all()
        assert not np.array_equal(leaf, np.asarray(begun[path], np.float16))
    rates = [leaf for _, leaf in trees.leaves(whole.rates or {})]
    if isinstance(method, metatrain.Reptile):
        assert rates == []
    else:
        assert {len(leaf) for leaf in rates} == {2}
        assert all((leaf == np.float16(method.inner_rate)).all() for leaf in rates)
    assert same(metatrain.meta_train(SHORT, method, IMAGES, tmp_path), whole)
    assert same(metatrain.meta_train(SHORT, method, IMAGES, tmp_path), whole)  # nothing left to do
    with pytest.raises(ValueError, match="another run"):
        metatrain.meta_train(SHORT, replace(method), IMAGES[:2], tmp_path)
    other = metatrain.FixedRateMaml(inner_rate=0.01)
    with pytest.raises(ValueError, match="another run"):
        metatrain.meta_train(SHORT, other, IMAGES, tmp_path)


def test_meta_sgd_starts_with_one_rate_for_each_parameter() -> None:
    params = {"layer": {"weight": jnp.ones((3, 2)), "bias": jnp.zeros(3)}}
    state = metatrain.MetaSgd(inner_rate=0.02).start(params, 4)
    assert jax.tree.map(jnp.shape, state.rates) == {"layer": {"weight": (1, 3, 2), "bias": (1, 3)}}


def test_train_init_is_maml_then_the_prior_then_rounds(learned: Init, whole: Init) -> None:
    start = metatrain.meta_train(CONFIG, metatrain.Maml(), IMAGES)
    assert trees.digest(start.params) == trees.digest(whole.params)
    assert same(metatrain.learn_prior(CONFIG, start, IMAGES), whole)  # too few images for rounds
    refined = metatrain.train_init(CONFIG, MANY)
    assert same(metatrain.refine_prior(CONFIG, learned, MANY), refined)
    assert refined.digest != learned.digest and refined.net == learned.net
    assert trees.digest(refined.rates or {}) == trees.digest(learned.rates or {})
    for path, leaf in trees.leaves(refined.params):
        assert np.shape(dict(trees.leaves(refined.envelope))[path]) == leaf.shape
        assert dict(trees.leaves(refined.keep))[path] == 1


# ---------------------------------------------------------------------------- rounds


@pytest.fixture(scope="module")
def learned() -> Init:
    """What rounds begin with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metatrain, "CHECKPOINT_STEPS", 2)
        return metatrain.train_init(replace(CONFIG, rounds=0), MANY)


@pytest.fixture(scope="module")
def refined(learned: Init) -> Init:
    """What they end with."""
    return metatrain.refine_prior(CONFIG, learned, MANY)


def stop_once(name: str, calls: int, patch: pytest.MonkeyPatch) -> None:
    """Raise in a function of the module, once it has been called so often."""
    function, left = getattr(metatrain, name), [calls]

    def stopping(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        return function(*arguments)

    patch.setattr(metatrain, name, stopping)


@pytest.mark.parametrize("fits", [1, 2])
def test_a_training_that_is_stopped_in_a_round_goes_on(
    refined: Init, tmp_path: Path, fits: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_once("_prior_fits", fits, patch)  # the first are those of `learn_prior`
        with pytest.raises(Stop):
            metatrain.train_init(CONFIG, MANY, tmp_path)
    saved = [int(path.name) for path in (tmp_path / metatrain.ROUNDS_FOLDER).glob("*")]
    assert max(saved) == fits - 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metatrain, "_advance", None)  # there is nothing left to train
        patch.setattr(metatrain, "learn_prior", None)
        stop_once("_prior_fits", CONFIG.rounds - (fits - 1), patch)
        assert same(metatrain.train_init(CONFIG, MANY, tmp_path), refined)


def test_rounds_resume_and_go_on_to_more(learned: Init, refined: Init, tmp_path: Path) -> None:
    one = metatrain.refine_prior(replace(CONFIG, rounds=1), learned, MANY, tmp_path)
    assert one.digest != refined.digest
    assert (one.info["config"]["rounds"], one.info["config"]["round_images"]) == (1, 8)
    with pytest.MonkeyPatch.context() as patch:
        stop_once("_prior_fits", 1, patch)
        assert same(metatrain.refine_prior(CONFIG, learned, MANY, tmp_path), refined)
    calls: list[tuple[int, int]] = []
    again = metatrain.refine_prior(
        CONFIG, learned, MANY, tmp_path, lambda *call: calls.append(call)
    )
    assert same(again, refined) and len(calls) == 1 and calls[0][0] == calls[0][1]
    with pytest.raises(ValueError, match="of 2 rounds, 1 were asked for"):
        metatrain.refine_prior(replace(CONFIG, rounds=1), learned, MANY, tmp_path)
    for other in (replace(CONFIG, round_steps=4), replace(CONFIG, slope=0.2)):
        with pytest.raises(ValueError, match="another run"):
            metatrain.refine_prior(other, learned, MANY, tmp_path)
    for init in (refined, replace(learned, rates=None)):
        with pytest.raises(ValueError, match="another run"):
            metatrain.refine_prior(CONFIG, init, MANY, tmp_path)


@pytest.mark.parametrize("rounds", [0, 2])
def test_progress_of_rounds_rises_to_a_fixed_total(learned: Init, rounds: int) -> None:
    calls: list[tuple[int, int]] = []
    config = replace(CONFIG, rounds=rounds)
    for run in (
        lambda: metatrain.refine_prior(config, learned, MANY, None, lambda *c: calls.append(c)),
        lambda: metatrain.train_init(config, MANY, None, lambda *c: calls.append(c)),
    ):
        calls.clear()
        run()
        done = [done for done, _ in calls]
        assert done == sorted(done) and len({total for _, total in calls}) <= 1
        assert not calls or calls[-1][0] == calls[-1][1]
    assert calls


def test_no_round_leaves_the_init(learned: Init) -> None:
    assert metatrain.refine_prior(replace(CONFIG, rounds=0), learned, MANY) is learned


def test_rounds_refuse_what_they_cannot_learn_from(learned: Init) -> None:
    with pytest.raises(ValueError, match="7 images, expected at least 8"):
        metatrain.refine_prior(CONFIG, learned, MANY[:7])
    keep = {path: np.float32(0) for path, _ in trees.leaves(learned.keep)}
    with pytest.raises(ValueError, match="keep"):
        metatrain.refine_prior(CONFIG, replace(learned, keep=trees.from_leaves(keep)), MANY)


def test_a_fit_that_diverges_is_left_out_and_told(
    learned: Init, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_once = metatrain.overfit.fit_once
    bad = 1

    def fits(*arguments):
        results = fit_once(*arguments)
        return {i: r._replace(finite=r.finite and i >= bad) for i, r in results.items()}

    monkeypatch.setattr(metatrain.overfit, "fit_once", fits)
    config = replace(CONFIG, rounds=1)
    with pytest.warns(UserWarning, match="1 of 8 fits"), pytest.raises(ValueError, match="1 of 8"):
        metatrain.refine_prior(config, learned, MANY)
    nine = [*MANY, photograph(20, 24, seed=9)]
    with pytest.warns(UserWarning, match="1 of 9 fits"):
        metatrain.refine_prior(replace(config, round_images=9), learned, nine)
    bad = 8
    with pytest.raises(ValueError, match="every fit"):
        metatrain.refine_prior(config, learned, MANY)


def test_batches_of_bounded_size_end_as_one(
    learned: Init, refined: Init, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metatrain, "FIT_PIXELS", 600)  # one image at a time
    assert same(metatrain.refine_prior(CONFIG, learned, MANY), refined)


def test_a_round_moves_the_mean_to_that_of_the_fits_and_scales_to_their_distance(
    learned: Init, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    spreads = {p: np.exp(rng.normal(0, 1, np.shape(x))) for p, x in trees.leaves(learned.params)}

    def fits(config, init, images, num_steps, on_progress):
        signs = rng.choice([-1.0, 1.0], 400)
        return {path: 3 + np.multiply.outer(signs, spread) for path, spread in spreads.items()}

    monkeypatch.setattr(metatrain, "_prior_fits", fits)
    found = metatrain.refine_prior(replace(CONFIG, rounds=1), learned, MANY)
    levels = found.levels()
    for path, mean in trees.leaves(found.mean()):
        spread = spreads[path]
        assert (np.abs(mean - 3) < 0.2 * spread + 1e-2).all()
        # The columns of the first layer are groups, other tensors are one each.
        group = spread.mean(0, keepdims=True) if path == "layer_00/weight" else spread.mean()
        wanted = (400 * spread + 16 * group) / 416
        assert np.abs(levels[path] - 4 * np.log2(wanted)).max() < 0.6  # half a quarter octave


def test_rounds_see_other_images_while_there_are_any(
    learned: Init, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def fits(config, init, images, num_steps, on_progress):
        seen.extend(next(i for i, one in enumerate(MANY) if one is image) for image in images)
        return {path: np.asarray(x, np.float32)[None] for path, x in trees.leaves(init.params)}

    monkeypatch.setattr(metatrain, "_prior_fits", fits)
    monkeypatch.setattr(metatrain, "MIN_ROUND_IMAGES", 1)
    config = replace(CONFIG, rounds=8, round_images=1)
    found = metatrain.refine_prior(config, learned, MANY)
    assert sorted(seen) == [*range(8)]
    # Where every fit is the init itself, the mean stays.
    assert trees.digest(found.params) == trees.digest(learned.params)


# ---------------------------------------------------------------------------- tasks


@jax.jit
def draw(key: jax.Array):
    return metatrain._sample_tasks(CONFIG, metatrain._task_data(IMAGES, seed=0), key)


def test_tasks_pair_the_pixels_of_one_image_with_their_coordinates() -> None:
    data = metatrain._task_data(IMAGES, seed=0)
    assert data[0].shape == (3, 480, 2)  # of the smallest image
    found = [
        {
            tuple(row): tuple(pixel)
            for row, pixel in zip(
                coordinates(*image.shape[:2]), image.reshape(-1, 3).tolist(), strict=True
            )
        }
        for image in IMAGES
    ]
    seen = set()
    for seed in range(6):
        tasks = draw(jax.random.key(seed))
        assert tasks.inner[0].shape == (2, 2, 2, 64)  # tasks, inner steps, in_dim, points
        assert tasks.outer[1].shape == (2, 3, 64)
        for task in range(2):
            coords = np.concatenate([*tasks.inner[0][task], tasks.outer[0][task]], axis=1).T
            pixels = np.concatenate([*tasks.inner[1][task], tasks.outer[1][task]], axis=1).T
            levels = [tuple(pixel) for pixel in np.rint((pixels + 1) * 127.5).astype(int).tolist()]
            rows = [tuple(row) for row in coords]
            which = [
                i
                for i, image in enumerate(found)
                if all(image.get(r) == p for r, p in zip(rows, levels, strict=True))
            ]
            assert len(which) == 1
            seen.add(which[0])
            slices = [{*map(tuple, np.asarray(s).T)} for s in tasks.inner[0][task]]
            assert slices[0] != slices[1]
    assert len(seen) > 1


def test_tasks_depend_on_the_key_alone() -> None:
    one, again, other = (draw(jax.random.key(seed)) for seed in (0, 0, 1))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one.outer[0], other.outer[0])


def test_maml_starts_at_small_biases_and_the_stated_rates() -> None:
    net = metatrain.Siren(4, 2)
    params = metatrain.initial_params(CONFIG, net)
    state = metatrain.Maml().start(params, CONFIG.inner_steps)
    drawn = net.init(jax.random.key(CONFIG.seed))
    for name, layer in drawn.items():
        np.testing.assert_array_equal(state.params[name]["weight"], layer["weight"])
        np.testing.assert_allclose(state.params[name]["bias"], 0.3 * layer["bias"], rtol=1e-6)
    assert all(jnp.all(leaf == jnp.float32(0.03)) for leaf in jax.tree.leaves(state.rates))


def test_positions_are_spread_evenly() -> None:
    assert metatrain._spread(10, 4) == [0, 3, 6, 9]
    assert metatrain._spread(3, 8) == [0, 1, 2]
    assert metatrain._spread(1, 8) == [0]
