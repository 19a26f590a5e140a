"""Other people's methods: ActiveLab as a rule for the next question, and the script that compares labels on equal terms."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import ROOT, SHARED, Bank, call, fit, questions
from torch import Tensor

from lightning_annot.round.choice import Panel, choose
from lightning_annot.round.facts import Basis, Facts
from lightning_annot.round.inference import infer
from lightning_annot.round.settings import CrowdSettings, SamplingSettings
from lightning_annot.sampling.activelab import activelab, best_first, wide_answers
from lightning_annot.types import Annotations

N, K, W = 40, 3, 4
ANSWERED = 30  # the first items; each by one to three workers, who are mostly right
FIGURES = ["accuracy", "ece", "finished_fraction", "finished_precision", "seconds"]
Rows = list[list[float]]


def people() -> list[dict[int, int]]:
    """What was said of each answered item: worker -> answer. Item i is of class i modulo K."""
    rng = np.random.default_rng(5)
    workers = [rng.permutation(W)[: 1 + i % 3].tolist() for i in range(ANSWERED)]
    return [{j: i % K if rng.random() < 0.8 else int(rng.integers(K)) for j in some} for i, some in enumerate(workers)]


def annotations(said: list[dict[int, int]], first: int = 0) -> Annotations:
    """Answers about the items from ``first`` on."""
    rows = [(i, j, z) for i, labels in enumerate(said, first) for j, z in labels.items()]
    return Annotations(*torch.tensor(rows, dtype=torch.int64).reshape(-1, 3).T)


def probabilities() -> Tensor:
    """(N, K), mostly right, so that the model has a weight."""
    right = torch.nn.functional.one_hot(torch.arange(N) % K, K)
    return (2.0 * right + 2.5 * torch.rand(N, K, generator=seeded(3), dtype=torch.float64)).softmax(1)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tempered(rows: Rows, t: float) -> Rows:
    powers = [[p ** (1.0 / t) for p in row] for row in rows]
    return [[p / sum(row) for p in row] for row in powers]


def slow_temperature(said: list[dict[int, int]], rows: Rows) -> float:
    """By thirds: the loss has one valley."""

    def loss(t: float) -> float:
        p = tempered(rows, t)
        return -sum(sum(math.log(p[i][z]) for z in labels.values()) / len(labels) for i, labels in enumerate(said))

    low, high = 0.1, 8.0
    while high - low > 1e-7:
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return low


def slow_weights(said: list[dict[int, int]], label: list[int], rows: Rows) -> tuple[list[float], float, float]:
    """CROWDLAB's weights of the workers and of the model, and how often an answer is ``label``."""
    several = [i for i, labels in enumerate(said) if len(labels) > 1]
    constant = 1.0 - max(sum(label[i] == k for i in several) for k in range(K)) / len(several)
    workers = []
    for j in range(W):
        same = [labels[j] == z for labels in said if j in labels for o, z in labels.items() if o != j]
        workers.append(max(1e-6, 1.0 - (1.0 - sum(same) / len(same)) / constant))
    wrong = sum(rows[i].index(max(rows[i])) != label[i] for i in several) / len(several)
    model = max(1e-6, 1.0 - wrong / constant) * math.sqrt(sum(map(len, said)) / len(said))
    agreed = sum(sum(z == label[i] for z in said[i].values()) / len(said[i]) for i in several) / len(several)
    return workers, model, agreed


def slow_consensus(said: list[dict[int, int]], label: list[int], rows: Rows) -> Rows:
    """CROWDLAB's weighted average of model and workers, (n, K)."""
    workers, model, agreed = slow_weights(said, label, rows)
    out = []
    for i, labels in enumerate(said):
        total = model + sum(workers[j] for j in labels)
        votes = [sum(workers[j] * (agreed if z == k else (1 - agreed) / (K - 1)) for j, z in labels.items()) for k in range(K)]
        out.append([(model * rows[i][k] + votes[k]) / total for k in range(K)])
    return out


