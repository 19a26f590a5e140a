"""Small pictures of items, kept in the run's folder so that a report can be made again without the images."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from lightning_annot.files import write_text
from lightning_annot.stored import read_object
from lightning_annot.types import AnnotError

Opener = Callable[[str], "Image.Image | None"]
"""Item id -> its image; None where there is none."""

FILE = "thumbnails.json"
EDGE = 96


def load_thumbnails(run_dir: Path, items: Sequence[str], opener: Opener | None = None) -> dict[str, str]:
    """JPEGs as base64 text of those ``items`` that have an image, from the cache of the run or else from ``opener``.

    An image that cannot be opened is left out: a report is no place to fail for one. The cache keeps what earlier calls
    found for the same items; with an opener it drops the rest, so it never grows beyond one page. A damaged one is made anew.
    """
    cache = run_dir / FILE
    known = _known(cache) if cache.is_file() else {}
    found = {item: known[item] for item in items if item in known}
    if opener is None:
        return found
    for item in items:
        if item not in found and (picture := _open(opener, item)) is not None:
            found[item] = encode(picture)
    if found and found != known:
        write_text(cache, json.dumps(found))
    return found


def encode(image: Image.Image, edge: int = EDGE) -> str:
    """JPEG, longest side ``edge`` pixels, as base64 text.

    Tiny images grow by whole pixels, so that they stay sharp.
    """
    picture = image.convert("RGB")
    scale = edge / max(picture.size)
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    width, height = (max(1, round(side * scale)) for side in picture.size)
    buffer = io.BytesIO()
    picture.resize((width, height), method).save(buffer, format="JPEG", quality=82, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def decode(thumbnail: str) -> Image.Image:
    """The image of what ``encode`` made."""
    return Image.open(io.BytesIO(base64.b64decode(thumbnail)))


def _known(cache: Path) -> dict[str, str]:
    try:
        known = read_object(cache)
        for picture in known.values():
            base64.b64decode(picture, validate=True)
    except (AnnotError, TypeError, ValueError):
        return {}
    return known


def _open(opener: Opener, item: str) -> Image.Image | None:
    try:
        return opener(item)
    except (OSError, KeyError):
        return None
