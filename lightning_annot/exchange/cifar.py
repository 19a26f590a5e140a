"""People's answers about CIFAR-10: CIFAR-10N (Wei et al., ICLR 2022) and CIFAR-10H (Peterson et al., ICCV 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lightning_annot.annotations.columns import check_none, numbers, parse_seconds
from lightning_annot.annotations.formats import read_sheet, read_table
from lightning_annot.exchange.numbers import named
from lightning_annot.exchange.records import Reading, Records, check_numbers, records
from lightning_annot.stored import check_unpacked
from lightning_annot.types import AnnotError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SLOTS = 3
BATCH = 10  # images of one HIT of CIFAR-10N
SIDE = "side_info_cifar10N.csv"
INDEX = ("cifar10_test_test_idx", "cifar10_test_set_idx")
CHECK = -99999  # index of an attention check of CIFAR-10H
UNKNOWN = -1  # a clean_label that nobody knows
_MOST_ROWS = 10**9


def read_cifar10n(path: Path, how: Reading) -> Records:
    """``random_label1`` .. ``3`` of the ``.pt``, with who gave them, and in how long, from the CSV beside it.

    ``random_label_i`` was given by Worker i of the image's batch of ten, whose time is shared evenly. Tasks are row numbers of
    the training set. ``clean_label`` is the truth; -1 says that it is not known.
    """
    labels = _load(path)
    n = len(labels["clean_label"])
    side = how.side or path.with_name(SIDE)
    worker, seconds = _batches(side, n)
    task = np.arange(n).astype(str).astype(object)
    names = np.array(CLASSES, dtype=object)
    index = pd.Index(np.tile(np.arange(n), SLOTS), name="row")
    given = np.concatenate([labels[f"random_label{slot}"] for slot in range(1, SLOTS + 1)])
    clean = pd.Series(labels["clean_label"])
    clean = check_numbers(path, clean[clean != UNKNOWN], len(CLASSES), "clean_label of CIFAR-10")
    label = check_numbers(path, pd.Series(given, index=index), len(CLASSES), "label of CIFAR-10")
    return records(
        path,
        pd.Series(np.tile(task, SLOTS), index=index, dtype=object),
        pd.Series(worker.T.ravel(), index=index, dtype=object),
        pd.Series(names[label.to_numpy()], index=index, dtype=object),
        seconds=pd.Series(seconds.T.ravel(), index=index),
        truth=dict(zip(task[clean.index], names[clean.to_numpy()], strict=True)),
        classes=CLASSES,
    )


def read_cifar10h(path: Path, how: Reading) -> Records:
    """The raw answers: ``annotator_id``, ``chosen_category`` about image ``cifar10_test_test_idx``, ``reaction_time`` in ms.

    Attention checks are gold. Those whose index is -99999 are each a task of their own, ``attention-CATEGORY-TRIAL``. Tasks are
    row numbers of the test set. ``true_category`` is the truth, and empty where it is not known.
    """
    header = read_sheet(path).header
    index = next((name for name in INDEX if name in header), INDEX[0])
    needed = ("annotator_id", "trial_index", "is_attn_check", "true_category", "chosen_category", index)
    table = read_table(path, needed, ("reaction_time",), numbers=("reaction_time",))
    number = numbers(table[index])
    good = (number == CHECK) | ((number >= 0) & (number < _MOST_ROWS) & (number % 1 == 0))
    check_none(path, table[index][~good], f"have an impossible {index}", f"it is a row of the test set, or {CHECK}")
    gold = (number == CHECK) | ~table["is_attn_check"].isin(["0", "0.0", "False"])
    check = "attention-" + table["true_category"] + "-" + table["trial_index"]
    task = number.astype("int64").astype(str).astype(object).mask(number == CHECK, check)
    known = (table["true_category"] != "") | (number == CHECK)
    for name, needed_in in (("true_category", known), ("chosen_category", slice(None))):
        odd = table.loc[needed_in, name]
        odd = odd[~odd.isin(CLASSES)]
        check_none(path, odd, f"have a {name} outside the classes", f"these are {', '.join(CLASSES)}")
    seconds = parse_seconds(path, table["reaction_time"]) / 1000 if "reaction_time" in table else None
    return records(
        path, task, named(path, "annotator_id", table["annotator_id"]), table["chosen_category"], seconds=seconds, gold=gold,
        truth=dict(zip(task[known], table.loc[known, "true_category"], strict=True)), classes=CLASSES,
    )  # fmt: skip


def _load(path: Path) -> Mapping[str, np.ndarray]:
    """The arrays of the ``.pt``, all of one length; only arrays and tensors are unpickled."""
    import torch

    kinds = [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQfd"}]
    array = np.empty(0).__reduce__()[0]
    names = [(array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    try:
        check_unpacked(path)
        with torch.serialization.safe_globals([*kinds, *names]):  # type: ignore[list-item]
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes make its parsers raise
        raise AnnotError(f"{path} cannot be read as a file of arrays ({str(error)[:200]}); download it anew") from error
    needed = ["clean_label", *(f"random_label{slot}" for slot in range(1, SLOTS + 1))]
    if not isinstance(found, dict) or not set(needed) <= set(found):
        keys: Any = list(found) if isinstance(found, dict) else type(found).__name__
        raise AnnotError(f"{path} holds {keys}; it must be a dictionary with {', '.join(needed)}, as CIFAR-10_human.pt is")
    arrays = {name: np.asarray(found[name]) for name in needed}
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or len(shapes[needed[0]]) != 1:
        raise AnnotError(f"{path} has arrays of shapes {shapes}; all must be one number an image; download it anew")
    return arrays


def _batches(path: Path, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Worker of each image and slot, and an even share of the HIT's seconds, both (n, 3); batches follow each other."""
    names = [(f"Worker{slot}-id", f"Work-time-in-seconds-{slot}") for slot in range(1, SLOTS + 1)]
    table = read_table(path, ["Image-batch", *(name for pair in names for name in pair)], numbers=[time for _, time in names])
    if len(table) * BATCH < n:
        raise AnnotError(f"{path} has {len(table)} batches of {BATCH} images for {n} labels; give the whole file (--side)")
    first = numbers(table["Image-batch"].str.extract(r"^(\d+)", expand=False))
    odd = table["Image-batch"][first.to_numpy() != BATCH * np.arange(len(table))]
    check_none(path, odd, "are out of order", f"batch i holds the images {BATCH} i to {BATCH} i + {BATCH - 1}")
    worker = table[[who for who, _ in names]].to_numpy(dtype=object)
    seconds = np.stack([parse_seconds(path, table[time]).to_numpy() for _, time in names], axis=1)
    rows = np.arange(n) // BATCH
    return worker[rows], seconds[rows] / np.bincount(rows)[rows, None]
