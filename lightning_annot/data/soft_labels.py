"""A run's labels as a torch data set with soft targets, for training anything else on them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lightning_annot.data.decode import decode, read_file
from lightning_annot.data.places import Fence, Finder, refuse_outside
from lightning_annot.data.run_labels import read_run_labels, soft_targets
from lightning_annot.types import AnnotError


class SoftLabels(Dataset[tuple[Any, Tensor]]):
    """``labels[i]``: (image or id, probabilities (K,) that sum to 1) of the i-th item of a run.

    Args:
        run: the run's folder, or a CSV ``task,label[,confidence]``.
        images: folder of the images, which are below it as the tasks say; without it items are their ids.
        transform: from a PIL image (RGB) to what the data set gives.
        finished: leave out what the run left unfinished.
        allow_outside: whether images may lie outside their folder, by links or by ``..`` in a task.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        images: str | os.PathLike[str] | None = None,
        transform: Callable[[Image.Image], Any] | None = None,
        finished: bool = False,
        allow_outside: bool = False,
    ) -> None:
        if transform is not None and images is None:
            raise AnnotError("transform given without images, which it is for; name their folder.")
        known = read_run_labels(Path(run))
        keep = known.finished | known.prototype if finished else torch.ones(len(known.ids), dtype=torch.bool)
        rows = keep.nonzero()[:, 0]
        self.ids, self.classes = tuple(known.ids[row] for row in rows.tolist()), known.classes
        self.label, self.confidence = known.label[rows], known.confidence[rows]
        self.finished = known.finished[rows]
        self._top, self._probability = known.top[rows], known.probability[rows]
        self._transform, self._finder = transform, None if images is None else Finder(images)
        self._fence = None if images is None or allow_outside else Fence(images)

    def __len__(self) -> int:
        return len(self.ids)

    def targets(self, rows: Tensor) -> Tensor:
        """Probabilities (n, K) of items ``rows`` (n,); a batch at a time, as (N, K) may be large."""
        return soft_targets(self._top[rows], self._probability[rows], len(self.classes))

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        target = self.targets(torch.tensor([index]))[0]
        name = self.ids[index]
        if self._finder is None:
            return name, target
        path = self._finder.find(name)
        if self._fence is not None and not self._fence.holds(path):
            refuse_outside("the images' folder", [name])
        image = decode(read_file(path))
        return (image if self._transform is None else self._transform(image)), target
