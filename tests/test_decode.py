"""Decoded images are what a person would see: modes, transparency, depth, frames, metadata, limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from encoded import ALPHA, COLOUR, GREY, RGB, RNG, chunk, near, pixels, png, saved, tiff
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageCms, TiffImagePlugin

from lightning_annot.data.decode import decode
from lightning_annot.data.sources import folder_source


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Pixel by pixel, as anybody would write it; (h, w, 3) and (h, w)."""
    result = np.empty_like(colour)
    for place in np.ndindex(alpha.shape):
        a = int(alpha[place])
        for c in range(3):
            result[(*place, c)] = round((int(colour[(*place, c)]) * a + 255 * (255 - a)) / 255)
    return result


# Transparency


def test_black_shapes_on_a_transparent_ground_are_black_on_white() -> None:
    shape = np.zeros((5, 7, 4), np.uint8)
    shape[2, 3, 3] = 255
    found = pixels(saved(Image.fromarray(shape), "png"))
    assert (found[2, 3] == 0).all()
    assert (np.delete(found.reshape(-1, 3), 2 * 7 + 3, axis=0) == 255).all()


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_rgba(kind: str) -> None:
    image = Image.fromarray(np.dstack([COLOUR, ALPHA]))
    options = {"lossless": True, "exact": True} if kind == "webp" else {}
    assert near(pixels(saved(image, kind, **options)), on_white(COLOUR, ALPHA))


def test_grey_with_alpha_and_premultiplied_alpha() -> None:
    grey = np.repeat(COLOUR[:, :, :1], 3, axis=2)
    la = Image.fromarray(np.dstack([COLOUR[:, :, 0], ALPHA]), "LA")
    assert near(pixels(saved(la, "png")), on_white(grey, ALPHA))
    assert near(pixels(la.convert("La")), on_white(grey, ALPHA))
    rgba = Image.fromarray(np.dstack([COLOUR, ALPHA]))
    assert near(pixels(rgba.convert("RGBa")), on_white(COLOUR, ALPHA))


