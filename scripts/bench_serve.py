"""The labelling page under load: clients over loopback, a training loop beside it, and a server that is killed meanwhile.

Prints JSON: what was lost or doubled (nothing may be), and how long requests took, from the first try to the answer that
came, the client's own waits between tries among it. ``static`` is the same run's floor: a small file, which no database,
worker or image takes part in. Needs ``pip install -e '.[serve]' httpx``.

    python scripts/bench_serve.py --clients 50 --answers 10000 --kills 20
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from sklearn.datasets import load_digits

from lightning_annot.annotations.desk import Desk
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.data.datasets import DigitStore
from lightning_annot.data.page_task import TASK_FILE, ImageSettings, PageTask
from lightning_annot.experiments.served import cookie_of
from lightning_annot.types import Question

CLASSES = tuple("0123456789")
N_ITEMS = 1797  # digits
KINDS = ("answer", "next", "image", "static")
RETRY = 0.1  # seconds


class Server:
    """``lightning-annot serve`` in a process of its own, always at the same port."""

    def __init__(self, run: Path, url: str | None = None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._command = [sys.executable, "-m", "lightning_annot", "serve", str(run), "--port", str(self.port)]
        self._command += [] if url is None else ["--url", url]
        self._process = self._start()
        self.kills = 0

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        """SIGKILL, and start again."""
        self.stop()
        self._process = self._start()
        self.kills += 1

    def stop(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()


@dataclass
class Tally:
    """What the clients saw: seconds of each request by its kind, why tries failed, answers the server confirmed."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    failed: Counter[str] = field(default_factory=Counter)
    confirmed: dict[tuple[int, str], str] = field(default_factory=dict)


class Client:
    """A worker who labels, with a pause before each answer, until nothing is left or enough is answered."""

    def __init__(self, name: str, token: str, port: int, think: float, enough: int, tally: Tally) -> None:
        self._name, self._think, self._enough, self._tally = name, think, enough, tally
        base = f"http://127.0.0.1:{port}"
        self._link = f"{base}/w/{token}"
        self._http = httpx.AsyncClient(base_url=base, timeout=10)
        self._rng = random.Random(name)

    async def work(self) -> None:
        """Label; what fails is tried again."""
        self._http.headers["cookie"] = await asyncio.to_thread(cookie_of, self._link)
        async with self._http:
            while len(self._tally.confirmed) < self._enough:
                await self._request("static", "GET", "/static/page.css")
                lent = (await self._request("next", "POST", "/api/next", {"n": 10})).json()["questions"]
                if not lent:
                    await asyncio.sleep(0.2)
                for question in lent:
                    if len(self._tally.confirmed) < self._enough:
                        await self._answer(question)

    async def _answer(self, question: int) -> None:
        await self._request("image", "GET", f"/image/{question}")
        await asyncio.sleep(self._rng.uniform(0, 2 * self._think))
        label = self._rng.choice(CLASSES)
        body = {"question": question, "label": label, "seconds": 1.0}
        response = await self._request("answer", "POST", "/api/answer", body)
        assert response.status_code == 200, response.text
        self._tally.confirmed[question, self._name] = label

    async def _request(self, kind: str, method: str, path: str, body: object = None) -> httpx.Response:
        start = time.perf_counter()
        while True:
            try:
                response = await self._http.request(method, path, json=body)
                if response.status_code < 500 and response.status_code != 429:
                    self._tally.seconds[kind].append(time.perf_counter() - start)
                    return response
                why = str(response.status_code)
            except httpx.TransportError as error:  # the server is being killed, or not up yet
                why = type(error).__name__
            self._tally.failed[f"{kind}: {why}"] += 1
            await asyncio.sleep(RETRY)


async def label(server: Server, clients: list[Client], tally: Tally, kills: int, enough: int) -> None:
    """All clients at once; the server is killed at even steps of the way."""
    await _until_up(server.port)
    work = [asyncio.create_task(client.work()) for client in clients]
    for k in range(kills):
        while len(tally.confirmed) < enough * (k + 1) / (kills + 1):
            await asyncio.sleep(0.02)
        await asyncio.to_thread(server.kill)
    await asyncio.gather(*work)


