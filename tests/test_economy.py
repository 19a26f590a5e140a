"""The benchmark of answers per image: its runs, the cuts of its data, and its tables."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cli_runs import Bank
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scripts import load_script

from lightning_annot.experiments.cuts import BankFiles, Cut, cut_bank, kept_rows
from lightning_annot.experiments.economy import COLUMNS, KEY, Method, Setting, note_rows, plan, read_method, read_table
from lightning_annot.experiments.economy_table import economy_page, mean_ci, paired_ratios
from lightning_annot.types import AnnotError
from lightning_annot.workers.amt import GROUP_NAMES

SCRIPT = load_script("bench_economy")
TINY = ["trainer.max_epochs=2", "data.prototypes_per_class=3", "data.batches.size=64", "data.batches.steps=8"]
CLASSES = ("ant", "bee", "cow", "dog")


@pytest.fixture(scope="module")
def amt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A made-up confusion study: six groups of four classes, three people in each."""
    folder, rng = tmp_path_factory.mktemp("amt"), np.random.default_rng(0)
    ids = [f"n{i:02d}" for i in range(4 * len(GROUP_NAMES))]
    counts = rng.integers(0, 3, (len(GROUP_NAMES), 3, len(ids), len(ids))) + 40 * np.eye(len(ids), dtype=int)
    people = {str(g): counts[g].tolist() for g in range(len(GROUP_NAMES))}
    (folder / "workers.json").write_text(json.dumps({"imagenet100": ids, "group_workers": people}))
    (folder / "groups.txt").write_text("\n\n".join("\n".join(ids[4 * g : 4 * g + 4]) for g in range(len(GROUP_NAMES))))
    return folder / "workers.json", folder / "groups.txt"


def words(bank: Bank, amt: tuple[Path, Path], out: Path, *more: str) -> list[str]:
    """Arguments of a benchmark of people and one group over the tiny bank."""
    data = ["--features", str(bank.features), "--labels", str(bank.labels), "--answers", str(bank.answers)]
    study = ["--workers-file", str(amt[0]), "--groups-file", str(amt[1]), "--group", "dog", "--workers", "6"]
    return [*data, *study, "--out", str(out), "--per-round", "20", *more, "--set", *TINY]


def test_runs_are_written_and_ended_ones_are_not_run_again(
    bank: Bank, amt: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, table = tmp_path / "R.csv", tmp_path / "R.md"
    methods = ["ours", "oracle", "oracle-best-worker", "steep:annotation.threshold=0.2,data.batches={size: 32, steps: 4}"]
    given = words(bank, amt, out, "--methods", *methods, "--seeds", "1", "--table", str(table))
    assert SCRIPT.main(given) == 0
    shown = capsys.readouterr().out
    assert "8 done, 0 skipped, 0 failed" in shown
    assert table.read_text() in shown
    assert "12 prototypes, which no figure counts, and 288 other items." in shown
    rows = pd.read_csv(out)
    assert tuple(rows) == COLUMNS
    note = " " + " ".join([*TINY, "per_round=20"])
    assert list(dict.fromkeys(rows["setting"])) == [f"people{note}", f"dog workers=6{note}"]
    assert list(rows["method"]) == ["ours", "oracle", "oracle-best-worker", "steep"] * 2
    for row in rows.itertuples():
        check_row(row._asdict(), tmp_path / "R")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "R").rglob("*") if path.is_file()}
    text = out.read_bytes()
    out.unlink()
    assert SCRIPT.main(given) == 0
    assert "0 done, 8 skipped, 0 failed" in capsys.readouterr().out
    assert out.read_bytes() == text
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


