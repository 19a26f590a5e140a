"""From the facts and the learner's probabilities, those of machine workers beside them, to what is believed of every item."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from lightning_annot.callbacks.belief import Belief
from lightning_annot.callbacks.calibration_rows import known_by_answers
from lightning_annot.callbacks.run_folder import load_oracle
from lightning_annot.crowd.em import LogPrior, with_class_prior
from lightning_annot.crowd.evidence import answer_evidence
from lightning_annot.crowd.stated_error import (
    draw_exponents,
    error_interval,
    loss_by_class,
    people_evidence,
    sample_rows,
)
from lightning_annot.crowd.tiers import Shares
from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.data.pools import OwnTargets
from lightning_annot.learner.machine_panel import MachinePanel
from lightning_annot.learner.predictions import Predictions
from lightning_annot.round.choice import round_generator
from lightning_annot.round.facts import Basis, Facts
from lightning_annot.round.inference import Inference, fit_crowd, infer
from lightning_annot.round.settings import CrowdSettings
from lightning_annot.types import Learner

STATED_DRAW = 1 << 23  # plus the round: the draws behind the interval of the stated error
MACHINE_DRAW = 1 << 22  # plus the answers: the draw of the answered items to judge machines by


class Inferring:
    """``predictions`` of the ``learner``, and inference by them under the settings of a run whose files are in ``folder``.

    ``threshold`` and ``cost`` (K, K) or None as in ``infer``.
    """

    def __init__(
        self,
        learner: Learner,
        data: AnnotationDataModule,
        belief: Belief,
        crowd: CrowdSettings,
        threshold: float,
        cost: torch.Tensor | None,
        folder: Path,
    ) -> None:
        features, folds = data.projected()
        self._learner, self._features, self._folds = learner, features, folds
        self._data, self._belief, self._crowd, self._folder = data, belief, crowd, folder
        self._threshold, self._cost, self._n_rows = threshold, cost, len(features)
        self.predictions = Predictions(learner, features, folds)
        self._machines = MachinePanel(learner, features, folds, list(data.further.machines), data.further.scores)
        self._true_confusions: torch.Tensor | None = None
        self._log_share: torch.Tensor | None = None  # of the last inference about all items

    def renew(self) -> None:
        """Predict again, after training."""
        self.predictions.renew()
        self._machines.renew()

    def sure_rows(self, own: OwnTargets) -> torch.Tensor | None:
        """Rows (N,) bool that some head is sure of, see ``MixMatchModule.sure_rows``; None of a learner without heads."""
        if not hasattr(self._learner, "sure_rows"):
            return None
        parts = torch.split(torch.arange(len(self._features)), 1 << 15)
        return torch.cat([self._learner.sure_rows(self._features[rows], self._folds[rows], own) for rows in parts])

    def basis(self, facts: Facts) -> Basis:
        """What a round with these ``facts`` is a function of."""
        return self._basis(facts, self._belief.with_prior(self.predictions))

    def infer(self, facts: Facts) -> Inference:
        """What is believed after ``facts``, of all workers who are trusted."""
        oracle, facts = self._oracle(facts), self._belief.trusted(facts)
        if len(self._machines):
            # Machines are judged by people and prototypes, never by the learner or by each other.
            alone = fit_crowd(self._basis(facts, self.predictions), self._crowd, oracle, self._belief.tempering)
            generator = round_generator(self._data.seed, MACHINE_DRAW + len(facts.item))
            known = known_by_answers(self._data.table, *answer_evidence(alone, generator))
            self._belief.hear(self._machines, known, self._data.held_out_labels(), self.predictions)
        basis = self.basis(facts)
        found = self._infer(basis, oracle, self._shares)
        self._log_share = found.crowd.log_share
        return found

    @property
    def _shares(self) -> Shares:
        if not (self._crowd.class_prior and self._crowd.prior == "tiered"):
            return "none"
        return "used" if self._belief.uses_shares else "compared"

    def stated_error(self, inference: Inference, round_: int) -> dict[str, float]:
        """Say how sure the stated error of the finished items is.

        Args:
            inference: What ``infer`` gave; belief and predictions are as they were then.
            round_: The round, which with the data's seed determines the draws.

        Returns:
            ``finished_risk``, the mean risk of finished items without prototypes, the ends of its 90% interval,
            ``finished_risk_low`` and ``finished_risk_high``, all nan where nothing is finished, and ``fresh_answers``.
        """
        table, belief = self._data.table, self._belief
        finished = (inference.finished[: len(table)] & ~table.is_prototype).nonzero()[:, 0]
        stated, ends = math.nan, (math.nan, math.nan)
        if len(finished):
            stated = float(inference.decision.risk[finished].double().mean())
            n_classes, generator = len(table.classes), round_generator(self._data.seed, STATED_DRAW + round_)
            rows = sample_rows(finished, n_classes, generator)
            ends = error_interval(
                with_class_prior(belief.with_prior(self.predictions), inference.crowd.log_share)(rows),
                *people_evidence(inference.crowd, rows),
                loss_by_class(inference.decision.label[rows], n_classes, self._cost),
                belief.tempering,
                draw_exponents(belief.curvature, belief.tempering, generator),
                stated,
                len(finished),
            )
        low, high = ends
        shown = {"finished_risk": stated, "finished_risk_low": low, "finished_risk_high": high}
        return shown | {"fresh_answers": belief.fresh_answers}

    def peek(self, facts: Facts) -> tuple[Facts, Inference]:
        """A look that changes nothing: ``facts`` about the items that somebody has answered, as rows of the inference, and what
        is believed of these alone, with machines as they were judged last. The rest of the posterior would fill the memory.
        """
        basis = self.basis(facts).of_answered()
        trusted = replace(basis, facts=self._belief.trusted(basis.facts))
        trusted = replace(trusted, log_prior=with_class_prior(trusted.log_prior, self._log_share))
        return basis.facts, self._infer(trusted, self._oracle(facts))

    def _infer(self, basis: Basis, oracle: torch.Tensor | None, shares: Shares = "none") -> Inference:
        return infer(basis, self._crowd, self._threshold, self._cost, oracle, self._belief.tempering, shares)

    def _basis(self, facts: Facts, log_prior: LogPrior) -> Basis:
        table = self._data.table
        return Basis(facts, log_prior, table.prototype, self._n_rows, len(table.classes))

    def _oracle(self, facts: Facts) -> torch.Tensor | None:
        """True confusions of the workers, where the settings ask for them; read once all workers are known."""
        if self._crowd.oracle is None or not facts.workers:
            return None
        if self._true_confusions is None or len(self._true_confusions) != len(facts.workers):
            path = self._folder / self._crowd.oracle
            self._true_confusions = load_oracle(path, facts.workers, self._data.table.classes)
        return self._true_confusions
