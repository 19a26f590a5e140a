"""Mutations of files: of bytes, of tables and of JSON, each drawn from a ``random.Random``."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import numpy as np

ODD = [
    "", " ", "\x00", "\ud800", "http://[x", "NaN", "Infinity", "-1", "1e999", "9" * 5000, "9" * 25, "0x10", "é", "e\u0301",
    "\u2028", "a\nb", "a\rb", '"', '""', "'", ",", ";", "\t", "=1+1", "null", "true", "../x", "x" * 140_000, "\u202e", "\ufeff",
    "1,5", "٣", "{", "[", "cat ", " 1", "Cat", "b/1", "-0", "1_000", "ab12cd34-1",
]  # fmt: skip
ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "cp1251", "cp932", "koi8_r", "cp037"]
MARKS = [
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b'"',
    b"\r",
    b"\n",
    b",",
    b";",
    b"\t",
    b"[",
    b"{",
    b"9" * 400,
]
DEEP, LONG = "@deep@", "@long@"
_VALUES: list[Any] = [
    None, True, [], {}, [[]], [None], {"label": {}}, 0, -1, 1e308, 10**25, float("nan"), float("inf"), DEEP, LONG, 1.5, [1, 2],
]  # fmt: skip


def mutate(rng: random.Random, content: bytes, kind: str) -> bytes:
    """One to three mutations of a valid file of the ``kind`` csv, json, jsonl, npz or bytes."""
    data = content
    for _ in range(rng.choice([1, 1, 2, 3])):
        if kind == "bytes" or rng.random() < 0.4:
            data = _bytes(rng, data)
        elif kind == "npz":
            data = _npz(rng, data)
        elif kind == "csv" or rng.random() < 0.2:
            data = _text(rng, data)
        else:
            data = _lines(rng, data) if kind == "jsonl" else _json(rng, data)
    return data


def _bytes(rng: random.Random, data: bytes) -> bytes:
    if not data:
        return rng.choice(MARKS)
    at, to = sorted((rng.randrange(len(data) + 1), min(len(data), rng.randrange(len(data) + 1))))
    which = rng.randrange(6)
    if which == 0:
        return data[:at]
    if which == 1:
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 4, 20])):
            changed[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(changed)
    if which == 2:
        return data[:at] + rng.choice(MARKS) + data[at:]
    if which == 3:
        return data[:at] + data[to:]
    if which == 4:
        return data[:to] + data[at:]
    return data[:at] + data[at:to][::-1] + data[to:]


def _text(rng: random.Random, data: bytes) -> bytes:
    text = data.decode("utf-8", errors="replace")
    which = rng.randrange(7)
    if which == 0:
        return text.encode(rng.choice(ENCODINGS), errors="replace")
    if which == 1:
        return text.replace(rng.choice([",", "\n", '"', "."]), rng.choice([";", "\t", "|", "\r", "\r\n", ",,", ""])).encode()
    if which == 2:
        return (rng.choice(["sep=;\n", "sep=,\r\n", "\n\n", "#\n"]) + text).encode()
    rows = [line.split(",") for line in text.split("\n")]
    row = rng.choice(rows)
    if which == 3:
        row[rng.randrange(len(row))] = rng.choice(ODD)
    elif which == 4:
        rows.insert(rng.randrange(len(rows) + 1), list(row))
    elif which == 5:
        for cells in rows:
            rng.shuffle(cells)
    else:
        row[rng.randrange(len(row))] = rng.choice(rng.choice(rows))
    return "\n".join(",".join(cells) for cells in rows).encode("utf-8", errors="surrogatepass")


def _json(rng: random.Random, data: bytes) -> bytes:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return _bytes(rng, data)
    places: list[tuple[Any, Any]] = []
    _walk(tree, places)
    if not places:
        return json.dumps(rng.choice(_VALUES)).encode()
    parent, key = rng.choice(places)
    value = rng.choice(ODD) if rng.random() < 0.4 else rng.choice(_VALUES)
    which = rng.randrange(5)
    if which == 0:
        del parent[key]
    elif which == 1:
        parent[key] = [parent[key], parent[key]]
    elif which == 2 and isinstance(parent, dict):
        parent[rng.choice(ODD)] = parent.pop(key)
    elif which == 3 and isinstance(parent, list):
        parent.append(parent[key])
    else:
        parent[key] = value
    text = json.dumps(tree).replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000).replace(f'"{LONG}"', "9" * 5000)
    return text.encode()


def _lines(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = _json(rng, lines[at])
    return b"\n".join(lines)


def _npz(rng: random.Random, data: bytes) -> bytes:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            arrays = dict(found)
    except Exception:  # an earlier mutation has left no arrays
        return _bytes(rng, data)
    name = rng.choice([*arrays, "more"])
    array = arrays.pop(name, np.zeros(3))
    flat, odd = np.atleast_1d(array), [np.array(None), np.array(5), np.empty((0, 3)), np.array([b"x"])]
    changes = [flat[:-1], array[None], array.astype(str), flat.ravel()[:1], *odd]
    if array.dtype.kind in "fi":
        changes += [-array - 1, array + array + 7, array.astype(complex), array.astype(bool)]
    if array.dtype.kind == "f":
        changes += [np.full_like(array, np.nan), np.full_like(array, np.inf)]
    if rng.random() < 0.8:
        arrays[name] = rng.choice(changes)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _walk(tree: Any, places: list[tuple[Any, Any]]) -> None:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        children = list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
        places += [(node, key) for key, _ in children]
        waiting += [child for _, child in children]
