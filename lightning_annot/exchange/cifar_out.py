"""Answers as CIFAR-10N and CIFAR-10H have them, as far as they fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from lightning_annot.annotations.formats import write_table
from lightning_annot.exchange.cifar import BATCH, CHECK, CLASSES, INDEX, SIDE, SLOTS, UNKNOWN
from lightning_annot.exchange.numbers import WHOLE, write_numbered
from lightning_annot.exchange.records import Records, check_unlike, texts
from lightning_annot.files import write_torch
from lightning_annot.types import AnnotError

_ATTENTION = rf"attention-({'|'.join(CLASSES)})-([0-9]+)"


def write_cifar10n(path: Path, given: Records) -> int:
    """The ``.pt``, of tensors, and ``side_info_cifar10N.csv`` beside it; returns how many labels have no place in them.

    Images are the rows 0 to n - 1, in batches of ten. A batch has the answers of the first three workers who labelled all of
    it; a batch without three is an AnnotError. Its time is the sum of theirs. ``clean_label`` is -1 where the truth is not
    known, and so is ``worse_label``; that is the first wrong answer, if there is one. ``aggre_label``: the majority, ties by
    slot. Skips are left out.
    """
    import torch

    labels = given.labels()
    if labels.empty:
        raise AnnotError(f"{path} cannot be written: there are no labels yet; choose another format")
    frame = pd.DataFrame(
        {
            "row": _row_numbers(path, labels["task"]).to_numpy(np.int64),
            "worker": labels["worker"].to_numpy(object),
            "label": _class_numbers(path, labels["label"]),
            "seconds": labels["seconds"].to_numpy(),
        }
    )
    n = int(frame["row"].max()) + 1
    if n * SLOTS > len(frame):
        raise AnnotError(
            f"{path} cannot be written: it needs {SLOTS} labels of each image from 0 to {n - 1}, and there are {len(frame)}; "
            "choose another format"
        )
    frame["batch"] = frame["row"] // BATCH
    hits = frame.groupby(["batch", "worker"], sort=False).agg(images=("row", "size"), seconds=("seconds", _sum)).reset_index()
    size = np.bincount(np.arange(n) // BATCH)
    hits = hits[hits["images"] == size[hits["batch"]]]
    hits["slot"] = hits.groupby("batch").cumcount()
    hits = hits[hits["slot"] < SLOTS]
    short = np.flatnonzero(np.bincount(hits["batch"], minlength=len(size)) < SLOTS)
    if len(short):
        first = f"{BATCH * short[0]} to {BATCH * short[0] + size[short[0]] - 1}"
        raise AnnotError(
            f"{path} cannot be written: {len(short)} of {len(size)} batches of {BATCH} images, such as {first}, lack {SLOTS} "
            "workers who labelled all of it, as CIFAR-10N has them; choose another format"
        )
    used = frame.merge(hits[["batch", "worker", "slot"]], on=["batch", "worker"])
    said, worker, seconds = np.empty((n, SLOTS), np.int64), np.empty((len(size), SLOTS), object), np.empty((len(size), SLOTS))
    said[used["row"], used["slot"]] = used["label"]
    worker[hits["batch"], hits["slot"]] = hits["worker"]
    seconds[hits["batch"], hits["slot"]] = hits["seconds"]
    clean = np.array([given.truth.get(str(row), "") for row in range(n)], dtype=object)
    arrays = _kinds_of_labels(said, pd.Index(CLASSES).get_indexer(clean))
    write_torch(path, {name: torch.from_numpy(array) for name, array in arrays.items()})
    side = {"Image-batch": [f"{BATCH * i} -- {BATCH * i + s - 1}" for i, s in enumerate(size)]}
    for slot in range(SLOTS):
        side |= {f"Worker{slot + 1}-id": worker[:, slot].tolist()}
        side |= {f"Work-time-in-seconds-{slot + 1}": texts(pd.Series(seconds[:, slot]))}
    write_table(path.with_name(SIDE), pd.DataFrame(side))
    return len(frame) - len(used)


def write_cifar10h(path: Path, given: Records) -> None:
    """The raw answers; ``trial_index`` counts each person's, and ``time_elapsed`` is not known. Skips are left out.

    Gold answers have ``is_attn_check`` 1. Workers are numbers: names are numbered, see exchange/numbers.py.
    """
    labels = given.labels()
    attention = labels["task"].str.extract(f"^{_ATTENTION}$").astype(object)
    check = attention[0].notna()
    index = pd.Series(str(CHECK), index=labels.index, dtype=object)
    index[~check] = _row_numbers(path, labels.loc[~check, "task"])
    true = attention[0].where(check, labels["task"].map(given.truth)).fillna("")
    chosen, true_number = _class_numbers(path, labels["label"]), pd.Index([*CLASSES, ""]).get_indexer(true)
    unknown = (true == "").to_numpy()
    table = {
        "annotator_id": labels["worker"],
        "trial_index": attention[1].where(check, labels.groupby("worker").cumcount().astype(str)),
        "is_attn_check": (check | (labels["kind"] == "gold")).astype(int),
        "true_category": true,
        "chosen_category": labels["label"],
        "true_label": np.where(unknown, "", true_number.astype(str)),
        "chosen_label": chosen,
        "correct_guess": np.where(unknown, "", (true_number == chosen).astype(int).astype(str)),
        INDEX[0]: index,
        "reaction_time": texts((1000 * labels["seconds"]).round(6)),
        "time_elapsed": "",
    }
    write_numbered(path, pd.DataFrame(table), {"annotator_id": labels["worker"].unique()})


def _kinds_of_labels(said: np.ndarray, clean: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays (n,) of the ``.pt`` from the answers ``said`` (n, 3) and the ``clean`` classes (n,), -1 where unknown."""
    rows = np.arange(len(said))
    agree = (said[:, :, None] == said[:, None, :]).sum(2)
    wrong = said != clean[:, None]
    worse = np.where(wrong.any(1), said[rows, wrong.argmax(1)], clean)
    return {
        "clean_label": clean.astype(np.int64),
        "worse_label": np.where(clean == UNKNOWN, UNKNOWN, worse),
        "aggre_label": said[rows, agree.argmax(1)],
        **{f"random_label{slot + 1}": said[:, slot].copy() for slot in range(SLOTS)},
    }


def _sum(seconds: pd.Series) -> float:
    """The sum, unknown if one is."""
    return float(seconds.sum(skipna=False))


def _row_numbers(path: Path, tasks: pd.Series) -> pd.Series:
    odd = tasks[~tasks.str.fullmatch(WHOLE)]
    check_unlike(path, odd, odd, "are no row numbers, as the tasks of this form are")
    return tasks


def _class_numbers(path: Path, labels: pd.Series) -> np.ndarray:
    odd = labels[~labels.isin(CLASSES)]
    check_unlike(path, odd, odd, "are no classes of CIFAR-10, and this form has no others")
    numbers: np.ndarray = pd.Index(CLASSES).get_indexer(labels).astype(np.int64)
    return numbers
