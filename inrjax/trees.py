"""Pytrees of arrays as plain dicts: paths, counts, batches, npz files, digests. No JAX needed."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


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
