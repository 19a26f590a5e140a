"""Batches of images or of features: which rows by (seed, epoch), and how each image is changed by (seed, epoch, row)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from lightning_annot.backbones.transforms import Transform
from lightning_annot.types import AnnotError, ImageSource

Step = tuple[int, list[int]]
"""Epoch, and the rows of one batch."""


@contextmanager
def seeded(*seed: int, devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Let what libraries draw from global generators depend on ``seed`` alone, and leave these generators as they were.

    Python's, NumPy's and torch's, on the CPU and on those of the ``devices`` that are CUDA.
    """
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    with torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"]):
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002
        torch.manual_seed(number)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)  # noqa: NPY002


class Inputs(Protocol):
    """Inputs of a network by row."""

    def read(self, rows: Sequence[int], epoch: int) -> Tensor:
        """Inputs (B, ...) float32 of ``rows``."""


class FeatureInputs:
    """Rows ``index`` (N,) of a ready-made bank (M, D)."""

    def __init__(self, bank: np.ndarray, index: np.ndarray) -> None:
        self._bank, self._index = bank, index

    def read(self, rows: Sequence[int], epoch: int) -> Tensor:
        """Features (B, D)."""
        return torch.from_numpy(np.asarray(self._bank[self._index[list(rows)]], dtype=np.float32))


class ImageInputs:
    """Images of ``source`` through ``transform``, whose chance is a function of (``seed``, epoch, row)."""

    def __init__(self, source: ImageSource, transform: Transform, seed: int) -> None:
        self._source, self._transform, self._seed = source, transform, seed

    def read(self, rows: Sequence[int], epoch: int) -> Tensor:
        """Images (B, 3, H, W); an AnnotError names one that cannot be read."""
        return torch.stack([self._image(row, epoch) for row in rows])

    def _image(self, row: int, epoch: int) -> Tensor:
        try:
            image = self._source.open(row)
        except OSError as error:
            raise AnnotError(f"an image is unreadable ({error}); repair it, or take its task out of data.run.") from error
        with seeded(self._seed, epoch, row):
            return self._transform(image)


class Batches(Dataset[dict[str, Tensor]]):
    """One batch a step: ``x`` from the inputs, ``row``, and the rows of each of the ``columns`` (N, ...)."""

    def __init__(self, inputs: Inputs, columns: Mapping[str, Tensor]) -> None:
        self._inputs, self._columns = inputs, dict(columns)

    def __getitem__(self, step: Step) -> dict[str, Tensor]:
        epoch, rows = step
        index = torch.tensor(rows)
        return {"x": self._inputs.read(rows, epoch), "row": index, **{k: v[index] for k, v in self._columns.items()}}


class InOrder(Sampler[Step]):
    """All of ``rows`` (n,) int64, in order, ``size`` a step."""

    def __init__(self, rows: np.ndarray, size: int) -> None:
        self._rows, self._size = rows, size

    def __len__(self) -> int:
        return -(-len(self._rows) // self._size)

    def __iter__(self) -> Iterator[Step]:
        for start in range(0, len(self._rows), self._size):
            yield 0, self._rows[start : start + self._size].tolist()


class Shuffled(Sampler[Step]):
    """``rows`` (n,) int64 in an order drawn by (``seed``, epoch): one for all ``world`` ranks, each of which takes its part.

    Every step has ``size`` rows on each rank, fewer only where there are not so many rows; those that fill no step wait for
    another epoch.
    """

    def __init__(self, rows: np.ndarray, size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self._rows, self._seed, self._rank, self._world = rows, seed, rank, world
        self._size = min(size, len(rows) // world)
        if self._size < 2:
            raise AnnotError(
                f"{len(rows)} items to learn from and {world} devices given; each device needs at least 2 in a batch."
            )
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw for this epoch; the Trainer says which."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._rows) // (self._size * self._world)

    def __iter__(self) -> Iterator[Step]:
        order = self._rows[np.random.default_rng((self._seed, self._epoch)).permutation(len(self._rows))]
        whole = order[: len(self) * self._world * self._size].reshape(len(self), self._world, self._size)
        for rows in whole[:, self._rank]:
            yield self._epoch, rows.tolist()