async def _until_up(port: int) -> None:
    async with httpx.AsyncClient() as http:
        while True:
            try:
                await http.get(f"http://127.0.0.1:{port}/static/page.css")
                return
            except httpx.TransportError:
                await asyncio.sleep(0.1)


def prepare(run: Path, n_clients: int, n_answers: int, url: str | None = None) -> list[tuple[str, str]]:
    """A run of a folder of digits with as many open questions as answers are wanted; names and secrets of its workers."""
    photos = run / "photos"
    photos.mkdir(parents=True)
    store = DigitStore(load_digits().images.astype(np.uint8))
    for row in range(N_ITEMS):
        store.read(row).save(photos / f"{row}.png")
    settings = ImageSettings(str(photos), id_pattern="%s.png", numbered=N_ITEMS)
    task = PageTask(CLASSES, CLASSES, dict.fromkeys(CLASSES, ()), settings)
    with AnnotationLog(url or run / "annotations.db") as log:
        (run / TASK_FILE).write_text(task.to_json())
        log.ask([Question(str(i % N_ITEMS), None) for i in range(n_answers)])
        desk = Desk(log)
        return [(name, desk.invite(name)) for name in (f"client{i}" for i in range(n_clients))]


def check(run: Path, tally: Tally, url: str | None = None) -> dict[str, int]:
    """Confirmed answers that the log has not, or has otherwise; answers of one worker to one question or item twice."""
    with AnnotationLog(url or run / "annotations.db") as log:
        answers = log.answers()
    there = {(q, w): z for q, w, z in zip(answers["question"], answers["worker"], answers["label"], strict=True)}
    changed = [key for key, given in tally.confirmed.items() if key in there and there[key] != given]
    items = Counter(zip(answers["item"], answers["worker"], strict=True))
    return {
        "answers_in_log": len(answers),
        "confirmed": len(tally.confirmed),
        "lost": sum(key not in there for key in tally.confirmed),
        "changed": len(changed),
        "doubled": len(answers) - len(there) + sum(count > 1 for count in items.values()),
        "questions_answered_twice": int(answers.duplicated("question").sum()),
    }


def train_beside(run: Path) -> subprocess.Popen[bytes]:
    """A training loop on one thread, for as long as it is let."""
    command = [
        sys.executable,
        "-m",
        "lightning_annot",
        "fit",
        "--config",
        "configs/digits.yaml",
        "--trainer.max_epochs",
        "100000",
    ]
    command += [
        "--annotation.stopping.budget",
        "null",
        "--annotation.stopping.patience",
        "null",
        "--annotation.threshold",
        "1e-9",
    ]
    command += ["--annotation.sampling.per_round", "1", "--annotation.output_dir", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[1]
    return subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; exit status 1 if anything was lost, changed or doubled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--think", type=float, default=0.5, help="mean seconds before an answer")
    parser.add_argument("--kills", type=int, default=0, help="how often the server is killed (-9) and started again")
    parser.add_argument("--url", help="SQLAlchemy URL of an empty database for the log (a SQLite file)")
    parser.add_argument("--alone", action="store_true", help="without a training loop beside")
    given = parser.parse_args(argv)
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        people = prepare(run, given.clients, given.answers, given.url)
        training = None if given.alone else train_beside(Path(folder) / "beside")
        server = Server(run, given.url)
        start = time.perf_counter()
        try:
            clients = [Client(*one, server.port, given.think, given.answers, tally) for one in people]
            asyncio.run(label(server, clients, tally, given.kills, given.answers))
        finally:
            server.stop()
            if training is not None:
                training.kill()
                training.wait()
        result: dict[str, object] = {"clients": given.clients, "kills": server.kills, **(found := check(run, tally, given.url))}
        result |= {"seconds": round(time.perf_counter() - start, 1), "tries_that_failed": dict(tally.failed)}
        result["load_average"] = round(os.getloadavg()[0], 1)
        for kind, seconds in tally.seconds.items():
            quantiles = np.quantile(seconds, [0.5, 0.95, 0.99]) if seconds else []
            result[f"{kind}_ms_p50_p95_p99"] = [round(1000 * float(q), 1) for q in quantiles]
    print(json.dumps(result, indent=1))
    return int(any(found[name] for name in ("lost", "changed", "doubled")))


if __name__ == "__main__":
    sys.exit(main())
