"""Projections: against scikit-learn's, restored from a state, and their settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.kernel_approximation import Nystroem

from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.data.projection import Projection, ProjectionSettings, fit_projection
from lightning_annot.types import AnnotError


def bank(n: int = 120, d: int = 10, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * rng.uniform(0.1, 9.0, d) + rng.normal(size=d)
    features[:, 3] = 7.0  # a constant column
    return features.astype(np.float16)


def test_projection_is_sklearns_pca() -> None:
    features = bank()
    got = fit_projection(features, ProjectionSettings(dim=4, neighbours=0), seed=0).apply(features, chunk=50).numpy()
    x = features.astype(np.float64)
    x = (x - x.mean(0)) / np.where(x.std(0) < 1e-6, 1.0, x.std(0))
    want = PCA(4).fit_transform(x)
    want /= np.sqrt((want**2).sum(1).mean())
    want *= np.sign((want * got).sum(0))
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert (got**2).sum(1).mean() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("dim", [None, 10, 99])
def test_projection_that_keeps_all_features_standardises_them(dim: int | None) -> None:
    features = bank()
    got = fit_projection(features, ProjectionSettings(dim=dim, neighbours=0), seed=0).apply(features).numpy()
    x = features.astype(np.float64)
    x = (x - x.mean(0)) / np.where(x.std(0) < 1e-6, 1.0, x.std(0))
    np.testing.assert_allclose(got, x / 3.0, atol=1e-3)  # nine columns that vary


def test_kernel_is_sklearns_nystroem_less_its_mean() -> None:
    features = bank()
    flat = fit_projection(features, ProjectionSettings(dim=4, neighbours=0), seed=0)
    curved = fit_projection(features, ProjectionSettings(dim=4, kernel=20, gamma=0.7, neighbours=0), seed=0)
    x = flat.apply(features).numpy()
    want = Nystroem(gamma=0.7, n_components=20, random_state=0).fit_transform(x)
    want = want - want.mean(0)
    got = curved.apply(features).numpy()
    np.testing.assert_allclose(got, want / np.sqrt((want**2).sum(1).mean()), atol=2e-3)
    assert float((got**2).sum(1).mean()) == pytest.approx(1.0, abs=1e-3)


def test_projection_is_fitted_on_few_rows_and_restored_from_its_state() -> None:
    features = bank(500)
    few = ProjectionSettings(dim=3, kernel=8, rows=50)
    fitted = fit_projection(features, few, seed=1)
    restored = Projection(**fitted.state())  # type: ignore[arg-type]
    assert torch.equal(restored.apply(features), fitted.apply(features))
    assert torch.equal(fit_projection(features, few, seed=1).apply(features), fitted.apply(features))
    assert not torch.allclose(fit_projection(features, few, seed=2).apply(features), fitted.apply(features), atol=1e-3)
    with pytest.raises(AnnotError, match="width 9 given; this run's learner takes 10"):
        fitted.apply(features[:, :9])


@pytest.mark.parametrize("change", [{"dim": 0}, {"kernel": -1}, {"gamma": 0.0}, {"rows": 1}])
def test_projection_settings_are_checked(change: dict[str, int]) -> None:
    with pytest.raises(AnnotError, match=next(iter(change))):
        ProjectionSettings(**change)


@pytest.mark.parametrize(
    "chosen",
    [
        ProjectionSettings(dim=None),
        ProjectionSettings(dim=4),
        ProjectionSettings(dim=128),
        ProjectionSettings(dim=128, neighbours=0),
        ProjectionSettings(dim=8, rows=5, neighbours=0),
        ProjectionSettings(dim=4, kernel=30),
        ProjectionSettings(dim=4, kernel=30, rows=12),
        ProjectionSettings(kernel=1000),
        ProjectionSettings(dim=4, neighbours=3),
        ProjectionSettings(kernel=30, neighbours=3, rows=20),
    ],
)
def test_width_is_known_before_the_projection(chosen: ProjectionSettings, tmp_path: Path) -> None:
    np.save(tmp_path / "bank.npy", bank())
    labels = pd.DataFrame({"task": range(120), "label": ["ab"[i % 2] for i in range(120)]})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    data = AnnotationDataModule(
        features=str(tmp_path / "bank.npy"), labels=str(tmp_path / "labels.csv"), projection=chosen, prototypes_per_class=2
    )
    data.setup("fit")
    (before,) = data.widths
    features, folds = data.projected()
    assert before == data.widths[0] == features.shape[1]
    assert len(features) == len(folds) == 120
    restored = AnnotationDataModule(features=str(tmp_path / "bank.npy"), projection=chosen)
    restored.load_state_dict(data.state_dict())
    restored.setup("predict")
    assert torch.equal(restored.projected()[0], features)
