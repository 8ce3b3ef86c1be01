"""Evaluation on real files: another process decodes, a kill loses a batch at most."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inrjax import evaluate as module
from inrjax import metrics, results
from inrjax.codecs.classic import Jpeg, WebP
from inrjax.evaluate import EvaluationError, decode_here, evaluate, safe_name, stream_path

ROOT = Path(__file__).parents[1]

# A codec that another process can import, which the tests put on the path. The first pixel of an
# image is an order: what to do wrong, and in which process.
TOY = """
import os
import signal
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Toy:
    step: int = 8
    seed: int | None = None
    suffix = ".toy"
    name = "toy"

    @property
    def setting(self):
        return f"step={self.step}"

    def encode(self, images, on_progress=None):
        orders = [int(image[0, 0, 0]) for image in images]
        if 101 in orders:
            raise ValueError("order 101: cannot encode this one")
        if 102 in orders:
            raise KeyError("order 102")
        if 103 in orders:
            os.kill(os.getpid(), signal.SIGKILL)
        if 104 in orders:
            return []
        for done in range(4):
            if on_progress:
                on_progress(done + 1, 4)
        return [self._stream(image) for image in images]

    def _stream(self, image):
        head = np.array([*image.shape, os.getpid()], "<i8").tobytes()
        return head + image.tobytes()

    def decode(self, streams):
        return [self._image(stream) for stream in streams]

    def _image(self, stream):
        height, width, depth, pid = np.frombuffer(stream[:32], "<i8")
        image = np.frombuffer(stream[32:], np.uint8).reshape(height, width, depth)
        order = image[0, 0, 0]
        print("noise on standard output", os.getpid())
        if order == 111:
            raise ValueError("order 111: cannot decode this one")
        if order == 112:
            print("Fatal: order 112", file=__import__("sys").stderr, flush=True)
            os._exit(3)
        if order == 113:
            return image[:-1]
        if order == 114:
            assert os.getpid() != pid, "decoded by the process that encoded"
        return image // self.step * self.step
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "toy_codec.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.delitem(sys.modules, "toy_codec", raising=False)
    import toy_codec  # pyright: ignore

    return toy_codec.Toy


def picture(order: int = 0, seed: int = 0, height: int = 12, width: int = 13) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 100, (height, width, 3), np.uint8)
    image[0, 0, 0] = order
    return image


def test_rows_say_what_the_files_hold(toy, tmp_path):
    images = {"b": picture(seed=1), "a": picture(seed=2, height=17)}
    codecs = [toy(8, seed=5), Jpeg(30, optimize=True)]
    rows = evaluate(codecs, images, tmp_path / "run", batch_size=2)
    assert [(row.codec, row.image) for row in rows] == [
        ("toy", "b"),
        ("toy", "a"),
        ("jpeg-optimized", "b"),
        ("jpeg-optimized", "a"),
    ]
    for row in rows:
        codec = codecs[0] if row.codec == "toy" else codecs[1]
        image = images[row.image]
        stream = stream_path(tmp_path / "run", codec, row.image).read_bytes()
        [image_hat] = codec.decode([stream])
        assert row.num_bytes == len(stream) and row.bpp == 8 * len(stream) / image[..., 0].size
        assert (row.height, row.width) == image.shape[:2]
        assert row.digest == hashlib.sha256(stream).hexdigest()
        assert row.psnr == metrics.psnr(image, image_hat)
        assert row.psnr_y == metrics.psnr_y(image, image_hat)
        assert row.psnr_ycbcr == metrics.psnr_ycbcr(image, image_hat)
        assert row.ssim == metrics.ssim(image, image_hat) and row.ms_ssim is None
        assert row.encode_seconds > 0 and row.decode_seconds > 0 and row.batch_size == 2
    assert [row.seed for row in rows] == [5, 5, None, None]
    assert results.read_rows(tmp_path / "run" / "rows.csv") == rows


def test_similarities_by_size(tmp_path):
    images = {"tiny": picture(height=1, width=1), "large": picture(height=161, width=170)}
    tiny, large = evaluate([Jpeg(30, optimize=True)], images, tmp_path, batch_size=9)
    assert tiny.ssim is None and tiny.ms_ssim is None
    assert 0 < large.ssim <= 1 and large.ms_ssim is not None and 0 < large.ms_ssim <= 1


def test_files_are_decoded_in_another_process(toy, tmp_path):
    images = {"a": picture(114)}
    [row] = evaluate([toy(1)], images, tmp_path / "there", batch_size=1)
    assert row.psnr == math.inf
    with pytest.raises(EvaluationError, match="process that encoded"):
        evaluate([toy(1)], images, tmp_path / "here", batch_size=1, decode=decode_here)


