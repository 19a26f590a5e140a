"""How hard each image is for a model that never saw its label: the table that DifficultyWorkers read.

    python scripts/make_difficulty.py --features bank.npy --labels true_labels.csv --out difficulty.npz

A logistic regression on standardised principal components gives each item's class probabilities, out of fold. Row i of the
features is row i of the labels (``task,label``). ``--classes`` gives the classes in the task's order; else they are sorted.
The out-of-fold accuracy is printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lightning_annot.annotations.formats import read_labels
from lightning_annot.data.features import load_features
from lightning_annot.files import replacing
from lightning_annot.types import AnnotError


def out_of_fold(
    features: NDArray[np.floating],
    label: NDArray[np.int64],
    *,
    dim: int = 128,
    folds: int = 5,
    strength: float = 0.01,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Class probabilities (N, K) of ``features`` (N, D), each by a model that did not learn from its ``label`` (N,)."""
    least = int(np.bincount(label).min())
    if least < folds:
        raise AnnotError(f"a class has {least} items and there are {folds} folds; each class needs one item in each fold.")
    scaled = StandardScaler().fit_transform(np.asarray(features, dtype=np.float32))
    parts = PCA(min(dim, *scaled.shape), random_state=seed)
    model = make_pipeline(parts, LogisticRegression(C=strength, max_iter=1000))
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    table: NDArray[np.float64] = cross_val_predict(model, scaled, label, cv=split, method="predict_proba")
    return table.astype(np.float32)


def read_task(
    features: Path, labels: Path, classes: Sequence[str] | None
) -> tuple[NDArray[np.floating], list[str], list[str], NDArray[np.int64]]:
    """Features (N, D), item ids, classes, and the class (N,) of each item."""
    truth = read_labels(labels, classes)
    bank = load_features(features)
    if len(bank) != len(truth):
        raise AnnotError(f"{features} has {len(bank)} rows and {labels} {len(truth)}; row i is item i.")
    names = sorted(set(truth["label"])) if classes is None else list(classes)
    code = {name: k for k, name in enumerate(names)}
    label = truth["label"].map(code).to_numpy(np.int64)
    if absent := [name for k, name in enumerate(names) if not (label == k).any()]:
        raise AnnotError(f"no item of {labels} is of the classes {absent[:5]}; a model cannot learn them.")
    return bank, truth["task"].tolist(), names, label


def main(argv: list[str] | None = None) -> int:
    """Write one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, help="feature bank, .npy (N, D)")
    parser.add_argument("--labels", type=Path, required=True, help="CSV task,label of the true classes")
    parser.add_argument("--classes", nargs="+", help="classes in the task's order")
    parser.add_argument("--out", type=Path, required=True, help=".npz to write")
    parser.add_argument("--dim", type=int, default=128, help="principal components")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--strength", type=float, default=0.01, help="C of the logistic regression")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    try:
        if given.out.suffix != ".npz":
            raise AnnotError(f"--out {given.out} given; the table is an .npz.")
        features, items, classes, label = read_task(given.features, given.labels, given.classes)
        table = out_of_fold(features, label, dim=given.dim, folds=given.folds, strength=given.strength, seed=given.seed)
        with replacing(given.out) as draft:
            np.savez(draft, items=items, classes=classes, probabilities=table)
    except AnnotError as error:
        print(f"make_difficulty: {error}", file=sys.stderr)
        return 2
    right = (table.argmax(1) == label).mean()
    print(f"{given.out}: {right:.1%} right out of fold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
