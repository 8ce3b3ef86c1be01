"""Nested dicts of arrays: vectors, batches, digests, and files written whole."""

import os
import stat
import threading

import numpy as np
import pytest

from inrjax import trees


def example(seed=0):
    generator = np.random.default_rng(seed)
    return {
        "layer_1": {"weight": generator.normal(size=(2, 5)), "bias": generator.normal(size=5)},
        "layer_0": {"weight": generator.normal(size=(3, 2)), "deep": {"scale": np.float64(2.5)}},
        "w0": generator.normal(size=(1, 1, 1)),
    }


def assert_equal(a, b):
    pairs_a, pairs_b = dict(trees.leaves(a)), dict(trees.leaves(b))
    assert list(pairs_a) == list(pairs_b)
    for path, leaf in pairs_a.items():
        assert np.shape(leaf) == np.shape(pairs_b[path])
        np.testing.assert_array_equal(leaf, pairs_b[path])


def test_leaves_come_sorted_whatever_the_order_of_insertion():
    tree = example()
    paths = [path for path, _ in trees.leaves(tree)]
    assert paths == [
        "layer_0/deep/scale",
        "layer_0/weight",
        "layer_1/bias",
        "layer_1/weight",
        "w0",
    ]
    backwards = {key: tree[key] for key in reversed(tree)}
    assert [path for path, _ in trees.leaves(backwards)] == paths


def test_leaves_are_in_jax_s_order():
    jax = pytest.importorskip("jax")
    tree = {"b": {"2": 1.0, "10": 2.0}, "a/x": 3.0, "a": {"z": 4.0}, "B": 5.0}
    assert [leaf for _, leaf in trees.leaves(tree)] == jax.tree.leaves(tree)


def test_from_leaves_inverts_leaves():
    tree = example()
    assert_equal(trees.from_leaves(dict(trees.leaves(tree))), tree)


def test_count():
    assert trees.count(example()) == 10 + 5 + 6 + 1 + 1
    assert trees.count({}) == 0


def test_ravel_joins_the_leaves_in_order_and_unravel_inverts_it():
    tree = example()
    vector = trees.ravel(tree)
    assert vector.shape == (trees.count(tree),)
    expected = [np.ravel(leaf) for _, leaf in trees.leaves(tree)]
    np.testing.assert_array_equal(vector, np.concatenate(expected))
    assert_equal(trees.unravel(vector, tree), tree)


def test_ravel_is_jax_s_ravel():
    pytest.importorskip("jax")
    from jax.flatten_util import ravel_pytree

    tree = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": {"c": np.float32([7, 8])}}
    np.testing.assert_array_equal(trees.ravel(tree), ravel_pytree(tree)[0])


@pytest.mark.parametrize("shape", [(22,), (24,), (0,), (1, 23), (23, 1)])
def test_unravel_refuses_another_length_or_shape(shape):
    with pytest.raises(ValueError, match=r"expected \(23,\)"):
        trees.unravel(np.zeros(shape), example())


def test_unstack_inverts_stack():
    batch = [example(seed) for seed in range(3)]
    stacked = trees.stack(batch)
    assert stacked["layer_1"]["weight"].shape == (3, 2, 5)
    assert stacked["layer_0"]["deep"]["scale"].shape == (3,)
    for tree, again in zip(batch, trees.unstack(stacked), strict=True):
        assert_equal(tree, again)


def test_digest_depends_on_content_alone():
    tree = example()
    reordered = {key: tree[key] for key in sorted(tree, reverse=True)}
    swapped = {
        path: np.asarray(leaf).astype(np.asarray(leaf).dtype.newbyteorder(">"))
        for path, leaf in trees.leaves(tree)
    }
    fortran = {path: np.asarray(leaf, order="F") for path, leaf in trees.leaves(tree)}
    assert len(trees.digest(tree)) == 32
    for same in (reordered, trees.from_leaves(swapped), trees.from_leaves(fortran)):
        assert trees.digest(same) == trees.digest(tree)