def slow_activelab(said: list[dict[int, int]], rows: Rows) -> list[float]:
    """Scores of all items; those after ``said`` have no answer."""
    p = tempered(rows, slow_temperature(said, rows))
    counts = [[list(labels.values()).count(k) for k in range(K)] for labels in said]
    label = [max(range(K), key=lambda k: (counts[i][k], p[i][k])) for i in range(len(said))]
    label = [row.index(max(row)) for row in slow_consensus(said, label, p)]
    quality = [row[label[i]] for i, row in enumerate(slow_consensus(said, label, p))]
    workers, model, _ = slow_weights(said, label, p)
    mean, out = sum(workers) / W, []
    for i in range(len(rows)):
        own = model + (sum(workers[j] for j in said[i]) if i < len(said) else 0.0)
        best = quality[i] if i < len(said) else max(p[i])
        out.append(-(best * own + mean / K) / (own + mean))
    return out


def test_activelab_equals_loops() -> None:
    pytest.importorskip("cleanlab")
    p, said = probabilities(), people()
    score = activelab(annotations(said), p.log())
    want = torch.tensor(slow_activelab(said, p.tolist()), dtype=torch.float64)
    torch.testing.assert_close(score, want, rtol=0.0, atol=1e-5)
    assert score.unique().numel() > ANSWERED  # the weights have not all collapsed


def test_activelab_knows_items_by_row() -> None:
    """Moving the unanswered items to the front moves the scores; giving the workers other numbers changes nothing."""
    pytest.importorskip("cleanlab")
    p, plain = probabilities(), annotations(people())
    moved = Annotations(plain.item + 2, plain.worker * 5 + 1, plain.label)
    torch.testing.assert_close(activelab(moved, p.roll(2, 0).log()), activelab(plain, p.log()).roll(2, 0))


@pytest.mark.parametrize("said", [[], [{0: 1}, {0: 2}], [{j: 0} for j in range(N)]], ids=["none", "some once", "all once"])
def test_activelab_before_anybody_answers_twice(said: list[dict[int, int]]) -> None:
    """Without a second answer all weights are 1: an answered item has one more voice for what it says."""
    pytest.importorskip("cleanlab")
    p = probabilities()
    want = [-(float(row.max()) + 1 / K) / 2 for row in p]
    for i, labels in enumerate(said):
        (z,) = labels.values()
        want[i] = -(2 * float(p[i, z]) + 1 / K) / 3
    torch.testing.assert_close(activelab(annotations(said), p.log()), torch.tensor(want, dtype=torch.float64))


def test_wide_answers() -> None:
    items, wide = wide_answers(annotations([{7: 1, 2: 0}, {2: 2}], first=4))
    assert items.tolist() == [4, 5]
    assert torch.from_numpy(wide).nan_to_num(-1.0).tolist() == [[0.0, 1.0], [2.0, -1.0]]


def test_best_first_is_sorted_and_draws_among_equals() -> None:
    score = torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0])
    orders = [best_first(score, 3, seeded(seed)).tolist() for seed in range(40)]
    assert all(order[:2] == [1, 3] for order in orders)
    assert {order[2] for order in orders} == {0, 2, 4}
    assert best_first(score, 3, seeded(1)).tolist() == best_first(score, 3, seeded(1)).tolist()
    assert len(best_first(score, 9, seeded(0))) == 5
    assert len(best_first(score[:0], 9, seeded(0))) == 0


def test_activelab_runs(bank: Bank, tmp_path: Path) -> None:
    pytest.importorskip("cleanlab")
    settings = bank.settings(**{"annotation.sampling.items": "activelab", "annotation.threshold": 0.01})
    asked = questions(fit(settings, tmp_path))
    assert asked.groupby("round").size().tolist() == [20, 20]


