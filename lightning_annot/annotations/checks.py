"""What may come into the log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from lightning_annot.names import refuse_unusable
from lightning_annot.types import KINDS, AnnotError, Answer, Question

_SHOWN = 5


def check_kinds(kinds: Iterable[str]) -> None:
    """Raises AnnotError for any kind that is none of ``KINDS``."""
    if odd := sorted({*kinds} - {*KINDS}):
        raise AnnotError(f"unknown kinds of question {few(odd)}; allowed are {', '.join(KINDS)}")


def check_questions(questions: Sequence[Question]) -> None:
    """Raises AnnotError for questions that cannot be asked, or are in a log already."""
    check_kinds(question.kind for question in questions)
    if odd := [q for q in questions if not q.item or q.worker == ""]:
        raise AnnotError(f"{len(odd)} questions name no item or an empty worker ({few(odd)}); None means anyone")
    refuse_unusable("items or workers", [name for q in questions for name in (q.item, q.worker) if name is not None])
    if asked := [q.id for q in questions if q.id]:
        raise AnnotError(f"{len(asked)} questions are in a log already (ids {few(asked)}); ask only new ones")


def check_answers(answers: Sequence[Answer]) -> None:
    """Raises AnnotError for answers that no worker can have given."""
    if odd := [a for a in answers if not a.worker or a.label == ""]:
        raise AnnotError(f"{len(odd)} answers have no worker or an empty label ({few(odd)}); a skip has label None")
    refuse_unusable("workers or labels", [name for a in answers for name in (a.worker, a.label) if name is not None])
    if odd := [a for a in answers if a.seconds is not None and not 0 <= a.seconds < math.inf]:
        raise AnnotError(f"{len(odd)} answers took an impossible time ({few(odd)}); seconds are 0 or more, or None")


def few(values: Sequence[object]) -> str:
    """The first of ``values``, as text."""
    return ", ".join(map(str, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")
