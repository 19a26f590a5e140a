"""A classifier trained on a run's labels against one trained on true labels, both tested on items that neither has seen.

    python scripts/bench_classifier.py
    python scripts/bench_classifier.py --settings dog --seeds 11 12 --keep checkpoints/bench_classifier
    python scripts/bench_classifier.py --run checkpoints/dog --features bank.npy --labels truth.csv

The last fifth of the bank is held out before anything else; the rest is annotated at about ``--budget`` answers an item
(``dog``: simulated AMT workers, ``recorded``: real people). Then heads over the frozen features learn the run's soft labels by
their confidence, its decided labels all alike, and the true labels of the same items; prototypes validate all of them. With
``--run`` the runs are given, and the items tested are those of ``--labels`` that the run does not have. Prints JSON: accuracy
and ECE in each run, and the mean over runs; ``points_behind`` is what the true labels are better by.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf
from pytorch_lightning import Trainer

from lightning_annot.annotations.formats import read_labels
from lightning_annot.backbones.classifier import ClassifierModule
from lightning_annot.backbones.classifier_data import ClassifierDataModule
from lightning_annot.experiments.cuts import BankFiles, Cut, cut_bank

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"dog": "configs/simulated.yaml", "recorded": "configs/recorded.yaml"}
HELD_OUT = 0.2
LEARNED: dict[str, dict[str, Any]] = {"ours": {}, "hard": {"targets": "hard", "confidence_power": 0.0}, "true": {}}


def bank_of(config: str) -> BankFiles:
    """The whole bank that a configuration names."""
    tree = OmegaConf.load(ROOT / config)
    answers = OmegaConf.select(tree, "annotation.workers.init_args.answers")
    files = (tree.data.init_args.features, tree.data.init_args.labels, answers)
    return BankFiles(*((ROOT / path).resolve() if path is not None else None for path in files))


def annotate(setting: str, seed: int, budget: float, folder: Path) -> tuple[Path, BankFiles]:
    """Annotate all but the held-out items, in a process of its own; a run that has ended is taken as it is."""
    config = SETTINGS[setting]
    bank, output = bank_of(config), folder / f"{setting}-{seed}"
    n = len(read_labels(bank.labels))
    part = cut_bank(bank, Cut(rows=(0, round((1 - HELD_OUT) * n))), folder)
    if not (output / "summary.json").is_file():
        command = [sys.executable, "-m", "lightning_annot", "fit", "--config", config, "--seed_everything", str(seed)]
        command += ["--data.features", str(part.features), "--data.labels", str(part.labels), "--data.root", "null"]
        command += ["--annotation.stopping.budget", str(budget), "--annotation.output_dir", str(output)]
        command += ["--trainer.enable_progress_bar", "false"]
        if part.answers is not None:
            command += ["--annotation.workers.answers", str(part.answers)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return output, bank


def compare(run: Path, bank: BankFiles, seed: int, epochs: int, folder: Path) -> dict[str, Any]:
    """Accuracy and ECE of each classifier on the items that ``run`` does not have."""
    labels = pd.read_csv(run / "labels.csv", dtype=str, keep_default_na=False)
    truth = read_labels(bank.labels)
    unseen, true = folder / "unseen.csv", folder / "true.csv"
    truth[~truth["task"].isin(labels["task"])].to_csv(unseen, index=False)
    of_run = truth.set_index("task")["label"][labels["task"]]
    labels[["task", "status"]].assign(label=of_run.to_numpy()).to_csv(true, index=False)
    asked = labels[labels["status"] != "prototype"]
    right = asked["label"].to_numpy() == of_run[(labels["status"] != "prototype").to_numpy()].to_numpy()
    figures = {"answers_per_item": asked["n_annotations"].astype(int).mean(), "label_accuracy": right.mean()}
    for name, options in LEARNED.items():
        learned = true if name == "true" else run
        found = train(ClassifierDataModule(
            run=str(learned), features=str(bank.features), items=str(bank.labels), labels=str(unseen), seed=seed, **options
        ), epochs)  # fmt: skip
        figures |= {f"{name}_accuracy": found["test_accuracy"], f"{name}_ece": found["test_ece"]}
    for name in ("ours", "hard"):
        figures[f"points_behind_{name}"] = 100 * (figures["true_accuracy"] - figures[f"{name}_accuracy"])
    return {name: round(float(value), 4) for name, value in figures.items()}


def train(data: ClassifierDataModule, epochs: int) -> dict[str, float]:
    """Fit a head and test it."""
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
    )  # fmt: skip
    module = ClassifierModule()
    trainer.fit(module, datamodule=data)
    found: dict[str, float] = dict(trainer.test(module, datamodule=data, verbose=False)[0])
    return found


def main() -> None:
    """Parse arguments, annotate, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[11, 12, 13])
    parser.add_argument("--budget", type=float, default=1.0, help="answers an item at which annotation stops, at the latest")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--keep", type=Path, help="folder of the runs; runs that are there are not made again")
    parser.add_argument("--run", nargs="+", type=Path, default=[], help="runs to train on instead, whose tasks --labels knows")
    parser.add_argument("--features", type=Path, help="with --run: .npy, a row for each line of --labels")
    parser.add_argument("--labels", type=Path, help="with --run: CSV task,label with the truth of all, the unseen included")
    args = parser.parse_args()
    if args.run and (args.features is None or args.labels is None):
        parser.error("--run needs --features and --labels")
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    os.environ.setdefault("ANNOT_DATA", str(ROOT.parent / "shared" / "data"))
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.keep or Path(scratch)).resolve()
        for run in args.run:
            found = compare(run, BankFiles(args.features, args.labels), args.seeds[0], args.epochs, Path(scratch))
            runs.append({"setting": run.name, "seed": args.seeds[0], **found})
        for setting in [] if args.run else args.settings:
            for seed in args.seeds:
                run, bank = annotate(setting, seed, args.budget, folder)
                runs.append({"setting": setting, "seed": seed, **compare(run, bank, seed, args.epochs, Path(scratch))})
    mean = pd.DataFrame(runs).drop(columns="seed").groupby("setting", sort=False).mean().round(4)
    print(json.dumps({"runs": runs, "mean": json.loads(mean.to_json(orient="index"))}, indent=1))


if __name__ == "__main__":
    main()
