"""The labels that a run left, as soft targets with a weight each: from its folder, or from any CSV ``task,label``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lightning_annot.annotations.columns import check_members, check_names, check_none, distinct, matched, numbers
from lightning_annot.annotations.formats import read_table
from lightning_annot.stored import SUMMARY, check_end, damaged, items_of_run, read_arrays, read_object, reading
from lightning_annot.types import AnnotError

PROTOTYPE = "prototype"


@dataclass(frozen=True)
class RunLabels:
    """What is believed of items ``ids`` (N) over ``classes`` (K).

    ``label`` (N,) int64: the decided class. ``top`` (N, T) int64: the most probable classes, with ``probability`` (N, T)
    float32. ``confidence`` (N,) float32 is the probability of ``label``; ``prototype`` and ``finished`` (N,) are bool.
    """

    ids: tuple[str, ...]
    classes: tuple[str, ...]
    label: Tensor
    top: Tensor
    probability: Tensor
    confidence: Tensor
    prototype: Tensor
    finished: Tensor


def read_run_labels(path: str | Path, classes: Sequence[str] | None = None) -> RunLabels:
    """Labels of the run in folder ``path``, or of a CSV ``task,label[,confidence][,status]``.

    Probabilities come from ``posterior.npz`` beside ``labels.csv``; without it the decided class has the confidence, 1 where
    the file has none, and all others share the rest. ``classes`` in order: by default the run's, or those of the file, sorted.
    """
    table_path, posterior_path = _files(Path(path).expanduser())
    table = read_table(table_path, ("task", "label"), ("confidence", "status"), numbers=("confidence",))
    if Path(path).expanduser().is_dir():
        _check_whole(table_path, table)
    table["label"] = matched(table["label"], classes, ignore_case=True)
    for column in ("task", "label"):
        check_names(table_path, table[column])
    problem = "label a task that has another label above"
    table = distinct(table_path, table, ("task",), "label", problem, "keep one row of each task")
    posterior = None if posterior_path is None else _read_posterior(posterior_path, len(table))
    known = classes or (posterior[0] if posterior is not None else sorted(table["label"].unique()))
    names = tuple(map(str, known))
    _check(table_path, table, names)
    if posterior is not None and set(posterior[0]) - set(names):
        raise AnnotError(
            f"{posterior_path} knows the classes {posterior[0][:10]}, and data.classes are {list(names)[:10]}; give the run's "
            "classes, or leave data.classes out."
        )
    label = torch.from_numpy(pd.Index(names).get_indexer(table["label"]).astype(np.int64))
    confidence = _confidence(table_path, table)
    if posterior is None:
        top, probability = label[:, None], confidence[:, None]
    else:
        place = torch.tensor([names.index(name) for name in posterior[0]])
        top, probability = place[posterior[1]], posterior[2]
    status = table["status"].to_numpy() if "status" in table else np.full(len(table), "finished", dtype=object)
    prototype, finished = (torch.from_numpy(status == word) for word in (PROTOTYPE, "finished"))
    return RunLabels(tuple(table["task"]), names, label, top, probability, confidence, prototype, finished)


def soft_targets(top: Tensor, probability: Tensor, n_classes: int) -> Tensor:
    """Probabilities (B, K), rows sum to 1, of which ``top`` (B, T) classes have ``probability`` (B, T), T <= K.

    The other classes share what is left evenly; where there is no other, the known ones are scaled to sum to 1.
    """
    known = probability.sum(1, keepdim=True)
    others = n_classes - top.shape[1]
    rest = (1.0 - known).clamp(min=0.0)
    target = (rest / max(1, others)).expand(-1, n_classes).scatter(1, top, probability)
    return target / target.sum(1, keepdim=True)


def class_factors(top: Tensor, probability: Tensor, weight: Tensor, n_classes: int, power: float) -> Tensor:
    """What each class (K,) is to be multiplied by, so that its share s of the ``weight`` (N,) becomes about s^(1 - power).

    With ``power`` 0 all are 1, with 1 all classes count alike. A class that is hardly there counts as if it had one item.
    """
    mass = torch.zeros(n_classes).index_add_(0, top.flatten(), (probability * weight[:, None]).flatten())
    mass = mass.clamp(min=float(weight.mean()))
    return (mass.mean() / mass) ** power


def _files(path: Path) -> tuple[Path, Path | None]:
    if path.is_dir():
        table, posterior = path / "labels.csv", path / "posterior.npz"
        if not table.is_file():
            raise AnnotError(f"{path} has no labels.csv; give data.run the output folder of an annotation run, or a CSV.")
        return table, posterior if posterior.is_file() else None
    if not path.is_file():
        raise AnnotError(
            f"data.run {str(path)!r} does not exist; give the output folder of a run, or a CSV with the columns task,label "
            "and, if known, confidence."
        )
    return path, None


def _read_posterior(path: Path, n: int) -> tuple[list[str], Tensor, Tensor]:
    """Classes, (N, T) indices into them, and (N, T) probabilities."""
    cure = "remove it, and labels.csv will do, or let the run write it again"
    classes, label, probability = read_arrays(path, ("classes", "label", "probability"), cure)
    with reading(path, cure):
        if label.ndim != 2 or classes.ndim != 1 or label.shape != probability.shape:
            raise ValueError(f"labels of shape {label.shape}, probabilities of {probability.shape}, classes of {classes.shape}")
        if classes.dtype.kind != "U" or label.dtype.kind not in "iu" or probability.dtype.kind != "f":
            raise TypeError(f"labels of {label.dtype}, probabilities of {probability.dtype}, classes of {classes.dtype}")
        if ((label < 0) | (label >= len(classes))).any() or not ((probability >= 0) & (probability <= 1.01)).all():
            raise ValueError("labels or probabilities are out of range")
        label, probability = label.astype(np.int64), probability.astype(np.float32)
    if len(label) != n:
        raise AnnotError(
            f"{path} has {len(label)} rows, and labels.csv beside it {n}; one of them is cut, or they are of different runs. "
            "Copy both again, or let the run write both anew."
        )
    return [str(name) for name in classes], torch.from_numpy(label), torch.from_numpy(probability)


def _check_whole(path: Path, table: pd.DataFrame) -> None:
    """Raises AnnotError where ``labels.csv`` in a run's folder is cut, even between two lines."""
    with reading(path):
        check_end(path)
    summary = path.parent / SUMMARY
    n = items_of_run(path.parent, read_object(summary)) if summary.is_file() else None
    if n is not None and len(table) != n:
        raise damaged(path, f"it has {len(table)} rows, and the run {n} items")


def _check(path: Path, table: pd.DataFrame, classes: tuple[str, ...]) -> None:
    if table.empty:
        raise AnnotError(f"{path} has no rows; a classifier needs labels to learn from.")
    if len(set(classes)) < len(classes):
        raise AnnotError(f"data.classes names a class twice: {list(classes)}.")
    if len(classes) < 2:
        raise AnnotError(f"the classes are {list(classes)}; a classifier needs at least 2.")
    check_members(path, table["label"], classes, "classes")


def _confidence(path: Path, table: pd.DataFrame) -> Tensor:
    """(N,) float32, 1 where the file has no such column."""
    if "confidence" not in table:
        return torch.ones(len(table))
    value = numbers(table["confidence"])
    check_none(path, table["confidence"][~((value > 0) & (value <= 1))], "have no confidence in (0, 1]", "correct them")
    return torch.from_numpy(value.to_numpy(dtype=np.float32))
