"""What a run writes beside its log, and what it tells whoever watches."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from pytorch_lightning import Trainer
from rich.console import Console
from torch import Tensor

from lightning_annot.annotations.columns import check_none, check_workers, distinct, numbers
from lightning_annot.annotations.formats import read_table, write_table
from lightning_annot.annotations.sheets import COMMA, split_sheet
from lightning_annot.callbacks.belief import Belief
from lightning_annot.callbacks.progress import RoundProgress
from lightning_annot.crowd.accuracy import worker_accuracy
from lightning_annot.crowd.risk import check_cost
from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.data.items import ItemTable
from lightning_annot.files import write_text
from lightning_annot.learner.predictions import Predictions
from lightning_annot.report.metrics import label_metrics, reliability
from lightning_annot.report.page import write_report
from lightning_annot.report.scorecard_page import write_scorecards
from lightning_annot.report.tables import (
    class_share,
    label_table,
    machine_table,
    worker_table,
    write_confusions,
    write_posterior,
    write_rounds,
)
from lightning_annot.report.terminal import print_lines, print_summary
from lightning_annot.report.thumbnails import EDGE
from lightning_annot.round.facts import Facts
from lightning_annot.round.inference import Inference
from lightning_annot.stored import read_arrays
from lightning_annot.types import AnnotError

STATED = ("finished_risk", "finished_risk_low", "finished_risk_high", "fresh_answers")


class RunFolder:
    """The output folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save_tables(
        self, table: ItemTable, facts: Facts, inference: Inference, belief: Belief, generator: torch.Generator
    ) -> None:
        """``labels.csv``, ``posterior.npz``, ``workers.csv``, ``confusions.npz``: what is believed after this round.

        Workers who are barred have answers, but no part in the inference. Machine workers are in ``machines.csv``.
        ``generator`` draws the workers' accuracies.
        """
        n = len(table)
        annotations, result = facts.annotations(), inference.crowd
        write_table(self.path / "labels.csv", self.label_table(table, facts, inference))
        write_posterior(self.path / "posterior.npz", table.classes, inference.posterior[:n])
        names = facts.workers
        share = class_share(inference.posterior[:n])
        if names:
            posterior, tempering = inference.posterior[:n], belief.tempering
            accuracy = worker_accuracy(annotations, posterior, result, tempering, generator, len(names))
            workers = worker_table(names, annotations, accuracy, result, share)
            workers["state"], workers["reason"] = belief.standing(names)
            write_table(self.path / "workers.csv", workers)
        else:
            columns = ["worker", "n_annotations", "accuracy_mean", "accuracy_low", "accuracy_high", "state", "reason"]
            write_table(self.path / "workers.csv", pd.DataFrame(columns=columns))
        write_confusions(self.path / "confusions.npz", names, table.classes, result, belief.machines)
        if belief.machines:
            write_table(self.path / "machines.csv", machine_table(belief.machines, belief.weights, share))

    @staticmethod
    def label_table(table: ItemTable, facts: Facts, inference: Inference) -> pd.DataFrame:
        """Return the table of ``labels.csv``."""
        answers = torch.bincount(facts.annotations().item, minlength=len(table))
        return label_table(table.ids, table.classes, inference.decision, inference.finished, table.prototype, answers)

    def save_rows(self, rows: Sequence[dict[str, float]]) -> None:
        """``rounds.csv``: all rounds so far."""
        write_rounds(self.path / "rounds.csv", rows)

    def finish(
        self,
        rows: Sequence[dict[str, float]],
        table: ItemTable,
        data: AnnotationDataModule,
        threshold: float,
        reason: str,
        more: Mapping[str, Any],
        answers: pd.DataFrame,
    ) -> None:
        """``summary.json``, with ``more`` in it, the scorecards, ``report.html``, and a table in the terminal.

        ``answers``: all of the log.
        """
        loaded = data.loaded
        assert loaded is not None
        summary: dict[str, Any] = {
            "stop_reason": reason,
            "n_items": int((~table.is_prototype).sum()),
            "classes": list(table.classes),
            "class_names": list(table.names),
            "threshold": threshold,
            "annotations": rows[-1]["annotations"],
            **{name: _or_none(rows[-1].get(name)) for name in STATED},
            "prototypes": int(table.is_prototype.sum()),
            "prototypes_drawn": table.drawn,
            "unreadable_images": list(loaded.unreadable),
            "feature_scale": {name: scale for name, (scale, _) in data.scales.items()},
            "feature_scale_reason": {name: reason for name, (_, reason) in data.scales.items()},
            "passed_over": {} if loaded.source is None else dict(loaded.source.passed_over),
            **more,
        }
        if table.truth is not None:
            summary["reliability"] = self._reliability(table)
        write_text(self.path / "summary.json", json.dumps(summary, indent=1))
        write_scorecards(self.path, answers)
        write_report(self.path, thumbnails(data))
        print_summary(Console(), self.path)

    def _reliability(self, table: ItemTable) -> dict[str, list[float] | list[int]]:
        """Accuracy of the labels that were left, by their stated confidence."""
        labels = pd.read_csv(self.path / "labels.csv", dtype={"task": str, "label": str}, keep_default_na=False)
        assert table.truth is not None
        right = labels["label"].to_numpy() == np.asarray(table.classes, dtype=object)[table.truth.numpy()]
        keep = ~table.is_prototype.numpy()
        confidence = torch.from_numpy(labels["confidence"].to_numpy()[keep])
        return reliability(confidence, torch.from_numpy(right[keep])).as_dict()


def _or_none(value: float | None) -> float | None:
    """None for nan, which JSON does not have."""
    return None if value is None or math.isnan(value) else value


