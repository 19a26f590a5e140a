"""Modes of images to 8-bit RGB, by stated rules.

- **Transparent** images lie on white, by an alpha channel, premultiplied or not, by a palette, or by one transparent colour.
- **16-bit grey** is divided by 256. Where all values are below 4096 it is 12-bit data, divided by 16, and where all are below
  256 it is 8-bit data and stays unchanged; where a TIFF states its depth (BitsPerSample below 16, MaxSampleValue), that depth
  counts.
- **32-bit grey** of values from 0 to 65,535 is 16-bit grey.
- **Float grey** of values from 0 to 1 is multiplied by 255; of values up to 255 with a maximum of 16 or more it stays
  unchanged.
- 16-bit colour is what Pillow makes of it, the upper byte; where that leaves nothing but black, it is refused.
- Other grey (negative values, NaN, larger ranges, floats with a maximum between 1 and 16) is refused with the range it has.
- CMYK, YCbCr, LAB, HSV, palettes and bilevel images are converted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

_BAND = 1 << 22  # pixels that are converted at once where the result is smaller
_BITS, _PHOTOMETRIC, _MAX_SAMPLE = 258, 262, 281  # TIFF tags
_TOP = 65_535
_SLACK = 1e-3  # of floats that should not exceed 1
_DARKEST = 16  # a maximum below it looks black

Convert = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Stated:
    """What a file says of its samples: Pillow's raw mode, bits where they are fewer than the mode's, and whether 0 is white."""

    raw: str = ""
    bits: int | None = None
    white_is_zero: bool = False


def stated(image: Image.Image) -> Stated:
    """Read what the file of an image says; it must not have been loaded yet."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    raw = str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)
    if image.format == "PPM" and image.mode == "I":
        return Stated(raw, 16)  # its decoder scales to 16 bits
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return Stated(raw)
    bits, top = _tag(image, _BITS), _tag(image, _MAX_SAMPLE)
    depths = [bits] if bits in range(9, 16) else [top.bit_length()] if top in range(256, _TOP) else []
    return Stated(raw, depths[0] if depths else None, _tag(image, _PHOTOMETRIC) == 0)


def to_rgb8(image: Image.Image, known: Stated, factor: int = 1) -> Image.Image:
    """Convert a loaded image to RGB, ``factor`` times smaller by the mean of each square.

    Raises:
        OSError: Values that no rule covers.
    """
    convert = _conversion(image, known)
    if factor == 1:
        return convert(image)
    width, height = (-(-side // factor) for side in image.size)
    result = Image.new("RGB", (width, height))
    for top, band in _bands(image, factor):
        result.paste(convert(band).reduce(factor), (0, top // factor))
    return result


def _conversion(image: Image.Image, known: Stated) -> Convert:
    """What turns the image, or a part of it, into RGB."""
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        return _grey(image, known)
    if ";16" in known.raw and mode == "RGB":
        _check_deep(image)
    if mode == "LAB":
        return _from_lab
    if not image.has_transparency_data:
        return _opaque
    return lambda part: _on_white(part, known.raw)


def _opaque(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image, raw: str) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")  # Pillow converts it to nothing else
    clear = image.info.get("transparency")
    if image.mode == "1":
        image = image.convert("L")
    if image.mode in ("L", "RGB") and clear is not None:  # a colour, in the file's own depth
        image.info["transparency"] = _in_8_bits(clear, raw)
    rgba = image.convert("RGBA")
    result = Image.new("RGB", image.size, "white")
    result.paste(rgba, mask=rgba.getchannel("A"))
    return result


def _in_8_bits(colour: Any, raw: str) -> Any:
    """A transparent colour of a file with samples of other depths, as Pillow decodes them."""
    if isinstance(colour, tuple):
        return tuple(value >> 8 for value in colour) if ";16" in raw else colour
    return {"L;2": 85, "L;4": 17}.get(raw, 1) * colour if isinstance(colour, int) else colour


def _check_deep(image: Image.Image) -> None:
    """Refuse 16-bit colour whose upper bytes hold next to nothing."""
    brightest = max(high for _, high in image.getextrema())  # type: ignore[misc]
    if 0 < brightest < _DARKEST:
        raise OSError(f"16-bit colour with values below {256 * _DARKEST}, which would look black; scale it or save it as 8-bit")


def _from_lab(image: Image.Image) -> Image.Image:
    result = ImageCms.applyTransform(image, _lab_transform())
    assert result is not None
    return result


@cache
def _lab_transform() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


def _grey(image: Image.Image, known: Stated) -> Convert:
    """Grey of more than 8 bits by the rules above; one transparent value is white."""
    low, high = _range(image)
    is_float = image.mode == "F"
    scale = _float_scale(low, high) if is_float else _integer_scale(low, high, known.bits)
    clear = image.info.get("transparency")

    def convert(part: Image.Image) -> Image.Image:
        values = np.asarray(part)
        scaled = np.clip(values * scale, 0, 255) + 0.5 if is_float else values // int(scale)
        grey = scaled.astype(np.uint8)
        if known.white_is_zero:
            grey = 255 - grey
        if isinstance(clear, int):
            grey = np.where(values == clear, np.uint8(255), grey)
        return Image.fromarray(grey).convert("RGB")

    return convert


def _integer_scale(low: float, high: float, bits: int | None) -> int:
    """The divisor of integers."""
    if low < 0 or high > _TOP:
        raise OSError(f"grey values from {low:g} to {high:g}; allowed are 0 to {_TOP:,}: scale it, or save it as 8-bit")
    needed = 8 if high < 256 else 12 if high < 4096 else 16
    if bits is not None and high < 1 << bits:
        needed = bits
    return 1 << (needed - 8)


def _float_scale(low: float, high: float) -> float:
    """The factor of floats."""
    if low >= 0 and high <= 1 + _SLACK:
        return 255.0
    if low >= 0 and _DARKEST <= high <= 255:
        return 1.0
    raise OSError(f"float values from {low:g} to {high:g}; allowed are 0 to 1, and 0 to 255: scale it, or save it as 8-bit")


def _range(image: Image.Image) -> tuple[float, float]:
    """Least and largest value, NaN where there is any."""
    pairs = [(values.min(), values.max()) for values in (np.asarray(band) for _, band in _bands(image, 1))]
    return float(np.min([low for low, _ in pairs])), float(np.max([high for _, high in pairs]))


def _bands(image: Image.Image, factor: int) -> Iterator[tuple[int, Image.Image]]:
    """The image cut into rows, a multiple of ``factor`` each, with the first row of each part."""
    step = factor * max(1, _BAND // (image.width * factor))
    for top in range(0, image.height, step):
        yield top, image.crop((0, top, image.width, min(image.height, top + step)))


def _tag(image: TiffImagePlugin.TiffImageFile, tag: int) -> int:
    """A tag's first number; 0 where there is none, or it is damaged."""
    try:
        value = image.tag_v2.get(tag, 0)
        return int(value[0] if isinstance(value, tuple) else value)
    except Exception:  # tags of files are anything
        return 0
