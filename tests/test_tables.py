from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import beta

from lightning_annot.annotations.formats import write_table
from lightning_annot.crowd.accuracy import Accuracy
from lightning_annot.crowd.em import EMResult, run_em
from lightning_annot.crowd.machines import Machine
from lightning_annot.crowd.priors import homogeneous_prior
from lightning_annot.crowd.risk import Decision
from lightning_annot.report import tables
from lightning_annot.report.tables import (
    ROUND_COLUMNS,
    TRUTH_COLUMNS,
    class_share,
    label_table,
    machine_table,
    worker_table,
    write_confusions,
    write_posterior,
    write_rounds,
)
from lightning_annot.types import Annotations

NAMES = ["ann", "bob", "eve"]
K = 3


def fitted() -> EMResult:
    generator = torch.Generator().manual_seed(0)
    item = torch.arange(120) % 40
    worker, label = torch.arange(120) // 40, torch.randint(0, K, (120,), generator=generator)
    label[:60] = item[:60] % K
    annotations = Annotations(item, worker, label)
    prior = torch.randn(40, K, generator=generator).log_softmax(1).double()
    return run_em(annotations, prior, homogeneous_prior(K, dtype=torch.float64), len(NAMES))


def test_labels(tmp_path: Path) -> None:
    decision = Decision(torch.tensor([1, 0, 1, 0]), torch.tensor([0.05, 0.4, 0.0, 0.2]), torch.tensor([0.95, 0.6, 1.0, 0.8]))
    path = tmp_path / "labels.csv"
    finished, prototype = torch.tensor([True, False, True, True]), torch.tensor([-1, -1, 1])
    n = torch.tensor([2, 0, 1])
    write_table(path, label_table(["007", "x,y", "é"], ["cat", "dog"], decision, finished, prototype, n))
    frame = pd.read_csv(path, dtype={"task": str})
    assert list(frame) == ["task", "label", "confidence", "risk", "n_annotations", "status"]
    assert frame.to_numpy().tolist() == [
        ["007", "dog", 0.95, 0.05, 2, "finished"],
        ["x,y", "cat", 0.6, 0.4, 0, "unfinished"],
        ["é", "dog", 1.0, 0.0, 1, "prototype"],  # the fourth row is an extra one and no item
    ]


def test_posterior_has_the_most_probable_classes(tmp_path: Path) -> None:
    posterior = torch.rand(50, 300, generator=torch.Generator().manual_seed(0)).pow(4)
    posterior /= posterior.sum(1, keepdim=True)
    path, classes = tmp_path / "posterior.npz", [f"c{k}" for k in range(300)]
    write_posterior(path, classes, posterior, chunk=7)
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["classes"].tolist() == classes
        assert arrays["label"].dtype == np.uint16
        for row, label, probability in zip(posterior.numpy(), arrays["label"], arrays["probability"], strict=True):
            assert label.tolist() == np.argsort(-row)[:5].tolist()
            np.testing.assert_array_equal(probability, np.sort(row)[::-1][:5].astype(np.float16))
    assert [file.name for file in tmp_path.iterdir()] == ["posterior.npz"]


def machine(confusion: np.ndarray, answers: float) -> Machine:
    """A machine whose ``confusion`` (K, K) was learned from so many ``answers`` a row."""
    return Machine("clip", torch.zeros(1, K).log_softmax(1).__getitem__, torch.from_numpy(answers * confusion).float())


def test_machine_interval_is_exact_for_one_class() -> None:
    """With all weight on class 0 accuracy is one entry of a Dirichlet row, which is beta distributed."""
    confusion = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    frame = machine_table([machine(confusion, 40.0)], torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0, 0.0]))
    assert list(frame) == ["machine", "weight", "accuracy_mean", "accuracy_low", "accuracy_high"]
    assert frame["accuracy_mean"][0] == pytest.approx(0.7)
    assert frame["accuracy_low"][0] == pytest.approx(beta.ppf(0.05, 28.0, 12.0), abs=1e-5)
    assert frame["accuracy_high"][0] == pytest.approx(beta.ppf(0.95, 28.0, 12.0), abs=1e-5)


