"""Check the inputs of an adaptation, and of a classifier."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning import Trainer

from lightning_annot.backbones.adapt_settings import StartSettings
from lightning_annot.backbones.classifier import ClassifierModule
from lightning_annot.backbones.classifier_data import ClassifierDataModule
from lightning_annot.backbones.timm_models import BackboneSpec
from lightning_annot.backbones.unlabelled import UnlabelledDataModule
from lightning_annot.check.annotation import is_there
from lightning_annot.check.features import look_at_device, look_at_weights
from lightning_annot.check.images import look_at_images
from lightning_annot.check.lines import Lines
from lightning_annot.check.space import look_at_disks, run_bytes
from lightning_annot.types import Finding


def check_adaptation(lines: Lines, data: UnlabelledDataModule, start: StartSettings, folder: Path) -> None:
    """Say of the images, the prototypes and the backbone of an adaptation whether they are there."""
    look_at_device(lines, "auto")
    if is_there(lines, data.items.root):
        data.items.keep_no_digests()
        found = lines.attempt("images", data.items.images)
        if found is not None:
            source, label = found
            look_at_images(lines, source, data.seed, data.skip)
            n = 0 if label is None else int((label >= 0).sum())
            lines.ok("prototypes", f"{n:,}, for val_knn alone")
    _backbone(lines, "model.backbone", start.name, start.weights, start.image_size, data.seed)
    look_at_disks(lines, {folder: run_bytes(0, 0, 0)})
    lines.ok("extraction", "there is none; adaptation trains, and how long that takes is not measured here")


def check_classifier(lines: Lines, data: ClassifierDataModule, model: ClassifierModule, trainer: Trainer, folder: Path) -> None:
    """Say of the labels, the images and the backbone of a classifier whether they are there and fit each other."""
    look_at_device(lines, "auto")
    data.trainer = trainer
    if is_there(lines, data.root) and lines.passes("labels", lambda: data.setup("fit")):
        lines.look("labels", lambda: _labels(data))
        if (source := data.images) is not None:
            look_at_images(lines, source, data.seed, skips=False)
    if model.backbone_name is not None:
        _backbone(lines, "model.backbone", model.backbone_name, model.weights, model.image_size, data.seed)
    look_at_disks(lines, {folder: run_bytes(0, 0, 0)})
    lines.ok("extraction", "there is none; a classifier trains, and how long that takes is not measured here")


def _labels(data: ClassifierDataModule) -> Finding:
    known = data.known
    text = f"{len(known.ids):,} items of {len(known.classes)} classes in {data.run}"
    return Finding(f"{text}; {int(data.learned.sum()):,} to learn from, {int(data.validates.sum()):,} to validate on")


def _backbone(lines: Lines, key: str, name: str, weights: str, image_size: int | None, seed: int) -> None:
    spec = lines.attempt(key, lambda: BackboneSpec(name, weights, image_size, seed))
    if spec is not None:
        look_at_weights(lines, key, spec)
