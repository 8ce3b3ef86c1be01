"""Checkpoints: exact round trips, and damage that is noticed and never restored."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from inrjax import checkpoint, meta

# What orbax's threads cannot raise is an error here.
pytestmark = pytest.mark.filterwarnings(
    "error::pytest.PytestUnraisableExceptionWarning",
    "error::pytest.PytestUnhandledThreadExceptionWarning",
)

INPUTS = {"config": {"width": 8, "rate": 0.1}, "data": "ab" * 32}


def state_of(value: float, size: int = 400) -> meta.MetaState:
    """A state as meta-training has it: params, rates, moments, counts."""
    params = {"a": value + jnp.arange(size, dtype=jnp.float32), "b": jnp.full((2, 3), value)}
    state = meta.start(meta.init_meta(params, 2, 0.1), optax.adam(1e-3))
    return state._replace(step=jnp.asarray(int(value), jnp.int32))


def assert_same(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    for step in (1, 2):
        checkpoint.save(folder, step, state_of(step), INPUTS)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


def files_of(folder: Path, step: int) -> list[Path]:
    return sorted(path for path in (folder / str(step)).rglob("*") if path.is_file())


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def restored(folder: Path) -> tuple[checkpoint.Restored | None, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = checkpoint.restore(folder, state_of(0), INPUTS)
    return found, [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


def test_round_trip(saved: Path) -> None:
    found, messages = restored(saved)
    assert messages == []
    assert found is not None and found.step == 2
    assert_same(found.state, state_of(2))


def test_odd_leaves_round_trip(tmp_path: Path) -> None:
    state = {
        "half": np.float16([1.5, -0.0]),
        "brain": np.asarray(jnp.bfloat16([1.5, -0.0])),
        "empty": np.zeros((0, 3), np.float32),
        "columns": np.asfortranarray(np.float32([[1, 2], [3, 4]])),
        "integer": np.int64(7),
        "byte": np.arange(5, dtype=np.uint8),
        "scalar": np.float32(np.pi),
        "many": [np.float32([i]) for i in range(12)],
        "special": np.float32([np.nan, np.inf, -np.inf]),
        "truth": np.array([True, False]),
    }
    checkpoint.save(tmp_path, 5, state, {})
    found = checkpoint.restore(tmp_path, state, {})
    assert found is not None and found.step == 5
    assert_same(found.state, state)


def test_the_two_newest_are_kept(folder: Path) -> None:
    checkpoint.save(folder, 3, state_of(3), INPUTS)
    assert sorted(path.name for path in folder.iterdir() if path.name.isdigit()) == ["2", "3"]
    found, _ = restored(folder)
    assert found is not None and found.step == 3


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty"):
        assert restored(tmp_path / name) == (None, [])
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("size", [400, 7])
def test_other_inputs_are_refused(saved: Path, size: int) -> None:
    for inputs in ({}, INPUTS | {"data": "cd" * 32}, INPUTS | {"config": {"width": 16}}):
        with pytest.raises(ValueError, match="another run"):
            checkpoint.restore(saved, state_of(0, size), inputs)


def test_another_tree_with_other_inputs_is_refused_not_called_damaged(saved: Path) -> None:
    with pytest.raises(ValueError, match="another run"):
        checkpoint.restore(saved, {"x": jnp.zeros(3)}, {"other": "run"})


def test_the_order_of_inputs_does_not_matter(saved: Path) -> None:
    backwards = {name: INPUTS[name] for name in reversed(INPUTS)}
    assert checkpoint.restore(saved, state_of(0), backwards) is not None


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_flipped_byte_anywhere_is_never_restored(folder: Path, part: float) -> None:
    """In any file: the state comes back exact, or the one before with a warning, or an error."""
    fell_back = 0
    for path in files_of(folder, 2):
        whole = path.read_bytes()
        flip(path, int(part * (len(whole) - 1)))
        fell_back += check_damage(folder) == 1
        path.write_bytes(whole)
    assert fell_back >= 2


def check_damage(folder: Path) -> int:
    """The step restored, exactly as it was saved; one before the damaged with a warning."""
    found, messages = restored(folder)
    assert found is not None
    assert_same(found.state, state_of(found.step))
    assert (found.step == 1) == (messages != [])
    assert all("step 2 is damaged and is not used" in message for message in messages)
    return found.step


def test_bytes_flipped_at_random_are_never_restored(folder: Path) -> None:
    """Ten places in the note and in the largest file, whichever they are."""
    generator = np.random.default_rng(0)
    files = files_of(folder, 2)
    notes = [path for path in files if "note" in path.relative_to(folder / "2").parts]
    largest = max(files, key=lambda path: path.stat().st_size)
    assert notes
    steps = []
    for path in [*notes, largest]:
        whole = path.read_bytes()
        for position in generator.integers(0, max(1, len(whole)), 10 if whole else 0):
            flip(path, int(position))
            steps.append(check_damage(folder))
            path.write_bytes(whole)
    assert 1 in steps


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_missing_or_empty_file_is_never_restored(folder: Path, damage) -> None:
    fell_back = 0
    for path in files_of(folder, 2):
        whole = path.read_bytes()
        damage(path)
        found, messages = restored(folder)
        assert found is not None
        assert_same(found.state, state_of(found.step))
        if found.step == 1:
            assert len(messages) == 1 and "step 2" in messages[0]
        fell_back += found.step == 1
        path.write_bytes(whole)
    assert fell_back >= 2


def break_state(folder: Path, step: int) -> None:
    """Damage the largest data file of a step."""
    path = max(files_of(folder, step), key=lambda file: file.stat().st_size)
    flip(path, path.stat().st_size // 2)


def test_all_damaged_is_none_with_a_warning_each(folder: Path) -> None:
    for step in (1, 2):
        break_state(folder, step)
    found, messages = restored(folder)
    assert found is None
    assert ["step 2" in messages[0], "step 1" in messages[1]] == [True, True]


def test_an_empty_step_folder_is_passed_over(folder: Path) -> None:
    (folder / "9").mkdir()
    found, messages = restored(folder)
    assert found is not None and found.step == 2
    assert_same(found.state, state_of(2))
    assert len(messages) == 1 and "step 9 is damaged and is not used" in messages[0]


@pytest.mark.parametrize("damage", ["flipped", "emptied"])
def test_a_damaged_step_can_be_saved_again(folder: Path, damage: str) -> None:
    """What a resumed run does: it restores step 1 and reaches step 2 once more."""
    if damage == "flipped":
        break_state(folder, 2)
    else:
        shutil.rmtree(folder / "2")
        (folder / "2").mkdir()
    found, _ = restored(folder)
    assert found is not None and found.step == 1
    checkpoint.save(folder, 2, state_of(2), INPUTS)
    found, messages = restored(folder)
    assert found is not None and found.step == 2 and messages == []
    assert_same(found.state, state_of(2))


def test_a_damaged_newest_does_not_push_out_the_good(folder: Path) -> None:
    (folder / "9").mkdir()
    for step in (3, 4):
        checkpoint.save(folder, step, state_of(step), INPUTS)
    found, _ = restored(folder)
    assert found is not None and found.step == 4
    break_state(folder, 4)
    found, _ = restored(folder)
    assert found is not None and found.step == 3


# Versions


def test_another_version_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.inrjax, "__version__", "99.0")
    with pytest.raises(ValueError, match=r"checkpoints of inrjax .*, this is 99\.0: go on with"):
        checkpoint.restore(saved, state_of(0), INPUTS)


def test_another_jax_is_said(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.jax, "__version__", "99.0")
    found, messages = restored(saved)
    assert found is not None and found.step == 2
    assert len(messages) == 1 and "this is 99.0" in messages[0]


def test_a_note_of_the_earliest_version_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It named no version, and orbax's own handler wrote the arrays."""

    flat = checkpoint._flatten(state_of(2))
    note = {"inputs": checkpoint._canonical(INPUTS), "sha256": checkpoint._digest(flat)}
    items = {"state": ocp.args.StandardSave(flat), "note": ocp.args.JsonSave(note)}
    with checkpoint._manager(tmp_path) as manager:
        manager.save(2, args=ocp.args.Composite(**items))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.inrjax, "__version__", checkpoint._EARLIEST)
        found, messages = restored(tmp_path)
    assert found is not None and messages == []
    assert_same(found.state, state_of(2))
    monkeypatch.setattr(checkpoint.inrjax, "__version__", "99.0")
    with pytest.raises(ValueError, match=r"checkpoints of inrjax 0\.1\.0"):
        checkpoint.restore(tmp_path, state_of(0), INPUTS)
