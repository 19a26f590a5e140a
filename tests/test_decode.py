"""Decoded images are what a person would see: modes, transparency, depth, frames, metadata, limits."""

from __future__ import annotations

import contextlib
import io
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoded import GREY, RGB, chunk, exif, png, rgb_png, tiff, with_segment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageCms, TiffImagePlugin

from lightning_annot.data.decode import PIXEL_LIMIT, decode
from lightning_annot.data.sources import folder_source

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 7, 3), np.uint8)
ALPHA = np.resize(np.array([0, 255, 128, 1, 254], np.uint8), (5, 7))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(content: bytes | Image.Image, **options: Any) -> np.ndarray:
    image = decode(content, **options)
    assert image.mode == "RGB"
    assert not image.info
    return np.asarray(image)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Pixel by pixel, as anybody would write it; (h, w, 3) and (h, w)."""
    result = np.empty_like(colour)
    for place in np.ndindex(alpha.shape):
        a = int(alpha[place])
        for c in range(3):
            result[(*place, c)] = round((int(colour[(*place, c)]) * a + 255 * (255 - a)) / 255)
    return result


def near(found: np.ndarray, wanted: np.ndarray, by: int = 1) -> bool:
    return found.shape == wanted.shape and int(np.abs(found.astype(int) - wanted.astype(int)).max()) <= by


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


# Metadata

TURNED = exif(3, 1, b"\x06\0")
DAMAGED = {
    "garbage": chunk(b"eXIf", b"\0garbage"),
    "cut": chunk(b"eXIf", TURNED[:14]),
    "empty": chunk(b"eXIf", b""),
    "as text": chunk(b"eXIf", exif(2, 2, b"6\0")),
    "as bytes": chunk(b"eXIf", exif(7, 4, b"\x06\0\0\0")),
    "nonsense": chunk(b"eXIf", exif(3, 1, b"\x63\0")),
    "a bomb of text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 << 20))),
    "text with a bad checksum": chunk(b"tEXt", b"Comment\0hello", checksum=7),
    "a short profile": chunk(b"iCCP", b"x"),
    "a broken profile": chunk(b"iCCP", b"icc\0\0not deflated"),
    "a short resolution": chunk(b"pHYs", b"\0\0"),
    "a short gamma": chunk(b"gAMA", b"\0"),
    "odd XMP": chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0tiff:Orientation="9"'),
    "an odd raw profile": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nzz"),
}


@pytest.mark.parametrize("what", DAMAGED)
@pytest.mark.parametrize("place", ["before", "after"])
def test_damaged_metadata_costs_no_pixels(what: str, place: str) -> None:
    assert (pixels(rgb_png(COLOUR, **{place: DAMAGED[what]})) == COLOUR).all()


def test_an_orientation_with_a_bad_checksum() -> None:
    assert (pixels(rgb_png(COLOUR, chunk(b"eXIf", TURNED, checksum=1))) == COLOUR).all()


def test_a_good_orientation_beside_damaged_text_counts() -> None:
    turned = pixels(rgb_png(COLOUR, chunk(b"eXIf", TURNED) + DAMAGED["a bomb of text"]))
    assert (turned == np.rot90(COLOUR, -1)).all()


@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation(value: int) -> None:
    undo = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
            6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90}  # fmt: skip
    wanted = undo[value](COLOUR)  # type: ignore[operator]
    assert (pixels(rgb_png(COLOUR, chunk(b"eXIf", exif(3, 1, bytes([value, 0]))))) == wanted).all()
    tagged = Image.Exif()
    tagged[0x0112] = value
    assert (pixels(saved(Image.fromarray(COLOUR), "tiff", exif=tagged)) == wanted).all()


def test_damaged_metadata_of_jpeg_and_tiff() -> None:
    plain = saved(Image.fromarray(COLOUR), "jpeg")
    wanted = pixels(plain)
    for marker, data in ((0xE1, b"Exif\0\0garbage"),
                         (0xE1, b"Exif\0\0" + exif(2, 2, b"6\0")), (0xE1, b"Exif\0\0" + TURNED[:13]),
                         (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation=\"six"), (0xE2, b"ICC_PROFILE\0"),
                         (0xE2, b"ICC_PROFILE\0\x09\x01x"), (0xE2, b"MPF\0II*\0garbage"), (0xED, b"Photoshop 3.0\x008BIM\x04"),
                         (0xFE, b"\xff\xfe comment"), (0xE0, b"JFIF"), (0xEE, b"Adobe")):  # fmt: skip
        assert (pixels(with_segment(plain, marker, data)) == wanted).all(), data
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[34853] = 1 << 30  # a GPS block far beyond the file
    tags[34665] = 3  # an EXIF block inside the header
    assert (pixels(saved(Image.fromarray(COLOUR), "tiff", tiffinfo=tags)) == COLOUR).all()


def test_cut_pixels_stay_an_error() -> None:
    noise = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    whole = [rgb_png(noise), rgb_png(noise, DAMAGED["a short gamma"]), saved(Image.fromarray(noise), "jpeg")]
    for content in (*whole, saved(Image.fromarray(noise), "tiff"), saved(Image.fromarray(noise), "bmp")):
        with pytest.raises((OSError, SyntaxError, ValueError)):
            decode(content[: len(content) // 2])


def test_hidden_data_stays_behind() -> None:
    content = with_segment(saved(Image.fromarray(COLOUR), "jpeg"), 0xFE, b"who and where")
    assert b"who and where" not in saved(decode(content), "jpeg")


# Limits


def test_one_limit_of_pixels(tmp_path: Path) -> None:
    small = png([b"\0"], (1, 1), 8, GREY)
    side = 20_000
    bomb = small[:16] + side.to_bytes(4, "big") * 2 + small[24:29]
    bomb += zlib.crc32(bomb[12:29]).to_bytes(4, "big") + small[33:]
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(OSError, match=rf"bomb.png: more than {PIXEL_LIMIT:,} pixels, and an image may have {PIXEL_LIMIT:,}"):
        folder_source(tmp_path).open(0)
    with pytest.raises(OSError, match="400,000,000 pixels"):
        decode(_Pretender((side, side)))
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    assert folder_source(tmp_path).small(1, 100).size == (200, 200)


class _Pretender(Image.Image):
    """An image of a library that says that it is large."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self._size = size