def test_both_decoders_give_the_same_rows(tmp_path):
    images = {"a": picture(seed=1), "b": picture(seed=2)}
    codecs = [Jpeg(30, optimize=False), WebP(30)]
    there = evaluate(codecs, images, tmp_path / "there", batch_size=1)
    here = evaluate(codecs, images, tmp_path / "here", batch_size=1, decode=decode_here)

    def timeless(rows):
        return [replace(row, encode_seconds=0, decode_seconds=0) for row in rows]

    assert timeless(there) == timeless(here)


@pytest.mark.parametrize(
    "order, reason",
    [
        (101, "order 101: cannot encode this one"),
        (102, "KeyError: 'order 102'"),
        (104, "gave 0 streams for 1 images"),
        (111, "order 111: cannot decode this one"),
        (112, "the decoding process died: Fatal: order 112"),
        (113, r"decoded to uint8 \(11, 13, 3\), expected uint8 \(12, 13, 3\)"),
    ],
)
def test_one_bad_image_is_named_and_loses_no_other(toy, tmp_path, order, reason):
    images = {"a": picture(seed=1), "bad": picture(order), "c": picture(seed=3)}
    table = tmp_path / "run" / "rows.csv"
    with pytest.raises(EvaluationError, match=reason) as caught:
        evaluate([toy(8), Jpeg(30, optimize=True)], images, tmp_path / "run", batch_size=3)
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message and str(table) in message
    [failure] = caught.value.failures
    assert (failure.codec, failure.setting, failure.image) == ("toy", "step=8", "bad")
    kept = [(row.codec, row.image) for row in results.read_rows(table)]
    assert sorted(kept) == sorted(
        [("toy", "a"), ("toy", "c")] + [("jpeg-optimized", name) for name in images]
    )


def test_a_second_call_measures_only_what_is_missing(toy, tmp_path):
    images = {"a": picture(seed=1), "b": picture(seed=2), "c": picture(seed=3)}
    first = evaluate([toy(8)], {"b": images["b"]}, tmp_path / "run", batch_size=1)
    rows = evaluate([toy(8), toy(16)], images, tmp_path / "run", batch_size=2)
    assert rows[1] == first[0]  # its seconds too: it is the same measurement
    assert evaluate([toy(8), toy(16)], images, tmp_path / "run", batch_size=1) == rows
    assert len(results.read_rows(tmp_path / "run" / "rows.csv")) == 6
    # A call for less returns less, and keeps the rest in the table.
    assert evaluate([toy(16)], {"c": images["c"]}, tmp_path / "run", batch_size=1) == rows[5:]
    assert len(results.read_rows(tmp_path / "run" / "rows.csv")) == 6


@pytest.mark.parametrize("change", ["stream", "missing", "pixels", "seed", "row twice"])
def test_what_is_stale_is_measured_anew(toy, tmp_path, change):
    folder = tmp_path / "run"
    images = {"a": picture(seed=1), "b": picture(seed=2)}
    codec = toy(8, seed=0)
    before = evaluate([codec], images, folder, batch_size=2)
    path = stream_path(folder, codec, "a")
    if change == "stream":
        path.write_bytes(path.read_bytes() + b"x")
    elif change == "missing":
        path.unlink()
    elif change == "pixels":
        images["a"] = picture(seed=9)
    elif change == "seed":
        codec = toy(8, seed=1)
    else:
        results.append_rows(folder / "rows.csv", [before[0]])
    after = evaluate([codec], images, folder, batch_size=2)
    assert results.read_rows(folder / "rows.csv")[::-1] in (after, after[::-1])
    assert (after[1] == before[1]) == (change != "seed")
    assert (after[0] == before[0]) == (change == "row twice")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == after[0].digest


def test_a_killed_evaluation_loses_at_most_the_current_batch(toy, tmp_path):
    folder = tmp_path / "run"
    program = f"""
import sys; sys.path[:0] = {[str(ROOT), str(ROOT / "tests"), str(tmp_path / "modules")]!r}
from pathlib import Path
from toy_codec import Toy
from test_evaluate import picture
from inrjax.evaluate import evaluate
images = {{str(i): picture(103 if i == 5 else 0, seed=i) for i in range(6)}}
evaluate([Toy(8)], images, Path({str(folder)!r}), batch_size=2)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    rows = results.read_rows(folder / "rows.csv")
    assert [row.image for row in rows] == ["0", "1", "2", "3"]
    images = {str(i): picture(0, seed=i) for i in range(6)}
    assert evaluate([toy(8)], images, folder, batch_size=2)[:4] == rows


# Every call of encode leaves a line in encodes.log. Encoding and decoding take a while, so that a
# kill finds either under way.
SLOW = """
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np


