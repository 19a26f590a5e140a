"""Labelled items, by which the scaling of features is chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_annot.data.items import ItemTable


@dataclass(frozen=True)
class Known:
    """Rows (P,) int64 of a bank, and their classes (P,) int64, which may be wrong here and there."""

    row: NDArray[np.int64]
    label: NDArray[np.int64]


NOTHING_KNOWN = Known(np.empty(0, np.int64), np.empty(0, np.int64))


_NO_ROWS = torch.empty(0, dtype=torch.int64)


def known_rows(table: ItemTable, item: Tensor = _NO_ROWS, label: Tensor = _NO_ROWS) -> Known:
    """Prototypes, and answered items with the class that most of their answers name.

    Args:
        table: The items.
        item: Rows of the answered items (A,), one for each answer.
        label: The answers (A,), -1 for none. Items whose answers are tied are left out.
    """
    prototype = table.prototype.numpy()
    cast = ((label >= 0) & ~table.is_prototype[item]).numpy()
    pairs, count = np.unique(item.numpy()[cast] * len(table.classes) + label.numpy()[cast], return_counts=True)
    row, voted = pairs // len(table.classes), pairs % len(table.classes)
    order = np.lexsort((-count, row))
    row, voted, count = row[order], voted[order], count[order]
    first = np.diff(row, prepend=-1) != 0
    place = np.flatnonzero(first)
    after = np.minimum(place + 1, len(row) - 1)
    tied = (after > place) & (row[after] == row[place]) & (count[after] == count[place])
    place = place[~tied]
    own = np.flatnonzero(prototype >= 0)
    return Known(np.concatenate([own, row[place]]), np.concatenate([prototype[own], voted[place]]))
