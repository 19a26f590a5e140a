"""What ``compare_peers.py`` compares: each method turns the same answers, and perhaps the same features, into labels."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_annot import AnnotationDataModule, AnnotationRound, Annotations, MixMatchModule
from lightning_annot.annotations.formats import write_table
from lightning_annot.crowd.em import write_posterior
from lightning_annot.crowd.priors import homogeneous_prior
from lightning_annot.crowd.tiers import run_tiered_em
from lightning_annot.round.settings import CrowdSettings
from lightning_annot.sampling.activelab import wide_answers
from lightning_annot.types import AnnotError
from lightning_annot.workers.recorded import RecordedWorkers

THRESHOLD = 0.1
GLAD_ITERATIONS, MACE_RESTARTS = 5, 3
Labels = tuple[NDArray[np.int64], NDArray[np.float64]]  # label (N,) and its confidence (N,)


class NotHere(Exception):
    """A method that cannot run on these answers."""


@dataclass(frozen=True)
class Replay:
    """What all methods get: ``data`` (items, features, prototypes, folds) and ``answers`` (task, worker, label)."""

    folder: Path
    data: AnnotationDataModule
    answers: pd.DataFrame

    @cached_property
    def annotations(self) -> Annotations:
        """The answers as indices."""
        table = self.data.table
        codes = {"task": table.ids, "worker": self.workers, "label": table.classes}
        found = (pd.Index(names).get_indexer(self.answers[c]) for c, names in codes.items())
        return Annotations(*(torch.from_numpy(index.astype(np.int64)) for index in found))

    @cached_property
    def workers(self) -> list[str]:
        """Names of those who answered, sorted."""
        return sorted(set(self.answers["worker"]))

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        return len(self.data.table), len(self.data.table.classes)

    @cached_property
    def ours(self) -> tuple[Labels, Tensor]:
        """The labels of our own run, as it leaves them in ``labels.csv``, and the learner's probabilities (N, K)."""
        path, folder = self.folder / "answers.csv", self.folder / "run"
        write_table(path, self.answers)
        workers = RecordedWorkers(str(path))
        rounds = AnnotationRound(str(folder), workers, threshold=THRESHOLD, import_answers=str(path))
        trainer = pl.Trainer(
            max_epochs=10, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[rounds],
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
        )  # fmt: skip
        trainer.fit(MixMatchModule(), self.data)
        table = pd.read_csv(folder / "labels.csv", dtype={"label": str}, keep_default_na=False)
        label = pd.Index(self.data.table.classes).get_indexer(table["label"])
        return (label, table["confidence"].to_numpy(np.float64)), rounds.predictions(torch.arange(self.shape[0])).exp()


def aggregate(build: Callable[[int], Any]) -> Callable[[Replay], Labels]:
    """A crowd-kit method; ``build`` takes the seed. Items without an answer are class 0 with confidence 1 / K."""

    def run(replay: Replay) -> Labels:
        ids, classes = replay.data.table.ids, list(replay.data.table.classes)
        method = build(replay.data.seed)
        label = method.fit_predict(replay.answers).reindex(ids)
        code = pd.Index(classes).get_indexer(label)
        probability = method.probas_.reindex(index=ids, columns=classes).fillna(0.0).to_numpy(float)
        confidence = probability[np.arange(len(ids)), code.clip(0)]
        return code.clip(0), np.where(code < 0, 1.0 / len(classes), confidence)

    return run


def wawa() -> Any:
    """crowd-kit's Wawa; it asks whether it is fitted, which scikit-learn from 1.6 answers for its own estimators alone."""
    from crowdkit.aggregation import Wawa
    from sklearn.base import BaseEstimator

    return type("Wawa", (Wawa, BaseEstimator), {})()


def top(posterior: Tensor) -> Labels:
    """Most probable label of each row of ``posterior`` (N, K)."""
    confidence, label = posterior.double().max(1)
    return label.numpy(), confidence.numpy()


def em(replay: Replay) -> Labels:
    """Our crowd model with its default settings and a uniform p(y | x)."""
    n, k = replay.shape
    settings, uniform = CrowdSettings(), torch.zeros(n, k).log_softmax(1)
    prior = homogeneous_prior(k, settings.accuracy)
    result = run_tiered_em(replay.annotations, uniform, prior, len(replay.workers), strength=settings.strength)
    return top(write_posterior(result, uniform, n))


def crowdlab(replay: Replay, probability: NDArray[np.float64]) -> Labels:
    """CROWDLAB's consensus and its quality, with ``probability`` (N, K); without an answer the model alone."""
    from cleanlab.multiannotator import get_label_quality_multiannotator

    items, wide = wide_answers(replay.annotations)
    if len(replay.annotations) == len(items):
        raise NotHere("CROWDLAB needs items with two answers")
    label, confidence = probability.argmax(1), probability.max(1)
    found = get_label_quality_multiannotator(
        wide, probability[items], return_detailed_quality=False, return_annotator_stats=False, verbose=False
    )["label_quality"]
    label[items], confidence[items] = found["consensus_label"], found["consensus_quality_score"]
    return label, confidence


def majority_model(replay: Replay) -> NDArray[np.float64]:
    """Out-of-fold probabilities (N, K) of logistic regression on majority votes and prototypes, with our features and folds."""
    from cleanlab.multiannotator import get_majority_vote_label
    from sklearn.linear_model import LogisticRegression

    table = replay.data.table
    x, fold = (t.numpy() for t in replay.data.projected())
    target = table.prototype.numpy().copy()
    items, wide = wide_answers(replay.annotations)
    target[items] = get_majority_vote_label(wide, verbose=False)
    out = np.full(replay.shape, np.nan)
    for f in range(replay.data.n_folds):
        known = (fold != f) & (target >= 0)
        model = LogisticRegression(C=1.0, max_iter=1000).fit(x[known], target[known])
        out[fold == f] = model.predict_proba(x[fold == f])
    return out


def methods() -> dict[str, Callable[[Replay], Labels]]:
    """Everything that is compared, by name, in the order of the table."""
    try:
        import cleanlab  # noqa: F401
        from crowdkit.aggregation import GLAD, MACE, DawidSkene, MajorityVote, OneCoinDawidSkene
    except ImportError as error:
        raise AnnotError(f"{error.name} is not installed; the peers come with: pip install -e '.[peers]'") from error
    return {
        "majority vote": aggregate(lambda seed: MajorityVote()),
        "wawa": aggregate(lambda seed: wawa()),
        "dawid-skene": aggregate(lambda seed: DawidSkene()),
        "one-coin": aggregate(lambda seed: OneCoinDawidSkene()),
        "mace": aggregate(lambda seed: MACE(n_restarts=MACE_RESTARTS, random_state=seed)),
        "glad": aggregate(lambda seed: GLAD(n_iter=GLAD_ITERATIONS)),
        "em": em,
        "crowdlab": lambda replay: crowdlab(replay, majority_model(replay)),
        "ours": lambda replay: replay.ours[0],
        "crowdlab (our probabilities)": lambda replay: crowdlab(replay, replay.ours[1].double().numpy()),
    }


def quietly(method: Callable[[Replay], Labels], replay: Replay) -> Labels:
    """Run ``method`` without what libraries print and warn of on the way."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return method(replay)
