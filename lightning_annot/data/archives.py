"""Images inside a zip file, read in place."""

from __future__ import annotations

import os
import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from lightning_annot.data.decode import check_size
from lightning_annot.data.digests import content_digest
from lightning_annot.data.images import Images
from lightning_annot.data.listing import list_images
from lightning_annot.data.places import refuse_outside
from lightning_annot.types import AnnotError

_IS_UTF8 = 0x800  # flag of a member
_DRIVE = re.compile("[A-Za-z]:/")


class ZipStore:
    """Members of a zip file by index. Each process opens the file itself, since forked handles share their position."""

    def __init__(self, path: str, members: Sequence[zipfile.ZipInfo]) -> None:
        self._path = path
        self._members = tuple(members)
        self._twins = frozenset(key for key, count in Counter(map(_stamp, members)).items() if count > 1)
        self._archive: zipfile.ZipFile | None = None
        self._owner = 0

    def read(self, index: int) -> bytes:
        """The member's content; the zip's own checksum is verified on the way."""
        check_size(self._members[index].file_size)
        return self._content(index)

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
            return content_digest(self.read(index))
        except Exception:  # damaged or encrypted: opening it fails too, and that is where it is reported
            return content_digest(b"unreadable", self._members[index].filename.encode())

    def _content(self, index: int) -> bytes:
        if self._archive is None or self._owner != os.getpid():
            self._archive = zipfile.ZipFile(self._path)
            self._owner = os.getpid()
        return self._archive.read(self._members[index])


def zip_source(path: str | os.PathLike[str], allow_outside: bool = False) -> Images:
    """Images of a zip file, flat or in class folders as ``folder_source``; ids are member names, rows sorted by id.

    Backslashes, which some programs of Windows write, are slashes. Names that lead out of the zip are an error unless
    ``allow_outside``; nothing is unpacked.
    """
    path = Path(path).absolute()
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise AnnotError(f"{path} cannot be read as a zip file ({error}); it may be cut: write or download it again") from error
    named = [(_name(member), member) for member in members]
    files = [(name, member) for name, member in named if not name.endswith("/")]
    folders = {str(parent) for name, _ in named for parent in PurePosixPath(f"{name}x").parents} - {".", "/"}
    listing = list_images([(name, member.filename) for name, member in files], folders, str(path))
    if not allow_outside:
        refuse_outside(path, [name for name in listing.ids if _leads_out(name)])
    by_name = {member.filename: member for member in members}
    paths = [f"{path}/{name}" for name in listing.names]
    store = ZipStore(str(path), [by_name[name] for name in listing.names])
    return Images(listing.ids, paths, listing.labels, store, None, listing.passed_over, listing.notes)


def _name(member: zipfile.ZipInfo) -> str:
    """A member's name with slashes; UTF-8 counts as such where the zip, as macOS writes it, does not say so."""
    name = member.filename
    if not member.flag_bits & _IS_UTF8:  # Python has taken it for code page 437
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _leads_out(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/") or _DRIVE.match(name) is not None


def _stamp(member: zipfile.ZipInfo) -> tuple[int, int]:
    return member.CRC, member.file_size
