"""Features with the mean of their neighbours: against a loop, in a checkpoint, and through the command line."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import Bank, assert_equal_runs, call, checkpoint, fit, rounds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_annot.data import graph
from lightning_annot.data.graph import NeighbourMean
from lightning_annot.data.projection import Projection, ProjectionSettings, fit_projection
from lightning_annot.types import AnnotError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_mean(row: Tensor, reference: Tensor, k: int) -> Tensor:
    """The mean of the ``k`` rows with the largest cosine that are not ``row`` itself."""
    found = []
    for other in reference:
        if not torch.allclose(other, row, atol=1e-2):
            found.append((float(other @ row / other.norm() / row.norm()), other))
    found.sort(key=lambda pair: -pair[0])
    return torch.stack([other for _, other in found[:k]]).mean(0)


@given(seed=st.integers(0, 999), k=st.integers(1, 8), half=st.booleans())
@settings(max_examples=25, deadline=None)
def test_mean_of_neighbours_equals_a_loop(seed: int, k: int, half: bool) -> None:
    rows = torch.randn(30, 5, generator=seeded(seed))
    reference = rows[:20].half() if half else rows[:20]  # the first 20 are among the references, the others are not
    want = torch.stack([slow_mean(row, reference.float(), k) for row in rows])
    torch.testing.assert_close(NeighbourMean(reference, k)(rows), want)


def test_order_of_the_references_does_not_matter() -> None:
    rows, reference = torch.randn(40, 6, generator=seeded(0)), torch.randn(50, 6, generator=seeded(1))
    shuffled = reference[torch.randperm(50, generator=seeded(2))]
    torch.testing.assert_close(NeighbourMean(reference, 4)(rows), NeighbourMean(shuffled, 4)(rows))


def test_a_row_is_treated_as_if_it_were_no_reference() -> None:
    rows = torch.randn(20, 6, generator=seeded(0))
    without = torch.cat([NeighbourMean(torch.cat([rows[:i], rows[i + 1 :]]), 3)(rows[i : i + 1]) for i in range(20)])
    torch.testing.assert_close(NeighbourMean(rows, 3)(rows), without)


def test_long_searches_are_announced(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    near = NeighbourMean(torch.randn(10, 3), 2)
    with caplog.at_level(logging.WARNING):
        near.announce(1000)
        assert not caplog.records
        monkeypatch.setattr(graph, "LONG", 5000)
        near.announce(1000)
    assert "looking for 2 neighbours of 1000 rows among 10" in caplog.text


def bank(n: int = 90, d: int = 7) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, d)).astype(np.float16)


@pytest.mark.parametrize("chosen", [{"dim": 4}, {"dim": None, "scale": "none"}, {"dim": 3, "kernel": 12}])
def test_projection_appends_the_weighted_mean(chosen: dict[str, int]) -> None:
    features = bank()
    plain = fit_projection(features, ProjectionSettings(**chosen, neighbours=0), seed=1).apply(features)  # type: ignore[arg-type]
    options = ProjectionSettings(**chosen, neighbours=3, neighbour_weight=0.5)  # type: ignore[arg-type]
    fitted = fit_projection(features, options, seed=1)
    got = fitted.apply(features, chunk=16)
    assert got.shape[1] == fitted.n_outputs == options.width(*features.shape) == 2 * plain.shape[1]
    torch.testing.assert_close(got[:, : plain.shape[1]], plain, atol=5e-5, rtol=1e-4)  # chunks are rounded in other ways
    torch.testing.assert_close(got[:, plain.shape[1] :], 0.5 * NeighbourMean(plain, 3)(plain), atol=2e-3, rtol=2e-3)
    restored = Projection(**fitted.state())  # type: ignore[arg-type]
    assert torch.equal(restored.apply(features), fitted.apply(features))
    torch.testing.assert_close(restored.apply(features[5:9]), got[5:9])


def test_references_are_bounded_and_drawn_by_the_seed() -> None:
    options = ProjectionSettings(dim=4, rows=40, neighbours=2)
    fitted, again, other = (fit_projection(bank(), options, seed=seed) for seed in (1, 1, 2))
    assert fitted.reference.shape == (40, 4)
    assert fitted.reference.dtype == torch.float16
    assert torch.equal(fitted.apply(bank()), again.apply(bank()))
    assert not torch.equal(fitted.reference, other.reference)


@pytest.mark.parametrize("change", [{"neighbours": -1}, {"neighbour_weight": 0.0}, {"rows": 10, "neighbours": 9}])
def test_settings_are_checked(change: dict[str, int]) -> None:
    with pytest.raises(AnnotError, match=next(reversed(change))):
        ProjectionSettings(**change)


def test_too_few_items_are_refused() -> None:
    with pytest.raises(AnnotError, match="neighbours 9 given, of 10 items; it must be at most 8"):
        fit_projection(bank(10), ProjectionSettings(dim=4, neighbours=9), seed=0)


def test_a_run_with_neighbours_resumes_and_predicts(bank: Bank, tmp_path: Path) -> None:
    chosen = bank.settings(**{"data.projection.neighbours": 4, "data.projection.rows": 150})
    whole = fit(chosen, tmp_path / "whole")
    parts = fit(chosen, tmp_path / "parts", trainer__max_epochs=2)
    fit(chosen, parts)
    assert_equal_runs(parts, whole)
    assert rounds(whole)["accuracy"].iloc[-1] > 0.9
    assert checkpoint(whole)["state_dict"]["learners.0.heads.weights.0"].shape[1] == 2 * 16
    np.save(tmp_path / "new.npy", np.load(bank.features)[:40])
    new = {"data.features": tmp_path / "new.npy", "data.labels": None, "annotation.output_dir": whole}
    result = call("predict", {**chosen, **new})
    assert result.status == 0, result.err
    predicted = pd.read_csv(whole / "predictions.csv", dtype=str)["label"]
    truth = pd.read_csv(bank.labels, dtype=str)["label"][:40]
    assert (predicted.to_numpy() == truth.to_numpy()).mean() > 0.9
