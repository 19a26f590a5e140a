"""The page in a real browser, beside a run that waits: by keyboard, by touch, with a reload, an undo and a skip."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli_runs import CONFIGS, PIXELS, answers, questions, start
from PIL import Image
from sklearn.datasets import load_digits
from waiting import wait_for

from lightning_annot.annotations.desk import Desk
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.data.page_task import TASK_FILE, ImageSettings, PageTask
from lightning_annot.experiments.served import ServedPage
from lightning_annot.types import Question

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome here")

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
PER_ROUND = 30
PHONE = {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True}
KEYS = {"skip": "s", "unsure": "u", "none": "n"}
TRUTH = {str(row): str(label) for row, label in enumerate(load_digits().target)}
MOST_MS = 600_000  # that a busy machine may take for what is waited for


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=BROWSER, args=FLAGS, timeout=MOST_MS)
        yield opened
        opened.close()


@dataclass
class Person:
    """Somebody at a page."""

    page: Any
    run: Path

    @property
    def question(self) -> int:
        """The question whose image can be seen; waits for it, and for the run."""
        self.page.wait_for_function(
            "() => { const p = document.getElementById('picture'); "
            "return p && !p.hidden && p.dataset.shown && p.dataset.question === p.dataset.shown; }"
        )
        return int(self.page.get_attribute("#picture", "data-question"))

    def item(self, question: int) -> str:
        """What was asked."""
        return questions(self.run).set_index("id").loc[question, "item"]

    def act(self, action: Callable[[str], None]) -> int:
        """Answer the question that is shown by ``action`` on the right class; returns it once the next is there."""
        shown = self.question
        action(TRUTH[self.item(shown)])
        self.page.wait_for_function(f"() => document.getElementById('picture').dataset.question !== '{shown}' || "
                                    "document.getElementById('picture').hidden")  # fmt: skip
        return shown


@contextmanager
def person(browser: Any, link: str, run: Path, **device: Any) -> Iterator[Person]:
    """A browser of its own for one worker; no error may come up in it, and no other host may be asked."""
    context = browser.new_context(**device)
    context.set_default_timeout(MOST_MS)
    page, problems, hosts = context.new_page(), [], set()
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    enter(page, link)
    yield Person(page, run)
    assert problems == []
    assert hosts == {link.split("/")[2]}
    context.close()


def enter(page: Any, link: str) -> None:
    """Open a link, and go on to where it leads."""
    page.goto(link)
    page.wait_for_function("() => document.activeElement.classList.contains('start')")
    page.keyboard.press("Enter")
    page.wait_for_function("() => ['/', '/owner'].includes(location.pathname)")


@contextmanager
def two(browser: Any, links: dict[str, str], run: Path) -> Iterator[tuple[Person, Person]]:
    """ann at a desk and bob on a phone, at once."""
    with person(browser, links["ann"], run) as ann, person(browser, links["bob"], run, **PHONE) as bob:
        yield ann, bob


def plain_run(run: Path, n: int) -> None:
    """Open questions about the first n digits, with examples, and no training run beside."""
    names = tuple("0123456789")
    examples = {name: tuple(item for item, label in TRUTH.items() if label == name)[-3:] for name in names}
    with AnnotationLog(run / "annotations.db") as log:
        log.ask([Question(str(i), None) for i in range(n)])
    (run / TASK_FILE).write_text(PageTask(names, names, examples, ImageSettings("digits")).to_json())


def press_right(one: Person) -> Callable[[str], None]:
    return lambda label: one.page.keyboard.press(label)


def tap_right(one: Person) -> Callable[[str], None]:
    return lambda label: one.page.tap(f"button[data-label='{label}']")


def test_thirty_by_keyboard_and_thirty_by_touch(browser: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    plain_run(run, 4 * PER_ROUND)  # more than they answer, as each is lent a HIT
    with ServedPage(run, ["ann", "bob"]) as served, two(browser, served.links, run) as (ann, bob):
        press, tap = ann.page.keyboard.press, bob.page.tap
        by_key = [ann.act(press_right(ann)) for _ in range(11)]  # past the end of a HIT
        by_touch = [bob.act(tap_right(bob)) for _ in range(11)]
        ann.page.reload()
        assert ann.question not in by_key
        shown = ann.question
        press(str((int(TRUTH[ann.item(shown)]) + 1) % 10))
        ann.page.wait_for_function(f"() => document.getElementById('picture').dataset.question !== '{shown}'")
        press("Backspace")
        wait_for(lambda: ann.question == shown)
        by_key.append(ann.act(press_right(ann)))
        reasons = {name: ann.act(lambda label, key=key: press(key)) for name, key in KEYS.items()}
        shown = bob.question
        tap("button[data-label='0']")
        bob.page.wait_for_function(f"() => document.getElementById('picture').dataset.question !== '{shown}'")
        tap("#undo")
        wait_for(lambda: bob.question == shown)
        reasons |= {f"{name}, touched": bob.act(lambda label, name=name: tap(f"[data-reason='{name}']")) for name in KEYS}
        press("e")
        ann.page.wait_for_selector("#examples img")
        press("3")  # is no answer while the examples are shown
        press("Escape")
        while len(by_key) + len(reasons) // 2 < PER_ROUND:
            by_key.append(ann.act(press_right(ann)))
        while len(by_touch) + len(reasons) // 2 < PER_ROUND:
            by_touch.append(bob.act(tap_right(bob)))
        wait_for(lambda: len(answers(run)) == 2 * PER_ROUND)
    table = answers(run).set_index("question")
    assert not table.index.duplicated().any()
    for name, question in reasons.items():
        assert table.loc[question, "source"] == f"page: {name.partition(',')[0]}"
    for who, given in (("ann", by_key), ("bob", by_touch)):
        assert (table.loc[given, "worker"] == who).all()
        assert table.loc[given, "label"].tolist() == [TRUTH[item] for item in table.loc[given, "item"]]
    assert table["worker"].value_counts().to_dict() == {"ann": PER_ROUND, "bob": PER_ROUND}
    assert table["seconds"].between(0, 600).all()


@pytest.mark.slow
def test_one_browser_answers_for_two_runs_and_watches_both(browser: Any, tmp_path: Path) -> None:
    runs, context = [tmp_path / "one", tmp_path / "two"], browser.new_context()
    for run in runs:
        plain_run(run, 20)
    with ServedPage(runs[0], ["ann"]) as one, ServedPage(runs[1], ["ann"]) as other:
        anns, owners = ([Person(context.new_page(), run) for run in runs] for _ in range(2))
        for served, ann, owner in zip((one, other), anns, owners, strict=True):
            enter(ann.page, served.links["ann"])
            enter(owner.page, served.links["owner"])
        for _ in range(3):
            for ann in anns:
                ann.act(press_right(ann))
        for ann, owner in zip(anns, owners, strict=True):
            ann.page.goto("about:blank")  # who leaves can take nothing back
            wait_for(lambda run=ann.run: len(answers(run)) == 3)
            owner.page.reload()
            assert owner.page.inner_text("#people-table tbody td") == "3"
    context.close()


@pytest.mark.slow
def test_the_owner_pauses_and_invites(browser: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    plain_run(run, 40)
    with (
        ServedPage(run, ["ann"]) as served,
        person(browser, served.links["owner"], run) as owner,
        person(browser, served.links["ann"], run) as ann,
    ):
        page = owner.page
        given = [ann.act(press_right(ann)) for _ in range(3)]
        page.fill("#reason", "lunch until two")
        page.click("button[aria-label='Pause ann']")
        page.wait_for_function("() => document.body.textContent.includes('paused: lunch until two')")
        page.fill("#reason", "")
        while ann.page.is_visible("#picture"):  # what is lent may be answered
            given.append(ann.act(press_right(ann)))
        ann.page.wait_for_function("() => document.getElementById('say').textContent === 'Paused: lunch until two.'")
        assert 10 <= len(given) < 40
        page.focus("button[aria-label='Go on with ann']")
        page.keyboard.press("Enter")
        assert ann.question not in given
        page.fill("#name", "carl")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.getElementById('link-text').value")
        with person(browser, page.input_value("#link-text"), run) as carl:
            carl.act(press_right(carl))
            carl.page.goto("about:blank")  # who leaves can take nothing back
            wait_for(lambda: "carl" in set(answers(run)["worker"]))
        page.wait_for_function("() => [...document.querySelectorAll('tbody th')].some((th) => th.textContent === 'carl')")
        ann.page.goto("about:blank")
        wait_for(lambda: len(answers(run)) == len(given) + 1)
        check_owner(owner, run)


@pytest.mark.slow
def test_answers_and_images_wait_for_a_log_that_is_away(browser: Any, tmp_path: Path) -> None:
    run, context = tmp_path / "run", browser.new_context()
    plain_run(run, 20)
    raw = sqlite3.connect(run / "annotations.db", isolation_level=None)
    with ServedPage(run, ["ann"]) as served:
        ann = Person(context.new_page(), run)
        enter(ann.page, served.links["ann"])
        given = [ann.act(press_right(ann)) for _ in range(2)]
        shown, label = ann.question, TRUTH[ann.item(ann.question)]
        raw.execute("ALTER TABLE question RENAME TO away")
        ann.page.keyboard.press(label)
        ann.page.evaluate("document.getElementById('picture').src += '&anew'")  # the next image is not there yet
        away = "() => document.getElementById('say').textContent.startsWith('The server does not answer.')"
        ann.page.wait_for_function(away)
        ann.page.wait_for_timeout(8000)  # longer than the first tries at an image take
        assert ann.page.evaluate(away)
        raw.execute("ALTER TABLE away RENAME TO question")
        given += [shown, *(ann.act(press_right(ann)) for _ in range(2))]
        ann.page.goto("about:blank")
        wait_for(lambda: len(answers(run)) == len(given))
    assert sorted(answers(run)["question"]) == sorted(given)
    raw.close()
    context.close()


def check_owner(owner: Person, run: Path) -> None:
    """The page shows, without being loaded again, what the log holds; it stays where it was, sorted as it was."""
    page, table = owner.page, answers(run)
    page.click("thead button >> text=answers")
    page.evaluate("window.scrollTo(0, 300)")
    rows = """() => [...document.querySelectorAll('#people-table tbody tr')].map(
        (row) => [row.cells[0].textContent, Number(row.cells[1].textContent)])"""
    wanted = [[worker, int(n)] for worker, n in table.loc[table["label"].notna(), "worker"].value_counts().items()]
    for pause in (5500, 0):  # it renews itself meanwhile
        wait_for(lambda: page.evaluate(rows) == wanted)
        page.wait_for_timeout(pause)
    assert page.evaluate("window.scrollY") == 300
    tiles = dict(zip(page.locator(".numbers dt").all_inner_texts(), page.locator(".numbers b").all_inner_texts(), strict=True))
    still_open = len(set(questions(run)["id"]) - set(table["question"]))
    assert int(tiles["Open questions"].replace(",", "")) == still_open
    assert float(tiles["Cost"].replace(",", "")) == len(table)
    assert tiles["Round 0"] == f"{table['question'].nunique()} of {len(questions(run))}"
    page.wait_for_function(
        "() => { const plots = [...document.querySelectorAll('#plots img')]; "
        "return plots.length && plots.every((i) => i.complete && i.naturalWidth); }"
    )
    with page.expect_download() as download:
        page.click("a >> text=answers.csv")
    assert len(pd.read_csv(download.value.path())) == len(table)


@pytest.mark.slow
def test_the_owner_on_a_phone_and_somebody_who_was_set_aside(browser: Any, tmp_path: Path) -> None:
    run, why = tmp_path / "run", "the answers do not depend on the image, as far as can be told from forty of them"
    plain_run(run, 40)
    agent = "Mozilla/5.0 (Linux; Android 14) AppleWebKit/537.36 Chrome/120.0 Mobile Safari/537.36"
    with ServedPage(run, ["ann"]) as served, AnnotationLog(run / "annotations.db") as log:
        Desk(log).set_aside({"ann": why})
        with person(browser, served.links["owner"], run, user_agent=agent, **PHONE) as owner:
            page, opened = owner.page, "() => [...document.querySelectorAll('details')].map((part) => part.open)"
            assert page.evaluate(opened) == [False] * 5
            assert page.evaluate("document.body.scrollHeight") < 1.5 * 780  # of a phone's height
            assert "1 set aside by the run" in page.inner_text("#now")
            page.click("nav a >> text=People")  # leads into a closed part, which opens
            page.wait_for_function("() => document.getElementById('people').closest('details').open")
            page.wait_for_timeout(5500)  # it renews itself meanwhile
            assert page.evaluate(opened) == [False, True, False, False, False]
            assert why in page.inner_text("#people-table")
        with person(browser, served.links["ann"], run, **PHONE) as ann:
            page = ann.page
            page.wait_for_function("() => document.getElementById('say').textContent.startsWith('Paused')")
            assert page.inner_text("#say") == f"Paused: {why}."
            size = "() => { const s = document.getElementById('say'); return [s.scrollWidth <= s.clientWidth, "
            size += "s.scrollHeight <= s.clientHeight, parseFloat(getComputedStyle(s).fontSize)]; }"
            assert page.evaluate(size) == [True, True, pytest.approx(21.6)]  # all of it can be read


@pytest.mark.slow
def test_people_label_what_a_run_asks(browser: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {"config": CONFIGS / "digits.yaml", **PIXELS, "trainer.enable_progress_bar": False, "trainer.max_epochs": 3,
                "annotation.workers": "lightning_annot.workers.live.LiveWorkers", "annotation.workers.poll_seconds": 0.1,
                "annotation.sampling.per_round": PER_ROUND, "annotation.threshold": 1e-9,
                "annotation.output_dir": run}  # fmt: skip
    process = start("fit", settings)
    with ServedPage(run, ["ann", "bob"]) as served:
        with person(browser, served.links["ann"], run) as ann:
            given = [ann.act(press_right(ann)) for _ in range(PER_ROUND)]
            assert sorted(given) == list(range(1, PER_ROUND + 1))
            wait_for(lambda: len(questions(run)) == 2 * PER_ROUND)
        with person(browser, served.links["ann"], run) as ann, person(browser, served.links["bob"], run, **PHONE) as bob:
            for _ in range(10):
                ann.act(press_right(ann))
                bob.act(tap_right(bob))
            while len(answers(run)) < 2 * PER_ROUND:  # whoever is quicker gets what is left
                for one in (ann, bob):
                    if one.page.is_visible("#picture"):
                        one.act(lambda label, one=one: one.page.click(f"button[data-label='{label}']"))
                    else:
                        one.page.wait_for_timeout(200)
        process.join()
        assert process.exitcode == 0
        with person(browser, served.links["owner"], run) as owner:
            check_galleries(owner, run)
    table = answers(run)
    assert not table.duplicated("question").any()
    assert set(table["worker"][PER_ROUND:]) == {"ann", "bob"}
    assert table["label"].tolist() == [TRUTH[item] for item in table["item"]]
    assert pd.read_csv(run / "rounds.csv")["annotations"].tolist() == [0, PER_ROUND, 2 * PER_ROUND]


def check_galleries(owner: Person, run: Path) -> None:
    """Shelves and galleries hold as many images as the files and the log say; scorecards and files are there."""
    page, labels = owner.page, pd.read_csv(run / "labels.csv", dtype={"task": str})
    labels = labels[labels["status"] != "prototype"]
    count = labels["task"].map(answers(run)["item"].value_counts()).fillna(0).clip(upper=3)
    titles = page.locator("#images h3").all_inner_texts()
    assert titles[0] == f"Unfinished images: {(labels['status'] == 'unfinished').sum():,}"
    for n, words in enumerate(("without an answer", "with 1 answer", "with 2 answers")):
        assert titles[n + 1].startswith(f"Images {words}: {(count == n).sum():,}")
    page.click("#images a >> text=All >> nth=1")
    assert page.locator(".gallery figure").count() == 60
    page.click("a[rel=next]")
    page.wait_for_url("**page=2")
    page.click("nav a:text-is('1')")
    assert f"with 1 answer: {(count == 1).sum():,}" in page.inner_text("h1")
    said = page.locator(".gallery figure").first.inner_text()
    assert "ann: " in said or "bob: " in said
    page.goto(page.url.split("/owner")[0] + "/owner/scorecards")
    assert page.locator("tbody tr").count() == 2
    page.go_back()
    page.goto(page.url.split("/owner")[0] + "/owner")
    for link in page.locator("#files a").all():
        response = page.request.get(page.url.split("/owner")[0] + str(link.get_attribute("href")))
        assert response.ok
        assert response.headers["content-disposition"] == f'attachment; filename="{link.inner_text()}"'
        assert len(response.body()) > 20


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
    with ServedPage(run, ["ann"]) as served, person(browser, served.links["ann"], run) as ann:
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
