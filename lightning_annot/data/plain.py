"""Encoded images without their metadata, for those whose metadata is damaged while their pixels are good."""

from __future__ import annotations

import struct
import zlib

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_PNG_KEPT = (b"tRNS", b"eXIf")  # kept with the critical chunks: transparency belongs to the pixels
_EXIF, _ADOBE = 0xE1, 0xEE  # segments of JPEG; Adobe's says how colours are stored
_ADOBE_LENGTH = 14  # with its own length
_START_OF_SCAN = 0xDA


def without_metadata(data: bytes) -> bytes | None:
    """A PNG or JPEG without texts, profiles and other metadata but the orientation; None for anything else.

    None too where there is nothing to leave out.
    """
    plain = _plain_png(data) if data.startswith(_PNG) else _plain_jpeg(data) if data.startswith(_JPEG) else data
    return plain if len(plain) < len(data) else None


def _plain_png(data: bytes) -> bytes:
    parts, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        chunk = data[at : at + 12 + length]
        is_critical = not kind[0] & 0x20  # a capital letter
        if is_critical or (kind in _PNG_KEPT and (kind != b"eXIf" or _is_whole(chunk))):
            parts.append(chunk)
        at += 12 + length
    return b"".join([*parts, data[at:]])


def _is_whole(chunk: bytes) -> bool:
    """Whether a PNG chunk has the checksum that it states."""
    return chunk[-4:] == zlib.crc32(chunk[4:-4]).to_bytes(4, "big")


def _plain_jpeg(data: bytes) -> bytes:
    parts, at = [_JPEG], len(_JPEG)
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (_START_OF_SCAN, 0xFF) or 0xD0 <= marker <= 0xD9:  # pixels, or what has no length
            break
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not is_metadata or marker == _EXIF or (marker == _ADOBE and length >= _ADOBE_LENGTH):
            parts.append(data[at : at + 2 + length])
        at += 2 + length
    return b"".join([*parts, data[at:]])
