"""Scorecards against plain loops, drift by its error and its power, and the page as people get it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cli_runs import Bank, call, fit
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from test_report import EVIL, parse

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.report.drift import drift
from lightning_annot.report.run_files import read_run
from lightning_annot.report.scorecard_page import write_scorecards
from lightning_annot.report.scorecards import agreement, gold_accuracy, interval, scorecards
from lightning_annot.types import AnnotError, Answer, Question

CLASSES = ["ant", "bee", "cow"]


def make_run(folder: Path, seed: int = 0, classes: list[str] = CLASSES, names: list[str] | None = None) -> pd.DataFrame:
    """A run's files and log: 60 items, the first 9 prototypes; five people, and one whom the tables do not know yet."""
    rng, k, n = np.random.default_rng(seed), len(classes), 60
    folder.mkdir(parents=True, exist_ok=True)
    names = names or ["anna", "ben", "cleo", "dan", "eve"]
    truth = rng.integers(k, size=n)
    posterior = rng.dirichlet(np.full(k, 0.3), n)
    posterior[:9] = np.eye(k)[truth[:9]]
    order = np.argsort(-posterior, axis=1)
    probability = np.take_along_axis(posterior, order, 1).astype(np.float16)
    np.savez(folder / "posterior.npz", classes=np.array(classes), label=order.astype(np.uint8), probability=probability)
    np.savez(folder / "confusions.npz", pooled=np.eye(k), classes=np.array(classes), workers=np.array(names))
    task, label = [f"{i:02d}" for i in range(n)], np.array(classes, dtype=object)[order[:, 0]]
    status = np.where(np.arange(n) < 9, "prototype", "unfinished")
    columns = {"task": task, "label": label, "confidence": posterior.max(1), "risk": 1 - posterior.max(1)}
    pd.DataFrame(columns | {"n_annotations": 2, "status": status}).to_csv(folder / "labels.csv", index=False)
    states = ["trusted", "paused", "trusted", "spammer", "trusted"]
    accuracy = {"accuracy_mean": 0.8, "accuracy_low": 0.7, "accuracy_high": 0.9}
    why = np.where(np.array(states) == "trusted", "", "because")
    workers = pd.DataFrame({"worker": names, "n_annotations": 9} | accuracy | {"state": states, "reason": why})
    workers.to_csv(folder / "workers.csv", index=False)
    prices = {"per_answer": 0.5, "per_second": 0.01, "workers": {names[1]: 2.0}}
    (folder / "summary.json").write_text(json.dumps({"classes": classes, "prices": prices}))
    rows = 240
    item, worker = rng.integers(n, size=rows), rng.integers(6, size=rows)
    said = np.where(rng.random(rows) < 0.7, truth[item], rng.integers(k, size=rows))
    seconds = np.where(rng.random(rows) < 0.2, np.nan, rng.gamma(3.0, 2.0, rows))
    kind = np.where(item < 9, "gold", np.where(rng.random(rows) < 0.02, "audit", "annotation"))
    moment = pd.Timestamp("2024-05-01", tz="UTC") + pd.to_timedelta(np.arange(rows) * 20.0, unit="s")
    log = pd.DataFrame(
        {
            "id": np.arange(1, rows + 1),
            "item": np.array(task, dtype=object)[item],
            "worker": np.array([*names, "new"], dtype=object)[worker],
            "label": np.where(rng.random(rows) < 0.1, None, np.array(classes, dtype=object)[said]),
            "kind": kind,
            "round": np.arange(rows) // 40,
            "answered_at": [t.isoformat() for t in moment],
            "seconds": seconds,
        }
    )
    return log.drop_duplicates(["item", "worker"]).reset_index(drop=True)


