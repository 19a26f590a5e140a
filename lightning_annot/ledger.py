"""Between the log and the model: facts as indices, questions committed before they are shown, answers before they are used."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.schema import EXPERT, IMPORT_ROUND
from lightning_annot.annotations.worker_names import warn_of_case
from lightning_annot.round.facts import Facts
from lightning_annot.types import KINDS, AnnotError, Kind, Question, Task
from lightning_annot.workers.base import Workers

logger = logging.getLogger(__name__)

HELD_SHARE, MOST_HELD = 1 / 3, 2000  # of the items with imported answers, those whose answers wait for the first learner


class Ledger:
    """The facts of one run: reads each row of the log once, and knows items, workers and classes by index.

    With ``hold_back``, the imported answers about a random third of their items, at most 2,000, come in with those of round
    0: a learner and a crowd that have not seen them are needed to tell how far both may be believed (crowd/tempering.py).
    """

    def __init__(self, log: AnnotationLog, task: Task, workers: Workers, hold_back: bool = False) -> None:
        self._log, self._task, self._workers, self._hold_back = log, task, workers, hold_back
        workers.bind(task)
        self._items, self._classes = pd.Index(task.items), pd.Index(task.classes)
        self._names: list[str] = list(workers.names())
        self._known = {name: j for j, name in enumerate(self._names)}
        self._spelt = {name.casefold(): name for name in self._names}
        self._last_id, self._first_open = 0, 1
        # Item, worker, label, round, kind as a row of KINDS, question; by question, whenever the answers came.
        self._columns = np.empty((6, 0), dtype=np.int64)
        self._experts: set[str] = set()
        self.auditor: str | None = None  # whose audits are handed out with the other questions
        self._seconds = np.empty(0)  # of the same answers, 0 where unknown
        self._repeats, self._n_contradictions = np.empty(0, dtype=np.int64), 0  # rows of the columns
        answered = self._read()
        replies = answered[(answered["round"] != IMPORT_ROUND) & (answered["source"] != EXPERT)]
        workers.remember(zip(answered["item"], answered["worker"], strict=True), {*replies["worker"]})

    @property
    def workers(self) -> tuple[str, ...]:
        """Names by worker index: those who can be asked first, then others as they appear in the log."""
        return tuple(self._names)

    def facts(self, before_round: int, with_audits: bool = False) -> Facts:
        """Answers to, and open questions of, rounds before ``before_round``; ``with_audits``: its audits are paid too."""
        self._read()
        item, worker, label, _, kind, _ = self._columns
        label = label.copy()
        label[self._repeats] = -1
        round_ = self._comes_in()
        now = round_ < before_round
        use, gold = now & (kind == KINDS.index("annotation")), now & (kind == KINDS.index("gold"))
        owed = self._open(before_round)
        ordinary = (owed["kind"] == "annotation").to_numpy(bool)
        asked = self._codes(self._items, owed["item"][ordinary], "item")
        whom = np.array([-1 if w is None else self._number(w) for w in owed["worker"]], dtype=np.int64)
        arrays = {"item": item[use], "worker": worker[use], "label": label[use], "round": round_[use]}
        arrays |= {"open_item": asked, "open_worker": whom[ordinary], "owed_worker": whom}
        arrays |= {"open_gold_item": self._codes(self._items, owed["item"][~ordinary], "item")}
        arrays |= {"open_gold_worker": whom[~ordinary]}
        arrays |= {"gold_item": item[gold], "gold_worker": worker[gold], "gold_label": label[gold]}
        paid = now | ((kind == KINDS.index("audit")) & (round_ == before_round) & with_audits)
        arrays |= {"paid_worker": worker[paid], "paid_seconds": self._seconds[paid]}
        return Facts(
            self.workers,
            **{name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()},
            extra_paid=int((paid & ~use).sum()),
            replies=self._replies(before_round),
            experts=frozenset(self._experts),
        )

    def holds_back(self) -> bool:
        """Whether imported answers come in with round 0."""
        return bool(self._held().any())

    def _held(self) -> np.ndarray:
        """Which of the answers read are held back until round 0, bool: those about some of the imported items, by the seed."""
        item, _, _, round_, _, _ = self._columns
        imported: np.ndarray = round_ == IMPORT_ROUND
        if not self._hold_back or not imported.any():
            return np.zeros_like(imported)
        items = np.unique(item[imported])
        n = min(MOST_HELD, int(HELD_SHARE * len(items)))
        rank = np.random.default_rng((self._task.seed, 7)).permutation(len(self._task.items))
        held: np.ndarray = imported & np.isin(item, items[np.argsort(rank[items])[:n]])
        return held

    def _comes_in(self) -> np.ndarray:
        """The round that each answer read counts for."""
        return np.where(self._held(), 0, self._columns[3])

    def has_asked(self, round_: int) -> bool:
        """Whether the questions of ``round_`` are in the log (they are committed all at once)."""
        return bool((self._log.questions(round=round_)["kind"] != "audit").any())

    def ask(self, round_: int, items: Tensor, workers: Tensor, gold: Tensor) -> None:
        """Commit one question for each of ``items`` (n,) to its worker (n,), -1 for anyone; which are ``gold``, (n,) bool."""
        ids, names = self._task.items, [*self._names, None]  # row -1 is the last
        kinds: list[Kind] = ["gold" if is_gold else "annotation" for is_gold in gold.tolist()]
        rows = zip(items.tolist(), workers.tolist(), kinds, strict=True)
        self._log.ask([Question(ids[i], names[j], kind, round_) for i, j, kind in rows])

    def collect(self) -> int:
        """Hand all open questions to the workers and commit the answers that are there; returns how many were new.

        Gold questions look like all others to the workers.
        """
        waiting = self._open(with_audits=True)
        kinds: list[Kind] = ["audit" if is_audit else "annotation" for is_audit in waiting["kind"] == "audit"]
        columns = (waiting[c] for c in ("item", "worker", "round", "id"))
        questions = [Question(item, worker, kind, r, id_) for item, worker, r, id_, kind in zip(*columns, kinds, strict=True)]
        self._workers.submit(questions)
        return self._log.answer(self._workers.collect())

    def awaited(self, round_: int, known: int) -> tuple[int, int]:
        """What ``round_`` waits for: questions answered beyond the ``known`` ones, see ``Facts``, and these with the open ones.

        Both are equal once a later round has asked: a round that is done again, from the log alone, need not wait.
        """
        self._read()
        arrived = self._replies(round_ + 1) - known
        if self.is_past(round_):
            return arrived, arrived
        return arrived, arrived + len(self._open(round_ + 1))

    def is_past(self, round_: int) -> bool:
        """Whether a later round has asked."""
        return self._log.last_round() > round_

    def _replies(self, before_round: int) -> int:
        """Questions of rounds before ``before_round`` that have an answer, gold among them; one may have several."""
        _, _, _, round_, kind, question = self._columns
        asked = (kind != KINDS.index("audit")) & (round_ != IMPORT_ROUND) & (round_ < before_round)
        return len(np.unique(question[asked]))

    def _open(self, before_round: int | None = None, with_audits: bool = False) -> pd.DataFrame:
        """Open questions, of rounds before ``before_round`` alone if given, less those to experts: audits, see certificate/,
        and unfinished items, see exchange/handover.py. Nobody waits for these; what a round asks does not depend on them.
        ``with_audits``: those to the run's own auditor stay.
        """
        waiting = self._log.questions(open_only=True, from_id=self._first_open)
        if len(waiting):
            self._first_open = int(waiting["id"].iloc[0])
        if before_round is not None:
            waiting = waiting[waiting["round"] < before_round]
        ours = (waiting["worker"] == self.auditor) if with_audits and self.auditor is not None else False
        return waiting[((waiting["kind"] != "audit") | ours) & (waiting["round"] != IMPORT_ROUND)]

    def _read(self) -> pd.DataFrame:
        """Rows that came since the last call, less audits; all are added to the columns.

        The expert of an audit is none of the workers: what they may be asked must not depend on it.
        """
        rows = self._log.answers(after_id=self._last_id)
        if len(rows):
            self._last_id = int(rows["id"].iloc[-1])
            self._experts |= {*rows.loc[rows["source"] == EXPERT, "worker"]}
            item = self._codes(self._items, rows["item"], "item")
            given = rows["label"].notna().to_numpy()
            label = np.full(len(rows), -1, dtype=np.int64)
            label[given] = self._codes(self._classes, rows["label"][given], "label")
            unnamed = (rows["kind"] == "audit") & ~rows["worker"].isin(self._names)
            codes, names = pd.factorize(rows["worker"].mask(unnamed))  # -1: unnamed, which is the last row below
            worker = np.array([*(self._number(name) for name in names), -1], dtype=np.int64)[
                codes
            ]  # code -1: an audit by nobody else
            kind = self._codes(pd.Index(KINDS), rows["kind"], "kind")
            round_, question = rows["round"].to_numpy(np.int64), rows["question"].to_numpy(np.int64)
            new = np.stack([item, worker, label, round_, kind, question])
            columns = np.concatenate([self._columns, new], axis=1)
            seconds = np.append(self._seconds, rows["seconds"].fillna(0.0).to_numpy(np.float64))
            order = np.lexsort((columns[1], columns[5]))
            self._columns, self._seconds = columns[:, order], seconds[order]
            self._mark_repeats()
        return rows[rows["kind"] != "audit"]

    def _mark_repeats(self) -> None:
        """Find the labels of a worker who has answered an item before, by an earlier question of the same kind.

        They are paid and fill their round like any answer, and no estimate counts them. A log of an older version has some: it
        took ``anna `` and ``anna`` for two people, which its readers do not.
        """
        item, worker, label, _, kind, _ = self._columns
        given = np.flatnonzero(label >= 0)
        key = (item[given] * len(KINDS) + kind[given]) * (len(self._names) + 1) + worker[given] + 1
        _, first, which = np.unique(key, return_index=True, return_inverse=True)
        self._repeats = np.delete(given, first)
        n_contradictions = int((label[given] != label[given][first][which]).sum())
        if n_contradictions > self._n_contradictions:
            logger.warning("%d answers contradict earlier ones of the same workers, the first counts", n_contradictions)
        self._n_contradictions = n_contradictions

    def _number(self, name: str) -> int:
        if name not in self._known:
            alike = self._spelt.setdefault(name.casefold(), name)
            if alike != name:
                warn_of_case([alike, name])
            self._known[name] = len(self._names)
            self._names.append(name)
        return self._known[name]

    @staticmethod
    def _codes(index: pd.Index, values: Sequence[str] | pd.Series, what: str) -> np.ndarray:
        codes: np.ndarray = index.get_indexer(values)
        if (codes < 0).any():
            unknown = list(pd.unique(pd.Series(values)[codes < 0]))[:3]
            raise AnnotError(f"the annotation log names an unknown {what}, such as {unknown}; it belongs to other data.")
        return codes.astype(np.int64)
