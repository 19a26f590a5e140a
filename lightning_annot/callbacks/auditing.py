"""Audits inside a run: a trusted person checks finished labels, and the run ends once they are certified.

A round may audit the labels that it has inferred before it asks anything else. They stay as they are meanwhile, so that the run
which ends with a certificate leaves exactly the labels that were certified. An audit that fails costs its stage's share of the
confidence, and the run goes on.

Facts are the questions and answers of kind ``audit`` and the stages, all in the log. What is audited, in which order, and when
to give up is a function of them, of the labels, and of (seed, round): a round that is done again draws the same and asks
nothing twice.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
from pytorch_lightning import Trainer

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.callbacks.progress import RoundProgress
from lightning_annot.certificate.audit import EXPERT, ask, known_answers
from lightning_annot.certificate.keeping import keep_stages, read_record, write_certificate
from lightning_annot.certificate.record import Record
from lightning_annot.certificate.sample import CertifiedSet, certified_set
from lightning_annot.certificate.trial import Standing, Trial, begin, describe_trial, expected_audits
from lightning_annot.ledger import Ledger
from lightning_annot.sampling.stopping import StopSettings
from lightning_annot.types import AnnotError
from lightning_annot.workers.base import Workers

BATCH = 25  # audits between two looks
PAUSE = 5  # rounds after an audit that did not certify
CERTIFIED = "the finished labels are certified"  # how the reason of a run begins that ends by its audits


def auditor_of(stopping: StopSettings, experts: Sequence[str]) -> str | None:
    """Return who audits: ``stopping.auditor``, else the first of ``crowd.experts``; None where nothing is audited.

    Raises:
        AnnotError: Audits are wanted, and nobody is trusted.
    """
    if stopping.target_error is None:
        return None
    name = stopping.auditor or next(iter(experts), None)
    if name is None:
        raise AnnotError(
            f"stopping.target_error {stopping.target_error:g} given, and nobody is trusted to audit; name a person with "
            "annotation.stopping.auditor, or experts with annotation.crowd.experts."
        )
    if name == EXPERT:
        raise AnnotError(
            f"stopping.auditor {EXPERT!r} given; the log keeps that name for the audits of lightning-annot certify. "
            "Choose another one."
        )
    return name


class Auditing:
    """The audits of one run; rank 0 alone.

    Args:
        stopping: What is to be certified, and by how many audits at most.
        auditor: Who audits.
        threshold: Risk below which an item is finished.
        folder: The run's folder.
    """

    def __init__(self, stopping: StopSettings, auditor: str, threshold: float, folder: Path) -> None:
        if stopping.target_error is None:
            raise ValueError("no target_error")
        self._stopping, self._auditor, self._threshold, self._folder = stopping, auditor, threshold, folder
        self._error = stopping.target_error

    def bind(self, workers: Workers, ledger: Ledger) -> None:
        """Let the auditor be asked."""
        workers.trust(self._auditor)
        ledger.auditor = self._auditor

    def stop_reason(
        self,
        log: AnnotationLog,
        ledger: Ledger,
        workers: Workers,
        labels: pd.DataFrame,
        most: int,
        round_: int,
        seed: int,
        trainer: Trainer,
        ending: bool = False,
    ) -> str | None:
        """Audit the finished ones of ``labels`` if that is likely to certify them; return why the run ends, or None.

        Args:
            log: Log of the run.
            ledger: The same, which hands questions to the workers.
            workers: Among them, or beside them, the auditor.
            labels: The table of ``labels.csv`` after this round.
            most: Most audits in this round.
            round_: This round.
            seed: Seed of the run.
            trainer: Tells of signals to stop, and shows progress.
            ending: The run ends with this round in any case, so that this is the last chance.
        """
        ours = labels[labels["status"] != "prototype"]
        finished = ours[ours["status"] == "finished"]
        if len(finished) == 0 or (not ending and len(finished) < self._stopping.audit_from * len(ours)):
            return None
        found, record = certified_set(labels, self._threshold, None), read_record(log, self._folder)
        record = record if record.stages else replace(record, seed=seed)
        if not self._is_time(found, record, known_answers(log, round_), most, round_, ending):
            return None
        trial, planned = begin(found, record, self._error, round_)
        keep_stages(log, record, planned)
        return self._audit(trial, planned, log, ledger, workers, min(most, len(found)), round_, trainer)

    def _is_time(
        self,
        found: CertifiedSet,
        record: Record,
        answers: Mapping[str, str | None],
        most: int,
        round_: int,
        ending: bool,
    ) -> bool:
        """Whether to audit: always where it was begun, else if it is likely to certify and no audit has just failed."""
        if record.find(found.digest, self._error) is not None:
            return True
        before = [stage.round for stage in record.stages if stage.round is not None and stage.round < round_]
        level = record.stage_level(len(record.stages), self._stopping.confidence)
        rested = ending or not before or round_ - max(before) >= PAUSE
        return rested and expected_audits(found, self._error, level, answers) <= most

    def _audit(
        self,
        trial: Trial,
        record: Record,
        log: AnnotationLog,
        ledger: Ledger,
        workers: Workers,
        most: int,
        round_: int,
        trainer: Trainer,
    ) -> str | None:
        level, n = record.stage_level(trial.index, self._stopping.confidence), 0
        while n < most:
            n = min(n + BATCH, most)
            known = known_answers(log)
            missing = [task for task in trial.tasks(n) if task not in known]
            if missing:
                ask(log, missing, round_, self._auditor)
                if (why := self._await(missing, log, ledger, workers, round_, trainer)) is not None:
                    return why
                known = known_answers(log)
            standing = trial.standing(known, n, level)
            looked = record.looked(trial.index, standing.audited, standing.wrong)
            keep_stages(log, record, looked)
            record = looked
            if standing.certified:
                return self._certify(trial, standing, record)
            if standing.hopeless:
                return None
        return None

    def _certify(self, trial: Trial, standing: Standing, record: Record) -> str:
        claim = {"digest": trial.found.digest, "size": len(trial.found), "below": trial.found.top, "bound": trial.error}
        said = claim | {"confidence": self._stopping.confidence} | asdict(standing)
        write_certificate(self._folder, replace(record, certificate=said))
        return describe_trial(standing, trial, self._stopping.confidence)

    def _await(
        self, tasks: Sequence[str], log: AnnotationLog, ledger: Ledger, workers: Workers, round_: int, trainer: Trainer
    ) -> str | None:
        """Wait until all ``tasks`` are answered, as long as the workers' patience lasts; return why the run ends instead."""
        start, bar = time.monotonic(), next((c for c in _callbacks(trainer) if isinstance(c, RoundProgress)), None)
        left = len(tasks)
        with contextlib.suppress(KeyboardInterrupt):
            while not trainer.received_sigterm:
                ledger.collect()
                known = known_answers(log)
                left = sum(task not in known for task in tasks)
                if not left:
                    return None
                pause = workers.patience(len(tasks) - left, len(tasks), time.monotonic() - start)
                if pause <= 0:
                    return f"waiting for the answers to {left} audits by {self._auditor}"
                if bar is not None:
                    bar.wait(round_, f"waiting for audits: {len(tasks) - left} of {len(tasks)} answers")
                time.sleep(pause)
        return f"interrupted while waiting for audits: {left} of {len(tasks)} are open; the same command goes on"


def _callbacks(trainer: Trainer) -> Sequence[object]:
    return trainer.callbacks  # type: ignore[attr-defined,no-any-return]