@pytest.mark.parametrize("seed", range(3))
def test_scorecards_equal_plain_loops(seed: int, tmp_path: Path) -> None:
    log = make_run(tmp_path, seed)
    cards = scorecards(read_run(tmp_path), log).set_index("worker")
    assert cards.index.tolist() == ["anna", "ben", "cleo", "dan", "eve", "new"]
    assert cards["state"].tolist() == ["trusted", "paused", "trusted", "spammer", "trusted", "trusted"]
    assert cards["reason"].tolist() == ["", "because", "", "because", "", ""]
    assert np.isnan(cards.loc["new", "accuracy_mean"])
    assert cards.loc["ben", "accuracy_low"] == 0.7
    labels = pd.read_csv(tmp_path / "labels.csv", dtype=str).set_index("task")["label"]
    with np.load(tmp_path / "posterior.npz") as arrays:
        belief = np.zeros((60, 3))
        np.put_along_axis(belief, arrays["label"].astype(int), arrays["probability"].astype(float), 1)
    for name, card in cards.iterrows():
        mine = log[(log["worker"] == name) & (log["kind"] != "audit")]
        ordinary, gold = mine[mine["kind"] == "annotation"], mine[(mine["kind"] == "gold") & mine["label"].notna()]
        assert card["answers"] == ordinary["label"].notna().sum()
        assert card["skips"] == ordinary["label"].isna().sum()
        hits = int((gold["label"] == labels[gold["item"]].to_numpy()).sum())
        assert (card["gold"], card["gold_right"]) == (len(gold), hits)
        interval = binomtest(hits, len(gold)).proportion_ci(0.9, "exact")
        assert (card["gold_low"], card["gold_high"]) == pytest.approx((interval.low, interval.high))
        quartiles = mine["seconds"].quantile([0.25, 0.5, 0.75]).tolist()
        assert [card["seconds_low"], card["seconds_median"], card["seconds_high"]] == pytest.approx(quartiles)
        price = 2.0 if name == "ben" else 0.5
        assert card["cost"] == pytest.approx(price * len(mine) + 0.01 * mine["seconds"].sum())
        times = pd.to_datetime(mine["answered_at"]).diff().dt.total_seconds().dropna()
        work = times[times <= 300]
        assert card["answers_per_hour"] == pytest.approx(3600 * len(work) / work.sum())
        wrong: dict[tuple[int, int], float] = {}
        total = np.zeros(3)
        for item, label in mine.loc[mine["label"].notna(), ["item", "label"]].itertuples(index=False):
            total += belief[int(item)]
            for y in range(3):
                key = (y, CLASSES.index(label))
                wrong[key] = wrong.get(key, 0.0) + belief[int(item), y]
        pairs = sorted((-c, y, z) for (y, z), c in wrong.items() if y != z and c >= 0.5)[:5]
        assert card["confusions"] == "; ".join(f"{CLASSES[y]} > {CLASSES[z]} {-c:.1f} of {total[y]:.1f}" for c, y, z in pairs)
        right = [belief[int(i), CLASSES.index(z)] for i, z in mine.loc[mine["label"].notna(), ["item", "label"]].to_numpy()]
        n = len(right)
        thirds = [np.mean([r for p, r in enumerate(right) if 3 * p // n == third]) for third in range(3)]
        assert card[["accuracy_first", "accuracy_second", "accuracy_third"]].tolist() == pytest.approx(thirds)


Rows = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 2)), max_size=40, unique_by=lambda r: r[:2])


@given(Rows, st.lists(st.booleans(), min_size=4, max_size=4))
@settings(max_examples=60, deadline=None)
def test_agreement_equals_plain_loops(rows: list[tuple[int, int, int]], believed: list[bool]) -> None:
    item, worker, label = (np.array([row[c] for row in rows], dtype=np.int64) for c in range(3))
    found = agreement(item, worker, label, np.array(believed), 3)
    for j in range(4):
        shares, mine, theirs = [], np.zeros(3), np.zeros(3)
        for i, w, z in rows:
            others = [label_ for i_, w_, label_ in rows if i_ == i and w_ != w and believed[w_]]
            if w == j and others:
                shares.append(np.mean([label_ == z for label_ in others]))
                mine[z] += 1
                theirs += np.bincount(others, minlength=3) / len(others)
        assert found["compared"][j] == len(shares)
        if not shares:
            assert np.isnan(found["agreement"][j])
            continue
        assert found["agreement"][j] == pytest.approx(np.mean(shares))
        chance = float(mine @ theirs) / len(shares) ** 2
        kappa = (np.mean(shares) - chance) / (1 - chance) if chance < 1 - 1e-9 else np.nan
        assert found["kappa"][j] == pytest.approx(kappa, nan_ok=True, abs=1e-9)