def pictures():
    generator = np.random.default_rng(0)
    return {str(i): generator.integers(0, 256, (9, 9, 3), np.uint8) for i in range(8)}


@dataclass(frozen=True, eq=False)
class Slow:
    step: int
    suffix = ".slow"
    name = "slow"

    @property
    def setting(self):
        return f"step={self.step}"

    def encode(self, images, on_progress=None):
        with open(Path(__file__).parent / "encodes.log", "a") as log:
            log.write(f"{self.step} {len(images)}\\n")
        time.sleep(0.03)
        return [np.array(im.shape, "<i8").tobytes() + (im // self.step).tobytes() for im in images]

    def decode(self, streams):
        time.sleep(0.03)
        return [
            np.frombuffer(s[24:], np.uint8).reshape(np.frombuffer(s[:24], "<i8")) * self.step
            for s in streams
        ]
"""


def left_behind(folder):
    """Files that only a killed writer leaves."""
    return [path for path in folder.rglob(".*") if path.is_file()]


def test_kills_at_random_moments_lose_an_image_each_and_double_no_row(tmp_path, monkeypatch):
    """SIGKILL while it encodes, decodes, measures or writes; the same call goes on from there."""
    modules, folder = tmp_path / "modules", tmp_path / "run"
    modules.mkdir()
    (modules / "slow_codec.py").write_text(SLOW)
    program = f"""
import sys; sys.path[:0] = {[str(ROOT), str(ROOT / "tests"), str(modules)]!r}
from pathlib import Path
from slow_codec import Slow, pictures
from inrjax.evaluate import evaluate
say = lambda *_: print("on", flush=True)
evaluate([Slow(2), Slow(4)], pictures(), Path({str(folder)!r}), batch_size=1, on_progress=say)
"""
    generator = np.random.default_rng(0)
    kept, num_kills = [], 0
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        for _ in range(generator.integers(1, 6)):  # a line as it begins, and one for each image
            process.stdout.readline()
        time.sleep(generator.uniform(0, 0.15))
        process.kill()
        num_kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
        table = folder / "rows.csv"
        rows = results.read_rows(table) if table.exists() else []
        assert rows[: len(kept)] == kept  # what was there stays, seconds and all
        assert len({(row.setting, row.image) for row in rows}) == len(rows)
        kept = rows
    assert num_kills >= 2 and len(kept) > 0

    monkeypatch.syspath_prepend(str(modules))
    import slow_codec  # pyright: ignore

    images, codecs = slow_codec.pictures(), [slow_codec.Slow(2), slow_codec.Slow(4)]
    (folder / "streams" / "slow" / "step=2").mkdir(parents=True, exist_ok=True)
    for name in ("streams/slow/step=2/.0.slow.x", ".rows.csv.x", ".images.json.x"):
        (folder / name).write_text("half")  # as a kill inside a write leaves it
    rows = evaluate(codecs, images, folder, batch_size=1)
    assert rows[: len(kept)] == kept and results.read_rows(folder / "rows.csv") == rows
    assert len(rows) == 16 and not left_behind(folder)
    encodes = (modules / "encodes.log").read_text().splitlines()
    assert 16 <= len(encodes) <= 16 + num_kills  # a kill costs the current image at most

    whole = evaluate(codecs, images, tmp_path / "whole", batch_size=1)
    seconds = {"encode_seconds": 0.0, "decode_seconds": 0.0}
    assert [replace(row, **seconds) for row in rows] == [replace(row, **seconds) for row in whole]
    for row in rows:
        stream = folder / "streams" / "slow" / row.setting / f"{row.image}.slow"
        assert hashlib.sha256(stream.read_bytes()).hexdigest() == row.digest


def test_the_decoding_process_of_a_killed_evaluation_ends_and_leaves_nothing(toy, tmp_path):
    """Its requester is gone: standard input ends, and the decoded images are deleted."""
    path = stream_path(tmp_path, toy(8), "a")
    path.parent.mkdir(parents=True)
    path.write_bytes(toy(8).encode([picture()])[0])
    decoded = tmp_path / "decoded"
    decoded.mkdir()
    worker = module._Worker()
    worker._start()
    process = worker._process
    assert process is not None and process.stdin is not None
    request = ([str(path)], str(decoded), module._pickled(toy(8)))
    worker._ask(pickle.dumps(request))
    assert list(decoded.iterdir())
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    assert not decoded.exists()
    worker._process = None


def test_progress_counts_hundredths_and_an_interrupt_passes(toy, tmp_path):
    images = {"a": picture(seed=1), "b": picture(seed=2), "c": picture(seed=3)}
    calls = []
    evaluate(
        [toy(8)], images, tmp_path / "run", batch_size=2, on_progress=lambda *c: calls.append(c)
    )
    assert calls[0] == (0, 300) and calls[-1] == (300, 300)
    assert calls == sorted(calls) and (50, 300) in calls

    class Stop(Exception):
        pass

    def stop(done, total):
        if done > 200:
            raise Stop("enough")

    with pytest.raises(Stop, match="enough"):
        evaluate([toy(4)], images, tmp_path / "run", batch_size=1, on_progress=stop)
    kept = results.read_rows(tmp_path / "run" / "rows.csv")
    assert [row.image for row in kept if row.setting == "step=4"] == ["a", "b"]


@dataclass(frozen=True, eq=False)
class Notebook(Jpeg):
    """Stands for a class of a notebook: its module is __main__, and no other process has it."""


def test_a_codec_that_no_process_can_import_is_said_before_any_work(tmp_path, monkeypatch):
    images = {"a": picture()}

    @dataclass(frozen=True, eq=False)
    class Local(Jpeg):
        pass

    monkeypatch.setattr(Notebook, "__module__", "__main__")
    for codec in (Local(30, optimize=True), Notebook(30, optimize=True)):
        with pytest.raises(ValueError, match="decode=decode_here"):
            evaluate([codec], images, tmp_path, batch_size=1)
        assert not (tmp_path / "streams").exists()
    assert evaluate([codec], images, tmp_path, batch_size=1, decode=decode_here)


def test_a_codec_that_the_other_process_cannot_import_is_said(toy, tmp_path):
    codec = toy(8)
    (tmp_path / "modules" / "toy_codec.py").unlink()
    with pytest.raises(ValueError, match=r"cannot use the codec toy .*ModuleNotFoundError"):
        evaluate([codec], {"a": picture()}, tmp_path / "run", batch_size=1)


def test_a_process_that_does_not_start_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    with pytest.raises(ValueError, match=r"did not start .*decode_here"):
        evaluate([Jpeg(30, optimize=True)], {"a": picture()}, tmp_path / "run", batch_size=1)


def test_the_decoding_process_ends_with_the_evaluation(toy, tmp_path):
    with module.decode_in_process() as decode:
        path = stream_path(tmp_path, toy(8), "a")
        path.parent.mkdir(parents=True)
        path.write_bytes(toy(8).encode([picture()])[0])
        assert decode(toy(8), [path])[0].error is None
        worker = decode.__self__
        pid = worker._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_modules_in_the_working_directory_do_not_shadow(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry] + [str(ROOT)])
    assert evaluate([Jpeg(30, optimize=True)], {"a": picture()}, Path("run"), batch_size=1)


@pytest.mark.parametrize(
    "name", ["../../escape", "/etc/passwd", "a/b", "..", ".", "", "x" * 300, "a\nb", "\udc80", "C:"]
)
def test_any_image_name_stays_inside_the_folder(tmp_path, name):
    [row] = evaluate([Jpeg(30, optimize=True)], {name: picture()}, tmp_path, batch_size=1)
    assert row.image == name
    [path] = (tmp_path / "streams").rglob("*.jpg")
    assert path.parent == tmp_path / "streams" / "jpeg-optimized" / "quality=30"
    assert results.read_rows(tmp_path / "rows.csv") == [row]
    assert evaluate([Jpeg(30, optimize=True)], {name: picture()}, tmp_path, batch_size=1) == [row]


@settings(max_examples=300)
@given(text=st.text(), other=st.text())
def test_safe_names_are_safe_and_distinct(text, other):
    name = safe_name(text)
    assert name.isascii() and 0 < len(name) <= 80
    assert not set(name) & set('/\\:*?"<>|\0 ') and not name.startswith(".")
    assert (name == safe_name(other)) == (text == other)
    assert safe_name("kodim01") == "kodim01"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"codecs": []}, "expected some"),
        ({"images": {}}, "expected some"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"images": {"a": np.zeros((4, 4), np.uint8)}}, "image a has"),
        ({"images": {"a": np.zeros((4, 4, 3), np.float32)}}, "image a has"),
        ({"images": {"a": picture(), "A": picture()}}, "two images have the name A"),
        ({"codecs": [WebP(3), WebP(3)]}, "two codecs have the name webp"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(tmp_path, change, message):
    arguments = {"codecs": [WebP(3)], "images": {"a": picture()}, "batch_size": 1} | change
    with pytest.raises(ValueError, match=message):
        evaluate(folder=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_used_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot make the folder"):
        evaluate([WebP(3)], {"a": picture()}, tmp_path / "file" / "run", batch_size=1)
    (tmp_path / "images.json").write_text("{")
    with pytest.raises(ValueError, match=r"images\.json"):
        evaluate([WebP(3)], {"a": picture()}, tmp_path, batch_size=1)
