"""Answers as JSON: peerannot and Lean crowdsourcing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_annot.annotations.columns import numbers
from lightning_annot.annotations.json_text import name_of, read_json
from lightning_annot.exchange.records import Reading, Records, column, member, objects, records
from lightning_annot.files import write_text
from lightning_annot.types import AnnotError

ANSWERS, METADATA = "answers.json", "metadata.json"
NAMES = ("tasks", "workers", "classes")  # what our metadata.json adds: what the numbers stand for


def read_peerannot(path: Path, how: Reading) -> Records:
    """``answers.json`` ``{task: {worker: label}}``, or the folder with it; its ``metadata.json`` may name what numbers stand
    for.
    """
    folder = path if path.is_dir() else path.parent
    path = path / ANSWERS if path.is_dir() else path
    answers = _mapping(path, read_json(path), "{task: {worker: label}}")
    names = _names(folder / METADATA)
    rows, where = [], []
    for task, votes in answers.items():
        for worker, label in _mapping(path, votes, f"{{worker: label}} of task {task!r}").items():
            place = f"{task!r} by {worker!r}"
            rows.append((task, worker, name_of(path, f"task {place}", label)))
            where.append(place)
    columns = [column(values, where, "task") for values in zip(*rows, strict=True)] or [column([], [], "task")] * 3
    named = [_named(path, values, names.get(key)) for values, key in zip(columns, NAMES, strict=True)]
    return records(path, named[0], named[1], named[2], classes=names.get("classes", ()))


def write_peerannot(path: Path, given: Records) -> None:
    """A folder with ``answers.json`` and ``metadata.json``: numbers for tasks, workers and classes, as peerannot needs them,
    and beside ``name``, ``n_classes``, ``n_workers`` and ``n_task`` what they stand for. Skips are left out.
    """
    labels, classes = given.labels(), list(given.class_names())
    tasks, workers = list(labels["task"].unique()), list(labels["worker"].unique())
    answers: dict[str, dict[str, int]] = {str(i): {} for i in range(len(tasks))}
    codes = [
        pd.Index(names).get_indexer(labels[key]) for names, key in ((tasks, "task"), (workers, "worker"), (classes, "label"))
    ]
    for task, worker, label in zip(*(code.tolist() for code in codes), strict=True):
        answers[str(task)][str(worker)] = label
    about = {"name": path.name, "n_classes": len(classes), "n_workers": len(workers), "n_task": len(tasks)}
    about |= dict(zip(NAMES, (tasks, workers, classes), strict=True))
    path.mkdir(parents=True, exist_ok=True)
    write_text(path / METADATA, json.dumps(about, ensure_ascii=False, indent=1))
    write_text(path / ANSWERS, json.dumps(answers, ensure_ascii=False))


def read_lean(path: Path, how: Reading) -> Records:
    """``annos`` of ``{image_id, worker_id, anno: {label}}``; ``gt_labels``, of ``{image_id, label}``, are the truth."""
    data = _mapping(path, read_json(path), "{dataset, images, workers, annos, gt_labels}")
    rows, where = [], []
    for number, entry in objects(path, member(path, "the file", data, "annos"), "annos"):
        task, worker, anno = (member(path, f"anno {number}", entry, key) for key in ("image_id", "worker_id", "anno"))
        label = member(path, f"anno {number}, anno", _mapping(path, anno, f"{{label}} of anno {number}"), "label")
        rows.append(tuple(name_of(path, f"anno {number}", value) for value in (task, worker, label)))
        where.append(number)
    columns = [column(values, where, "anno") for values in zip(*rows, strict=True)] or [column([], [], "anno")] * 3
    truth: dict[str, str] = {}
    for number, entry in objects(path, data.get("gt_labels", []), "gt_labels"):
        task, label = (member(path, f"gt_label {number}", entry, key) for key in ("image_id", "label"))
        label = member(path, f"gt_label {number}", label, "label") if isinstance(label, dict) else label
        at = f"gt_label {number}"
        name, known = name_of(path, at, task), name_of(path, at, label)
        if truth.setdefault(name, known) != known:
            raise AnnotError(f"{path}, {at}: {name!r} is {known!r}, and {truth[name]!r} above; keep one label of each image")
    return records(path, columns[0], columns[1], columns[2], truth=truth)


def write_lean(path: Path, given: Records) -> None:
    """One file with ``dataset``, ``images``, ``workers``, ``annos`` and ``gt_labels``; skips are left out."""
    labels = given.labels()
    rows = zip(labels["task"], labels["worker"], labels["label"], strict=True)
    data = {
        "dataset": {"name": path.stem, "classes": list(given.class_names())},
        "images": {task: {"id": task} for task in labels["task"].unique()},
        "workers": {worker: {"id": worker} for worker in labels["worker"].unique()},
        "annos": [{"image_id": task, "worker_id": worker, "anno": {"label": label}} for task, worker, label in rows],
        "gt_labels": [{"image_id": task, "label": {"label": label}} for task, label in given.truth.items()],
    }
    write_text(path, json.dumps(data, ensure_ascii=False))


def _mapping(path: Path, value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise AnnotError(f"{path} has {str(value)[:60]!r} where {what} belongs; export it anew")
    return value


def _names(path: Path) -> dict[str, list[str]]:
    """What numbers stand for, where the file says so."""
    about = _mapping(path, read_json(path), "{name, n_classes, n_workers}") if path.is_file() else {}
    lists = {key: about[key] for key in NAMES if isinstance(about.get(key), list)}
    return {key: [name_of(path, key, name) for name in names] for key, names in lists.items()}


def _named(path: Path, values: pd.Series, names: Sequence[str] | None) -> pd.Series:
    """``values`` as they are, or, where there are ``names``, those that these numbers stand for."""
    if names is None:
        return values
    number = numbers(values)
    if not (good := (number >= 0) & (number < len(names)) & (number % 1 == 0)).all():
        raise AnnotError(
            f"{path}, task {values[~good].index[0]}: {values[~good].iloc[0]!r} is outside the {len(names)} names of {METADATA} "
            "beside it; correct it or remove that file"
        )
    return pd.Series([names[int(i)] for i in number], index=values.index, dtype=object)