def test_kappa_is_nothing_for_guesses_and_one_for_echoes() -> None:
    rng, n = np.random.default_rng(0), 3000
    truth = rng.choice(4, n, p=[0.7, 0.1, 0.1, 0.1])
    item, worker = np.tile(np.arange(n), 3), np.repeat([0, 1, 2], n)
    label = np.concatenate([truth, truth, rng.choice(4, n, p=[0.7, 0.1, 0.1, 0.1])])
    found = agreement(item, worker, label, np.array([True, True, False]), 4)
    assert found["kappa"][:2].tolist() == pytest.approx([1.0, 1.0])
    assert found["agreement"][2] > 0.45
    assert abs(found["kappa"][2]) < 0.05


def test_gold_at_its_ends() -> None:
    found = gold_accuracy(np.repeat([0, 2], [5, 4]), np.repeat([True, False], [5, 4]), 3)
    assert found["gold_low"].tolist() == pytest.approx([0.05 ** (1 / 5), np.nan, 0.0], nan_ok=True)
    assert found["gold_high"].tolist() == pytest.approx([1.0, np.nan, 1 - 0.05 ** (1 / 4)], nan_ok=True)


def made_up_answers(seed: int, changed: float = 0.0, n_workers: int = 10, rounds: int = 12) -> tuple[np.ndarray, ...]:
    """Rounds of 50 answers by workers of different skill to ever harder images; worker 0 changes by ``changed`` in all,
    and the worst two leave half-way."""
    rng = np.random.default_rng(seed)
    worker = np.concatenate([rng.choice(n_workers - 2 * (r > rounds // 2), 50) for r in range(rounds)])
    group = np.repeat(np.arange(rounds), 50)
    skill = np.append(np.linspace(0.9, 0.7, n_workers - 2), [0.3, 0.3])[worker] - 0.25 * group / rounds
    skill = skill + changed * (group / (rounds - 1) - 0.5) * (worker == 0)
    return worker, group, (rng.random(len(worker)) < skill).astype(float)


def test_no_drift_is_told_where_images_get_harder_and_the_worst_leave() -> None:
    p, words = [], 0
    for seed in range(150):
        found = drift(*made_up_answers(seed), 10)
        p.append(found["drift_p"])
        words += int((found["drift"] != "").any())
    tested = np.concatenate(p)[~np.isnan(np.concatenate(p))]
    assert len(tested) > 1000
    assert (tested < 0.05).mean() < 0.07
    assert (tested < 0.5).mean() == pytest.approx(0.5, abs=0.06)
    assert words / 150 < 0.1


@pytest.mark.parametrize(("changed", "word"), [(-0.7, "worse"), (0.7, "better")])
def test_who_changes_is_told(changed: float, word: str) -> None:
    """By some 60 answers each, of ten workers."""
    found = [drift(*made_up_answers(seed, changed), 10) for seed in range(40)]
    assert np.mean([f["drift"][0] == word for f in found]) > 0.4
    assert np.mean([(f["drift"][1:] != "").any() for f in found]) < 0.2


def test_few_answers_are_not_tested() -> None:
    found = drift(np.array([0] * 11 + [1] * 2), np.arange(13), np.ones(13), 3)
    assert np.isnan(found["drift_z"]).all()
    assert found["drift"].tolist() == ["", "", ""]
    assert np.isnan(found["accuracy_first"]).tolist() == [False, False, True]


def test_times_of_batches_say_nothing(tmp_path: Path) -> None:
    log = make_run(tmp_path)
    batched = log.assign(answered_at=log["answered_at"].iloc[0])
    hourly = scorecards(read_run(tmp_path), batched).set_index("worker")["answers_per_hour"]
    seconds = log[log["kind"] != "audit"].groupby("worker")["seconds"].mean()
    assert hourly.to_dict() == pytest.approx((3600 / seconds).to_dict())


def test_the_page_is_whole_escaped_and_self_contained(tmp_path: Path) -> None:
    log = make_run(tmp_path / "run", classes=[EVIL, "bee", "cow"], names=[EVIL, "ben", "cleo", "007", "nan"])
    page = write_scorecards(tmp_path / "run", log)
    html = page.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", html)
    for tag, attributes in parse(html).attributes:
        source = attributes.get("src") or attributes.get("href") or "#"
        assert source.startswith(("data:", "#")), (tag, source)
    assert EVIL not in html
    assert html.count("<script>") == 1
    for words in ("Scorecards of 6 workers", "1 paused, 1 spammer", "because", "polyline", "007"):
        assert words in html
    cards = pd.read_csv(tmp_path / "run" / "scorecards.csv", dtype={"worker": str}, keep_default_na=False)
    assert cards["worker"].tolist() == [EVIL, "ben", "cleo", "007", "nan", "new"]


def test_many_workers_do_not_make_a_vast_page(tmp_path: Path) -> None:
    names = [f"w{j}" for j in range(5000)]
    log = make_run(tmp_path)
    workers = pd.read_csv(tmp_path / "workers.csv").iloc[:1]
    pd.concat([workers.assign(worker=name) for name in names]).to_csv(tmp_path / "workers.csv", index=False)
    page = write_scorecards(tmp_path, log)
    assert page.stat().st_size < 600_000
    assert len(pd.read_csv(tmp_path / "scorecards.csv")) == 5006


def test_the_owners_page_shows_the_intervals_of_the_table(tmp_path: Path) -> None:
    client = pytest.importorskip("fastapi.testclient").TestClient
    from lightning_annot.serve.app import make_app

    folder = tmp_path / "run"
    answers = make_run(folder)
    pd.DataFrame({"round": [0]}).to_csv(folder / "rounds.csv", index=False)
    with AnnotationLog(folder / "annotations.db") as log:
        for row in answers.itertuples():
            label = None if pd.isna(row.label) else row.label
            log.answer([Answer(log.ask([Question(row.item, None, row.kind)])[0].id, row.worker, label, 1.0)])
        with client(make_app(folder, log, "secret"), base_url="http://page.test") as owner:
            owner.get("/o/secret")
            html = owner.get("/owner/scorecards").text
        cards = scorecards(read_run(folder), log.answers())
    for row in cards.to_dict("records"):
        shown = html.partition(f'<th scope="row">{row["worker"]}</th>')[2].partition("</tr>")[0]
        for name in ("accuracy", "gold"):
            if (told := interval(row, name)) != "":
                assert f"<small>{told}</small>" in shown
        assert ("70 to 90 %" in shown) == (row["accuracy_mean"] == 0.8)


def test_a_run_leaves_scorecards_and_the_command_writes_them_anew(bank: Bank, tmp_path: Path) -> None:
    prices: dict[str, Any] = {"annotation.prices.per_answer": 0.25, "annotation.gold": 3}
    run = fit(bank.settings() | prices, tmp_path / "run")
    before = (run / "scorecards.csv").read_text()
    cards = pd.read_csv(run / "scorecards.csv")
    assert cards["cost"].sum() == pytest.approx(json.loads((run / "summary.json").read_text())["money"])
    assert cards["gold"].eq(3).all()
    (run / "scorecards.csv").unlink()
    result = call("scorecards", None, str(run))
    assert (result.status, result.out.strip()) == (0, str(run / "scorecards.html"))
    assert (run / "scorecards.csv").read_text() == before
    assert "scorecards.html" in (run / "report.html").read_text(encoding="utf-8")


def test_a_run_without_workers_has_empty_scorecards(bank: Bank, tmp_path: Path) -> None:
    recorded = {"annotation.workers": "lightning_annot.workers.recorded.RecordedWorkers", "trainer.max_epochs": 1}
    run = fit(bank.settings() | recorded | {"annotation.workers.answers": bank.answers}, tmp_path / "run")
    assert len(pd.read_csv(run / "scorecards.csv")) == 0
    assert "Scorecards of 0 workers" in (run / "scorecards.html").read_text(encoding="utf-8")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    log = make_run(tmp_path)
    result = call("scorecards", None, str(tmp_path))
    assert result.status == 2
    assert "annotations.db does not exist" in result.err
    with pytest.raises(AnnotError, match="about other items or classes"):
        write_scorecards(tmp_path, log.assign(item="elsewhere"))
    (tmp_path / "posterior.npz").unlink()
    with pytest.raises(AnnotError, match=r"posterior.npz does not exist"):
        write_scorecards(tmp_path, log)
