"""Checkpoints of a long run: orbax for the steps, which are whole or not there, and a digest of
what should be read back.

The arrays of a step are one file that is written here, not by orbax's own handler: tensorstore
writes each array in threads of its own, and where one fails, orbax closes the event loop that the
others report to. Each of them then prints a traceback, at a moment of its own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

import inrjax

_KEPT = 2

_EARLIEST = "0.1.0"
"""The version whose checkpoints may lack the name of theirs, and the digest of their note."""


class OtherRunError(ValueError):
    """A folder holds checkpoints that are not of this run."""


class Restored(NamedTuple):
    """A state read back, and the step it was saved at."""

    state: Any
    step: int


def save(folder: Path, step: int, state: Any, inputs: Mapping[str, Any]) -> None:
    """Save a pytree of arrays under a step; the two newest are kept.

    A run restores before it saves, so whatever lies at this step or beyond is damaged: it is
    removed, or it would stand in the way and count among the newest.

    ``inputs``: JSON values that say what the run computes (config, digest of its data). A
    checkpoint of other inputs, or of another version of inrjax, is never restored.

    Raises OSError where it cannot be written; those before it stay.
    """
    flat = _flatten(state)
    note = {
        "inputs": _canonical(inputs),
        "sha256": _digest(flat),
        "inrjax": inrjax.__version__,
        "jax": jax.__version__,
    }
    note["note_sha256"] = _note_digest(note)
    try:
        with _quiet():
            _save(folder, step, flat, note)
    except Exception as error:  # orbax's own, a page long, for a full disk
        raise _os_error(error) from error


def _save(folder: Path, step: int, flat: Mapping[str, np.ndarray], note: Mapping[str, Any]) -> None:
    with _manager(folder) as manager:
        for leftover in [other for other in manager.all_steps() if other >= step]:
            manager.delete(leftover)
        manager.save(
            step,
            args=ocp.args.Composite(arrays=_ArraysSave(flat), note=ocp.args.JsonSave(note)),
            force=True,
        )


class _ArraysHandler(ocp.CheckpointHandler):
    """Arrays as one file: their bytes one after another, in the order of their names. What types
    and shapes they have, whoever restores them knows, and the digest tells."""

    def save(self, directory: Path, args: _ArraysSave) -> None:
        """Write the file; OSError where it cannot be."""
        with open(directory / _ARRAYS_FILE, "wb") as file:
            for _, leaf in sorted(args.flat.items()):
                file.write(leaf.tobytes())

    def restore(self, directory: Path, args: _ArraysRestore) -> dict[str, np.ndarray]:
        """Read it; ValueError where it has not the bytes of arrays like those."""
        with open(directory / _ARRAYS_FILE, "rb") as file:
            flat = {name: _read_like(file, leaf) for name, leaf in sorted(args.like.items())}
            if file.read(1):
                raise ValueError(f"{directory} holds more than the arrays that were expected")
        return flat


_ARRAYS_FILE = "arrays.bin"


def _read_like(file: BinaryIO, like: np.ndarray) -> np.ndarray:
    data = file.read(like.nbytes)
    if len(data) != like.nbytes:
        raise ValueError(f"got {len(data)} bytes of an array, expected {like.nbytes}")
    return np.ndarray(like.shape, like.dtype, data)


@ocp.args.register_with_handler(_ArraysHandler, for_save=True)
@dataclass
class _ArraysSave(ocp.args.CheckpointArgs):
    flat: Mapping[str, np.ndarray]


@ocp.args.register_with_handler(_ArraysHandler, for_restore=True)
@dataclass
class _ArraysRestore(ocp.args.CheckpointArgs):
    like: Mapping[str, np.ndarray]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Of what fails in the block, orbax logs pages to stderr; here it becomes one sentence."""
    logger = logging.getLogger("absl")
    was = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = was


