"""One round's questions: which are worth asking, whether to go on at all, whom to ask, and what is bought."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lightning_annot.callbacks.progress import RoundProgress
from lightning_annot.callbacks.purchase import Questions, commit, first_gold
from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.ledger import Ledger
from lightning_annot.round.choice import Panel, choose, open_to_questions, refilled, round_generator
from lightning_annot.round.facts import Basis, Facts
from lightning_annot.round.inference import Inference
from lightning_annot.round.settings import SamplingSettings
from lightning_annot.sampling.diverse import diverse, is_diverse_round, unseen_classes
from lightning_annot.sampling.price import Account, PriceSettings, settle
from lightning_annot.sampling.stopping import StopSettings, stop_reason
from lightning_annot.sampling.value import worth_asking
from lightning_annot.workers.base import Workers


@dataclass(frozen=True)
class Terms:
    """On what terms a run asks: whom, how, until when and for how much.

    ``listed``: prices by name of the workers who have one of their own; ``gold``: gold questions for each worker.
    """

    workers: Workers
    sampling: SamplingSettings
    stopping: StopSettings
    prices: PriceSettings
    listed: Mapping[str, float]
    gold: int

    @property
    def pays(self) -> bool:
        """Whether money counts."""
        return self.prices.given or self.stopping.money is not None

    def account(self, facts: Facts) -> Account:
        """Money spent and owed after the facts."""
        return settle(self.prices, self.listed, facts.workers, facts.paid_worker, facts.paid_seconds, facts.owed_worker)


class Asking:
    """What to ask in one round, after its ``inference`` from ``basis`` less the workers who are ``barred`` (W,) bool.

    ``basis`` holds all facts: who is not believed was asked all the same. ``among`` (n,) are the items to ask about,
    ``experts`` those where an expert is the better buy.
    """

    def __init__(
        self, terms: Terms, data: AnnotationDataModule, round_: int, basis: Basis, inference: Inference, barred: Tensor
    ) -> None:
        self._terms, self._data, self._round = terms, data, round_
        self._basis, self._inference, self._barred = basis, inference, barred
        self.account = terms.account(basis.facts)
        trusted = replace(basis, facts=basis.facts.without(barred))
        among = open_to_questions(trusted, inference, terms.sampling.most, terms.workers.capacity())
        self.among, self.experts = self._without_experts(among, trusted.facts)

    def stop_reason(self, finished: Sequence[int], last_round: bool) -> str | None:
        """Why to stop instead, where ``finished`` items were finished after each round so far; None to go on."""
        terms, facts = self._terms, self._basis.facts
        return stop_reason(
            terms.stopping, finished_history=finished, n_items=self._n_items, n_annotations=len(facts.item),
            n_candidates=len(self.among), n_open=len(facts.open_item), last_round=last_round,
            hit_size=1 if terms.sampling.refill else terms.sampling.hit_size, n_withdrawn=len(self.experts),
            spent=self.account.spent, cheapest=self.account.cheapest(len(terms.workers.names())),
        )  # fmt: skip

    def choose(self) -> Questions:
        """The round's questions, a function of (seed, round)."""
        terms, facts = self._terms, self._basis.facts
        n_open, most = len(facts.open_item), terms.sampling.per_round
        left = terms.stopping.left(len(facts.item) + n_open, self._n_items)
        among = refilled(self._basis, self._inference, self.among, terms.sampling)
        n = max(0, min(most - n_open, most if left is None else left))
        price = self.account.expected if terms.prices.given else None
        return choose(
            self._basis, self._inference, self._spread_out(among, n), n, terms.sampling,
            round_generator(self._data.seed, self._round),
            Panel(len(terms.workers.names()), terms.workers.can_answer(), price, self._barred),
        )  # fmt: skip

    def buy(self, ledger: Ledger, chosen: Questions) -> int:
        """Commit ``chosen``, and in the first round gold questions; returns how many the money does not pay for."""
        terms, account = self._terms, self.account
        gold = first_gold(self._round, terms.gold, self._data.table, terms.workers, self._data.seed)
        return commit(ledger, self._round, chosen, gold, account, terms.stopping.money_left(account.spent + account.owed))

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
        confusion = self._inference.crowd.pooled_confusion()
        worth = worth_asking(self._inference.posterior, confusion, among, room, price, self.account.anyone)
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


def await_answers(ledger: Ledger, workers: Workers, round_: int, known: int, bar: RoundProgress | None) -> str | None:
    """Collect answers until the workers' patience is over; ``known`` ordinary ones are those of earlier rounds.

    Returns why the run ends instead, if somebody pressed Ctrl-C meanwhile: all is committed, and the same command goes on.
    """
    start, arrived, asked = time.monotonic(), 0, 0
    try:
        while True:
            ledger.collect()
            arrived, asked = ledger.awaited(round_, known)
            pause = workers.patience(arrived, asked, time.monotonic() - start)
            if pause <= 0:
                return None
            if bar is not None:
                bar.wait(f"waiting for people: {arrived} of {asked} answers")
            time.sleep(pause)
    except KeyboardInterrupt:
        return f"interrupted while waiting for people: {arrived} of {asked} answers are there; the same command goes on"


def why_not(terms: Terms, now: Facts, too_dear: int) -> str:
    """Why a round brought no answer: ``now`` are the facts after it, ``too_dear`` the questions that were not bought."""
    if len(now.open_item):
        return f"waiting for the answers to {len(now.open_item)} questions"
    if too_dear:
        return f"the money left of {terms.stopping.money:g} pays for no question ({terms.account(now).spent:g} are spent)"
    return "no worker can answer any of the unfinished items once more"
