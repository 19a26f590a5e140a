"""Images as the owner looks through them: by their number of answers, finished or not, and those that people disagree about."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd

from lightning_annot.report.run_files import RunFiles
from lightning_annot.serve.tally import Tally

Which = Literal["all", "unfinished", "finished"]
Order = Literal["riskiest", "surest"]
MOST_ANSWERS = 3  # as many or more are one group
ON_SHELF, ON_PAGE = 12, 60
_AT_ONCE = 20_000  # items, in between which other threads have their turn


@dataclass(frozen=True)
class Choice:
    """Which images: ``answers``: 0, 1, 2, or 3 for three or more; None: any number. ``disputed``: those with different ones."""

    which: Which = "all"
    answers: int | None = None
    disputed: bool = False
    order: Order = "riskiest"

    @property
    def title(self) -> str:
        """What is chosen, in words."""
        number = {None: "", 0: "without an answer", 1: "with 1 answer", 2: "with 2 answers", 3: "with 3 answers or more"}
        words = ["Images" if self.which == "all" else f"{self.which.capitalize()} images", number[self.answers]]
        return " ".join(word for word in [*words, "people disagree about" if self.disputed else ""] if word)

    @property
    def address(self) -> str:
        """The page that shows them; ``page`` may be added."""
        given = {"which": self.which, "answers": self.answers, "disputed": int(self.disputed), "order": self.order}
        return "/owner/gallery?" + "&".join(f"{name}={value}" for name, value in given.items() if value is not None)

    def but(self, **changed: object) -> Choice:
        """The same with something else."""
        return replace(self, **changed)  # type: ignore[arg-type]


SHELVES = (
    Choice("unfinished"),
    *(Choice("all", n) for n in range(MOST_ANSWERS + 1)),
    Choice("all", disputed=True),
)  # as Figures 11 to 15 of the supplement show them, and one more


@dataclass(frozen=True)
class Tile:
    """An image: its label as the run has it, how sure that is, and what was ``said``; ``label``: "" before a round ended."""

    item: str
    label: str
    confidence: str
    finished: bool
    said: list[tuple[str, str]]


@dataclass(frozen=True)
class Shelf:
    """Some of the chosen images, ``total`` of which there are, ``unfinished`` of them not finished."""

    choice: Choice
    total: int
    unfinished: int
    tiles: list[Tile]


@dataclass(frozen=True)
class _Ordered:
    """All images to label in an order: rows of ``labels`` (M,), which are ``finished`` (M,), and as the tally knows them."""

    labels: pd.DataFrame
    rows: np.ndarray
    finished: np.ndarray
    numbers: np.ndarray


class Gallery:
    """Looks through the images of the run that ``run`` gives; the number of answers is that of the log, now."""

    def __init__(self, run: Callable[[], RunFiles | None], tally: Tally) -> None:
        self._run, self._tally = run, tally
        self._lock = threading.Lock()
        self._counted: tuple[int, _Ordered, tuple[np.ndarray, np.ndarray]] | None = None
        self._ordered: dict[Order, tuple[RunFiles, _Ordered]] = {}  # to put them in order takes longer than all the rest

    def shelf(self, choice: Choice, start: int = 0, most: int = ON_SHELF) -> Shelf:
        """The ``most`` chosen images from the one at ``start`` on."""
        run = self._run()
        items = self._items(run, choice.order)
        kept = items.finished == (choice.which == "finished") if choice.which != "all" else np.ones_like(items.finished)
        if choice.answers is not None or choice.disputed:
            count, disputed = self._labelled(items)
            if choice.answers is not None:
                kept &= count >= MOST_ANSWERS if choice.answers == MOST_ANSWERS else count == choice.answers
            if choice.disputed:
                kept &= disputed
        chosen = np.flatnonzero(kept)
        shown = items.labels.iloc[items.rows[chosen[start : start + most]]]
        return Shelf(choice, len(chosen), int(np.count_nonzero(~items.finished[chosen])), self._tiles(run, shown))

    def _labelled(self, items: _Ordered) -> tuple[np.ndarray, np.ndarray]:
        """``Tally.labelled`` of all of them, which several shelves go by."""
        stamp = self._tally.stamp  # what comes from here on is counted now and once more
        known = self._counted
        if known is None or known[0] != stamp or known[1] is not items:
            known = self._counted = stamp, items, self._tally.labelled(items.numbers)
        return known[2]

    def _items(self, run: RunFiles | None, order: Order) -> _Ordered:
        """All images to label; before the first round has ended, those that have answers."""
        if run is None:
            told = self._tally.told()
            labels = pd.DataFrame({"task": told, "label": "", "confidence": 0.0, "risk": 1.0, "status": "unfinished"})
            return _Ordered(labels, np.arange(len(told)), np.zeros(len(told), np.bool_), self._tally.numbers(told))
        with self._lock:
            known = self._ordered.get(order)
            if known is None or known[0] is not run:
                self._ordered = {other: kept for other, kept in self._ordered.items() if kept[0] is run}  # no older one stays
                known = self._ordered[order] = run, self._in_order(run, order)
            return known[1]

    def _in_order(self, run: RunFiles, order: Order) -> _Ordered:
        status, risk = run.labels["status"].to_numpy(object), run.labels["risk"].to_numpy(np.float64)
        rows = np.flatnonzero(status != "prototype")
        rows = rows[np.argsort(risk[rows] if order == "surest" else -risk[rows], kind="stable")]
        tasks, starts = run.labels["task"], range(0, len(run.labels), _AT_ONCE)
        numbers = [self._tally.numbers(tasks.iloc[start : start + _AT_ONCE].tolist()) for start in starts]
        return _Ordered(run.labels, rows, status[rows] == "finished", np.concatenate([*numbers, rows[:0]])[rows])

    def _tiles(self, run: RunFiles | None, items: pd.DataFrame) -> list[Tile]:
        names = {} if run is None else run.names
        said = self._tally.said(items["task"].tolist())
        rows = zip(*(items[name] for name in ("task", "label", "confidence", "status")), strict=True)
        return [
            Tile(
                task, names.get(label, label), f"{confidence:.0%}" if label else "", status == "finished",
                [(who, names.get(word, word)) for who, word in said[task]],
            )
            for task, label, confidence, status in rows
        ]  # fmt: skip