def test_files_that_are_too_large_or_no_files(tmp_path: Path) -> None:
    (tmp_path / "scan.tif").touch()
    os.truncate(tmp_path / "scan.tif", (1 << 30) + 1)  # takes no room on disk
    os.mkfifo(tmp_path / "pipe.png")
    source = folder_source(tmp_path)
    assert source.ids == ("scan.tif",)
    assert source.passed_over == {"special files": 1}
    assert len(source.digests()) == 1
    with pytest.raises(OSError, match=r"scan.tif: 1,073,741,825 bytes, and an image's file may have 1,073,741,824"):
        source.open(0)


def test_what_is_no_image_is_not_handed_to_other_programs(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(OSError, match=r"a.png: no image that Pillow knows"):
        folder_source(tmp_path).open(0)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16", "CMYK"])
def test_small_is_the_same_picture(mode: str) -> None:
    ramp = np.linspace(0, 255, 1000).astype(np.uint8)[None].repeat(600, 0)
    image = Image.fromarray(ramp.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(ramp).convert(mode)
    content = saved(image, "tiff")
    wanted = np.asarray(decode(content).resize((100, 60), Image.Resampling.BOX))
    small = decode(content, edge=100)
    assert small.size == (200, 120)
    assert near(np.asarray(small.resize((100, 60), Image.Resampling.BOX)), wanted, by=2)
    if mode in ("RGB", "L", "CMYK"):
        assert max(decode(saved(image, "jpeg"), edge=100).size) in range(100, 300)
    assert decode(saved(image, "tiff"), edge=2000).size == (1000, 600)


# HEIC and AVIF


def test_heic_and_avif(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    wanted = np.full((64, 48, 3), (200, 40, 60), np.uint8)
    wanted[:20] = 255
    heif.from_pillow(Image.fromarray(wanted)).save(tmp_path / "a.heic", quality=90)
    Image.fromarray(wanted).save(tmp_path / "b.avif", quality=95)
    source = folder_source(tmp_path)
    assert source.ids == ("a.heic", "b.avif")
    assert not source.passed_over
    for row in range(2):
        assert near(np.asarray(source.open(row))[[5, 50], [5, 5]], wanted[[5, 50], [5, 5]], by=8)
    turned = Image.Exif()
    turned[0x0112] = 6
    heif.from_pillow(Image.fromarray(wanted)).save(tmp_path / "a.heic", exif=turned.tobytes())
    assert folder_source(tmp_path).open(0).size == (64, 48)


# Any bytes

KINDS = {
    "png": "RGBA",
    "jpeg": "RGB",
    "gif": "P",
    "tiff": "RGB",
    "webp": "RGBA",
    "bmp": "RGB",
    "ppm": "RGB",
    "ico": "RGBA",
    "avif": "RGB",
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_are_read_or_named(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    options = {"exif": turned} if kind in ("jpeg", "tiff", "webp") else {}
    content = bytearray(saved(Image.fromarray(np.dstack([COLOUR, ALPHA])).convert(KINDS[kind]), kind, **options))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    (tmp_path / "a.png").write_bytes(content)
    with contextlib.suppress(OSError):  # and nothing else
        assert folder_source(tmp_path).open(0).mode == "RGB"
