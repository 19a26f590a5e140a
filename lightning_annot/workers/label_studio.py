"""Workers who answer in Label Studio while the run goes on."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.schema import EXPERT
from lightning_annot.annotations.worker_names import worker_names
from lightning_annot.exchange.label_studio import prediction, said
from lightning_annot.stored import reading
from lightning_annot.types import AnnotError, Answer, Finding, Question, Task
from lightning_annot.workers.base import Workers
from lightning_annot.workers.capacity import most_answers
from lightning_annot.workers.label_studio_project import Control, Pictures, label_config
from lightning_annot.workers.waiting import AwayError, Waiting

if TYPE_CHECKING:
    from lightning_annot.workers.label_studio_client import LabelStudio

logger = logging.getLogger(__name__)

SOURCE = "label-studio"
GROUND_TRUTH = "ground truth"  # the name of whoever starred annotations
KEY, ITEM, WORKER = "question", "task", "worker"  # of a task's data
_CHECK_SECONDS = 5.0  # the most that one call of ``check`` waits
_MARGIN = timedelta(seconds=10)  # a change may be seen after one with a later time, if both were committed at once


class LabelStudioWorkers(Workers):
    """People in a project of a Label Studio server: each open question is a task there, annotations are answers.

    The token of the server comes from the environment variable LABEL_STUDIO_API_KEY. Which questions the server has is asked
    of the server, so nothing is pushed twice whatever was killed when.

    Args:
        url: address of the server.
        project: title of the project, made if there is none; "lightning-annot" and the name of the output folder by default.
        images: address of images, with ``{item}`` where an item's name goes, else at the end; without it files are uploaded.
        predictions: show what the last round believes as pre-annotations.
        workers: e-mail addresses of people to address questions to; without them questions go to anyone.
        until: ``all``, or the share of a round's answers to wait for, such as 0.8.
        minutes: the most that a round waits, if at least one answer is there; null: for ever.
        poll_seconds: how often the server is asked for answers while a round waits.
    """

    def __init__(
        self,
        url: str = "http://localhost:8080",
        project: str | None = None,
        images: str | None = None,
        predictions: bool = False,
        workers: Sequence[str] | None = None,
        until: str | float = "all",
        minutes: float | None = None,
        poll_seconds: float = 5.0,
    ) -> None:
        if project is not None and not 3 <= len(project) <= 50:
            raise AnnotError(f"workers.project {project!r} given; Label Studio takes titles of 3 to 50 characters.")
        self._url, self._title, self._images, self._predictions = url, project, images, predictions
        self._workers = worker_names(workers or ())
        self._waiting = Waiting(until, minutes, poll_seconds)
        self._open: dict[int, Question] = {}
        self._asked: dict[str, tuple[int, str]] = {}  # question and item by the key of its task
        self._key_of: dict[int, str] = {}
        self._pushed: set[int] = set()  # questions that have a task
        self._total = -1  # tasks of the project when it was last listed; -1: list it first
        self._seen: str | None = None  # the last change that was read
        self._emails: dict[int, str] = {}
        self._answered: set[tuple[str, str]] = set()
        self._people: set[str] = set()  # who has answered what was asked
        self._away = False

    def bind(self, task: Task) -> None:
        """Reach the server, and find or create the project."""
        if task.log_url is None:
            raise AnnotError("Label Studio workers need the annotation log, and the task names none; set Task.log_url.")
        self._task, self._log = task, AnnotationLog(task.log_url)
        self._classes = set(task.classes)
        server = self._server = self._client()
        title = self._title_of(task)
        try:
            project = self._find(server, task)
            self._pictures = Pictures(server, self._images, task.paths)
            if project is None:
                config = label_config(task.classes, task.names or task.classes)
                project = server.create_project(title, config, self._predictions)
                logger.info("Label Studio project %r is made: %s/projects/%d", title, server.url, server.project)
            self._control = Control.of(project, task.classes, taken=(KEY, ITEM, WORKER))
            self._introduce()
        except AwayError as error:
            raise self._unreachable(error) from error

    def check(self, task: Task) -> Finding:
        """Reach the server; the project, if it is there, must be about these classes."""
        server, title = self._client(_CHECK_SECONDS), self._title_of(task)
        try:
            project = self._find(server, task)
            self._check_people(server)
            Pictures(server, self._images, task.paths)
        except AwayError as error:
            raise self._unreachable(error) from error
        finally:
            server.close()
        if project is None:
            return Finding(f"Label Studio at {server.url} answers; the project {title!r} will be made")
        Control.of(project, task.classes, taken=(KEY, ITEM, WORKER))
        return Finding(f"Label Studio at {server.url} answers; its project {title!r} is about these classes")

    def _client(self, seconds: float | None = None) -> LabelStudio:
        try:
            from lightning_annot.workers.label_studio_client import LabelStudio
        except ImportError as error:
            raise AnnotError("Label Studio needs httpx; install it by pip install 'lightning-annot[label-studio]'.") from error
        return LabelStudio(self._url, seconds)

    def _find(self, server: LabelStudio, task: Task) -> dict[str, Any] | None:
        server.check()
        return server.find_project(self._title_of(task))

    def _title_of(self, task: Task) -> str:
        return self._title or f"lightning-annot {Path(task.output_dir).resolve().name}"[:50]

    def _unreachable(self, error: AwayError) -> AnnotError:
        return AnnotError(f"{error}; start it, or correct workers.url ({self._url}).")

    def _introduce(self) -> None:
        """A tab for each person who is named."""
        if not self._workers:
            return
        self._check_people(self._server)
        for name in sorted({*self._workers} - self._server.tabs()):
            self._server.add_tab(name, WORKER)

    def _check_people(self, server: LabelStudio) -> None:
        people = sorted(server.emails().values()) if self._workers else []
        if strangers := sorted({*self._workers} - {*people}):
            raise AnnotError(
                f"workers.workers {strangers[:5]} have no account at {server.url}, which knows {people[:10]}; give the "
                "e-mail addresses of people who have one, or invite them first."
            )

    def names(self) -> Sequence[str]:
        """The workers given; empty when questions go to anyone."""
        return list(self._workers)

    def directions(self) -> Sequence[str]:
        """The project's address."""
        return (f"People answer in Label Studio: {self._server.url}/projects/{self._server.project}",)

    def remember(self, pairs: Iterable[tuple[str, str]], people: Collection[str] = ()) -> None:
        """Which items each person has answered: their later annotations of them are no answers."""
        self._answered |= set(pairs)
        self._people |= {*people}

    def capacity(self) -> Tensor | None:
        """As many answers an item as people have answered so far, if none are named, see ``most_answers``."""
        return None if self._workers else most_answers(self._task.items, self._answered, self._people)

    def patience(self, arrived: int, asked: int, seconds: float) -> float:
        """Wait until the share of the answers is there, or until the minutes are over and any is."""
        return self._waiting.patience(arrived, asked, seconds)

    def submit(self, questions: Sequence[Question]) -> None:
        """Push the questions that the server does not have; where it is away, the next call does."""
        self._open = {question.id: question for question in questions}
        if not self._open.keys() <= self._key_of.keys():
            self._learn_keys()
        try:
            if self._total < 0 or self._server.count() != self._total:
                self._list()
            if fresh := [question for question in questions if question.id not in self._pushed]:
                self._total = -1  # until it is known what became of the push
                self._server.push(self._as_tasks(fresh))
                self._list()
            self._is_away(None)
        except AwayError as error:
            self._is_away(error)

    def collect(self) -> list[Answer]:
        """Answers from annotations that came since the last call; none where the server is away."""
        try:
            tasks = [t for t in self._server.changed_since(self._seen) if str(t["data"].get(KEY, "")) in self._asked]
            self._learn_emails({a["completed_by"] for task in tasks for a in task["annotations"]})
        except AwayError as error:
            self._is_away(error)
            return []
        signed = [
            (a, task) for task in tasks for a in task["annotations"] if a["completed_by"] is not None
        ]  # else: deleted users
        answers = [x for a, task in sorted(signed, key=lambda pair: pair[0]["id"]) for x in self._answers(a, task)]
        for answer in answers:
            self._open.pop(answer.question, None)
        try:
            self._offer_again(tasks)
        except AwayError as error:  # what is read now is read again
            self._is_away(error)
            return answers
        if tasks:
            self._seen = _before(max(task["updated_at"] for task in tasks))
        return answers

    def _learn_keys(self) -> None:
        """Keys of the tasks of all questions: their number and a digest of what was asked when, so that no other run has it."""
        table = self._log.questions()
        new = table.loc[~table["id"].isin(self._key_of), ["id", "item", "asked_at"]]
        for number, item, when in new.itertuples(index=False, name=None):
            key = f"{number}-{hashlib.sha256(f'{when} {item}'.encode()).hexdigest()[:16]}"
            self._key_of[number], self._asked[key] = key, (number, item)

    def _learn_emails(self, users: set[int]) -> None:
        if not users <= self._emails.keys():
            self._emails = {user: str(user) for user in users} | self._server.emails()

    def _list(self) -> None:
        """Learn which questions have a task."""
        keys = self._server.keys(KEY)
        there = {self._asked[key][0] for _, key in keys if key in self._asked}
        if gone := self._pushed.intersection(self._open) - there:
            logger.warning("%d tasks of open questions were deleted in Label Studio; they are pushed again", len(gone))
        self._pushed, self._total = there, len(keys)

    def _as_tasks(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        items = list(dict.fromkeys(question.item for question in questions))
        address = self._pictures.addresses(items)
        guesses = self._guesses(items) if self._predictions else {}
        tasks = []
        for question in questions:
            data = {self._control.key: address[question.item], KEY: self._key_of[question.id], ITEM: question.item}
            if self._workers:
                data[WORKER] = question.worker or ""
            guess = [guesses[question.item]] if question.item in guesses else []
            tasks.append({"data": data, "predictions": guess})
        return tasks

    def _guesses(self, items: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Pre-annotations by item, from what the round before has left; none where some of the ``items`` are prototypes.

        A gold question must not show its label, and must not be the only one that shows none.
        """
        path = Path(self._task.output_dir) / "labels.csv"
        if not path.is_file():
            return {}
        try:
            with reading(path, "the run writes it anew"):
                table = pd.read_csv(path, dtype={"task": str, "label": str}, keep_default_na=False)
                table = table.astype({"task": str, "label": str, "confidence": float, "status": str})
        except AnnotError as error:
            logger.warning("%s; until then nobody sees the run's own labels", error)
            return {}
        table = table[table["task"].isin(items)]
        if (table["status"] == "prototype").any():
            return {}
        rows = zip(table["task"], table["label"], table["confidence"], strict=True)
        return {item: prediction(label, score, self._control.name, self._control.shown) for item, label, score in rows}

    def _answers(self, annotation: Mapping[str, Any], task: Mapping[str, Any]) -> list[Answer]:
        """What is new in an annotation: its author's answer, and an expert's where it is starred."""
        question, item = self._asked[task["data"][KEY]]
        author = self._emails[annotation["completed_by"]]
        who = [author, GROUND_TRUTH] if annotation["ground_truth"] else [author]
        new = [name for name in who if (item, name) not in self._answered]
        if not new:  # what has become of it since does not matter
            return []
        where = f"{task['id']}, annotation {annotation['id']}"
        given = said(f"{self._server.url}/projects/{self._server.project}", where, annotation, self._control.name)
        if given.label is not None and given.label not in self._classes:
            raise AnnotError(
                f"task {where} of Label Studio project {self._server.project} has the label {given.label!r}, which is none of "
                f"the {len(self._classes)} classes, {sorted(self._classes)[:10]}; correct it there, the same command goes on."
            )
        seconds = given.lead_time if isinstance(given.lead_time, int | float) and 0 <= given.lead_time < math.inf else None
        answers = {author: Answer(question, author, given.label, seconds, SOURCE)}
        if given.ground_truth:
            answers[GROUND_TRUTH] = Answer(question, GROUND_TRUTH, given.label, None, EXPERT)
        self._answered |= {(item, name) for name in new if name in answers}
        self._people |= {author} & {*new}
        return [answers[name] for name in new if name in answers]

    def _offer_again(self, tasks: Sequence[Mapping[str, Any]]) -> None:
        """Give tasks to one person more where everybody so far had answered the item before, so that the question is open."""
        for task in tasks:
            if task["is_labeled"] and self._asked[task["data"][KEY]][0] in self._open:
                self._server.offer_again(task["id"], len(task["annotations"]))

    def _is_away(self, error: AwayError | None) -> None:
        """Say once that the server is away, and once that it is back."""
        if error is not None and not self._away:
            logger.warning("%s; the run goes on once it is back", error)
        elif error is None and self._away:
            logger.warning("Label Studio at %s is back", self._server.url)
        self._away = error is not None


def _before(moment: str) -> str:
    """A little before ``moment``, both ISO 8601 in UTC."""
    return (datetime.fromisoformat(moment.replace("Z", "+00:00")) - _MARGIN).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
