"""The interval of the stated error: curvature against autograd, draws against closed forms, and whether it covers."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import Bank, fit, rounds
from rich.console import Console
from run_folder import make_run
from scipy.stats import binom
from test_tempering import fresh
from torch import Tensor

from lightning_annot.crowd import stated_error
from lightning_annot.crowd.em import run_em, write_posterior
from lightning_annot.crowd.priors import homogeneous_prior, with_experts
from lightning_annot.crowd.risk import decide
from lightning_annot.crowd.stated_error import (
    Curvature,
    curvature,
    draw_exponents,
    error_interval,
    loss_by_class,
    people_evidence,
    sample_rows,
)
from lightning_annot.crowd.tempering import (
    BOUNDS,
    PRIOR_SCALE,
    FreshAnswers,
    Tempering,
    fit_tempering,
    join,
)
from lightning_annot.report.page import render
from lightning_annot.report.run_files import ENOUGH_FRESH, evidence_note, headlines, read_run
from lightning_annot.report.terminal import print_summary
from lightning_annot.serve.overview import Overview
from lightning_annot.types import Annotations


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def autograd_hessian(f: FreshAnswers, at: Tensor) -> Tensor:
    """Second derivatives of one level's loss, penalty and all, by torch."""

    def loss(log_ab: Tensor) -> Tensor:
        a, b = log_ab.exp()
        log_q = (a * f.model.double() + b * f.people.double()).log_softmax(1)
        penalty = (log_ab**2).sum() / (2 * PRIOR_SCALE**2)
        return penalty - (log_q + f.answer.double()).logsumexp(1).sum()

    return torch.autograd.functional.hessian(loss, at)


def test_curvature_is_the_second_derivative() -> None:
    f = fresh(n=800, model_times=1.5, copies=1)
    tempering = fit_tempering(f, 2)
    found = curvature(f, tempering, 2000)
    assert found.answers.tolist() == [0, 800]
    assert torch.equal(found.gradient, torch.zeros(2, 2).double())  # both exponents are within their bounds
    torch.testing.assert_close(found.hessian[0], torch.eye(2).double() / PRIOR_SCALE**2)
    at = torch.tensor([tempering.model[1], tempering.people[1]]).double().log()
    torch.testing.assert_close(found.hessian[1], autograd_hessian(f, at), rtol=0.05, atol=2.0)


def test_only_the_latest_answers_are_measured() -> None:
    old, new = fresh(n=500, model_times=3.0), fresh(n=300, seed=1)
    tempering = fit_tempering(new, 2)
    both, alone = (curvature(f, tempering, 300) for f in (join([old, new]), new))
    assert all(torch.equal(part, alone.parts()[name]) for name, part in both.parts().items())


def test_a_slope_at_a_bound_is_kept() -> None:
    f = fresh(n=2000)
    timid = replace(f, people=0.4 * f.people)  # people would have an exponent of 2.5
    tempering = fit_tempering(timid, 2)
    found = curvature(timid, tempering, 2000)
    assert found.gradient[1, 0] == 0
    assert found.gradient[1, 1] < -50  # downhill towards the bound
    _, people = draw_exponents(found, tempering, seeded(0), 500)
    top = BOUNDS[1][1]
    assert float(people[:, 1].max()) <= top + 1e-12
    assert float((top - people[:, 1]).mean()) == pytest.approx(1 / -float(found.gradient[1, 1]), rel=0.3)  # exponential


def test_draws_have_the_moments_of_the_truncated_normal() -> None:
    hessian = torch.tensor([[[100.0, 60.0], [60.0, 90.0]]]).double()
    found = Curvature(torch.tensor([500]), torch.zeros(1, 2).double(), hessian)
    model, people = draw_exponents(found, Tempering((0.5,), (0.5,)), seeded(1), 4000)
    drawn = torch.cat([model, people], 1).log() - math.log(0.5)
    torch.testing.assert_close(drawn.mean(0), torch.zeros(2).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), torch.linalg.inv(hessian[0]), atol=0.001, rtol=0.1)


def test_without_answers_the_penalty_is_the_prior() -> None:
    model, people = draw_exponents(None, Tempering(), seeded(2), 4000)
    below = people.log()[:, 0]  # half of a normal distribution: people are never more than independent
    assert float(below.max()) <= 0
    assert float(below.mean()) == pytest.approx(-PRIOR_SCALE * math.sqrt(2 / math.pi), rel=0.05)
    assert float(model.max()) <= BOUNDS[0][1]


