"""Tiny images in shades that tell them apart, for tests of image sources."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from lightning_annot.types import ImageSource


def png(shade: int, size: int = 6) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (size, size), (shade, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def fill(folder: Path, names: Sequence[str]) -> Path:
    """Write image i of ``names`` in a shade of its own."""
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(shade))
    return folder


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def shade(source: ImageSource, row: int) -> int:
    image = source.open(row)
    assert image.mode == "RGB"
    return int(np.asarray(image)[0, 0, 0])
