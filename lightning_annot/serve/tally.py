"""What the log tells the owner while a round goes on. Answers are read once each, as they come."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import func, select

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.schema import QUESTION
from lightning_annot.report.pace import per_hour

_COLUMNS = ["question", "item", "worker", "label", "kind", "round", "seconds", "answered_at", "source"]


@dataclass(frozen=True)
class Standing:
    """The round that was asked last: its number, its questions, and how many of them have an answer."""

    round: int
    asked: int
    answered: int


class Tally:
    """Counts of a log. Audits, which are an expert's, are left out."""

    def __init__(self, log: AnnotationLog) -> None:
        self._log, self._lock, self._last = log, threading.Lock(), 0
        self._answers = pd.DataFrame(columns=_COLUMNS)
        self._made: dict[str, Any] = {}

    def answers(self) -> pd.DataFrame:
        """Answers so far, by id: question, item, worker, label (None: skip), kind, round, seconds, answered_at, source."""
        with self._lock:
            new = self._log.answers(after_id=self._last)
            if len(new):
                self._last = int(new["id"].iloc[-1])
                new = new.loc[new["kind"] != "audit", _COLUMNS]
                self._answers = new if self._answers.empty else pd.concat([self._answers, new], ignore_index=True)
                self._made = {}
            return self._answers

    @property
    def stamp(self) -> int:
        """Changes when answers come."""
        self.answers()
        return self._last

    def times(self) -> np.ndarray:
        """Seconds since 1970 of each answer."""
        found: np.ndarray = self._kept("times", self._times)
        return found

    def _times(self) -> np.ndarray:
        return _seconds(self.answers()["answered_at"])

    def pace(self) -> float:
        """Answers an hour, lately."""
        return per_hour(self.times(), time.time())

    def standing(self) -> Standing | None:
        """How far the last round is; None before any question."""
        last = self._log.last_round()
        query = select(func.count()).select_from(QUESTION).where(QUESTION.c.round == last, QUESTION.c.kind != "audit")
        with self._log.reading() as connection:
            asked = connection.scalar(query) or 0
        answers = self.answers()
        return Standing(last, asked, answers.loc[answers["round"] == last, "question"].nunique()) if asked else None

    def per_item(self) -> pd.Series:
        """Labels that each item got, those that got any; skips and gold are none."""
        found: pd.Series = self._kept("per_item", lambda: self._labels()["item"].value_counts())
        return found

    def disputed(self) -> list[str]:
        """Items that people gave different labels, those with the newest answers first."""
        found: list[str] = self._kept("disputed", self._disputed)
        return found

    def _disputed(self) -> list[str]:
        labels = self._labels()
        kinds = labels.groupby("item", sort=False)["label"].nunique()
        some = labels.loc[labels["item"].isin(kinds.index[kinds > 1]), "item"]
        found: list[str] = some[::-1].drop_duplicates().tolist()
        return found

    def said(self, items: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
        """Who said what about a few items, in the order of the log."""
        answers = self.answers()
        found: dict[str, list[tuple[str, str]]] = {item: [] for item in items}
        some = answers[answers["item"].isin(found)]
        reason = some["source"].str.removeprefix("page: ").where(some["source"].str.startswith("page: "), "skip")
        words = some["label"].where(some["label"].notna(), reason)
        for item, worker, word in zip(some["item"], some["worker"], words, strict=True):
            found[item].append((worker, word))
        return found

    def people(self, truth: Mapping[str, str], prices: Mapping[str, Any]) -> pd.DataFrame:
        """One row a worker, by name: ``answers``, ``skips``, ``gold``, ``right`` of these, ``seconds`` (median), ``last``
        (seconds since 1970) and ``cost``. ``truth``: classes of prototypes.
        """
        answers = self.answers()
        given, last = answers["label"].notna(), _seconds(answers["answered_at"])
        right = (answers["kind"] == "gold") & given & (answers["label"] == answers["item"].map(truth))
        table = answers[["worker", "seconds"]].assign(
            answers=given, skips=~given, gold=(answers["kind"] == "gold") & given, right=right, last=last, n=1,
            spent=answers["seconds"].astype(float),
        )  # fmt: skip
        how = dict.fromkeys(("answers", "skips", "gold", "right", "n", "spent"), "sum")
        found = table.groupby("worker").agg({**how, "last": "max", "seconds": "median"})
        listed = pd.Series(dict(prices.get("workers", {})), dtype=float).reindex(found.index)
        each = listed.fillna(float(prices.get("per_answer", 1.0)))
        return found.assign(cost=found["n"] * each + float(prices.get("per_second", 0.0)) * found["spent"])

    def _labels(self) -> pd.DataFrame:
        answers = self.answers()
        return answers.loc[(answers["kind"] == "annotation") & answers["label"].notna(), ["item", "label"]]

    def _kept(self, name: str, make: Any) -> Any:
        """What ``make`` made since the last answer came."""
        self.answers()
        made = self._made  # of these answers, or of later ones; new answers begin another
        if name not in made:
            made[name] = make()
        return made[name]


def _seconds(answered_at: pd.Series) -> np.ndarray:
    """Seconds since 1970."""
    moments = pd.to_datetime(answered_at, format="ISO8601", utc=True)
    seconds: np.ndarray = (moments - pd.Timestamp(0, tz="UTC")).dt.total_seconds().to_numpy(np.float64)
    return seconds
