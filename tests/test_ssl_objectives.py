"""Losses against their equations written out, BYOL's teacher, and the probe against scikit-learn's neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from lightning_annot.backbones.knn_probe import leave_one_out_knn
from lightning_annot.backbones.ssl_objectives import BYOL, Objective, make_objective
from lightning_annot.types import AnnotError


def make(method: str, backbone: nn.Module | None = None) -> Objective:
    torch.manual_seed(0)
    return make_objective(method, backbone or nn.Linear(6, 5), 5, 7, 4, temperature=0.3, momentum=0.9)  # type: ignore[arg-type]


def test_simclr_is_the_cross_entropy_of_pairs() -> None:
    objective, features = make("simclr"), torch.randn(8, 5)
    z = nn.functional.normalize(objective.head(features), dim=1)  # type: ignore[operator]
    losses = []
    for i in range(8):
        alike = torch.stack([z[i] @ z[j] / 0.3 for j in range(8) if j != i])
        partner = z[i] @ z[(i + 4) % 8] / 0.3
        losses.append(alike.logsumexp(0) - partner)
    assert objective(features, features).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_vicreg_is_invariance_variance_and_covariance() -> None:
    objective, features = make("vicreg"), torch.randn(12, 5)
    a, b = objective.head(features).chunk(2)  # type: ignore[operator]
    loss = 25 * ((a - b) ** 2).mean()
    for z in (a, b):
        cov = torch.cov(z.T)
        loss += 25 * 0.5 * torch.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()
        loss += (cov.square().sum() - cov.diagonal().square().sum()) / 4
    assert objective(features, features).item() == pytest.approx(loss.item(), rel=1e-4)


def test_byol_follows_its_teacher() -> None:
    backbone = nn.Linear(6, 5)
    objective = make("byol", backbone)
    assert isinstance(objective, BYOL)
    views = torch.randn(8, 6)
    objective(views, backbone(views)).backward()
    assert all(p.grad is None for p in objective.teacher.parameters())
    before = objective.teacher.weight.clone()  # type: ignore[operator, union-attr]
    with torch.no_grad():
        backbone.weight += 1.0
    objective.after_step(backbone, 0.0)
    assert torch.allclose(objective.teacher.weight, before + 0.1)  # type: ignore[arg-type]
    objective.after_step(backbone, 1.0)  # the last weight of the past is 1
    assert torch.allclose(objective.teacher.weight, before + 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["vicreg", "simclr", "byol"])
def test_objectives_pull_views_together(method: str) -> None:
    backbone = nn.Linear(6, 5)
    objective = make(method, backbone)
    objective.gather(False)
    images = torch.randn(16, 6)
    optimizer = torch.optim.Adam([*backbone.parameters(), *objective.parameters()], 1e-2)
    losses = []
    for _ in range(60):
        views = torch.cat([images, images + 0.1 * torch.randn(16, 6)])
        loss = objective(views, backbone(views))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step(backbone, 0.5)
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5]) or (method == "byol" and losses[-1] < losses[0] - 0.2)


def test_unknown_method() -> None:
    with pytest.raises(AnnotError, match=r"'dino' given; allowed are vicreg, simclr, byol"):
        make("dino")


@pytest.mark.parametrize("neighbours", [1, 5, 100])
def test_probe_equals_scikit_learn(neighbours: int) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(4, size=40)
    x = rng.normal(size=(40, 6)) + 1.5 * np.eye(6)[label]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    right = 0
    for i in range(40):
        rest = np.arange(40) != i
        knn = KNeighborsClassifier(min(neighbours, 39), weights=lambda d: np.exp((1 - d**2 / 2) / 0.1))
        right += knn.fit(x[rest], label[rest]).predict(x[i : i + 1])[0] == label[i]
    found = leave_one_out_knn(torch.from_numpy(3 * x), torch.from_numpy(label), neighbours)
    assert found.item() == pytest.approx(right / 40)


def test_probe_of_two() -> None:
    assert leave_one_out_knn(torch.eye(2), torch.tensor([0, 1])) == 0
    assert leave_one_out_knn(torch.eye(2), torch.tensor([1, 1])) == 1
