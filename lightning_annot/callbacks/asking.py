"""One round's questions: which are worth asking, whether to go on at all, whom to ask, and what is bought."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor

from lightning_annot.callbacks.purchase import Gold, Questions, commit
from lightning_annot.callbacks.run_folder import progress
from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.ledger import Ledger
from lightning_annot.round.choice import Panel, choose, open_to_questions, refilled, round_generator
from lightning_annot.round.facts import Basis, Facts
from lightning_annot.round.inference import Inference
from lightning_annot.round.settings import SamplingSettings, TrustSettings
from lightning_annot.sampling.diverse import diverse, is_diverse_round, unseen_classes
from lightning_annot.sampling.price import Account, PriceSettings, settle
from lightning_annot.sampling.stopping import StopSettings, stop_reason
from lightning_annot.sampling.value import worth_asking
from lightning_annot.types import AnnotError
from lightning_annot.workers.base import Workers

LOOK_AFTER = 10  # answers that come while a round waits, until workers are judged again


@dataclass(frozen=True)
class Terms:
    """On what terms a run asks: whom, how, until when and for how much.

    ``listed``: prices by name of the workers who have one of their own; ``gold``: gold questions for each worker in the first
    round; ``gold_rate``: share of gold questions among each worker's in every round; ``trust``: who is asked at all.
    """

    workers: Workers
    sampling: SamplingSettings
    stopping: StopSettings
    prices: PriceSettings
    listed: Mapping[str, float]
    gold: int
    gold_rate: float
    trust: TrustSettings

    def __post_init__(self) -> None:
        if self.gold < 0:
            raise AnnotError(f"annotation.gold {self.gold} given; it must be 0 or more gold questions a worker.")
        if not 0.0 <= self.gold_rate < 1.0:
            raise AnnotError(f"annotation.gold_rate {self.gold_rate} given; it must be from 0 on and below 1, such as 0.05.")
        if self.sampling.cap is None and self.stopping.expert_price is None:
            raise AnnotError(
                "sampling.cap null given without stopping.expert_price, which then says when an answer is no longer worth it; "
                "give that price, in answers, or a cap such as 4."
            )

    @property
    def pays(self) -> bool:
        """Whether money counts."""
        return self.prices.given or self.stopping.money is not None

    @property
    def gold_asked(self) -> dict[str, float]:
        """The settings by which gold questions are asked, as far as any are."""
        given = {"gold": self.gold, "gold_rate": self.gold_rate, "trust.qualify": self.trust.qualify}
        return {name: value for name, value in given.items() if value}

    def summary(self, facts: Facts) -> dict[str, Any]:
        """What a run's summary says of them after all ``facts``, as plain values."""
        prices = {"per_answer": self.prices.per_answer, "per_second": self.prices.per_second, "workers": dict(self.listed)}
        money = {"money": self.account(facts).spent} if self.pays else {}
        return {"gold": self.gold, "cap": self.sampling.cap, "prices": prices, **money}

    def audits_paid(self, facts: Facts, auditor: str) -> int:
        """Return how many audits the money left after the facts pays for, at most those of one round."""
        account, most = self.account(facts), self.stopping.audits
        left = self.stopping.money_left(account.spent + account.owed)
        price = self.listed.get(auditor, self.prices.per_answer) if auditor in facts.workers else self.prices.per_answer
        return most if left is None or price <= 0 else max(0, min(most, int(left / price)))

    def account(self, facts: Facts) -> Account:
        """Money spent and owed after the facts."""
        return settle(self.prices, self.listed, facts.workers, facts.paid_worker, facts.paid_seconds, facts.owed_worker)


