"""A second decoder of .inr files, written from docs/bitstream.md: numpy and the standard library.

It imports nothing of inrjax and no range coder, so that what it agrees with the package on is what
the page says. Slow and plain on purpose: `python tests/reference_decoder.py FILE FOLDER ...`
prints the digests of the symbols and of the pixels.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import sys
import zlib
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAX_PIXELS = 1 << 26
NUM_SECTIONS = {1: 2, 2: 3, 3: 4, 4: 4, 5: 4, 6: 3, 7: 3}
STRUMPLER = {"num_frequencies": 16, "ratio": 1.4}
TOP_OCTAVE = (
    4610560255948314624,
    4610739350409155263,
    4610889955683844661,
    4611016602927045598,
)
SIXTEENTH = 4332278087304955805
EIGHTHS = (
    1.0,
    1.0905077326652577,
    1.189207115002721,
    1.2968395546510096,
    1.4142135623730951,
    1.5422108254079407,
    1.681792830507429,
    1.8340080864093424,
)


class Damaged(Exception):
    """The page says: refuse."""


class Decoded(NamedTuple):
    """``symbols`` int64 (n,), None for COIN; ``image`` uint8 (height, width, 3)."""

    symbols: np.ndarray | None
    image: np.ndarray


def refuse_if(condition: Any, why: str) -> None:
    if condition:
        raise Damaged(why)


def decode(data: bytes, *folders: Path) -> Decoded:
    """The content of a file; ``folders``: of the inits and bases that it may name."""
    tag, height, width, sections = read_container(data)
    if tag == 1:
        check(data, b"")
        layers, encoding = read_coin(*sections)
        return Decoded(None, render(layers, encoding, 30.0, height, width))
    if tag == 3:
        check(data, b"")
        symbols, layers = read_strumpler(basic_params(sections[0]), *sections[1:])
        return Decoded(symbols, render(layers, STRUMPLER, 30.0, height, width))
    if tag == 6:
        base = find_base(sections[0], folders)
        check(data, base.digest)
        return read_modulated_siren(base, sections[1], sections[2], height, width)
    if tag == 7:
        refuse_if(height * width > 1 << 24, "size")
        shared = find_grid_base(sections[0], folders)
        check(data, shared.digest)
        return read_latent_grid(shared, sections[1], sections[2], height, width)
    init = find_init(sections[0], folders)
    check(data, init.digest)
    if tag == 4:
        symbols, layers = read_strumpler(init_params(init), *sections[1:])
    elif tag == 5:
        symbols, layers = read_product_siren(init, *sections[1:])
    else:
        symbols, layers = read_meta_siren(init, *sections[1:])
    encoding = init.net["encoding"]
    return Decoded(symbols, render(layers, encoding, init.net["w0"], height, width))


# ---------------------------------------------------------------------------- container


def read_container(data: bytes) -> tuple[int, int, int, list[bytes]]:
    refuse_if(data[:3] != b"INR" or not 12 <= len(data) <= 1 << 25, "not an .inr file")
    refuse_if(data[3] != 1, f"version {data[3]}")
    refuse_if(data[4] not in NUM_SECTIONS, f"codec tag {data[4]}")
    body = data[:-4]
    height, at = varint(body, 5)
    width, at = varint(body, at)
    refuse_if(not 1 <= height * width <= MAX_PIXELS, "size")
    refuse_if(at >= len(body) or body[at] != NUM_SECTIONS[data[4]], "number of sections")
    lengths, number = [], body[at]
    at += 1
    for _ in range(number - 1):
        length, at = varint(body, at)
        lengths.append(length)
    refuse_if(at + sum(lengths) > len(body), "lengths")
    sections = []
    for length in [*lengths, len(body) - at - sum(lengths)]:
        sections.append(body[at : at + length])
        at += length
    return data[4], height, width, sections


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for digit in range(5):
        refuse_if(at >= len(data), "a varint is not complete")
        byte = data[at]
        at += 1
        value |= (byte & 127) << 7 * digit
        if byte < 128:
            refuse_if(digit and byte == 0, "a varint is padded")
            return value, at
    raise Damaged("a varint is too long")


def check(data: bytes, context: bytes) -> None:
    stated = int.from_bytes(data[-4:], "little")
    refuse_if(zlib.crc32(context + data[:-4]) != stated, "checksum")


# ---------------------------------------------------------------------------- COIN


def read_coin(net: bytes, weights: bytes) -> tuple[list[tuple[np.ndarray, np.ndarray]], None]:
    refuse_if(len(net) != 3, "net")
    width, depth = int.from_bytes(net[:2], "little"), net[2]
    refuse_if(not (1 <= width <= 4096 and 1 <= depth <= 98), "net")
    shapes = layer_shapes(2, width, depth)
    num_params = sum(o * i + o for o, i in shapes)
    refuse_if(num_params > 1 << 19 or len(weights) != 2 * num_params, "weights")
    values = np.frombuffer(weights, "<f2").astype(np.float32)
    refuse_if(not np.isfinite(values).all(), "weights")
    layers, at = [], 0
    for out, into in shapes:
        bias, weight = values[at : at + out], values[at + out : at + out + out * into]
        layers.append((weight.reshape(out, into), bias))
        at += out + out * into
    return layers, None


def layer_shapes(features: int, width: int, depth: int) -> list[tuple[int, int]]:
    """(out, in) of each layer, the linear one last."""
    return [(width, features), *[(width, width)] * (depth - 1), (3, width)]


# ---------------------------------------------------------------------------- MetaSiren


class InitFile(NamedTuple):
    net: dict[str, Any]
    arrays: dict[str, np.ndarray]
    digest: bytes


def files_in(folders: tuple[Path, ...]) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.glob("*.npz"))]


def find_init(start: bytes, folders: tuple[Path, ...]) -> InitFile:
    for path in files_in(folders):
        with np.load(path, allow_pickle=False) as arrays:
            header = json.loads(str(arrays["header"]))
            if header["format"] != "inrjax-init-1":
                continue
            net = header["net"]
            used = {
                name: arrays[name]
                for name in arrays.files
                if name.split("/")[0] in ("envelope", "keep", "params")
            }
        digest = init_digest(net, used)
        if digest.startswith(start) and len(start) == 4:
            return InitFile(net, used, digest)
    raise Damaged(f"init {start.hex()} is not known")


def init_digest(net: Any, arrays: dict[str, np.ndarray]) -> bytes:
    sha = hashlib.sha256(json.dumps(net, sort_keys=True).encode())
    for path in sorted(arrays):
        little = arrays[path].astype(arrays[path].dtype.newbyteorder("<"))
        sha.update(json.dumps([path, little.dtype.str, list(little.shape)]).encode())
        sha.update(little.tobytes())
    return sha.digest()


def read_meta_siren(
    init: InitFile, grid: bytes, payload: bytes
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    # Layer by layer, the bias before the weight: the order of the sorted paths.
    paths = sorted(name.removeprefix("params/") for name in init.arrays if name[0] == "p")
    count = len(paths)
    refuse_if(len(grid) != 2 + 2 * count, "grid")
    steps, offsets = grid[2 : 2 + count], grid[2 + count :]
    levels = []
    for path, offset in zip(paths, offsets, strict=True):
        envelope = init.arrays[f"envelope/{path}"].astype(int)
        full = np.broadcast_to(envelope, init.arrays[f"params/{path}"].shape)
        levels.append(np.clip(full + offset - 12, 0, 63).ravel())
    symbols = decode_symbols(payload, np.concatenate(levels))
    stated = int.from_bytes(grid[:2], "little")
    refuse_if(binascii.crc_hqx(symbols.astype("<i4").tobytes(), 0) != stated, "symbols")
    tensors, at = {}, 0
    for path, index in zip(paths, steps, strict=True):
        mean = mean_of(init, path)
        own = symbols[at : at + mean.size].reshape(mean.shape)
        tensors[path] = (mean.astype(np.float64) + own * step_of(index)).astype(np.float32)
        at += mean.size
    names = sorted({path.split("/")[0] for path in paths})
    return symbols, [(tensors[f"{n}/weight"], tensors[f"{n}/bias"]) for n in names]


def mean_of(init: InitFile, path: str) -> np.ndarray:
    start = init.arrays[f"params/{path}"]
    return np.float32(init.arrays[f"keep/{path}"]) * start.astype(np.float32)


def step_of(index: int) -> float:
    return 2.0 ** (index // 8 - 24) * EIGHTHS[index % 8]


# ---------------------------------------------------------------------------- ProductSiren


def read_product_siren(
    init: InitFile, grid: bytes, payload: bytes, coded_indices: bytes
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    names = sorted({name.split("/")[1] for name in init.arrays if name[0] == "p"})
    paths = [f"{name}/{kind}" for name in names for kind in ("bias", "weight")]
    refuse_if(len(grid) != 5 + 2 * len(paths), "grid")
    most, block = int.from_bytes(grid[2:4], "little"), grid[4]
    refuse_if(not 1 <= most <= 4096 or not 1 <= block <= 16, "grid")
    steps, levels = grid[5 : 5 + len(paths)], grid[5 + len(paths) :]
    refuse_if(max(levels) > 63, "grid")
    shapes, cut = {}, {}
    for path in paths:
        shapes[path] = init.arrays[f"params/{path}"].shape
        if path.endswith("weight") and path != paths[-1]:
            out, into = shapes[path]
            cut[path] = (out, -(-into // block))
            shapes[path] = (max(1, min(most, cut[path][0] * cut[path][1] // 4)), block)
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    symbols = decode_symbols(payload, np.repeat(list(levels), sizes))
    indices = decode_indices(coded_indices, [(*cut[path], shapes[path][0]) for path in cut])
    everything = np.concatenate([symbols, *(own.ravel() for own in indices)])
    stated = int.from_bytes(grid[:2], "little")
    refuse_if(binascii.crc_hqx(everything.astype("<i4").tobytes(), 0) != stated, "symbols")
    tensors, parts = {}, np.split(symbols, np.cumsum(sizes)[:-1])
    for path, step, part in zip(paths, steps, parts, strict=True):
        value = part.reshape(shapes[path]) * step_of(step)
        mean = mean_of(init, path)
        if path in cut:
            rows = value[indices[list(cut).index(path)]]
            value = rows.reshape(len(rows), -1)[:, : mean.shape[1]]
        tensors[path] = (mean.astype(np.float64) + value).astype(np.float32)
    return symbols, [(tensors[f"{n}/weight"], tensors[f"{n}/bias"]) for n in names]


def decode_indices(payload: bytes, arrays: list[tuple[int, int, int]]) -> list[np.ndarray]:
    """``arrays``: (rows, columns, number of values) of each."""
    coder, decoded = RangeDecoder(payload), []
    for rows, columns, size in arrays:
        array, often = np.zeros((rows, columns), np.int64), [1] * size
        for row in array if size > 1 else ():
            counts = [own * (1 << 24) // sum(often) for own in often]
            counts[often.index(max(often))] += (1 << 24) - sum(counts)
            ends = np.concatenate([[0], np.cumsum(counts)])
            row[:] = [coder.place(ends) for _ in row]
            for index in row:
                often[index] += 1
        decoded.append(array)
    return decoded


# ---------------------------------------------------------------------------- ModulatedSiren


class BaseFile(NamedTuple):
    net: dict[str, Any]
    patch: int
    arrays: dict[str, np.ndarray]
    digest: bytes


def find_base(start: bytes, folders: tuple[Path, ...]) -> BaseFile:
    for path in files_in(folders):
        with np.load(path, allow_pickle=False) as arrays:
            header = json.loads(str(arrays["header"]))
            if header["format"] != "inrjax-base-1":
                continue
            used = {name: arrays[name] for name in arrays.files if name not in ("header", "rates")}
        net, patch = header["net"], header["patch"]
        digest = init_digest([net, patch], used)
        if digest.startswith(start) and len(start) == 4:
            return BaseFile(net, patch, used, digest)
    raise Damaged(f"base {start.hex()} is not known")


def read_modulated_siren(
    base: BaseFile, grid: bytes, payload: bytes, height: int, width: int
) -> Decoded:
    refuse_if(len(grid) != 3 or not 2 <= grid[2] <= 8, "grid")
    ends = np.concatenate([[0], np.cumsum(base.arrays[f"tables/bits_{grid[2]}"])])
    shift, centre, spread = (base.arrays[n].astype(float) for n in ("shift", "centre", "spread"))
    rows, columns, side = -(-height // base.patch), -(-width // base.patch), base.patch
    coder = RangeDecoder(payload)
    count = rows * columns * shift.shape[1]
    symbols = np.array([coder.place(ends) for _ in range(count)], np.int64)
    stated = int.from_bytes(grid[:2], "little")
    refuse_if(binascii.crc_hqx(symbols.astype("<i4").tobytes(), 0) != stated, "symbols")
    image = np.zeros((rows * side, columns * side, 3), np.uint8)
    names = sorted({n.split("/")[1] for n in base.arrays if n.startswith("params/")})
    for i, own in enumerate(symbols.reshape(rows * columns, -1)):
        latent = centre + 3 * spread * (2 * own / (2 ** grid[2] - 1) - 1)
        shifts = np.split(shift @ latent, len(names) - 1)
        layers = []
        for name, moved in zip(names, [*shifts, 0.0], strict=True):
            bias = base.arrays[f"params/{name}/bias"].astype(float) + moved
            weight = base.arrays[f"params/{name}/weight"].astype(np.float32)
            layers.append((weight, bias.astype(np.float32)))
        top, left = i // columns * side, i % columns * side
        image[top : top + side, left : left + side] = render(
            layers, base.net["encoding"], base.net["w0"], side, side
        )
    return Decoded(symbols, image[:height, :width])


# ---------------------------------------------------------------------------- LatentGrid


class GridFile(NamedTuple):
    net: dict[str, int]
    arrays: dict[str, np.ndarray]
    digest: bytes


def find_grid_base(start: bytes, folders: tuple[Path, ...]) -> GridFile:
    for path in files_in(folders):
        with np.load(path, allow_pickle=False) as arrays:
            header = json.loads(str(arrays["header"]))
            if header["format"] != "inrjax-grid-1":
                continue
            used = {name: arrays[name] for name in arrays.files if name != "header"}
        digest = init_digest(header["net"], used)
        if digest.startswith(start) and len(start) == 4:
            return GridFile(header["net"], used, digest)
    raise Damaged(f"base {start.hex()} is not known")


def read_latent_grid(
    base: GridFile, grid: bytes, payload: bytes, height: int, width: int
) -> Decoded:
    refuse_if(len(grid) != 3 or grid[2] > 63, "grid")
    step, num_levels = grid[2], base.net["levels"]
    sizes = [(height, width)]
    for _ in range(num_levels):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    details = [
        np.zeros((*sizes[level + 1], 9 if level else 3), np.int64) for level in range(num_levels)
    ]
    low = np.zeros((*sizes[-1], 3), np.int64)
    coder = GridCoder(base, payload)
    coder.read_low(low, step)
    for level in reversed(range(num_levels)):
        for component in range(3 if level else 1):
            coder.read_details(details, level, component, step)
    symbols = np.concatenate([own.ravel() for own in (*details, low)])
    stated = int.from_bytes(grid[:2], "little")
    refuse_if(binascii.crc_hqx(symbols.astype("<i4").tobytes(), 0) != stated, "symbols")
    return Decoded(symbols, pixels_of_grids(base, details, low, step, sizes))


class GridCoder:
    """Latents, place by place, in Python's integers and in numpy's of 64 bits."""

    def __init__(self, base: GridFile, payload: bytes):
        self.base, self.coder = base, RangeDecoder(payload)
        self.models: dict[str, list[np.ndarray]] = {}
        self.odd: dict[str, list[np.ndarray]] = {}

    def model(self, name: str, features: list[int]) -> list[int]:
        """The levels of scale."""
        if name not in self.models:
            self.models[name] = [
                self.base.arrays[f"models/{name}/{kind}{layer}"].astype(np.int64)
                for layer in (1, 2, 3)
                for kind in ("weight", "bias")
            ]
        w1, b1, w2, b2, w3, b3 = self.models[name]
        h = np.clip((np.array(features, np.int64) @ w1 + b1) // 2**8, 0, 2**16)
        h = np.clip((h @ w2 + b2) // 2**10, 0, 2**16)
        return np.clip((h @ w3 + b3 + 2**15) // 2**16 + 16, 0, 63).tolist()

    def logits(self, name: str, features: list[int], signs: list[int]) -> list[list[int]]:
        """Of each of three bands: zero, sign, up, down, tail; in sixteenths."""
        if name not in self.odd:
            self.odd[name] = [
                self.base.arrays[f"models/{name}/{leaf}"].astype(np.int64)
                for layer in (1, 2, 3)
                for leaf in (f"weight{layer}", f"bias{layer}")
            ] + [
                self.base.arrays[f"models/{name}/{leaf}"].astype(np.int64)
                for leaf in ("odd1", "fold", "gate", "gate_bias", "odd2")
            ]
        w1, b1, w2, b2, w3, b3, odd1, fold, gate, gate_bias, odd2 = self.odd[name]
        h = np.clip((np.array(features, np.int64) @ w1 + b1) // 2**8, 0, 2**16)
        u = np.clip(np.array(signs, np.int64) @ odd1, -(2**8), 2**8)
        h = np.clip((h @ w2 + abs(u) @ fold + b2) // 2**10, 0, 2**16)
        v = u * np.clip((h @ gate + gate_bias) // 2**10, -(2**16), 2**16)
        v = np.sign(v) * (abs(v) // 2**8)
        even = (h @ w3 + b3 + 2**13) // 2**14
        odd = v @ odd2
        odd = np.sign(odd) * ((abs(odd) + 2**13) // 2**14)
        found = []
        for b in range(3):
            more, lean = even[3 + b], odd[3 + b]
            row = [even[b], odd[b], more + lean, more - lean, even[6 + b]]
            found.append([min(max(int(x), -192), 192) for x in row])
        return found

    def read_decided(self, logits: list[list[int]]) -> list[int]:
        """The symbols of one diagonal, of models that see signs."""
        symbols = [self.coder.place(five_ends(*row[:4])) - 2 for row in logits]
        far = [n for n, symbol in enumerate(symbols) if abs(symbol) == 2]
        low = [self.coder.place(tail_ends(logits[n][4])[0]) for n in far]
        high = [self.coder.place(tail_ends(logits[n][4])[1]) for n in far]
        high = [abs(read_escape(self.coder, 15)) if h == 16 else h for h in high]
        for n, a, b in zip(far, low, high, strict=True):
            symbols[n] += (1 if symbols[n] > 0 else -1) * (a + 16 * b)
        return symbols

    def read(self, levels: list[int]) -> list[int]:
        """The symbols of one diagonal."""
        symbols = [0] * len(levels)
        for level in sorted(set(levels)):
            ends = ends_of(level)
            m, escaped = len(ends) // 2 - 1, []
            for i, own in enumerate(levels):
                if own == level:
                    place = self.coder.place(ends)
                    symbols[i] = place - m
                    if place == 2 * m + 1:
                        escaped.append(i)
            for i in escaped:
                symbols[i] = read_escape(self.coder, m)
        return symbols

    def read_low(self, low: np.ndarray, step: int) -> None:
        rows, columns, _ = low.shape
        means = np.zeros(low.shape, np.int64)
        for c in range(3):
            own = low[:, :, c].tolist()
            p = self.base.arrays[f"models/low{c}/predict"].tolist()
            for places in diagonals(rows, columns):
                levels, predicted = [], []
                for i, j in places:
                    around = neighbours_of(own, i, j, columns)
                    west, north, corner, right = around
                    total = sum(w * x for w, x in zip(p, around, strict=True))
                    predicted.append((total + 2**9) // 2**10)
                    features = [mag(west - corner), mag(north - corner), mag(right - north)]
                    features += [mag(int(low[i, j, b] - means[i, j, b])) for b in range(c)]
                    levels += self.model(f"low{c}", [*features, 8 * (step - 32)])
                symbols = self.read(levels)
                for (i, j), mean, symbol in zip(places, predicted, symbols, strict=True):
                    refuse_if(abs(mean + symbol) >= 1 << 24, "symbols")
                    own[i][j], low[i, j, c], means[i, j, c] = mean + symbol, mean + symbol, mean

    def read_details(
        self, details: list[np.ndarray], level: int, component: int, step: int
    ) -> None:
        z = details[level]
        bands = range(3 * component, 3 * component + 3)
        name, signs = f"level{level}_{component}", "odd_width" in self.base.net
        for places in diagonals(*z.shape[:2]):
            levels: list[int] = []
            logits: list[list[int]] = []
            for i, j in places:
                features: list[int] = []
                for r, s in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (-2, 0), (0, -2)):
                    features += seen_at(z, i + r, j + s, bands)
                for before in range(component):
                    for r, s in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)):
                        features += seen_at(z, i + r, j + s, range(3 * before, 3 * before + 3))
                if level + 1 < len(details):
                    for r, s in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)):
                        features += seen_at(details[level + 1], i // 2 + r, j // 2 + s, bands)
                if signs:
                    own = [min(max(value, -8), 8) for value in features]
                    magnitudes = [mag(value) for value in features]
                    logits += self.logits(name, [*magnitudes, 8 * (step - 32)], own)
                else:
                    magnitudes = [mag(value) for value in features]
                    levels += self.model(name, [*magnitudes, 8 * (step - 32)])
            symbols = self.read_decided(logits) if signs else self.read(levels)
            refuse_if(max(map(abs, symbols)) >= 1 << 24, "symbols")
            for n, (i, j) in enumerate(places):
                z[i, j, bands.start : bands.stop] = symbols[3 * n : 3 * n + 3]


def diagonals(rows: int, columns: int) -> list[list[tuple[int, int]]]:
    found: dict[int, list[tuple[int, int]]] = {}
    for i in range(rows):
        for j in range(columns):
            found.setdefault(j + 2 * i, []).append((i, j))
    return [found[t] for t in sorted(found)]


def mag(value: int) -> int:
    n = 1 + min(abs(value), 1 << 14)
    p = n.bit_length() - 1
    return 64 * p + 64 * (n - 2**p) // 2**p


def seen_at(z: np.ndarray, i: int, j: int, bands: range) -> list[int]:
    if not (0 <= i < z.shape[0] and 0 <= j < z.shape[1]):
        return [0, 0, 0]
    return [int(z[i, j, band]) for band in bands]


def neighbours_of(own: list[list[int]], i: int, j: int, columns: int) -> tuple[int, ...]:
    """West, north, north-west, north-east."""
    if i == 0:
        return (own[0][j - 1],) * 4 if j else (0, 0, 0, 0)
    north = own[i - 1][j]
    west, corner = (own[i][j - 1], own[i - 1][j - 1]) if j else (north, north)
    return west, north, corner, own[i - 1][j + 1] if j + 1 < columns else north


def pixels_of_grids(
    base: GridFile, details: list[np.ndarray], low: np.ndarray, step: int, sizes: Any
) -> np.ndarray:
    own = {
        name.removeprefix("synthesis/"): array.astype(np.float32)
        for name, array in base.arrays.items()
        if name.startswith("synthesis/")
    }
    size, q = np.float32(2.0 ** (step / 8 - 5)), np.float32((step - 32) / 8)
    x = low.astype(np.float32) * own["low/gain"] * size
    for k in reversed(range(len(details))):
        z = details[k].astype(np.float32)
        part = {n.split("/")[1]: a for n, a in own.items() if n.startswith(f"level{k}/")}
        y = convolution(np.concatenate([x, z * part["gain"] * size], -1), part["kernel"])
        box = np.full((3, 3, 1, 1), 1 / 9)
        mean = np.concatenate([convolution(x[..., c : c + 1], box) for c in range(3)], -1)
        seen = [soft((x - mean) / size), soft(z), x * np.float32(2.0 ** -(k + 1))]
        h = convolution(np.concatenate(seen, -1), part["weight1"])
        h = np.sin(h + part["bias1"] + q * part["step1"])
        h = np.sin(h @ part["weight2"] + part["bias2"] + q * part["step2"])
        y = y + (h @ part["weight3"]) * size
        x = np.zeros((2 * y.shape[0], 2 * y.shape[1], 3), np.float32)
        for a in (0, 1):
            for b in (0, 1):
                x[a::2, b::2] = y[..., 6 * a + 3 * b : 6 * a + 3 * b + 3]
        x = x[: sizes[k][0], : sizes[k][1]]
    values = x @ own["colour"] + np.float32(0.5)
    refuse_if(np.isnan(values).any(), "a pixel is NaN")
    return np.floor(255 * np.clip(values, 0, 1) + np.float32(0.5)).astype(np.uint8)


def soft(v: np.ndarray) -> np.ndarray:
    return v / np.sqrt(1 + (v / 4) ** 2)


def convolution(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    rows, columns, _ = values.shape
    reach = kernel.shape[0] // 2
    padded = np.pad(values, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    y = np.zeros((rows, columns, kernel.shape[3]), np.float32)
    for a in range(kernel.shape[0]):
        for b in range(kernel.shape[1]):
            y += padded[a : a + rows, b : b + columns] @ kernel[a, b].astype(np.float32)
    return y


# ---------------------------------------------------------------------------- symbols


def counts_of(level: int) -> list[int]:
    """Counts of -m..m and of the escape."""
    q = TOP_OCTAVE[level % 4]
    for _ in range((63 - level) // 4):
        q = q * q >> 62
    r, x, tails = q * q >> 62, q, [q >> 38]
    while len(tails) < 2 or tails[-2] - tails[-1] >= 2:
        x = x * r >> 62
        tails.append(x >> 38)
    sides = [(a - b) // 2 for a, b in pairwise(tails[:-1])]
    escape = max(1, tails[len(sides)])
    return [*sides[::-1], (1 << 24) - 2 * sum(sides) - escape, *sides, escape]


class RangeDecoder:
    """32-bit words, 64-bit state, 24-bit precision."""

    def __init__(self, payload: bytes):
        self.payload, self.at = payload, 0
        self.ahead = self.word() << 32 | self.word()
        self.range = (1 << 64) - 1

    def word(self) -> int:
        part = self.payload[self.at : self.at + 4]
        self.at += 4
        return int.from_bytes(part.ljust(4, b"\0"), "big")

    def place(self, ends: np.ndarray) -> int:
        """The place of the next symbol; ``ends``: cumulated counts, int64, from 0 to 2^24."""
        unit = self.range >> 24
        quantile = self.ahead // unit
        refuse_if(quantile >= 1 << 24, "symbols")
        place = int(np.searchsorted(ends, quantile, side="right")) - 1
        self.ahead -= unit * int(ends[place])
        self.range = unit * int(ends[place + 1] - ends[place])
        if self.range < 1 << 32:
            self.range <<= 32
            self.ahead = self.ahead << 32 | self.word()
        return place

    def bit(self) -> int:
        return self.place(np.array([0, 1 << 23, 1 << 24]))


def decode_symbols(payload: bytes, levels: np.ndarray) -> np.ndarray:
    coder, symbols, escaped = RangeDecoder(payload), np.zeros(levels.size, np.int64), []
    for level in np.unique(levels):
        ends = ends_of(int(level))
        m = len(ends) // 2 - 1
        for i in np.flatnonzero(levels == level):
            place = coder.place(ends)
            symbols[i] = place - m
            if place == 2 * m + 1:
                escaped.append((i, m))
    for i, m in escaped:
        symbols[i] = read_escape(coder, m)
    return symbols


def read_escape(coder: RangeDecoder, m: int) -> int:
    sign, length = coder.bit(), 1
    while not coder.bit():
        length += 1
        refuse_if(length > 31, "symbols")
    excess = 1
    for _ in range(length - 1):
        excess = 2 * excess + coder.bit()
    return -(m + excess) if sign else m + excess


@cache
def sigmoid(logit: int) -> int:
    """2^62 / (1 + exp(-logit / 16))."""
    if logit < 0:
        return 2**62 - sigmoid(-logit)
    power = 2**62
    for _ in range(logit):
        power = power * SIXTEENTH >> 62
    return 2**124 // (2**62 + power)


@cache
def five_ends(zero: int, sign: int, up: int, down: int) -> np.ndarray:
    """Of -2 or less, -1, 0, 1, 2 or more."""
    zero, sign, up, down = (sigmoid(logit) >> 38 for logit in (zero, sign, up, down))
    above = (2**24 - zero) * sign >> 24
    below = 2**24 - zero - above
    two, minus_two = above * up >> 24, below * down >> 24
    a, b, d, e = (max(1, x) for x in (minus_two, below - minus_two, above - two, two))
    return np.cumsum([0, a, b, 2**24 - a - b - d - e, d, e])


@cache
def tail_ends(logit: int) -> tuple[np.ndarray, np.ndarray]:
    """Of what is more than 2: modulo 16; the sixteens and their escape."""
    ratio, ends = sigmoid(logit), []
    for whole in (False, True):
        powers = [2**62]
        for _ in range(16):
            powers.append(powers[-1] * ratio >> 62)
        if whole:
            counts = [(a - b) >> 38 for a, b in pairwise(powers)] + [powers[16] >> 38]
        else:
            counts = [(a - b) * 2**24 // (powers[0] - powers[16]) for a, b in pairwise(powers)]
        counts = [max(1, count) for count in counts]
        counts[counts.index(max(counts))] += 2**24 - sum(counts)
        ends.append(np.cumsum([0, *counts]))
        ratio = powers[16]
    return ends[0], ends[1]


@cache
def ends_of(level: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts_of(level))])


# ---------------------------------------------------------------------------- Strümpler


def basic_params(net: bytes) -> dict[str, np.ndarray]:
    width = int.from_bytes(net, "little")
    refuse_if(len(net) != 2 or not 1 <= width <= 512, "net")
    params = {}
    for i, (out, into) in enumerate(layer_shapes(66, width, 4)):
        params[f"layer_{i:02d}/bias"] = np.zeros(out, np.float32)
        params[f"layer_{i:02d}/weight"] = np.zeros((out, into), np.float32)
    return params


def init_params(init: InitFile) -> dict[str, np.ndarray]:
    names = sorted(name for name in init.arrays if name.startswith("params/"))
    return {name.removeprefix("params/"): init.arrays[name].astype(np.float32) for name in names}


def read_strumpler(
    centre: dict[str, np.ndarray], grid: bytes, counts: bytes, payload: bytes
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    refuse_if(len(grid) != 2 + len(centre), "grid")
    values, own = read_counts(counts)
    ends = np.concatenate([[0], np.cumsum(own)])
    coder = RangeDecoder(payload)
    number = sum(start.size for start in centre.values())
    symbols = np.array([values[coder.place(ends)] for _ in range(number)], np.int64)
    stated = int.from_bytes(grid[:2], "little")
    refuse_if(binascii.crc_hqx(symbols.astype("<i4").tobytes(), 0) != stated, "symbols")
    tensors, at = {}, 0
    for (path, start), index in zip(centre.items(), grid[2:], strict=True):
        own = symbols[at : at + start.size].reshape(start.shape)
        tensors[path] = (start.astype(np.float64) + own * step_of(index)).astype(np.float32)
        at += start.size
    names = sorted({path.split("/")[0] for path in centre})
    return symbols, [(tensors[f"{n}/weight"], tensors[f"{n}/bias"]) for n in names]


def read_counts(section: bytes) -> tuple[list[int], list[int]]:
    refuse_if(len(section) < 3, "counts")
    lowest = section[0] - 256 * (section[0] > 127)
    bits = [int(bit) for byte in section[2:] for bit in f"{byte:08b}"]
    at, level, levels = 0, 0, []
    for _ in range(section[1] + 1):
        length = 1
        while at < len(bits) and bits[at] == 0:
            at, length = at + 1, length + 1
        refuse_if(at + length > len(bits), "counts")
        number = int("".join(map(str, bits[at : at + length])), 2)
        at += length
        level += number // 2 if number % 2 else -(number // 2)
        refuse_if(not 0 <= level <= 48, "counts")
        levels.append(level)
    refuse_if(len(bits) - at >= 8 or any(bits[at:]), "counts")
    refuse_if(lowest + len(levels) > 128, "counts")
    places = [i for i, own in enumerate(levels) if own]
    refuse_if(len(places) < 2, "counts")
    weights = [(1024, 1448)[(levels[i] - 1) % 2] * 2 ** ((levels[i] - 1) // 2) for i in places]
    rest = (1 << 24) - len(places)
    counts = [1 + weight * rest // sum(weights) for weight in weights]
    counts[weights.index(max(weights))] += (1 << 24) - sum(counts)
    return [lowest + i for i in places], counts


# ---------------------------------------------------------------------------- pixels


def render(layers: Any, encoding: Any, w0: float, height: int, width: int) -> np.ndarray:
    y = ((2 * np.arange(height) + 1) / height - 1).astype(np.float32)
    x = ((2 * np.arange(width) + 1) / width - 1).astype(np.float32)
    h = np.stack(np.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)
    if encoding:
        a = np.pi * encoding["ratio"] ** np.arange(encoding["num_frequencies"])
        angles = (h[:, None] * a.astype(np.float32)[:, None]).reshape(len(h), -1)
        h = np.concatenate([h, np.sin(angles), np.cos(angles)], 1)
    for weight, bias in layers[:-1]:
        h = np.sin(np.float32(w0) * (h @ weight.T + bias))
    weight, bias = layers[-1]
    values = h @ weight.T + bias
    refuse_if(np.isnan(values).any(), "a pixel is NaN")
    pixels = np.floor(255 * np.clip((values + 1) / 2, 0, 1) + np.float32(0.5))
    return pixels.astype(np.uint8).reshape(height, width, 3)


if __name__ == "__main__":
    decoded = decode(Path(sys.argv[1]).read_bytes(), *map(Path, sys.argv[2:]))
    parts = {"symbols": decoded.symbols, "pixels": decoded.image}
    for part, values in parts.items():
        if values is not None:
            print(part, hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest())
