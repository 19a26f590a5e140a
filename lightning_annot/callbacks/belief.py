"""Whom a run believes, and how far; renewed each round, and saved with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_annot.crowd.em import LogPrior, with_class_prior
from lightning_annot.crowd.machines import Machine, as_answers, with_machines
from lightning_annot.crowd.priors import homogeneous_prior
from lightning_annot.crowd.spam import judge_workers
from lightning_annot.crowd.stated_error import Curvature
from lightning_annot.crowd.tempering import Tempering
from lightning_annot.crowd.trust import chance_of_accuracy
from lightning_annot.learner.machine_panel import MachinePanel
from lightning_annot.recalibration import Recalibration, fresh_answers, gain_of_shares
from lightning_annot.round.facts import Facts
from lightning_annot.round.inference import Inference, fitted_answers
from lightning_annot.round.settings import CrowdSettings, TrustSettings

Known = tuple[Tensor, Tensor]

_WHY = {
    "spammer": "the answers do not depend on the image",
    "adversary": "the answers are wrong more often than chance would have it",
}


class Belief:
    """The exponents of learner and workers, whether class shares are used, the ``machines`` with their weights, and two groups
    of workers: those who are ``barred``, neither believed nor asked (name -> spammer or adversary), and those who are
    ``paused``, believed and not asked (name -> why).
    """

    def __init__(self, settings: CrowdSettings, trust: TrustSettings) -> None:
        self._settings, self._trust, self._recalibration = settings, trust, Recalibration()
        self.barred: dict[str, str] = {}
        self.paused: dict[str, str] = {}  # not saved: a function of the facts and of what is inferred from them
        self.machines: tuple[Machine, ...] = ()

    @property
    def judges(self) -> bool:
        """Whether anybody may be barred or paused."""
        return self._settings.exclude or self._trust.least_accuracy is not None

    @property
    def tempering(self) -> Tempering:
        """The exponents."""
        return self._recalibration.tempering

    @property
    def curvature(self) -> Curvature | None:
        """How sharply fresh answers tell the exponents; None before any."""
        return self._recalibration.curvature

    @property
    def fresh_answers(self) -> float:
        """Answers that the exponents were fitted to; nan where they are not fitted at all."""
        if not self._settings.temper:
            return math.nan
        return 0.0 if self.curvature is None else float(self.curvature.answers.sum())

    def is_barred(self, workers: Sequence[str]) -> Tensor:
        """Which of the ``workers`` are barred, (W,) bool."""
        return torch.tensor([name in self.barred for name in workers], dtype=torch.bool)

    def is_paused(self, workers: Sequence[str]) -> Tensor:
        """Which of the ``workers`` are paused, (W,) bool."""
        return torch.tensor([name in self.paused for name in workers], dtype=torch.bool)

    def standing(self, workers: Sequence[str]) -> tuple[list[str], list[str]]:
        """State of each of the ``workers``, trusted, paused, spammer or adversary, and why, empty for the trusted."""
        paused = dict.fromkeys(self.paused, "paused")
        states = [self.barred.get(name) or paused.get(name, "trusted") for name in workers]
        why = [_WHY.get(state) or self.paused.get(name, "") for name, state in zip(workers, states, strict=True)]
        return states, why

    def not_asked(self) -> dict[str, str]:
        """Who is barred or paused, and why."""
        return {name: _WHY[state] for name, state in self.barred.items()} | self.paused

    def trusted(self, facts: Facts) -> Facts:
        """The facts without the answers of those who are barred."""
        return facts.without(self.is_barred(facts.workers))

    def judge(self, facts: Facts, inference: Inference) -> None:
        """Bar who answers without looking, and pause who is not good enough, by the answers so far of everybody."""
        self.barred, self.paused = self._verdicts(facts, inference)

    def verdicts(self, facts: Facts, inference: Inference) -> dict[str, str]:
        """Who would be barred or paused by ``judge``, and why."""
        barred, paused = self._verdicts(facts, inference)
        return {name: _WHY[state] for name, state in barred.items()} | paused

    def _verdicts(self, facts: Facts, inference: Inference) -> tuple[dict[str, str], dict[str, str]]:
        """Barred and paused workers; experts, who are asked what others get wrong, are above that."""
        barred, paused = self.barred, self.paused
        believed, judged = ~self.is_barred(facts.workers), ~facts.is_expert()
        answers = fitted_answers(facts, self._settings)
        if self._settings.exclude and self._settings.prior == "tiered" and len(answers):
            conduct = judge_workers(answers, inference.posterior, inference.crowd, self.tempering, believed)
            verdicts = (conduct.spammer & judged).tolist(), (conduct.adversary & judged).tolist()
            found = zip(facts.workers, *verdicts, strict=True)
            barred = {name: "spammer" if spams else "adversary" for name, spams, lies in found if spams or lies}
        if self._trust.least_accuracy is not None and facts.workers:
            paused = self._too_poor(facts, inference, believed, self._trust.least_accuracy)
            paused = {name: why for name, why in paused.items() if name not in barred}
        return barred, paused

    def _too_poor(self, facts: Facts, inference: Inference, believed: Tensor, least: float) -> dict[str, str]:
        """Who is surely right less often than in a share ``least``, and no expert, with the reason."""
        answers, n = facts.with_gold(), len(facts.workers)
        chance = chance_of_accuracy(answers, inference.posterior, inference.crowd, self.tempering, believed, least)
        poor = (chance < 1.0 - self._trust.certainty) & ~facts.is_expert()
        given = torch.bincount(answers.worker, minlength=n)
        gold = torch.bincount(facts.gold_worker[facts.gold_label >= 0], minlength=n)
        return {
            facts.workers[j]: f"an accuracy of {least:g} or more has a chance of {float(chance[j]):.2g} after {int(given[j])} "
            f"answers, {int(gold[j])} of them gold"
            for j in poor.nonzero()[:, 0].tolist()
        }

    @property
    def uses_shares(self) -> bool:
        """Whether the posterior goes by class shares."""
        return self._recalibration.uses_shares

    @property
    def weights(self) -> Tensor:
        """Weight of the learner, then of each machine, (1 + M,)."""
        return self._recalibration.machine_weights

    def hear(self, panel: MachinePanel, known: Known, prototypes: Known, log_prior: LogPrior) -> None:
        """Find out how good the machines of the ``panel`` are, and what they are worth beside the learner's ``log_prior``.

        ``known``: rows and log-likelihoods (n, K) of what people and prototypes say; ``prototypes``: rows and classes (P,) of
        those that the learner has not learned from.
        """
        self.machines = panel.fit(*known, homogeneous_prior(known[1].shape[1], self._settings.accuracy))
        self._recalibration.weigh(as_answers(self.machines, *prototypes, log_prior))

    def with_prior(self, log_prior: LogPrior) -> LogPrior:
        """The learner's log p(y | x) with what machines say, where there are any."""
        return with_machines(log_prior, self.machines, self.weights)

    def recalibrate(self, round_: int, facts: Facts, inference: Inference, log_prior: LogPrior) -> float | None:
        """Let the answers of ``round_``, which the learner has not seen, say how far it and the workers may be believed.

        ``inference`` and ``log_prior``, the learner's own, are those of that round. Returns how far the answers were foreseen,
        in nats an answer, None without any.
        """
        facts = self.trusted(facts)
        if inference.crowd.rivals is not None:
            gain = gain_of_shares(facts, round_, inference.crowd.rivals, self.with_prior(log_prior), self.tempering.model[0])
            self._recalibration.compare(round_, gain)
        log_prior = with_class_prior(log_prior, inference.crowd.log_share)
        fresh = fresh_answers(facts, round_, inference.crowd, log_prior, self.machines)
        foreseen = None if fresh is None else self._recalibration.foreseen(fresh)
        if self._settings.temper:
            self._recalibration.learn(round_, fresh)
        return foreseen

    def summary(self) -> dict[str, Any]:
        """What a run's summary says of it, as plain values."""
        learner = {"learner_weight": float(self.weights[0])} if self.machines else {}
        return {"excluded_workers": self.barred, "paused_workers": self.paused, **learner}

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return {"recalibration": self._recalibration.state_dict(), "barred": dict(self.barred)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self._recalibration.load_state_dict(state["recalibration"])
        self.barred = dict(state["barred"])