def tell_scales(data: AnnotationDataModule) -> None:
    """Print how each bank's features are scaled, where that was chosen."""
    print_lines(Console(), (f"{name} scaled: {scale} ({reason})" for name, (scale, reason) in data.scales.items() if reason))


def thumbnails(data: AnnotationDataModule) -> Any:
    """A function that opens the image of an item, or None where the data has no images."""
    loaded = data.loaded
    if loaded is None or loaded.source is None:
        return None
    source, row = loaded.source, {item: i for i, item in enumerate(loaded.source.ids)}

    def open_item(item: str) -> Image.Image | None:
        return source.small(row[item], EDGE) if item in row else None

    return open_item


def round_figures(
    table: ItemTable, facts: Facts, inference: Inference, predictions: Predictions, money: float | None
) -> dict[str, float]:
    """What a round reached; the truth serves these figures and nothing else. ``money`` spent, None where none counts."""
    n, keep = len(table), ~table.is_prototype
    total = max(1, int(keep.sum()))  # with nothing but prototypes all shares are of nothing
    row: dict[str, float] = {"annotations": len(facts.item), "annotations_per_item": len(facts.item) / total}
    row["paid_per_item"] = (len(facts.item) + facts.extra_paid) / total
    row["gold"] = len(facts.gold_item)
    if money is not None:
        row["money"] = money
    row["finished_fraction"] = int((inference.finished[:n] & keep).sum()) / total if bool(keep.any()) else 1.0
    row["mean_risk"] = float(inference.decision.risk[:n][keep].double().sum()) / total
    if table.truth is not None:
        row |= truth_metrics(inference, table, predictions.label()[:n])
    return row


def truth_metrics(inference: Inference, table: ItemTable, learner_label: Tensor) -> dict[str, float]:
    """Figures that need the truth; for reporting alone. ``learner_label`` (N,): the learner's own labels."""
    assert table.truth is not None
    n, keep = len(table), ~table.is_prototype
    metrics = label_metrics(inference.posterior[:n], table.truth, inference.finished[:n], keep)
    return metrics | {"learner_accuracy": float((learner_label[:n] == table.truth)[keep].double().mean())}


def class_accuracy(learner_label: Tensor, table: ItemTable) -> list[float]:
    """The learner's own accuracy in each true class, [K], 0 where there is none; for reporting alone."""
    assert table.truth is not None
    keep, k = ~table.is_prototype, len(table.classes)
    truth, right = table.truth[keep], (learner_label == table.truth)[keep].double()
    share = torch.bincount(truth, right, minlength=k) / torch.bincount(truth, minlength=k).clamp(min=1)
    return [float(value) for value in share]


def progress(trainer: Trainer) -> RoundProgress | None:
    """The Trainer's progress bar, if it is ours."""
    return next((c for c in trainer.callbacks if isinstance(c, RoundProgress)), None)  # type: ignore[attr-defined]


def load_cost(path: str, n_classes: int) -> Tensor:
    """A cost matrix from a CSV without header, row = true class, column = decided class."""
    sheet = split_sheet(Path(path), has_header=False)
    cells = [[cell.replace(",", ".") if sheet.separator != COMMA else cell for cell in row] for row in sheet.rows]
    try:
        if sheet.broken:
            raise ValueError(f"line {min(sheet.broken)} has another number of cells than the first")
        if not cells:
            raise ValueError("it is empty")
        cost = torch.tensor([[float(cell) for cell in row] for row in cells], dtype=torch.float64).reshape(len(cells), -1)
    except ValueError as error:
        raise AnnotError(f"cost matrix {path} could not be read ({error}); it needs {n_classes} rows of numbers.") from error
    check_cost(cost, n_classes)
    return cost


def load_prices(path: str) -> dict[str, float]:
    """Price of an answer by worker, from a CSV ``worker,price``."""
    table = read_table(Path(path), ("worker", "price"), numbers=("price",))
    check_workers(Path(path), table["worker"])
    price = numbers(table["price"])
    check_none(Path(path), table["price"][~((price >= 0) & (price < np.inf))], "have no price", "give a number from 0 on")
    problem = "give a worker another price than a line above"
    table = distinct(Path(path), table.assign(price=price), ("worker",), "price", problem, "keep one price of each worker")
    return dict(zip(table["worker"], table["price"], strict=True))


def load_oracle(path: Path, workers: Sequence[str], classes: Sequence[str]) -> Tensor:
    """True confusions (W, K, K) of ``workers`` in that order, from an .npz with ``workers``, ``classes``, ``confusions``."""
    remedy = "crowd.oracle needs workers, classes and confusions, as simulated workers export them to simulated_workers.npz."
    people, words, confusions = read_arrays(path, ("workers", "classes", "confusions"), remedy)
    shape = (*people.shape, *words.shape, *words.shape)
    if people.ndim != 1 or words.ndim != 1 or confusions.shape != shape or confusions.dtype.kind != "f":
        raise AnnotError(f"{path} has confusions {confusions.dtype} of shape {confusions.shape}; {remedy}")
    names, known = people.tolist(), words.tolist()
    if known != list(classes):
        raise AnnotError(f"crowd.oracle {path} is about the classes {known[:5]}; this run's are {list(classes)[:5]}.")
    row = {name: j for j, name in enumerate(names)}
    if unknown := [name for name in workers if name not in row]:
        raise AnnotError(f"crowd.oracle {path} knows nothing of the workers {unknown[:5]}; it knows {names[:5]}.")
    return torch.from_numpy(confusions[[row[name] for name in workers]]).float()