def check_row(row: dict[str, Any], runs: Path) -> None:
    """A row of R.csv tells what the rounds of its run say."""
    last = None
    for about in runs.glob("*/run.json"):
        rounds = pd.read_csv(about.parent / "rounds.csv")
        last = rounds.iloc[-1]
        if round(last["annotations_per_item"], 6) == row["end_annotations"] and round(last["ece"], 6) == row["ece"]:
            break
    else:
        raise AssertionError(f"no run ends as {row}")
    for name in ("accuracy", "finished_fraction", "finished_precision"):
        assert row[f"end_{name}".replace("end_finished", "finished")] == pytest.approx(last[name], abs=1e-6)
    assert row["ece_max"] == pytest.approx(rounds["ece"][1:].max(), abs=1e-6, nan_ok=True)
    many = rounds[(rounds["finished_fraction"] * 288 > 199.5) & (rounds["round"] > 0)]
    gap = 1 - many["finished_precision"] - many["finished_risk"]
    assert row["claim_gap_max"] == pytest.approx(gap.max(), abs=2e-6, nan_ok=True)
    for level in (80, 85, 90, 95):
        there = rounds.loc[rounds["accuracy"] >= level / 100, "annotations_per_item"]
        assert row[f"to{level}"] == pytest.approx(there.min(), abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "magic", "--group", "dog"], "method 'magic' given; allowed are majority_vote"),
        (["--methods", "ours:model.lr=1", "--group", "dog"], "its name must be a word that is none of"),
        (["--methods", "fast:model.lr", "--group", "dog"], "after the name come settings"),
        (["--methods", "a:seed_everything=1", "--group", "dog"], "seed_everything given as a setting"),
        (["--methods", "ours", "ours", "--group", "dog"], "method ours given twice"),
        (["--methods", "ours"], "no setting given; give --answers to replay people"),
        (["--methods", "ours", "--group", "cats"], "group 'cats' given; allowed are dog"),
        (["--methods", "ours", "--group", "dog", "--jobs", "0"], "jobs 0 given"),
        (["--methods", "ours", "--group", "dog", "--rows", "5"], "rows '5' given; it must be A:B"),
        (["--methods", "ours", "--group", "dog", "--rows", "7:7"], "A:B needs 0 <= A < B"),
        (["--methods", "ours", "--group", "dog", "--rows", "0:301"], "there are 300 items"),
        (["--methods", "ours", "--group", "dog", "--rows", "0:10"], "leaves 2 items of class 'cow'"),
        (["--methods", "ours", "--group", "dog", "--tail", "0.5"], "tail 0.5 given"),
        (["--methods", "ours", "--group", "dog", "--tail", "100"], "leaves 0 items of class 'dog'"),
        (["--methods", "ours", "--group", "dog", "--set", "method=lean"], "method given as a setting"),
        (["--methods", "ours", "--group", "dog", "--set", "lr"], "--set 'lr' given; it must be key=value"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    data = ["--features", str(bank.features), "--labels", str(bank.labels), "--out", str(tmp_path / "R.csv")]
    assert SCRIPT.main([*data, *more]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.csv"))


def test_a_file_of_another_kind_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "other.csv"
    out.write_text("a,b\n1,2\n")
    assert SCRIPT.main(["--group", "dog", "--methods", "ours", "--out", str(out)]) == 2
    assert "has the columns ['a', 'b']" in capsys.readouterr().err
    assert out.read_text() == "a,b\n1,2\n"


def test_methods_are_read() -> None:
    assert read_method("ours") == Method("ours")
    assert read_method("lean") == Method("lean", "lean")
    assert read_method("oracle") == Method("oracle", "oracle")
    found = read_method("x-1:data.batches={size: 3, steps: 4}, data.classes=[a,b],model.lr=0.1,method=lean")
    changes = {"data.batches": "{size: 3, steps: 4}", "data.classes": "[a,b]", "model.lr": "0.1", "method": "lean"}
    assert found == Method("x-1", None, changes)


def test_settings_of_a_row() -> None:
    setting = Setting("dog", "c.yaml", "dog", {"annotation.threshold": "0.1"})
    (ours, changed) = plan([setting], [Method("ours"), Method("x", None, {"annotation.threshold": "0.3"})], [4])
    assert ours.cell.settings == {
        "config": "c.yaml",
        "annotation.workers.group": "dog",
        "seed_everything": "4",
        "annotation.threshold": "0.1",
    }
    assert changed.cell.settings["annotation.threshold"] == "0.3"  # a method's settings go before those of all
    with pytest.raises(AnnotError, match="no seed given"):
        plan([setting], [Method("ours")], [])


def test_options_become_settings_and_names(bank: Bank, tmp_path: Path) -> None:
    data = ["--features", str(bank.features), "--labels", str(bank.labels), "--answers", str(bank.answers)]
    more = ["--group", "dog", "things", "--workers", "20", "--spammers", "0.2", "--rows", "0:200", "--per-round", "50"]
    given = SCRIPT.parser().parse_args([*data, *more, "--methods", "ours", "--out", str(tmp_path / "R.csv")])
    people, dog, things = SCRIPT.settings_of(given, tmp_path / "R")
    assert people.name == "people[0:200] per_round=50"
    assert dog.name == "dog[0:200] workers=20 spammers=0.2 per_round=50"
    assert (dog.config, dog.group, things.group) == ("configs/simulated.yaml", "dog", "things")
    folder = Path(people.settings["annotation.workers.answers"]).parent
    assert folder.parent == (tmp_path / "R").resolve()
    assert people.settings == {
        "data.features": str(folder / "features.npy"),
        "data.labels": str(folder / "labels.csv"),
        "annotation.workers.answers": str(folder / "answers.csv"),
        "data.root": "null",
        "annotation.sampling.per_round": "50",
    }
    assert dog.settings.items() >= {"annotation.workers.n_workers": "20", "annotation.workers.spammers": "0.2"}.items()
    assert len(pd.read_csv(dog.settings["data.labels"])) == 200


def test_a_failed_run_is_named_and_the_others_are_written(
    bank: Bank, amt: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(bank, amt, tmp_path / "R.csv", "--methods", "oracle", "odd:annotation.threshold=-1", "--seeds", "1")
    given.remove("--answers")
    given.remove(str(bank.answers))
    assert SCRIPT.main(given) == 1
    shown = capsys.readouterr()
    assert "1 done, 0 skipped, 1 failed" in shown.out
    assert "annotation.threshold -1.0 given; it must be above 0" in shown.err
    assert list(read_table(tmp_path / "R.csv")["method"]) == ["oracle"]


def test_rows_of_other_runs_stay(tmp_path: Path) -> None:
    entries = plan([Setting("dog", "c.yaml", "dog")], [Method("ours")], [1, 2])
    out = tmp_path / "R.csv"
    old = pd.DataFrame([["cat", "ours", 1, *range(9)], ["dog", "ours", 2, *range(9)]], columns=list(COLUMNS[:12]))
    old.to_csv(out, index=False)  # without the columns that came later
    folder = tmp_path / entries[1].cell.name
    folder.mkdir()
    rounds = {"annotations_per_item": [0.0, 0.5], "accuracy": [0.7, 0.91], "finished_fraction": 1.0, "ece": 0.0}
    pd.DataFrame(rounds).assign(finished_precision=1.0).to_csv(folder / "rounds.csv", index_label="round")
    (folder / "summary.json").write_text("{}")
    told = {"config": "c.yaml", "coordinates": {}, "extra": {}, "environment": {}, "settings": entries[1].cell.settings}
    (folder / "run.json").write_text(json.dumps(told))
    note_rows(tmp_path, entries, out, tmp_path)
    table = read_table(out)
    assert table[list(KEY)].values.tolist() == [["cat", "ours", 1], ["dog", "ours", 2]]
    assert table.iloc[0, 3:12].tolist() == [*range(9)]
    assert table.iloc[0, 12:].isna().all()
    assert table.iloc[1, 3:8].tolist() == pytest.approx([0.5, 0.5, 0.5, np.nan, 0.5], nan_ok=True)


def test_rows_and_tail_are_cut_from_all_files(bank: Bank, tmp_path: Path) -> None:
    cut = Cut((40, 280), 4.0)
    assert cut.name == "[40:280] tail=4"
    part = cut_bank(BankFiles(bank.features, bank.labels, bank.answers), cut, tmp_path)
    assert part.answers is not None
    labels, whole = pd.read_csv(part.labels), pd.read_csv(bank.labels)
    sizes = labels["label"].value_counts()
    assert [sizes[name] for name in CLASSES] == [60, 37, 23, 15]  # 60 * 4 ** (-k / 3)
    rows = whole.index[whole["task"].isin(labels["task"])]
    assert (rows[0], rows[-1]) >= (40, 40)
    assert rows[-1] < 280
    assert list(whole["task"][rows]) == list(labels["task"])  # in order
    np.testing.assert_array_equal(np.load(part.features), np.load(bank.features)[rows])
    answers, said = pd.read_csv(part.answers), pd.read_csv(bank.answers)
    pd.testing.assert_frame_equal(answers, said[said["task"].isin(labels["task"])].reset_index(drop=True))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.floats(1, 8), st.integers(0, 1000))
def test_tail_keeps_each_class_as_far_as_it_has_items(n_classes: int, ratio: float, seed: int) -> None:
    label = np.array([f"c{k}" for k in np.random.default_rng(seed).integers(n_classes, size=150 * n_classes)])
    rows = kept_rows(label, Cut(tail=ratio))
    assert bool((np.diff(rows) > 0).all())
    size = pd.Series(label).value_counts()
    left = pd.Series(label[rows]).value_counts()
    for k in range(n_classes):
        wanted = 150 * ratio ** (-k / (n_classes - 1))
        assert left[f"c{k}"] == min(size[f"c{k}"], int(wanted + 1e-9))


def test_tail_of_a_thousand_items_a_class() -> None:
    rows = kept_rows(np.repeat(np.arange(10), 1000), Cut(tail=10.0))
    assert list(np.bincount(rows // 1000)) == [1000, 774, 599, 464, 359, 278, 215, 166, 129, 100]


def made_up(values: dict[str, Sequence[float]]) -> pd.DataFrame:
    """Rows of one setting; each method has one ``to90`` a seed, and 1 everywhere else."""
    rows = []
    for method, to90 in values.items():
        for seed, value in enumerate(to90):
            row = dict.fromkeys(COLUMNS, 1.0) | {"setting": "dog", "method": method, "seed": seed, "to90": value}
            rows.append(row)
    return pd.DataFrame(rows)


def test_tables_of_figures_and_ratios() -> None:
    nan = math.nan
    table = made_up({"ours": [0.6, 0.8, 1.0], "weak": [1.0, nan, nan], "oracle": [0.3, 0.2, 0.25]})
    text = economy_page(table, {"dog": "40 prototypes."})
    ours, weak, oracle, ours_ratio, weak_ratio = (line for line in text.splitlines() if line[:5] in ("| our", "| wea", "| ora"))
    assert "40 prototypes." in text
    assert "| 0.800 ± 0.497 |" in ours  # t(0.975, 2) = 4.303, times 0.2 / sqrt(3)
    assert "| 1.000 (1 of 3 seeds) |" in weak
    assert "| 0.250 ± 0.124 |" in oracle
    assert "| 3.33 ± 2.87 |" in ours_ratio  # of 2, 4 and 4
    assert "| 3.33 (1 of 3 seeds) |" in weak_ratio


def test_ratios_are_of_equal_seeds_and_need_both() -> None:
    table = made_up({"ours": [0.5, 0.5, math.nan, 0.5], "oracle": [0.25, 0.0, 0.2]})
    ours, oracle = (table[table["method"] == name] for name in ("ours", "oracle"))
    np.testing.assert_array_equal(paired_ratios(ours, oracle)["to90"], [2, math.nan, math.nan])


def test_an_interval_needs_two_values() -> None:
    assert mean_ci([0.5], 2) == "0.50"
    assert mean_ci([math.nan, math.nan], 2) == "–"
    assert mean_ci([0.5, 0.5], 2) == "0.50 ± 0.00"
