"""When a round runs, what is broadcast and what is persisted; the round itself is in ``round/``."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock
from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.schema import refuse_password
from lightning_annot.callbacks.asking import Asking, Terms, await_answers, why_not
from lightning_annot.callbacks.auditing import CERTIFIED, Auditing, auditor_of
from lightning_annot.callbacks.belief import Belief
from lightning_annot.callbacks.calibration_rows import known_by_answers, prototypes
from lightning_annot.callbacks.inferring import Inferring
from lightning_annot.callbacks.leftover import leftover, tell_how_to_go_on
from lightning_annot.callbacks.older_log import refuse_older
from lightning_annot.callbacks.opening import open_ledger
from lightning_annot.callbacks.preflight import Opening
from lightning_annot.callbacks.run_folder import (
    RunFolder,
    class_accuracy,
    load_cost,
    load_prices,
    progress,
    round_figures,
    tell_scales,
    truth_metrics,
)
from lightning_annot.crowd.evidence import answer_evidence
from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.data.pools import OwnTargets, make_pools
from lightning_annot.learner.predictions import Predictions
from lightning_annot.ledger import Ledger
from lightning_annot.locks import alone_in
from lightning_annot.round.choice import round_generator
from lightning_annot.round.facts import Facts, with_payments
from lightning_annot.round.inference import Inference
from lightning_annot.round.settings import CrowdSettings, SamplingSettings, TrustSettings
from lightning_annot.sampling.price import PriceSettings
from lightning_annot.sampling.stopping import LAST_ROUND, StopSettings
from lightning_annot.types import AnnotError, Learner
from lightning_annot.workers.base import Workers
from lightning_annot.workers.simulated import StructuredWorkers

ACCURACY_DRAW = 1 << 20  # plus the round: the draws of the workers' accuracies
CALIBRATION_DRAW = 1 << 21  # plus the round: the draw of the answered items to calibrate on


class AnnotationRound(Callback):
    """Runs a round at each epoch's end: infer, write the row, decide whether to stop, and only then ask.

    Args:
        output_dir: where the run's files go; continued if a run with the same data, classes and seed is there.
        workers: who answers; simulated structured workers by default.
        threshold: C; an item is finished when its risk is below it.
        crowd: the model of the workers.
        sampling: which items are asked, and of whom.
        stopping: budget, patience, money, and the price of an expert.
        prices: what answers cost; one each by default.
        log_url: SQLAlchemy URL of the annotation log, without a password; ``annotations.db`` in ``output_dir`` by default.
        import_answers: CSV ``task,worker,label`` of answers that are known before round 0.
        cost: CSV of a cost matrix, rows and columns in the order of the classes; zero-one loss by default.
        gold: gold questions, about prototypes, that each worker is asked in round 0; they count in ``paid_per_item``.
        gold_rate: share of gold questions among each worker's in every round, besides.
        trust: who has to qualify, and who is paused.
        method: the name under which results are listed.
    """

    def __init__(
        self,
        output_dir: str = "checkpoints/run",
        workers: Workers | None = None,
        threshold: float = 0.1,
        crowd: CrowdSettings = CrowdSettings(),  # noqa: B008
        sampling: SamplingSettings = SamplingSettings(),  # noqa: B008
        stopping: StopSettings = StopSettings(),  # noqa: B008
        prices: PriceSettings = PriceSettings(),  # noqa: B008
        log_url: str | None = None,
        import_answers: str | None = None,
        cost: str | None = None,
        gold: int = 0,
        method: str = "ours",
        gold_rate: float = 0.0,
        trust: TrustSettings = TrustSettings(),  # noqa: B008
    ) -> None:
        if threshold <= 0:
            raise AnnotError(f"annotation.threshold {threshold} given; it must be above 0.")
        if crowd.estimate == "gold" and not (gold or gold_rate or trust.qualify) and crowd.oracle is None:
            raise AnnotError("crowd.estimate gold given, and no gold questions; set annotation.gold, such as 20 a worker.")
        if log_url is not None:
            refuse_password(log_url)
        self.output_dir = output_dir
        self.workers: Workers = workers if workers is not None else StructuredWorkers()
        self.threshold, self.crowd, self.sampling, self.gold, self.method = threshold, crowd, sampling, gold, method
        listed = {} if prices.workers is None else load_prices(prices.workers)
        self._terms = Terms(self.workers, sampling, stopping, prices, listed, gold, gold_rate, trust)
        self.log_url, self.import_answers, self.cost_path = log_url, import_answers, cost
        self.folder = RunFolder(Path(output_dir))
        self._auditor = auditor_of(stopping, crowd.experts)
        self._auditing = None if self._auditor is None else Auditing(stopping, self._auditor, threshold, self.folder.path)
        self.stop_reason: str | None = None
        self._next_round = 0
        self._log_size = (0, 0)  # questions and answers in the log when the last round was concluded
        self._belief = Belief(crowd, trust)
        self._before = self._belief.state_dict()
        self.rows: list[dict[str, float]] = []
        self._experts = torch.empty(0, dtype=torch.int64)
        self._leftover: dict[str, list[str]] = {}
        self._ledger: Ledger | None = None
        self._known: tuple[torch.Tensor, torch.Tensor] | None = None
        self._annotation_log: AnnotationLog | None = None
        self._lock: BaseFileLock | None = None

    @property
    def log_address(self) -> str | Path:
        """Where the annotation log is."""
        return self.log_url or self.folder.path / "annotations.db"

    @property
    def opening(self) -> Opening:
        """What the run will read and claim before its first round."""
        return Opening(
            self.log_address, self.folder.path, self.workers, self.import_answers, self.cost_path, self.crowd.oracle,
            self._terms.gold_asked, self._auditor,
        )  # fmt: skip

    @property
    def most_answers(self) -> int:
        """The most answers that an item may get."""
        return self._terms.sampling.most

    def check_items(self, data: AnnotationDataModule, stage: str) -> None:
        """Refuse settings and files that do not fit the items, before features are extracted; rank 0 alone."""
        trainer = data.trainer
        if stage not in ("fit", "test") or trainer is None or not trainer.is_global_zero:
            return
        if self._acts_on(trainer, trainer.lightning_module):
            for check in self.opening.checks(data.table, data.listed, data.seed, data.may_shrink).values():
                check()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the log, claim the folder for this run's identity, and introduce the workers; rank 0 alone."""
        if stage not in ("fit", "test") or not self._acts_on(trainer, pl_module):
            return
        self._data: AnnotationDataModule = trainer.datamodule  # type: ignore[attr-defined]
        self._table = self._data.table
        n_classes = len(self._table.classes)
        self._cost = None if self.cost_path is None else load_cost(self.cost_path, n_classes)
        if trainer.is_global_zero and self._ledger is None:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            if stage == "fit":
                cure = "wait for its end or stop it, or choose another annotation.output_dir"
                self._lock = alone_in(self.folder.path, "fit", cure)
            self._annotation_log = AnnotationLog(self.log_address)
            self._ledger = open_ledger(
                self._annotation_log, self._data, self.workers, self.folder.path, self.import_answers, self._terms.gold_asked,
                hold_back=self.crowd.temper and trainer.max_epochs != 1,
            )  # fmt: skip
            if self._auditing is not None:
                self._auditing.bind(self.workers, self._ledger)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the facts where the checkpoint, if any, left them, and make the pools of the next round."""
        if not self._acts_on(trainer, pl_module):
            return
        if self._annotation_log is not None:
            size, name, file = self._annotation_log.size(), self._annotation_log.name, trainer.ckpt_path
            refuse_older(size, self._log_size, name, file, self.folder.path)
        self._clock, self.stop_reason, self._leftover = time.perf_counter(), None, {}
        self.facts = self._shared_facts(trainer, self._next_round - 1 if self._next_round else 0)
        self._data.know(self.facts.item, self.facts.label)
        self._listen(pl_module)
        if trainer.is_global_zero:
            tell_scales(self._data)
        if self._next_round == 0:
            self._set_pools(self._inferring.infer(self.facts))
            return
        self._inference = self._inferring.infer(self.facts)
        self._belief.judge(self.facts, self._inference)
        self._conclude(trainer, self._next_round - 1)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the round."""
        if self._acts_on(trainer, pl_module):
            self._clock = time.perf_counter()
            self._stage(trainer, "training")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The round; an epoch that was already handled is left alone."""
        round_ = trainer.current_epoch
        if round_ < self._next_round or not self._acts_on(trainer, pl_module):
            return
        row: dict[str, float] = {"round": round_, "seconds_train": self._lap()}
        self._stage(trainer, "predicting")
        self._data.set_pools(None)
        features, folds = self._data.projected()
        rows, label = self._known if self._known is not None else prototypes(self._table)
        pl_module.calibrate(features[rows], folds[rows], label)  # type: ignore[operator]
        self._inferring.renew()
        row["seconds_predict"] = self._lap()
        self._stage(trainer, "inferring")
        self._before = self._belief.state_dict()
        self._inference = self._inferring.infer(self.facts)
        self._belief.judge(self.facts, self._inference)
        row["seconds_infer"] = self._lap()
        self.rows.append(row)
        row |= self._figures()
        self._next_round = round_ + 1
        self._conclude(trainer, round_)
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in row.items() if k != "round"}, step=round_)
        if (bar := progress(trainer)) is not None:
            bar.update_row(row)

    def _conclude(self, trainer: Trainer, round_: int) -> None:
        """Stop, or ask the questions of ``round_`` and prepare the next; doing it again changes nothing."""
        row, facts = self.rows[-1], self.facts
        self._lap()
        self._latest = facts
        if trainer.is_global_zero:
            self.stop_reason = self._at_the_end(trainer, round_, self._ask(trainer, round_, row))
        self.stop_reason = trainer.strategy.broadcast(self.stop_reason)
        if trainer.is_global_zero:
            generator = round_generator(self._data.seed, ACCURACY_DRAW + round_)
            self.folder.save_tables(self._table, facts, self._inference, self._belief, generator)
        if trainer.is_global_zero and self.stop_reason is not None:
            finished = self._inference.finished[: len(self._table)]
            self._leftover = leftover(self._table, finished, self._experts, self._latest, self.workers, self.sampling)
        if self.stop_reason is not None and len(facts.item) > row["annotations"]:  # imported since, as an expert's are
            row |= self._figures()
        row["seconds_save"] = self._lap()
        if self.stop_reason is None:
            self.facts = self._shared_facts(trainer, round_ + 1)
            gain = self._belief.recalibrate(round_, self.facts, self._inference, self.predictions)
            row |= {} if gain is None else {"fresh_gain": gain}
        # The (N, K) posterior is the largest thing there is: let go of the round's before the next is made.
        del self._inference
        if self.stop_reason is None:
            self._stage(trainer, "inferring")
            self._set_pools(self._inferring.infer(self.facts))
        trainer.should_stop = self.stop_reason is not None
        row["seconds_infer"] += self._lap()
        if trainer.is_global_zero:
            assert self._annotation_log is not None
            self._log_size = self._annotation_log.size()
            self.folder.save_rows(self.rows)

    def _ask(self, trainer: Trainer, round_: int, row: dict[str, float]) -> str | None:
        """Choose, commit and hand out the questions of ``round_``, and take in what has been answered; or why not."""
        ledger, facts = self._ledger, self.facts
        assert ledger is not None
        row["seconds_sample"] = row["seconds_ask"] = row["seconds_wait"] = 0.0
        if round_ == 0 and ledger.holds_back() and not ledger.has_asked(0):
            self._latest = ledger.facts(1)  # what was imported is learned from before anything is asked
            return None
        if (reason := self._certified(trainer, ledger, round_)) is not None:
            return reason
        facts = self.facts
        asking = Asking(
            self._terms, self._data, round_, self._inferring.basis(facts), self._inference,
            self._belief.is_barred(facts.workers), self._belief.is_paused(facts.workers), self._cost,
        )  # fmt: skip
        self._experts = asking.experts
        reason = asking.stop_reason(self.rows, last_round=trainer.max_epochs == round_ + 1)
        if reason is not None:
            return reason
        too_dear = 0
        if not ledger.has_asked(round_):
            self._stage(trainer, "choosing")
            chosen = asking.choose()
            row["seconds_sample"] = self._lap()
            too_dear = asking.buy(ledger, chosen)
        self._stage(trainer, "asking")
        self.workers.set_aside(self._belief.not_asked())
        known = int(row.setdefault("replies", facts.replies))  # a round that is concluded again had late answers after these
        interrupted, row["seconds_wait"] = await_answers(
            ledger, self.workers, round_, known, lambda: self._look(ledger, round_), trainer
        )
        self._latest = now = ledger.facts(round_ + 1)
        row["seconds_ask"] = max(0.0, self._lap() - row["seconds_wait"])  # by two clocks
        if interrupted is not None:
            return interrupted
        news = len(now.item) > row["annotations"] or len(now.gold_item) > row["gold"]  # what the last training has not seen
        if news or ledger.is_past(round_):
            return None
        return why_not(self._terms, now, too_dear, asking.nobody_left)

    def _at_the_end(self, trainer: Trainer, round_: int, reason: str | None) -> str | None:
        """Audit the finished labels of a run that ends without a certificate; return why it ends.

        The last allowed round is no end: more rounds may be allowed later, and must find the same facts.
        """
        if reason is None or self._ledger is None or reason.startswith(("interrupted", "waiting", LAST_ROUND, CERTIFIED)):
            return reason
        found = self._certified(trainer, self._ledger, round_, ending=True)
        return f"{reason}; {found}" if found is not None and found.startswith(CERTIFIED) else found or reason

    def _certified(self, trainer: Trainer, ledger: Ledger, round_: int, ending: bool = False) -> str | None:
        """Audit the finished labels, if that is wanted and likely to certify them; return why the run ends, or None."""
        if self._auditing is None or self._auditor is None or self._annotation_log is None:
            return None
        self._stage(trainer, "auditing")
        labels = self.folder.label_table(self._table, self.facts, self._inference)
        log, most, seed = self._annotation_log, self._terms.audits_paid(self.facts, self._auditor), self._data.seed
        reason = self._auditing.stop_reason(log, ledger, self.workers, labels, most, round_, seed, trainer, ending)
        paid = with_payments(self.facts, ledger.facts(round_, with_audits=True))
        if paid.extra_paid > self.facts.extra_paid:
            self.facts = self._latest = paid
            self.rows[-1] |= self._figures()
        return reason

    def _look(self, ledger: Ledger, round_: int) -> None:
        """Judge the workers in the middle of ``round_``, by the learner as it is: whom to ask nothing more from now on."""
        if not self._belief.judges:
            return
        facts = self._with_experts(ledger.facts(round_ + 1))
        self.workers.set_aside(self._belief.verdicts(*self._inferring.peek(facts)))

    def _figures(self) -> dict[str, float]:
        money = self._terms.account(self.facts).spent if self._terms.pays else None
        row = round_figures(self._table, self.facts, self._inference, self.predictions, money)
        return row | self._inferring.stated_error(self._inference, int(self.rows[-1]["round"]))

    def _listen(self, learner: Any) -> None:
        """Believe what this ``learner`` says."""
        folder = self.folder.path
        self._inferring = Inferring(learner, self._data, self._belief, self.crowd, self.threshold, self._cost, folder)

    @property
    def predictions(self) -> Predictions:
        """The learner's own probabilities of the last round."""
        return self._inferring.predictions

    def _set_pools(self, inference: Inference) -> None:
        n = len(self._table)
        if self._table.lacks_prototypes:
            generator = round_generator(self._data.seed, CALIBRATION_DRAW + self._next_round)
            self._known = known_by_answers(self._table, *answer_evidence(inference.crowd, generator))
        known = torch.zeros(len(inference.finished), dtype=torch.bool)
        answered = self._belief.trusted(self.facts).annotations().item
        known[:n] = self._table.is_prototype | (torch.bincount(answered, minlength=n) > 0)
        own = OwnTargets(self._belief.tempering.model[0], inference.crowd.log_share, max(0.5, 1.0 - self.threshold))
        self._data.set_pools(make_pools(inference.posterior, known, inference.finished, self._inferring.sure_rows(own), own))

    def _shared_facts(self, trainer: Trainer, before_round: int) -> Facts:
        """Rank 0 reads the log; everybody gets the same facts, and computes all else from them."""
        facts = self._ledger.facts(before_round) if self._ledger is not None else None
        shared: Facts = trainer.strategy.broadcast(facts)  # type: ignore[assignment]
        return self._with_experts(shared)

    def _with_experts(self, facts: Facts) -> Facts:
        return replace(facts, experts=facts.experts | {*self.crowd.experts})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the report and say what was reached."""
        if self._acts_on(trainer, pl_module) and trainer.is_global_zero and self.rows:
            if self.stop_reason is None:
                self.stop_reason = "interrupted"
            facts = {"method": self.method, "oracle_prior": self.crowd.oracle is not None, "leftover": self._leftover}
            facts |= self._belief.summary() | self._terms.summary(self._latest)
            if self._table.truth is not None:
                label = self.predictions.label()[: len(self._table)]
                facts["learner_class_accuracy"] = class_accuracy(label, self._table)
            assert self._annotation_log is not None
            said = self._annotation_log.answers()
            self.folder.finish(self.rows, self._table, self._data, self.threshold, self.stop_reason, facts, said)
            if self.stop_reason.startswith(("interrupted", "waiting")):
                tell_how_to_go_on(self.workers)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the labels that all facts and the checkpoint's learner give with the truth."""
        if not self._acts_on(trainer, pl_module):
            return
        self._listen(pl_module)
        self.facts = self._shared_facts(trainer, 1 << 31)
        inference = self._inferring.infer(self.facts)
        n = len(self._table)
        metrics = truth_metrics(inference, self._table, self.predictions.label()[:n])
        known = {f"label_{name}": value for name, value in metrics.items() if not math.isnan(value)}  # of no item: nan
        pl_module.log_dict(known, rank_zero_only=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the log, and let others go on in the folder."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same; Lightning calls no ``teardown`` then. After Ctrl-C, say how to go on."""
        if isinstance(exception, KeyboardInterrupt) and self._ledger is not None and trainer.state.fn == "fit":
            tell_how_to_go_on(self.workers)
        self._close()

    def _close(self) -> None:
        if self._annotation_log is not None:
            self._annotation_log.close()
            self._annotation_log = self._ledger = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def state_dict(self) -> dict[str, Any]:
        """The rounds so far, as plain values; the facts are in the log."""
        rows = [dict(row) for row in self.rows]
        return {"next_round": self._next_round, "rows": rows, "log_size": list(self._log_size), **self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the checkpoint's last round."""
        self._next_round, self.rows = int(state_dict["next_round"]), [dict(row) for row in state_dict["rows"]]
        known = [0, max((int(row["annotations"]) for row in self.rows), default=0)]  # older checkpoints count answers alone
        n_questions, n_answers = state_dict.get("log_size", known)
        self._log_size = n_questions, n_answers
        self._belief.load_state_dict(state_dict)
        self._before = self._belief.state_dict()

    @staticmethod
    def _stage(trainer: Trainer, name: str) -> None:
        if (bar := progress(trainer)) is not None:
            bar.stage(name)

    def _lap(self) -> float:
        """Seconds since the last call."""
        before, self._clock = self._clock, time.perf_counter()
        return self._clock - before

    @staticmethod
    def _acts_on(trainer: Trainer, pl_module: LightningModule) -> bool:
        """Only annotation models have rounds; others (adaptation, fine-tuning) train as usual."""
        data = getattr(trainer, "datamodule", None)
        return isinstance(pl_module, Learner) and isinstance(data, AnnotationDataModule)
