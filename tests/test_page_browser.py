"""The page in a real browser, beside a run that waits: by keyboard, by touch, with a reload, an undo and a skip."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli_runs import CONFIGS, ROOT, answers, questions, start
from PIL import Image
from sklearn.datasets import load_digits

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.data.page_task import TASK_FILE, ImageSettings, PageTask
from lightning_annot.types import Question

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = [pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome here"), pytest.mark.usefixtures("_one_thread")]

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
PER_ROUND = 30
PHONE = {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True}
TRUTH = {str(row): str(label) for row, label in enumerate(load_digits().target)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield opened
        opened.close()


@contextmanager
def serving(run: Path, *names: str) -> Iterator[dict[str, str]]:
    """The real command in a process of its own; the links it prints, by name."""
    command = [sys.executable, "-m", "lightning_annot", "serve", str(run), "--port", "0", "--invite", *names]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield dict(process.stdout.readline().strip().split(": ", 1) for _ in range(len(names) + 1))
    finally:
        process.terminate()
        process.wait()


@dataclass
class Person:
    """Somebody at a page."""

    page: Any
    run: Path

    @property
    def question(self) -> int:
        """The question whose image can be seen; waits for it, and for the run."""
        self.page.wait_for_function(
            "() => { const p = document.getElementById('picture'); return p && !p.hidden && p.complete; }"
        )
        return int(self.page.get_attribute("#picture", "src").rsplit("/", 1)[1])

    def item(self, question: int) -> str:
        """What was asked."""
        return questions(self.run).set_index("id").loc[question, "item"]

    def act(self, action: Callable[[str], None]) -> int:
        """Answer the question that is shown by ``action`` on the right class; returns it once the next is there."""
        shown = self.question
        action(TRUTH[self.item(shown)])
        self.page.wait_for_function(f"() => !document.getElementById('picture').src.endsWith('/{shown}') || "
                                    "document.getElementById('picture').hidden")  # fmt: skip
        return shown


@contextmanager
def person(browser: Any, link: str, run: Path, **device: Any) -> Iterator[Person]:
    """A browser of its own for one worker; no error may come up in it, and no other host may be asked."""
    context = browser.new_context(**device)
    page, problems, hosts = context.new_page(), [], set()
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    page.goto(link)
    page.wait_for_function("() => document.activeElement.classList.contains('start')")
    page.keyboard.press("Enter")
    page.wait_for_url("**/")
    yield Person(page, run)
    assert problems == []
    assert hosts == {link.split("/")[2]}
    context.close()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_people_label_what_a_run_asks(browser: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {"config": CONFIGS / "digits.yaml", "trainer.enable_progress_bar": False, "trainer.max_epochs": 3,
                "annotation.workers": "lightning_annot.workers.live.LiveWorkers", "annotation.workers.poll_seconds": 0.1,
                "annotation.sampling.per_round": PER_ROUND, "annotation.threshold": 1e-9,
                "annotation.output_dir": run}  # fmt: skip
    process = start("fit", settings)
    with serving(run, "ann", "bob") as links:
        with person(browser, links["ann"], run) as ann:
            press = ann.page.keyboard.press
            first = [ann.act(press) for _ in range(12)]
            ann.page.reload()
            thirteenth = ann.question
            assert thirteenth not in first
            wrong = str((int(TRUTH[ann.item(thirteenth)]) + 1) % 10)
            press(wrong)
            ann.page.wait_for_function(f"() => !document.getElementById('picture').src.endsWith('/{thirteenth}')")
            press("Backspace")
            wait_for(lambda: ann.question == thirteenth)
            ann.act(press)
            skipped, unsure = ann.act(lambda label: press("s")), ann.act(lambda label: press("u"))
            given = [*first, thirteenth, skipped, unsure, *(ann.act(press) for _ in range(PER_ROUND - 15))]
            assert sorted(given) == list(range(1, PER_ROUND + 1))
            wait_for(lambda: len(answers(run)) == PER_ROUND)
        table = answers(run).set_index("question")
        assert table.loc[[skipped, unsure], "source"].tolist() == ["page: skip", "page: unsure"]
        rest = table.drop(index=[skipped, unsure])
        assert rest["label"].tolist() == [TRUTH[item] for item in rest["item"]]
        assert (table["seconds"] > 0).all()

        wait_for(lambda: len(questions(run)) == 2 * PER_ROUND)
        with person(browser, links["ann"], run) as ann, person(browser, links["bob"], run, **PHONE) as bob:
            for _ in range(10):
                ann.act(ann.page.keyboard.press)
                bob.act(lambda label: bob.page.tap(f"button[data-label='{label}']"))
            while len(answers(run)) < 2 * PER_ROUND:  # whoever is quicker gets what is left
                for one in (ann, bob):
                    if one.page.is_visible("#picture"):
                        one.act(lambda label, one=one: one.page.click(f"button[data-label='{label}']"))
                    else:
                        one.page.wait_for_timeout(200)
    process.join()
    assert process.exitcode == 0
    table = answers(run)
    assert not table.duplicated("question").any()
    assert set(table["worker"][PER_ROUND:]) == {"ann", "bob"}
    assert pd.read_csv(run / "rounds.csv")["annotations"].tolist() == [0, PER_ROUND, 2 * PER_ROUND]


def test_three_hundred_classes_are_found_by_typing(browser: Any, tmp_path: Path) -> None:
    names = tuple(f"{colour} {thing} {i:02d}" for i in range(25) for colour in ("red", "dark blue", "green") for thing in
                  ("car", "boat", "chair", "café"))  # fmt: skip
    assert len(names) == 300
    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.new("RGB", (400, 300), (60 * i, 90, 120)).save(tmp_path / "photos" / f"{i}.jpg")
    run = tmp_path / "run"
    with AnnotationLog(run / "annotations.db") as log:
        log.ask([Question(f"{i}.jpg", None) for i in range(4)])
    task = PageTask(names, names, dict.fromkeys(names, ("0.jpg",)), ImageSettings(str(tmp_path / "photos")))
    (run / TASK_FILE).write_text(task.to_json())
    with serving(run, "ann") as links, person(browser, links["ann"], run) as ann:
        page, press = ann.page, ann.page.keyboard.press
        assert ann.question == 1
        page.keyboard.type("boat 07")
        assert page.locator("#classes button:visible").count() == 3
        press("ArrowDown")
        press("Enter")
        wait_for(lambda: ann.question == 2)
        page.keyboard.type("CAF")
        press("Escape")
        press("?")
        wait_for(lambda: ann.question == 3)
        press("Backspace")  # nothing is typed, so it takes the last answer back
        wait_for(lambda: ann.question == 2)
        press("/")
        wait_for(lambda: ann.question == 3)
        page.keyboard.type("green chair 2")
        press("Backspace")
        page.keyboard.type("24")
        press("Enter")
        wait_for(lambda: ann.question == 4)
        page.goto("about:blank")  # who leaves can take nothing back, so it is sent
        wait_for(lambda: len(answers(run)) == 3)
    table = answers(run)
    assert table["label"].tolist() == ["dark blue boat 07", None, "green chair 24"]
    assert table["source"].tolist() == ["page", "page: none", "page"]
