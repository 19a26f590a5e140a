"""The tables that a run leaves: labels, workers, confusions, rounds. Written whole, then put in place at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import beta
from torch import Tensor

from lightning_annot.annotations.formats import write_table
from lightning_annot.crowd.accuracy import Accuracy
from lightning_annot.crowd.em import EMResult
from lightning_annot.crowd.machines import Machine
from lightning_annot.crowd.risk import Decision
from lightning_annot.files import replacing
from lightning_annot.types import Annotations

TOP_CLASSES = 5  # of each item in posterior.npz; what is left is spread over all others, and is next to nothing
DENSE_CONFUSIONS = 1 << 26  # entries; above it confusions.npz keeps the diagonal and the pooled matrix only

ROUND_COLUMNS = (
    "round", "annotations", "annotations_per_item", "paid_per_item", "finished_fraction", "mean_risk", "finished_risk",
    "finished_risk_low", "finished_risk_high", "fresh_answers", "fresh_gain",
    "seconds_train", "seconds_predict", "seconds_infer", "seconds_sample", "seconds_ask", "seconds_wait", "seconds_save",
)  # fmt: skip
PRICE_COLUMNS = ("money",)
TRUTH_COLUMNS = ("accuracy", "top5_accuracy", "finished_precision", "ece", "learner_accuracy")


def label_table(
    ids: Sequence[str],
    classes: Sequence[str],
    decision: Decision,
    finished: Tensor,
    prototype: Tensor,
    n_annotations: Tensor,
) -> pd.DataFrame:
    """Return the table of ``labels.csv``."""
    n = len(ids)
    status = np.where(prototype.numpy() >= 0, "prototype", np.where(finished[:n].numpy(), "finished", "unfinished"))
    return pd.DataFrame(
        {
            "task": list(ids),
            "label": np.asarray(classes, dtype=object)[decision.label[:n].numpy()],
            "confidence": decision.confidence[:n].double().numpy().round(6),
            "risk": decision.risk[:n].double().numpy().round(6),
            "n_annotations": n_annotations.numpy(),
            "status": status,
        }
    )


def worker_table(
    names: Sequence[str], answers: Annotations, accuracy: Accuracy, result: EMResult, class_share: Tensor
) -> pd.DataFrame:
    """Accuracy of each worker among ``answers`` with a central 90% interval.

    A worker without any has what the fit expects: sum_y pi_y w_j[y, y] with ``class_share`` pi (K,), and the interval of a beta
    distribution with the mean and variance that the Dirichlet posteriors of the rows give.
    """
    n_annotations = torch.bincount(answers.worker, minlength=len(names)).numpy()
    expected = _accuracy(result.row_totals(), result.diagonal(), class_share)
    told = {"accuracy_mean": accuracy.mean, "accuracy_low": accuracy.low, "accuracy_high": accuracy.high}
    columns = {name: np.where(n_annotations > 0, told[name], expected[name]) for name in told}
    return pd.DataFrame({"worker": list(names), "n_annotations": n_annotations} | columns).round(6)


def machine_table(machines: Sequence[Machine], weights: Tensor, class_share: Tensor) -> pd.DataFrame:
    """Weight of each machine worker, and how often it sees the right class, by its confusion and ``class_share`` pi (K,).

    ``weights`` (1 + M,): the learner's first. The interval is that of a beta distribution with the mean and variance that the
    Dirichlet posteriors of the confusion's rows give, as if the labels that it was learned from were certain.
    """
    given = {"machine": [machine.name for machine in machines], "weight": weights[1:].numpy()}
    counts = torch.stack([machine.counts for machine in machines])
    confusion = torch.stack([machine.confusion for machine in machines])
    return pd.DataFrame(given | _accuracy(counts.sum(2), confusion.diagonal(dim1=1, dim2=2), class_share)).round(6)


def _accuracy(total: Tensor, diagonal: Tensor, class_share: Tensor) -> dict[str, np.ndarray]:
    """Columns of (n,) workers with ``diagonal`` (n, K) confusions whose rows were learned from ``total`` (n, K) answers."""
    total, diagonal, pi = total.double(), diagonal.double(), class_share.double()
    mean = diagonal @ pi
    variance = (diagonal * (1 - diagonal) / (total + 1)) @ pi.square()
    size = (mean * (1 - mean) / variance.clamp(min=1e-12) - 1).clamp(min=1e-3)
    a, b = (mean * size).numpy(), ((1 - mean) * size).numpy()
    return {"accuracy_mean": mean.numpy(), "accuracy_low": beta.ppf(0.05, a, b), "accuracy_high": beta.ppf(0.95, a, b)}


def write_confusions(
    path: Path, names: Sequence[str], classes: Sequence[str], result: EMResult, machines: Sequence[Machine] = ()
) -> None:
    """``confusions.npz``: ``workers``, ``classes``, ``pooled`` (K, K), ``diagonal`` (W, K), ``confusions`` if they fit.

    Where there are machine workers, their names are ``machines`` (M,), and their confusions ``machine_confusions`` (M, K, K).
    """
    arrays = {
        "workers": np.asarray(names, dtype=str),
        "classes": np.asarray(classes, dtype=str),
        "pooled": result.pooled_confusion().numpy(),
        "diagonal": result.diagonal()[: len(names)].numpy(),
    }
    if len(names) * len(classes) ** 2 <= DENSE_CONFUSIONS:
        arrays["confusions"] = result.confusions()[: len(names)].numpy()
    if machines:
        arrays["machines"] = np.asarray([machine.name for machine in machines], dtype=str)
        arrays["machine_confusions"] = torch.stack([machine.confusion for machine in machines]).numpy()
    with replacing(path) as draft:
        np.savez(draft, **arrays)  # type: ignore[arg-type]


def write_posterior(path: Path, classes: Sequence[str], posterior: Tensor, chunk: int = 1 << 13) -> None:
    """``posterior.npz``: what is believed of each item, rows as in ``labels.csv``.

    ``posterior`` (N, K). Of its T = min(K, 5) most probable classes the file has ``label`` (N, T), most probable first, as
    indices into ``classes`` (K,), and ``probability`` (N, T) float16.
    """
    most = min(TOP_CLASSES, len(classes))
    top = [part.float().topk(most) for part in torch.split(posterior, chunk)]
    with replacing(path) as draft:
        np.savez(
            draft,
            classes=np.asarray(classes, dtype=str),
            label=torch.cat([part.indices for part in top]).numpy().astype(np.min_scalar_type(len(classes) - 1)),
            probability=torch.cat([part.values for part in top]).numpy().astype(np.float16),
        )


def write_rounds(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """``rounds.csv``: one row a round; columns that need prices or the truth are there only where these are known."""
    known = {name for row in rows for name in row}
    columns = [c for c in (*ROUND_COLUMNS, *PRICE_COLUMNS, *TRUTH_COLUMNS) if c in known]
    write_table(path, pd.DataFrame(list(rows), columns=columns))


def class_share(posterior: Tensor, chunk: int = 1 << 13) -> Tensor:
    """Mean posterior (K,), summed in double precision; in chunks, since that would be another and larger (N, K)."""
    total = torch.zeros(posterior.shape[1], dtype=torch.float64)
    for part in torch.split(posterior, chunk):
        total += part.sum(0, dtype=torch.float64)
    return (total / len(posterior)).float()
