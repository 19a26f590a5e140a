"""When to stop asking, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_annot.types import AnnotError


@dataclass(frozen=True)
class StopSettings:
    """``budget``: most ordinary annotations per item (None: no limit). The number of rounds is the Trainer's ``max_epochs``.

    ``patience``: rounds over which the number of finished items must grow (None: need not): stop when its mean over so many
    rounds is no higher than over as many before. Means, because one overconfident round must not set a mark that honest ones
    fail to reach. The rounds must also have brought ``patience_answers`` annotations per item, or more of them are compared: so
    the rule is the same at any annotation rate.
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
    n = _window(settings, n_items, annotation_history)
    if n is not None and len(finished_history) >= 2 * n:
        before, now = sum(finished_history[-2 * n : -n]), sum(finished_history[-n:])
        if 0 < before >= now:
            return f"no more items finished for {n} rounds (stopping.patience)"
    return None


def _window(settings: StopSettings, n_items: int, annotation_history: Sequence[int]) -> int | None:
    """Rounds to compare: ``patience``, or as many as brought ``patience_answers``; None if the rule cannot apply."""
    if settings.patience is None:
        return None
    enough = settings.patience_answers * n_items
    longest = len(annotation_history) // 2
    windows = range(settings.patience, longest + 1)
    return next((n for n in windows if annotation_history[-1] - annotation_history[-1 - n] >= enough), None)
