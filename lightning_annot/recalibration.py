"""Exponents of learner and workers, weights of machines, and whether class shares foretell answers, renewed each round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_annot.crowd.em import EMResult, LogPrior
from lightning_annot.crowd.machines import Machine, combine, even_weights, fit_weights
from lightning_annot.crowd.pooled import Rivals
from lightning_annot.crowd.stated_error import Curvature, curvature
from lightning_annot.crowd.tempering import FreshAnswers, Tempering, fit_tempering, foreseen, join
from lightning_annot.round.facts import Facts

MOST_LOSS = 3.0  # nats, about 20 to 1, by which class shares may foretell answers worse
FORGET = 0.9  # of what was gained or lost is kept each round
LEVELS = 3  # items with 0, 1, and 2 or more answers have exponents of their own
MOST = 2000  # answers of each level that are remembered


def fresh_answers(
    facts: Facts, round_: int, crowd: EMResult, log_prior: LogPrior, machines: Sequence[Machine] = ()
) -> FreshAnswers | None:
    """The answers to questions of ``round_``, seen from ``crowd``, ``log_prior`` and ``machines``, which know those of earlier
    rounds alone.

    An item's answers of one round see each other in the order of the log. None where there are none. Skips say nothing.
    """
    given = (facts.label >= 0) & (facts.round <= round_)
    latest = facts.item[given & (facts.round == round_)][-LEVELS * MOST :]  # of a long import, what would be remembered
    given &= torch.isin(facts.item, latest)
    if not len(latest):
        return None
    rows = given.nonzero()[:, 0]
    rows = rows[torch.argsort(facts.item[rows] * (int(facts.round.max()) + 2) + facts.round[rows], stable=True)]
    item, new = facts.item[rows], facts.round[rows] == round_
    answer = crowd.log_answer(facts.worker[rows], facts.label[rows])
    _, counts = torch.unique_consecutive(item, return_counts=True)
    start = (counts.cumsum(0) - counts).repeat_interleave(counts)
    total = torch.cat([answer.new_zeros(1, answer.shape[1], dtype=torch.float64), answer.double().cumsum(0)])
    people = (total[:-1] - total[start]).to(answer)  # of the item's answers before this one
    earlier = torch.arange(len(rows)) - start
    item = item[new]
    said = torch.stack([machine.evidence(item) for machine in machines], dim=1) if machines else None
    return FreshAnswers(log_prior(item), people[new], answer[new], earlier[new], said)


def gain_of_shares(facts: Facts, round_: int, rivals: Rivals, log_prior: LogPrior, exponent: float) -> float:
    """Nats by which the first of ``rivals`` foretold the first answers to items in ``round_`` better than the second.

    Both are pooled accounts of the answers of earlier rounds, so that neither knows these.
    """
    given = facts.label >= 0
    seen = torch.unique(facts.item[given & (facts.round < round_)])
    new = (given & (facts.round == round_) & ~torch.isin(facts.item, seen)).nonzero()[-MOST:, 0]
    if not len(new):
        return 0.0
    model = log_prior(facts.item[new]).double()
    gain = 0.0
    for share, confusion, sign in ((rivals.log_share, rivals.with_shares, 1.0), (0.0, rivals.without, -1.0)):
        log_q = (exponent * (model + share)).log_softmax(1)
        answer = confusion.double().T[facts.label[new]].log()
        gain += sign * float((log_q + answer).logsumexp(1).sum())
    return gain


class Recalibration:
    """What recent rounds' answers say about how far learner and workers may be believed."""

    def __init__(self) -> None:
        self.tempering = Tempering()
        self._share_gain: dict[int, float] = {}
        self.curvature: Curvature | None = None  # of the exponents' fit; None before any answer
        self.machine_weights = even_weights(0)
        self._fresh: dict[int, FreshAnswers] = {}

    def weigh(self, prototypes: FreshAnswers) -> None:
        """Renew the weights of the learner and of the machines, by ``prototypes`` and by all answers that are remembered."""
        rounds = [self._fresh[r] for r in sorted(self._fresh)]
        self.machine_weights = fit_weights(join([prototypes, *rounds]), self.tempering)

    def foreseen(self, fresh: FreshAnswers) -> float:
        """How far the answers ``fresh`` were foreseen, by what had been learned before them (``crowd/tempering.py``)."""
        model = fresh.model
        if fresh.machines is not None:
            model = combine(model, fresh.machines, self.machine_weights)
        return foreseen(replace(fresh, model=model), self.tempering)

    @property
    def uses_shares(self) -> bool:
        """Whether class shares have not foretold the latest answers worse than classes that are all alike."""
        last = max(self._share_gain, default=0)
        return sum(gain * FORGET ** (last - r) for r, gain in self._share_gain.items()) > -MOST_LOSS

    def compare(self, round_: int, gain: float) -> None:
        """Take in the nats by which class shares foretold the answers of ``round_`` better, in place of what was known."""
        self._share_gain[round_] = gain

    def learn(self, round_: int, fresh: FreshAnswers | None) -> None:
        """Take in the answers to ``round_``, in place of what was known of it; renew the exponents."""
        if fresh is not None:
            self._fresh[round_] = fresh
        if self._fresh:
            rounds = sorted(self._fresh)
            everything = join([self._fresh[r] for r in rounds])
            if everything.machines is not None:
                everything = replace(everything, model=combine(everything.model, everything.machines, self.machine_weights))
            self.tempering = fit_tempering(everything, LEVELS, most=MOST)
            self.curvature = curvature(everything, self.tempering, MOST)
            self._forget(rounds)

    def _forget(self, rounds: list[int]) -> None:
        """Let go of the oldest rounds while every level has enough without them."""
        counts = torch.stack([torch.bincount(self._fresh[r].earlier.clamp(max=LEVELS - 1), minlength=LEVELS) for r in rounds])
        later = counts.flip(0).cumsum(0).flip(0) - counts  # answers in later rounds, by level
        for r, n in zip(rounds, later, strict=True):
            if bool(((n >= MOST) | (counts[rounds.index(r)] == 0)).all()):
                del self._fresh[r]

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        rounds = {r: fresh.parts() for r, fresh in self._fresh.items()}
        return {
            "fresh": rounds,
            "model": list(self.tempering.model),
            "people": list(self.tempering.people),
            "share_gain": dict(self._share_gain),
            "machines": self.machine_weights,
            "curvature": None if self.curvature is None else self.curvature.parts(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        rounds: Mapping[int, Mapping[str, Tensor]] = state["fresh"]
        # Older checkpoints also count the answers that confusions were learned from.
        fresh = {int(r): {name: part for name, part in parts.items() if name != "known"} for r, parts in rounds.items()}
        self._fresh = {r: FreshAnswers(**parts) for r, parts in fresh.items()}
        self.machine_weights = state["machines"]
        self._share_gain = {int(r): float(gain) for r, gain in state.get("share_gain", {}).items()}
        self.tempering = Tempering(tuple(state["model"]), tuple(state["people"]))
        sharp = state.get("curvature")  # older checkpoints have none
        self.curvature = None if sharp is None else Curvature(**sharp)
