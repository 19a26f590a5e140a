"""A real file system of few bytes, for tests of full and read-only disks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A tmpfs at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, kibibytes: int) -> None:
        """Give it more room, or less."""
        self._remount(f"size={kibibytes}k")

    def allow_writing(self, allowed: bool) -> None:
        """Make it read-only, or writable again."""
        self._remount("rw" if allowed else "ro")

    def fill(self) -> None:
        """Leave no room."""
        with suppress_full(), (self.path / "filling").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """Take back what ``fill`` has done."""
        (self.path / "filling").unlink()

    def _remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True, capture_output=True)


@contextmanager
def suppress_full() -> Iterator[None]:
    """The block goes on until the disk is full."""
    with pytest.raises(OSError, match="No space left"):
        yield


@contextmanager
def small_disk(path: Path, kibibytes: int) -> Iterator[SmallDisk]:
    """Mount it; skips the test where that is not allowed."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount command: {error}")
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True, capture_output=True)
