"""A start without prototypes: the first questions go to items that differ, and the run goes on like any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from cli_runs import Bank, answers, assert_equal_runs, call, fit, questions, rounds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_annot.sampling import diverse as module
from lightning_annot.sampling.diverse import diverse, is_diverse_round, unseen_classes
from lightning_annot.types import Annotations

WITHOUT = {"data.prototypes_per_class": 0}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(n: int, k: int, d: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points (n, d) around ``k`` centres that lie far apart, the later ones rarer, and the centre of each point."""
    generator = seeded(seed)
    centres = 20 * torch.randn(k, d, generator=generator)
    label = (k * torch.rand(n, generator=generator).square()).long()
    label[:k] = torch.arange(k)
    return centres[label] + torch.randn(n, d, generator=generator), label


@pytest.mark.parametrize("seed", range(5))
def test_each_of_ten_blobs_gets_one_of_ten_questions(seed: int) -> None:
    features, label = blobs(600, 10, seed=seed)
    among = torch.arange(0, 600, 2)
    chosen = diverse(features, among, 10, seeded(seed))
    assert label[chosen].unique().tolist() == label[among].unique().tolist()
    assert torch.equal(chosen, diverse(features, among, 10, seeded(seed)))
    for row in chosen.tolist():  # near the centre of its blob, as mini batches find it
        own = among[label[among] == label[row]]
        centre = features[own].mean(0)
        assert float((features[row] - centre).norm()) <= float((features[own] - centre).norm(dim=1).median())


