"""Laws of learned inits: files that come back exactly or are refused, and the packaged ones."""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inrjax import init as init_module
from inrjax import trees
from inrjax.init import (
    Init,
    digest_name,
    find_init,
    flat_init,
    load_init,
    packaged_init,
    packaged_widths,
    save_init,
)
from inrjax.nets.siren import Encoding, Siren


def make_init(net: Siren, with_rates: bool = True) -> Init:
    """An init of random numbers, every part of it different from tensor to tensor."""
    rng = np.random.default_rng(0)
    shapes = dict(trees.leaves(net.shapes()))

    def tree(make):
        return trees.from_leaves({path: make(shape) for path, shape in shapes.items()})

    return Init(
        net=net,
        params=tree(lambda s: rng.normal(0, 0.1, s).astype(np.float16)),
        keep=tree(lambda s: np.float32(rng.uniform())),
        envelope=tree(lambda s: rng.integers(-40, -20, (*s[:-1], 1)).astype(np.int8)),
        rates=tree(lambda s: rng.uniform(0, 1, (3, *s)).astype(np.float16)) if with_rates else None,
        info={"command": "none", "steps": 3, "licence": "Ü"},
    )


NET = Siren(8, 4, encoding=Encoding(4))
TINY = Siren(2, 1)


def assert_equal_trees(first, second):
    a, b = dict(trees.leaves(first)), dict(trees.leaves(second))
    assert a.keys() == b.keys()
    for path in a:
        x, y = np.asarray(a[path]), np.asarray(b[path])
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("net", [NET, TINY, Siren(3, 2, w0=12.5, in_dim=3, out_dim=1)])
@pytest.mark.parametrize("with_rates", [True, False])
def test_save_and_load_are_exact(tmp_path, net, with_rates):
    init = make_init(net, with_rates)
    save_init(tmp_path / "a.npz", init)
    loaded = load_init(tmp_path / "a.npz")
    assert loaded.net == init.net
    assert loaded.info == init.info
    assert loaded.digest == init.digest
    assert len(loaded.digest) == 32
    for name in ("params", "keep", "envelope"):
        assert_equal_trees(getattr(loaded, name), getattr(init, name))
    assert (loaded.rates is None) == (not with_rates)
    if init.rates:
        assert_equal_trees(loaded.rates, init.rates)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def changed(tree, path, index):
    """The tree with the lowest bit of one number flipped."""
    pairs = {p: np.array(leaf) for p, leaf in trees.leaves(tree)}
    raw = pairs[path].reshape(-1).view(np.uint8)
    raw[index * pairs[path].itemsize] ^= 1
    return trees.from_leaves(pairs)


def test_the_digest_covers_what_a_decoder_uses_and_nothing_else():
    init = make_init(NET)
    digests = {init.digest, replace(init, net=replace(NET, w0=31.0)).digest}
    digests |= {
        replace(init, **{name: changed(getattr(init, name), "layer_02/weight", 0)}).digest
        for name in ("params", "keep", "envelope")
    }
    assert len(digests) == 5
    assert replace(init, rates=None, info={}).digest == init.digest


def test_the_digest_is_the_documented_one():
    init = make_init(TINY)
    spec = '{"depth": 1, "encoding": null, "in_dim": 2, "out_dim": 3, "w0": 30.0, "width": 2}'
    sha = hashlib.sha256(spec.encode())
    shapes = {"bias": ([2], [3]), "weight": ([2, 2], [3, 2])}
    for part, dtype in (("envelope", "|i1"), ("keep", "<f4"), ("params", "<f2")):
        for i in range(2):
            for name, both in shapes.items():
                shape = {"envelope": [*both[i][:-1], 1], "keep": [], "params": both[i]}[part]
                sha.update(f'["{part}/layer_0{i}/{name}", "{dtype}", {shape}]'.encode())
                sha.update(np.asarray(getattr(init, part)[f"layer_0{i}"][name], dtype).tobytes())
    assert init.digest == sha.digest()


def test_shared_bytes_are_the_arrays_of_a_decoder():
    init = make_init(NET)
    rows = sum(np.prod(np.shape(e)) for _, e in trees.leaves(init.envelope))
    assert init.shared_bytes == 2 * NET.num_params + 4 * 10 + rows


