"""Recorded people on the labelling page: each is an HTTP client who gives the recorded answers, beside a live run.

The same run is made twice: with ``RecordedWorkers``, and with people on the page who are asked the same. Prints JSON: whether
questions, answers and labels are equal. Data as in ``configs/recorded.yaml``; needs ``pip install -e '.[serve]' httpx``.

    python scripts/replay_on_page.py --rounds 12 --per-round 500
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import pandas as pd
from torch import Tensor

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.experiments.served import ServedPage, Visitor, start_run
from lightning_annot.types import AnnotError, Task
from lightning_annot.workers.live import LiveWorkers
from lightning_annot.workers.recorded import RecordedWorkers

ROOT = Path(__file__).resolve().parents[1]
BUSY = 16  # people who answer at once


class RecordedPeopleOnPage(LiveWorkers):
    """Live workers who can be asked what their recorded answers are about, and nothing else."""

    def __init__(self, answers: str) -> None:
        super().__init__(poll_seconds=0.05)
        self._recorded = RecordedWorkers(answers, by_worker=True)

    def bind(self, task: Task) -> None:
        """As both."""
        super().bind(task)
        self._recorded.bind(task)

    def names(self) -> Sequence[str]:
        """The recorded people."""
        return self._recorded.names()

    def capacity(self) -> Tensor | None:
        """Recorded answers of each item."""
        return self._recorded.capacity()

    def can_answer(self) -> tuple[Tensor, Tensor] | None:
        """Whom can be asked about what."""
        return self._recorded.can_answer()


def answers_file() -> Path:
    """The recorded answers."""
    path = Path(os.environ.setdefault("ANNOT_DATA", str(ROOT.parent / "shared" / "data"))) / "cifar10n" / "annotations.csv"
    if not path.is_file():
        raise AnnotError(f"{path} does not exist; set ANNOT_DATA to the folder that holds cifar10n/.")
    return path


async def play(page: ServedPage, run: Path, said: pd.DataFrame, process_ended: asyncio.Event) -> int:
    """Everybody who is asked something answers it, until the run has ended; returns how many were given."""
    people_busy, given = asyncio.Semaphore(BUSY), 0
    async with httpx.AsyncClient(base_url=page.address, timeout=60) as http:
        with AnnotationLog(run / "annotations.db") as log:
            while not process_ended.is_set():
                asked = await asyncio.to_thread(log.questions, open_only=True)
                item = dict(zip(asked["id"], asked["item"], strict=True))

                async def one(name: str, n: int, item: dict[int, str] = item) -> int:
                    async def labeller(question: int) -> tuple[str, float]:
                        label, seconds = said.loc[(item[question], name), ["label", "seconds"]]
                        return str(label), float(seconds)

                    async with people_busy:
                        return await Visitor(http, page.cookies[name]).answer_hit(labeller, n)

                waiting = asked["worker"].value_counts()
                given += sum(await asyncio.gather(*(one(name, int(n)) for name, n in waiting.items())))
                await asyncio.sleep(0.05)
    return given


async def on_page(settings: dict[str, object], run: Path, said: pd.DataFrame) -> int:
    """The run beside the page."""
    names = sorted({name for _, name in said.index})
    with ServedPage(run, names) as page:
        process, ended = start_run(settings, path=Path(__file__).parent), asyncio.Event()
        playing = asyncio.create_task(play(page, run, said, ended))
        try:
            status = await asyncio.to_thread(process.wait)
        finally:
            process.kill()
            ended.set()
        if status:
            raise AnnotError(f"the run ended with status {status}")
        return await playing


def compare(recorded: Path, page: Path) -> dict[str, object]:
    """Whether both runs asked, heard and concluded the same."""
    tables = []
    for run in (recorded, page):
        with AnnotationLog(run / "annotations.db") as log:
            asked, heard = log.questions(), log.answers()
        heard = heard.sort_values(["question", "worker"], ignore_index=True)
        tables.append(
            (asked.drop(columns="asked_at"), heard[["question", "item", "worker", "label", "round", "seconds"]],
             (run / "labels.csv").read_bytes(), pd.read_csv(run / "rounds.csv"))
        )  # fmt: skip
    (asked, heard, labels, rounds), (asked_too, heard_too, labels_too, _) = tables
    last = rounds.iloc[-1]
    return {
        "questions": len(asked), "answers": len(heard), "rounds": len(rounds), "people": heard["worker"].nunique(),
        "accuracy": round(float(last["accuracy"]), 4), "equal_questions": asked.equals(asked_too),
        "equal_answers": heard.equals(heard_too), "equal_labels": labels == labels_too,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run both; exit status 1 if they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--per-round", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(argv)
    answers = answers_file()
    said = pd.read_csv(answers, dtype={"task": str}).set_index(["task", "worker"])
    said = said[~said.index.duplicated()].sort_index()
    common: dict[str, object] = {
        "config": ROOT / "configs" / "recorded.yaml", "trainer.max_epochs": given.rounds, "seed_everything": given.seed,
        "annotation.sampling.per_round": given.per_round, "trainer.enable_progress_bar": False,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        recorded, page = Path(folder) / "recorded", Path(folder) / "page"
        by_name = {"annotation.workers.by_worker": True, "annotation.output_dir": recorded}
        if start_run(common | by_name).wait():
            raise AnnotError("the run with recorded workers failed")
        start = time.perf_counter()
        people = {
            "annotation.workers": "replay_on_page.RecordedPeopleOnPage", "annotation.workers.answers": answers,
            "annotation.output_dir": page,
        }  # fmt: skip
        given_answers = asyncio.run(on_page(common | people, page, said))
        result = compare(recorded, page) | {"seconds_on_page": round(time.perf_counter() - start, 1)}
    print(json.dumps(result | {"answers_by_http": given_answers}, indent=1))
    return int(not (result["equal_questions"] and result["equal_answers"] and result["equal_labels"]))


if __name__ == "__main__":
    sys.exit(main())
