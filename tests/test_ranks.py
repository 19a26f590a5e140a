"""Two processes over gloo extract one bank: each its part, together what one would, also after both were killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_runs import QUIET, ROOT, SMALL, arguments, run
from PIL import Image
from waiting import wait_for

from lightning_annot.backbones.timm_features import BackboneSpec, FeatureSet, extract
from lightning_annot.data.features import FeatureBank
from lightning_annot.data.ranks import peers_explained
from lightning_annot.data.sources import folder_source

MODEL = "test_resnet"
SPEC = BackboneSpec(MODEL, "random", 32)

ONE_RANK = """
import sys, time, torch
import torch.distributed as dist
from lightning_annot.backbones.timm_features import BackboneSpec, extract
from lightning_annot.data.ranks import Ranks
from lightning_annot.data.sources import Images, folder_source
rank, root, cache, meeting, pause = int(sys.argv[1]), *sys.argv[2:5], float(sys.argv[5])
torch.set_num_threads(1)
open_image = Images.open
Images.open = lambda self, row: (time.sleep(pause), open_image(self, row))[1]
dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=2)
found = extract(
    folder_source(root), BackboneSpec("test_resnet", "random", 32), cache, batch_size=2, num_workers=0,
    flush_seconds=0.0, progress=rank == 0, ranks=Ranks(rank, 2, 2, dist.barrier),
)
print(found.features.astype("f8").sum(), found.unreadable)
dist.destroy_process_group()
"""


def photos(folder: Path, n: int) -> Path:
    """``n`` images of noise in two class folders."""
    for row in range(n):
        path = folder / ("ant", "bee")[row // 3 % 2] / f"{row:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(row).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(path)
    return folder


def start_both(root: Path, cache: Path, meeting: Path, pause: float) -> list[subprocess.Popen[str]]:
    """The two processes, which meet at a file that must be new; each image takes ``pause`` seconds longer."""
    words = [sys.executable, "-c", ONE_RANK]
    tail = [str(root), str(cache), str(meeting), str(pause)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return [subprocess.Popen([*words, str(rank), *tail], cwd=ROOT, text=True, **pipes) for rank in (0, 1)]  # type: ignore[call-overload]


def rows_of_shards(cache: Path) -> list[int]:
    """How many rows each shard has."""
    return [path.stat().st_size // 16 for path in sorted(cache.glob("*/digests*.bin"))]


def by_one(root: Path, cache: Path) -> FeatureSet:
    return extract(folder_source(root), SPEC, cache, batch_size=2, num_workers=0, progress=False)


def test_two_processes_go_on_after_both_were_killed(tmp_path: Path) -> None:
    root, cache = photos(tmp_path / "images", 120), tmp_path / "cache"
    both = start_both(root, cache, tmp_path / "first", 0.2)  # at least 12 s, of which the kill needs two

    def both_begun() -> bool:
        return len(rows := rows_of_shards(cache)) == 2 and min(rows) >= 6

    try:
        wait_for(both_begun, lambda: all(process.poll() is None for process in both))
    finally:
        for process in both:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    before = rows_of_shards(cache)
    assert max(before) < 60
    said = [process.communicate(timeout=600) for process in start_both(root, cache, tmp_path / "second", 0.0)]
    assert all("()" in out for out, _ in said), said
    assert said[0][0].splitlines()[-1] == said[1][0].splitlines()[-1]  # both read the same features
    assert f"features of {120 - sum(before)} images in" in said[0][0]
    assert "by 2 processes" in said[0][0]
    assert sorted(rows_of_shards(cache)) == [60, 60]  # nothing was done twice

    files = {path: path.read_bytes() for path in cache.glob("*/*.*")}
    ours, fresh = by_one(root, cache), by_one(root, tmp_path / "fresh")
    assert {path: path.read_bytes() for path in cache.glob("*/*.*")} == files
    assert ours.ids == fresh.ids
    assert np.allclose(ours.features, fresh.features, rtol=2e-3, atol=1e-5)  # batches differ, so the last bit may


@pytest.mark.slow
def test_the_trainer_s_processes_share_the_images(tmp_path: Path) -> None:
    root, cache = photos(tmp_path / "images", 61), tmp_path / "cache"
    settings = {
        **QUIET, **SMALL, "data.root": root, "data.backbone.name": MODEL, "data.backbone.weights": "random",
        "data.backbone.image_size": 32, "data.backbone.cache_dir": cache, "annotation.output_dir": tmp_path / "run",
        "trainer.max_epochs": 1, "trainer.devices": 2, "trainer.strategy": "ddp", "seed_everything": 0,
    }  # fmt: skip
    result = run("fit", *arguments(settings), OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("features of 61 images in") == 1
    assert rows_of_shards(cache) == [30, 31]  # digests.1.bin, digests.bin
    assert len(pd.read_csv(tmp_path / "run" / "labels.csv")) == 61
    fresh = by_one(root, tmp_path / "fresh")
    folder = next(cache.glob("*/bank.json")).parent
    together = FeatureBank(folder, {}).read(list(folder_source(root).digests()))
    assert np.allclose(together, fresh.features, rtol=2e-3, atol=1e-5)

    (root / "ant" / "000.png").write_bytes(b"not an image")
    result = run("fit", *arguments(settings), OMP_NUM_THREADS="1")
    assert result.returncode == 2
    assert "1 images are unreadable" in result.stderr


def test_fewer_images_than_processes(tmp_path: Path) -> None:
    root, cache = photos(tmp_path / "images", 1), tmp_path / "cache"
    said = [process.communicate(timeout=600) for process in start_both(root, cache, tmp_path / "meeting", 0.0)]
    assert all("()" in out for out, _ in said), said
    assert sum(rows_of_shards(cache)) == 1


WAITS_FOR_ANOTHER = """
import os, sys
import torch.distributed as dist
from lightning_annot.data.ranks import peers_explained
from lightning_annot.types import AnnotError
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
dist.barrier()
if rank == 0:
    raise SystemExit("its own message")
try:
    with peers_explained():
        dist.broadcast_object_list([None], 0)
except AnnotError as error:
    print(error, flush=True)
os._exit(0)  # what gloo's threads do as Python ends, beside a lost peer, is not looked at here
"""


def test_a_process_says_that_another_has_stopped_whatever_it_waits_for(tmp_path: Path) -> None:
    words = [sys.executable, "-c", WAITS_FOR_ANOTHER]
    both = [
        subprocess.Popen([*words, str(rank), str(tmp_path / "meeting")], cwd=ROOT, text=True, stdout=subprocess.PIPE)
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert both[1].returncode == 0
    assert said[1].startswith("another process of this run has stopped; its own message says why (")


def test_other_errors_are_not_taken_for_a_lost_process() -> None:
    with pytest.raises(RuntimeError, match="shape"), peers_explained():
        raise RuntimeError("shape mismatch")
