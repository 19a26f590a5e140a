"""Damaged, huge and hostile images, and formats that need a library: good pixels are read, the rest is named."""

from __future__ import annotations

import contextlib
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from encoded import ALPHA, COLOUR, GREY, RNG, chunk, exif, near, pixels, png, rgb_png, saved, with_segment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from lightning_annot.data.decode import PIXEL_LIMIT, decode
from lightning_annot.data.sources import folder_source

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


def test_a_damaged_heic_lacks_no_library(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    (tmp_path / "a.heic").write_bytes(b"cut")
    with pytest.raises(OSError, match=r"no image that Pillow knows$"):
        folder_source(tmp_path).open(0)


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
