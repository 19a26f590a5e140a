"""Check the inputs of an annotation run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lightning_annot.callbacks.annotation_round import AnnotationRound
from lightning_annot.check.features import Adaptation, look_at_backbone, look_at_device, look_at_weights
from lightning_annot.check.images import draw, look_at_images
from lightning_annot.check.lines import Lines
from lightning_annot.check.space import bank_bytes, look_at_disks, look_at_memory, run_bytes
from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.data.datasets import TORCHVISION, is_downloaded
from lightning_annot.data.images import Images, first_few
from lightning_annot.data.items import ItemTable
from lightning_annot.data.loading import BackboneSettings, Loaded, backbone_spec
from lightning_annot.data.preflight import ChecksItems
from lightning_annot.types import Finding

_FEW = 5  # prototypes of a class, below which the model is hardly calibrated
_UNKNOWN_WIDTH = 1024  # features of a backbone that could not be tried


def check_annotation(lines: Lines, data: AnnotationDataModule, rounds: AnnotationRound, model: object) -> None:
    """Say of everything that ``fit`` needs whether it is there and fits."""
    cache = data.backbone.cache_dir
    data.keep_no_digests()
    lines.passes("files", rounds.opening.files)
    lines.passes("prototypes", data.owner.given)
    lines.look("classes", lambda: _classes(data))
    look_at_device(lines, data.backbone.device)
    listed = None
    if is_there(lines, data.root):
        listed = lines.attempt("images", lambda: data.list_items("fit"))
    if listed is None:
        _without_items(lines, data, rounds.folder.path, Path(cache))
        return
    sample = _images(lines, data, listed)
    table = None
    if lines.passes("prototypes", lambda: data.look("fit")):
        table = data.table
        _prototypes(lines, table)
        for subject, check in rounds.opening.checks(table, listed, data.seed, data.may_shrink).items():
            lines.look(subject, check)
        if isinstance(model, ChecksItems):
            lines.passes("model", lambda: model.check_items(data, "fit"))
    lines.passes("features", lambda: data.sources.check_features(listed, table))
    width, needs = _extraction(lines, data, listed, sample, cache)
    _space(lines, data, rounds, listed, table, width, needs)


def _without_items(lines: Lines, data: AnnotationDataModule, folder: Path, cache: Path) -> None:
    """Look at what does not depend on the items."""
    start = data.sources.start
    if data.features is None and start.name is not None:
        spec = lines.attempt("data.backbone", lambda: backbone_spec(start, data.seed))
        if spec is not None:
            look_at_weights(lines, "data.backbone", spec)
    look_at_disks(lines, {folder: run_bytes(0, 0, 0), cache: 0})


def is_there(lines: Lines, root: str | None) -> bool:
    """Whether the images can be looked at; a data set that has to be downloaded first cannot."""
    name = (root or "").removeprefix(TORCHVISION)
    if name == (root or ""):
        return True
    found = lines.attempt("images", lambda: is_downloaded(name))
    if found is False:
        lines.warn("images", f"{root} will be downloaded; images, prototypes and answers can be looked at once it is here")
    return bool(found)


def _classes(data: AnnotationDataModule) -> Finding:
    ids = data.owner.task_classes().ids
    if ids is None:
        return Finding("as the labels have them")
    return Finding(f"{len(ids)} ({first_few(ids, 6)})")


def _images(lines: Lines, data: AnnotationDataModule, listed: Loaded) -> Sequence[int]:
    """The rows of the sample that was opened."""
    if listed.has_features:
        lines.ok("features", f"{len(listed.ids):,} items with {listed.features.shape[1]:,} features each in {data.features}")
    if listed.labels:
        count = Counter(listed.labels.values())
        (least, few), most = min(count.items(), key=lambda pair: pair[1]), max(count.values())
        lines.ok("labels", f"{len(listed.labels):,} items of {len(count)} classes, {few:,} ({least}) to {most:,} each")
    if listed.source is None:
        return ()
    return look_at_images(lines, listed.source, data.seed, skips=data.backbone.on_error == "skip" or listed.has_features)


def _prototypes(lines: Lines, table: ItemTable) -> None:
    count = torch.bincount(table.prototype[table.is_prototype], minlength=len(table.classes))
    least, n = int(count.min()), int(count.sum())
    where = f"{least} of {table.classes[int(count.argmin())]!r}"
    if not n:
        lines.warn("prototypes", "none; the first questions go to items that differ from each other")
    elif not least:
        without = [name for name, there in zip(table.classes, count.tolist(), strict=True) if not there]
        lines.warn("prototypes", f"{n:,}, and {len(without)} classes have none ({first_few(without)}); label some of each")
    elif least < _FEW:
        lines.warn("prototypes", f"{n:,}, fewest {where}; about 10 of each class calibrate the model well")
    else:
        lines.ok("prototypes", f"{n:,}, {'drawn from the labels, ' if table.drawn else ''}fewest {where}")


def _extraction(
    lines: Lines, data: AnnotationDataModule, listed: Loaded, sample: Sequence[int], cache: str
) -> tuple[int, dict[Path, int]]:
    """Width of the learner's own features, and bytes that each bank's folder will need."""
    needs: dict[Path, int] = {}
    width = listed.features.shape[1] or _UNKNOWN_WIDTH
    for key, settings, source, rows in _to_extract(lines, data, listed, sample):
        own = key == "data.backbone"
        adaptation = None
        if own and data.adapt is not None:
            adaptation = Adaptation(not data.sources.is_adapted, data.adapt.epochs)
        settings = replace(settings, cache_dir=settings.cache_dir or cache)
        found = look_at_backbone(lines, key, settings, source, rows, data.seed, adaptation)
        folder = Path(settings.cache_dir)
        needs[folder] = needs.get(folder, 0) + (0 if found is None else bank_bytes(found.missing, found.width))
        if own and found is not None:
            width = found.width
    if listed.has_features and not needs:
        lines.ok("extraction", "0 s, features are there")
    elif not needs:
        lines.ok("extraction", "0 s, the pixels are the features")
    return width, needs


def _to_extract(
    lines: Lines, data: AnnotationDataModule, listed: Loaded, sample: Sequence[int]
) -> Iterator[tuple[str, BackboneSettings, Images, Sequence[int]]]:
    """The setting that asks for an extraction, the backbone, the images, and rows of some of them."""
    if listed.source is not None:
        for key, settings in data.sources.backbones(listed).items():
            yield key, settings, listed.source, sample
    extra = lines.attempt("data.unlabelled_extra", lambda: data.sources.extra)
    if extra is not None and extra.source is not None and data.sources.start.name is not None:
        yield "data.unlabelled_extra", data.sources.start, extra.source, draw(len(extra.ids), data.seed)


def _space(
    lines: Lines,
    data: AnnotationDataModule,
    rounds: AnnotationRound,
    listed: Loaded,
    table: ItemTable | None,
    width: int,
    needs: dict[Path, int],
) -> None:
    n, k = len(listed.ids), 2 if table is None else len(table.classes)
    projected = data.projection_settings.width(n, width)
    answers = n * min(rounds.most_answers, 10)
    look_at_disks(lines, {rounds.folder.path: run_bytes(n, answers, data.n_folds * projected * k), **needs})
    look_at_memory(lines, n, k, projected)
