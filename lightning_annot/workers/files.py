"""Workers who answer through two CSV files: the plainest way to let real people in."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from lightning_annot.annotations.columns import check_members, check_workers, matched, parse_seconds, settled
from lightning_annot.annotations.formats import read_table, write_table
from lightning_annot.annotations.worker_names import worker_names
from lightning_annot.files import check_writable
from lightning_annot.types import AnnotError, Answer, Finding, Question, Task
from lightning_annot.workers.base import Workers
from lightning_annot.workers.capacity import most_answers

logger = logging.getLogger(__name__)

QUESTIONS, ANSWERS = "questions.csv", "answers.csv"
ANONYMOUS = "anonymous"
SKIPS = ("skip", "unsure")


@dataclass(frozen=True)
class _Row:
    """One usable line of the answers file; ``worker`` is empty where nobody signed, ``label`` None for a skip."""

    worker: str
    label: str | None
    seconds: float | None


class FileWorkers(Workers):
    """People who read ``questions.csv`` and append to ``answers.csv``.

    ``questions.csv`` (task, worker, path) always holds the open questions; a blank worker means anyone. People, or a
    tool of theirs, append lines to ``answers.csv`` with the columns task, worker, label and, if they like, seconds. The
    label is a class, or ``skip`` or ``unsure``; a line with a blank label is not answered yet. Answered lines may stay, and
    may be there twice; two labels of one worker for one task are an error. A blank worker is the one who was asked, else
    "anonymous".

    Args:
        directory: folder of both files, made if absent (default: the output folder of the run).
        workers: names to address questions to; without them questions go to anyone.
    """

    def __init__(self, directory: str | None = None, workers: Sequence[str] | None = None) -> None:
        self._directory = directory
        self._workers = worker_names(workers or ())
        self._open: dict[int, Question] = {}
        self._returned: set[int] = set()
        self._written: set[int] | None = None  # questions in the file, None before this process wrote it
        self._answered: Counter[tuple[str, str]] = Counter()  # how often a worker answered an item
        self._people: set[str] = set()  # who has answered what was asked
        self._never_asked = 0

    def check(self, task: Task) -> Finding:
        """Read the answers that are there, and see that the questions can be written."""
        self._learn(task)
        check_writable(self._folder)
        path = self._folder / ANSWERS
        people = f"{len(self._workers)} people by name" if self._workers else "anyone"
        if not path.exists():
            return Finding(f"questions to {people} through {self._folder / QUESTIONS}; no answers yet")
        n_lines = len(self._read(path))
        return Finding(f"questions to {people} through {self._folder / QUESTIONS}; {n_lines:,} lines in {path}")

    def bind(self, task: Task) -> None:
        """Learn items and classes and make the folder."""
        self._learn(task)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AnnotError(f"no folder for questions at {self._folder}: {error}; choose another directory") from error

    def _learn(self, task: Task) -> None:
        self._task = task
        self._folder = Path(task.output_dir if self._directory is None else self._directory)
        self._skips = set(SKIPS) - {name.casefold() for name in task.classes}

    def names(self) -> Sequence[str]:
        """The workers given; empty when questions go to anyone."""
        return list(self._workers)

    def directions(self) -> Sequence[str]:
        """Both files."""
        return (
            f"Questions are in {self._folder / QUESTIONS}",
            f"Answers go to    {self._folder / ANSWERS}, with the columns task,worker,label",
        )

    def capacity(self) -> Tensor | None:
        """As many answers an item as people have answered so far, if none are named, see ``most_answers``."""
        return None if self._workers else most_answers(self._task.items, self._answered, self._people)

    def remember(self, pairs: Iterable[tuple[str, str]], people: Collection[str] = ()) -> None:
        """Learn which (item, worker) pairs have answers already, so that their lines are not used again.

        To be called after ``bind`` with the pairs of all answers in the log, each as often as it occurs; calling it
        again is harmless.
        """
        self._answered |= Counter(pairs)
        self._people |= {*people}

    def trust(self, name: str) -> None:
        """Audits stand in ``questions.csv`` with the name of the auditor, as other questions to a person do."""
        worker_names([name])

    def submit(self, questions: Sequence[Question]) -> None:
        """Take all open questions and write them to ``questions.csv``."""
        self._open = {question.id: question for question in questions if question.id not in self._returned}
        self._write_open()

    def collect(self) -> list[Answer]:
        """New answers from ``answers.csv`` to submitted questions.

        Raises AnnotError that names the lines for missing columns, cut lines, unknown tasks and labels outside the
        classes; nothing is taken then, and all of it is found again once the file is corrected.
        """
        path = self._folder / ANSWERS
        if not path.exists():
            return []
        table = self._read(path)
        questions: dict[str, list[Question]] = defaultdict(list)
        for question in self._open.values():
            questions[question.item].append(question)
        self._warn_of_never_asked(path, table["task"], questions)
        rows = _rows_by_item(table[table["task"].isin(list(questions))])
        audits = [answer for item in rows for answer in _audited(questions[item], rows[item])]
        ordinary = {item: [q for q in asked if q.kind != "audit"] for item, asked in questions.items()}
        answers = [answer for item in rows for answer in self._match(item, ordinary[item], rows[item])]
        for answer in answers:
            self._answered[self._open[answer.question].item, answer.worker] += 1
            self._people.add(answer.worker)
        for answer in (taken := answers + audits):
            del self._open[answer.question]
            self._returned.add(answer.question)
        if taken:
            self._write_open()
        return taken

    def _write_open(self) -> None:
        """Bring ``questions.csv`` up to date; untouched where nothing changed, as somebody may have it open."""
        path = self._folder / QUESTIONS
        if self._written == self._open.keys() and path.exists():
            return
        paths = self._task.paths or {}
        rows = [(q.item, q.worker or "", paths.get(q.item, "")) for q in self._open.values()]
        write_table(path, pd.DataFrame(rows, columns=["task", "worker", "path"]))
        self._written = set(self._open)

    def _read(self, path: Path) -> pd.DataFrame:
        """The answered lines, checked: task, worker ("" where nobody signed), label (None for a skip), seconds."""
        table = read_table(path, ("task", "worker", "label"), ("seconds",), numbers=("seconds",))
        table = table[table["label"] != ""]
        skipped = table["label"].str.casefold().isin(self._skips)
        task = matched(table["task"], self._task.items)
        label = matched(table["label"], self._task.classes, ignore_case=True)
        check_members(path, task, self._task.items, "items")
        check_members(path, label[~skipped], self._task.classes, "classes")
        worker = table["worker"].mask(table["worker"] == ANONYMOUS, "")
        check_workers(path, worker[worker != ""])
        seconds = parse_seconds(path, table["seconds"]) if "seconds" in table else np.nan
        read = pd.DataFrame({"task": task, "worker": worker, "label": label.mask(skipped, None), "seconds": seconds})
        signed = settled(path, read[worker != ""])
        return read[(worker == "") | read.index.isin(signed.index)]

    def _match(self, item: str, asked: list[Question], rows: list[_Row]) -> list[Answer]:
        """Fresh rows of one item to its open questions: first to those of the same worker, then to what is left."""
        pairs: list[tuple[Question, _Row]] = []
        others: list[_Row] = []
        waiting = sorted(asked, key=lambda question: (question.worker is not None, question.id))
        for row in self._fresh(item, rows):
            own = next((question for question in waiting if question.worker == row.worker), None)
            if own is None:
                others.append(row)
            else:
                waiting.remove(own)
                pairs.append((own, row))
        pairs += zip(waiting, others, strict=False)
        signed = {row.worker for row in rows}
        return [
            Answer(question.id, row.worker or self._signature(question, signed), row.label, row.seconds, source="file")
            for question, row in pairs
        ]

    def _fresh(self, item: str, rows: list[_Row]) -> list[_Row]:
        """The rows of an item that no earlier answer came from.

        An unsigned row was logged as "anonymous" or as the worker who was asked; so the earlier answers that no signed
        row explains came from the first unsigned rows.
        """
        seen = {row.worker for row in rows if row.worker and self._answered[item, row.worker]}
        signed = {row.worker for row in rows}
        used = sum(self._answered[item, name] for name in {ANONYMOUS, *self._workers} - signed)
        fresh = []
        for row in rows:
            if not row.worker and used:
                used -= 1
            elif row.worker not in seen:
                fresh.append(row)
                seen |= {row.worker} - {""}
        return fresh

    def _signature(self, question: Question, signed: set[str]) -> str:
        """Who an unsigned answer came from: the worker who was asked, unless that one has answered elsewhere."""
        worker = question.worker
        return worker if worker and worker not in signed and not self._answered[question.item, worker] else ANONYMOUS

    def _warn_of_never_asked(self, path: Path, tasks: pd.Series, questions: Collection[str]) -> None:
        asked = {item for item, _ in self._answered}.union(questions)
        count = int((~tasks.isin(list(asked))).sum())
        if count > self._never_asked:
            logger.warning("%s: %d rows answer tasks that were never asked; they wait until these are", path, count)
        self._never_asked = count


def _audited(asked: list[Question], rows: list[_Row]) -> list[Answer]:
    """Answers to the audits among the questions about one item; a line that answered another question serves here too.

    An unsigned line is the auditor's if nothing else is asked about the item.
    """
    only = all(question.kind == "audit" for question in asked)
    answers = []
    for question in asked:
        own = [row for row in rows if row.worker == question.worker or (only and not row.worker)]
        if question.kind == "audit" and question.worker and own:
            row = max(own, key=lambda row: bool(row.worker))
            answers.append(Answer(question.id, question.worker, row.label, row.seconds, source="file"))
    return answers


def _rows_by_item(table: pd.DataFrame) -> dict[str, list[_Row]]:
    """Rows by item, in the order of the file."""
    rows: dict[str, list[_Row]] = defaultdict(list)
    for item, worker, label, seconds in table.itertuples(index=False, name=None):
        rows[item].append(_Row(worker, label, None if np.isnan(seconds) else seconds))
    return rows
