"""Pytrees of arrays as plain dicts: paths, counts, batches, npz files, digests. No JAX needed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MAX_NPZ_BYTES = 1 << 26
"""Bytes of an npz file that `read_npz_file` takes, at most."""

MAX_NPZ_CONTENT_BYTES = 1 << 28
"""What such a file may unpack to: a small one can claim terabytes."""


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The (path, array) pairs of a nested dict, keys sorted (the order JAX uses too)."""
    for key in sorted(tree):
        path = f"{prefix}/{key}" if prefix else key
        if isinstance(tree[key], Mapping):
            yield from leaves(tree[key], path)
        else:
            yield path, tree[key]


def from_leaves(pairs: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict whose leaves are the given path -> array pairs."""
    tree: dict[str, Any] = {}
    for path, value in pairs.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def count(tree: Mapping[str, Any]) -> int:
    """The number of scalars in a nested dict of arrays."""
    return sum(int(np.prod(np.shape(leaf))) for _, leaf in leaves(tree))


def ravel(tree: Mapping[str, Any]) -> np.ndarray:
    """All leaves as one vector, in the order of `leaves`."""
    return np.concatenate([np.ravel(np.asarray(leaf)) for _, leaf in leaves(tree)])


def unravel(vector: np.ndarray, like: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `ravel`; raises ValueError if the length is not that of ``like``."""
    if vector.ndim != 1 or vector.size != count(like):
        raise ValueError(f"got a vector of shape {vector.shape}, expected ({count(like)},)")
    pairs, start = {}, 0
    for path, leaf in leaves(like):
        size = int(np.prod(np.shape(leaf)))
        pairs[path] = vector[start : start + size].reshape(np.shape(leaf))
        start += size
    return from_leaves(pairs)


def stack(trees: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch: equal trees stacked along a new first axis."""
    columns = [dict(leaves(tree)) for tree in trees]
    return from_leaves({path: np.stack([c[path] for c in columns]) for path in columns[0]})


def unstack(tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The inverse of `stack`."""
    pairs = [(path, np.asarray(leaf)) for path, leaf in leaves(tree)]
    size = pairs[0][1].shape[0]
    return [from_leaves({path: leaf[i] for path, leaf in pairs}) for i in range(size)]


def digest(tree: Mapping[str, Any], label: str = "") -> bytes:
    """SHA-256 (32 bytes) of the label, and of every leaf's path, dtype, shape and values.

    It does not depend on the file the tree was read from, nor on the byte order of the machine.
    """
    sha = hashlib.sha256(label.encode())
    for path, leaf in leaves(tree):
        array = np.asarray(leaf)
        array = array.astype(array.dtype.newbyteorder("<"))
        sha.update(json.dumps([path, array.dtype.str, list(array.shape)]).encode())
        sha.update(array.tobytes())
    return sha.digest()


def to_npz(header: Mapping[str, Any], arrays: Mapping[str, Any]) -> bytes:
    """A header, as JSON, and path -> array pairs as the bytes of an npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, header=np.array(json.dumps(header)), **arrays)
    return buffer.getvalue()


def from_npz(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the path -> array pairs of `to_npz`; the bytes need not be trusted.

    Raises:
      ValueError: they unpack to more than `MAX_NPZ_CONTENT_BYTES`, or hold numbers that are not
        finite.
      Exception: nearly any, of a damaged archive.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_NPZ_CONTENT_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_NPZ_CONTENT_BYTES} bytes")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        header = json.loads(str(arrays["header"]))
        pairs = {name: arrays[name] for name in arrays.files if name != "header"}
    if not all(np.isfinite(leaf).all() for leaf in pairs.values()):
        raise ValueError("it holds numbers that are not finite")
    return header, pairs


def read_npz_file(path: Path, what: str, maker: str) -> bytes:
    """The bytes of a file for `from_npz`; ValueError if there is none, or it cannot be one.

    Args:
      what: it should be ("an init"). maker: the command that writes such files.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file: name {what} that `{maker}` wrote")
    if path.stat().st_size > MAX_NPZ_BYTES:
        raise ValueError(f"{path} is not {what}: it is larger than {MAX_NPZ_BYTES} bytes")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): check its rights") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: to a temporary file beside it, then rename."""
    # A file system limits the bytes of a name, and a character can have four.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:32]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
