"""Data that has little or nothing to tell: a clear end, finite numbers, no division by zero."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import QUIET, call

from lightning_annot.crowd.em import PLAIN, run_em, write_posterior
from lightning_annot.crowd.spam import judge_workers
from lightning_annot.crowd.tiers import run_tiered_em
from lightning_annot.data.features import load_features
from lightning_annot.data.projection import ProjectionSettings, fit_projection
from lightning_annot.data.scaling import Scale
from lightning_annot.data.view import FeatureView
from lightning_annot.sampling.assignment import assign
from lightning_annot.types import Annotations, AnnotError

WORKERS = {"annotation.workers": "lightning_annot.workers.simulated.StructuredWorkers", "annotation.workers.n_workers": 5}
LITTLE = {"trainer.max_epochs": 2, "data.batches.size": 16, "data.batches.steps": 3, "annotation.sampling.per_round": 4}
SIX = {"data.projection.neighbours": 0}

Rows = Callable[[int], np.ndarray]


def clouds(n: int) -> np.ndarray:
    """Rows of two classes in turn, far apart."""
    noise = np.random.default_rng(0).normal(size=(n, 4))
    return (noise + 3 * (np.arange(n) % 2)[:, None]).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """``n`` rows of features, how many items have a known class, and settings; ``refused``: the words of the refusal."""

    n: int = 20
    rows: Rows = clouds
    prototypes: int | None = 4
    more: dict[str, Any] = field(default_factory=dict)
    classes: int = 2
    refused: str | None = None
    slow: bool = False


CASES = {
    "all_prototypes": Case(prototypes=20, slow=True),  # the default run has it below
    "one_left": Case(prototypes=19),
    "constant": Case(rows=lambda n: np.full((n, 4), 0.3, np.float32)),
    "tiny": Case(rows=lambda n: clouds(n) * np.float32(1e-30), slow=True),
    "six_items": Case(6, more={**SIX, "annotation.sampling.per_round": 1000, "data.folds": 9}),
    "no_item_of_a_class": Case(prototypes=None, classes=3),
    "huge": Case(rows=lambda n: clouds(n) * np.float32(1e30), refused="e+30; 1e+15 is the most"),
    "not_a_number": Case(rows=lambda n: np.full((n, 4), np.nan, np.float32), refused="has NaN or inf in 20 of 20 rows"),
    "one_item": Case(1, prototypes=None, refused="projection.neighbours 5 given, of 1 items; it must be at most 0"),
    "one_class": Case(classes=1, refused="a task needs at least 2"),
    "all_prototypes_held_out": Case(prototypes=20, more={"data.holdout": "prototypes"}, slow=True),
    "all_prototypes_mixed": Case(prototypes=20, more={"data.batches.objective": "mixmatch"}, slow=True),
    "zero": Case(rows=lambda n: np.zeros((n, 4), np.float16), slow=True),
    "constant_under_a_kernel": Case(rows=lambda n: np.ones((n, 4), np.float32), more={"data.projection.kernel": 8}, slow=True),
    "small_differences": Case(rows=lambda n: clouds(n) * np.float32(1e-3) + np.float32(1e6), slow=True),
    "one_feature": Case(rows=lambda n: clouds(n)[:, :1], slow=True),
    "repeated": Case(rows=lambda n: clouds(2)[np.arange(n) % 2], slow=True),
    "largest_half": Case(rows=lambda n: (np.sign(clouds(n)) * 65504).astype(np.float16), slow=True),
    "smallest_half": Case(rows=lambda n: (np.sign(clouds(n)) * 6e-8).astype(np.float16), slow=True),
    "as_they_are": Case(rows=lambda n: clouds(n) * np.float32(1e14), more={"data.projection.scale": "none"}, slow=True),
    "tiny_as_they_are": Case(rows=lambda n: clouds(n) * np.float32(1e-30), more={"data.projection.scale": "none"}, slow=True),
    "three_items": Case(3, prototypes=2, more=SIX, slow=True),
    "two_items": Case(2, prototypes=None, more=SIX, slow=True),
    "more_landmarks_than_items": Case(more={"data.projection.kernel": 500}, slow=True),
    "more_folds_than_items": Case(more={"data.folds": 50}, slow=True),
    "one_worker": Case(more={"annotation.workers.n_workers": 1}, slow=True),
    "a_class_an_item": Case(classes=20, prototypes=None, slow=True),
}


def settings(folder: Path, case: Case) -> dict[str, Any]:
    """Files of the case, and the settings of a small ``fit`` over them."""
    features = case.rows(case.n)
    np.save(folder / "features.npy", features)
    n_used = 1 if case.classes == 3 else case.classes  # of three classes one has all the items
    labels = pd.DataFrame({"task": [f"i{i:02}" for i in range(case.n)], "label": [f"c{i % n_used}" for i in range(case.n)]})
    labels.to_csv(folder / "labels.csv", index=False)
    labels.head(case.prototypes or 0).to_csv(folder / "prototypes.csv", index=False)
    known = {"data.prototypes_per_class": 0} if case.prototypes is None else {"data.prototypes": folder / "prototypes.csv"}
    return {
        **QUIET, **LITTLE, **WORKERS, **known, "data.features": folder / "features.npy", "data.labels": folder / "labels.csv",
        "data.classes": str([f"c{k}" for k in range(case.classes)]).replace("'", ""), "annotation.output_dir": folder / "run",
        **case.more,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if case.slow else name for name, case in CASES.items()]
)
def test_fit_ends_clearly(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    result = call("fit", settings(tmp_path, case))
    if case.refused is not None:
        assert result.status == 2
        assert case.refused in result.err
        assert not (tmp_path / "run" / "labels.csv").exists()
        return
    assert result.status == 0, result.err
    labels = pd.read_csv(tmp_path / "run" / "labels.csv")
    assert len(labels) == case.n
    assert np.isfinite(labels[["confidence", "risk"]].to_numpy()).all()
    assert labels["confidence"].between(0, 1).all()
    assert "nan" not in result.out.lower()
    assert "NaN" not in (tmp_path / "run" / "summary.json").read_text()


def test_with_nothing_left_to_label_every_command_has_a_clear_end(tmp_path: Path) -> None:
    given = settings(tmp_path, CASES["all_prototypes"])
    shown = call("fit", given)
    assert shown.status == 0, shown.err
    run, table = tmp_path / "run", tmp_path / "out.csv"
    assert "nothing left to label" in shown.out
    assert json.loads((run / "summary.json").read_text())["stop_reason"] == "nothing left to label: every item is a prototype"
    labels = pd.read_csv(run / "labels.csv")
    assert set(labels["status"]) == {"prototype"}
    assert labels["label"].tolist() == pd.read_csv(tmp_path / "labels.csv")["label"].tolist()
    assert call("fit", given).status == 0  # once more changes nothing
    assert pd.read_csv(run / "labels.csv").equals(labels)
    assert call("validate", given).status == 0
    assert "items that are no prototypes" in call("test", given).err
    assert call("predict", given).status == 0
    for words in (
        ("report", run),
        ("scorecards", run),
        ("unfinished", run, table),
        ("export", run, table, "--format", "labels-csv"),
    ):
        done = call(words[0], {}, *map(str, words[1:]))
        assert done.status == 0, (words, done.err)
        assert "nan" not in done.out.lower()
    certified = call("certify", {}, str(run), "--draw", "3", "--out", str(table))
    assert (certified.status, "nothing to certify" in certified.err) == (2, True)


def test_where_nothing_is_finished_test_shows_no_figure_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = settings(tmp_path, CASES["constant"]) | {"annotation.threshold": 1e-9}
    assert call("fit", given).status == 0
    assert "no feature differs between the items" in caplog.text
    shown = call("test", given)
    assert shown.status == 0, shown.err
    assert "label_accuracy" in shown.out
    assert "nan" not in shown.out.lower()


ONE = Annotations(torch.tensor([0]), torch.tensor([0]), torch.tensor([1]))
NONE = Annotations(*(torch.empty(0, dtype=torch.int64),) * 3)
COUNTS = torch.ones(3, 3) + 5 * torch.eye(3)


@pytest.mark.parametrize("value", [float("-inf"), float("nan"), float("inf")])
@pytest.mark.parametrize("row", [0, 3])
def test_a_prior_that_leaves_no_class_is_refused_by_its_row(value: float, row: int) -> None:
    prior = torch.full((5, 3), 1 / 3).log()
    prior[row] = value
    with pytest.raises(AnnotError, match=rf"such as row {row}: \[{value}, {value}, {value}\]"):
        write_posterior(run_em(ONE, prior, COUNTS, 1), prior, 5)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_pseudo_counts_of_no_use_are_refused_by_their_row(value: float) -> None:
    counts = COUNTS.clone()
    counts[2] = value
    with pytest.raises(AnnotError, match=rf"row \[2\] as \[{value}, {value}, {value}\]"):
        run_em(ONE, torch.zeros(5, 3), counts, 1)


def test_one_possible_class_and_a_single_class_are_no_fault() -> None:
    prior = torch.full((5, 3), 1 / 3).log()
    prior[0] = torch.tensor([float("-inf"), float("-inf"), 0.0])
    assert write_posterior(run_em(ONE, prior, COUNTS, 1), prior, 5)[0].tolist() == [0, 0, 1]
    single = Annotations(ONE.item, ONE.worker, torch.zeros(1, dtype=torch.int64))
    fitted = run_tiered_em(single, torch.zeros(5, 1), torch.ones(1, 1), 1)
    assert write_posterior(fitted, torch.zeros(5, 1), 5).tolist() == [[1]] * 5


@pytest.mark.parametrize("n_workers", [0, 3])
def test_no_answers_at_all(n_workers: int) -> None:
    prior = torch.full((5, 3), 1 / 3).log()
    for fitted in (run_em(NONE, prior, COUNTS, n_workers), run_tiered_em(NONE, prior, COUNTS, n_workers)):
        assert torch.allclose(write_posterior(fitted, prior, 5), prior.exp())
        judged = judge_workers(NONE, prior.exp(), fitted, PLAIN, torch.ones(n_workers, dtype=torch.bool))
        assert judged.spammer.tolist() == [False] * n_workers


def test_nobody_to_ask() -> None:
    nobody = torch.zeros(3, 0, dtype=torch.bool)
    items, workers = assign(torch.arange(3), nobody, torch.zeros(0, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert len(items) == len(workers) == 0


@pytest.mark.parametrize("kernel", [0, 8])
@pytest.mark.parametrize("scale", ["auto", "standard", "raw", "unit", "none"])
@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-30, 1e-9, 1.0, 1e9])
def test_projections_are_finite_at_every_size(size: float, scale: Scale, kernel: int) -> None:
    bank = clouds(20) * np.float32(size)
    chosen = ProjectionSettings(dim=2, kernel=kernel, scale=scale, neighbours=3)
    view = FeatureView([bank], [], None, chosen, 0)
    assert bool(view.rows.isfinite().all())
    assert view.curvatures[0] > 0
    if scale != "none" and size >= 1e-30:
        assert float(view.rows[:, : view.rows.shape[1] // 2].square().sum(1).mean()) == pytest.approx(1.0, rel=1e-3)


def test_small_values_are_seen_as_larger_ones_are() -> None:
    chosen = ProjectionSettings(dim=None, neighbours=0)
    large, small = (
        fit_projection(clouds(20) * np.float32(s), chosen, 0).apply(clouds(20) * np.float32(s)) for s in (1, 2**-90)
    )
    assert torch.allclose(large, small, rtol=1e-4)


def test_values_whose_squares_overflow_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.array([[1e15, -1.0]], np.float32))
    assert load_features(tmp_path / "f.npy").shape == (1, 2)
    np.save(tmp_path / "f.npy", np.array([[1.0, -2e15]], np.float32))
    with pytest.raises(AnnotError, match=r"values up to 2e\+15; 1e\+15 is the most"):
        load_features(tmp_path / "f.npy")
