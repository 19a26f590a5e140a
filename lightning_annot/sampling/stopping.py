"""When to stop asking, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_annot.types import AnnotError


@dataclass(frozen=True)
class StopSettings:
    """``budget``: most ordinary annotations per item (None: no limit). ``patience``: rounds without one more finished item
    (None: never), which must also have brought ``patience_answers`` annotations per item, however few a round asks; it begins
    once some item is finished. The number of rounds is the Trainer's ``max_epochs``.
    """

    budget: float | None = None
    patience: int | None = 20
    patience_answers: float = 0.0

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget < 0:
            raise AnnotError(f"stopping.budget {self.budget} given; it must be 0 or more annotations per item, or null.")
        if self.patience is not None and self.patience < 1:
            raise AnnotError(f"stopping.patience {self.patience} given; it must be 1 round or more, or null.")
        if self.patience_answers < 0:
            raise AnnotError(
                f"stopping.patience_answers {self.patience_answers} given; it must be 0 or more annotations per item."
            )

    def left(self, n_annotations: int, n_items: int) -> int | None:
        """Annotations the budget still allows; None without a budget."""
        return None if self.budget is None else max(0, round(self.budget * n_items) - n_annotations)


def stop_reason(
    settings: StopSettings,
    *,
    finished_history: Sequence[int],
    annotation_history: Sequence[int],
    n_items: int,
    n_candidates: int,
    n_open: int,
    last_round: bool,
) -> str | None:
    """Why the run ends after this round, or None to go on.

    ``finished_history``, ``annotation_history``: finished items and ordinary annotations of each round; ``n_candidates``:
    items that may still be asked; ``n_open``: questions that wait for an answer.
    """
    if finished_history[-1] == n_items:
        return "every item is finished"
    if n_candidates == 0 and n_open == 0:
        return "every unfinished item has had as many answers as it may get"
    if settings.left(annotation_history[-1], n_items) == 0:
        return f"the budget of {settings.budget:g} annotations per item is spent"
    if last_round:
        return "the last allowed round is done (trainer.max_epochs)"
    if settings.patience is not None:
        best = max(range(len(finished_history)), key=finished_history.__getitem__)  # the first round that had as many
        rounds, answers = len(finished_history) - 1 - best, annotation_history[-1] - annotation_history[best]
        in_vain = rounds >= settings.patience and answers >= settings.patience_answers * n_items
        if in_vain and finished_history[best]:
            return f"no more items finished for {rounds} rounds (stopping.patience)"
    return None
