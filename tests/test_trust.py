"""Who is paused: the chance of an accuracy against plain loops and closed forms, its error over many looks, and whole runs."""

from __future__ import annotations

import json
import math
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import QUIET, Bank, answers, assert_equal_runs, call, fit, questions
from scipy.integrate import quad
from sklearn.datasets import load_digits
from test_spam import right, shares, simulate
from torch import Tensor

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.crowd.em import run_em, write_posterior
from lightning_annot.crowd.priors import homogeneous_prior
from lightning_annot.crowd.spam import judge_workers
from lightning_annot.crowd.tempering import Tempering
from lightning_annot.crowd.tiers import run_tiered_em
from lightning_annot.crowd.trust import chance_of_accuracy
from lightning_annot.types import Annotations

PEOPLE = "skilled_workers.SkilledWorkers"


def certain(hits: list[int], misses: list[int], k: int = 4) -> tuple[Annotations, Tensor]:
    """Answers to items of certain class, so many right and wrong ones of each worker, and the posterior of the items."""
    worker = np.repeat(np.arange(len(hits)), np.add(hits, misses))
    label = np.concatenate([np.repeat([0, 1], [h, m]) for h, m in zip(hits, misses, strict=True)])
    posterior = torch.zeros(len(worker), k)
    posterior[:, 0] = 1.0
    return Annotations(torch.arange(len(worker)), torch.from_numpy(worker), torch.from_numpy(label)), posterior


def chance(answers: Annotations, posterior: Tensor, n_workers: int, least: float) -> list[float]:
    """With a crowd that was fitted to nothing, so that the items' classes are the posterior's."""
    k = posterior.shape[1]
    none = Annotations(*(torch.empty(0, dtype=torch.int64) for _ in range(3)))
    result = run_em(none, posterior.log(), homogeneous_prior(k), n_workers)
    known = torch.zeros(n_workers, dtype=torch.bool)
    return chance_of_accuracy(answers, posterior, result, Tempering(), known, least).tolist()


@pytest.mark.parametrize("least", [0.3, 0.6, 0.9])
def test_gold_alone_has_a_closed_form(least: float) -> None:
    hits, misses, k = [0, 0, 2, 9, 5, 40], [0, 4, 8, 1, 5, 60], 4
    told = chance(*certain(hits, misses, k), len(hits), least)
    for h, m, found in zip(hits, misses, told, strict=True):

        def likelihood(s: float, h: int = h, m: int = m) -> float:
            return math.exp(h * math.log(s) + m * math.log((1.0 - s) / (k - 1))) if 0 < s < 1 else float(h + m == 0)

        best = likelihood(max(least, h / max(1, h + m)))
        mean = quad(likelihood, 0.0, least, epsabs=0.0)[0] / least
        assert found == pytest.approx(best / (best + mean), rel=0.02, abs=1e-9)


def test_soft_classes_equal_plain_loops() -> None:
    k, n_workers, least = 3, 4, 0.5
    answers, log_prior = simulate([right(k, 0.7)] * n_workers, 3, n=12, each=8, logit=1.0)
    result = run_em(answers, log_prior, homogeneous_prior(k, dtype=torch.float64), n_workers)
    posterior = write_posterior(result, log_prior, 12)
    known = torch.ones(n_workers, dtype=torch.bool)
    told = chance_of_accuracy(answers, posterior, result, Tempering(), known, least).tolist()
    confusions, triples = result.confusions(), list(zip(*(t.tolist() for t in vars(answers).values()), strict=True))
    for j in range(n_workers):
        agrees, shared = [], []
        for i, worker, z in triples:
            if worker == j:
                joint = log_prior[i].clone()
                for other, w, label in triples:
                    if other == i and w != j:
                        joint += confusions[w, :, label].log()
                agrees.append(float(joint.softmax(0)[z]))
                others = torch.ones(k) + torch.bincount(answers.label[answers.worker != j], minlength=k)
                shared.append(float((joint + others.log()).softmax(0)[z]))

        def likelihood(s: float, true: list[float] = agrees) -> float:
            return math.prod(s * q + (1.0 - s) * (1.0 - q) / (k - 1) for q in true)

        best = max(likelihood(s, true) for s in np.linspace(least, 1.0, 1001) for true in (agrees, shared))
        mean = quad(likelihood, 0.0, least, epsabs=0.0)[0] / least
        assert told[j] == pytest.approx(best / (best + mean), rel=0.01)


