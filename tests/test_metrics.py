from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from lightning_annot.report import metrics
from lightning_annot.report.metrics import label_metrics, reliability
from lightning_annot.types import AnnotError


def example(n: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    posterior = (2 * torch.randn(n, k, generator=generator)).softmax(dim=1)
    truth = torch.multinomial(posterior, 1, generator=generator).squeeze(1)
    finished = posterior.amax(dim=1) > 0.6
    keep = torch.rand(n, generator=generator) < 0.8
    return posterior, truth, finished, keep


@pytest.mark.parametrize("k", [2, 4, 10])
@pytest.mark.parametrize("chunk", [7, 8_000_000])
def test_equals_torchmetrics(k: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_CHUNK_ELEMENTS", chunk)
    posterior, truth, finished, keep = example(300, k)
    got = label_metrics(posterior, truth, finished, keep)
    p, t, f = posterior[keep], truth[keep], finished[keep]
    accuracy = multiclass_accuracy(p, t, k, average="micro")
    top5 = multiclass_accuracy(p, t, k, average="micro", top_k=min(5, k))
    precision = multiclass_accuracy(p[f], t[f], k, average="micro")
    ece = multiclass_calibration_error(p, t, k, n_bins=10, norm="l1")
    assert got["accuracy"] == pytest.approx(float(accuracy), abs=1e-6)
    assert got["top5_accuracy"] == pytest.approx(float(top5), abs=1e-6)
    assert got["finished_precision"] == pytest.approx(float(precision), abs=1e-6)
    assert got["ece"] == pytest.approx(float(ece), abs=1e-6)


def test_nothing_finished_and_nothing_kept() -> None:
    posterior, truth, finished, keep = example(20, 3)
    got = label_metrics(posterior, truth, torch.zeros_like(finished), keep)
    assert math.isnan(got["finished_precision"])
    assert not math.isnan(got["accuracy"])
    assert all(math.isnan(v) for v in label_metrics(posterior, truth, finished, torch.zeros_like(keep)).values())


def test_unkept_truth_is_not_looked_at() -> None:
    posterior, truth, finished, keep = example(50, 4)
    unknown = torch.where(keep, truth, -1)
    assert label_metrics(posterior, unknown, finished, keep) == label_metrics(posterior, truth, finished, keep)
    with pytest.raises(AnnotError, match="allowed are 0 to 3"):
        label_metrics(posterior, unknown, finished, torch.ones_like(keep))


def test_top5_never_below_accuracy_with_ties() -> None:
    posterior = torch.full((8, 8), 1 / 8)
    truth = torch.arange(8)
    got = label_metrics(posterior, truth, torch.ones(8, dtype=torch.bool), torch.ones(8, dtype=torch.bool))
    assert got["top5_accuracy"] >= got["accuracy"] == 1 / 8


def test_certain_labels_share_the_last_bin() -> None:
    table = reliability(torch.tensor([1.0, 0.95]), torch.tensor([True, False]))
    assert table.count == [0] * 9 + [2]
    assert table.ece == pytest.approx(0.475)
    assert math.isnan(reliability(torch.empty(0), torch.empty(0, dtype=torch.bool)).ece)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=40), st.integers(1, 12))
def test_reliability_equals_a_loop(pairs: list[tuple[float, bool]], bins: int) -> None:
    confidence = torch.tensor([c for c, _ in pairs])
    correct = torch.tensor([c for _, c in pairs])
    edges = torch.linspace(0, 1, bins + 1)
    slow = 0.0
    for b in range(bins):
        inside = (confidence >= edges[b]) & ((confidence < edges[b + 1]) | (b == bins - 1))
        if inside.any():
            gap = confidence[inside].double().mean() - correct[inside].double().mean()
            slow += float(inside.double().mean() * gap.abs())
    table = reliability(confidence, correct, bins)
    assert sum(table.count) == len(pairs)
    assert table.ece == pytest.approx(slow, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("posterior", torch.zeros(20)),
        ("truth", torch.zeros(3, dtype=torch.int64)),
        ("finished", torch.zeros(20)),
        ("keep", torch.zeros(19, dtype=torch.bool)),
    ],
)
def test_wrong_shapes_and_types_are_named(name: str, value: Tensor) -> None:
    arguments = dict(zip(("posterior", "truth", "finished", "keep"), example(20, 3), strict=True)) | {name: value}
    with pytest.raises(AnnotError, match=name):
        label_metrics(**arguments)