@given(n=st.integers(0, 60), size=st.integers(0, 50), seed=st.integers(0, 99), clusters=st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_as_many_distinct_items_as_there_are(n: int, size: int, seed: int, clusters: int) -> None:
    features = torch.randn(80, 3, generator=seeded(seed))
    features[::3] = 1.0  # many alike: fewer clusters than questions
    among = torch.randperm(80, generator=seeded(seed))[:size]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_CLUSTERS", clusters)
        patch.setattr(module, "MOST_ROWS", 20)
        chosen = diverse(features, among, n, seeded(seed))
    assert len(chosen) == len(chosen.unique()) == min(n, size)
    assert bool(torch.isin(chosen, among).all())


def test_time_is_bounded_by_a_sample() -> None:
    features = torch.zeros(1, 4).expand(3_000_000, 4)  # no memory of its own: only a sample may be gathered
    assert len(diverse(features, torch.arange(3_000_000), 5, seeded(0)).unique()) == 5


def test_a_class_is_seen_by_a_prototype_or_a_likely_answer() -> None:
    posterior = torch.tensor([[0.9, 0.1, 0.0, 0.0], [0.4, 0.3, 0.3, 0.0], [0.1, 0.8, 0.1, 0.0], [0.0, 0.0, 1.0, 0.0]])
    none, item = torch.full((4,), -1), torch.tensor([0, 1])
    given_ = Annotations(item, torch.zeros(2), torch.tensor([0, 2]))
    assert unseen_classes(posterior, given_, none).tolist() == [1, 2, 3]
    assert unseen_classes(posterior, given_, torch.tensor([-1, -1, -1, 3])).tolist() == [1, 2]
    nobody = Annotations(item[:0], item[:0], item[:0])
    assert unseen_classes(posterior, nobody, none).tolist() == [0, 1, 2, 3]


def test_diverse_rounds_become_rare() -> None:
    assert [r for r in range(40) if is_diverse_round(r)] == [0, 1, 3, 7, 15, 31]


@pytest.fixture(scope="module")
def whole(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(bank.settings(**WITHOUT), tmp_path_factory.mktemp("whole"), trainer__max_epochs=5)


def test_a_run_without_prototypes(whole: Path, bank: Bank) -> None:
    row = rounds(whole)
    assert row["annotations"].tolist() == [0, 20, 40, 60, 80]
    assert row["mean_risk"][0] == pytest.approx(0.75)
    of_finished = [name for name in row if name.startswith(("finished_precision", "finished_risk"))]  # of no item at first
    assert not row.drop(columns=[*of_finished, "fresh_gain"]).isna().any(axis=None)
    assert row["fresh_gain"].isna().tolist() == [False] * 4 + [True]  # the last round asks nothing
    assert row["accuracy"].iloc[-1] > 0.9
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["prototypes"] == 0
    assert not summary["prototypes_drawn"]
    assert summary["n_items"] == 300
    assert set(pd.read_csv(whole / "labels.csv")["status"]) == {"finished", "unfinished"}
    assert "<svg" in (whole / "report.html").read_text()
    truth = pd.read_csv(bank.labels, dtype=str).set_index("task")["label"]
    first = truth[questions(whole).query("round == 0")["item"]]
    assert set(first) == set(truth)
    assert first.value_counts().min() >= 3  # of 20 in four classes


def test_it_resumes_and_starts_again_alike(bank: Bank, whole: Path, tmp_path: Path) -> None:
    chosen = bank.settings(**WITHOUT)
    parts = fit(chosen, tmp_path / "parts", trainer__max_epochs=2)
    from_log = shutil.copytree(parts, tmp_path / "from_log")
    shutil.rmtree(from_log / "checkpoints")
    for run in (parts, from_log):
        fit(chosen, run, trainer__max_epochs=5)
        assert_equal_runs(run, whole)


def test_the_other_commands(bank: Bank, whole: Path) -> None:
    chosen = bank.settings(**WITHOUT, **{"annotation.output_dir": whole})
    assert call("test", chosen).status == 0
    said = call("validate", chosen)
    assert said.status != 0
    assert "this run has none" in said.err


def test_prototypes_of_a_part_of_the_classes(bank: Bank, tmp_path: Path) -> None:
    labels = pd.read_csv(bank.prototypes)
    labels[labels["label"] != "cow"].to_csv(tmp_path / "some.csv", index=False)
    given_ = {"data.prototypes": tmp_path / "some.csv", "annotation.output_dir": tmp_path / "refused"}
    refused = call("fit", bank.settings(**given_))
    assert refused.status != 0
    assert "1 classes without a prototype: ['cow']" in refused.err
    assert "data.prototypes_per_class is 0" in refused.err
    run = fit(bank.settings(**given_, **WITHOUT), tmp_path / "run")
    truth = pd.read_csv(bank.labels, dtype=str).set_index("task")["label"]
    assert "cow" in set(truth[questions(run).query("round == 0")["item"]])
    assert rounds(run)["accuracy"].iloc[-1] > 0.9


def test_people_begin_without_any_label(bank: Bank, tmp_path: Path) -> None:
    """Neither truth nor prototypes: named classes, two files, and answers that come later."""
    truth = pd.read_csv(bank.labels, dtype=str)
    truth[["task"]].to_csv(tmp_path / "items.csv", index=False)
    chosen = bank.settings(
        **WITHOUT,
        **{"data.labels": None, "data.items": tmp_path / "items.csv", "data.classes": "[ant,bee,cow,dog]"},
        **{"annotation.workers": "lightning_annot.workers.files.FileWorkers"},
    )
    run, label = tmp_path / "run", truth.set_index("task")["label"]
    answered = pd.DataFrame(columns=["task", "worker", "label"])
    for _ in range(3):
        fit(chosen, run, trainer__max_epochs=9)
        asked = pd.read_csv(run / "questions.csv", dtype=str)
        new = pd.DataFrame({"task": asked["task"], "worker": "anna", "label": label[asked["task"]].to_numpy()})
        answered = pd.concat([answered, new])
        answered.to_csv(run / "answers.csv", index=False)
    assert set(label[questions(run).query("round == 0")["item"]]) == set(label)
    result = pd.read_csv(run / "labels.csv", dtype=str).set_index("task")["label"]
    assert (result == label[result.index]).mean() > 0.9


@pytest.mark.parametrize("changes", [{"model.hidden": 8, "data.batches.shrink": True}, {"annotation.sampling.hit_size": 5}])
def test_other_learners_and_hits_start_without_prototypes(bank: Bank, tmp_path: Path, changes: dict[str, object]) -> None:
    run = fit(bank.settings(**WITHOUT, **changes), tmp_path / "run")
    assert len(answers(run)) == 40
    assert rounds(run)["accuracy"].iloc[-1] > 0.6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.keep_best": "round"}, "model.keep_best round given"),
        ({"data.holdout": "prototypes"}, "data.holdout prototypes with data.prototypes_per_class 0"),
        ({"annotation.gold": 2}, "annotation.gold 2 given without prototypes"),
    ],
)
def test_what_needs_prototypes_says_so(bank: Bank, tmp_path: Path, change: dict[str, object], message: str) -> None:
    said = call("fit", bank.settings(**WITHOUT, **change, **{"annotation.output_dir": tmp_path / "run"}))
    assert said.status != 0
    assert message in said.err