def test_who_is_just_good_enough_is_hardly_ever_paused() -> None:
    """400 workers at the limit, looked at after each of 200 answers: at most one in twenty may ever be paused."""
    rng, least, steps = np.random.default_rng(0), 0.6, 200
    hits = (rng.random((400, steps)) < least).cumsum(1)
    ever = np.zeros(400, dtype=bool)
    for n in range(1, steps + 1, 3):
        kinds, back = np.unique(hits[:, n - 1], return_inverse=True)
        told = chance(*certain(kinds.tolist(), (n - kinds).tolist()), len(kinds), least)
        ever |= (np.array(told) < 0.05)[back]
    assert 0 < ever.mean() <= 0.05


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("k", [2, 10])
def test_good_workers_are_not_paused_where_one_class_dominates(k: int, told: bool) -> None:
    """One class has 95%; all are right in 85%, and 0.8 is asked for; the learner knows the class shares or it does not."""
    share, known = shares(k, 0.95), torch.ones(10, dtype=torch.bool)
    for seed, logit in product(range(3), (0.0, 2.0)):
        answers, log_prior = simulate([right(k, 0.85)] * 10, seed, n=2000, each=200, logit=logit, share=share)
        if told:
            log_prior = (log_prior + torch.from_numpy(share).log()).log_softmax(1)
        result = run_tiered_em(answers, log_prior, homogeneous_prior(k, dtype=torch.float64), 10)
        posterior = write_posterior(result, log_prior, len(log_prior))
        assert float(chance_of_accuracy(answers, posterior, result, Tempering(), known, 0.8).min()) > 0.05


def test_silent_workers_are_not_judged() -> None:
    assert chance(*certain([0], [0]), 1, 0.7) == pytest.approx([0.5])


def first_not_asked(accuracies: list[float], least: float, seed: int, k: int = 10, step: int = 50) -> np.ndarray:
    """Answers each worker had given when first paused or barred, (W,), infinite for the others; on soft classes, as in runs."""
    answers, log_prior = simulate([right(k, a) for a in accuracies], seed)
    first, known = np.full(len(accuracies), np.inf), torch.ones(len(accuracies), dtype=torch.bool)
    for upto in range(step, len(answers) + 1, step):
        seen = Annotations(answers.item[:upto], answers.worker[:upto], answers.label[:upto])
        result = run_tiered_em(seen, log_prior, homogeneous_prior(k, dtype=torch.float64), len(known))
        posterior = write_posterior(result, log_prior, len(log_prior))
        poor = chance_of_accuracy(seen, posterior, result, Tempering(), known, least) < 0.05
        conduct = judge_workers(seen, posterior, result, Tempering(), known)
        bad = (poor | conduct.spammer | conduct.adversary).numpy()
        first = np.where(bad, np.minimum(first, np.bincount(seen.worker.numpy(), minlength=len(known))), first)
    return first


def test_a_spammer_is_paused_soon_and_the_weak_are_not() -> None:
    """Ten workers: eight are right in 85%, one in 55%, one answers at random; 0.4 is asked for. Over 20 seeds."""
    first = np.stack([first_not_asked([0.85] * 8 + [0.55, 0.1], 0.4, seed) for seed in range(20)])
    assert np.isinf(first[:, :9]).all()
    assert first[:, 9].max() <= 60
    assert first[:, 9].mean() <= 40


