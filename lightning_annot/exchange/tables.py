"""Answers as CSV: crowd-kit, cleanlab long and wide, Mechanical Turk, NetEaseCrowd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from lightning_annot.annotations.columns import distinct, parse_seconds
from lightning_annot.annotations.formats import EXPERT_LABEL, read_sheet, read_table, write_table
from lightning_annot.exchange.numbers import named, write_numbered
from lightning_annot.exchange.records import (
    Reading,
    Records,
    check_no_spaces_around,
    check_unlike,
    from_table,
    records,
    texts,
)
from lightning_annot.names import clean
from lightning_annot.types import AnnotError

PERFORMER = {"performer": "worker"}  # crowd-kit before 1.0
SKIPS = ("skip", "unsure")  # words of an expert
BLANK = ("", "nan", "NaN")  # of cleanlab's matrix


def read_crowd_kit(path: Path, how: Reading) -> Records:
    """``task,worker,label`` and, where it is there, ``seconds``; ``performer`` counts as worker.

    In the table of ``unfinished`` the label is what the expert filled in; ``skip`` and ``unsure`` are skips, an empty cell
    is not answered yet. The labels of a run are nobody's answers.
    """
    header = read_sheet(path).header
    if "label" not in how.columns and EXPERT_LABEL in header:
        return _read_handover(path, how)
    if "label" not in how.columns and {"label", "confidence", "risk"} <= {*header}:
        raise AnnotError(
            f"{path} has the labels of a run, which nobody gave, and no column {EXPERT_LABEL}; name the column with answers by "
            "--map label=COLUMN"
        )
    return from_table(path, how, old_names=PERFORMER)


def write_crowd_kit(path: Path, given: Records) -> None:
    """``task,worker,label,seconds``; skips are left out."""
    write_table(path, given.labels()[["task", "worker", "label", "seconds"]])


def _read_handover(path: Path, how: Reading) -> Records:
    if how.worker is None:
        raise AnnotError(f"{path} does not say who filled {EXPERT_LABEL} in; give --expert NAME, or --worker NAME")
    table = read_table(path, ("task", EXPERT_LABEL))
    table = table[table[EXPERT_LABEL] != ""]
    label, who = table[EXPERT_LABEL], pd.Series(how.worker, index=table.index, dtype=object)
    return records(path, table["task"], who, label, skip=label.str.casefold().isin(SKIPS))


def read_cleanlab(path: Path, how: Reading) -> Records:
    """``task,annotator,label``."""
    return from_table(path, how, worker="annotator")


def write_cleanlab(path: Path, given: Records) -> None:
    """``task,annotator,label``; skips are left out."""
    write_table(path, given.labels()[["task", "worker", "label"]].rename(columns={"worker": "annotator"}))


def read_cleanlab_wide(path: Path, how: Reading) -> Records:
    """One row a task, named in the first column, and one column a worker; an empty cell or nan is no answer.

    A matrix of numbers with gaps has labels such as ``3.0``; if all look like that, they are read as ``3``.
    """
    sheet = read_sheet(path)
    header, rows, lines = sheet.header, sheet.rows, sheet.lines
    if len(header) < 2 or len(set(header[1:])) < len(header) - 1 or "" in header[1:]:
        raise AnnotError(f"{path} has columns {header}; the first names the tasks, and each other one its own worker")
    cells = np.array(rows, dtype=object).reshape(-1, len(header))
    cells = np.vectorize(clean, otypes=[object])(cells) if cells.size else cells
    given = ~np.isin(cells[:, 1:].astype(str), BLANK)
    row, worker = given.nonzero()
    index = pd.Index(np.asarray(lines, dtype=np.int64)[row], name="line")
    label = pd.Series(cells[:, 1:][given], index=index, dtype=object)
    if len(label) and label.str.fullmatch(r"\d+\.0").all():
        label = label.str.removesuffix(".0")
    task = pd.Series(cells[row, 0], index=index, dtype=object)
    return records(path, task, pd.Series(np.array(header[1:], dtype=object)[worker], index=index, dtype=object), label)


def write_cleanlab_wide(path: Path, given: Records) -> None:
    """One row a task, one column a worker; empty where there is no answer. Skips are left out."""
    labels = given.labels()
    check_unlike(path, labels["label"], BLANK, "would be read as no answer")
    check_no_spaces_around(path, labels["worker"])
    wide = labels.pivot(index="task", columns="worker", values="label")
    wide = wide.reindex(index=labels["task"].unique(), columns=labels["worker"].unique())
    write_table(path, wide.reset_index(names="task", allow_duplicates=True))


def read_mturk(path: Path, how: Reading) -> Records:
    """A batch's results: ``WorkerId``, ``WorkTimeInSeconds``, one ``Input.*`` (task) and one ``Answer.*`` (label).

    Where there are more of these, ``columns`` says which. Rejected assignments are left out; an empty answer is a skip.
    """
    header = read_sheet(path).header
    task = how.columns.get("task") or _only(path, header, "Input.", "task")
    label = how.columns.get("label") or _only(path, header, "Answer.", "label")
    optional = ("WorkTimeInSeconds", "AssignmentStatus", "Reject")
    table = read_table(path, (task, how.column("worker", "WorkerId"), label), optional, numbers=optional[:1])
    rejected = pd.Series(False, index=table.index)
    if "AssignmentStatus" in table:
        rejected |= table["AssignmentStatus"] == "Rejected"
    if "Reject" in table:
        rejected |= table["Reject"] != ""
    table = table[~rejected]
    seconds = parse_seconds(path, table["WorkTimeInSeconds"]) if "WorkTimeInSeconds" in table else None
    worker, answer = table[how.column("worker", "WorkerId")], table[label]
    return records(path, table[task], worker, answer, seconds=seconds, skip=answer == "")


def write_mturk(path: Path, given: Records, address: Callable[[str], str] = str) -> None:
    """Results of a batch: ``Input.task``, its ``address`` as ``Input.image_url``, and ``Answer.label``; empty for a skip.

    HITs and assignments are numbered, types of HITs and moments of acceptance unknown, and all assignments submitted, not yet
    approved or rejected.
    """
    answers = given.answers
    check_no_spaces_around(path, given.labels()["label"])
    when = answers.get("answered_at", "")
    table = {
        "HITId": pd.factorize(answers["task"])[0] + 1,
        "HITTypeId": "",
        "AssignmentId": np.arange(1, len(answers) + 1),
        "WorkerId": answers["worker"],
        "AssignmentStatus": "Submitted",
        "AcceptTime": "",
        "SubmitTime": when,
        "WorkTimeInSeconds": texts(answers["seconds"]),
        "Input.image_url": [address(task) for task in answers["task"]],
        "Input.task": answers["task"],
        "Answer.label": answers["label"].where(~answers["skip"], ""),
        "Approve": "",
        "Reject": "",
    }
    write_table(path, pd.DataFrame(table))


def write_mturk_input(path: Path, tasks: Sequence[str], addresses: Sequence[str]) -> None:
    """Input of a batch, one HIT a line: ``image_url`` and the ``task`` that comes back as ``Input.task``."""
    write_table(path, pd.DataFrame({"image_url": list(addresses), "task": list(tasks)}))


def read_netease(path: Path, how: Reading) -> Records:
    """``tasksetId,taskId,workerId,answer,completeTime,truth,capability``; ``completeTime`` is a moment, so seconds are
    unknown.
    """
    names = [how.column(key, usual) for key, usual in (("task", "taskId"), ("worker", "workerId"), ("label", "answer"))]
    table = read_table(path, names, ("truth",))
    task, worker, label = (named(path, name, table[name]) for name in names)
    truth = _truth(path, task, named(path, "truth", table["truth"])) if "truth" in table else {}
    return records(path, task, worker, label, truth=truth)


def write_netease(path: Path, given: Records) -> None:
    """One set of tasks of one capability; ``completeTime`` in milliseconds since 1970, where it is known. Skips are left out.

    The form has numbers for tasks, workers and classes: names are numbered, see exchange/numbers.py.
    """
    labels, classes = given.labels(), given.class_names()
    done = pd.Series("", index=labels.index, dtype=object)
    if "answered_at" in labels:
        moment = pd.to_datetime(labels["answered_at"], utc=True, format="ISO8601")
        done = ((moment - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(milliseconds=1)).astype(str)
    table = {
        "tasksetId": 0,
        "taskId": labels["task"],
        "workerId": labels["worker"],
        "answer": labels["label"],
        "completeTime": done,
        "truth": labels["task"].map(given.truth).fillna(""),
        "capability": 0,
    }
    names = {"taskId": labels["task"].unique(), "workerId": labels["worker"].unique(), "answer": classes, "truth": classes}
    write_numbered(path, pd.DataFrame(table), names)


def _truth(path: Path, task: pd.Series, truth: pd.Series) -> dict[str, str]:
    """Class by task, of which all rows of a task must say the same."""
    known = pd.DataFrame({"task": task, "truth": truth})[truth != ""]
    known = distinct(path, known, ("task",), "truth", "have a truth that an earlier row contradicts", "correct them")
    return dict(zip(known["task"], known["truth"], strict=True))


def _only(path: Path, header: Sequence[str], prefix: str, name: str) -> str:
    """The only column with ``prefix``."""
    found = [column for column in header if column.startswith(prefix)]
    if name == "task" and "Input.task" in found:
        return "Input.task"
    if len(found) != 1:
        raise AnnotError(
            f"{path} has the columns {found} that start with {prefix!r}, and one is needed; say which by --map {name}=COLUMN"
        )
    return found[0]
