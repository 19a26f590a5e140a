"""A team on one PostgreSQL database: two pages and a run, of which one page and the run are killed on the way."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_runs import QUIET, ROOT, SMALL, rounds, start
from ports import free_port
from postgres import new_database
from waiting import meanwhile, wait_for

from lightning_annot.annotations.desk import Desk
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.experiments.served import cookie_of

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

PER_ROUND, ROUNDS = 12, 3
WORKERS = ("ann", "bob", "eve")


class Page:
    """``serve`` in a process of its own, at a port that it keeps."""

    def __init__(self, run: Path, url: str) -> None:
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "lightning_annot", "serve", str(run), "--url", url, "--port", str(port)]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Client:
    """A worker at one of the pages, who goes on until told to stop; what the page has confirmed."""

    def __init__(self, name: str, token: str, page: Page) -> None:
        self._worker = name
        self._http, self._link = httpx.Client(base_url=page.address, timeout=60), f"{page.address}/w/{token}"
        self.confirmed: dict[tuple[int, str], str] = {}

    def work(self, stop: threading.Event) -> None:
        with self._http:
            while not stop.is_set():
                lent = self._post("/api/next", {"n": 2}, stop).get("questions", [])
                for question in lent:
                    label = str(question % 10)
                    if "new" in self._post("/api/answer", {"question": question, "label": label, "seconds": 1.0}, stop):
                        self.confirmed[question, self._worker] = label
                time.sleep(0.02 if lent else 0.1)

    def _post(self, path: str, body: object, stop: threading.Event) -> dict[str, Any]:
        while not stop.is_set():
            try:
                if "cookie" not in self._http.headers:
                    self._http.headers["cookie"] = cookie_of(self._link)
                response = self._http.post(path, json=body)
            except httpx.TransportError:  # the page is dead
                time.sleep(0.05)
                continue
            if response.status_code == 200:
                return response.json()
            assert response.status_code in (429, 503), response.text
            time.sleep(0.05)
        return {}


@contextmanager
def labelling(log: AnnotationLog, pages: list[Page]) -> Iterator[list[Client]]:
    """Every worker at every page at once."""
    desk = Desk(log)
    tokens = {name: desk.invite(name) for name in WORKERS}
    clients = [Client(name, token, page) for name, token in tokens.items() for page in pages]
    with meanwhile(*(client.work for client in clients)):
        yield clients


@pytest.mark.slow
def test_two_pages_and_a_run_share_a_log_and_survive_kills(postgres_server: str, tmp_path: Path) -> None:
    url, run = new_database(postgres_server), tmp_path / "run"
    settings = {
        **QUIET, **SMALL, "data.root": "digits", "annotation.output_dir": run, "annotation.log_url": url,
        "annotation.workers": "lightning_annot.workers.live.LiveWorkers", "annotation.workers.poll_seconds": 0.1,
        "annotation.sampling.per_round": PER_ROUND, "annotation.threshold": 1e-9, "trainer.max_epochs": ROUNDS + 1,
    }  # fmt: skip
    pages = [Page(run, url), Page(run, url)]
    try:
        with AnnotationLog(url) as log, labelling(log, pages) as clients:
            trainer = start("fit", settings, "--ckpt_path=last")
            wait_for(lambda: len(log.answers()) >= 3, trainer.is_alive)
            pages[0].kill()
            pages[0].start()
            wait_for(lambda: len(log.answers()) >= PER_ROUND + 2, trainer.is_alive)
            trainer.kill()
            trainer.join()
            trainer = start("fit", settings, "--ckpt_path=last")
            trainer.join(600)
            assert trainer.exitcode == 0
        confirmed = {key: label for client in clients for key, label in client.confirmed.items()}
        with AnnotationLog(url) as log:
            answers, questions = log.answers(), log.questions()
    finally:
        for page in pages:
            page.kill()
    there = {(q, w): z for q, w, z in zip(answers["question"], answers["worker"], answers["label"], strict=True)}
    assert len(confirmed) > PER_ROUND
    assert {key: there.get(key) for key in confirmed} == confirmed  # none lost or changed
    assert len(there) == len(answers) == PER_ROUND * ROUNDS
    assert not answers.duplicated("question").any()
    assert not answers.duplicated(["item", "worker"]).any()
    assert sorted(answers["question"]) == questions["id"].tolist()
    assert rounds(run)["annotations"].tolist() == [PER_ROUND * i for i in range(ROUNDS + 1)]
    assert json.loads((run / "summary.json").read_text())["stop_reason"].startswith("the last allowed round")
