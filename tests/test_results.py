"""Figures, tables and sentences from run folders; the page of results from made-up runs and, in miniature, from real ones."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_runs import Bank
from made_up_runs import make_up
from test_ablate import write_config
from test_scripts import check_picture, load_script

from lightning_annot.experiments import page
from lightning_annot.experiments.book import write_book
from lightning_annot.experiments.chapters import Book
from lightning_annot.experiments.curves import correlation, importance, mean_curve, read_runs, to_level, value_at
from lightning_annot.experiments.grid import expand, unique
from lightning_annot.experiments.peers import read_peers
from lightning_annot.experiments.plan import GRIDS, Plan, cells_of, large, small
from lightning_annot.experiments.released import read_baselines
from lightning_annot.experiments.specs import SPECS, panels_of, read_paper
from lightning_annot.types import AnnotError

RESULTS = load_script("results")
PAPER = '{"risk": {"Dog|C=.1": [[0, 50], [2, 90]]}, "semi": {"Dog|Pseudolabel": [[0, 50], [2, 80]]}}'


@pytest.fixture(scope="module")
def small_grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up runs of a grid of thresholds and assignments."""
    directory = tmp_path_factory.mktemp("made_up")
    thresholds = expand({"group": ["dog"], "threshold": [0.1, 0.3], "seed": [1, 1001]})
    assigned = expand({"group": ["dog"], "assignment": ["random", "greedy"], "seed": [1, 1001]})
    make_up(thresholds + assigned, directory)
    return directory


def test_curves_are_carried_on_and_levels_are_whole_rounds(small_grid: Path) -> None:
    early, late = (next(r for r in read_runs(small_grid) if r.given.get("threshold") == c) for c in (0.3, 0.1))
    curve = mean_curve([early, late], "accuracy")
    end = [run.rounds["accuracy"].iloc[-1] for run in (early, late)]
    assert curve.mean[-1] == pytest.approx(np.mean(end))
    assert curve.sd[-1] == pytest.approx(np.std(end, ddof=1))
    assert curve.x[-1] == late.rounds["annotations_per_item"].iloc[-1]
    assert np.isnan(value_at(late.rounds, "finished_precision", 0.05))
    reached = to_level(late, 0.8)
    assert late.rounds.set_index("annotations_per_item").loc[reached, "accuracy"] >= 0.8
    assert np.isnan(to_level(late, 2.0))


def test_importance_favours_those_who_are_good_where_the_model_is_bad(small_grid: Path) -> None:
    greedy = next(run for run in read_runs(small_grid) if run.given.get("assignment") == "greedy")
    table = importance(greedy)
    with np.load(greedy.folder / "simulated_workers.npz") as arrays:
        diagonal = arrays["confusions"].diagonal(axis1=1, axis2=2)
    by_class = 1 / np.array(greedy.summary["learner_class_accuracy"])
    np.testing.assert_allclose(table["importance"], (diagonal * by_class).sum(1) / by_class.sum())
    assert correlation(table) > 0.9
    assert np.isnan(correlation(table.assign(answers=3)))


