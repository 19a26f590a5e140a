"""Claims of a run against the truth, and the banks made for comparing them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_runs import Bank
from sklearn.decomposition import PCA
from sklearn.metrics import f1_score as sklearn_f1
from test_economy import SCRIPT, made_up

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.experiments.claims import claim_gap, claims_of, f1_score, interval_coverage
from lightning_annot.experiments.curves import read_run
from lightning_annot.experiments.cuts import FACTOR_SIGMA, BankFiles, Cut, changed_features, cut_bank
from lightning_annot.experiments.economy_table import economy_page
from lightning_annot.types import AnnotError, Answer, Question

ITEMS = [f"{i:03d}" for i in range(40)]
TRUTH = {item: "cat" if i < 10 else "rest" for i, item in enumerate(ITEMS)}


def made_up_run(folder: Path) -> Path:
    """A run of three rounds with a log of four workers, one class against the rest."""
    folder.mkdir()
    rounds = {
        "round": [0, 1, 2, 3],
        "annotations_per_item": [0.0, 0.1, 0.2, 0.3],
        "finished_fraction": [0.5, 0.19, 0.3, 0.9],  # of 1,000 items: in round 1 too few to judge
        "finished_risk": [0.01, 0.02, 0.03, 0.04],
        "finished_precision": [0.5, 0.7, 0.92, 0.95],
        "ece": [0.2, 0.08, 0.11, 0.02],
        "accuracy": 0.9,
    }
    pd.DataFrame(rounds).to_csv(folder / "rounds.csv", index=False)
    (folder / "summary.json").write_text(json.dumps({"n_items": 1000, "classes": ["cat", "rest"]}))
    told = {"config": "c.yaml", "coordinates": {}, "extra": {}, "environment": {}, "settings": {}}
    (folder / "run.json").write_text(json.dumps(told))
    pd.Series(TRUTH, name="label").to_csv(folder.parent / "truth.csv", index_label="task")
    (folder / "config.yaml").write_text("data:\n  init_args:\n    labels: truth.csv\ntrainer: {}\nckpt_path: null\n")
    labels = pd.DataFrame({"task": ITEMS, "label": "rest", "confidence": 0.9, "risk": 0.1, "n_annotations": 1})
    labels.loc[4:11, "label"] = "cat"  # six of them right, two wrong, and four cats missed
    labels["status"] = ["prototype"] * 2 + ["finished"] * 38
    labels.to_csv(folder / "labels.csv", index=False)
    write_log(folder)
    return folder


def write_log(folder: Path) -> None:
    """``sure`` is right in 19 of 20, ``poor`` in 10 of 20, ``skips`` has one answer too few to count, ``few`` has five."""
    right = {"sure": 19, "poor": 10, "skips": 19, "few": 5}
    given = {"sure": 20, "poor": 20, "skips": 19, "few": 5}
    pairs = []
    for worker, n in given.items():
        for i, item in enumerate(ITEMS[:n]):
            wrong = "rest" if TRUTH[item] == "cat" else "cat"
            label = TRUTH[item] if i < right[worker] else wrong
            pairs.append((Question(item, worker, round=0), Answer(0, worker, label)))
    pairs.append((Question(ITEMS[30], "skips", round=0), Answer(0, "skips", None)))
    with AnnotationLog(folder / "annotations.db") as log:
        log.record(pairs)
    low = {"sure": 0.8, "poor": 0.6, "skips": 0.0, "few": 0.0}
    workers = pd.DataFrame({"worker": list(given), "n_annotations": list(given.values()), "accuracy_mean": 0.9})
    workers["accuracy_low"], workers["accuracy_high"] = list(low.values()), [0.96, 0.99, 0.1, 0.1]
    workers.assign(state="trusted", reason="").to_csv(folder / "workers.csv", index=False)


def test_claims_of_a_run(tmp_path: Path) -> None:
    found = claims_of(read_run(made_up_run(tmp_path / "run")), tmp_path)
    assert found["ece_max"] == 0.11  # round 0 does not count
    assert found["claim_gap_max"] == pytest.approx(0.05)  # .08 wrong, .03 stated, in round 2
    assert found["interval_coverage"] == 0.5  # sure, not poor; the others have too few answers
    assert found["f1"] == pytest.approx(2 * 6 / (8 + 8))  # without the two prototypes, which are cats


def test_a_run_that_cannot_tell_leaves_the_figures_empty(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run")
    (folder / "config.yaml").unlink()
    rounds = pd.read_csv(folder / "rounds.csv").drop(columns=["finished_risk"])
    rounds.to_csv(folder / "rounds.csv", index=False)
    found = claims_of(read_run(folder), tmp_path)
    assert found["ece_max"] == 0.11
    assert all(math.isnan(found[name]) for name in ("claim_gap_max", "interval_coverage", "f1"))


def test_a_gap_needs_enough_finished_items() -> None:
    rounds = pd.DataFrame({"finished": [199.0], "finished_precision": [0.5], "finished_risk": [0.1]})
    assert math.isnan(claim_gap(rounds))
    assert claim_gap(rounds.assign(finished=199.9999999)) == pytest.approx(0.4)  # a count that was a fraction of the items


def test_answers_about_other_items_do_not_count(tmp_path: Path) -> None:
    folder = made_up_run(tmp_path / "run")
    truth = {item: label for item, label in TRUTH.items() if item != ITEMS[0]}
    assert math.isnan(interval_coverage(folder, truth))  # nobody has 20 answers any more


def test_f1_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    said, true = (pd.Series(rng.random(200) < share) for share in (0.2, 0.4))
    assert f1_score(said, true) == pytest.approx(sklearn_f1(true, said))
    assert f1_score(said & False, true & False) == 0.0


def test_the_table_names_the_worst_seed() -> None:
    table = made_up({"ours": [0.6, 0.8], "alone": [0.6]})
    table["end_accuracy"] = [0.97, 0.934, 0.9]
    ours, alone = (line for line in economy_page(table, {}).splitlines() if line[:4] in ("| ou", "| al"))
    assert ours.endswith("| 93.4 | 2 |")
    assert alone.endswith("| – | 1 |")


def test_a_class_against_the_rest_maps_labels_and_answers(bank: Bank, tmp_path: Path) -> None:
    said = pd.read_csv(bank.answers).assign(seconds=1.5)
    said["label"] = said["label"].str.upper()  # names of classes are found whatever their case
    said.to_csv(tmp_path / "answers.csv", index=False)
    cut = Cut((0, 200), against_rest="bee")
    assert cut.name == "[0:200] against-rest=bee"
    part = cut_bank(BankFiles(bank.features, bank.labels, tmp_path / "answers.csv"), cut, tmp_path)
    assert part.answers is not None
    whole, labels, answers = pd.read_csv(bank.labels)[:200], pd.read_csv(part.labels), pd.read_csv(part.answers)
    assert labels["label"].tolist() == ["bee" if label == "bee" else "rest" for label in whole["label"]]
    kept = said[said["task"].isin(labels["task"])].reset_index(drop=True)
    assert answers["label"].tolist() == ["bee" if label == "BEE" else "rest" for label in kept["label"]]
    pd.testing.assert_frame_equal(answers.drop(columns="label"), kept.drop(columns="label")[["task", "worker", "seconds"]])
    np.testing.assert_array_equal(np.load(part.features), np.load(bank.features)[:200])


def test_principal_components_and_scaled_features(bank: Bank, tmp_path: Path) -> None:
    cut = Cut((20, 300), 2.0, principal=5, scale=3, unit_norm=True)
    assert cut.name == "[20:300] tail=2 principal=5 scale=3 unit-norm"
    part = cut_bank(BankFiles(bank.features, bank.labels), cut, tmp_path)
    whole = pd.read_csv(bank.labels)
    rows = whole.index[whole["task"].isin(pd.read_csv(part.labels)["task"])]
    features = np.load(bank.features)[rows].astype(np.float32)
    wanted = PCA(5).fit_transform(features) * np.exp(FACTOR_SIGMA * np.random.default_rng(3).standard_normal(5))
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    found = np.load(part.features)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=1e-4)


def test_components_keep_their_scales() -> None:
    features = np.random.default_rng(0).standard_normal((500, 4)).astype(np.float16) * np.float16([8, 4, 2, 1])
    spread = changed_features(features, Cut(principal=3)).std(0)
    np.testing.assert_allclose(spread, [8, 4, 2], rtol=0.1)
    assert changed_features(features, Cut()) is features


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--against-rest", "cat"], "against-rest 'cat' given;"),
        (["--group", "dog", "--against-rest", "bee"], "give --answers alone"),
        (["--principal", "0"], "principal 0 given"),
        (["--principal", "1000"], "principal 1000 given; 300 items"),
        (["--scale", "-1"], "scale -1 given"),
    ],
)
def test_a_bank_that_cannot_be_made_is_refused(
    bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    data = ["--features", str(bank.features), "--labels", str(bank.labels), "--answers", str(bank.answers)]
    assert SCRIPT.main([*data, "--out", str(tmp_path / "R.csv"), "--methods", "ours", *more]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1


def test_a_class_named_rest_is_no_class_against_the_rest(bank: Bank, tmp_path: Path) -> None:
    labels = pd.read_csv(bank.labels)
    labels["label"] = labels["label"].replace("cow", "rest")
    labels.to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(AnnotError, match="has a class 'rest'"):
        cut_bank(BankFiles(bank.features, tmp_path / "labels.csv"), Cut(against_rest="bee"), tmp_path)
