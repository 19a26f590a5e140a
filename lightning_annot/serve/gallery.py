"""Images as the owner looks through them: by their number of answers, finished or not, and those that people disagree about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from lightning_annot.report.run_files import RunFiles
from lightning_annot.serve.tally import Tally

Which = Literal["all", "unfinished", "finished"]
Order = Literal["riskiest", "surest"]
MOST_ANSWERS = 3  # as many or more are one group
ON_SHELF, ON_PAGE = 12, 60


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


class Gallery:
    """Looks through the images of the run that ``run`` gives; the number of answers is that of the log, now."""

    def __init__(self, run: Callable[[], RunFiles | None], tally: Tally) -> None:
        self._run, self._tally = run, tally

    def shelf(self, choice: Choice, start: int = 0, most: int = ON_SHELF) -> Shelf:
        """The ``most`` chosen images from the one at ``start`` on."""
        run = self._run()
        items = self._items(run)
        if choice.which != "all":
            items = items[items["status"] == choice.which]
        if choice.answers is not None:
            count = items["task"].map(self._tally.per_item()).fillna(0).clip(upper=MOST_ANSWERS)
            items = items[count == choice.answers]
        if choice.disputed:
            items = items[items["task"].isin(self._tally.disputed())]
        items = items.sort_values("risk", ascending=choice.order == "surest", kind="stable")
        shown = items.iloc[start : start + most]
        return Shelf(choice, len(items), int((items["status"] != "finished").sum()), self._tiles(run, shown))

    def _items(self, run: RunFiles | None) -> pd.DataFrame:
        """All images to label; before the first round has ended, those that have answers."""
        if run is not None:
            return run.items
        told = self._tally.per_item().index
        return pd.DataFrame({"task": told, "label": "", "confidence": 0.0, "risk": 1.0, "status": "unfinished"})

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
