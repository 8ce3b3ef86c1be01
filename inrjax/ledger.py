"""Which files of a folder were made of which picture, and how: a line each, in a file beside them.

A line speaks of bytes by their digests, never of names: whether it is believed depends on what the
files hold now. So it does not matter who replaced, renamed or copied a file, in what order several
processes write, or where one was killed: a line without its file says nothing, and a file without
its line is not known. A line that is not whole is passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

NAME = ".inrjax-encode.jsonl"

_MAX_BYTES = 2**30
"""Of a file that has a digest here: no larger one is read as a picture, and a sparse file may be
as large as it likes."""


class Entry(NamedTuple):
    """SHA-256, in hexadecimal digits, of a file and of the picture's file that it was made of;
    ``settings``: what it was made by, as a line of JSON with sorted keys."""

    file: str
    picture: str
    settings: str


def digest_of_file(path: Path) -> str | None:
    """SHA-256 of a regular file's bytes, in hexadecimal digits; None for anything else, which may
    have no end, for over 2^30 bytes, and where nothing is. OSError if it cannot be read."""
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def add(folder: Path, entry: Entry) -> None:
    """Append an entry to a folder's ledger, in one write, so that processes of one machine do not
    mix their lines. A link of that name is not followed: OSError, as where nothing can be written.
    """
    # The first line feed ends what a full disk may have left of a line.
    data = b"\n" + json.dumps(entry._asdict()).encode() + b"\n"
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    flags |= getattr(os, "O_NONBLOCK", 0)  # a pipe of that name is an error, not a wait
    handle = os.open(folder / NAME, flags | getattr(os, "O_BINARY", 0), 0o666)
    try:
        if os.write(handle, data) != len(data):
            os.write(handle, b"\n")  # raises what is wrong with the disk
    finally:
        os.close(handle)


def read(folder: Path) -> set[Entry]:
    """The entries of a folder; none if it has no ledger, or one that cannot be read."""
    try:
        if not (folder / NAME).is_file():
            return set()
        lines = (folder / NAME).read_bytes().splitlines()
    except OSError:
        return set()
    return {entry for line in lines if (entry := _parse(line)) is not None}


def _parse(line: bytes) -> Entry | None:
    try:
        entry = Entry(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    return entry if all(isinstance(value, str) for value in entry) else None
