"""Measure how many of a model's labels may be kept, on files of true class, the model's class and its confidence.

    python scripts/bench_certificate.py ../shared/data/pac_labels/imagenet.csv ../shared/data/pac_labels/imagenetv2.csv

Prints JSON: for each file and method the share of labels that are kept without an audit (``saved``; mean and standard
deviation over the repetitions), the share that is audited, and how often the error of the whole set exceeds the target
(``too_many``). The expert labels all other items, audited ones among them. Repetition i draws its audits by seed i.

``walk`` is lightning_annot/certificate/walk.py. ``binomial`` and ``hypergeometric`` audit a tenth of all items uniformly and
test prefixes from the safest on until one fails. ``truth`` knows all errors. ``published`` are the numbers of Candes, Ilyas &
Zrnic (2025) for the same two files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lightning_annot.certificate.bounds import binomial_upper, hypergeometric_upper
from lightning_annot.certificate.walk import allowed_errors, plan_walk, walk_length

_STEP = 50
PUBLISHED = {"imagenet": {"saved": 0.595, "spread": 0.009}, "imagenetv2": {"saved": 0.394, "spread": 0.022}}

Outcome = tuple[NDArray[np.bool_], NDArray[np.bool_]]
"""Which items are audited (N,), and which of them the walk or test has passed (N,), in the order of the risks."""
Method = Callable[[NDArray[np.float64], NDArray[np.bool_], np.random.Generator], Outcome]


def main() -> None:
    """Run all methods on all files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="CSV with the columns Y, Yhat and confidence")
    parser.add_argument("--error", type=float, default=0.05, help="largest share of wrong labels in the whole set")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--budget", type=float, default=0.1, help="largest share of items that may be audited")
    given = parser.parse_args()
    found = {file.stem: bench(file, given) for file in given.files}
    print(json.dumps(found, indent=1))


def bench(file: Path, given: argparse.Namespace) -> dict[str, object]:
    """All methods on one file."""
    table = pd.read_csv(file).sort_values("confidence", ascending=False, kind="stable")
    risk, wrong = 1 - table["confidence"].to_numpy(), (table["Y"] != table["Yhat"]).to_numpy()
    methods = {"walk": walk(risk, given), "binomial": uniform(given, 0), "hypergeometric": uniform(given, _STEP)}
    most = allowed_errors(len(wrong), given.error)
    truth = float((np.cumsum(wrong) <= most).mean())
    rows = {name: repeated(method, risk, wrong, most, given.repetitions) for name, method in methods.items()}
    return {"items": len(wrong), **rows, "truth": {"saved": truth}, "published": PUBLISHED.get(file.stem)}


def repeated(
    method: Method, risk: NDArray[np.float64], wrong: NDArray[np.bool_], most: int, repetitions: int
) -> dict[str, float]:
    """A method's results over all seeds."""
    saved, audits, errors = [], [], []
    for seed in range(repetitions):
        audited, passed = method(risk, wrong, np.random.default_rng(seed))
        kept = passed & ~audited
        saved.append(kept.mean())
        audits.append(audited.mean())
        errors.append(int((kept & wrong).sum()))
    return {
        "saved": round(float(np.mean(saved)), 4),
        "spread": round(float(np.std(saved)), 4),
        "audited": round(float(np.mean(audits)), 4),
        "too_many": float(np.mean(np.array(errors) > most)),
        "repetitions": repetitions,
    }


def walk(risk: NDArray[np.float64], given: argparse.Namespace) -> Method:
    """A walk that audits no more than the budget, planned by the model's own confidences."""
    plan, most = plan_walk(risk, given.error, given.confidence), round(given.budget * len(risk))

    def method(risk: NDArray[np.float64], wrong: NDArray[np.bool_], rng: np.random.Generator) -> Outcome:
        drawn = rng.random(len(risk)) < plan.rate
        paid = int(np.searchsorted(np.cumsum(drawn), most, side="right"))
        end = min(paid, walk_length(drawn, wrong, plan))
        order = np.arange(len(risk))
        return drawn & (order <= end), order < end  # the audit of the last item ends the walk

    return method


def uniform(given: argparse.Namespace, beyond: int) -> Method:
    """Audit uniformly within the whole budget; bound the errors of each prefix, from the safest on, until one fails.

    The binomial bound is never below the hypergeometric one, which is tried on ``beyond`` prefixes more at a time.
    """

    def method(risk: NDArray[np.float64], wrong: NDArray[np.bool_], rng: np.random.Generator) -> Outcome:
        size = len(risk)
        audited = np.zeros(size, dtype=bool)
        audited[rng.permutation(size)[: round(given.budget * size)]] = True
        n, k, ends = np.cumsum(audited), np.cumsum(audited & wrong), np.arange(1, size + 1)
        end = _first_failure(binomial_upper(n, k, given.confidence) * ends, given.error * size)
        while beyond and end < size:
            some = slice(end, end + beyond)
            further = hypergeometric_upper(n[some], k[some], ends[some], given.confidence) * ends[some]
            passed = _first_failure(further, given.error * size)
            end += passed
            if passed < beyond:
                break
        return audited, np.arange(size) < end

    return method


def _first_failure(errors: NDArray[np.float64], most: float) -> int:
    """How many of the first ``errors`` are within ``most`` (a prefix of few labels is, whatever its bound)."""
    return len(errors) if (errors <= most).all() else int(np.argmax(errors > most))


if __name__ == "__main__":
    main()
