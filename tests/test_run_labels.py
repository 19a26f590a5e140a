"""Soft labels of a run, from its folder or from a CSV."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_annot.data.run_labels import class_factors, read_run_labels, soft_targets
from lightning_annot.report.tables import write_posterior
from lightning_annot.types import AnnotError

CLASSES = ["cow", "ant", "bee"]
POSTERIOR = torch.tensor([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.125, 0.25, 0.625]])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three items, the second of them a prototype."""
    table = {
        "task": ["007", "a.jpg", "NA"],
        "label": ["cow", "ant", "bee"],
        "confidence": [0.5, 1.0, 0.625],
        "status": ["unfinished", "prototype", "finished"],
    }
    pd.DataFrame(table).to_csv(tmp_path / "labels.csv", index=False)
    write_posterior(tmp_path / "posterior.npz", CLASSES, POSTERIOR)
    return tmp_path


def dense(path: Path, classes: list[str] | None = None) -> np.ndarray:
    known = read_run_labels(path, classes)
    return soft_targets(known.top, known.probability, len(known.classes)).numpy()


def test_a_folder_has_the_posterior(run: Path) -> None:
    known = read_run_labels(run)
    assert known.ids == ("007", "a.jpg", "NA")
    assert known.classes == tuple(CLASSES)
    assert known.label.tolist() == [0, 1, 2]
    assert known.prototype.tolist() == [False, True, False]
    assert known.finished.tolist() == [False, False, True]
    np.testing.assert_allclose(dense(run), POSTERIOR.numpy(), atol=1e-3)


def test_classes_may_be_in_another_order_and_more(run: Path) -> None:
    classes = ["ant", "bee", "cow", "dog"]
    wanted = np.zeros((3, 4))
    wanted[:, [2, 0, 1]] = POSTERIOR.numpy()
    np.testing.assert_allclose(dense(run, classes), wanted, atol=1e-3)
    assert read_run_labels(run, classes).label.tolist() == [2, 0, 1]


def test_without_a_posterior_the_confidence_is_that_of_the_label(run: Path) -> None:
    (run / "posterior.npz").unlink()
    assert read_run_labels(run).classes == ("ant", "bee", "cow")
    np.testing.assert_allclose(dense(run), [[0.25, 0.25, 0.5], [1, 0, 0], [0.1875, 0.625, 0.1875]], atol=1e-6)


def test_any_table_will_do(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("task,label\n1,x\n2,y\n")
    known = read_run_labels(tmp_path / "mine.csv")
    assert known.confidence.tolist() == [1.0, 1.0]
    assert not known.prototype.any()
    assert dense(tmp_path / "mine.csv").tolist() == [[1, 0], [0, 1]]


@settings(deadline=None)
@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 2**16))
def test_targets_are_distributions(k: int, most: int, seed: int) -> None:
    posterior = torch.rand(6, k, generator=torch.Generator().manual_seed(seed)).pow(3) + 1e-3
    posterior /= posterior.sum(1, keepdim=True)
    known = posterior.topk(min(most, k))
    target = soft_targets(known.indices, known.values, k)
    torch.testing.assert_close(target.sum(1), torch.ones(6))
    for row, top, values in zip(target, known.indices, known.values, strict=True):  # the slow way
        others = [c for c in range(k) if c not in top.tolist()]
        torch.testing.assert_close(row[top], values, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(row[others], torch.full((len(others),), float(1 - values.sum()) / max(1, len(others))))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_classes_are_balanced(power: float) -> None:
    label, weight = torch.tensor([0] * 90 + [1] * 10)[:, None], torch.rand(100, generator=torch.Generator().manual_seed(0))
    factor = class_factors(label, torch.ones(100, 1), weight, 2, power)
    before = torch.stack([weight[label[:, 0] == c].sum() for c in range(2)])
    torch.testing.assert_close(factor * before / (factor[0] * before[0]), (before / before[0]) ** (1 - power))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("task,label\n", "has no rows"),
        ("task\n1\n", "without \\['label'\\]"),
        ("task,label\n1,x\n1,y\n", "label a task that has another label above"),
        ("task,label\n1,x\n2,\n", "line 3.*fill them"),
        ("task,label\n1,x\n2,x\n", "at least 2"),
        ("task,label,confidence\n1,x,0.5\n2,y,7\n", "line 3: '7'.*correct"),
        ("task,label,confidence\n1,x,0.5\n2,y,\n", "no confidence"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, table: str, words: str) -> None:
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(AnnotError, match=words):
        read_run_labels(tmp_path)


def test_what_does_not_fit_is_refused(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(AnnotError, match=r"no labels\.csv"):
        read_run_labels(empty)
    with pytest.raises(AnnotError, match="does not exist"):
        read_run_labels(empty / "nothing.csv")
    with pytest.raises(AnnotError, match="outside the classes"):
        read_run_labels(run, ["ant", "bee"])
    with pytest.raises(AnnotError, match="twice"):
        read_run_labels(run, [*CLASSES, "ant"])
    write_posterior(run / "posterior.npz", CLASSES, POSTERIOR[:2])
    with pytest.raises(AnnotError, match=r"2 rows.*different runs"):
        read_run_labels(run)
    write_posterior(run / "posterior.npz", ["ant", "bee", "cow", "dog"], torch.eye(4)[:3])
    with pytest.raises(AnnotError, match=r"knows the classes"):
        read_run_labels(run, ["ant", "bee", "cow"])
    (run / "posterior.npz").write_bytes(b"PK")
    with pytest.raises(AnnotError, match=r"posterior\.npz is damaged .*remove it, and labels\.csv will do"):
        read_run_labels(run)
