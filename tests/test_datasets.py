"""Named sets: which files, in which order; the split; the download, from a local server."""

import hashlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from inrjax import datasets, images

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the image sets are not on this machine"
)


@pytest.fixture
def root(tmp_path):
    """A data root with small files of the right names."""
    names = [f"kodak/{name}" for name in datasets.KODAK_SHA256]
    names += [f"cid22/{number}.webp" for number in range(60)]
    names += [
        f"bsds500/{part}/{number}.jpg" for part in ("train", "val", "test") for number in "21"
    ]
    names += ["clic2025_val/b.png", "clic2025_val/a.png", "clic2025_val/LICENSE"]
    for name in names:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "data"


def names(paths):
    return [path.name for path in paths]


def test_images_in_takes_images_only_sorted(tmp_path):
    for name in ("b.PNG", "a.jpeg", "c.tif", "notes.txt", ".hidden.png", "d.gif", "README"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert names(datasets.images_in(str(tmp_path))) == ["a.jpeg", "b.PNG", "c.tif"]


def test_images_in_refuses_files_and_folders_without_images(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds no image: put files ending in \.bmp, \.jpeg"):
        datasets.images_in(tmp_path)
    for wrong in (tmp_path / "notes.txt", tmp_path / "missing"):
        with pytest.raises(ValueError, match=f"{wrong.name} is not a folder"):
            datasets.images_in(wrong)


def test_every_suffix_is_one_that_the_loader_reads(tmp_path):
    image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    for suffix in images.SUFFIXES:
        PIL.Image.fromarray(image).save(tmp_path / f"image{suffix}")
    for path in datasets.images_in(tmp_path):
        assert images.read_image(path).image.shape == (3, 3, 3)


def test_root_is_the_argument_or_the_environment(root, tmp_path, monkeypatch):
    monkeypatch.delenv("INRJAX_DATA", raising=False)
    with pytest.raises(ValueError, match=r"export INRJAX_DATA=/path"):
        datasets.kodak()
    monkeypatch.setenv("INRJAX_DATA", str(root))
    assert datasets.kodak() == datasets.kodak(root) == datasets.kodak(str(root))
    with pytest.raises(ValueError, match="missing is not a folder"):
        datasets.kodak(tmp_path / "missing")
    monkeypatch.setenv("INRJAX_DATA", "")
    with pytest.raises(ValueError, match="no data folder given"):
        datasets.cid22()


def test_named_sets_are_sorted(root):
    assert names(datasets.kodak(root)) == [f"kodim{number:02d}.png" for number in range(1, 25)]
    assert names(datasets.clic2025_val(root)) == ["a.png", "b.png"]
    bsds500 = [str(path.relative_to(root)) for path in datasets.bsds500(root)]
    assert bsds500 == [f"bsds500/{p}/{n}.jpg" for p in ("train", "val", "test") for n in "12"]
    assert len(datasets.cid22(root)) == 60


def test_kodak_refuses_an_incomplete_set(root):
    (root / "kodak" / "kodim07.png").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of the 24 Kodak images, first kodim07\.png"):
        datasets.kodak(root)


def test_split_is_by_the_hash_of_the_name(root):
    train, held_back = datasets.cid22_train(root), datasets.cid22_held_back(root)
    assert sorted(train + held_back) == datasets.cid22(root)
    for path in datasets.cid22(root):
        remainder = int(hashlib.sha256(path.name.encode()).hexdigest(), 16) % 6
        assert path in (held_back if remainder == 0 else train)
    (root / "cid22" / "another.webp").write_bytes(b"x")
    assert set(held_back) <= set(datasets.cid22_held_back(root))


@needs_data
def test_split_of_the_real_set():
    train, held_back = datasets.cid22_train(SHARED), datasets.cid22_held_back(SHARED)
    assert (len(train), len(held_back)) == (143, 40)
    assert names(held_back)[:3] == ["1129482.webp", "1130683.webp", "1183021.webp"]


@needs_data
def test_real_kodak_files_are_the_published_ones():
    paths = datasets.kodak(SHARED)
    datasets.verify(paths)
    loaded = images.read_image(paths[0])
    assert loaded.image.shape == (512, 768, 3) and loaded.notes == ()


@needs_data
def test_real_sets_are_complete_and_readable():
    assert len(datasets.bsds500(SHARED)) == 500
    for paths in (datasets.cid22(SHARED)[:2], datasets.bsds500(SHARED)[:2]):
        for path in paths:
            assert images.read_image(path).image.ndim == 3
    large = images.read_image(datasets.clic2025_val(SHARED)[0])
    assert max(large.image.shape) == 2048 and large.notes == ()


def test_packaged_photographs_need_no_network(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    photographs = datasets.packaged()
    shapes = {name: image.shape for name, image in photographs.items()}
    assert shapes == {
        "astronaut": (512, 512, 3),
        "coffee": (400, 600, 3),
        "chelsea": (300, 451, 3),
    }
    for image in photographs.values():
        images.check_image(image)


def test_packaged_photographs_need_no_pooch():
    script = (
        "import sys; sys.modules['pooch'] = None\n"
        "from inrjax import datasets\n"
        "assert len(datasets.packaged()) == 3\n"
    )
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_verify_names_the_file(tmp_path):
    path = tmp_path / "kodim01.png"
    with pytest.raises(ValueError, match=r"kodim01\.png does not exist"):
        datasets.verify([path])
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match=r"kodim01\.png is not the published file"):
        datasets.verify([path])
    with pytest.raises(ValueError, match=r"unknown\.png has no known checksum"):
        datasets.verify([tmp_path / "unknown.png"])
    datasets.verify([path], {"kodim01.png": hashlib.sha256(b"other").hexdigest()})


# --- download -------------------------------------------------------------------------------------


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(root, monkeypatch):
    """Serves the small files of `root` where fetch_kodak looks, with their checksums."""
    checksums = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in datasets.kodak(root)
    }
    handler = partial(QuietHandler, directory=str(root / "kodak"))
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    monkeypatch.setattr(datasets, "KODAK_URL", f"http://127.0.0.1:{httpd.server_port}/")
    monkeypatch.setattr(datasets, "KODAK_SHA256", checksums)
    yield httpd
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def announced():
    """The messages that pooch's logger, which is not in the logging tree, lets through."""
    pooch = pytest.importorskip("pooch", reason="the download needs the extra `data`")
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    pooch.get_logger().addHandler(handler)
    yield messages
    pooch.get_logger().removeHandler(handler)


def test_fetch_downloads_checks_and_resumes(announced, server, root, tmp_path):
    folder = tmp_path / "new" / "data"
    paths = datasets.fetch_kodak(folder)
    assert paths == datasets.kodak(folder) and len(paths) == 24
    assert paths[3].read_bytes() == (root / "kodak" / "kodim04.png").read_bytes()
    paths[3].unlink()
    shutil.rmtree(root / "kodak")
    with pytest.raises(ValueError, match="could not be filled from"):
        datasets.fetch_kodak(folder)  # the one that is missing is asked for again
    paths[3].write_bytes(b"kodak/kodim04.png")
    assert datasets.fetch_kodak(folder) == paths  # all there: nothing is asked for
    assert announced == []


def test_fetch_refuses_another_file(announced, server, root, tmp_path):
    (root / "kodak" / "kodim02.png").write_bytes(b"a different picture")
    with pytest.raises(ValueError, match="could not be filled from"):
        datasets.fetch_kodak(tmp_path)
    assert sorted(names((tmp_path / "kodak").iterdir())) == ["kodim01.png"]


def test_fetch_without_network(announced, server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(ValueError, match="check the network and the folder") as caught:
        datasets.fetch_kodak(tmp_path)
    assert "\n" not in str(caught.value)
    assert announced == []


def test_fetch_into_a_file(announced, server, tmp_path):
    (tmp_path / "kodak").write_bytes(b"a file")
    with pytest.raises(ValueError, match="could not be filled"):
        datasets.fetch_kodak(tmp_path)


def test_fetch_without_pooch_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ValueError, match=r"pip install inrjax\[data\]"):
        datasets.fetch_kodak(tmp_path)
    assert list(tmp_path.iterdir()) == []
