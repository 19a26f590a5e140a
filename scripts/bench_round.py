"""Time and memory of one whole round on synthetic features, through the real Trainer; prints JSON.

    python scripts/bench_round.py
    python scripts/bench_round.py --items 1300000 --classes 1000 --workers 500 --annotations 1300000 --dim 64

The log is filled with all but one round's simulated answers first (set-up). ``seconds_*`` are of the last round's row, and
``seconds_round`` is the wall time from the start of its epoch to the end, checkpoint included. ``accuracy`` is that of the
labels; ``accuracy_converged`` is theirs after the learner has gone on training on the same pools until nothing changes.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.lib.format import open_memmap
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.callbacks.annotation_round import AnnotationRound
from lightning_annot.crowd.em import run_em
from lightning_annot.crowd.priors import homogeneous_prior
from lightning_annot.data.batches import BatchSettings
from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.data.projection import ProjectionSettings
from lightning_annot.learner.heads import FoldHeads
from lightning_annot.learner.mixmatch import fold_use, soft_cross_entropy, windows
from lightning_annot.learner.module import MixMatchModule
from lightning_annot.round.settings import CrowdSettings, SamplingSettings
from lightning_annot.types import Answer, Question
from lightning_annot.workers.simulated import UniformNoiseWorkers

ACCURACY = 0.7  # of the simulated workers
LARGE = 1 << 28  # items x classes above which a round takes minutes


def write_data(folder: Path, n: int, k: int, d: int, seed: int) -> np.ndarray:
    """Gaussian classes in a latent space of 128 dimensions, seen through a random map; returns the truth (N,).

    Class centres lie about 6 standard deviations apart, so that classes overlap and a head has something to learn.
    """
    rng = np.random.default_rng(seed)
    latent = min(d, 128)
    centres = rng.standard_normal((k, latent), dtype=np.float32) * (6.0 / np.sqrt(2 * latent))
    to_features = rng.standard_normal((latent, d), dtype=np.float32) / np.sqrt(latent)
    truth = rng.integers(k, size=n)
    features = open_memmap(folder / "features.npy", "w+", np.float16, (n, d))
    for start in range(0, n, 1 << 14):
        part = truth[start : start + (1 << 14)]
        seen = (centres[part] + rng.standard_normal((len(part), latent), dtype=np.float32)) @ to_features
        features[start : start + len(part)] = seen + 0.1 * rng.standard_normal(seen.shape, dtype=np.float32)
    features.flush()
    names = np.char.add("c", np.char.zfill(np.arange(k).astype(str), 4))
    pd.DataFrame({"task": np.arange(n).astype(str), "label": names[truth]}).to_csv(folder / "labels.csv", index=False)
    return truth


def fill_log(path: Path, items: np.ndarray, workers: np.ndarray, labels: np.ndarray, chunk: int = 100_000) -> None:
    """Answers known before round 0."""
    with AnnotationLog(path) as log:
        for start in range(0, len(items), chunk):
            rows = zip(*(a[start : start + chunk].tolist() for a in (items, workers, labels)), strict=True)
            log.record(
                [(Question(str(i), f"w{j:03d}", "annotation", -1), Answer(0, f"w{j:03d}", f"c{z:04d}")) for i, j, z in rows]
            )


class RoundClock(Callback):
    """Wall time of each epoch, from its first hook to its last, after the checkpoint."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.steps = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first callback's first hook of the epoch."""
        if len(self.seconds):
            self.seconds[-1] = time.perf_counter() - self.seconds[-1]
        self.seconds.append(time.perf_counter())
        self.steps = int(trainer.num_training_batches)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end of the last epoch."""
        self.seconds[-1] = time.perf_counter() - self.seconds[-1]


def run_rounds(folder: Path, args: argparse.Namespace, steps: int | None) -> tuple[AnnotationRound, RoundClock]:
    """``args.rounds`` rounds in a folder of their own; the last one asks nothing."""
    output = folder / f"run_{steps}"
    output.mkdir()
    shutil.copy(folder / "annotations.db", output)
    batches = BatchSettings() if steps is None else BatchSettings(steps=steps)
    data = AnnotationDataModule(
        features=str(folder / "features.npy"), labels=str(folder / "labels.csv"), batches=batches, seed=args.seed
    )
    sampling = SamplingSettings(per_round=args.per_round)
    crowd = CrowdSettings(max_iterations=args.em_most)
    round_ = AnnotationRound(str(output), UniformNoiseWorkers(args.workers, ACCURACY), crowd=crowd, sampling=sampling)
    clock = RoundClock()
    trainer = Trainer(
        max_epochs=args.rounds,
        accelerator="cpu",
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock, round_, ModelCheckpoint(output, save_last=True, save_top_k=0, save_on_train_epoch_end=True)],
    )
    trainer.fit(MixMatchModule(), datamodule=data)
    return round_, clock


def time_em(round_: AnnotationRound, n_classes: int, iterations: int) -> float:
    """Seconds of one EM iteration over all facts, with one confusion a worker."""
    start = time.perf_counter()
    prior = homogeneous_prior(n_classes)
    run_em(
        round_.facts.annotations(),
        round_.predictions,
        prior,
        len(round_.facts.workers),
        max_iterations=iterations,
        tolerance=-1.0,
    )
    return (time.perf_counter() - start) / iterations


def time_heads(n_folds: int, n_classes: int, steps: int = 60, repeats: int = 3) -> float:
    """Seconds of a round's training steps with so many heads at once, at best of ``repeats``."""
    size, width = BatchSettings().size, ProjectionSettings().dim
    x, fold = torch.randn(size, width), torch.randint(5, (size,))
    target = torch.randn(size, n_classes).softmax(1)
    x, target, fold = (windows(rows, n_folds, MixMatchModule().fold_share) for rows in (x, target, fold))
    use = fold_use(n_folds, fold) if n_folds > 1 else torch.ones(1, size, dtype=torch.bool)
    best = float("inf")
    for _ in range(repeats):
        heads = FoldHeads(n_folds, width, n_classes)
        optimizer = torch.optim.Adam(heads.parameters(), lr=0.01)
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            soft_cross_entropy(heads(x), target, use).backward()
            optimizer.step()
        best = min(best, time.perf_counter() - start)
    return best


