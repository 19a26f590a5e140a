"""A spammer among ten people on the labelling page: how many answers until the page lends nothing more, and to nobody else.

Eight people are right in 85%, one in 55%, one answers at random. Each is an HTTP client; questions go to anyone. Page and run
are processes of their own, once a seed. Prints JSON. Needs ``pip install -e '.[serve]' httpx``.

    python scripts/spammers_on_page.py --seeds 20
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from lightning_annot.annotations.desk import Desk
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.experiments.served import ServedPage, Visitor, start_run
from lightning_annot.types import AnnotError

ROOT = Path(__file__).resolve().parents[1]
ACCURACY = {**{f"good{i}": 0.85 for i in range(8)}, "weak": 0.55, "spammer": 0.1}


async def label(page: ServedPage, run: Path, name: str, seed: int, pause: float, ended: asyncio.Event) -> None:
    """One person, for as long as the run goes on; the truth is known to this simulated one alone."""
    rng, truth = np.random.default_rng((seed, len(name), sum(name.encode()))), load_digits().target
    with AnnotationLog(run / "annotations.db") as log:
        desk = Desk(log)

        async def labeller(question: int) -> tuple[str, float]:
            await asyncio.sleep(rng.exponential(pause))
            right = int(truth[int(desk.item_lent(question, name) or 0)])
            wrong = (right + 1 + rng.integers(9)) % 10
            return str(right if rng.random() < ACCURACY[name] else wrong), 1.0

        async with httpx.AsyncClient(base_url=page.address, timeout=60) as http:
            visitor = Visitor(http, page.cookies[name])
            while not ended.is_set():
                if not await visitor.answer_hit(labeller):
                    await asyncio.sleep(0.2)


async def everybody(run: Path, seed: int, settings: dict[str, object], pause: float, haste: float) -> None:
    """The run beside the page; the spammer needs ``pause / haste`` seconds for an answer."""
    with ServedPage(run, list(ACCURACY)) as page:
        process, ended = start_run(settings), asyncio.Event()
        pauses = {name: pause / haste if name == "spammer" else pause for name in ACCURACY}
        work = [asyncio.create_task(label(page, run, name, seed, pauses[name], ended)) for name in ACCURACY]
        try:
            status = await asyncio.to_thread(process.wait)
        finally:
            process.kill()
            ended.set()
        await asyncio.gather(*work)
    if status:
        raise AnnotError(f"the run ended with status {status}")


def one_seed(seed: int, given: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Who was set aside, and how many answers everybody gave."""
    run = folder / f"run{seed}"
    settings: dict[str, object] = {
        "config": ROOT / "configs" / "digits.yaml", "data.adapt": "null", "data.backbone": "{name: null}",
        "annotation.workers": "lightning_annot.workers.live.LiveWorkers", "annotation.workers.poll_seconds": 0.1,
        "annotation.trust.least_accuracy": given.least_accuracy, "annotation.gold_rate": given.gold_rate,
        "annotation.sampling.per_round": given.per_round, "annotation.threshold": 1e-4, "annotation.stopping.budget": "null",
        "trainer.max_epochs": given.rounds, "trainer.enable_progress_bar": False, "seed_everything": seed,
        "annotation.output_dir": run,
    }  # fmt: skip
    asyncio.run(everybody(run, seed, settings, given.pause, given.haste))
    with AnnotationLog(run / "annotations.db") as log:
        counts, people = Desk(log).counts(), Desk(log).people()
    states = pd.read_csv(run / "workers.csv").set_index("worker")["state"]
    return {
        "seed": seed, "spammer": states["spammer"], "spammers_answers": counts["spammer"],
        "reason": next(person.set_aside for person in people if person.worker == "spammer"),
        "others_set_aside": [person.worker for person in people if person.set_aside and person.worker != "spammer"],
        "weak_answers": counts["weak"], "answers": sum(counts.values()),
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """All seeds; exit status 1 where a spammer gave more than 60 answers, or anybody else was set aside."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--per-round", type=int, default=100)
    parser.add_argument("--least-accuracy", type=float, default=0.4)
    parser.add_argument("--gold-rate", type=float, default=0.05)
    parser.add_argument("--pause", type=float, default=0.1, help="mean seconds before an answer")
    parser.add_argument("--haste", type=float, default=1.0, help="how many times as quick the spammer is")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        rows = [one_seed(seed, given, Path(folder)) for seed in range(given.seeds)]
    count = np.array([row["spammers_answers"] for row in rows])
    result = {
        "seeds": given.seeds, "within_60": int((count <= 60).sum()), "mean": round(float(count.mean()), 1),
        "least": int(count.min()), "most": int(count.max()),
        "others_set_aside": sum(len(row["others_set_aside"]) for row in rows), "runs": rows,  # type: ignore[arg-type, misc]
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    return int(result["within_60"] < given.seeds or result["others_set_aside"] > 0)  # type: ignore[operator]


if __name__ == "__main__":
    sys.exit(main())
