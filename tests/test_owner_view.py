"""What the owner is told: counts of the log, each against a slow second way, galleries, pace, files."""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folder import make_run

from lightning_annot.annotations.desk import Desk
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.report.pace import MOST_BARS, WIDTHS, bars, per_hour, plot_pace
from lightning_annot.report.run_files import read_run
from lightning_annot.serve.exports import EXPORTS, available, export
from lightning_annot.serve.gallery import SHELVES, Choice, Gallery
from lightning_annot.serve.overview import Confusions, Overview
from lightning_annot.serve.people import people_rows
from lightning_annot.serve.tally import Standing, Tally
from lightning_annot.types import Answer, Question

LABELS = ["cat", "dog", "frog"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 200 items and 10 workers, whose log has some answers, gold ones, skips and an audit."""
    folder = make_run(tmp_path / "run", n=200, w=10, rounds=3)
    rng = np.random.default_rng(3)
    items = read_run(folder).items["task"].tolist()[:40]
    with AnnotationLog(folder / "annotations.db") as log:
        for item in items[:30]:
            for who in rng.choice(["ann", "bob", "eve", "kim"], rng.integers(0, 5), replace=False):
                skip = rng.random() < 0.2
                source = "page: unsure" if skip else "page"
                given = Answer(0, str(who), None if skip else str(rng.choice(LABELS)), float(rng.integers(1, 9)), source)
                log.record([(Question(item, None, round=1), given)])
        gold = log.ask(
            [Question("00000", "ann", "gold", 2), Question("00001", "bob", "gold", 2), Question("00002", None, "audit")]
        )
        log.answer([Answer(gold[0].id, "ann", "cat", 1.0, "page"), Answer(gold[2].id, "owner", "cat", 1.0, "audit")])
    return folder


def test_the_tally_is_what_the_log_says(run: Path) -> None:
    with AnnotationLog(run / "annotations.db") as log:
        tally, table = Tally(log), log.answers()
        table = table[table["kind"] != "audit"]
        check_tally(log, tally)
        standing = tally.standing()
        assert standing is not None
        assert (standing.round, standing.asked, standing.answered) == (2, 2, 1)
        people = tally.people({"00000": "cat"}, {"per_answer": 2.0, "per_second": 0.5, "workers": {"bob": 10.0}})
        for who, some in table.groupby("worker"):
            row = people.loc[who]
            assert (row["answers"], row["skips"]) == (some["label"].notna().sum(), some["label"].isna().sum())
            price = 10.0 if who == "bob" else 2.0
            assert row["cost"] == pytest.approx(len(some) * price + 0.5 * some["seconds"].sum())
        assert (people.loc["ann", "gold"], people.loc["ann", "right"]) == (1, 1)
        log.record([(Question("00199", None), Answer(0, "new", "cat"))])  # what comes later is seen
        assert tally.labelled(tally.numbers(["00199"]))[0].tolist() == [1]
        check_tally(log, tally)
        assert "owner" not in tally.people({}, {}).index


def check_tally(log: AnnotationLog, tally: Tally) -> None:
    """Everything that the tally tells, from the whole log anew."""
    asked, table = log.questions(), log.answers()
    asked, table = asked[asked["kind"] != "audit"], table[table["kind"] != "audit"]
    assert tally.stamp == table["id"].max() if len(table) else tally.stamp == 0
    assert tally.open() == (~asked["id"].isin(table["question"])).sum()
    moments = pd.to_datetime(table["answered_at"], format="ISO8601", utc=True)
    assert tally.times() == pytest.approx([moment.timestamp() for moment in moments])
    standing, last = tally.standing(), log.last_round()
    if last < 0:
        assert standing is None
    else:
        n = table.loc[table["round"] == last, "question"].nunique()
        assert standing == Standing(last, (asked["round"] == last).sum(), n)
    said = table[(table["kind"] == "annotation") & table["label"].notna()]
    items = sorted({*asked["item"], "nobody's"})
    assert sorted(tally.told()) == sorted(set(said["item"]))
    numbers, labels = tally.numbers(items), {item: said.loc[said["item"] == item, "label"] for item in items}
    assert tally.labelled(numbers)[0].tolist() == [len(labels[item]) for item in items]
    assert tally.labelled(numbers)[1].tolist() == [labels[item].nunique() > 1 for item in items]
    gold = table.loc[table["kind"] == "gold", ["worker", "item", "label"]]
    assert tally.any_gold() == bool(len(gold))
    assert tally.gold().to_numpy().tolist() == gold.to_numpy().tolist()
    check_people(table, tally)


def check_people(table: pd.DataFrame, tally: Tally) -> None:
    truth, prices = {"i1": "cat", "i2": "owl"}, {"per_answer": 2.0, "per_second": 0.5, "workers": {"bob": 10.0}}
    people = tally.people(truth, prices)
    assert people.index.tolist() == sorted(set(table["worker"]))
    for who, some in table.groupby("worker"):
        row, gold = people.loc[who], some[(some["kind"] == "gold") & some["label"].notna()]
        assert (row["answers"], row["skips"], row["n"]) == (some["label"].notna().sum(), some["label"].isna().sum(), len(some))
        assert (row["gold"], row["right"]) == (len(gold), sum(truth.get(i) == z for i, z in gold[["item", "label"]].to_numpy()))
        assert row["seconds"] == pytest.approx(some["seconds"].median(), nan_ok=True)
        assert row["last"] == pytest.approx(pd.Timestamp(some["answered_at"].max()).timestamp())
        assert row["cost"] == pytest.approx(len(some) * (10.0 if who == "bob" else 2.0) + 0.5 * some["seconds"].sum())


ASKED = st.tuples(st.sampled_from(["i0", "i1", "i2"]), st.sampled_from(["annotation", "gold", "audit"]), st.integers(0, 1))
GIVEN = st.tuples(
    st.integers(0, 30), st.sampled_from(["ann", "bob", "eve"]), st.sampled_from([None, *LABELS]),
    st.sampled_from([None, 0.0, 1.5, 8.0]), st.sampled_from(["page", "expert", "page: skip"]),
)  # fmt: skip


def test_the_tally_of_any_database(log_url: str) -> None:
    with AnnotationLog(log_url) as log:
        tally = Tally(log, 2)
        for kind in ("annotation", "gold", "audit"):
            asked = log.ask([Question(item, None, kind) for item in ("i0", "i1", "i0")])
            log.answer([Answer(q.id, who, who[:1], 2.0, "page") for q in asked[:2] for who in ("ann", "bob")])
            check_tally(log, tally)
        Desk(log)
        assert tally.said(["i0"]) == {"i0": [("ann", "a"), ("bob", "b")] * 2}


STEPS = st.lists(st.tuples(st.lists(ASKED, max_size=5), st.lists(GIVEN, max_size=7), st.booleans()), max_size=6)


@settings(deadline=None, max_examples=50)
@given(STEPS, st.integers(1, 5))
def test_any_order_of_batches_gives_the_tally_of_the_whole(steps: list[Any], at_once: int) -> None:
    """Second answers of a worker, several to a question, an expert's, skips, gold and audits, looked at now and then."""
    with tempfile.TemporaryDirectory() as folder, AnnotationLog(Path(folder) / "annotations.db") as log:
        tally, round_ = Tally(log, at_once), -1  # an expert is asked in round -1
        for asked, given, look in steps:
            rounds = [round_ := round_ + later for _, _, later in asked]
            log.ask([Question(item, None, kind, r) for (item, kind, _), r in zip(asked, rounds, strict=True)])
            n = len(log.questions())
            log.answer([Answer(1 + q % n, *rest) for q, *rest in given] if n else [])
            if look:
                check_tally(log, tally)
        check_tally(log, tally)


def test_galleries_hold_what_they_say(run: Path) -> None:
    files = read_run(run)
    with AnnotationLog(run / "annotations.db") as log:
        tally = Tally(log)
        gallery = Gallery(lambda: files, tally)
        tasks = files.items["task"].tolist()
        counts, several = tally.labelled(tally.numbers(tasks))
        count = dict(zip(tasks, counts.tolist(), strict=True))
        disputed_items = {task for task, yes in zip(tasks, several, strict=True) if yes}
        status, risk = (files.items.set_index("task")[name] for name in ("status", "risk"))
        for which in ("all", "unfinished", "finished"):
            for n in (None, 0, 1, 2, 3):
                for disputed in (False, True):
                    shelf = gallery.shelf(Choice(which, n, disputed), most=1000)
                    slow = [
                        item for item in files.items["task"]
                        if which in ("all", status[item]) and n in (None, min(3, count[item]))
                        and (not disputed or item in disputed_items)
                    ]  # fmt: skip
                    assert sorted(tile.item for tile in shelf.tiles) == sorted(slow)
                    assert shelf.total == len(slow)
                    assert shelf.unfinished == sum(status[item] == "unfinished" for item in slow)
                    risks = [risk[tile.item] for tile in shelf.tiles]
                    assert risks == sorted(risks, reverse=True)
        pages = [gallery.shelf(Choice(), start, 60).tiles for start in range(0, 200, 60)]
        assert len({tile.item for page in pages for tile in page}) == len(files.items)
        tiles = gallery.shelf(Choice("all", 3)).tiles
        assert tiles
        assert all(len(tile.said) >= 3 for tile in tiles)
        told = {word for tile in gallery.shelf(Choice(), most=1000).tiles for _, word in tile.said}
        assert told == {*LABELS, "unsure"}
        before = Gallery(lambda: None, tally).shelf(Choice())  # the first round has not ended
        assert before.total == sum(n > 0 for n in count.values())


def test_shelves_are_those_of_the_paper() -> None:
    assert [choice.title for choice in SHELVES] == [
        "Unfinished images", "Images without an answer", "Images with 1 answer", "Images with 2 answers",
        "Images with 3 answers or more", "Images people disagree about",
    ]  # fmt: skip
    assert Choice("finished", 0).address == "/owner/gallery?which=finished&answers=0&disputed=0&order=riskiest"


@given(st.lists(st.floats(0, 3e7), min_size=1, max_size=50), st.floats(1, 1e6))
def test_bars_count_what_is_not_too_old(ages: list[float], since: float) -> None:
    now = 1.7e9 + since
    times = now - np.array(ages)
    edges, rate = bars(times, now)
    assert 1 <= len(rate) <= MOST_BARS
    assert len(edges) == len(rate) + 1
    assert edges[-2] <= now < edges[-1]
    width = edges[1] - edges[0]
    assert width in WIDTHS
    length = np.append(np.full(len(rate) - 1, width), max(60.0, now - edges[-2]))
    assert (rate * length / 3600).sum() == pytest.approx((times >= edges[0]).sum())


def test_pace() -> None:
    now = time.time()
    assert per_hour(np.array([]), now) == 0
    assert per_hour(now - np.arange(0, 900, 9.0), now) == pytest.approx(100 / (891 / 3600))
    assert per_hour(now - np.array([7200.0]), now) == 0
    assert per_hour(now - np.array([7200.0, 10.0, 20.0]), now) == pytest.approx(8)
    assert plot_pace(now - np.arange(0, 7000, 9.0), now).axes[0].get_ylabel() == "answers an hour"


def test_all_files_can_be_taken_away(run: Path) -> None:
    nothing = Confusions([], np.zeros((0, 2, 2), dtype=int), {"cat": "cat", "dog": "dog"})
    with AnnotationLog(run / "annotations.db") as log:
        offered = available(run, study=False, gold=True, asked=True)
        assert set(EXPORTS) - set(offered) == {"parquet", "scorecards", "scorecards-page"}  # no posterior in this run
        log.ask([Question("00150", None)])
        for name in offered:
            assert len(export(name, run, log, lambda: nothing)) > 10, name
        table = pd.read_csv(io.BytesIO(export("crowd-kit", run, log, lambda: nothing)))
        assert len(table) == (log.answers(kind="annotation")["label"].notna()).sum()
    assert set(available(run, study=True, gold=True, asked=True)) == {"group-workers"}
    answers = {"crowd-kit", "cleanlab", "cleanlab-wide", "lean", "mturk-input"}
    assert set(available(run.parent, study=False, gold=False, asked=True)) == answers


def test_the_owner_sees_who_pauses_whom(run: Path) -> None:
    with AnnotationLog(run / "annotations.db") as log:
        desk, tally = Desk(log), Tally(log)
        for name in ("ann", "bob", "new"):
            desk.invite(name)
        desk.revoke("new")
        desk.pause("ann", "on holiday")
        desk.set_aside({"bob": "the answers do not depend on the image"})
        rows = {row.worker: row for row in people_rows(desk, tally, Overview(run, tally, lambda: None), None)}
        counts = log.answers().loc[lambda table: table["kind"] != "audit", "worker"].value_counts()
    assert {name: row.answers + row.skips for name, row in rows.items() if row.answers + row.skips} == counts.to_dict()
    assert {name: (row.link, row.paused, row.set_aside) for name, row in rows.items() if row.link != "none"} == {
        "ann": ("open", "on holiday", ""),
        "bob": ("open", "", "the answers do not depend on the image"),
        "new": ("closed", "", ""),
    }
