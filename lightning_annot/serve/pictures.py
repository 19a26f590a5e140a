"""The run that a page is about, once it has begun, and its images, encoded anew."""

from __future__ import annotations

import io
import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lightning_annot.data.page_task import TASK_FILE, PageTask
from lightning_annot.types import AnnotError, ImageSource

logger = logging.getLogger(__name__)

LARGE, SMALL = 1280, 160  # pixels of the longest side
_TINY = 128  # pixels; smaller images lose nothing
_KEPT = 256  # encoded images


@dataclass(frozen=True)
class Picture:
    """An encoded image."""

    data: bytes
    media_type: str


class Pictures:
    """The task of a run's folder and its images. A file never leaves as it is: hidden data in it (places, names) stay here."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / TASK_FILE
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._task: PageTask | None = None
        self._source: tuple[ImageSource, dict[str, int]] | None = None
        self._kept: OrderedDict[tuple[str, int], Picture] = OrderedDict()

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
                self._task, self._stamp = task, stamp
        return self._task

    def open(self) -> None:
        """Find the images, which takes seconds for many; done by the first request otherwise."""
        with self._lock:
            if self._source is None:
                if self._task is None or self._task.images is None:
                    raise AnnotError(f"{self._path} names no images; give the run data.root, so that people can see them.")
                source = self._task.images.open()
                self._source = source, {item: row for row, item in enumerate(source.ids)}

    def encoded(self, item: str, edge: int) -> Picture:
        """The image of an item, at most ``edge`` pixels wide and high; raises AnnotError if there is none to show."""
        key = (item, edge)
        with self._lock:
            if (known := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return known
        self.open()
        assert self._source is not None
        source, rows = self._source
        try:
            picture = encode(source.open(rows[item]), edge)
        except KeyError:
            raise AnnotError("an item has no image") from None
        except OSError as error:
            logger.warning("%s", error)
            raise AnnotError("an image cannot be read") from error
        with self._lock:
            self._kept[key] = picture
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return picture


def encode(image: Image.Image, edge: int) -> Picture:
    """Pixels alone, as PNG where they are few, else as JPEG."""
    image = image.convert("RGB")
    image.thumbnail((edge, edge))
    buffer = io.BytesIO()
    if max(image.size) <= _TINY:
        image.save(buffer, format="PNG")
        return Picture(buffer.getvalue(), "image/png")
    image.save(buffer, format="JPEG", quality=90)
    return Picture(buffer.getvalue(), "image/jpeg")
