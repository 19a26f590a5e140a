"""What answers say of an item's class, and the rows that a learner is calibrated on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_annot.callbacks.calibration_rows import known_by_answers
from lightning_annot.crowd.em import EMResult, run_em
from lightning_annot.crowd.evidence import answer_evidence
from lightning_annot.crowd.priors import homogeneous_prior
from lightning_annot.data.items import build_items
from lightning_annot.types import Annotations

N, W, K, A = 40, 6, 3, 90


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fitted(n_answers: int = A) -> tuple[Annotations, EMResult]:
    pair = torch.randperm(N * W, generator=seeded(0))[:n_answers]
    answers = Annotations(pair // W, pair % W, torch.randint(0, K, (n_answers,), generator=seeded(1)))
    log_prior = torch.randn(N, K, generator=seeded(2)).log_softmax(1)
    return answers, run_em(answers, log_prior, homogeneous_prior(K, 0.7, 5.0), W, chunk_elements=3 * 7)


def test_evidence_is_the_product_of_the_answers_likelihoods() -> None:
    answers, result = fitted()
    log_confusion = result.confusions().log()
    items, evidence = answer_evidence(result, seeded(0))
    assert items.tolist() == sorted(set(answers.item.tolist()))
    want = torch.zeros(N, K)
    for i, j, z in zip(*(part.tolist() for part in (answers.item, answers.worker, answers.label)), strict=True):
        want[i] += log_confusion[j, :, z]
    torch.testing.assert_close(evidence, want[items])


def test_of_many_items_a_sample_is_drawn() -> None:
    _, result = fitted()
    items, evidence = answer_evidence(result, seeded(0))
    some, part = answer_evidence(result, seeded(1), most_elements=K * 10)
    assert len(some) == len(set(some.tolist())) == 10
    assert torch.equal(part, evidence[torch.searchsorted(items, some)])
    assert not torch.equal(some, answer_evidence(result, seeded(2), most_elements=K * 10)[0])


def test_no_answers_are_no_evidence() -> None:
    items, evidence = answer_evidence(fitted(0)[1], seeded(0))
    assert items.shape == (0,)
    assert evidence.shape == (0, K)


@pytest.mark.parametrize("given", [{}, {"i3": "b", "i7": "a"}])
def test_prototypes_are_certain_and_counted_once(given: dict[str, str]) -> None:
    table = build_items([f"i{j}" for j in range(N)], ["a", "b", "c"], None, given, prototypes_per_class=0, n_folds=3, seed=0)
    assert table.lacks_prototypes
    items, evidence = torch.tensor([1, 3, 5]), torch.randn(3, K, generator=seeded(0))
    rows, known = known_by_answers(table, items, evidence)
    by_row: dict[int, Tensor] = dict(zip(rows.tolist(), known, strict=True))
    assert len(by_row) == len(rows)
    assert torch.equal(by_row[5], evidence[2])
    assert set(by_row) == {1, 3, 5} | ({7} if given else set())
    if given:
        assert by_row[3].softmax(0).tolist() == pytest.approx([0.0, 1.0, 0.0])
        assert by_row[7].softmax(0).tolist() == pytest.approx([1.0, 0.0, 0.0])
