"""From an encoded image, or one of a library, to the upright RGB image that a person would see: the one way to pixels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from stat import S_ISREG

from PIL import Image, TiffImagePlugin, features

from lightning_annot.data.pixels import stated, to_rgb8
from lightning_annot.data.plain import without_metadata

DECODING = "2"
"""Part of a feature bank's key: it changes whenever some image decodes to other pixels than before."""

PIXEL_LIMIT = 2 * 89_478_485
"""Most pixels of an image: where Pillow, too, takes it for a decompression bomb."""

FILE_LIMIT = 1 << 30
"""Most bytes of an image's file."""

HEIF_EXTENSIONS = (".heic", ".heics", ".heif", ".heifs", ".hif")
HEIF_EXTRA = "pip install 'lightning-annot[heif]'"

Room = Callable[[int], "AbstractContextManager[object]"]
"""Entered with a number of pixels before they are decoded; left when all of them but the result are gone."""

_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns of large images and damaged metadata. Neither matters here: the limit is above, and metadata costs no pixels.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(content: bytes | Image.Image, edge: int | None = None, room: Room = nullcontext) -> Image.Image:
    """Decode an image to RGB, turned as its orientation says and without metadata.

    Damaged metadata costs the orientation at most, never the image. Of several frames the first counts. ``pixels.py`` has the
    rules for modes.

    Args:
        content: An encoded image, or one that a library has opened.
        edge: If given, the result may be smaller than the image, but its longest side is no shorter than this.
        room: Limits what is decoded at once.

    Raises:
        OSError: More pixels than ``PIXEL_LIMIT``, or values that no rule covers.
        Exception: Whatever the decoder raises for damaged pixels.
    """
    if isinstance(content, Image.Image):
        return _decode(content, edge, room)
    try:
        return _decode(_open(content), edge, room)
    except MemoryError:
        raise
    except Exception:
        plain = without_metadata(content)
        if plain is None:
            raise
        with suppress(Exception):
            return _decode(_open(plain), edge, room)
        raise


def read_file(path: str | Path) -> bytes:
    """Read an image's file whole.

    Raises:
        OSError: No such file, no regular file, or more than ``FILE_LIMIT`` bytes.
    """
    found = Path(path).stat()
    if not S_ISREG(found.st_mode):
        raise OSError("no regular file")
    check_size(found.st_size)
    return Path(path).read_bytes()


def check_size(n_bytes: int) -> None:
    """Raise OSError for more than ``FILE_LIMIT`` bytes."""
    if n_bytes > FILE_LIMIT:
        raise OSError(f"{n_bytes:,} bytes, and an image's file may have {FILE_LIMIT:,}; make it smaller")


@cache
def image_kinds() -> tuple[str, ...]:
    """Pillow's names of the formats that are read, in its order: all that it calls an image, and HEIC with pillow-heif.

    Others, such as PostScript, which another program would run, are left out whatever a file's name says.
    """
    Image.preinit()
    Image.init()
    if find_spec("pillow_heif") is not None:
        with suppress(ImportError, OSError):  # installed, but built for other libraries
            from pillow_heif import register_heif_opener

            register_heif_opener()
    kinds = [kind for kind in Image.ID if Image.MIME.get(kind, "").startswith("image/")]
    return tuple(kind for kind in kinds if kind != "AVIF" or features.check("avif"))


def _open(data: bytes) -> Image.Image:
    check_size(len(data))
    try:
        return Image.open(BytesIO(data), formats=image_kinds())
    except Image.DecompressionBombError:
        raise _too_large(f"more than {PIXEL_LIMIT:,}") from None


def _decode(image: Image.Image, edge: int | None, room: Room) -> Image.Image:
    n_pixels = image.width * image.height
    if n_pixels > PIXEL_LIMIT:
        raise _too_large(f"{n_pixels:,}")
    known, longest = stated(image), max(image.size)
    if edge is not None and longest > edge:  # JPEG decodes to a half, a quarter or an eighth at a fraction of the cost
        image.draft(None, (max(1, image.width * edge // longest), max(1, image.height * edge // longest)))
    with room(n_pixels if "progressive" in image.info else image.width * image.height):
        image = _loaded(image)
        turn = None if isinstance(image, TiffImagePlugin.TiffImageFile) else _turn(image)  # TIFF turns itself
        factor = 1 if edge is None else max(1, max(image.size) // (2 * edge))
        result = to_rgb8(image, known, factor)
        del image
        result = result if turn is None else result.transpose(turn)
    result.info.clear()
    return result


def _loaded(image: Image.Image) -> Image.Image:
    """The image with its pixels read; a TIFF's tags, which Pillow reads after them, may be damaged."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        image.load()
        return image
    damaged: list[Exception] = []
    end = image.load_end

    def lenient() -> None:
        try:
            end()
        except Exception as error:
            damaged.append(error)

    image.load_end = lenient  # type: ignore[method-assign]
    image.load()
    return image.copy() if damaged else image  # its size may be that of the turned image


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn the image upright; None where its metadata does not say, or says nonsense."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # parsers of EXIF and XMP raise anything on damaged data, and the pixels are good
        return None


def _too_large(pixels: str) -> OSError:
    return OSError(f"{pixels} pixels, and an image may have {PIXEL_LIMIT:,}; make it smaller")
