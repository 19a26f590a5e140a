"""Where features will come from: weights, device, and how long the extraction will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lightning_annot.backbones.estimate import Estimate, estimate, megabytes, pretrained_weights
from lightning_annot.backbones.timm_features import resolve_device
from lightning_annot.backbones.timm_models import BackboneSpec
from lightning_annot.check.lines import Lines
from lightning_annot.data.images import Images
from lightning_annot.data.loading import BackboneSettings, backbone_spec


@dataclass(frozen=True)
class Adaptation:
    """``is_due``: whether the backbone has to be adapted before features are extracted, in so many ``epochs``."""

    is_due: bool
    epochs: int


def look_at_backbone(
    lines: Lines,
    key: str,
    settings: BackboneSettings,
    source: Images,
    sample: Sequence[int],
    seed: int,
    adaptation: Adaptation | None,
) -> Estimate | None:
    """Say whether the weights are here, and how long the extraction by the backbone that ``key`` names will take."""
    spec = lines.attempt(key, lambda: backbone_spec(settings, seed))
    if spec is None or (is_here := look_at_weights(lines, key, spec)) is None:
        return None
    is_due = adaptation is not None and adaptation.is_due
    found = lines.attempt("extraction", lambda: estimate(source, spec, settings, sample, is_here and not is_due))
    if found is None:
        return None
    if adaptation is not None and is_due:
        lines.ok(
            "adaptation", f"comes first, {adaptation.epochs} epochs over all images; how long it takes is not measured here"
        )
    lines.ok("extraction", f"{_duration(found, len(source.ids))} ({spec.name}, {_device(settings.device)})")
    return found


def look_at_weights(lines: Lines, key: str, spec: BackboneSpec) -> bool | None:
    """Say where the weights are: True if here, False if they will be downloaded, None if they cannot be had."""
    source = pretrained_weights(spec)
    if source is None:
        lines.ok(key, f"{spec.name} with the weights {spec.weights}")
        return True
    if (copy := source.local_copy()) is not None:
        lines.ok(key, f"{spec.name} with its pretrained weights in {copy}")
        return True
    if not lines.passes(key, source.need):
        return None
    size = megabytes(spec)
    lines.ok(key, f"{spec.name}; its weights will be downloaded once{'' if size is None else f', about {size:,.0f} MB'}")
    return False


def look_at_device(lines: Lines, device: str) -> None:
    """Say what computes, and by which version of torch."""
    if lines.attempt("device", lambda: resolve_device(device)) is not None:
        lines.ok("device", f"{_device(device)}; torch {torch.__version__}, {torch.get_num_threads()} threads")


def _device(device: str) -> str:
    target = resolve_device(device)
    return f"{target.type} ({torch.cuda.get_device_name(target)})" if target.type == "cuda" else target.type


def _duration(found: Estimate, n: int) -> str:
    if not found.missing:
        of = "all" if found.is_exact else "all that were looked up"
        return f"0 s, features are there ({of} of {n:,} images)"
    seconds = found.seconds
    text = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    speed = f"{found.images_per_second:,.0f}" if found.images_per_second >= 10 else f"{found.images_per_second:.2g}"
    about = "" if found.is_exact else "about "
    which = f"{about}{found.missing:,} of {n:,} images" if found.missing < n else f"{n:,} images"
    return f"about {text} for {which} at {speed} images/s"
