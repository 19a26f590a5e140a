"""When a round runs, what is broadcast and what is persisted; the round itself is in ``round/``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from lightning_annot.annotations.formats import import_answers
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.callbacks.calibration_rows import known_by_answers, prototypes
from lightning_annot.callbacks.leftover import leftover
from lightning_annot.callbacks.purchase import commit, first_gold
from lightning_annot.callbacks.run_folder import (
    RunFolder,
    class_accuracy,
    load_cost,
    load_oracle,
    load_prices,
    progress,
    truth_metrics,
)
from lightning_annot.crowd.evidence import answer_evidence
from lightning_annot.crowd.spam import judge_workers
from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.data.pools import make_pools
from lightning_annot.learner.predictions import Predictions
from lightning_annot.ledger import Ledger
from lightning_annot.recalibration import Recalibration, fresh_answers
from lightning_annot.round.choice import Panel, choose, open_to_questions, refilled, round_generator
from lightning_annot.round.facts import Basis, Facts
from lightning_annot.round.inference import Inference, infer
from lightning_annot.round.settings import CrowdSettings, SamplingSettings
from lightning_annot.sampling.diverse import diverse, is_diverse_round, unseen_classes
from lightning_annot.sampling.price import Account, PriceSettings, settle
from lightning_annot.sampling.stopping import StopSettings, stop_reason
from lightning_annot.sampling.value import worth_asking
from lightning_annot.types import AnnotError, Learner, Task
from lightning_annot.workers.base import Workers
from lightning_annot.workers.simulated import SimulatedWorkers, StructuredWorkers

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
        log_url: SQLAlchemy URL of the annotation log; ``annotations.db`` in ``output_dir`` by default.
        import_answers: CSV ``task,worker,label`` of answers that are known before round 0.
        cost: CSV of a cost matrix, rows and columns in the order of the classes; zero-one loss by default.
        gold: gold questions, about prototypes, that each worker is asked in round 0; they count in ``paid_per_item``.
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
    ) -> None:
        if threshold <= 0:
            raise AnnotError(f"annotation.threshold {threshold} given; it must be above 0.")
        if gold < 0:
            raise AnnotError(f"annotation.gold {gold} given; it must be 0 or more gold questions a worker.")
        if crowd.estimate == "gold" and not gold and crowd.oracle is None:
            raise AnnotError("crowd.estimate gold given, and no gold questions; set annotation.gold, such as 20 a worker.")
        self.output_dir = output_dir
        self.workers: Workers = workers if workers is not None else StructuredWorkers()
        self.threshold, self.crowd, self.sampling, self.stopping = threshold, crowd, sampling, stopping
        self.prices, self._listed_prices = prices, {} if prices.workers is None else load_prices(prices.workers)
        self._pays = prices.given or stopping.money is not None
        self.log_url, self.import_answers, self.cost_path = log_url, import_answers, cost
        self.gold, self.method = gold, method
        self.folder = RunFolder(Path(output_dir))
        self.stop_reason: str | None = None
        self._next_round = 0
        self._recalibration = Recalibration()
        self._barred: dict[str, str] = {}
        self._before = self._belief()
        self.rows: list[dict[str, float]] = []
        self._experts = torch.empty(0, dtype=torch.int64)
        self._leftover: dict[str, list[str]] = {}
        self._ledger: Ledger | None = None
        self._true_confusions: torch.Tensor | None = None
        self._known: tuple[torch.Tensor, torch.Tensor] | None = None
        self._annotation_log: AnnotationLog | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the log, claim the folder for this run's identity, and introduce the workers; rank 0 alone."""
        if stage not in ("fit", "test") or not self._acts_on(trainer, pl_module):
            return
        self._data: AnnotationDataModule = trainer.datamodule  # type: ignore[attr-defined]
        self._table = self._data.table
        n_classes = len(self._table.classes)
        self._cost = None if self.cost_path is None else load_cost(self.cost_path, n_classes)
        if trainer.is_global_zero and self._ledger is None:
            self._open(self._data)

    def _open(self, data: AnnotationDataModule) -> None:
        table, loaded = data.table, data.loaded
        assert loaded is not None
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self._annotation_log = AnnotationLog(self.log_url or self.folder.path / "annotations.db")
        self._annotation_log.claim(table.identity(data.seed))
        if self.import_answers is not None:
            import_answers(self._annotation_log, self.import_answers, table.classes, table.ids)
        paths = None if loaded.source is None else dict(zip(table.ids, loaded.source.paths, strict=True))
        task = Task(table.ids, table.classes, data.seed, str(self.folder.path), paths, loaded.labels)
        self._ledger = Ledger(self._annotation_log, task, self.workers)
        if self.gold and not self.workers.names():
            raise AnnotError(
                f"annotation.gold {self.gold} given, and questions go to anyone; gold questions need workers with names: name "
                "them (annotation.workers.workers), or set annotation.workers.by_worker for recorded answers."
            )
        if self.gold and not bool(table.is_prototype.any()):
            raise AnnotError(
                f"annotation.gold {self.gold} given without prototypes, which gold questions are about; set it to 0."
            )
        if isinstance(self.workers, SimulatedWorkers):
            self.workers.export(self.folder.path / "simulated_workers.npz")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the facts where the checkpoint, if any, left them, and make the pools of the next round."""
        if not self._acts_on(trainer, pl_module):
            return
        self.predictions = Predictions(pl_module, *self._data.projected())  # type: ignore[arg-type]
        self._clock, self.stop_reason, self._leftover = time.perf_counter(), None, {}
        self.facts = self._shared_facts(trainer, self._next_round - 1 if self._next_round else 0)
        if self._next_round == 0:
            self._set_pools(self._infer())
            return
        self._inference = self._infer()
        self._judge_workers()
        self._conclude(trainer, self._next_round - 1)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the round."""
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
        self.predictions.renew()
        row["seconds_predict"] = self._lap()
        self._stage(trainer, "inferring")
        self._before = self._belief()
        self._inference = self._infer()
        self._judge_workers()
        row["seconds_infer"] = self._lap()
        self.rows.append(row)
        self._describe_round(row)
        self._next_round = round_ + 1
        self._conclude(trainer, round_)
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in row.items() if k != "round"}, step=round_)
        if (bar := progress(trainer)) is not None:
            bar.update_row(row)

    def _describe_round(self, row: dict[str, float]) -> None:
        """Fill in what was reached; the truth serves these figures and nothing else."""
        table, facts, inference = self._table, self.facts, self._inference
        n = len(table)
        keep = ~table.is_prototype
        total = int(keep.sum())
        row["annotations"] = len(facts.item)
        row["annotations_per_item"] = len(facts.item) / total
        row["paid_per_item"] = (len(facts.item) + facts.extra_paid) / total
        if self._pays:
            row["money"] = self._account(facts).spent
        row["finished_fraction"] = int((inference.finished[:n] & keep).sum()) / total
        row["mean_risk"] = float(inference.decision.risk[:n][keep].double().mean())
        if table.truth is not None:
            row |= truth_metrics(inference, table, self.predictions.label()[:n])

    def _conclude(self, trainer: Trainer, round_: int) -> None:
        """Stop, or ask the questions of ``round_`` and prepare the next; doing it again changes nothing."""
        row, facts = self.rows[-1], self.facts
        self._lap()
        self._latest = facts
        if trainer.is_global_zero:
            self.stop_reason = self._ask(trainer, round_, row)
        self.stop_reason = trainer.strategy.broadcast(self.stop_reason)
        if trainer.is_global_zero:
            self.folder.save_tables(self._table, facts, self._inference, self._is_barred())
        if trainer.is_global_zero and self.stop_reason is not None:
            finished = self._inference.finished[: len(self._table)]
            self._leftover = leftover(self._table, finished, self._experts, self._latest, self.workers, self.sampling)
        row["seconds_save"] = self._lap()
        if self.stop_reason is None:
            self.facts = self._shared_facts(trainer, round_ + 1)
            self._recalibrate()
        # The (N, K) posterior is the largest thing there is: let go of the round's before the next is made.
        del self._inference
        if self.stop_reason is None:
            self._stage(trainer, "inferring")
            self._set_pools(self._infer())
        trainer.should_stop = self.stop_reason is not None
        row["seconds_infer"] += self._lap()
        if trainer.is_global_zero:
            self.folder.save_rows(self.rows)

    def _judge_workers(self) -> None:
        """Find out who answers without looking, from the answers so far of everybody."""
        if not self.crowd.exclude or self.crowd.prior != "tiered" or not len(self.facts.annotations()):
            return
        conduct = judge_workers(
            self.facts.annotations(), self._inference.posterior, self._inference.crowd, self._recalibration.tempering,
            ~self._is_barred(),
        )  # fmt: skip
        found = zip(self.facts.workers, conduct.spammer.tolist(), conduct.adversary.tolist(), strict=True)
        self._barred = {name: "spammer" if spams else "adversary" for name, spams, lies in found if spams or lies}

    def _is_barred(self) -> torch.Tensor:
        """Workers who are not believed and not asked, (W,) bool."""
        return torch.tensor([name in self._barred for name in self.facts.workers], dtype=torch.bool)

    @property
    def _trusted(self) -> Facts:
        """The facts without those workers' answers."""
        return self.facts.without(self._is_barred())

    def _recalibrate(self) -> None:
        """Let the latest answers, which the learner has not seen, say how far it and the workers may be believed.

        Where a round brings none, those of the last round that did are looked at again.
        """
        facts = self._trusted
        if self.crowd.temper and len(facts.round):
            latest = int(facts.round.max())
            self._recalibration.learn(latest, fresh_answers(facts, latest, self._inference.crowd, self.predictions))

    def _ask(self, trainer: Trainer, round_: int, row: dict[str, float]) -> str | None:
        """Choose, commit and hand out the questions of ``round_``, and take in what has been answered; or why not."""
        ledger, facts = self._ledger, self.facts
        assert ledger is not None
        row["seconds_sample"] = row["seconds_ask"] = 0.0
        account, askable = self._account(facts), len(self.workers.names())
        among = open_to_questions(self._basis(self._trusted), self._inference, self.sampling.cap, self.workers.capacity())
        among, self._experts = self._without_experts(among, account.anyone)
        keep = ~self._table.is_prototype
        n_open, total = len(facts.open_item), int(keep.sum())
        finished = [round(r["finished_fraction"] * total) for r in self.rows]
        reason = stop_reason(
            self.stopping, finished_history=finished, n_items=total, n_annotations=len(facts.item), n_candidates=len(among),
            n_open=n_open, last_round=trainer.max_epochs == round_ + 1,
            hit_size=1 if self.sampling.refill else self.sampling.hit_size,
            n_withdrawn=len(self._experts), spent=account.spent, cheapest=account.cheapest(askable),
        )  # fmt: skip
        if reason is not None:
            return reason
        too_dear = 0
        if not ledger.has_asked(round_):
            self._stage(trainer, "choosing")
            left = self.stopping.left(len(facts.item) + n_open, total)
            among = refilled(self._basis(facts), self._inference, among, self.sampling)
            n = max(0, min(self.sampling.per_round - n_open, self.sampling.per_round if left is None else left))
            among = self._spread_out(among, n, round_)
            price = account.expected if self.prices.given else None
            chosen = choose(
                self._basis(facts), self._inference, among, n, self.sampling, round_generator(self._data.seed, round_),
                Panel(askable, self.workers.can_answer(), price, self._is_barred()),
            )  # fmt: skip
            row["seconds_sample"] = self._lap()
            gold = first_gold(round_, self.gold, self._table, self.workers, self._data.seed)
            too_dear = commit(ledger, round_, chosen, gold, account, self.stopping.money_left(account.spent + account.owed))
        self._stage(trainer, "asking")
        ledger.collect()
        self._latest = now = ledger.facts(round_ + 1)
        row["seconds_ask"] = self._lap()
        if len(now.item) > row["annotations"]:  # what the last training has not seen
            return None
        if len(now.open_item):
            return f"waiting for the answers to {len(now.open_item)} questions"
        if too_dear:
            return f"the money left of {self.stopping.money:g} pays for no question ({self._account(now).spent:g} are spent)"
        return "no worker can answer any of the unfinished items once more"

    def _without_experts(self, among: torch.Tensor, answer_price: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The items ``among`` (n,) that are worth asking, and those where an expert is the better buy."""
        if self.stopping.expert_price is None:
            return among, among[:0]
        room = self.sampling.cap - self._trusted.asked(len(self._table))[among]
        confusion = self._inference.crowd.pooled_confusion()
        worth = worth_asking(self._inference.posterior, confusion, among, room, self.stopping.expert_price, answer_price)
        return among[worth], among[~worth]

    def _account(self, facts: Facts) -> Account:
        """Money spent and owed after the facts."""
        return settle(self.prices, self._listed_prices, facts.workers, facts.paid_worker, facts.paid_seconds, facts.owed_worker)

    def _spread_out(self, among: torch.Tensor, n: int, round_: int) -> torch.Tensor:
        """Of the items ``among``, those that differ most, where a class has not been seen yet and it is time to look for it."""
        if not (self._table.lacks_prototypes and is_diverse_round(round_)):
            return among
        if not len(unseen_classes(self._inference.posterior, self.facts.annotations(), self._table.prototype)):
            return among
        new = among[self.facts.asked(len(self._table))[among] == 0]
        among = new if len(new) >= n else among
        most = n if self.sampling.hit_size == 1 else 2 * n
        generator = round_generator(self._data.seed + 1, round_)
        return diverse(self._data.projected()[0], among, most, generator)

    def _basis(self, facts: Facts) -> Basis:
        features, _ = self._data.projected()
        return Basis(facts, self.predictions, self._table.prototype, len(features), len(self._table.classes))

    def _infer(self) -> Inference:
        return infer(
            self._basis(self._trusted), self.crowd, self.threshold, self._cost, self._oracle(), self._recalibration.tempering
        )

    def _oracle(self) -> torch.Tensor | None:
        """True confusions of the workers, where the settings ask for them; read once all workers are known."""
        if self.crowd.oracle is None or not self.facts.workers:
            return None
        if self._true_confusions is None or len(self._true_confusions) != len(self.facts.workers):
            path = self.folder.path / self.crowd.oracle
            self._true_confusions = load_oracle(path, self.facts.workers, self._table.classes)
        return self._true_confusions

    def _set_pools(self, inference: Inference) -> None:
        n = len(self._table)
        if self._table.lacks_prototypes:
            generator = round_generator(self._data.seed, CALIBRATION_DRAW + self._next_round)
            self._known = known_by_answers(self._table, *answer_evidence(inference.crowd, generator))
        known = torch.zeros(len(inference.finished), dtype=torch.bool)
        known[:n] = self._table.is_prototype | (torch.bincount(self._trusted.annotations().item, minlength=n) > 0)
        self._data.set_pools(make_pools(inference.posterior, known, inference.finished))

    def _shared_facts(self, trainer: Trainer, before_round: int) -> Facts:
        """Rank 0 reads the log; everybody gets the same facts, and computes all else from them."""
        facts = self._ledger.facts(before_round) if self._ledger is not None else None
        return trainer.strategy.broadcast(facts)  # type: ignore[return-value]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the report and say what was reached."""
        if self._acts_on(trainer, pl_module) and trainer.is_global_zero and self.rows:
            if self.stop_reason is None:
                self.stop_reason = "interrupted"
            facts = {"method": self.method, "oracle_prior": self.crowd.oracle is not None, "gold": self.gold}
            facts |= {"excluded_workers": self._barred}
            facts |= {"cap": self.sampling.cap, "leftover": self._leftover}
            if self._pays:
                facts["money"] = self._account(self._latest).spent
            if self._table.truth is not None:
                label = self.predictions.label()[: len(self._table)]
                facts["learner_class_accuracy"] = class_accuracy(label, self._table)
            self.folder.finish(self.rows, self._table, self._data, self.threshold, self.stop_reason, facts)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the labels that all facts and the checkpoint's learner give with the truth."""
        if not self._acts_on(trainer, pl_module):
            return
        self.predictions = Predictions(pl_module, *self._data.projected())  # type: ignore[arg-type]
        self.facts = self._shared_facts(trainer, 1 << 31)
        inference = self._infer()
        n = len(self._table)
        metrics = truth_metrics(inference, self._table, self.predictions.label()[:n])
        pl_module.log_dict({f"label_{name}": value for name, value in metrics.items()}, rank_zero_only=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the log."""
        if self._annotation_log is not None:
            self._annotation_log.close()
            self._annotation_log = self._ledger = None

    def state_dict(self) -> dict[str, Any]:
        """The rounds so far, as plain values; the facts are in the log."""
        return {"next_round": self._next_round, "rows": [dict(row) for row in self.rows], **self._before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the checkpoint's last round."""
        self._next_round, self.rows = int(state_dict["next_round"]), [dict(row) for row in state_dict["rows"]]
        self._recalibration.load_state_dict(state_dict["recalibration"])
        self._barred = dict(state_dict["barred"])
        self._before = self._belief()

    def _belief(self) -> dict[str, Any]:
        """What the last round's inference goes by: a resumed run makes it anew, then judges and recalibrates again."""
        return {"recalibration": self._recalibration.state_dict(), "barred": dict(self._barred)}

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