def bench(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures of one configuration."""
    torch.manual_seed(args.seed)
    start = time.perf_counter()
    truth = write_data(folder, args.items, args.classes, args.dim, args.seed)
    rng = np.random.default_rng(args.seed + 1)
    # Every item is asked once before any is asked twice, as rounds do; never the same worker twice.
    order = np.concatenate([rng.permutation(args.items) for _ in range(-(-args.annotations // args.items))])
    items = order[: args.annotations - args.per_round]
    workers = (rng.integers(args.workers, size=args.items)[items] + np.arange(len(items)) // args.items) % args.workers
    wrong = rng.random(len(items)) >= ACCURACY
    labels = np.where(wrong, rng.integers(args.classes, size=len(items)), truth[items])
    fill_log(folder / "annotations.db", items, workers, labels)
    written = time.perf_counter() - start

    start = time.perf_counter()
    round_, clock = run_rounds(folder, args, None)
    fit = time.perf_counter() - start
    row, last = round_.rows[-2], round_.rows[-1]
    seconds = {name: round(value, 3) for name, value in row.items() if name.startswith("seconds_")}
    iterations = 2 if args.items * args.classes > LARGE else 10
    em_iteration = time_em(round_, args.classes, iterations)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result = {
        **{name: getattr(args, name) for name in ("items", "classes", "workers", "annotations", "dim", "seed")},
        "seconds_data": round(written, 3),
        "seconds_setup": round(fit - sum(clock.seconds), 3),
        **seconds,
        "seconds_round": round(clock.seconds[-2], 3),
        "seconds_em_iteration": round(em_iteration, 4),
        "em_iterations": iterations,
        "em_most": args.em_most,
        "training_steps": clock.steps,
        "five_folds_over_one": round(time_heads(5, args.classes) / time_heads(1, args.classes), 2),
        "accuracy": round(last["accuracy"], 4),
        "accuracy_converged": None,
        "peak_gib": round(peak, 3),
        "cores": torch.get_num_threads(),
    }
    if args.converged_steps:
        del round_
        converged, _ = run_rounds(folder, args, args.converged_steps)
        result["accuracy_converged"] = round(converged.rows[-1]["accuracy"], 4)
    return result


def main() -> None:
    """Parse arguments, run in a temporary folder, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("items", 125_000), ("classes", 100), ("workers", 50), ("annotations", 44_000), ("dim", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-round", type=int, default=2000)
    parser.add_argument("--rounds", type=int, help="default: 3, or 2 where items x classes is above 2^28")
    parser.add_argument("--em-most", type=int, help="most iterations of each EM; default: 100, or 5 where large")
    parser.add_argument("--converged-steps", type=int, help="steps a round of the converged run; 0, the default if large: none")
    args = parser.parse_args()
    if args.items < 20 * args.classes or args.annotations <= args.per_round:
        parser.error("needs at least 20 items a class, and more annotations than a round asks")
    large = args.items * args.classes > LARGE
    args.rounds = args.rounds or (2 if large else 3)
    args.em_most = args.em_most or (5 if large else CrowdSettings().max_iterations)
    args.converged_steps = (0 if large else 1200) if args.converged_steps is None else args.converged_steps
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(bench(args, Path(folder)), indent=1))


if __name__ == "__main__":
    main()
