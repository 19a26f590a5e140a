"""Parts of a feature bank as banks of their own: a range of rows, and a long tail of classes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lightning_annot.annotations.formats import read_answers, read_labels, write_table
from lightning_annot.data.features import load_features
from lightning_annot.data.items import digest
from lightning_annot.files import replacing
from lightning_annot.types import AnnotError

FEWEST = 5  # items of a class, as many as there are folds
_DRAW = 20_000  # seed of the draw of a tail's items, one for all runs and methods


@dataclass(frozen=True)
class BankFiles:
    """``features`` .npy (N, D), ``labels`` CSV ``task,label`` with row i for item i, and recorded ``answers``, if any."""

    features: Path
    labels: Path
    answers: Path | None = None


@dataclass(frozen=True)
class Cut:
    """``rows`` A, B: items A to B - 1, all if None.

    ``tail`` R: of these, class k of K keeps at most n R^(-k / (K - 1)), n being the mean number in a class; all if None.
    """

    rows: tuple[int, int] | None = None
    tail: float | None = None

    def __post_init__(self) -> None:
        if self.rows is not None and not 0 <= self.rows[0] < self.rows[1]:
            raise AnnotError(f"rows {self.rows[0]}:{self.rows[1]} given; A:B needs 0 <= A < B.")
        if self.tail is not None and not 1 <= self.tail < np.inf:
            raise AnnotError(f"tail {self.tail:g} given; the ratio of the largest class to the smallest is 1 or more.")

    @property
    def name(self) -> str:
        """What is added to the name of a setting."""
        rows = "" if self.rows is None else f"[{self.rows[0]}:{self.rows[1]}]"
        return rows + ("" if self.tail is None else f" tail={self.tail:g}")


def read_rows(text: str) -> tuple[int, int]:
    """``A:B`` as two numbers."""
    if not re.fullmatch(r"\d+:\d+", text):
        raise AnnotError(f"rows {text!r} given; it must be A:B, such as 0:5000 for the first 5,000 items.")
    first, end = text.split(":")
    return int(first), int(end)


def cut_bank(bank: BankFiles, cut: Cut, directory: Path) -> BankFiles:
    """Write the part of ``bank`` that ``cut`` keeps, rows in order, to a folder of its own below ``directory``."""
    labels = read_labels(bank.labels)
    features = load_features(bank.features)
    if len(features) != len(labels):
        raise AnnotError(f"{bank.features} has {len(features)} rows, {bank.labels} has {len(labels)}; row i is item i.")
    kept = kept_rows(labels["label"].to_numpy(), cut)
    folder = directory / f"data-{digest([str(bank.features), str(bank.labels), str(bank.answers), cut.name])}"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "features.npy") as draft:
        np.save(draft, features[kept])
    labels = labels.iloc[kept]
    write_table(folder / "labels.csv", labels)
    if bank.answers is None:
        return BankFiles(folder / "features.npy", folder / "labels.csv")
    answers = read_answers(bank.answers)
    answers = answers[answers["task"].isin(labels["task"])]
    if answers.empty:
        raise AnnotError(f"{bank.answers} has no answer about the {len(labels)} items that {cut.name.strip()} keeps.")
    write_table(folder / "answers.csv", answers)
    return BankFiles(folder / "features.npy", folder / "labels.csv", folder / "answers.csv")


def kept_rows(label: np.ndarray, cut: Cut) -> np.ndarray:
    """Rows (n,) of ``label`` (N,) that ``cut`` keeps, rising; AnnotError if a class would be left with hardly any."""
    first, end = cut.rows or (0, len(label))
    if end > len(label):
        raise AnnotError(f"rows {first}:{end} given; there are {len(label)} items.")
    rows: np.ndarray = np.arange(first, end)
    classes, code = np.unique(label[rows], return_inverse=True)
    if cut.tail is not None:
        rows = np.sort(rows[_tail(code, len(classes), cut.tail)])
    left = pd.Series(label[rows]).value_counts().reindex(np.unique(label), fill_value=0)
    if left.min() < FEWEST:
        raise AnnotError(
            f"the cut{' ' * (not cut.rows)}{cut.name} leaves {left.min()} items of class {left.idxmin()!r}; "
            f"each class needs {FEWEST}: keep more rows, or give a lower tail."
        )
    return rows


def _tail(code: np.ndarray, n_classes: int, ratio: float) -> np.ndarray:
    """Positions in ``code`` (n,) of an exponential tail over the classes in order; which ones is drawn, but always the same."""
    wanted = len(code) / n_classes * ratio ** (-np.arange(n_classes) / max(1, n_classes - 1)) + 1e-9  # whole numbers stay whole
    shuffled = np.random.default_rng(_DRAW).permutation(len(code))
    place = pd.Series(code[shuffled]).groupby(code[shuffled]).cumcount().to_numpy()
    kept: np.ndarray = shuffled[place < np.floor(wanted)[code[shuffled]]]
    return kept