@pytest.mark.slow
def test_runs_pause_or_bar_the_spammer_and_keep_the_weak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same over whole runs on digits, of 15 rounds of 50 questions that everybody gets an even share of; with 5% gold."""
    digits, rows = load_digits(), []
    np.save(tmp_path / "features.npy", digits.data.astype(np.float32))
    task = [f"{i:04d}" for i in range(len(digits.target))]
    pd.DataFrame({"task": task, "label": digits.target.astype(str)}).to_csv(tmp_path / "labels.csv", index=False)
    for gold in (0.0, 0.05):
        for seed in range(20):
            settings = people([0.85] * 8 + [0.55, 0.1]) | {
                "data.features": tmp_path / "features.npy", "data.labels": tmp_path / "labels.csv", "seed_everything": seed,
                "trainer.max_epochs": 15, "data.batches.steps": 20, "annotation.threshold": 1e-4,
                "annotation.sampling.per_round": 50, "annotation.sampling.workers": "least_loaded",
                "annotation.trust.least_accuracy": 0.4, "annotation.gold_rate": gold, "annotation.stopping.patience": None,
            }  # fmt: skip
            run = fit(QUIET | settings, tmp_path / f"run_{gold}_{seed}")
            given = answers(run)["worker"].value_counts()
            states = pd.read_csv(run / "workers.csv").set_index("worker")["state"]
            bad = states[states != "trusted"]
            rows.append({"gold": gold, "seed": seed, "spammer": states["w009"], "answers": given["w009"], "bad": len(bad)})
            assert questions(run).query("worker == 'w008'")["round"].max() == 13  # the weak one is asked to the end
    table = pd.DataFrame(rows)
    with capsys.disabled():
        print(table.groupby(["gold", "spammer"])["answers"].describe().to_string())
    assert table["spammer"].isin(["paused", "spammer"]).all()
    assert (table["bad"] == 1).all()
    within = (table["answers"] <= 60).groupby(table["gold"]).sum()
    assert within[0.0] == 20
    assert within[0.05] >= 19  # one is right in 12 of 64, by luck


def people(accuracies: list[float]) -> dict[str, Any]:
    return {"annotation.workers": PEOPLE, "annotation.workers.accuracies": json.dumps(accuracies)}


def paused_run(bank: Bank, output: Path, **changed: Any) -> Path:
    settings = bank.settings() | people([0.9, 0.9, 0.9, 0.9, 0.9, 0.2]) | {"annotation.trust.least_accuracy": 0.6}
    settings |= {"annotation.sampling.workers": "least_loaded", "annotation.crowd.exclude": False, "trainer.max_epochs": 9}
    return fit(settings, output, **changed)


def test_a_paused_worker_is_believed_named_and_not_asked(bank: Bank, tmp_path: Path) -> None:
    run = paused_run(bank, tmp_path / "run", annotation__gold=4)
    workers = pd.read_csv(run / "workers.csv").set_index("worker")
    assert workers["state"].to_dict() == {f"w{j:03d}": "paused" if j == 5 else "trusted" for j in range(6)}
    reason = workers.loc["w005", "reason"]
    assert re.fullmatch(r"an accuracy of 0\.6 or more has a chance of 0\.0\S+ after \d+ answers, 4 of them gold", reason)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["paused_workers"] == {"w005": reason}
    assert summary["excluded_workers"] == {}
    cards = pd.read_csv(run / "scorecards.csv").set_index("worker")
    assert (cards.loc["w005", "state"], cards.loc["w005", "reason"]) == ("paused", reason)
    asked = questions(run).query("kind == 'annotation'").groupby(["worker", "round"]).size().unstack(fill_value=0)
    last = asked.loc["w005"].to_numpy().nonzero()[0].max()
    assert last < 7
    assert (asked.drop(index="w005").iloc[:, last + 1 :].sum(axis=1) > 0).all()
    assert workers.loc["w005", "accuracy_mean"] < 0.6 < workers.drop(index="w005")["accuracy_mean"].min()
    assert call("report", None, str(run)).status == 0
    assert "Paused" in (run / "report.html").read_text(encoding="utf-8")


def test_a_run_with_pauses_and_qualification_resumes(bank: Bank, tmp_path: Path) -> None:
    given: dict[str, Any] = {"annotation__gold_rate": 0.2, "annotation__trust__qualify": 5, "trainer__max_epochs": 6}
    whole = paused_run(bank, tmp_path / "whole", **given)
    part = paused_run(bank, tmp_path / "part", **given | {"trainer__max_epochs": 1})  # only gold was asked so far
    part = paused_run(bank, part, **given | {"trainer__max_epochs": 4})
    assert_equal_runs(paused_run(bank, part, **given), whole)


def test_qualification_comes_first_and_who_fails_is_paused(bank: Bank, tmp_path: Path) -> None:
    run = paused_run(bank, tmp_path / "run", annotation__trust__qualify=10)
    asked = questions(run)
    first = asked[asked["round"] == 0]
    assert set(first["kind"]) == {"gold"}
    assert first["worker"].value_counts().tolist() == [10] * 6
    assert not (asked["round"] > 0).to_numpy()[asked["kind"] == "gold"].any()
    right_ones = gold_right(run)
    states = pd.read_csv(run / "workers.csv").set_index("worker")["state"]
    assert right_ones["w005"] <= 3  # of ten, so that he fails
    assert states["w005"] == "paused"
    assert set(asked[asked["round"] > 0]["worker"]) == {f"w{j:03d}" for j in range(5)}


def gold_right(run: Path) -> pd.Series:
    truth = pd.read_csv(run / "labels.csv", dtype=str).set_index("task")["label"]
    gold = answers(run).query("kind == 'gold'")
    right_ones = gold["label"].to_numpy() == truth[gold["item"]].to_numpy()
    return pd.Series(right_ones, index=gold["worker"]).groupby(level=0).sum()


def test_who_was_never_good_leaves_nobody_to_ask(bank: Bank, tmp_path: Path) -> None:
    settings = bank.settings() | people([0.25, 0.25]) | {"annotation.trust.least_accuracy": 0.9, "annotation.gold": 12}
    run = fit(settings | {"annotation.crowd.exclude": False}, tmp_path / "run")
    reason = json.loads((run / "summary.json").read_text())["stop_reason"]
    assert reason == "every worker is paused or left out; workers.csv says why"


def test_files_bring_a_qualification(bank: Bank, tmp_path: Path) -> None:
    """People who answer through files, a few at a time: ordinary questions only to those who have answered their gold."""
    files = {"annotation.workers": "lightning_annot.workers.files.FileWorkers", "annotation.workers.workers": "[anna,ben]"}
    settings = bank.settings() | files | {"annotation.trust.least_accuracy": 0.5, "annotation.trust.qualify": 3}
    truth = pd.read_csv(bank.labels, dtype=str).set_index("task")["label"]
    run, said = tmp_path / "run", pd.DataFrame()

    def waiting() -> pd.DataFrame:
        return pd.read_csv(run / "questions.csv", dtype=str, keep_default_na=False)

    fit(settings, run)
    assert json.loads((run / "summary.json").read_text())["stop_reason"] == "waiting for the answers to 6 questions"
    assert waiting()["worker"].value_counts().to_dict() == {"anna": 3, "ben": 3}
    mine = waiting().query("worker == 'anna'")
    said = mine.assign(label=truth[mine["task"]].to_numpy())[["task", "worker", "label"]]
    said.to_csv(run / "answers.csv", index=False)
    fit(settings, run)
    now = waiting()["worker"].value_counts()
    assert now["ben"] == 3
    assert now["anna"] > 3
    with AnnotationLog(run / "annotations.db") as log:
        assert set(log.questions(round=1)["worker"]) == {"anna"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--annotation.trust.least_accuracy", "1.0"), r"trust.least_accuracy 1.0 given; it must be above 0 and below 1"),
        (("--annotation.trust.certainty", "0.3"), "trust.certainty 0.3 given; it must be from 0.5"),
        (("--annotation.trust.qualify", "5"), "trust.qualify 5 given without trust.least_accuracy"),
        (("--annotation.trust.qualify", "-1"), "trust.qualify -1 given; it must be 0 or more"),
        (("--annotation.gold_rate", "1.0"), "annotation.gold_rate 1.0 given; it must be from 0 on and below 1"),
    ],
)
def test_impossible_settings(words: tuple[str, ...], message: str, bank: Bank, tmp_path: Path) -> None:
    result = call("fit", {**bank.settings(), "annotation.output_dir": tmp_path / "run"}, *words)
    assert result.status != 0
    assert re.search(message, result.err), result.err