def test_palettes() -> None:
    index = RNG.integers(0, 4, (5, 7), np.uint8)
    table = RNG.integers(0, 256, (4, 3), np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(table.tobytes())
    alpha = np.array([0, 128, 255, 7], np.uint8)
    assert near(pixels(saved(image, "png", transparency=alpha.tobytes())), on_white(table[index], alpha[index]))
    one = np.where(index == 2, 0, 255).astype(np.uint8)
    assert near(pixels(saved(image, "png", transparency=2)), on_white(table[index], one))
    assert near(pixels(saved(image, "gif", transparency=2)), on_white(table[index], one))
    assert near(pixels(image), table[index])
    pa = image.convert("PA")
    pa.putalpha(Image.fromarray(ALPHA))
    assert pa.mode == "PA"
    assert near(pixels(pa), on_white(table[index], ALPHA))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_one_transparent_grey_of_any_depth(bits: int) -> None:
    steps = np.array([0, 1, (1 << bits) - 1, 1], np.uint16)[None].repeat(2, 0)
    packed = [sum(int(v) << (bits * (3 - i)) for i, v in enumerate(row)) for row in steps]
    length = max(1, bits * 4 // 8)
    rows = [(value << max(0, 8 - bits * 4)).to_bytes(length, "big") for value in packed]
    clear = (1 << bits) - 1
    found = pixels(png(rows, (4, 2), bits, GREY, chunk(b"tRNS", clear.to_bytes(2, "big"))))
    plain = pixels(png(rows, (4, 2), bits, GREY))
    assert (found[:, :, 0][steps == clear] == 255).all()
    assert (found[steps != clear] == plain[steps != clear]).all()
    black = pixels(png(rows, (4, 2), bits, GREY, chunk(b"tRNS", bytes(2))))
    assert (black[:, 0] == 255).all()
    assert (black[:, 1:] == plain[:, 1:]).all()


def test_one_transparent_colour() -> None:
    grey = Image.fromarray(COLOUR[:, :, 0])
    clear = int(COLOUR[1, 1, 0])
    wanted = np.where(COLOUR[:, :, 0] == clear, 255, COLOUR[:, :, 0])
    assert (pixels(saved(grey, "png", transparency=clear)) == wanted[:, :, None]).all()
    found = pixels(saved(Image.fromarray(COLOUR), "png", transparency=tuple(COLOUR[1, 1].tolist())))
    assert (found[1, 1] == 255).all()
    assert (np.delete(found.reshape(-1, 3), 8, 0) == np.delete(COLOUR.reshape(-1, 3), 8, 0)).all()
    deep = [np.array([[0x1234, 0x5678, 0x9ABC], [100, 0x5000, 100]], ">u2").tobytes()]
    assert pixels(png(deep, (2, 1), 16, RGB)).tolist() == [[[0x12, 0x56, 0x9A], [0, 0x50, 0]]]
    found = pixels(png(deep, (2, 1), 16, RGB, chunk(b"tRNS", bytes([0x12, 0x34, 0x56, 0x78, 0x9A, 0xBC]))))
    assert found.tolist() == [[[255, 255, 255], [0, 0x50, 0]]]


# Depth


def as_8_bits(values: np.ndarray) -> np.ndarray:
    """The rule for 16-bit grey, value by value."""
    top = max(int(value) for value in values.flat)
    divisor = 1 if top < 256 else 16 if top < 4096 else 256
    return np.array([int(value) // divisor for value in values.flat], np.uint8).reshape(values.shape)


SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=6)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([255, 256, 4095, 4096, 65535]))
def test_16_bit_grey(data: st.DataObject, top: int) -> None:
    values = data.draw(arrays.arrays(np.uint16, SHAPES, elements=st.integers(0, top)))
    wanted = np.repeat(as_8_bits(values)[:, :, None], 3, axis=2)
    image = Image.fromarray(values)
    contents: list[bytes | Image.Image] = [image, saved(image, "png"), saved(image, "tiff")]
    contents.append(Image.fromarray(values.astype(np.int32)))
    contents.append(saved(Image.fromarray(values.astype(np.int32)), "tiff"))
    for mode, dtype in (("I;16B", ">u2"), ("I;16L", "<u2"), ("I;16N", "=u2")):
        contents.append(Image.frombytes(mode, image.size, values.astype(dtype).tobytes()))
    contents.append(saved(contents[-3], "tiff"))  # type: ignore[arg-type]
    for content in contents:
        assert (pixels(content) == wanted).all()


def test_a_depth_that_the_file_states_counts() -> None:
    values = np.array([[0, 100, 1000]], np.uint16)
    stated = TiffImagePlugin.ImageFileDirectory_v2()
    stated[281] = 1023
    assert pixels(saved(Image.fromarray(values), "tiff", tiffinfo=stated))[0, :, 0].tolist() == [0, 25, 250]
    twelve = bytes([0x00, 0x00, 0x64, 0xFF, 0xF0, 0x00])  # 0, 100, 4095, 0 in 12 bits each
    assert pixels(tiff(twelve, (4, 1), 12, 1))[0, :, 0].tolist() == [0, 6, 255, 0]
    assert pixels(b"P5 3 1 4095\n" + np.array([0, 0x100, 0xFFF], ">u2").tobytes())[0, :, 0].tolist() == [0, 16, 255]
    assert pixels(b"P5 2 1 1023\n" + np.array([0, 1023], ">u2").tobytes())[0, :, 0].tolist() == [0, 255]
    white_is_zero = tiff(np.array([0, 65535], "<u2").tobytes(), (2, 1), 16, 0)
    assert pixels(white_is_zero)[0, :, 0].tolist() == [255, 0]


@settings(max_examples=30, deadline=None)
@given(arrays.arrays(np.float32, SHAPES, elements=st.floats(0, 1, width=32)))
def test_floats(values: np.ndarray) -> None:
    wanted = [[int(float(value) * 255 + 0.5) for value in row] for row in values]
    image = Image.fromarray(values)
    for content in (image, saved(image, "tiff")):
        assert near(pixels(content)[:, :, 0], np.array(wanted))
    bytes_ = np.round(values * 200)
    bytes_[0, 0] = 200
    assert (pixels(Image.fromarray(bytes_.astype(np.float32)))[:, :, 1] == bytes_.astype(np.uint8)).all()


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([-1, 5], np.int32), ([0, 65536], np.int32), ([0.0, np.nan], np.float32), ([-0.5, 0.5], np.float32),
     ([0.0, 256.0], np.float32), ([0.0, 2.0], np.float32), ([0.0, np.inf], np.float32)],
)  # fmt: skip
def test_grey_that_no_rule_covers_is_refused_by_name(values: list[float], dtype: type, tmp_path: Path) -> None:
    Image.fromarray(np.array([values], dtype)).save(tmp_path / "odd.tif")
    with pytest.raises(OSError, match=r"odd.tif: (grey|float) values from .* allowed are"):
        folder_source(tmp_path).open(0)


def test_deep_colour_that_would_be_black_is_refused() -> None:
    with pytest.raises(OSError, match="16-bit colour with values below 4096"):
        decode(png([np.full(6, 4095, ">u2").tobytes()], (2, 1), 16, RGB))
    assert not pixels(png([bytes(12)], (2, 1), 16, RGB)).any()  # black it is


# Other modes and frames


def test_colour_spaces() -> None:
    vivid = Image.new("RGB", (16, 16), (200, 40, 60))
    wanted = np.full((16, 16, 3), (200, 40, 60), np.uint8)
    for mode in ("CMYK", "YCbCr"):
        assert near(pixels(saved(vivid.convert(mode), "jpeg", quality=95)), wanted, by=4)
    assert near(pixels(saved(vivid.convert("CMYK"), "tiff")), wanted)
    assert near(pixels(vivid.convert("HSV")), wanted, by=4)
    lab = ImageCms.applyTransform(
        vivid, ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    )
    assert lab is not None
    assert near(pixels(saved(lab, "tiff")), wanted, by=4)
    bilevel = Image.fromarray(COLOUR[:, :, 0] > 100)
    assert (pixels(saved(bilevel, "png"))[:, :, 0] == np.where(COLOUR[:, :, 0] > 100, 255, 0)).all()


@pytest.mark.parametrize("kind", ["gif", "tiff", "png", "webp"])
def test_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "webp" else {}
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (pixels(content) == (255, 0, 0)).all()
