"""Who answers: the class that every kind of worker extends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import Tensor

from lightning_annot.types import AnnotError, Answer, Finding, Question, Task


class Workers(ABC):
    """Whoever answers. Answers may come later, out of order, in part, or as skips.

    ``shows_examples``: whether they see some prototypes as examples of their classes, which gold questions then leave out.
    """

    shows_examples = False

    @abstractmethod
    def bind(self, task: Task) -> None:
        """Learn the task once, before anything else is called; raises AnnotError if it does not fit."""

    def check(self, task: Task) -> Finding | None:
        """Read the files and ask the servers that ``bind`` will need, before anything that takes long; change nothing.

        None where there is nothing to look at. Workers that say more can also tell their ``names`` from then on.

        Raises:
            AnnotError: ``bind`` would fail.
        """
        del task
        return None

    def remember(self, pairs: Iterable[tuple[str, str]], people: Collection[str] = ()) -> None:
        """Take the (item, worker) pairs that the log already has answers of; called once, after ``bind``.

        ``people``: those workers who have answered what was asked; others only came in with imported answers, or as experts.
        """
        del pairs, people  # most workers need not know

    def names(self) -> Sequence[str]:
        """Workers that can be asked by name; empty when questions go to anyone."""
        return ()

    def capacity(self) -> Tensor | None:
        """Most answers each item can get, those of workers who are not believed included, (N,) int64; None without a limit."""
        return None

    def can_answer(self) -> tuple[Tensor, Tensor] | None:
        """Rows of (item, worker) pairs that can be asked, both (n,) int64; None if every worker can answer every item."""
        return None

    def set_aside(self, reasons: Mapping[str, str]) -> None:
        """Ask those in ``reasons``, name -> why, nothing more for now; all others may be asked again."""
        del reasons  # the run asks them nothing by name in any case

    def trust(self, name: str) -> None:
        """Let ``name``, whose word is taken for the truth, be asked for audits too; called after ``check`` or ``bind``.

        Raises:
            AnnotError: Nobody of that name can be asked.
        """
        raise AnnotError(
            f"stopping.auditor {name!r} given, and {type(self).__name__} cannot hand audits to one person while a run goes on; "
            "leave out stopping.target_error, and let an expert audit the finished labels by lightning-annot certify."
        )

    @abstractmethod
    def submit(self, questions: Sequence[Question]) -> None:
        """Take all questions that are open (committed, unanswered). Submitting one again changes nothing."""

    @abstractmethod
    def collect(self) -> Sequence[Answer]:
        """Answers that have arrived to submitted questions; empty if none has yet. Never waits."""

    def directions(self) -> Sequence[str]:
        """Lines for the owner on where open questions are answered; empty where nobody has to be told."""
        return ()

    def patience(self, arrived: int, asked: int, seconds: float) -> float:
        """Seconds to wait before it is looked for answers again; 0: the round takes what is there.

        ``arrived`` of the ``asked`` answers that the round waits for are there, ``seconds`` after the wait began.
        """
        del arrived, asked, seconds  # most workers answer at once, or when the same command comes again
        return 0.0
