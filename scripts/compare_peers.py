"""Peers on the same replays: the same features, answers, prototypes and seeds for every method that makes labels of answers.

    python scripts/compare_peers.py --out peers.csv                      # CIFAR-10N, all three answers, seeds 11 to 13
    python scripts/compare_peers.py --answers-per-item 1 --methods em crowdlab ours
    python scripts/compare_peers.py --group dog --workers 50             # simulated AMT workers, three random ones an image

Ten prototypes a class are drawn by the seed. Methods with a model know their labels. Answers about them are left out, and they
count in no figure. Needs `pip install -e '.[peers]'`.

- crowd-kit: majority vote, Wawa, Dawid-Skene, one-coin Dawid-Skene, MACE (3 restarts) and GLAD (5 iterations: it is slow).
- CROWDLAB (cleanlab): by its own recipe, with a cross-fitted logistic regression on majority-vote labels, and with the
  out-of-fold probabilities that our own run ended with. It cannot run where nobody has two answers; such rows are left out.
- em: our crowd model without a learner. ours: the default configuration, given all answers at once.

``ours`` is a run as the command line makes it, which stops when no item may be asked once more: all answers are imported, and
part of them comes in after the first training, to tell how far learner and people may be believed.
ECE: top label, 10 bins; CROWDLAB's quality is a score that does not claim to be a probability. Finished: 1 - confidence
below 0.1. Seconds of "crowdlab (our probabilities)" leave out our run if ``ours`` comes before it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from peer_methods import THRESHOLD, Labels, NotHere, Replay, methods, quietly
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lightning_annot import AnnotationDataModule
from lightning_annot.annotations.formats import read_answers, read_labels, write_table
from lightning_annot.data.items import ItemTable
from lightning_annot.report.metrics import reliability
from lightning_annot.types import AnnotError, Task
from lightning_annot.workers.amt import GROUP_NAMES, AMTWorkers

DATA = Path(os.environ.get("ANNOT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
BANK = DATA / "cifar10n"
FIGURES = ("accuracy", "ece", "finished_fraction", "finished_precision", "seconds")


def recorded(path: Path, table: ItemTable, known: list[str]) -> pd.DataFrame:
    """Recorded answers about the items of ``table``, with the place of each among its item's answers as ``slot``."""
    answers = read_answers(path, table.classes, known)
    answers = answers[answers["task"].isin(table.ids)].copy()
    if "slot" not in answers:
        answers["slot"] = answers.groupby("task").cumcount() + 1
    return answers


def simulated(group: str, n_workers: int, table: ItemTable, seed: int, folder: Path) -> pd.DataFrame:
    """Answers of three different random workers an item (fewer if there are fewer), drawn by ``seed``."""
    assert table.truth is not None
    amt = DATA / "amt_imagenet100"
    workers = AMTWorkers(str(amt / "group_workers.json"), str(amt / "groups.txt"), group, n_workers)
    truth = {item: table.classes[y] for item, y in zip(table.ids, table.truth.tolist(), strict=True)}
    workers.bind(Task(table.ids, table.classes, seed, str(folder), None, truth))
    n, most = len(table), min(3, n_workers)
    who = np.random.default_rng((seed, 3)).random((n, n_workers)).argpartition(most - 1, axis=1)[:, :most]
    item = np.repeat(np.arange(n), most)
    label = workers.answer(who.ravel(), item)
    return pd.DataFrame(
        {
            "task": np.array(table.ids, dtype=object)[item],
            "worker": np.array(workers.names(), dtype=object)[who.ravel()],
            "label": np.array(table.classes, dtype=object)[label],
            "slot": np.tile(np.arange(most) + 1, n),
        }
    )


def read_bank(path: Path) -> NDArray[np.floating]:
    """The features (N, D), not yet read into memory."""
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise AnnotError(f"{path} could not be read ({error}); give a bank as --features, or set ANNOT_DATA.") from error


def prepare(args: argparse.Namespace, seed: int, folder: Path) -> Replay:
    """Items, prototypes and answers of one seed; the bank is cut to the first ``args.items`` items if that is given."""
    truth = read_labels(args.labels)
    known = list(truth["task"])
    features, truth = read_bank(args.features)[: args.items], truth[: args.items]
    np.save(folder / "features.npy", features)
    write_table(folder / "truth.csv", truth)
    data = AnnotationDataModule(features=str(folder / "features.npy"), labels=str(folder / "truth.csv"), seed=seed)
    data.setup("fit")
    table = data.table
    if args.group is None:
        answers = recorded(args.answers, table, known)
    else:
        answers = simulated(args.group, args.workers, table, seed, folder)
    prototype = np.array(table.ids, dtype=object)[table.is_prototype.numpy()]
    answers = answers[(answers["slot"] <= args.answers_per_item) & ~answers["task"].isin(prototype)]
    if answers.empty:
        raise AnnotError(f"no answers about the {len(table)} items are left; give others as --answers, or more --items.")
    return Replay(folder, data, answers[["task", "worker", "label"]].reset_index(drop=True))


