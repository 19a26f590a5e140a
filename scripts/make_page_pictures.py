"""The README's pictures of the labelling page, from a real run over scikit-learn's digits, into docs/pictures.

    python scripts/make_page_pictures.py       # about two minutes on 2 cores

A run with live workers asks in rounds; four simulated people answer, each in a thread, and one of them does not look. In the
last round a browser shows the page of a fifth, on a desk and on a phone, and the owner's. Needs Chromium and ``.[test]``.
"""

from __future__ import annotations

import argparse
import io
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from sklearn.datasets import load_digits

from lightning_annot.annotations.desk import Desk
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.types import Answer

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
DESK = {"viewport": {"width": 1200, "height": 700}}
PHONE = {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
PEOPLE = {"ann": 0.97, "bob": 0.9, "eve": 0.8, "kim": 0.1}  # share of right answers
VISITOR = "zoe"
ROUNDS, PER_ROUND = 5, 60
COLOURS = 96  # of each picture's palette, which keeps the files small
SETTINGS = {
    "data.adapt": "null", "data.backbone": "{name: null}", "trainer.max_epochs": 100, "trainer.enable_progress_bar": "false",
    "annotation.workers": "lightning_annot.workers.live.LiveWorkers", "annotation.workers.poll_seconds": 0.1,
    "annotation.workers.workers": f"[{','.join([*PEOPLE, VISITOR])}]", "annotation.sampling.per_round": PER_ROUND,
    "annotation.gold_rate": 0.2, "annotation.trust.least_accuracy": 0.5, "annotation.stopping.patience": "null",
    "annotation.workers.until": 0.8,
}  # fmt: skip


class Crowd:
    """People who answer digits in threads of their own; from round ``last`` on they leave the rest to the visitor."""

    def __init__(self, run: Path, last: int) -> None:
        self._run, self._last, self._truth = run, last, load_digits().target
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=one, daemon=True) for one in [*PEOPLE.items(), (VISITOR, 0.95)]
        ]

    def start(self) -> None:
        """Begin to answer."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let everybody finish an answer."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, name: str, right: float) -> None:
        rng = random.Random(name)
        with AnnotationLog(self._run / "annotations.db") as log:
            desk = Desk(log)
            while not self._stop.is_set():
                resting = log.last_round() >= self._last and (name == VISITOR or rng.random() < 0.5)
                (lent,) = [[]] if resting else desk.lend([(name, 1)])
                for question in lent:
                    row = int(desk.item_lent(question, name) or 0)
                    label = str(self._truth[row] if rng.random() < right else rng.randrange(10))
                    skip = rng.random() < 0.03
                    answer = Answer(
                        question, name, None if skip else label, 1 + 3 * rng.random(), "page: unsure" if skip else "page"
                    )
                    desk.take([answer])
                time.sleep(0.1 if lent else 0.3)


@contextmanager
def running(*words: object) -> Iterator[subprocess.Popen[str]]:
    """``lightning-annot`` in a process of its own."""
    command = [sys.executable, "-m", "lightning_annot", *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()  # nothing is lost: that is what the log is for
        process.wait()


def links(serve: subprocess.Popen[str], n: int) -> dict[str, str]:
    """The first n links that ``serve`` prints, by name."""
    assert serve.stdout is not None
    return dict(serve.stdout.readline().strip().split(": ", 1) for _ in range(n))


def photograph(browser: Any, run: Path, pages: dict[str, str], out: Path) -> list[Path]:
    """The three pictures."""
    worker, owner = pages[VISITOR], pages["owner"]
    shots = []
    for name, device in {"label.png": DESK, "label-phone.png": PHONE}.items():
        page = open_page(browser, worker, **device)
        page.wait_for_function("() => { const p = document.getElementById('picture'); return p && !p.hidden && p.complete; }")
        if device is DESK:
            for _ in range(2):
                shown = page.get_attribute("#picture", "src")
                with AnnotationLog(run / "annotations.db") as log:
                    row = int(Desk(log).item_lent(int(str(shown).rsplit("/", 1)[1]), VISITOR) or 0)
                page.keyboard.press(str(load_digits().target[row]))
                page.wait_for_function(f"() => !document.getElementById('picture').src.endsWith('{shown}')")
        page.wait_for_timeout(500)
        shots.append(save(page.screenshot(), out / name))
        page.context.close()
    page = open_page(browser, owner, viewport={"width": 1200, "height": 1900})
    page.wait_for_load_state("networkidle")
    shots.append(save(page.screenshot(), out / "owner.png"))
    page.context.close()
    return shots


def open_page(browser: Any, link: str, **device: Any) -> Any:
    """What is behind a link."""
    page = browser.new_context(**device).new_page()
    page.goto(link)
    page.click(".start")
    page.wait_for_function("() => !location.pathname.startsWith('/w/') && !location.pathname.startsWith('/o/')")
    return page


def save(shot: bytes, path: Path) -> Path:
    """Write a PNG with a palette of few colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def main(argv: list[str] | None = None) -> int:
    """Draw all pictures and print their paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures", help="folder of the pictures")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds before the pictures are taken")
    parser.add_argument("--keep", type=Path, help="folder to keep the run in")
    given = parser.parse_args(argv)
    chromium = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if chromium is None:
        print(f"no browser ({', '.join(BROWSERS)}) found: the pictures are left as they are", file=sys.stderr)
        return 1
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as scratch:
        run = given.keep or Path(scratch) / "digits"
        options = [word for key, value in SETTINGS.items() for word in (f"--{key}", value)]
        fit = ("fit", "--config", ROOT / "configs" / "digits.yaml", *options, "--annotation.output_dir", run)
        with running("serve", run, "--port", 0, "--invite", *PEOPLE, VISITOR) as serve:
            pages = links(serve, len(PEOPLE) + 2)
            crowd = Crowd(run, given.rounds)
            crowd.start()
            with running(*fit) as process, AnnotationLog(run / "annotations.db") as log:
                while log.last_round() < given.rounds and process.poll() is None:
                    time.sleep(0.2)
                time.sleep(2)
                crowd.stop()
                with sync_playwright() as playwright:
                    browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
                    shots = photograph(browser, run, pages, given.out)
                    browser.close()
    for path in shots:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
