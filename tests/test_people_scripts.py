"""People on the page, played by HTTP clients beside a real run: recorded ones change nothing, a spammer is found out."""

from __future__ import annotations

import json

import pytest
from run_checks import needs_shared_data
from test_scripts import load_script

pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow


@needs_shared_data
def test_recorded_people_on_the_page_take_a_run_to_the_same_labels(capfd: pytest.CaptureFixture[str]) -> None:
    assert load_script("replay_on_page").main(["--rounds", "3", "--per-round", "100"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["equal_questions"]
    assert found["equal_answers"]
    assert found["equal_labels"]
    assert (found["answers"], found["answers_by_http"], found["rounds"]) == (200, 200, 3)
    assert found["people"] > 50


def test_a_spammer_on_the_page_is_set_aside_and_nobody_else(capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--seeds", "1", "--rounds", "4", "--pause", "0.05", "--haste", "3"]
    assert load_script("spammers_on_page").main(options) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["within_60"], found["others_set_aside"]) == (1, 0)
    assert 10 <= found["most"] <= 60
    assert "chance of" in found["runs"][0]["reason"] or "do not depend" in found["runs"][0]["reason"]
