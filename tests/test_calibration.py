"""The learner's temperature: found again, shrunk, and from answers as from labels."""

from __future__ import annotations

import math

import pytest
import torch
from made_up_heads import D, K, built, seeded

from lightning_annot.learner.calibration import fit_temperature
from lightning_annot.types import AnnotError


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_temperature_is_recovered(true: float) -> None:
    z = 2.0 * torch.randn(20_000, 5, generator=seeded(0))
    label = torch.multinomial(z.softmax(1), 1, generator=seeded(1))[:, 0]
    assert fit_temperature(z * true, label) == pytest.approx(true, rel=0.03)


def test_temperature_is_shrunk_towards_1() -> None:
    assert fit_temperature(torch.empty(0, 5), torch.empty(0, dtype=torch.int64)) == 1.0
    logits, label = 9.0 * torch.eye(3), torch.tensor([0, 1, 0])  # one of three confident rows is wrong
    found = [fit_temperature(logits, label, scale) for scale in (0.01, 0.3, 1.0, 10.0)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(1.0, abs=0.05)
    assert found[-1] > 4.0
    with pytest.raises(AnnotError, match="prior_scale 0"):
        fit_temperature(logits, label, 0.0)


def test_temperature_minimises_the_stated_objective() -> None:
    logits = 3.0 * torch.randn(40, 4, generator=seeded(0), dtype=torch.float64)
    label = torch.randint(0, 4, (40,), generator=seeded(1))

    def objective(t: float) -> float:
        nll = -float((logits / t).log_softmax(1)[torch.arange(40), label].sum())
        return nll + math.log(t) ** 2 / (2 * 0.5**2)

    t = fit_temperature(logits, label)
    assert all(objective(t) <= objective(t * factor) for factor in (0.9, 0.99, 1.01, 1.1))


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_temperature_is_recovered_from_answers(true: float) -> None:
    """One answer a row, right with 0.7 and else anything: the classes themselves are not needed."""
    z = 2.0 * torch.randn(40_000, 5, generator=seeded(0))
    label = torch.multinomial(z.softmax(1), 1, generator=seeded(1))[:, 0]
    confusion = torch.full((5, 5), 0.3 / 4).fill_diagonal_(0.7)
    answer = torch.multinomial(confusion[label], 1, generator=seeded(2))[:, 0]
    assert fit_temperature(z * true, confusion.log()[:, answer].T) == pytest.approx(true, rel=0.06)


def test_certain_answers_are_labels() -> None:
    logits, label = 3.0 * torch.randn(40, 4, generator=seeded(0)), torch.randint(0, 4, (40,), generator=seeded(1))
    certain = torch.full((40, 4), -30.0)
    certain[torch.arange(40), label] = 0.0
    assert fit_temperature(logits, certain) == pytest.approx(fit_temperature(logits, label), rel=1e-4)
    nothing = torch.zeros(40, 4)  # answers that would be the same whatever the class
    assert fit_temperature(logits, nothing) == pytest.approx(1.0, abs=1e-3)
    released = built(calibration="released")
    with pytest.raises(AnnotError, match="calibration released"):
        released.calibrate(torch.zeros(2, D), torch.tensor([0, 1]), torch.zeros(2, K))
