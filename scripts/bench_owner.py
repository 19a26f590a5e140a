"""The owner's page over a large run: seconds of its first view and of later ones, and what people wait meanwhile.

Makes a run folder with its log, starts the page over it, and looks: once when it has just been started, then again and again,
each time after a few new answers. Beside it people answer; how long their answers take is told without and with an owner who
looks. ``--code`` names checkouts whose page is measured in turn, on the same folder. Prints JSON. Needs
``pip install -e '.[serve]' httpx``.

    python scripts/bench_owner.py --answers 1000000 --items 1300000 --code . ../before
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
from sqlalchemy import insert

from lightning_annot.annotations.appending import utc_now
from lightning_annot.annotations.desk import Desk
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.schema import ANSWER, QUESTION
from lightning_annot.data.page_task import TASK_FILE, PageTask
from lightning_annot.experiments.served import ServedPage, cookie_of

CLASSES = tuple(f"class {i:02d}" for i in range(20))
PER_ROUND, GOLD, CHUNK = 10_000, 20, 50_000  # every 20th question is gold
PROTOTYPES, WORKERS, CLIENTS, OPEN = 200, 200, 20, 50_000
PAUSE = 1.0  # mean seconds before an answer of each client


def prepare(run: Path, n_items: int, n_answers: int) -> dict[str, str]:
    """A run whose files know ``n_items``, and whose log holds ``n_answers`` and ``OPEN`` open questions; secrets by name."""
    rng, tasks = np.random.default_rng(0), np.array([f"images/{i:07d}.jpg" for i in range(n_items)], dtype=object)
    run.mkdir(parents=True)
    _files(rng, run, tasks)
    with AnnotationLog(run / "annotations.db") as log:
        _log(rng, log, tasks, n_answers)
        desk = Desk(log)
        return {name: desk.invite(name) for name in (f"client{i}" for i in range(CLIENTS))}


def _files(rng: np.random.Generator, run: Path, tasks: np.ndarray) -> None:
    risk = rng.beta(0.3, 2, len(tasks))
    status = np.where(risk < 0.1, "finished", "unfinished")
    status[:PROTOTYPES] = "prototype"
    columns = {"confidence": 1 - risk, "risk": risk, "n_annotations": rng.poisson(0.7, len(tasks)), "status": status}
    pd.DataFrame({"task": tasks, "label": rng.choice(CLASSES, len(tasks)), **columns}).to_csv(run / "labels.csv", index=False)
    rounds = {"round": range(50), "annotations": range(50), "annotations_per_item": np.linspace(0, 1, 50)}
    more = {name: np.linspace(0.1, 0.9, 50) for name in ("finished_fraction", "mean_risk")}
    pd.DataFrame(rounds | more).to_csv(run / "rounds.csv", index=False)
    names, mean = [f"worker{i:03d}" for i in range(WORKERS)], rng.beta(9, 2, WORKERS)
    interval = {"accuracy_mean": mean, "accuracy_low": mean - 0.05, "accuracy_high": mean + 0.05}
    workers = pd.DataFrame({"worker": names, "n_annotations": 5000, **interval, "state": "trusted", "reason": ""})
    workers.to_csv(run / "workers.csv", index=False)
    (run / "summary.json").write_text(json.dumps({"classes": CLASSES, "threshold": 0.1, "prices": {"per_answer": 0.02}}))
    (run / TASK_FILE).write_text(PageTask(CLASSES, CLASSES, {}, None).to_json())


def _log(rng: np.random.Generator, log: AnnotationLog, tasks: np.ndarray, n_answers: int) -> None:
    start = time.time() - 7 * 86_400
    for first in range(0, n_answers + OPEN, CHUNK):
        ids = np.arange(first, min(first + CHUNK, n_answers + OPEN))
        gold = ids % GOLD == 0
        item = tasks[np.where(gold, rng.integers(PROTOTYPES, size=len(ids)), rng.integers(PROTOTYPES, len(tasks), len(ids)))]
        worker, label = rng.integers(WORKERS, size=len(ids)), rng.integers(len(CLASSES), size=len(ids))
        seconds, skip = rng.gamma(2, 2, len(ids)), rng.random(len(ids)) < 0.02
        moments = [utc_now(start + 7 * 86_400 * i / (n_answers + OPEN)) for i in ids]
        asked = [
            {"id": int(i) + 1, "item": it, "worker": None, "kind": "gold" if g else "annotation", "round": int(i) // PER_ROUND,
             "asked_at": at} for i, it, g, at in zip(ids, item, gold, moments, strict=True)
        ]  # fmt: skip
        given = [
            {"id": int(i) + 1, "question": int(i) + 1, "worker": f"worker{w:03d}", "label": None if s else CLASSES[z],
             "answered_at": at, "seconds": float(t), "source": "page: skip" if s else "page"}
            for i, w, z, s, t, at in zip(ids, worker, label, skip, seconds, moments, strict=True) if i < n_answers
        ]  # fmt: skip
        with log.writing() as connection:
            connection.execute(insert(QUESTION), asked)
            if given:
                connection.execute(insert(ANSWER), given)


@dataclass(frozen=True)
class Client:
    """Somebody who answers, with a pause before each answer, until told to stop; ``seconds``: what each answer took."""

    http: httpx.AsyncClient
    cookie: str
    seconds: list[float]

    async def work(self, stop: asyncio.Event) -> None:
        """Ask, answer, ask again."""
        rng, headers = np.random.default_rng(len(self.cookie)), {"cookie": self.cookie}
        while not stop.is_set():
            lent = (await self.http.post("/api/next", json={"n": 10}, headers=headers)).json()["questions"]
            for question in lent:
                await asyncio.sleep(rng.uniform(0, 2 * PAUSE))
                start = time.perf_counter()
                body = {"question": question, "label": CLASSES[0], "seconds": 1.0}
                (await self.http.post("/api/answer", json=body, headers=headers)).raise_for_status()
                self.seconds.append(time.perf_counter() - start)


async def look(page: Page, views: int, pause: float) -> dict[str, object]:
    """First views, later views, and what people wait: before the owner comes, at the first view, and at later ones."""
    waits: dict[str, list[float]] = {"without_owner": [], "first_view": [], "later_views": []}
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=page.address, timeout=600, limits=limits) as http:
        stop, seconds = asyncio.Event(), list[float]()
        work = [asyncio.create_task(Client(http, cookie, seconds).work(stop)) for cookie in page.cookies]
        await asyncio.sleep(10)
        waits["without_owner"] = seconds[:]
        start, n = time.perf_counter(), len(seconds)
        cookie = await asyncio.to_thread(cookie_of, page.owner)
        welcome = time.perf_counter() - start
        headers = {"cookie": cookie}
        took = [await _view(http, headers)]
        waits["first_view"], n = seconds[n:], len(seconds)
        for _ in range(views):
            await asyncio.sleep(pause)
            took.append(await _view(http, headers))
        waits["later_views"] = seconds[n:]
        stop.set()
        await asyncio.gather(*work)
    told = {f"answer_ms_p50_p95_max_{name}": _quantiles(values) for name, values in waits.items()}
    later = [round(1000 * value) for value in sorted(took[1:])]
    return {
        "welcome_seconds": round(welcome, 2), "first_view_seconds": round(took[0], 2),
        "later_view_ms_p50_max": [later[len(later) // 2], later[-1]], "answers_meanwhile": len(seconds), **told,
    }  # fmt: skip


async def _view(http: httpx.AsyncClient, headers: dict[str, str]) -> float:
    """Seconds of the page; the plots that it shows are fetched after it, as a browser does."""
    start = time.perf_counter()
    response = await http.get("/owner", headers=headers)
    response.raise_for_status()
    took = time.perf_counter() - start
    await asyncio.gather(*(http.get(path, headers=headers) for path in re.findall(r'src="(/owner/plot/[^"]*)"', response.text)))
    return took


def _quantiles(seconds: list[float]) -> list[float]:
    return [round(1000 * float(q), 1) for q in np.quantile(seconds, [0.5, 0.95, 1])] if seconds else []


@dataclass(frozen=True)
class Page:
    """A page of some checkout, and whoever comes to it."""

    address: str
    owner: str
    cookies: list[str]


@contextmanager
def served(code: Path, run: Path, secrets: dict[str, str]) -> Iterator[Page]:
    """The page of the checkout ``code`` over ``run``."""
    before = Path.cwd()
    os.chdir(code)  # python -m takes what is here
    try:
        with ServedPage(run, []) as page:
            yield Page(
                page.address, page.links["owner"], [cookie_of(f"{page.address}/w/{secret}") for secret in secrets.values()]
            )
    finally:
        os.chdir(before)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the run, look at it by each checkout, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_300_000)
    parser.add_argument("--answers", type=int, default=1_000_000)
    parser.add_argument("--views", type=int, default=10, help="later views")
    parser.add_argument("--pause", type=float, default=2.0, help="seconds before each of them")
    parser.add_argument("--code", type=Path, nargs="+", default=[Path(__file__).resolve().parents[1]], help="checkouts")
    parser.add_argument("--run", type=Path, help="keep the run here, or use the one that is there")
    given = parser.parse_args(argv)
    result: dict[str, object] = {"items": given.items, "answers": given.answers}
    with tempfile.TemporaryDirectory() as folder:
        run = (given.run or Path(folder) / "run").resolve()
        if not (run / "secrets.json").is_file():
            secrets = prepare(run, given.items, given.answers)
            (run / "secrets.json").write_text(json.dumps(secrets))
        secrets = json.loads((run / "secrets.json").read_text())
        for code in given.code:
            with served(code, run, secrets) as page:
                result[str(code)] = asyncio.run(look(page, given.views, given.pause))
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
