"""Label Studio: tasks with annotations and predictions as JSON, and its CSV export."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lightning_annot.annotations.columns import parse_seconds
from lightning_annot.annotations.formats import read_sheet, read_table, write_table
from lightning_annot.annotations.json_text import name_of, read_json
from lightning_annot.exchange.records import (
    Reading,
    Records,
    check_unlike,
    column,
    member,
    objects,
    records,
    texts,
)
from lightning_annot.files import write_text
from lightning_annot.types import AnnotError

CONTROL, OBJECT, IMAGE = "choice", "image", "image"
MODEL = "lightning_annot"
CSV_COLUMNS = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time")


@dataclass(frozen=True)
class Said:
    """What one annotation says: ``label`` None is a skip; ``lead_time`` as it stands there, seconds or None; ``ground_truth``
    only where there is a label.
    """

    label: str | None
    lead_time: Any
    ground_truth: bool


def said(path: Path | str, at: str, annotation: Mapping[str, Any], control: str | None = None) -> Said:
    """What the ``annotation`` says by its one choice, of the control of that name where there are several.

    ``path`` and ``at`` (the task, and where in it) are for the AnnotError where there is more than one choice, or no list.
    """
    label = _choice(path, at, annotation, control)
    if annotation.get("was_cancelled"):
        label = None
    return Said(label, annotation.get("lead_time"), bool(annotation.get("ground_truth")) and label is not None)


def read_label_studio(path: Path, how: Reading) -> Records:
    """The JSON export: ``data.image`` is the task, each annotation an answer of ``completed_by``.

    ``was_cancelled``, or no choice at all, is a skip; ``ground_truth`` is gold; ``lead_time`` gives the seconds. ``columns``
    may say which key of ``data`` is the task, and which ``from_name`` has the choice, where there are several. Exports from
    before 1.0 call annotations ``completions``.
    """
    rows, where, truth, n_tasks = [], [], {}, 0
    for number, entry in objects(path, read_json(path), "tasks"):
        address = member(path, f"task {number}, data", _data(path, number, entry), how.column("task", IMAGE))
        task = name_of(path, f"task {number}, data", address)
        n_tasks, before_1 = number, "annotations" not in entry
        given_here = entry.get("completions", []) if before_1 else entry["annotations"]
        for place, annotation in objects(path, given_here, f"annotations of task {number}"):
            at = f"{number}, annotation {place}"
            given = said(path, at, _renamed(annotation) if before_1 else annotation, how.columns.get("label"))
            worker = how.worker if how.worker is not None else _who(path, at, annotation)
            skip = given.label is None
            rows.append((task, worker, given.label or "", _seconds(path, at, given.lead_time), given.ground_truth, skip))
            where.append(at)
            if given.ground_truth:
                truth[task] = str(given.label)
    if not rows:
        raise AnnotError(
            f"no answer found in {path}: 0 of {n_tasks} tasks have annotations; export after labelling, with annotations in it"
        )
    task_, worker_, label_, seconds, gold_, skip_ = (column(values, where, "task") for values in zip(*rows, strict=True))
    return records(
        path, task_, worker_, label_, seconds=parse_seconds(path, seconds), gold=gold_.astype(bool), skip=skip_.astype(bool),
        truth=truth,
    )  # fmt: skip


def read_label_studio_csv(path: Path, how: Reading) -> Records:
    """The CSV export: ``image`` is the task, ``annotator`` the worker, and the one column of its own the control with the
    label.
    """
    header = read_sheet(path).header
    task, worker = how.column("task", IMAGE), how.column("worker", "annotator")
    own = [name for name in header if name not in (*CSV_COLUMNS, task, worker)]
    if "label" not in how.columns and len(own) != 1:
        raise AnnotError(f"{path} has the columns {own} beside Label Studio's; say which holds the label by --map label=COLUMN")
    label = how.columns.get("label") or own[0]
    needed = [task, label] if how.worker is not None else [task, worker, label]
    table = read_table(path, needed, ("lead_time",), numbers=("lead_time",))
    answer = table[label]
    if len(many := answer[answer.str.startswith("{")]):
        raise AnnotError(
            f"{path}, line {many.index[0]}: {many.iloc[0][:60]!r} is more than one choice; one label a task is needed"
        )
    who = pd.Series(how.worker, index=table.index, dtype=object) if how.worker is not None else table[worker]
    seconds = parse_seconds(path, table["lead_time"]) if "lead_time" in table else None
    return records(path, table[task], who, answer, seconds=seconds, skip=answer == "")


def write_label_studio_csv(path: Path, given: Records, address: Callable[[str], str] = str) -> None:
    """One line an answer; the label of a skip is empty. ``address`` of a task is ``image``, and it has no other name."""
    answers, labels = given.answers, given.labels()
    lists = [label for label in {*labels["label"]} if label.lstrip().startswith("{")]
    check_unlike(path, lists, lists, "would be read as more than one choice")
    when = answers.get("answered_at", "")
    table = {
        IMAGE: [address(task) for task in answers["task"]],
        "id": pd.factorize(answers["task"])[0] + 1,
        CONTROL: answers["label"].where(~answers["skip"], ""),
        "annotator": answers["worker"],
        "annotation_id": np.arange(1, len(answers) + 1),
        "created_at": when,
        "updated_at": when,
        "lead_time": texts(answers["seconds"]),
    }
    write_table(path, pd.DataFrame(table))


def write_label_studio(
    path: Path,
    given: Records,
    address: Mapping[str, str] | None = None,
    predictions: pd.DataFrame | None = None,
) -> None:
    """Tasks to import into Label Studio, with their annotations and, from ``predictions``, a pre-annotation with a score.

    ``predictions`` has task, label and confidence. ``address``: what to write as ``data.image``, by task; the task itself where
    it says nothing. A gold answer is ``ground_truth`` unless it is known to be wrong. A worker whose name is a number
    becomes a user id, others an object with their name as ``email``.
    """
    address, guesses = address or {}, {}
    if predictions is not None:
        columns = (predictions[name] for name in ("task", "label", "confidence"))
        guesses = {task: prediction(label, score) for task, label, score in zip(*columns, strict=True)}
    answers: dict[str, list[dict[str, Any]]] = {task: [] for task in guesses}
    for number, row in enumerate(given.answers.to_dict("records"), start=1):
        is_truth = row["kind"] == "gold" and given.truth.get(row["task"], row["label"]) == row["label"]
        answers.setdefault(row["task"], []).append(_annotation(number, row, is_truth))
    tasks = [
        {
            "id": number,
            "data": {IMAGE: address.get(task, task)} | ({"task": task} if task in address else {}),
            "annotations": [annotation | {"task": number} for annotation in annotations],
            "predictions": [guesses[task]] if task in guesses else [],
        }
        for number, (task, annotations) in enumerate(answers.items(), start=1)
    ]
    write_text(path, json.dumps(tasks, ensure_ascii=False, indent=1))


def _annotation(number: int, row: Mapping[Any, Any], is_truth: bool) -> dict[str, Any]:
    worker = str(row["worker"])
    is_id = worker.isascii() and worker.isdigit() and str(int(worker)) == worker
    given = {
        "id": number,
        "completed_by": int(worker) if is_id else {"email": worker},
        "result": [] if row["skip"] else _result(row["label"]),
        "was_cancelled": bool(row["skip"]),
        "ground_truth": is_truth,
        "lead_time": None if pd.isna(row["seconds"]) else float(row["seconds"]),
    }
    if "answered_at" in row:
        given |= {"created_at": row["answered_at"], "updated_at": row["answered_at"]}
    return given


def prediction(label: str, score: float, control: str = CONTROL, shown: str = OBJECT) -> dict[str, Any]:
    """A pre-annotation by the ``control`` about the object ``shown``."""
    return {"model_version": MODEL, "score": float(score), "result": _result(label, control, shown)}


def _result(label: str, control: str = CONTROL, shown: str = OBJECT) -> list[dict[str, Any]]:
    return [{"from_name": control, "to_name": shown, "type": "choices", "value": {"choices": [label]}}]


def _data(path: Path, number: int, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    if "data" not in entry and "annotation_id" in entry:
        raise AnnotError(f"{path} is a JSON-MIN export; export as JSON, or as CSV and give --format label-studio-csv")
    data = member(path, f"task {number}", entry, "data")
    if not isinstance(data, dict):
        raise AnnotError(f"{path}, task {number}: data is {str(data)[:60]!r}, which must be a JSON object; export it anew")
    return data


def _choice(path: Path | str, at: str, annotation: Mapping[str, Any], control: str | None) -> str | None:
    """The one choice of an annotation, None where nothing was chosen."""
    chosen = [name_of(path, f"task {at}", choice) for choice in _choices(path, at, annotation, control)]
    if len(chosen) > 1:
        raise AnnotError(
            f"{path}, task {at} has {len(chosen)} choices {chosen[:5]}; one is needed: use a control of single choice, or say "
            "which by --map label=FROM_NAME"
        )
    return chosen[0] if chosen else None


def _choices(path: Path | str, at: str, annotation: Mapping[str, Any], control: str | None) -> Iterator[Any]:
    for _, part in objects(path, annotation.get("result", []), f"results of task {at}, result"):
        if part.get("type") != "choices" or (control is not None and part.get("from_name") != control):
            continue
        value = part.get("value")
        choices = value.get("choices") if isinstance(value, dict) else None
        if not isinstance(choices, Sequence) or isinstance(choices, str):
            raise AnnotError(f"{path}, task {at} has {str(value)[:60]!r} where value.choices must be a list; export it anew")
        yield from choices


def _renamed(completion: Mapping[str, Any]) -> Mapping[str, Any]:
    """A completion of Label Studio before 1.0 as an annotation."""
    words = (("skipped", "was_cancelled"), ("honeypot", "ground_truth"))
    return {new: completion[old] for old, new in words if old in completion} | dict(completion)


def _who(path: Path, at: str, annotation: Mapping[str, Any]) -> str:
    """Name of who completed an annotation: the number of the user, or what the object about the user says."""
    who = annotation.get("completed_by")
    if isinstance(who, dict):
        who = next((who[key] for key in ("email", "username", "id") if who.get(key) not in (None, "")), None)
    if not isinstance(who, str | int) or isinstance(who, bool) or who == "":
        raise AnnotError(f"{path}, task {at} has no completed_by; name who answered by --worker NAME")
    return str(who)


def _seconds(path: Path, at: str, value: object) -> str:
    return "" if value is None else name_of(path, f"task {at}, lead_time", value)