def test_a_level_without_answers_follows_the_one_below_and_is_less_sure() -> None:
    f = fresh(n=1500, model_times=1.5, earlier=0)
    tempering = fit_tempering(f, 2)
    model, _ = draw_exponents(curvature(f, tempering, 2000), tempering, seeded(3), 2000)
    low, high = (model[:, level].log() for level in range(2))
    assert float(torch.stack([low, high]).corrcoef()[0, 1]) > 0.1
    assert float(high.std()) > 2 * float(low.std())


def crowd(n: int = 60, k: int = 3, seed: int = 0) -> tuple[Annotations, Tensor]:
    rng = np.random.default_rng(seed)
    pair = torch.from_numpy(rng.choice(n * 4, 100, replace=False))
    answers = Annotations(pair // 4, pair % 4, torch.from_numpy(rng.integers(0, k, 100)))
    return answers, torch.from_numpy(rng.normal(size=(n, k))).log_softmax(1)


@pytest.mark.parametrize("chunk_elements", [9, 1 << 21])
def test_evidence_and_exponents_give_the_posterior(chunk_elements: int) -> None:
    answers, log_prior = crowd()
    expert = torch.tensor([False, True, False, False])
    tempering = Tempering((0.8, 0.7, 0.6), (1.0, 0.5, 0.4))
    prior = with_experts(homogeneous_prior(3, dtype=torch.float64), expert)
    fitted = run_em(answers, log_prior, prior, 4, tempering=tempering, expert=expert, chunk_elements=chunk_elements)
    rows = torch.arange(0, 60, 2)
    people, count = people_evidence(fitted, rows)
    a, b = tempering.of(count)
    wanted = write_posterior(fitted, log_prior, 60, tempering=tempering)[rows]
    torch.testing.assert_close((a * log_prior[rows] + b * people).softmax(1), wanted, atol=1e-6, rtol=0)
    assert count.tolist() == torch.bincount(answers.item, minlength=60)[rows].tolist()


@pytest.mark.parametrize("cost", [None, torch.tensor([[0.0, 1.0, 5.0], [2.0, 0.0, 1.0], [1.0, 3.0, 0.0]])])
def test_expected_loss_of_the_labels_is_their_risk(cost: Tensor | None) -> None:
    posterior = torch.randn(50, 3, generator=seeded(4)).softmax(1)
    decision = decide(posterior, cost)
    torch.testing.assert_close((posterior * loss_by_class(decision.label, 3, cost)).sum(1), decision.risk)


def fixed(tempering: Tempering) -> tuple[Tensor, Tensor]:
    """Draws that are all alike."""
    return torch.tensor([tempering.model] * 8).double(), torch.tensor([tempering.people] * 8).double()


def test_known_exponents_leave_the_chance_of_each_label() -> None:
    n, p = 2000, 0.05
    model = torch.tensor([1 - p, p]).log().expand(n, 2)
    plain = Tempering()
    loss = loss_by_class(torch.zeros(n, dtype=torch.int64), 2)
    none = torch.zeros(n, dtype=torch.int64)
    low, high = error_interval(model, torch.zeros(n, 2), none, loss, plain, fixed(plain), p, n)
    assert (low, high) == pytest.approx(binom.ppf([0.05, 0.95], n, p) / n, abs=0.001)
    sampled = error_interval(model[:50], torch.zeros(50, 2), none[:50], loss[:50], plain, fixed(plain), p, n)
    assert sampled == pytest.approx((low, high))  # of as many labels, whatever the sample
    few = error_interval(model[:3], torch.zeros(3, 2), none[:3], loss[:3], plain, fixed(plain), p, 3)
    assert few[0] == 0.0


def test_a_large_set_is_sampled_and_a_small_one_taken_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.arange(5, 505)
    assert torch.equal(sample_rows(rows, 10, seeded(5)), rows)
    monkeypatch.setattr(stated_error, "MOST_ITEMS", 100)
    some = sample_rows(rows, 10, seeded(5))
    assert len(some) == 100
    assert torch.equal(some, some.unique())
    assert bool(torch.isin(some, rows).all())
    assert torch.equal(some, sample_rows(rows, 10, seeded(5)))
    monkeypatch.setattr(stated_error, "MOST_ELEMENTS", 300)
    assert len(sample_rows(rows, 10, seeded(5))) == 30


def test_the_interval_covers_what_the_exponents_do_not_know() -> None:
    """A learner that is too sure by a factor, drawn from the prior of the fit; 150 fresh answers to find out."""
    hits, alone, repetitions = 0, 0, 60
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        times = math.exp(abs(rng.normal(scale=PRIOR_SCALE)))
        f = fresh(n=150, k=4, seed=seed, model_times=times, earlier=0)
        tempering = fit_tempering(f, 1)
        p = torch.from_numpy(1.5 * rng.normal(size=(1500, 4))).softmax(1)
        model, nothing = times * p.log(), torch.zeros(1500, 4).double()
        posterior = (tempering.model[0] * model).softmax(1)
        done = posterior.amax(1) > 0.9
        label, count = posterior.argmax(1)[done], torch.zeros(int(done.sum()), dtype=torch.int64)
        wrong = 1 - p[done].gather(1, label[:, None])[:, 0]
        true = float((torch.from_numpy(rng.random(len(label))) < wrong).double().mean())
        stated = float(1 - posterior.amax(1)[done].mean())
        given = model[done], nothing[done], count, loss_by_class(label, 4), tempering
        draws = draw_exponents(curvature(f, tempering, 2000), tempering, seeded(seed))
        low, high = error_interval(*given, draws, stated, len(label))
        assert low <= stated <= high
        hits += low <= true <= high
        low, high = error_interval(*given, fixed(tempering), stated, len(label))
        alone += low <= true <= high
    assert hits >= 0.82 * repetitions  # 90%, less two standard errors
    assert alone < hits  # the chance of each label is not enough


def test_a_run_says_how_sure_it_is(bank: Bank, tmp_path: Path) -> None:
    run = fit(bank.settings(), tmp_path / "run", annotation__threshold=0.05)
    table = rounds(run)
    assert table["fresh_answers"].tolist() == [0, 20, 40]
    some = table.dropna(subset=["finished_risk"])
    assert len(some)
    assert bool((some["finished_risk_low"] <= some["finished_risk"]).all())
    assert bool((some["finished_risk"] <= some["finished_risk_high"]).all())
    assert bool((some["finished_risk_low"] < some["finished_risk_high"]).all())
    summary = json.loads((run / "summary.json").read_text())
    for name in ("finished_risk", "finished_risk_low", "finished_risk_high", "fresh_answers"):
        assert summary[name] == pytest.approx(table[name].iloc[-1])
    assert evidence_note(read_run(run)) == "fewer than 500 fresh answers: confidence not verified yet"


def test_a_run_without_exponents_says_so(bank: Bank, tmp_path: Path) -> None:
    run = fit(bank.settings(), tmp_path / "run", annotation__crowd__temper=False)
    assert rounds(run)["fresh_answers"].isna().all()
    assert json.loads((run / "summary.json").read_text())["fresh_answers"] is None
    assert evidence_note(read_run(run)) == "confidence not verified: crowd.temper is off"


def told(folder: Path, fresh_answers: float | None) -> Path:
    """A made-up run that states an error of 2.6% of its finished items."""
    run = make_run(folder)
    table = pd.read_csv(run / "rounds.csv")
    if fresh_answers is not None:
        table = table.assign(finished_risk=0.026, finished_risk_low=0.012, finished_risk_high=0.05)
        table = table.assign(fresh_answers=fresh_answers)
        table.to_csv(run / "rounds.csv", index=False)
    return run


@pytest.mark.parametrize(
    ("fresh_answers", "note"),
    [
        (ENOUGH_FRESH - 1, "fewer than 500 fresh answers: confidence not verified yet"),
        (ENOUGH_FRESH, ""),
        (math.nan, "confidence not verified: crowd.temper is off"),
        (None, ""),  # a run of an older version
    ],
)
def test_it_is_said_where_it_is_read(fresh_answers: float | None, note: str, tmp_path: Path) -> None:
    run = told(tmp_path / "run", fresh_answers)
    console = Console(file=io.StringIO(), width=120)
    print_summary(console, run)
    overview = Overview(run, None, lambda: None)  # type: ignore[arg-type]
    assert overview.evidence() == note
    shown = [console.file.getvalue()]  # type: ignore[attr-defined]
    shown += [render(read_run(run))] if fresh_answers in (ENOUGH_FRESH - 1, ENOUGH_FRESH) else []  # it takes its time
    for text in shown:
        assert ("confidence not verified" in text) == bool(note)
        assert note in text
    tiles = {tile.name: (tile.value, tile.note) for tile in overview.headlines()}
    assert ("Stated error" in tiles) == (fresh_answers is not None)
    if fresh_answers is not None:
        assert tiles["Stated error"] == (
            "2.6 %", "expected share of wrong labels, of the finished; 90% interval 1.2 % to 5.0 %"
        )  # fmt: skip
        assert all("90% interval 1.2 % to 5.0 %" in " ".join(text.split()) for text in shown)


def test_a_cost_is_no_share(tmp_path: Path) -> None:
    run = read_run(told(tmp_path / "run", 500))
    with_cost = replace(run, settings={"annotation": {"cost": "cost.csv"}})
    notes = [tile.note for tile in headlines(with_cost) if tile.name in ("Stated error", "Mean risk")]
    assert len(notes) == 2
    assert all(note.startswith("expected cost of a label") for note in notes)
