"""Estimate the time of an extraction from a few images, and how much of it is done."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from lightning_annot.backbones.image_text import PREFIX
from lightning_annot.backbones.pretrained import Pretrained, of_open_clip, of_timm
from lightning_annot.backbones.timm_features import bank_key, placed, reading_processes, resolve_device
from lightning_annot.backbones.timm_models import BackboneSpec, build_backbone
from lightning_annot.backbones.transforms import Transform
from lightning_annot.data.features import FeatureBank, bank_folder
from lightning_annot.data.images import Images
from lightning_annot.data.loading import BackboneSettings

_MOST_SECONDS = 5.0
_BATCH = 16  # images of a measured batch on a CPU


@dataclass(frozen=True)
class Estimate:
    """``images_per_second`` of a backbone, whose features have ``width`` values; ``missing``: images that the bank lacks.

    ``is_exact``: whether all images were looked up in the bank, and not a sample.
    """

    images_per_second: float
    width: int
    missing: int
    is_exact: bool

    @property
    def seconds(self) -> float:
        """Seconds that the extraction will take."""
        return self.missing / self.images_per_second if self.missing else 0.0


def pretrained_weights(spec: BackboneSpec) -> Pretrained | None:
    """Where the weights come from that may have to be downloaded; None where they are a file's, or random."""
    if spec.name.startswith(PREFIX):
        if spec.weights == "random" or Path(spec.weights).is_file():
            return None
        return of_open_clip(spec.name, spec.name.removeprefix(PREFIX), spec.weights)
    return of_timm(spec.name) if spec.weights == "pretrained" else None


def megabytes(spec: BackboneSpec) -> float | None:
    """Size of the weights of a timm model, which are not here; None where it is not known."""
    if spec.name.startswith(PREFIX):
        return None
    with torch.device("meta"):
        model: nn.Module = timm.create_model(spec.name)
    return float(sum(4 * part.numel() for part in model.state_dict().values())) / 1e6


def estimate(source: Images, spec: BackboneSpec, settings: BackboneSettings, sample: Sequence[int], at_hand: bool) -> Estimate:
    """Read some images of the ``sample`` and put them through the model, for a few seconds.

    Without weights ``at_hand`` the model has random ones, and no bank can have its features.
    """
    model, transform = build_backbone(spec if at_hand else replace(spec, weights="random"))
    device = resolve_device(settings.device)
    there = 0
    if at_hand:
        key = bank_key(spec, model, transform, amp=False)
        folder = bank_folder(settings.cache_dir, key)
        if folder.is_dir() and sample:
            there = int(FeatureBank(folder, key).contains(source.subset(sample).digests()).sum())
    n = len(source.ids)
    missing = n - round(n * there / max(1, len(sample)))
    workers = settings.num_workers if settings.num_workers is not None else reading_processes(missing)
    size = settings.batch_size if device.type != "cpu" else min(settings.batch_size, _BATCH)
    rows = random.Random(0).sample(list(sample), len(sample)) if missing else list(sample)[:1]
    read, run, width = _measure(source, placed(model, device, False), transform, rows, size, device)
    # Reading processes read while the model computes; without any, one waits for the other.
    return Estimate(1.0 / max(max(read / workers, run) if workers else read + run, 1e-9), width, missing, len(sample) == n)


def _measure(
    source: Images, model: nn.Module, transform: Transform, rows: Sequence[int], size: int, device: torch.device
) -> tuple[float, float, int]:
    """Seconds an image to read and to compute, and the width of the features; the first batch only warms up."""
    end, n = time.monotonic() + _MOST_SECONDS, 0
    read = run = 0.0
    width = 0
    for start in range(0, len(rows), size):
        clock = time.monotonic()
        images = _images(source, transform, rows[start : start + size])
        if not images:
            continue
        loaded = time.monotonic()
        with torch.inference_mode():
            width = int(model(torch.stack(images).to(device)).cpu().shape[-1])
        done = time.monotonic()
        is_warm = start > 0 or len(rows) <= size
        if is_warm:
            read, run, n = read + loaded - clock, run + done - loaded, n + len(images)
        if done > end:
            if not n:
                read, run, n = loaded - clock, done - loaded, len(images)
            break
    return read / max(1, n), run / max(1, n), width


def _images(source: Images, transform: Transform, rows: Sequence[int]) -> list[Tensor]:
    """The readable ones as inputs."""
    found: list[Tensor] = []
    for row in rows:
        try:
            found.append(transform(source.open(row)))
        except OSError:  # counted where the sample is looked at
            continue
    return found
