"""Whether a round goes on, and what it may ask."""

from __future__ import annotations

from pathlib import Path

import torch
from test_round import N, W, basis, inference, make_facts, some_prototypes

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.callbacks.asking import Asking, Terms
from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.ledger import Ledger
from lightning_annot.round.settings import SamplingSettings, TrustSettings
from lightning_annot.sampling.price import PriceSettings
from lightning_annot.sampling.stopping import StopSettings
from lightning_annot.types import Task
from lightning_annot.workers.recorded import RecordedWorkers
from lightning_annot.workers.simulated import UniformNoiseWorkers


def test_a_round_that_is_concluded_again_does_not_know_its_own_answers(tmp_path: Path) -> None:
    """How far a round's answers were foreseen counts from the next round on, so a resumed run stops in the same round."""
    workers, facts = UniformNoiseWorkers(W), make_facts()
    items = [str(i) for i in range(N)]
    workers.bind(Task(items, ("a", "b", "c"), 0, str(tmp_path), truth=dict.fromkeys(items, "a")))
    stopping = StopSettings(patience=1)
    terms = Terms(workers, SamplingSettings(), stopping, PriceSettings(), {}, 0, 0.0, TrustSettings())
    found, nobody = inference(facts, threshold=0.4), torch.zeros(W, dtype=torch.bool)
    asking = Asking(terms, AnnotationDataModule(), 2, basis(facts), found, nobody, nobody, None)
    ordinary = some_prototypes() < 0
    share, risk = float(found.finished[ordinary].double().mean()), float(found.decision.risk[ordinary].mean())
    first, second = ({"finished_fraction": share, "mean_risk": risk - 0.01, "fresh_gain": gain} for gain in (0.5, 0.4))
    this = {
        "finished_fraction": 0.0,
        "mean_risk": 0.0,
    }  # is counted again: it may have become another by answers imported since
    reason = asking.stop_reason([first, second, this], last_round=False)
    assert reason is not None
    assert reason.startswith("no progress for 1 rounds")
    assert asking.stop_reason([first, second, this | {"fresh_gain": 0.9}], last_round=False) == reason
    assert asking.stop_reason([first, second | {"fresh_gain": 0.6}, this], last_round=False) is None
    assert asking.stop_reason([first, second | {"mean_risk": risk + 0.01}, this], last_round=False) is None
    assert asking.stop_reason([first, second | {"finished_fraction": share - 0.1}, this], last_round=False) is None


def test_recorded_answers_of_barred_workers_are_used_up(tmp_path: Path) -> None:
    """A second answer to an item whose recorded answers are all given, by workers who are not believed, cannot be had."""
    items = [str(i) for i in range(N)]
    rows = [f"{item},w{j},a" for item in items for j in range(2)]
    (tmp_path / "recorded.csv").write_text("\n".join(["task,worker,label", *rows]))
    workers = RecordedWorkers(str(tmp_path / "recorded.csv"))
    with AnnotationLog(tmp_path / "annotations.db") as log:
        ledger = Ledger(log, Task(items, ("a", "b", "c"), 0, str(tmp_path)), workers)
        first = torch.arange(N // 2)
        twice = torch.cat([first, first[:20]])
        ledger.ask(0, twice, torch.full_like(twice, -1), torch.zeros(len(twice), dtype=torch.bool))
        assert ledger.collect() == 50
        facts = ledger.facts(1)
        barred = torch.ones(2, dtype=torch.bool)
        terms = Terms(workers, SamplingSettings(), StopSettings(), PriceSettings(), {}, 0, 0.0, TrustSettings())
        found = inference(facts.without(barred), threshold=1e-6)
        data = AnnotationDataModule()
        asking = Asking(terms, data, 1, basis(facts), found, barred, torch.zeros_like(barred), None)
        left = set(range(20, N)) - {20}  # 3, 10 and 20 are prototypes
        assert set(asking.among.tolist()) == left
        ledger.ask(1, asking.among, torch.full_like(asking.among, -1), torch.zeros(len(left), dtype=torch.bool))
        assert ledger.collect() == len(left)
        everything = Asking(terms, data, 2, basis(ledger.facts(2)), found, barred, torch.zeros_like(barred), None)
        assert everything.among.tolist() == list(range(N // 2, N))
