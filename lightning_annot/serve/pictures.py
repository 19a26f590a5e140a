"""The run that a page is about, once it has begun, and its images, encoded anew."""

from __future__ import annotations

import io
import logging
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from lightning_annot.data.page_task import TASK_FILE, PageTask
from lightning_annot.serve.room import Room
from lightning_annot.types import AnnotError

if TYPE_CHECKING:
    from lightning_annot.data.images import Images

logger = logging.getLogger(__name__)

LARGE, SMALL = 1280, 160  # pixels of the longest side
AT_ONCE = 1 << 25  # pixels that are decoded at once, four bytes each; a larger image has its turn alone
_TINY = 128  # pixels; smaller images lose nothing
_KEPT = 256  # encoded images
_BLOCK = 1 << 26  # bytes of Pillow's blocks: allocators give larger ones back, and keep smaller ones for each thread
_THREADS = 4  # as many files are in memory at once; what waits for them holds no thread of the page

Key = tuple[str, int]


@dataclass(frozen=True)
class Picture:
    """An encoded image."""

    data: bytes
    media_type: str


class Pictures:
    """The task of a run's folder and its images. A file never leaves as it is: hidden data in it (places, names) stay here."""

    def __init__(self, directory: Path) -> None:
        Image.core.set_block_size(_BLOCK)  # type: ignore[attr-defined]
        self._path = directory / TASK_FILE
        self._lock = threading.Lock()  # never held for long: the page's event loop takes it
        self._opening = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._task: PageTask | None = None
        self._source: tuple[Images, dict[str, int]] | None = None
        self._kept: OrderedDict[Key, Picture] = OrderedDict()
        self._coming: dict[Key, Future[Picture]] = {}
        self._threads = ThreadPoolExecutor(_THREADS, "pictures")
        self._room = Room(AT_ONCE)

    def task(self) -> PageTask | None:
        """The run's task; None before its run has begun. Read anew when another run has replaced it."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return self._task
        stamp = (found.st_mtime_ns, found.st_size)
        if stamp != self._stamp:
            task = PageTask.read(self._path)
            with self._lock:
                if self._task is None or task.images != self._task.images:
                    self._source = None
                    self._kept.clear()
                    self._coming.clear()
                self._task, self._stamp = task, stamp
        return self._task

    def open(self) -> tuple[Images, dict[str, int]]:
        """Find the images, and the row of each by its id, which takes seconds for many; done by the first request otherwise."""
        with self._opening:
            while (found := self._source) is None:
                task = self._task
                if task is None or task.images is None:
                    raise AnnotError(f"{self._path} names no images; give the run data.root, so that people can see them.")
                source = task.images.open()
                with self._lock:
                    if self._task is task:  # else another run has begun meanwhile
                        self._source = source, {item: row for row, item in enumerate(source.ids)}
            return found

    def close(self) -> None:
        """Decode nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def encoded(self, item: str, edge: int) -> Future[Picture]:
        """The image of an item, at most ``edge`` pixels wide and high, some time; an AnnotError if there is none to show.

        All who ask for the same image while it is decoded share one result.
        """
        key = (item, edge)
        with self._lock:
            if (known := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                done: Future[Picture] = Future()
                done.set_result(known)
                return done
            if (coming := self._coming.get(key)) is not None:
                return coming
            coming = self._coming[key] = self._threads.submit(self._encode, key)
        coming.add_done_callback(lambda future: self._keep(key, future))
        return coming

    def _keep(self, key: Key, future: Future[Picture]) -> None:
        with self._lock:
            if self._coming.get(key) is not future:  # another run has begun since
                return
            del self._coming[key]
            if not future.cancelled() and future.exception() is None:
                self._kept[key] = future.result()
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)

    def _encode(self, key: Key) -> Picture:
        source, rows = self.open()
        item, edge = key
        try:
            return encode(source.small(rows[item], edge, self._room.of), edge)
        except KeyError:
            raise AnnotError("an item has no image") from None
        except (OSError, MemoryError) as error:
            logger.warning("%s", str(error) or f"{item} does not fit into memory")
            raise AnnotError("an image cannot be read") from error


def encode(image: Image.Image, edge: int) -> Picture:
    """Pixels of an RGB image alone, as PNG where they are few, else as JPEG."""
    image.thumbnail((edge, edge))
    buffer = io.BytesIO()
    if max(image.size) <= _TINY:
        image.save(buffer, format="PNG")
        return Picture(buffer.getvalue(), "image/png")
    image.save(buffer, format="JPEG", quality=90)
    return Picture(buffer.getvalue(), "image/jpeg")
