"""Images a second of our extraction against a bare torch loop, in the same run; prints JSON.

    python scripts/bench_features.py
    python scripts/bench_features.py --backbone tf_efficientnet_lite0 --weights package:lite0 --root photos.zip
    python scripts/bench_features.py --ranks 2 --workers 0

The bare loop is what one would write by hand: a DataLoader over the same images with the same transform, batch and reading
processes, the same model under ``inference_mode``, features kept in a list. It hashes nothing and writes nothing. Both run
on the same images in turn, ``--repeats`` times, after one batch each to warm up; figures are medians, ``ratio`` is that of
the pairs. Images are drawn as JPEG files unless ``--root`` names some. With ``--ranks`` so many processes share the work,
and the pairs compare with as many bare loops, each over its part.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lightning_annot.backbones.timm_features import BackboneSpec, build_backbone, extract
from lightning_annot.data.images import Images
from lightning_annot.data.ranks import Ranks
from lightning_annot.data.sources import open_source


def draw_images(folder: Path, n: int, side: int, seed: int) -> Path:
    """``n`` JPEG files of smooth noise, about as large as photographs of that side."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for row in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{row:06d}.jpg", quality=90)
    return folder


class Pixels(Dataset[torch.Tensor]):
    """Every ``size``-th image from ``rank`` on, transformed."""

    def __init__(self, source: Images, transform: Callable[[Image.Image], torch.Tensor], ranks: Ranks) -> None:
        self.source, self.transform = source, transform
        self.rows = range(ranks.rank, len(source), ranks.size)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(self.source.open(self.rows[index]))


def time_bare(source: Images, spec: BackboneSpec, args: argparse.Namespace, ranks: Ranks) -> float:
    """Seconds of the loop that one would write by hand, model and loader made before."""
    model, transform = build_backbone(spec)
    model = model.to(args.device)
    if args.bare_channels_last:
        model = model.to(memory_format=torch.channels_last)
    loader = DataLoader(Pixels(source, transform, ranks), args.batch, num_workers=args.workers)
    kept = []
    ranks.wait()
    start = time.perf_counter()
    with torch.inference_mode():
        for images in loader:
            kept.append(model(images.to(args.device)).cpu())
    ranks.wait()
    return time.perf_counter() - start


def time_ours(source: Images, spec: BackboneSpec, args: argparse.Namespace, ranks: Ranks, cache: Path) -> float:
    """Seconds of ``extract`` into a new bank, hashes and model and all."""
    fresh = source.subset(range(len(source)))  # so that its hashes are computed anew
    ranks.wait()
    start = time.perf_counter()
    extract(fresh, spec, cache, args.batch, args.device, args.workers, progress=False, ranks=ranks)
    return time.perf_counter() - start


def bench(args: argparse.Namespace, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """All figures of one process; they are those of all, since every timing begins and ends together."""
    torch.set_num_threads(args.threads)
    spec = BackboneSpec(args.backbone, args.weights, args.image_size, args.seed)
    everything = open_source(args.root or str(folder / "images"))
    source = everything.subset(range(min(args.images, len(everything))))
    few = source.subset(range(min(args.batch * ranks.size, len(source))))
    time_bare(few, spec, args, ranks)
    time_ours(few, spec, args, ranks, folder / "warm")
    bare, ours = [], []
    for repeat in range(args.repeats):
        bare.append(time_bare(source, spec, args, ranks))
        ours.append(time_ours(source, spec, args, ranks, folder / f"cache{repeat}"))
    return {
        **{name: getattr(args, name) for name in ("backbone", "image_size", "batch", "workers", "threads", "ranks", "seed")},
        "bare_channels_last": args.bare_channels_last,
        "images": len(source),
        "images_per_second": round(len(source) / median(ours), 1),
        "images_per_second_bare": round(len(source) / median(bare), 1),
        "ratio": round(median(b / o for b, o in zip(bare, ours, strict=True)), 3),
        "ratios": [round(b / o, 3) for b, o in zip(bare, ours, strict=True)],
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
    }


def run_rank(rank: int, args: argparse.Namespace, folder: Path) -> None:
    """One of several processes; the first prints."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=args.ranks)
    result = bench(args, folder, Ranks(rank, args.ranks, args.ranks, dist.barrier))
    dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(result, indent=1))


def main() -> None:
    """Parse arguments, run in a temporary folder, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--root", help="a folder, zip or other source of images; default: images drawn here")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--side", type=int, default=320, help="pixels of a side of the images drawn")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1, help="reading processes of each rank")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads of each rank")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bare-channels-last", action="store_true", help="give the bare loop the memory format of ours too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.root is None:
            draw_images(folder / "images", args.images, args.side, args.seed)
        if args.ranks == 1:
            print(json.dumps(bench(args, folder, Ranks()), indent=1))
        else:
            torch.multiprocessing.spawn(run_rank, (args, folder), args.ranks)


if __name__ == "__main__":
    main()
