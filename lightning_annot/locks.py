"""Waits for other processes, each announced when it takes long."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from lightning_annot.files import unwritable
from lightning_annot.types import AnnotError

PATIENCE = 3.0  # seconds of silence
GRACE = 10.0  # seconds: processes that a killed run has started may hold its lock a little longer

logger = logging.getLogger(__name__)


@contextmanager
def told_if_slow(what: Path | str) -> Iterator[None]:
    """Warn once if the block, which waits for another process that writes to ``what``, takes longer than ``PATIENCE``."""
    timer = threading.Timer(PATIENCE, logger.warning, ("waiting for another process that writes to %s ...", what))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def alone_in(folder: Path, command: str, cure: str, seconds: float | None = None) -> BaseFileLock:
    """Be the only ``command`` that writes to ``folder``, until the lock is released or the process ends.

    Args:
        folder: An existing folder.
        command: The word for what may run there once, such as ``fit``.
        cure: What a user can do instead of waiting.
        seconds: The longest wait, ``GRACE`` by default.

    Raises:
        AnnotError: Another process holds the lock, or the folder is read-only.
    """
    lock = FileLock(folder / ".lock")
    try:
        with told_if_slow(folder):
            lock.acquire(timeout=GRACE if seconds is None else seconds)
    except Timeout as error:
        raise AnnotError(f"another {command} is running in {folder}; {cure}.") from error
    except OSError as error:
        raise AnnotError(unwritable(folder / ".lock", error)) from error
    return lock
