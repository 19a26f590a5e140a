"""The workers' priors: what is estimated, from gold or from an oracle, and what is impossible."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_annot.crowd.priors import diagonal_prior, homogeneous_prior
from lightning_annot.crowd.skill import PSEUDO_GOLD, Gold, gold_accuracy, reduce_accuracy
from lightning_annot.round.facts import Basis, Facts
from lightning_annot.round.inference import fit_crowd
from lightning_annot.round.settings import CrowdSettings
from lightning_annot.types import AnnotError

W, K = 3, 4


def make_gold(n: int = 60, seed: int = 0) -> Gold:
    generator = torch.Generator().manual_seed(seed)
    worker, truth = torch.randint(W, (n,), generator=generator), torch.randint(K, (n,), generator=generator)
    return Gold(worker, truth, torch.rand(n, generator=generator) < 0.4 + 0.2 * worker)


def slow(gold: Gold, towards: float, worker: int | None = None, truth: int | None = None) -> float:
    """Share of right answers of some worker and class, shrunk."""
    rows = [
        bool(r)
        for j, y, r in zip(gold.worker.tolist(), gold.truth.tolist(), gold.right.tolist(), strict=True)
        if worker in (None, j) and truth in (None, y)
    ]
    return (sum(rows) + PSEUDO_GOLD * towards) / (len(rows) + PSEUDO_GOLD)


def test_gold_estimates_equal_plain_loops() -> None:
    gold = make_gold()
    pooled = slow(gold, 0.7)
    assert gold_accuracy(gold, "homogeneous", W, K, 0.7).tolist() == pytest.approx([pooled] * K)
    by_class = [slow(gold, pooled, truth=y) for y in range(K)]
    by_worker = [slow(gold, pooled, worker=j) for j in range(W)]
    assert gold_accuracy(gold, "class", W, K, 0.7).tolist() == pytest.approx(by_class)
    assert gold_accuracy(gold, "worker", W, K, 0.7)[:, 1].tolist() == pytest.approx(by_worker)
    both = gold_accuracy(gold, "class_worker", W, K, 0.7)
    for j in range(W):
        for y in range(K):
            towards = min(max(by_worker[j] * by_class[y] / pooled, 0.01), 0.99)
            assert float(both[j, y]) == pytest.approx(slow(gold, towards, j, y))


def test_without_gold_everybody_is_what_is_believed() -> None:
    none = Gold(*(torch.empty(0, dtype=torch.int64) for _ in range(3)))
    for kind in ("homogeneous", "class", "worker", "class_worker"):
        assert gold_accuracy(none, kind, W, K, 0.6) == pytest.approx(0.6)  # type: ignore[arg-type]


def test_known_accuracies_are_reduced_to_what_the_prior_tells_apart() -> None:
    accuracy = torch.rand(W, K, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(reduce_accuracy(accuracy, "homogeneous"), accuracy.mean().expand(K))
    torch.testing.assert_close(reduce_accuracy(accuracy, "class"), accuracy.mean(0))
    torch.testing.assert_close(reduce_accuracy(accuracy, "worker"), accuracy.mean(1, keepdim=True).expand(W, K))
    assert reduce_accuracy(accuracy, "class_worker") is accuracy


def test_diagonal_prior() -> None:
    torch.testing.assert_close(diagonal_prior(torch.full((K,), 0.7), 10.0), homogeneous_prior(K, 0.7, 10.0))
    own = diagonal_prior(torch.rand(W, K), 30.0)
    assert own.shape == (W, K, K)
    torch.testing.assert_close(own.sum(-1), torch.full((W, K), 30.0))
    assert bool((diagonal_prior(torch.tensor([1.0, 0.0]), 1.0) > 0).all())
    with pytest.raises(AnnotError, match="priors of 1000000 workers"):
        diagonal_prior(torch.full((1_000_000, 100), 0.5), 1.0)


def facts(seed: int = 0) -> tuple[Facts, Tensor, Tensor]:
    """Ten prototypes, ninety items; three workers, the last of whom always errs, with gold answers that show it."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(K, (100,), generator=generator)
    prototype = torch.where(torch.arange(100) < 10, truth, -1)
    item, worker = torch.arange(10, 100).repeat(W), torch.arange(W).repeat_interleave(90)
    answer = torch.where(worker == 2, (truth[item] + 1) % K, truth[item])
    gold_item, gold_worker = torch.arange(10).repeat(W), torch.arange(W).repeat_interleave(10)
    gold_label = torch.where(gold_worker == 2, (truth[gold_item] + 1) % K, truth[gold_item])
    none = torch.empty(0, dtype=torch.int64)
    return (
        Facts(
            ("a", "b", "c"), item, worker, answer, none, none, torch.zeros_like(item), gold_item, gold_worker, gold_label, 30
        ),
        prototype,
        truth,
    )


