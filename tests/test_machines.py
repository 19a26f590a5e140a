"""Machine workers: their confusions against a loop, their weights beside the learner, and whole runs with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import Bank, assert_equal_runs, call, checkpoint, fit, rounds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_annot.crowd.machines import (
    Machine,
    as_answers,
    combine,
    even_weights,
    fit_confusion,
    fit_weights,
    leave_one_out,
    with_machines,
)
from lightning_annot.crowd.priors import homogeneous_prior
from lightning_annot.crowd.tempering import FreshAnswers, Tempering
from lightning_annot.learner.machine_panel import MachinePanel
from lightning_annot.types import AnnotError

K = 4


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logs(n: int, seed: int, sharp: float = 2.0) -> Tensor:
    return (sharp * torch.randn(n, K, generator=seeded(seed))).log_softmax(1)


def certain(label: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(label, K).float().clamp(min=1e-13).log()


def seen(label: Tensor, accuracy: float, seed: int) -> Tensor:
    """What a calibrated machine says, log s (n, K): certain to ``accuracy``, right as often as it says."""
    right = torch.rand(len(label), generator=seeded(seed)) < accuracy
    other = (label + torch.randint(1, K, (len(label),), generator=seeded(seed + 1))) % K
    share = torch.full((len(label), K), (1 - accuracy) / (K - 1))
    return share.scatter_(1, torch.where(right, label, other)[:, None], accuracy).log()


def slow_confusion(log_belief: Tensor, log_answer: Tensor, prior: Tensor, steps: int) -> tuple[Tensor, list[float]]:
    """EM over (true class, seen class) of one item after another, and the objective before each step."""
    counts, history = prior.double(), []
    belief, answer = log_belief.double().softmax(1), log_answer.double().exp()
    for _ in range(steps):
        w = counts / counts.sum(1, keepdim=True)
        counts, objective = prior.double().clone(), float((prior.double() * w.log()).sum())
        for b, s in zip(belief, answer, strict=True):
            joint = b[:, None] * s[None, :] * w
            objective += float(joint.sum().log())
            counts += joint / joint.sum()
        history.append(objective)
    return counts, history


@given(seed=st.integers(0, 999), n=st.integers(0, 30), strength=st.floats(0.5, 30.0))
@settings(max_examples=25, deadline=None)
def test_confusion_equals_a_loop_that_never_falls(seed: int, n: int, strength: float) -> None:
    belief, answer, prior = logs(n, seed), logs(n, seed + 1), homogeneous_prior(K, 0.7, strength)
    slow, history = slow_confusion(belief, answer, prior, 300)
    assert np.all(np.diff(history) >= -1e-9)
    torch.testing.assert_close(fit_confusion(belief, answer, prior).double(), slow, atol=2e-2 * max(1, n), rtol=1e-2)


def test_a_certain_machine_is_counted_as_a_person() -> None:
    label, answer = torch.tensor([0, 0, 1, 2, 3, 3]), torch.tensor([0, 1, 1, 2, 0, 3])
    counts = torch.zeros(K, K).index_put((label, answer), torch.ones(6), accumulate=True)
    prior = homogeneous_prior(K)
    torch.testing.assert_close(fit_confusion(certain(label), certain(answer), prior), prior + counts, atol=1e-4, rtol=1e-4)


def test_swapped_names_are_seen_through() -> None:
    label = torch.randint(0, K, (400,), generator=seeded(0))
    swapped = torch.tensor([1, 0, 2, 3])[label]
    said = seen(swapped, 0.9, seed=1)
    machine = Machine("m", said.__getitem__, fit_confusion(certain(label), said, homogeneous_prior(K)))
    evidence = machine.evidence(torch.arange(400))
    assert (said.argmax(1) == label).float().mean() < 0.55
    assert (evidence.argmax(1) == label).float().mean() > 0.85
    assert machine.confusion[0].argmax() == 1


def test_a_prototype_does_not_vouch_for_its_own_evidence() -> None:
    label, said, prior = torch.randint(0, K, (30,), generator=seeded(0)), logs(30, 1), homogeneous_prior(K)
    machine = Machine("m", said.__getitem__, fit_confusion(certain(label), said, prior))
    got = leave_one_out(machine, torch.arange(30), label)
    answer, w = said.exp(), machine.confusion
    for i, y in enumerate(label.tolist()):
        joint = answer[i] * w[y]
        counts = machine.counts.clone()
        counts[y] -= joint / joint.sum()
        want = (answer[i] @ (counts / counts.sum(1, keepdim=True)).T).log()
        torch.testing.assert_close(got[i], want, atol=1e-5, rtol=1e-4)


def answers_about(label: Tensor, model: Tensor, *machines: Tensor) -> FreshAnswers:
    nothing = torch.zeros_like(label)
    return FreshAnswers(model, torch.zeros_like(model), certain(label), nothing, torch.stack(machines, 1))


def test_what_two_machines_repeat_counts_once() -> None:
    label = torch.randint(0, K, (2000,), generator=seeded(0))
    model = seen(label, 0.7, seed=2)
    weights = fit_weights(answers_about(label, model, model, model), Tempering())
    torch.testing.assert_close(combine(model, torch.stack([model, model], 1), weights), model, atol=0.06, rtol=0.0)
    assert float(weights.sum()) == pytest.approx(1.0, abs=0.05)
    alone = seen(label, 0.6, seed=12)  # looks for itself: what it says comes on top
    weights = fit_weights(answers_about(label, model, model, alone), Tempering())
    assert float(weights[:2].sum()) == pytest.approx(1.0, abs=0.12)
    assert float(weights[2]) == pytest.approx(1.0, abs=0.2)


def test_a_machine_that_knows_nothing_weighs_nothing() -> None:
    label = torch.randint(0, K, (2000,), generator=seeded(0))
    model, noise = seen(label, 0.7, seed=2), logs(2000, 9)
    weights = fit_weights(answers_about(label, model, noise), Tempering())
    assert float(weights[0]) == pytest.approx(1.0, abs=0.1)
    assert float(weights[1]) < 0.1


def test_without_evidence_the_weights_are_even() -> None:
    none = FreshAnswers(*(torch.zeros(0, K) for _ in range(3)), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, K))
    torch.testing.assert_close(fit_weights(none, Tempering()), even_weights(2))


@given(seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_combined_prior_is_a_distribution(seed: int) -> None:
    model, said = logs(20, seed), logs(20, seed + 1)
    machine = Machine("m", said.__getitem__, homogeneous_prior(K))
    prior = with_machines(model.__getitem__, [machine], torch.tensor([0.5, 0.8]))
    rows = torch.tensor([3, 7, 7])
    torch.testing.assert_close(prior(rows).exp().sum(1), torch.ones(3))
    want = (0.5 * model + 0.8 * machine.evidence(torch.arange(20))).log_softmax(1)[rows]
    torch.testing.assert_close(prior(rows), want)
    assert with_machines(model.__getitem__, [], even_weights(0)) == model.__getitem__
    fresh = as_answers([machine], rows, torch.tensor([0, 1, 2]), model.__getitem__)
    assert fresh.machines is not None
    assert fresh.machines.shape == (3, 1, K)


# Runs


@pytest.fixture
def scores(bank: Bank, tmp_path: Path) -> Path:
    """What a model with a fair eye says: right in 70% of the items, and never sure."""
    truth = pd.read_csv(bank.labels, dtype=str)["label"]
    label = torch.from_numpy(pd.Categorical(truth).codes.astype("int64"))
    path = tmp_path / "scores.npy"
    np.save(path, seen(label, 0.7, seed=5).exp().numpy())
    return path


def banks(*entries: dict[str, object]) -> str:
    return json.dumps([{name: str(value) for name, value in entry.items()} for entry in entries])


def test_runs_with_machines_resume_and_leave_their_skills(bank: Bank, scores: Path, tmp_path: Path) -> None:
    noise = np.load(bank.features) + np.random.default_rng(0).normal(0, 3.0, np.load(bank.features).shape).astype("float32")
    np.save(tmp_path / "poor.npy", noise.astype("float32"))
    chosen = bank.settings(
        **{"data.banks": banks({"features": tmp_path / "poor.npy", "machine": "poor"}, {"scores": scores, "machine": "words"})}
    )
    whole = fit(chosen, tmp_path / "whole")
    parts = fit(chosen, tmp_path / "parts", trainer__max_epochs=2)
    fit(chosen, parts)
    assert_equal_runs(parts, whole)
    machines = pd.read_csv(whole / "machines.csv")
    assert machines["machine"].tolist() == ["poor", "words"]
    assert (machines["accuracy_low"] < machines["accuracy_mean"]).all()
    assert (whole / "machines.csv").read_text() == (parts / "machines.csv").read_text()
    with np.load(whole / "confusions.npz") as arrays:
        assert arrays["machines"].tolist() == ["poor", "words"]
        np.testing.assert_allclose(arrays["machine_confusions"].sum(2), 1.0, rtol=1e-5)
    assert "Machine workers" in (whole / "report.html").read_text()
    assert json.loads((whole / "summary.json").read_text())["learner_weight"] > 0
    assert {"learners.0.heads.weights.0", "learners.1.heads.weights.0"} <= checkpoint(whole)["state_dict"].keys()
    assert call("test", {**chosen, "annotation.output_dir": whole}).status == 0
    assert call("predict", {**chosen, "annotation.output_dir": whole}).status == 0


def test_a_machine_is_worth_answers(bank: Bank, scores: Path, tmp_path: Path) -> None:
    weak = tmp_path / "weak.npy"
    np.save(weak, np.random.default_rng(1).normal(size=np.load(bank.features).shape).astype("float32"))
    chosen = bank.settings(**{"data.features": weak})
    alone = rounds(fit(chosen, tmp_path / "alone"))
    helped = rounds(fit({**chosen, "data.banks": banks({"scores": scores, "machine": "words"})}, tmp_path / "helped"))
    assert (helped["accuracy"] > alone["accuracy"] + 0.2).all()


def test_joined_features_are_seen_together(bank: Bank, tmp_path: Path) -> None:
    both = np.load(bank.features)
    half = both.shape[1] // 2
    for name, part in (("left", both[:, :half]), ("right", both[:, half:])):
        np.save(tmp_path / f"{name}.npy", np.ascontiguousarray(part))
    chosen = bank.settings(
        **{"data.features": tmp_path / "left.npy", "data.banks": banks({"features": tmp_path / "right.npy"})}
    )
    run = fit(chosen, tmp_path / "joined")
    alone = fit({**chosen, "data.banks": None}, tmp_path / "left")
    assert rounds(run)["learner_accuracy"].iloc[-1] > rounds(alone)["learner_accuracy"].iloc[-1]
    width = checkpoint(run)["state_dict"]["learners.0.heads.weights.0"].shape[1]
    assert width == 2 * checkpoint(alone)["state_dict"]["learners.0.heads.weights.0"].shape[1]
    assert not (run / "machines.csv").exists()
    assert call("predict", {**chosen, "annotation.output_dir": run}).status == 0


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "has none of features, backbone, scores"),
        ({"features": "a.npy", "scores": "b.npy", "machine": "m"}, "features and scores"),
        ({"scores": "SCORES"}, "without a machine"),
        ({"features": "SCORES", "machine": "m", "prompts": "[a]"}, "need an image-text backbone"),
        ({"scores": "SHORT", "machine": "m"}, "has 299 rows, and there are 300 items"),
        ({"scores": "NARROW", "machine": "m"}, "has 3 columns, and there are 4 classes"),
        ({"backbone": "{name: resnet10t}", "machine": "m"}, "this run has no images"),
    ],
)
def test_banks_are_checked(entry: dict[str, str], message: str, bank: Bank, scores: Path, tmp_path: Path) -> None:
    table = np.load(scores)
    np.save(tmp_path / "short.npy", table[:299])
    np.save(tmp_path / "narrow.npy", table[:, :3])
    paths = {"SCORES": scores, "SHORT": tmp_path / "short.npy", "NARROW": tmp_path / "narrow.npy"}
    text = ", ".join(f"{name}: {paths.get(value, value)}" for name, value in entry.items())
    result = call("fit", bank.settings(**{"data.banks": f"[{{{text}}}]", "annotation.output_dir": tmp_path / "run"}))
    assert result.status != 0
    assert message in result.err


def test_two_machines_need_two_names(bank: Bank, scores: Path, tmp_path: Path) -> None:
    twice = banks(*[{"scores": scores, "machine": "words"}] * 2)
    result = call("fit", bank.settings(**{"data.banks": twice, "annotation.output_dir": tmp_path / "run"}))
    assert "names the machine 'words' twice" in result.err
    extra = bank.settings(
        **{"data.banks": banks({"scores": scores, "machine": "words"}), "data.unlabelled_extra": bank.features}
    )
    assert "leave one out" in call("fit", {**extra, "annotation.output_dir": tmp_path / "run"}).err
    with pytest.raises(AnnotError, match="has no learners for them"):
        MachinePanel(object(), torch.zeros(1, 1), torch.zeros(1), ["m"], {})  # type: ignore[arg-type]


def test_machines_are_judged_by_answers_where_there_are_no_prototypes(bank: Bank, scores: Path, tmp_path: Path) -> None:
    words = banks({"scores": scores, "machine": "words"})
    chosen = bank.settings(**{"data.banks": words, "data.prototypes_per_class": 0, "trainer.max_epochs": 5})
    run = fit(chosen, tmp_path / "run")
    machine = pd.read_csv(run / "machines.csv").iloc[0]
    assert machine["accuracy_low"] < 0.85
    assert rounds(run)["accuracy"].iloc[-1] > 0.8
