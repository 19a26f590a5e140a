"""Images inside a zip file, read in place."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from lightning_annot.data.digests import content_digest
from lightning_annot.data.images import Images, class_labels, is_image_name
from lightning_annot.types import AnnotError


class ZipStore:
    """Members of a zip file by index. Each process opens the file itself, since forked handles share their position."""

    def __init__(self, path: str, members: Sequence[zipfile.ZipInfo]) -> None:
        self._path = path
        self._members = tuple(members)
        self._twins = frozenset(key for key, count in Counter(map(_stamp, members)).items() if count > 1)
        self._archive: zipfile.ZipFile | None = None
        self._owner = 0

    def open(self, index: int) -> Image.Image:
        """Decode the member; the zip's own checksum is verified on the way."""
        return Image.open(BytesIO(self._read(index)))

    def digests(self, indices: Sequence[int]) -> list[str]:
        """Digests of the CRC-32 and size that the zip keeps, so nothing is read.

        32 bits are few for a large set: members that share checksum and size are read and told apart by their content.
        """
        return [self._digest(index) for index in indices]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}

    def _digest(self, index: int) -> str:
        crc, size = _stamp(self._members[index])
        if (crc, size) not in self._twins:
            return content_digest(b"zip", crc.to_bytes(4, "little"), size.to_bytes(8, "little"))
        try:
            return content_digest(self._read(index))
        except Exception:  # damaged or encrypted: opening it fails too, and that is where it is reported
            return content_digest(b"unreadable", self._members[index].filename.encode())

    def _read(self, index: int) -> bytes:
        if self._archive is None or self._owner != os.getpid():
            self._archive = zipfile.ZipFile(self._path)
            self._owner = os.getpid()
        return self._archive.read(self._members[index])


def zip_source(path: str | os.PathLike[str]) -> Images:
    """Images of a zip file, flat or in class folders as ``folder_source``; ids are member names, rows sorted by id."""
    path = Path(path).absolute()
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise AnnotError(f"{path} cannot be read as a zip file ({error}); it may be cut: write or download it again") from error
    members = [member for member in members if not member.is_dir() and is_image_name(member.filename)]
    if not members:
        raise AnnotError(f"{path} holds no images; it may be flat or have one folder a class")
    members.sort(key=lambda member: member.filename)
    ids = [member.filename for member in members]
    paths = [f"{path}/{name}" for name in ids]
    return Images(ids, paths, class_labels(ids, str(path)), ZipStore(str(path), members))


def _stamp(member: zipfile.ZipInfo) -> tuple[int, int]:
    return member.CRC, member.file_size
