"""Unlabelled images as random pairs of views, and the few that are labelled for the probe."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from lightning_annot.backbones.adapt_settings import ViewSettings
from lightning_annot.backbones.ssl_views import DRAWS, make_views
from lightning_annot.backbones.transforms import Transform
from lightning_annot.types import AnnotError, ImageSource

Place = tuple[int, int]
"""Epoch and row: all that the random views of an image depend on, besides the seed."""

KEPT_BYTES = 1 << 30
_SMALL = 512  # images; below this, starting worker processes takes longer than they save


@dataclass(frozen=True)
class Inputs:
    """What a backbone takes: images of ``size`` pixels a side, less ``mean`` and divided by ``std``, by channel."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class ViewPairs(Dataset[list[Tensor]]):
    """Two views of a source's image by ``Place``, as a backbone takes them: a function of (``seed``, epoch, row) alone.

    With ``skip`` the next readable image stands in for one that is not; else it is an AnnotError.
    """

    def __init__(
        self, source: KeptImages | ImageSource, settings: ViewSettings, inputs: Inputs, seed: int, skip: bool = False
    ) -> None:
        self.source, self.settings, self.inputs, self.seed, self.skip = source, settings, inputs, seed, skip
        self._mean, self._std = (torch.tensor(part)[:, None, None] for part in (inputs.mean, inputs.std))

    def __len__(self) -> int:
        return len(self.source.ids)

    def __getitem__(self, place: Place) -> list[Tensor]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[Place]) -> list[list[Tensor]]:
        """A batch at once."""
        images = [self._image(row) for _, row in places]
        draws = np.stack([np.random.default_rng([self.seed, epoch, row]).random((2, DRAWS)) for epoch, row in places])
        views = (make_views(images, draws, self.settings, self.inputs.size) - self._mean) / self._std
        return [list(pair) for pair in views]

    def _image(self, row: int) -> Image.Image:
        n = len(self)
        for other in range(n if self.skip else 1):
            try:
                return self.source.open((row + other) % n)
            except OSError as error:
                reason = error
        raise AnnotError(
            f"{self.source.ids[row]} cannot be read ({reason}); repair or remove it, or leave such images out by "
            "on_error: skip."
        )


class EpochOrder(Sampler[Place]):
    """All of ``n`` rows in an order of their own each epoch, by (``seed``, epoch); each of ``world`` devices its part.

    The Trainer calls ``set_epoch``, so that a run that goes on goes on here too.
    """

    def __init__(self, n: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.n, self.seed, self.rank, self.world = n, seed, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose rows and views come next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n // self.world

    def __iter__(self) -> Iterator[Place]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n)
        return ((self.epoch, row) for row in order[self.rank :: self.world][: len(self)].tolist())


class KeptImages:
    """A source whose images are shrunk to a shorter side of at most ``side`` pixels, and kept in memory where they fit.

    Opening photographs takes longer than anything else here, and each epoch would do it again. Where ``most_bytes`` do not
    suffice for all, each is opened anew at each use.
    """

    def __init__(self, source: ImageSource, side: int, num_workers: int = 0, most_bytes: int = KEPT_BYTES) -> None:
        self.ids, self._source, self._side = source.ids, source, side
        self._kept: list[np.ndarray | str] = []
        if len(source.ids) * 5 * side * side > most_bytes:  # three colours, and a longer side up to 5/3 of the shorter
            return
        left = most_bytes
        for image in DataLoader(_Shrunk(source, side), batch_size=None, num_workers=num_workers, collate_fn=_as_is):
            left -= 0 if isinstance(image, str) else image.nbytes
            if left < 0:
                self._kept = []
                return
            self._kept.append(image)

    def open(self, row: int) -> Image.Image:
        """The image as RGB; raises OSError when unreadable."""
        image = self._kept[row] if self._kept else _shrunk(self._source, row, self._side)
        if isinstance(image, str):
            raise OSError(image)
        return Image.fromarray(image)


class _Shrunk(Dataset["np.ndarray | str"]):
    def __init__(self, source: ImageSource, side: int) -> None:
        self.source, self.side = source, side

    def __len__(self) -> int:
        return len(self.source.ids)

    def __getitem__(self, row: int) -> np.ndarray | str:
        return _shrunk(self.source, row, self.side)


def _shrunk(source: ImageSource, row: int, side: int) -> np.ndarray | str:
    """Pixels (h, w, 3) uint8, or why there are none."""
    try:
        image = source.open(row)
    except OSError as error:
        return str(error)
    shorter = min(image.size)
    if shorter > side:
        image = image.resize((round(image.width * side / shorter), round(image.height * side / shorter)))
    return np.asarray(image)


class Labelled(Dataset["tuple[Tensor, int, int] | None"]):
    """(input, class, row) of the images with a ``label`` (N,) of 0 or more; None for one that is unreadable."""

    def __init__(self, source: ImageSource, label: Tensor, transform: Transform) -> None:
        self.source, self.label, self.transform = source, label, transform
        self.rows: list[int] = (label >= 0).nonzero()[:, 0].tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int] | None:
        row = self.rows[index]
        try:
            return self.transform(self.source.open(row)), int(self.label[row]), row
        except OSError:
            return None


def pair_loader(pairs: ViewPairs, batch_size: int, num_workers: int, rank: int = 0, world: int = 1) -> DataLoader[list[Tensor]]:
    """Whole batches of two views (B, 3, H, W) each; ``batch_size`` is a device's."""
    if batch_size < 2:
        raise AnnotError(f"batch_size {batch_size} given; views are told from those of other images: it must be at least 2.")
    if len(pairs) < batch_size * world:
        raise AnnotError(
            f"{len(pairs)} images given, fewer than one batch of {batch_size} on {world} devices; set batch_size to at most "
            f"{len(pairs) // world}."
        )
    order = EpochOrder(len(pairs), pairs.seed, rank, world)
    return DataLoader(pairs, batch_size, sampler=order, drop_last=True, num_workers=num_workers)


def probe_loader(source: ImageSource, label: Tensor, transform: Transform, batch_size: int = 64) -> DataLoader[list[Tensor]]:
    """Batches (input (B, 3, H, W), class (B,), row (B,)) of the images that have a label."""
    return DataLoader(Labelled(source, label, transform), batch_size, collate_fn=_readable)  # type: ignore[arg-type]


def reading_processes(n: int, given: int | None) -> int:
    """How many processes make views of ``n`` images: as given, or by the machine."""
    if given is not None and given < 0:
        raise AnnotError(f"num_workers is {given}; it must be 0 or more, or null to choose by the machine.")
    if given is not None:
        return given
    return 0 if n < _SMALL else min(4, (os.cpu_count() or 1) // 2)


def _as_is(image: Any) -> Any:
    return image


def _readable(samples: list[tuple[Tensor, int, int] | None]) -> list[Tensor]:
    found = [sample for sample in samples if sample is not None]
    batch: list[Tensor] = default_collate(found) if found else []
    return batch