class Asking:
    """What to ask in one round, after its ``inference`` from ``basis`` less the workers who are ``barred`` (W,) bool.

    ``basis`` holds all facts: who is not believed was asked all the same. ``paused`` (W,) bool are believed, and not asked.
    ``cost`` (K, K) as in ``infer``. ``among`` (n,) are the items to ask about, ``experts`` those where an expert is the better
    buy.
    """

    def __init__(
        self, terms: Terms, data: AnnotationDataModule, round_: int, basis: Basis, inference: Inference, barred: Tensor,
        paused: Tensor, cost: Tensor | None,
    ) -> None:  # fmt: skip
        self._terms, self._data, self._round, self._cost = terms, data, round_, cost
        self._basis, self._inference, self._idle = basis, inference, barred | paused
        self.account = terms.account(basis.facts)
        self._capacity = terms.workers.capacity()
        among = open_to_questions(basis, inference, terms.sampling.most, self._capacity, barred)
        self.among, self.experts = self._without_experts(among, basis.facts.without(barred))

    def stop_reason(self, rows: Sequence[Mapping[str, float]], last_round: bool) -> str | None:
        """Why to stop instead, after rounds with the figures ``rows``, this one's last; None to go on."""
        terms, facts, n = self._terms, self._basis.facts, len(self._basis.prototype)
        ordinary = self._basis.prototype < 0
        finished = [round(row["finished_fraction"] * self._n_items) for row in rows]
        risk = [row["mean_risk"] for row in rows]
        # The last row does not know of answers imported since, and knows the answers of its own round if that is resumed.
        finished[-1] = int((self._inference.finished[:n] & ordinary).sum())
        risk[-1] = float(self._inference.decision.risk[:n][ordinary].double().sum()) / max(1, self._n_items)
        fresh = [row["fresh_gain"] for row in rows[:-1] if "fresh_gain" in row]
        return stop_reason(
            terms.stopping, finished_history=finished, risk_history=risk, fresh_history=fresh, n_items=self._n_items,
            n_annotations=len(facts.item), n_candidates=len(self.among), n_open=len(facts.open_item), last_round=last_round,
            hit_size=1 if terms.sampling.refill else terms.sampling.hit_size, n_withdrawn=len(self.experts),
            n_in_doubt=self._in_doubt(), spent=self.account.spent, cheapest=self.account.cheapest(len(terms.workers.names())),
        )  # fmt: skip

    @property
    def nobody_left(self) -> bool:
        """Whether all who can be asked by name are barred or paused."""
        n = len(self._terms.workers.names())
        return n > 0 and bool(self._idle[:n].all())

    def choose(self) -> tuple[Questions, Gold]:
        """The round's questions and its gold questions, a function of (seed, round)."""
        terms, facts = self._terms, self._basis.facts
        gold = Gold(
            self._round, terms.gold, terms.trust.qualify, facts, self._data.table, terms.workers, self._data.seed, self._idle
        )
        idle = self._idle.clone()
        idle[: len(gold.before_others)] |= gold.before_others
        n_open, most = len(facts.open_item), terms.sampling.per_round
        left = terms.stopping.left(len(facts.item) + n_open, self._n_items)
        among = refilled(self._basis, self._inference, self.among, terms.sampling, self._capacity)
        n = max(0, min(most - n_open, most if left is None else left))
        price = self.account.expected if terms.prices.given else None
        chosen = choose(
            self._basis, self._inference, self._spread_out(among, n), n, terms.sampling,
            round_generator(self._data.seed, self._round),
            Panel(len(terms.workers.names()), terms.workers.can_answer(), price, idle), self._cost,
        )  # fmt: skip
        gold.add(chosen, terms.gold_rate)
        return chosen, gold

    def buy(self, ledger: Ledger, questions: tuple[Questions, Gold]) -> int:
        """Commit the ``questions``; returns how many the money does not pay for."""
        left = self._terms.stopping.money_left(self.account.spent + self.account.owed)
        return commit(ledger, self._round, *questions, self.account, left)

    def _in_doubt(self) -> int:
        """Unfinished items, if experts have seen all of them, else 0."""
        open_ = ~self._inference.finished[: len(self._basis.prototype)] & (self._basis.prototype < 0)
        seen = torch.zeros_like(open_)
        seen[self._basis.facts.expert_items()] = True
        return int(open_.sum()) if bool(seen[open_].all()) else 0

    @property
    def _n_items(self) -> int:
        """Items that are no prototypes."""
        return int((self._basis.prototype < 0).sum())

    def _without_experts(self, among: Tensor, trusted: Facts) -> tuple[Tensor, Tensor]:
        """The items ``among`` (n,) that are worth asking, and those where an expert is the better buy."""
        price = self._terms.stopping.expert_price
        if price is None:
            return among, among[:0]
        room = self._terms.sampling.most - trusted.asked(len(self._basis.prototype))[among]
        confusion = self._inference.crowd.pooled_confusion(apart=trusted.is_expert())
        worth = worth_asking(self._inference.posterior, confusion, among, room, price, self.account.anyone, self._cost)
        return among[worth], among[~worth]

    def _spread_out(self, among: Tensor, n: int) -> Tensor:
        """Of the items ``among``, those that differ most, where a class has not been seen yet and it is time to look for it."""
        facts, prototype = self._basis.facts, self._basis.prototype
        if not (self._data.table.lacks_prototypes and is_diverse_round(self._round)):
            return among
        if not len(unseen_classes(self._inference.posterior, facts.annotations(), prototype)):
            return among
        new = among[facts.asked(len(prototype))[among] == 0]
        among = new if len(new) >= n else among
        most = n if self._terms.sampling.hit_size == 1 else 2 * n
        generator = round_generator(self._data.seed + 1, self._round)
        return diverse(self._data.projected()[0], among, most, generator)


def await_answers(
    ledger: Ledger, workers: Workers, round_: int, known: int, look: Callable[[], None], trainer: Trainer
) -> tuple[str | None, float]:
    """Collect answers until the workers' patience is over; ``known`` replies, see ``Facts``, are those of earlier rounds.

    Meanwhile ``look`` is called whenever ``LOOK_AFTER`` more answers have come.
    Returns why the run ends instead, if it is told to meanwhile, by Ctrl-C or SIGTERM: all is committed; and the seconds from
    when the first answer was missing, 0 if none was.
    """
    start, arrived, asked, looked, bar = time.monotonic(), 0, 0, 0, progress(trainer)
    since: float | None = None
    with contextlib.suppress(KeyboardInterrupt):
        while not trainer.received_sigterm:
            ledger.collect()
            arrived, asked = ledger.awaited(round_, known)
            pause = workers.patience(arrived, asked, time.monotonic() - start)
            if pause <= 0:
                return None, _seconds_after(since)
            since = time.monotonic() if since is None else since
            if bar is not None:
                bar.wait(round_, f"waiting for people: {arrived} of {asked} answers")
            if arrived >= looked + LOOK_AFTER:
                looked = arrived
                look()
            time.sleep(pause)
    why = f"interrupted while waiting for people: {arrived} of {asked} answers are there; the same command goes on"
    return why, _seconds_after(since)


def _seconds_after(moment: float | None) -> float:
    return 0.0 if moment is None else time.monotonic() - moment


def why_not(terms: Terms, now: Facts, too_dear: int, nobody_left: bool) -> str:
    """Why a round brought no answer: ``now`` are the facts after it, ``too_dear`` the questions that were not bought."""
    if len(now.owed_worker):
        return f"waiting for the answers to {len(now.owed_worker)} questions"
    if nobody_left:
        return "every worker is paused or left out; workers.csv says why"
    if too_dear:
        return f"the money left of {terms.stopping.money:g} pays for no question ({terms.account(now).spent:g} are spent)"
    return "no worker can answer any of the unfinished items once more"