def test_figures_script_draws_what_varies(small_grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, paper = load_script("figures"), tmp_path / "paper.json"
    paper.write_text(PAPER)
    assert script.main([str(small_grid), "--out", str(tmp_path), "--paper", str(paper)]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.stem for path in written] == ["threshold", "assignment", "importance", "confusions"]
    for path in written:
        check_picture(path)
    assert script.main([str(tmp_path), "--paper", str(tmp_path / "none.json")]) == 2
    shown = capsys.readouterr().err
    assert "no dashed lines" in shown
    assert "no run that has ended" in shown


def test_lines_differ_by_one_thing_and_panels_by_the_rest(small_grid: Path) -> None:
    spec = next(spec for spec in SPECS if spec.name == "threshold")
    (panel,) = panels_of(spec, read_runs(small_grid))
    assert panel.title == "dog workers"
    assert {label: len(runs) for label, runs in panel.lines.items()} == {"C = 0.1": 2, "C = 0.3": 2}


def test_sentences_say_when_a_claim_fails() -> None:
    assert page.ordering(["a", "b"], [[0.8], [0.9]], [True]) == "holds (a 80.0, b 90.0 %)."
    assert page.ordering(["a", "b"], [[0.9], [0.8]], [True]) == "does not hold: b (80.0 %) is not above a (90.0 %)."
    assert page.ordering(["a", "b"], [[0.9], [0.9]], [False]).startswith("holds")
    assert "10.0 points below" in page.difference("a", [0.8, 0.8], "b", [0.9, 0.9])
    assert "within the spread" in page.difference("a", [0.8, 0.9], "b", [0.84, 0.88])
    assert page.trend([[1], [2], [3]]) == "rises"
    assert page.trend([[1], [1]]) == "does not change"
    assert page.trend([[1], [2], [2]]) == "neither rises nor falls throughout"
    assert page.reached([0.5, float("nan")]) == "0.50 (1 of 2)"
    assert page.reached([float("nan")]) == "not reached"


@pytest.mark.parametrize(("plan", "most"), [(Plan(), 190), (large(Plan()), 420), (small(Plan()), 50)])
def test_plans_are_possible_and_not_too_large(plan: Plan, most: int) -> None:
    cells = cells_of(plan, list(GRIDS))
    assert len(unique(cell for some in cells.values() for cell in some)) <= most
    assert set(cells_of(Plan(grouped=False), list(GRIDS))) == set(GRIDS) - {"released", "priors", "noise", "distractors"}


def make_tables(folder: Path, rounds: pd.DataFrame) -> None:
    """The released code's curves of both groups, a curve of the paper, and a table of peers, all made up."""
    for name in ("dog", "commodity"):
        methods = ("ds_model", "lean", "improved_lean", "efficient_annotation")
        table = pd.concat([rounds[["annotations_per_item", "accuracy"]].assign(method=method, seed=1) for method in methods])
        table.to_csv(folder / f"released_code_{name}.csv", index=False)
    peers = [
        {"setting": "digits", "method": method, "answers_per_item": x, "seed": seed, "accuracy": 0.8 + 0.05 * x + bonus}
        for method, bonus in (("ours", 0.0), ("theirs", 0.02))
        for x in (1, 2)
        for seed in (1, 2)
    ]
    rest = {"ece": 0.02, "finished_fraction": 0.9, "finished_precision": 0.97, "seconds": 1.0}
    pd.DataFrame(peers).assign(**rest).to_csv(folder / "peers.csv", index=False)
    (folder / "paper.json").write_text(PAPER)


def test_every_section_is_written_from_run_files(tmp_path: Path) -> None:
    cells = cells_of(Plan(seeds=(11, 1012)), list(GRIDS))
    runs, out = tmp_path / "runs", tmp_path / "docs" / "results.md"
    make_up(unique(cell for some in cells.values() for cell in some)[1:], runs)  # one never ended
    make_tables(tmp_path, pd.read_csv(next(runs.glob("*/rounds.csv"))))
    book = Book(out.parent, out.parent / "results", read_paper(tmp_path / "paper.json"), read_baselines(tmp_path))
    write_book(out, cells, runs, book, read_peers(tmp_path / "peers.csv"))
    text = out.read_text()
    for title in ("Against the released code", "Methods", "Number of workers", "Task assignment", "Real people", "Peers"):
        assert f"## {title}" in text
    assert "1 of 16 runs have not ended" in text
    assert "a CPU, 2 cores, 8 GiB" in text
    assert "oracle-prior" in text
    assert "theirs is 2.0 points above ours" in text
    assert re.search(r"ours\. At 0\.5 answers an image it (holds|does not hold)", text)
    assert "nan" not in text
    assert "None" not in text
    assert str(tmp_path) not in text
    pictures = re.findall(r"\]\((.*?)\)", text)
    assert len(pictures) > 15
    for picture in pictures:
        check_picture(out.parent / picture)


def test_miniature_runs_for_real(bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(bank, tmp_path / "tiny.yaml")
    words = ["--miniature", "--only", "threshold", "noise", "--config", str(config), "--runs", str(tmp_path / "runs")]
    out = tmp_path / "results.md"
    assert RESULTS.main([*words, "--out", str(out), "--jobs", "2", "--paper", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "without noise" in shown.err
    assert "2 done" in shown.out
    assert "## Risk threshold" in out.read_text()
    check_picture(tmp_path / "results" / "threshold.png")


def test_results_refuses_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert RESULTS.main(["--config", "absent.yaml", "--runs", str(tmp_path)]) == 2
    assert "absent.yaml does not exist" in capsys.readouterr().err
    with pytest.raises(AnnotError, match="no run that has ended"):
        read_runs(tmp_path)
    assert read_paper(tmp_path / "absent.json") == {}