def test_mean_and_levels_are_the_prior_at_full_shape():
    init = make_init(NET)
    mean, levels = dict(trees.leaves(init.mean())), init.levels()
    keep, envelope = dict(trees.leaves(init.keep)), dict(trees.leaves(init.envelope))
    for path, leaf in trees.leaves(init.params):
        assert mean[path].dtype == np.float32
        np.testing.assert_array_equal(mean[path], keep[path] * leaf.astype(np.float32))
        assert levels[path].shape == leaf.shape
        np.testing.assert_array_equal(levels[path] - envelope[path], 0)


def test_a_flat_init_has_mean_zero_and_one_scale():
    init = flat_init(NET, make_init(NET).params)
    assert not np.any(trees.ravel(init.mean()))
    assert set(np.concatenate([x.ravel() for x in init.levels().values()])) == {-28}


@pytest.mark.parametrize("name", ["params", "keep", "envelope"])
def test_parts_that_do_not_fit_the_net_are_refused(name):
    init = make_init(NET)
    part = {p: leaf for p, leaf in trees.leaves(getattr(init, name)) if p != "layer_03/bias"}
    with pytest.raises(ValueError, match=name):
        replace(init, **{name: trees.from_leaves(part)})
    with pytest.raises(ValueError, match="expected"):
        replace(init, net=replace(NET, width=9))


# ---------------------------------------------------------------------------- bad files


@pytest.fixture
def refused(tmp_path) -> Callable[[bytes], bool]:
    """Whether bytes are refused as they should be; if not, they must hold the tiny init."""
    path = tmp_path / "x.npz"

    def check(data: bytes) -> bool:
        path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the zip reader, on names that are damaged
                loaded = load_init(path)
        except ValueError as error:
            assert "x.npz" in str(error)
            assert "\n" not in str(error)
            return True
        init = make_init(TINY)
        assert (loaded.digest, loaded.info) == (init.digest, init.info)
        assert_equal_trees(loaded.rates, init.rates)
        return False

    return check


@pytest.fixture
def saved(tmp_path) -> bytes:
    """The file of a tiny init."""
    save_init(tmp_path / "good.npz", make_init(TINY))
    return (tmp_path / "good.npz").read_bytes()


def test_a_flipped_byte_is_refused_or_changes_nothing(saved, refused):
    # Some bytes of a zip say nothing: dates, permissions. All others are refused.
    places = range(0, len(saved), 5)
    times = 0
    for i in places:
        damaged = bytearray(saved)
        damaged[i] ^= (1, 0xFF, 0x20)[i % 3]
        times += refused(bytes(damaged))
    assert times > len(places) / 2


def test_a_truncated_file_is_refused(saved, refused):
    for end in range(0, len(saved), 11):
        assert refused(saved[:end])


def rewritten(saved: bytes, **changes) -> bytes:
    """The file with members replaced: by arrays, or for the header by a function of its dict."""
    with np.load(io.BytesIO(saved)) as arrays:
        members = {name: arrays[name] for name in arrays.files}
    header = json.loads(str(members["header"]))
    if "header" in changes:
        header = changes.pop("header")(header)
    members |= {name.replace("__", "/"): value for name, value in changes.items()}
    members["header"] = np.array(json.dumps(header))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **members)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header | {"format": "inrjax-init-2"},
        lambda header: header | {"net": header["net"] | {"width": 3}},
        lambda header: header | {"net": header["net"] | {"w0": 29.0}},
        lambda header: header | {"net": header["net"] | {"what": 1}},
        lambda header: header | {"net": None},
        lambda header: header | {"digest": "00" * 32},
        lambda header: {k: v for k, v in header.items() if k != "digest"},
        lambda header: {k: v for k, v in header.items() if k != "net"},
        lambda header: [],
        lambda header: "text",
    ],
)
def test_a_header_that_does_not_fit_is_refused(saved, refused, change):
    assert refused(rewritten(saved, header=change))


@pytest.mark.parametrize("name", ["params", "keep", "envelope"])
def test_a_changed_number_is_refused(saved, refused, name):
    with np.load(io.BytesIO(saved)) as arrays:
        array = arrays[f"{name}/layer_00/bias"].copy()
    array.reshape(-1).view(np.uint8)[0] ^= 1
    assert refused(rewritten(saved, **{f"{name}__layer_00__bias": array}))


def test_a_part_that_is_no_tree_is_refused(saved, refused):
    with np.load(io.BytesIO(saved)) as arrays:
        members = {n: arrays[n] for n in arrays.files if not n.startswith("keep/")}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **members, keep=np.zeros(3))
    assert refused(buffer.getvalue())