def score(labels: Labels, table: ItemTable) -> dict[str, float]:
    """Figures over the items that are no prototypes."""
    assert table.truth is not None
    keep = ~table.is_prototype
    label, confidence = (torch.from_numpy(np.array(part))[keep] for part in labels)
    right, finished = label == table.truth[keep], 1.0 - confidence < THRESHOLD
    return {
        "accuracy": float(right.double().mean()),
        "ece": reliability(confidence.clamp(0.0, 1.0), right).ece,
        "finished_fraction": float(finished.double().mean()),
        "finished_precision": float(right[finished].double().mean()),
    }


def run_one(method: Callable[[Replay], Labels], replay: Replay) -> dict[str, float]:
    """Figures and seconds of one method on one replay."""
    start = time.perf_counter()
    labels = quietly(method, replay)
    seconds = time.perf_counter() - start
    return score(labels, replay.data.table) | {"seconds": seconds}


def compare(args: argparse.Namespace, console: Console) -> pd.DataFrame:
    """One row a seed and method."""
    everything = methods()
    chosen = args.methods or list(everything)
    if unknown := set(chosen) - set(everything):
        raise AnnotError(f"unknown methods {sorted(unknown)}; allowed are {', '.join(everything)}.")
    setting = args.group or Path(args.answers).parent.name
    rows = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(args.seeds) * len(chosen))
        for seed in args.seeds:
            with tempfile.TemporaryDirectory() as folder:
                replay = prepare(args, seed, Path(folder))
                for name in chosen:
                    bar.update(task, description=f"seed {seed}: {name}")
                    head = {"setting": setting, "method": name, "answers_per_item": args.answers_per_item, "seed": seed}
                    try:
                        rows.append(head | run_one(everything[name], replay))
                    except NotHere as reason:
                        console.print(f"seed {seed}, {name}: left out. {reason}.")
                    bar.advance(task)
    return pd.DataFrame(rows)


def show(results: pd.DataFrame, console: Console) -> None:
    """Mean and standard deviation over the seeds, best accuracy first."""
    groups = results.groupby("method", sort=False)[list(FIGURES)]
    mean, spread = groups.mean(), groups.std().fillna(0.0)
    first = results.iloc[0]
    seeds = sorted(set(results["seed"]))
    table = Table(title=f"{first['setting']}, {first['answers_per_item']} answers an item, seeds {seeds}")
    table.add_column("method")
    for name in FIGURES:
        table.add_column(name.replace("_", " "), justify="right")
    for method in mean["accuracy"].sort_values(ascending=False, kind="stable").index:
        cells = [_cell(name, mean.loc[method, name], spread.loc[method, name]) for name in FIGURES]
        table.add_row(method, *cells)
    console.print(table)


def _cell(name: str, mean: float, spread: float) -> str:
    if name == "seconds":
        return f"{mean:.1f}"
    return f"{mean:.3f} ± {spread:.3f}" if name == "ece" else f"{100 * mean:.2f} ± {100 * spread:.2f}"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; what is out of range is refused here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bank = BANK / "features_efficientnet_lite0_160px.npy"
    parser.add_argument("--features", type=Path, default=bank, help="bank (N, D), .npy; row i is row i of --labels")
    parser.add_argument(
        "--labels", type=Path, default=BANK / "true_labels.csv", help="truth (task,label), for prototypes and figures"
    )
    parser.add_argument("--answers", type=Path, default=BANK / "annotations.csv", help="task,worker,label[,seconds][,slot]")
    parser.add_argument("--group", choices=GROUP_NAMES, help="simulated AMT workers of this group instead of --answers")
    parser.add_argument("--workers", type=int, default=50, help="how many of them")
    parser.add_argument("--answers-per-item", type=int, choices=(1, 2, 3), default=3, help="the first ones, by slot")
    parser.add_argument("--items", type=int, help="only the first of the bank")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--out", type=Path, help="CSV of all rows")
    args = parser.parse_args(argv)
    for name, least in (("workers", args.answers_per_item), ("items", 1)):
        if (value := getattr(args, name)) is not None and value < least:
            parser.error(f"--{name} {value} given; it must be at least {least}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Compare, print the table, and write the CSV."""
    args, console = parse(argv), Console()
    try:
        results = compare(args, console)
        if results.empty:
            raise AnnotError("none of the methods can run on these answers.")
        if args.out is not None:
            write_table(args.out, results)
    except AnnotError as error:
        print(f"compare_peers: {error}", file=sys.stderr)
        return 2
    show(results, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
