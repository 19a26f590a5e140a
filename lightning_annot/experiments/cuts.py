"""Feature banks made of another: a range of rows, a long tail of classes, a class against the rest, other features."""

from __future__ import annotations

import re
from collections.abc import Sequence
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
REST = "rest"  # name of all other classes, where one stands against them
FACTOR_SIGMA = 1.5  # of the logarithm of the factors by which features are multiplied
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
    ``against_rest``: of what is left, this class is set against all others, which become "rest". ``principal``: the features
    are reduced to so many principal components, without whitening; then each is multiplied by a random factor drawn with the
    seed ``scale``; then rows have unit norm where ``unit_norm`` says so.
    """

    rows: tuple[int, int] | None = None
    tail: float | None = None
    against_rest: str | None = None
    principal: int | None = None
    scale: int | None = None
    unit_norm: bool = False

    def __post_init__(self) -> None:
        if self.rows is not None and not 0 <= self.rows[0] < self.rows[1]:
            raise AnnotError(f"rows {self.rows[0]}:{self.rows[1]} given; A:B needs 0 <= A < B.")
        if self.tail is not None and not 1 <= self.tail < np.inf:
            raise AnnotError(f"tail {self.tail:g} given; the ratio of the largest class to the smallest is 1 or more.")

        if self.principal is not None and self.principal < 1:
            raise AnnotError(f"principal {self.principal} given; it is a number of components, 1 or more.")
        if self.scale is not None and self.scale < 0:
            raise AnnotError(f"scale {self.scale} given; it is the seed of the factors, 0 or more.")

    @property
    def name(self) -> str:
        """Suffix for the name of a setting."""
        rows = "" if self.rows is None else f"[{self.rows[0]}:{self.rows[1]}]"
        others = {
            "tail": None if self.tail is None else f"{self.tail:g}",
            "against-rest": self.against_rest,
            "principal": self.principal,
            "scale": self.scale,
        }
        text = rows + "".join(f" {name}={value}" for name, value in others.items() if value is not None)
        return text + " unit-norm" * self.unit_norm


def read_rows(text: str) -> tuple[int, int]:
    """``A:B`` as two numbers."""
    if not re.fullmatch(r"\d+:\d+", text):
        raise AnnotError(f"rows {text!r} given; it must be A:B, such as 0:5000 for the first 5,000 items.")
    first, end = text.split(":")
    return int(first), int(end)


def cut_bank(bank: BankFiles, cut: Cut, directory: Path) -> BankFiles:
    """Write the part of ``bank`` that ``cut`` keeps, rows in order, to a folder of its own below ``directory``."""
    labels = read_labels(bank.labels)
    classes = sorted(labels["label"].unique())
    _check_class(classes, cut.against_rest, bank.labels)
    features = load_features(bank.features)
    if len(features) != len(labels):
        raise AnnotError(f"{bank.features} has {len(features)} rows, {bank.labels} has {len(labels)}; row i is item i.")
    kept = kept_rows(labels["label"].to_numpy(), cut)
    folder = directory / f"data-{digest([str(bank.features), str(bank.labels), str(bank.answers), cut.name])}"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "features.npy") as draft:
        np.save(draft, changed_features(features[kept], cut))
    labels = labels.iloc[kept].assign(label=changed_labels(labels["label"].iloc[kept], cut))
    write_table(folder / "labels.csv", labels)
    if bank.answers is None:
        return BankFiles(folder / "features.npy", folder / "labels.csv")
    answers = read_answers(bank.answers, None if cut.against_rest is None else classes)
    answers = answers[answers["task"].isin(labels["task"])]
    if answers.empty:
        raise AnnotError(f"{bank.answers} has no answer about the {len(labels)} items that {cut.name.strip()} keeps.")
    write_table(folder / "answers.csv", answers.assign(label=changed_labels(answers["label"], cut)))
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
    left = changed_labels(pd.Series(label[rows]), cut).value_counts()
    left = left.reindex(changed_labels(pd.Series(np.unique(label)), cut).unique(), fill_value=0)
    if left.min() < FEWEST:
        raise AnnotError(
            f"the cut{' ' * (not cut.rows)}{cut.name} leaves {left.min()} items of class {left.idxmin()!r}; "
            f"each class needs {FEWEST}: keep more rows, or give a lower tail."
        )
    return rows


def changed_labels(label: pd.Series, cut: Cut) -> pd.Series:
    """Labels as they are, or with "rest" in place of each that is not the class against the rest."""
    return label if cut.against_rest is None else label.where(label == cut.against_rest, REST)


def changed_features(features: np.ndarray, cut: Cut) -> np.ndarray:
    """Features (n, D) as they are, or float32 (n, d): principal components, multiplied by random factors, of unit norm."""
    if cut.principal is None and cut.scale is None and not cut.unit_norm:
        return features
    features = np.asarray(features, dtype=np.float32)
    if cut.principal is not None:
        from sklearn.decomposition import PCA

        if cut.principal > min(features.shape):
            raise AnnotError(
                f"principal {cut.principal} given; {len(features)} items of {features.shape[1]} features allow fewer."
            )
        features = PCA(cut.principal, svd_solver="full").fit_transform(features)
    if cut.scale is not None:
        draw = np.random.default_rng(cut.scale).standard_normal(features.shape[1])
        features = features * np.exp(FACTOR_SIGMA * draw)
    if cut.unit_norm:
        features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return features.astype(np.float32)


def _check_class(classes: Sequence[str], name: str | None, path: Path) -> None:
    """Refuse a class against the rest that ``path`` does not have, and a ``path`` that has a class "rest" already."""
    if name is not None and name not in classes:
        raise AnnotError(f"against-rest {name!r} given; {path} has the classes {', '.join(classes)}.")
    if name is not None and REST in classes:
        raise AnnotError(f"{path} has a class {REST!r}, the name of all other classes; give it another name there.")


def _tail(code: np.ndarray, n_classes: int, ratio: float) -> np.ndarray:
    """Positions in ``code`` (n,) of an exponential tail over the classes in order; which ones is drawn, but always the same."""
    wanted = len(code) / n_classes * ratio ** (-np.arange(n_classes) / max(1, n_classes - 1)) + 1e-9  # whole numbers stay whole
    shuffled = np.random.default_rng(_DRAW).permutation(len(code))
    place = pd.Series(code[shuffled]).groupby(code[shuffled]).cumcount().to_numpy()
    kept: np.ndarray = shuffled[place < np.floor(wanted)[code[shuffled]]]
    return kept
