"""The owner's table of workers: what the log counts, what the run believes, and whether the page lends to them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from lightning_annot.annotations.desk import Desk
from lightning_annot.data.page_task import Study
from lightning_annot.serve.overview import Overview
from lightning_annot.serve.tally import Tally

CARD_COLUMNS = {
    "state": "state", "reason": "why", "answers": "answers", "skips": "skips", "accuracy_mean": "accuracy", "gold": "gold",
    "gold_accuracy": "gold right", "compared": "compared", "agreement": "agreement", "kappa": "kappa",
    "seconds_median": "seconds",
    "answers_per_hour": "an hour", "drift": "drift", "confusions": "confusions", "cost": "cost",
}  # fmt: skip


@dataclass(frozen=True)
class PersonRow:
    """Why the page lends nothing, or "": ``paused`` by the owner, ``set_aside`` by the run; ``link``: open, closed or none;
    ``state`` and ``reason``: what the run's last round left.

    ``idle``: seconds since the last answer, None before any.
    """

    worker: str
    answers: int
    skips: int
    gold: int
    right: int
    accuracy: str
    seconds: float | None
    idle: float | None
    cost: float
    state: str
    reason: str
    link: str
    paused: str
    set_aside: str
    done: str

    @property
    def may_answer(self) -> bool:
        """Whether the page lends questions."""
        return self.link == "open" and not self.paused and not self.set_aside

    @property
    def ago(self) -> str:
        """When the last answer came, roughly, so that it seldom changes."""
        if self.idle is None:
            return ""
        steps = ((60, "now"), (300, "5 minutes ago"), (3600, "within the hour"), (86_400, "today"))
        return next((word for most, word in steps if self.idle < most), f"{self.idle // 86_400:.0f} days ago")


def people_rows(desk: Desk, tally: Tally, overview: Overview, study: Study | None) -> list[PersonRow]:
    """Everybody who was invited or has answered, by name."""
    invited = {person.worker: person for person in desk.people()}
    counted = tally.people(overview.truth(), overview.prices()).to_dict("index")
    believed, now = overview.believed(), time.time()
    rows = []
    for name in sorted({*invited, *map(str, counted)}):
        n, person, own = counted.get(name, {}), invited.get(name), believed.get(name, {})
        answers, skips, seconds = int(n.get("answers", 0)), int(n.get("skips", 0)), n.get("seconds")
        link = "none" if person is None else "closed" if person.revoked else "open"
        paused, aside = ("", "") if person is None else (person.paused, person.set_aside)
        rows.append(
            PersonRow(
                name, answers, skips, int(n.get("gold", 0)), int(n.get("right", 0)), _accuracy(own),
                None if seconds is None or seconds != seconds else float(seconds),
                now - float(n["last"]) if n else None, float(n.get("cost", 0.0)), str(own.get("state", "")),
                str(own.get("reason", "")), link, paused, aside, "" if study is None else f"{answers + skips} of {study.size}",
            )
        )  # fmt: skip
    return rows


def _accuracy(own: dict[str, float]) -> str:
    mean = own.get("accuracy_mean", float("nan"))
    return "" if mean != mean else f"{mean:.0%} ({own['accuracy_low']:.0%} to {own['accuracy_high']:.0%})"