@pytest.mark.parametrize("keep", [["rates/layer_00/bias"], []])
def test_lost_rates_are_refused(saved, refused, keep):
    """One wrong length in a zip's directory hides the members that come last."""
    with np.load(io.BytesIO(saved)) as arrays:
        names = [n for n in arrays.files if n in keep or not n.startswith("rates/")]
        members = {name: arrays[name] for name in names}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **members)
    assert refused(buffer.getvalue())


class Trap:
    """Unpickling it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_is_unpickled(saved, refused, tmp_path):
    trap = np.array([Trap(tmp_path / "sprung")], object)
    assert refused(rewritten(saved, params__layer_00__bias=trap))
    alone = io.BytesIO()
    np.save(alone, trap, allow_pickle=True)
    assert refused(alone.getvalue())
    assert not (tmp_path / "sprung").exists()


def test_other_files_are_refused_by_name(refused, tmp_path):
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    for data in (b"", b"text", b"PK\x03\x04", array.getvalue()):
        assert refused(data)
    for path in (tmp_path, tmp_path / "missing.npz"):
        with pytest.raises(ValueError, match=path.name):
            load_init(path)


def test_a_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "huge.npz"
    with path.open("wb") as file:
        file.truncate((1 << 26) + 1)
    with pytest.raises(ValueError, match="larger"):
        load_init(path)


# ---------------------------------------------------------------------------- packaged


@pytest.fixture
def widths() -> tuple[int, ...]:
    """The packaged widths; a package without any is broken."""
    assert packaged_widths(), "no init is packaged in inrjax/inits"
    return packaged_widths()


def test_packaged_inits_are_what_their_names_say(widths):
    assert list(widths) == sorted(set(widths))
    for width in widths:
        init = packaged_init(width)
        assert (init.net.width, init.net.depth) == (width, 4)
        assert init is packaged_init(width)
        assert all(0 <= keep <= 1 for _, keep in trees.leaves(init.keep))
        assert np.isfinite(trees.ravel(init.params).astype(np.float32)).all()
        assert init.rates is None or np.isfinite(trees.ravel(init.rates)).all()


def test_packaged_inits_say_how_they_were_made(widths):
    for width in widths:
        info = packaged_init(width).info
        assert {"command", "licence", "data", "data_sha256"} <= info.keys()
        if start := re.search("--start ([0-9a-f]{8})", info["command"]):
            found = find_init(bytes.fromhex(start[1]))
            assert found is not None and found.net.width == width
            assert info["start"]["digest"].startswith(start[1])
        else:
            assert str(width) in info["command"]
        assert "kodak" not in json.dumps(info).lower()


def test_packaged_inits_come_back_from_a_file_of_their_own(widths, tmp_path):
    for width in widths:
        save_init(tmp_path / "a.npz", packaged_init(width))
        assert load_init(tmp_path / "a.npz").digest == packaged_init(width).digest


def test_an_init_is_found_by_the_start_of_its_digest(widths):
    starts = {packaged_init(width).digest[:4] for width in widths}
    assert len(starts) == len(widths)
    for width in widths:
        assert find_init(packaged_init(width).digest[:4]) is packaged_init(width)
    unknown = next(n.to_bytes(4, "big") for n in range(100) if n.to_bytes(4, "big") not in starts)
    assert find_init(unknown) is None


@pytest.mark.parametrize("width", [0, -1, 31, 10_000])
def test_a_width_without_an_init_is_refused_with_those_that_have_one(width):
    with pytest.raises(ValueError, match=f"width {width}") as caught:
        packaged_init(width)
    for known in packaged_widths():
        assert str(known) in str(caught.value)


def test_no_init_is_found_where_none_is_packaged(monkeypatch):
    monkeypatch.setattr(init_module, "packaged_widths", lambda: ())
    assert find_init(b"\0\0\0\0") is None


def test_an_init_of_an_earlier_version_is_still_found(widths, tmp_path, monkeypatch):
    current = packaged_init(widths[0])
    keep = {path: np.float32(0.25) for path, _ in trees.leaves(current.keep)}
    old = replace(current, keep=trees.from_leaves(keep), rates=None)
    assert old.digest != current.digest
    folder = tmp_path / "inits"
    folder.mkdir()
    save_init(folder / digest_name(old), old)
    save_init(folder / f"siren_w{widths[0]:03d}.npz", current)
    monkeypatch.setattr(init_module.resources, "files", lambda _: tmp_path)
    assert packaged_widths() == widths[:1]
    found = find_init(old.digest[:4])
    assert found is not None and found.digest == old.digest
    assert find_init(bytes(byte ^ 255 for byte in old.digest[:4])) is None