@pytest.mark.parametrize(
    "settings",
    [
        CrowdSettings(prior="worker", estimate="gold"),
        CrowdSettings(prior="class_worker", estimate="gold"),
        CrowdSettings(prior="class", estimate="em"),
        CrowdSettings(prior="homogeneous", estimate="em"),
        CrowdSettings(prior="class", estimate="gold"),
        CrowdSettings(),
    ],
)
def test_priors_find_who_errs(settings: CrowdSettings) -> None:
    given, prototype, _ = facts()
    log_prior = torch.full((100, K), 1 / K).log()
    log_prior[:10] = -30.0
    log_prior[torch.arange(10), prototype[:10]] = 0.0
    result = fit_crowd(Basis(given, log_prior.__getitem__, prototype, 100, K), settings)
    diagonal = result.diagonal().mean(1)
    assert float(diagonal[:2].min()) > 0.8
    assert float(diagonal[2]) < 0.3


def test_gold_is_evidence_once() -> None:
    """Gold answers are in the EM, or in the prior, never in both."""
    given, prototype, _ = facts()
    assert len(given.with_gold()) == len(given.annotations()) + 30
    log_prior = torch.full((100, K), 1 / K).log()
    in_prior = fit_crowd(Basis(given, log_prior.__getitem__, prototype, 100, K), CrowdSettings(prior="worker", estimate="gold"))
    assert float(in_prior.counts.sum()) == pytest.approx(len(given.annotations()), rel=1e-5)
    in_em = fit_crowd(Basis(given, log_prior.__getitem__, prototype, 100, K), CrowdSettings())
    assert float(in_em.counts.sum()) == pytest.approx(len(given.with_gold()), rel=1e-5)


def test_an_oracle_is_the_prior() -> None:
    given, prototype, _ = facts()
    oracle = torch.stack([torch.eye(K), torch.eye(K), torch.eye(K).roll(1, 1)]) * 0.9 + 0.1 / K
    log_prior = torch.full((100, K), 1 / K).log()
    none = torch.empty(0, dtype=torch.int64)
    nobody = Facts(given.workers, none, none, none, none, none)
    own = CrowdSettings(prior="class_worker", oracle="x.npz")
    result = fit_crowd(Basis(nobody, log_prior.__getitem__, prototype, 100, K), own, oracle)
    torch.testing.assert_close(result.diagonal(), oracle.diagonal(dim1=1, dim2=2))
    pooled = fit_crowd(Basis(nobody, log_prior.__getitem__, prototype, 100, K), CrowdSettings(oracle="x.npz"), oracle)
    torch.testing.assert_close(pooled.confusions()[0], oracle.mean(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prior": "worker"}, "only from gold questions"),
        ({"prior": "class_worker", "estimate": "em"}, "only from gold questions"),
        ({"prior": "class"}, "set crowd.estimate to em or gold"),
        ({"prior": "best"}, "allowed are tiered, homogeneous, class, worker, class_worker"),
        ({"estimate": "guess"}, "allowed are fixed, em, gold"),
    ],
)
def test_impossible_priors(settings: dict[str, str], message: str) -> None:
    with pytest.raises(AnnotError, match=message):
        CrowdSettings(**settings)  # type: ignore[arg-type]