def test_digest_of_jax_arrays_is_that_of_numpy_arrays():
    jnp = pytest.importorskip("jax.numpy")
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert trees.digest({"a": jnp.asarray(array)}) == trees.digest({"a": array})


def test_digest_changes_with_everything_that_matters():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    flipped = array.copy()
    flipped.view(np.uint32)[1, 2] ^= 1
    trees_and_labels = [
        ({"a": array}, ""),
        ({"a": array}, "siren"),
        ({"b": array}, ""),
        ({"a": {"b": array}}, ""),
        ({"a": array.reshape(3, 2)}, ""),
        ({"a": array.T}, ""),
        ({"a": array.astype(np.float64)}, ""),
        ({"a": array.view(np.int32)}, ""),
        ({"a": flipped}, ""),
        ({"a": array[0], "b": array[1]}, ""),
        ({}, ""),
    ]
    digests = [trees.digest(tree, label) for tree, label in trees_and_labels]
    assert len(set(digests)) == len(digests)


def test_digest_tells_a_scalar_from_a_list_of_one():
    assert trees.digest({"a": np.float32(1)}) != trees.digest({"a": np.float32([1])})


def test_digest_is_fixed_for_ever():
    """Streams name their init by it: a change of `digest` would orphan every .inr file."""
    tree = {"b": {"x": np.float32([1.5, -2.0])}, "a": np.arange(3, dtype=np.int16)}
    assert (
        trees.digest(tree, "siren").hex()
        == "dc4fe556878f28d8dde5cc3dacb22a4a92b06ca718707c827f0b1873ee0e0142"
    )


def test_write_atomic_writes_and_replaces(tmp_path):
    path = tmp_path / "file.bin"
    trees.write_atomic(path, b"first")
    assert path.read_bytes() == b"first"
    trees.write_atomic(path, b"")
    assert path.read_bytes() == b""
    assert os.listdir(tmp_path) == ["file.bin"]


def test_write_atomic_gives_the_permissions_of_an_ordinary_file(tmp_path):
    trees.write_atomic(tmp_path / "atomic", b"x")
    (tmp_path / "ordinary").write_bytes(b"x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("atomic", "ordinary")]
    assert modes[0] == modes[1]


def test_write_atomic_leaves_nothing_behind_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        trees.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_write_atomic_refuses_a_missing_folder_and_a_folder(tmp_path):
    with pytest.raises(OSError):
        trees.write_atomic(tmp_path / "missing" / "file", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        trees.write_atomic(tmp_path / "folder", b"x")
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("letter", ["a", "é", "字"])
def test_write_atomic_takes_long_names(tmp_path, letter):
    name = letter * (250 // len(letter.encode()))
    trees.write_atomic(tmp_path / name, b"x")
    assert os.listdir(tmp_path) == [name]


def test_write_atomic_by_two_threads_leaves_one_whole_file(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([value]) * 100_000 for value in range(8)]
    threads = [threading.Thread(target=trees.write_atomic, args=(path, c)) for c in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["file"]


def test_an_npz_file_holds_its_header_and_arrays(tmp_path):
    pairs = dict(trees.leaves(example())) | {"counts": np.arange(6, dtype=np.int32)}
    (tmp_path / "a.npz").write_bytes(trees.to_npz({"format": "x", "of": [1, "ü"]}, pairs))
    data = trees.read_npz_file(tmp_path / "a.npz", "a tree", "its maker")
    header, back = trees.from_npz(data)
    assert header == {"format": "x", "of": [1, "ü"]}
    assert list(back) == list(pairs)
    for path, leaf in pairs.items():
        assert back[path].dtype == np.asarray(leaf).dtype
        np.testing.assert_array_equal(back[path], leaf)


def test_a_file_that_cannot_be_one_is_named_with_its_maker(tmp_path):
    with pytest.raises(ValueError, match=r"none is not a file: name a tree that `its maker` wrote"):
        trees.read_npz_file(tmp_path / "none", "a tree", "its maker")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(trees.MAX_NPZ_BYTES + 1)
    with pytest.raises(ValueError, match="large is not a tree: it is larger"):
        trees.read_npz_file(tmp_path / "large", "a tree", "its maker")