def test_machine_interval_agrees_with_draws_of_whole_confusions() -> None:
    share, rng = torch.tensor([0.5, 0.3, 0.2]), np.random.default_rng(0)
    confusion = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    frame = machine_table([machine(confusion, 40.0)], torch.tensor([0.5, 0.5]), share)
    draws = sum(float(share[y]) * rng.dirichlet(40.0 * confusion[y], 20_000)[:, y] for y in range(K))
    assert frame["accuracy_mean"][0] == pytest.approx(np.mean(draws), abs=0.005)
    assert frame["accuracy_low"][0] == pytest.approx(np.quantile(draws, 0.05), abs=0.015)
    assert frame["accuracy_high"][0] == pytest.approx(np.quantile(draws, 0.95), abs=0.015)


def test_workers_have_their_accuracy_or_what_the_fit_expects() -> None:
    """The last worker has answered nothing but gold."""
    result, third = fitted(), np.array([0.8, 0.6, np.nan])
    accuracy = Accuracy(third, third - 0.1, third + 0.1)
    answers = Annotations(torch.arange(3), torch.tensor([0, 1, 0]), torch.tensor([0, 1, 2]))
    frame = worker_table(NAMES, answers, accuracy, result, torch.tensor([1.0, 0.0, 0.0]))
    assert list(frame) == ["worker", "n_annotations", "accuracy_mean", "accuracy_low", "accuracy_high"]
    assert frame["worker"].tolist() == NAMES
    assert frame["n_annotations"].tolist() == [2, 1, 0]
    assert frame["accuracy_mean"].tolist() == pytest.approx([0.8, 0.6, float(result.diagonal()[2, 0])], abs=1e-6)
    assert frame["accuracy_low"][:2].tolist() == pytest.approx([0.7, 0.5])
    assert frame["accuracy_low"][2] < frame["accuracy_mean"][2] < frame["accuracy_high"][2]


@pytest.mark.parametrize("dense", [True, False])
def test_confusions(dense: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not dense:
        monkeypatch.setattr(tables, "DENSE_CONFUSIONS", len(NAMES) * K * K - 1)
    result, path = fitted(), tmp_path / "confusions.npz"
    write_confusions(path, NAMES, ["a", "b", "c"], result)
    with np.load(path, allow_pickle=False) as found:
        assert found["workers"].tolist() == NAMES
        assert found["classes"].tolist() == ["a", "b", "c"]
        np.testing.assert_array_equal(found["pooled"], result.pooled_confusion().numpy())
        np.testing.assert_array_equal(found["diagonal"], result.diagonal().numpy())
        assert ("confusions" in found) == dense
        if dense:
            np.testing.assert_array_equal(found["confusions"], result.confusions().numpy())
    assert [file.name for file in tmp_path.iterdir()] == ["confusions.npz"]


@pytest.mark.parametrize("truth", [True, False])
def test_rounds(truth: bool, tmp_path: Path) -> None:
    columns = [*TRUTH_COLUMNS, *ROUND_COLUMNS] if truth else [*ROUND_COLUMNS]
    rows = [{name: float(i + 100 * r) for i, name in enumerate(columns)} for r in range(3)]
    write_rounds(tmp_path / "rounds.csv", rows)
    frame = pd.read_csv(tmp_path / "rounds.csv")
    assert list(frame) == [*ROUND_COLUMNS, *(TRUTH_COLUMNS if truth else ())]
    assert frame.to_dict("records") == [pytest.approx(row) for row in rows]


def test_class_share() -> None:
    posterior = torch.randn(1000, K, generator=torch.Generator().manual_seed(0)).softmax(1)
    torch.testing.assert_close(class_share(posterior), posterior.mean(0))
