"""How good labels are where the truth is known. Pure functions; for reporting alone, no estimator may call them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_annot.report.reliability import Reliability
from lightning_annot.types import AnnotError

ECE_BINS = 10
TOP = 5
_CHUNK_ELEMENTS = 8_000_000  # rows are gathered this many probabilities at a time: 32 MB, whatever N and K


def reliability(confidence: Tensor, correct: Tensor, bins: int = ECE_BINS) -> Reliability:
    """Accuracy by confidence: ``confidence`` (N,) in [0, 1], ``correct`` (N,) bool.

    Bins are closed on the left, and the last on both sides: a confidence of exactly 1 belongs to the last bin, not to
    one of its own.
    """
    if confidence.shape != correct.shape or confidence.ndim != 1:
        raise AnnotError(
            f"confidence {tuple(confidence.shape)} and correct {tuple(correct.shape)} must be vectors of one length; "
            "pass one confidence and one truth value an item."
        )
    if bins < 1:
        raise AnnotError(f"bins is {bins}; it must be at least 1.")
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype, device=confidence.device)
    index = (torch.bucketize(confidence, edges, right=True) - 1).clamp_(0, bins - 1)
    count = torch.bincount(index, minlength=bins)
    divisor = count.clamp(min=1)
    return Reliability(
        confidence=(torch.bincount(index, confidence.double(), minlength=bins) / divisor).tolist(),
        accuracy=(torch.bincount(index, correct.double(), minlength=bins) / divisor).tolist(),
        count=count.tolist(),
    )


def label_metrics(posterior: Tensor, truth: Tensor, finished: Tensor, keep: Tensor) -> dict[str, float]:
    """Quality of the most probable labels on the kept rows; every value is nan when there is no row to judge.

    Args:
        posterior: (N, K) floating point, rows sum to 1.
        truth: (N,) int64 in [0, K) on the kept rows.
        finished: (N,) bool, items whose label is final.
        keep: (N,) bool, rows that count (prototypes do not).

    Returns:
        ``accuracy``, ``top5_accuracy`` (among min(5, K) classes), ``finished_precision`` (accuracy of finished items)
        and ``ece`` (top label, 10 bins of equal width), all in [0, 1].
    """
    _check(posterior, truth, finished, keep)
    rows = keep.nonzero().squeeze(1)
    truth, finished = truth[rows], finished[rows]
    if bool(((truth < 0) | (truth >= posterior.shape[1])).any()):
        raise AnnotError(
            f"truth has values from {int(truth.min())} to {int(truth.max())}; "
            f"allowed are 0 to {posterior.shape[1] - 1}. Leave items without truth out of `keep`."
        )
    confidence = torch.empty(len(rows), dtype=torch.float32, device=posterior.device)
    correct = torch.empty(len(rows), dtype=torch.bool, device=posterior.device)
    in_top = torch.empty_like(correct)
    for part in _chunks(len(rows), posterior.shape[1]):
        probabilities = posterior[rows[part]].float()
        best, label = probabilities.max(dim=1)
        confidence[part], correct[part] = best, label == truth[part]
        top = probabilities.topk(min(TOP, probabilities.shape[1]), dim=1).indices
        # Ties: the label itself always counts, also where topk orders equal probabilities differently.
        in_top[part] = (top == truth[part, None]).any(dim=1) | correct[part]
    return {
        "accuracy": _mean(correct),
        "top5_accuracy": _mean(in_top),
        "finished_precision": _mean(correct[finished]),
        "ece": reliability(confidence, correct).ece,
    }


def _chunks(n: int, width: int) -> Iterator[slice]:
    step = max(1, _CHUNK_ELEMENTS // max(1, width))
    return (slice(start, start + step) for start in range(0, n, step))


def _mean(values: Tensor) -> float:
    return float(values.double().mean())  # nan when empty


def _check(posterior: Tensor, truth: Tensor, finished: Tensor, keep: Tensor) -> None:
    if posterior.ndim != 2 or not posterior.is_floating_point():
        raise AnnotError(
            f"posterior has shape {tuple(posterior.shape)} and type {posterior.dtype}; pass (N, K) floating point."
        )
    for name, values in (("truth", truth), ("finished", finished), ("keep", keep)):
        if values.shape != posterior.shape[:1]:
            raise AnnotError(f"{name} has shape {tuple(values.shape)}; it must be ({len(posterior)},), one value an item.")
    for name, values in (("finished", finished), ("keep", keep)):
        if values.dtype != torch.bool:
            raise AnnotError(f"{name} has type {values.dtype}; it must be torch.bool.")
