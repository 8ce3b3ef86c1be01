"""A short run of `experiments.fuzz`, and that it would notice what it looks for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import fuzz
from inrjax import bitstream, codecs
from inrjax.types import BitstreamError

if sys.platform != "linux":
    pytest.skip("limits of address space and CPU time are set as on Linux", allow_module_level=True)

CONFIG = fuzz.Config(batch=40)


def test_a_short_run_finds_nothing_and_goes_on(tmp_path: Path) -> None:
    folder = fuzz.main(fuzz.Options(output=tmp_path, smoke=True, workers=1))
    state = json.loads((folder / "counts.json").read_text())
    assert state["failures"] == [] and sum(state["counts"].values()) == 300
    assert not (folder / "failures").exists()
    table = (folder / "table.md").read_text()
    assert "300 mutants" in table and "failures: 0, silent decodes: 0." in table
    fuzz.run(fuzz.SMOKE, 450, False, tmp_path, 1)  # one batch more
    more = json.loads((folder / "counts.json").read_text())
    assert sum(more["counts"].values()) == 450 and more["done"] == ["0", "1", "2"]
    assert all(more["counts"][key] >= number for key, number in state["counts"].items())


def test_bases_are_of_every_codec_that_a_file_can_name() -> None:
    streams = [base for base in fuzz.stream_bases() if base.kind == "inr"]
    assert {bitstream.peek(base.data).tag for base in streams} == codecs.BY_TAG.keys()
    formats = {base.name.split("-")[0] for base in fuzz.image_bases()}
    assert {"png", "jpeg", "tiff", "webp", "bmp", "ppm"} <= formats


def test_mutants_are_the_same_every_time_and_differ() -> None:
    first, again = ([fuzz.mutant(CONFIG, 3, i) for i in range(60)] for _ in range(2))
    assert first == again
    assert len({one.data for one in first}) > 50
    assert fuzz.mutant(CONFIG, 4, 0) != first[0]
    assert fuzz.mutant(fuzz.Config(seed=1), 3, 0) != first[0]


def test_half_of_the_streams_have_a_right_checksum() -> None:
    some = [fuzz.mutant(CONFIG, 9, i) for i in range(400)]
    inr = [one for one in some if one.base.kind == "inr" and one.how == "section"]
    right = [one.repaired for one in inr]
    assert 0.3 < np.mean(right) < 0.7
    for one in inr:
        if one.repaired:  # the checksum is no longer what refuses it
            stream = bitstream.peek(one.data)
            try:
                name = codecs.BY_TAG[stream.tag]().name
                codec: Any = codecs.decoder(name, fuzz.shared_of(one.data))
                context = codec.context(stream)
            except BitstreamError:
                continue
            assert bitstream.unpack(one.data, context) == stream


def test_every_value_of_every_byte_is_among_the_exhaustive_mutants() -> None:
    base = min(fuzz.stream_bases(), key=lambda one: len(one.data))
    parts = [t for t in fuzz.tasks(CONFIG, 0, True) if t.base == base.name]
    seen = {one.data for task in parts for _, one in fuzz.mutants(CONFIG, task)}
    assert len(seen) == 255 * len(base.data) and base.data not in seen


# ---------------------------------------------------------------------------- what it notices


def reading(read) -> fuzz.Reading:
    return fuzz.Reading(read, BitstreamError)


def raising(error: Exception):
    def read(data: bytes) -> np.ndarray:
        raise error

    return read


@pytest.mark.parametrize(
    "read, repaired, outcome",
    [
        (lambda data: np.zeros((2, 2, 3), np.uint8), True, "image"),
        (lambda data: np.zeros((2, 2, 3), np.uint8), False, "silent"),
        (lambda data: np.zeros((2, 2, 3)), True, "failure"),
        (lambda data: np.zeros((0, 2, 3), np.uint8), True, "failure"),
        (raising(BitstreamError("the file is damaged")), False, "refused"),
        (raising(BitstreamError("")), False, "failure"),
        (raising(BitstreamError("two\nlines")), False, "failure"),
        (raising(ValueError("not one of ours")), False, "failure"),
        (raising(KeyError("x")), True, "failure"),
        (raising(MemoryError()), True, "failure"),
        (raising(UnicodeDecodeError("utf-8", b"", 0, 1, "a ValueError, too")), True, "failure"),
    ],
)
def test_outcomes(read, repaired: bool, outcome: str) -> None:
    base = fuzz.stream_bases()[0]
    one = fuzz.Mutant(base, "bits", repaired, base.data + b"!")
    assert fuzz.outcome_of(one, reading(read))[0] == outcome
    assert fuzz.outcome_of(one._replace(data=base.data), reading(read))[0] == "unchanged"


BROKEN = """
import numpy as np, os, signal
from experiments import fuzz
plain = fuzz.outcome_of
def large():
    try:
        return np.ones(1 << 27).size
    except MemoryError:
        return 0
def broken(one, reading):
    if one == fuzz.mutant(fuzz.Config(batch=40), 0, 7):
        HOW
    return plain(one, reading)
fuzz.outcome_of = broken
fuzz.serve()
"""


@pytest.mark.parametrize(
    "how, reason",
    [
        ("while True: pass", "SIGPROF"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("os._exit(3)", "exit code 3"),
        ("return 'failure', 'there were 1 GB' if large() else 'no memory'", "no memory"),
    ],
)
def test_what_kills_a_process_is_found_and_the_others_are_counted(
    tmp_path: Path, how: str, reason: str
) -> None:
    command = (sys.executable, "-c", BROKEN.replace("HOW", how))
    folder = fuzz.run(CONFIG, 40, False, tmp_path, 1, command)
    state = json.loads((folder / "counts.json").read_text())
    [failure] = state["failures"]
    assert reason in failure["reason"]
    wanted = fuzz.mutant(CONFIG, 0, 7)
    assert (folder / "failures" / failure["file"]).read_bytes() == wanted.data
    assert sum(state["counts"].values()) == 40
    assert "failures: 1, silent" in (folder / "table.md").read_text()


# ---------------------------------------------------------------------------- by hypothesis


STREAMS = [base for base in fuzz.stream_bases() if base.kind == "inr"]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(STREAMS), st.data())
def test_sections_of_any_content_are_a_picture_or_refused(base: fuzz.Base, data) -> None:
    """Under a right checksum, so that each codec's own parser is reached."""
    parts = fuzz.Parts(base.data)
    for i in range(len(parts.sections)):
        if data.draw(st.booleans()):
            parts.sections[i] = data.draw(st.binary(max_size=80))
    parts.lengths = [bitstream._varint(len(s)) for s in parts.sections[:-1]]
    changed = fuzz.repair_inr(parts.join(), base)
    assert changed is not None
    one = fuzz.Mutant(base, "section", True, changed)
    outcome, why = fuzz.outcome_of(one, reading(fuzz.decoded))
    assert outcome in ("image", "refused", "unchanged"), why
