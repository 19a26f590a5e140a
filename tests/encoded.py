"""Encoded images, written byte by byte where Pillow would not write them so, and what they decode to."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from lightning_annot.data.decode import decode

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 7, 3), np.uint8)
ALPHA = np.resize(np.array([0, 255, 128, 1, 254], np.uint8), (5, 7))

GREY, RGB = 0, 2  # colour types of PNG


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(rows: Sequence[bytes], size: tuple[int, int], bits: int, colour: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """Packed rows as PNG, with chunks ``before`` and ``after`` the pixels."""
    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), before, chunk(b"IDAT", pixels), after, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def rgb_png(pixels: np.ndarray, before: bytes = b"", after: bytes = b"") -> bytes:
    """Pixels (h, w, 3) uint8 as PNG."""
    height, width, _ = pixels.shape
    return png([row.tobytes() for row in pixels], (width, height), 8, RGB, before, after)


def tiff(data: bytes, size: tuple[int, int], bits: int, photometric: int) -> bytes:
    """One strip of grey as little-endian TIFF."""
    tags = [(256, 4, size[0]), (257, 4, size[1]), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
            (277, 3, 1), (278, 4, size[1]), (279, 4, len(data))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    padded = data + bytes(len(data) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(padded)) + padded + struct.pack("<H", len(tags)) + entries + bytes(4)


def exif(kind: int, count: int, value: bytes) -> bytes:
    """An EXIF block with the orientation tag alone, as any type."""
    return b"II*\0" + struct.pack("<IHHHI", 8, 1, 0x0112, kind, count) + value.ljust(4, b"\0") + bytes(4)


def with_segment(jpeg: bytes, marker: int, data: bytes) -> bytes:
    """A JPEG with one more segment at its beginning."""
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data + jpeg[2:]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(content: bytes | Image.Image, **options: Any) -> np.ndarray:
    image = decode(content, **options)
    assert image.mode == "RGB"
    assert not image.info
    return np.asarray(image)


def near(found: np.ndarray, wanted: np.ndarray, by: int = 1) -> bool:
    return found.shape == wanted.shape and int(np.abs(found.astype(int) - wanted.astype(int)).max()) <= by