def test_activelab_without_cleanlab(bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.multiannotator", None)
    settings = bank.settings(**{"annotation.sampling.items": "activelab", "annotation.output_dir": tmp_path})
    result = call("fit", settings)
    assert result.status == 2
    assert "lightning-annot[peers]" in result.err


def test_choice_by_activelab_takes_the_best_candidates() -> None:
    pytest.importorskip("cleanlab")
    plain, p = annotations(people()), probabilities()
    facts = Facts(("a", "b", "c", "d"), plain.item, plain.worker, plain.label, torch.tensor([7]), torch.tensor([0]))
    nobody = torch.full((N,), -1)
    basis = Basis(facts, p.log().float().__getitem__, nobody, N, K)
    inference = infer(basis, CrowdSettings(), 0.1)
    among, settings = torch.arange(0, N, 2), SamplingSettings(items="activelab")
    chosen, _ = choose(basis, inference, among, 6, settings, seeded(0), Panel(0))
    score = activelab(plain, p.log().float())
    assert chosen.tolist() == sorted(among.tolist(), key=lambda i: -float(score[i]))[:6]


def load(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("compare_peers")


def compare(monkeypatch: pytest.MonkeyPatch, bank: Bank, *words: str) -> int:
    script = load(monkeypatch)
    files = ["--features", bank.features, "--labels", bank.labels, "--answers", bank.answers]
    status: int = script.main([*map(str, files), "--seeds", "11", *words])
    return status


def test_peers_are_compared(bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cleanlab")
    pytest.importorskip("crowdkit")
    out = tmp_path / "peers.csv"
    assert compare(monkeypatch, bank, "--out", str(out)) == 0
    table = pd.read_csv(out)
    assert list(table) == ["setting", "method", "answers_per_item", "seed", *FIGURES]
    assert set(table["method"]) == {
        "majority vote", "wawa", "dawid-skene", "one-coin", "mace", "glad", "em", "crowdlab", "ours",
        "crowdlab (our probabilities)",
    }  # fmt: skip
    assert bool((table["accuracy"] > 0.8).all())
    assert bool(table[["ece", "finished_fraction"]].stack().between(0.0, 1.0).all())
    accuracy = table.set_index("method")["accuracy"]
    assert accuracy["ours"] > accuracy["majority vote"]


def test_peers_with_one_answer(
    bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CROWDLAB is left out, and says why."""
    pytest.importorskip("cleanlab")
    pytest.importorskip("crowdkit")
    out = tmp_path / "peers.csv"
    chosen = ["--methods", "majority vote", "crowdlab", "--items", "100", "--answers-per-item", "1", "--out", str(out)]
    assert compare(monkeypatch, bank, *chosen) == 0
    assert pd.read_csv(out)["method"].tolist() == ["majority vote"]
    assert "needs items with two answers" in capsys.readouterr().out


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside the project")
def test_peers_with_simulated_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every item has three answers by three workers, and another seed is another crowd."""
    pytest.importorskip("cleanlab")
    pytest.importorskip("crowdkit")
    script, out = load(monkeypatch), tmp_path / "peers.csv"
    words = ["--group", "dog", "--workers", "5", "--items", "300", "--methods", "majority vote", "--out", str(out)]
    assert script.main([*words, "--seeds", "11", "12"]) == 0
    table = pd.read_csv(out)
    assert table["setting"].tolist() == ["dog", "dog"]
    assert table["accuracy"].nunique() == 2
    replay = script.prepare(script.parse(words), 11, tmp_path)
    assert set(replay.answers.groupby("task")["worker"].nunique()) == {3}
    assert len(replay.answers) == 3 * (300 - 100)  # without the prototypes


def test_peers_that_are_not_installed(bank: Bank, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "crowdkit.aggregation", None)
    assert compare(monkeypatch, bank) == 2
    assert "pip install -e '.[peers]'" in capsys.readouterr().err


def test_unknown_peers_and_files_are_refused(
    bank: Bank, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cleanlab")
    pytest.importorskip("crowdkit")
    assert compare(monkeypatch, bank, "--methods", "nobody") == 2
    assert "unknown methods ['nobody']" in capsys.readouterr().err
    assert compare(monkeypatch, bank, "--features", "nothing.npy") == 2
    assert "nothing.npy could not be read" in capsys.readouterr().err