def _os_error(error: Exception) -> OSError:
    """What the system said, of an error that may only quote it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    quoted = re.search(r"os_error_code='(\d+)'", str(error))
    if quoted:
        return OSError(int(quoted[1]), os.strerror(int(quoted[1])))
    for number in _NO_ROOM:
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number))
    return OSError(errno.EIO, " ".join(str(error).split())[:200])


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def restore(folder: Path, like: Any, inputs: Mapping[str, Any]) -> Restored | None:
    """The newest good checkpoint in a folder, as a tree like ``like``; None if there is none.

    A damaged or incomplete one is passed over with a warning. One of another JAX is used, with a
    warning: what it goes on to need not be what a run that was not stopped ends with.

    Raises:
      ValueError: the newest good checkpoint belongs to other inputs, or to another version of
        inrjax, whose code may mean something else by the same inputs.
    """
    if not Path(folder).is_dir():
        return None
    with _manager(folder) as manager:
        whole = set(manager.all_steps())
        for step in sorted(whole | _step_folders(folder), reverse=True):
            note = _read_note(manager, step) if step in whole else None
            if note is not None:
                _check_owner(note, folder, inputs)
            flat = None if note is None else _load(manager, step, like, note["sha256"])
            if note is None or flat is None:
                warnings.warn(
                    f"{folder}: the checkpoint of step {step} is damaged and is not used",
                    stacklevel=2,
                )
                continue
            if note.get("jax", jax.__version__) != jax.__version__:
                warnings.warn(
                    f"{folder}: the checkpoint of step {step} is of JAX {note['jax']}, this is "
                    f"{jax.__version__}: the result may differ from that of a whole run",
                    stacklevel=2,
                )
            return Restored(jax.tree.unflatten(jax.tree.structure(like), list(flat.values())), step)
    return None


def _step_folders(folder: Path) -> set[int]:
    """Steps that have a folder; orbax passes over one that was never finished, in silence."""
    return {int(path.name) for path in Path(folder).iterdir() if path.name.isdecimal()}


def _check_owner(note: Mapping[str, Any], folder: Path, inputs: Mapping[str, Any]) -> None:
    if note["inputs"] != _canonical(inputs):
        raise OtherRunError(
            f"{folder} holds checkpoints of another run (other options or other data): "
            "name another folder, or delete it"
        )
    version = note.get("inrjax", _EARLIEST)
    if version != inrjax.__version__:
        raise OtherRunError(
            f"{folder} holds checkpoints of inrjax {version}, this is {inrjax.__version__}: go on "
            "with that version, name another folder, or delete it"
        )


def _read_note(manager: ocp.CheckpointManager, step: int) -> dict[str, Any] | None:
    """What stands beside a step's arrays, or None if it is not what was saved."""
    note = _read(manager, step, note=ocp.args.JsonRestore())
    if not isinstance(note, dict) or not {"inputs", "sha256"} <= note.keys():
        return None
    digest = note.pop("note_sha256", None)
    if digest is None and "inrjax" not in note:
        return note  # of the earliest version
    return note if digest == _note_digest(note) else None


def _manager(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=_KEPT, create=True, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(Path(folder).absolute(), options=options)


def _load(manager: ocp.CheckpointManager, step: int, like: Any, sha256: str):
    """The flat arrays of a step, or None if they are not what was saved."""
    flat = _read(manager, step, arrays=_ArraysRestore(_flatten(like)))
    if flat is None:  # the earliest version left them to orbax
        flat = _read(manager, step, state=ocp.args.StandardRestore(_flatten(like)))
    if flat is None:
        return None
    flat = {name: np.asarray(leaf) for name, leaf in sorted(flat.items())}
    return flat if _digest(flat) == sha256 else None


def _read(manager: ocp.CheckpointManager, step: int, **item: Any) -> Any:
    """One item of a step, or None if it cannot be read."""
    [name] = item
    try:
        with _quiet():
            return manager.restore(step, args=ocp.args.Composite(**item))[name]
    except Exception:  # a damaged file makes orbax raise nearly anything
        return None


def _flatten(state: Any) -> dict[str, np.ndarray]:
    return {f"{i:05d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}


def _digest(flat: Mapping[str, np.ndarray]) -> str:
    sha = hashlib.sha256()
    for name, leaf in sorted(flat.items()):
        sha.update(f"{name} {leaf.dtype} {leaf.shape} ".encode())
        sha.update(leaf.tobytes())
    return sha.hexdigest()


def _note_digest(note: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(note).encode()).hexdigest()


def _canonical(inputs: Mapping[str, Any]) -> str:
    return json.dumps(inputs, sort_keys=True)
