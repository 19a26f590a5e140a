"""How well a linear model tells classes apart by a backbone's features, beside a ready-made bank; prints JSON.

    python scripts/probe_features.py --bank ../shared/data/cifar10n/features_efficientnet_lite0_160px.npy
    python scripts/probe_features.py --root photos/ --labels truth.csv --id-pattern %s --backbone resnet50.a1_in1k \
      --weights pretrained

Images are those of ``--root``, in the order of the labels (``task,label``); by default the CIFAR-10 photographs below
``ANNOT_DATA``. Standardised features, logistic regression on 80% of the images, accuracy on the rest, over random splits that
features and bank share. Features are kept in ``--cache-dir``, so a second run extracts nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lightning_annot.annotations.formats import read_labels
from lightning_annot.backbones.timm_features import BackboneSpec, extract
from lightning_annot.data.features import load_features
from lightning_annot.data.sources import open_source, remap_ids
from lightning_annot.types import AnnotError

DATA = Path(os.environ.get("ANNOT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "cifar10n"


def probe(features: NDArray[Any], labels: NDArray[Any], strength: float, seeds: int) -> list[float]:
    """Accuracy on a fifth of the rows that the model has not seen, one a seed."""
    found = []
    for seed in range(seeds):
        parts = train_test_split(np.asarray(features, np.float32), labels, test_size=0.2, random_state=seed, stratify=labels)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300)).fit(parts[0], parts[2])
        found.append(round(float(model.score(parts[1], parts[3])), 4))
    return found


def main() -> None:
    """Parse arguments, extract, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=str(DATA / "images.zip"))
    parser.add_argument("--labels", default=str(DATA / "true_labels.csv"))
    parser.add_argument("--id-pattern", default="%05d.jpg", help="image of a task, such as %%s.jpg")
    parser.add_argument("--bank", help="a .npy whose row i is row i of the labels, to compare with")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="package:lite0")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--images", type=int, help="only the first so many of the labels")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--strength", type=float, default=1e-3, help="C of the logistic regression")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache-dir", default="checkpoints/features")
    args = parser.parse_args()
    frame = read_labels(args.labels)[: args.images]
    source = remap_ids(open_source(args.root, cache_dir=args.cache_dir), frame["task"].tolist(), args.id_pattern)
    labels = frame["label"].to_numpy()
    start = time.perf_counter()
    found = extract(
        source,
        BackboneSpec(args.backbone, args.weights, args.image_size),
        args.cache_dir,
        num_workers=args.workers,
        progress=False,
    )
    result: dict[str, Any] = {name: getattr(args, name) for name in ("backbone", "weights", "image_size", "strength")}
    result |= {"images": len(labels), "seconds_extract": round(time.perf_counter() - start, 1)}
    result["accuracy"] = probe(found.features, labels, args.strength, args.seeds)
    if args.bank is not None:
        bank = load_features(args.bank)[: len(labels)]
        if len(bank) < len(labels):
            raise AnnotError(f"{args.bank} has {len(bank)} rows for {len(labels)} labels; row i is row i of the labels.")
        result["accuracy_bank"] = probe(bank, labels, args.strength, args.seeds)
        result["difference"] = round(float(np.mean(result["accuracy"]) - np.mean(result["accuracy_bank"])), 4)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
