"""The page under load, small: clients, a training loop, kills; nothing may be lost or doubled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_scripts import load_script

from lightning_annot.types import Answer

pytest.importorskip("httpx")
pytest.importorskip("uvicorn")


@pytest.mark.slow
def test_nothing_is_lost_when_the_server_is_killed(capsys: pytest.CaptureFixture[str]) -> None:
    bench = load_script("bench_serve")
    assert bench.main(["--clients", "8", "--answers", "300", "--think", "0.05", "--kills", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["answers_in_log"], found["confirmed"], found["kills"]) == (300, 300, 3)
    assert found["lost"] == found["changed"] == found["doubled"] == 0


@pytest.mark.slow
def test_the_owners_page_is_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    bench = load_script("bench_owner")
    monkeypatch.setattr(bench, "OPEN", 2000)
    monkeypatch.setattr(bench, "PAUSE", 0.2)
    assert bench.main(["--items", "3000", "--answers", "5000", "--views", "2", "--pause", "0.5"]) == 0
    (found,) = (value for value in json.loads(capsys.readouterr().out).values() if isinstance(value, dict))
    assert found["first_view_seconds"] > 0
    assert len(found["answer_ms_p50_p95_max_without_owner"]) == 3


def test_the_check_sees_what_is_lost_or_changed(tmp_path: Path) -> None:
    bench = load_script("bench_serve")
    ((name, _),) = bench.prepare(tmp_path, 1, 2)
    with bench.AnnotationLog(tmp_path / "annotations.db") as log:
        desk = bench.Desk(log)
        desk.lend([(name, 2)])
        desk.take([Answer(1, name, "3", 1.0, "page")])
    tally = bench.Tally(confirmed={(1, name): "4", (2, name): "5"})
    found = bench.check(tmp_path, tally)
    assert (found["answers_in_log"], found["lost"], found["changed"], found["doubled"]) == (1, 1, 1, 0)
