"""From the settings of a data module to ids, images and raw features; the only place that knows which source wins."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_annot.data.bank_digest import Origin
from lightning_annot.data.ranks import ALONE, Ranks
from lightning_annot.names import KnownNames
from lightning_annot.types import AnnotError

if TYPE_CHECKING:
    from lightning_annot.backbones.timm_features import FeatureSet
    from lightning_annot.backbones.timm_models import BackboneSpec
    from lightning_annot.data.classes import Subset
    from lightning_annot.data.images import Images

DIGITS = "digits"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackboneSettings:
    """A timm model by ``name``; ``weights``: pretrained, random, the path of a local checkpoint, or package:NAME for those of
    an installed package. ``image_size``: None for the model's own. ``device``: auto, cpu, cuda, ... ``on_error``: raise, or
    skip unreadable images (named and counted). ``cache_dir``: folder of the feature bank and of what is known of files.
    """

    name: str | None = None
    weights: str = "pretrained"
    image_size: int | None = None
    batch_size: int = 64
    num_workers: int | None = None
    device: str = "auto"
    on_error: str = "raise"
    cache_dir: str = "checkpoints/features"


@dataclass(frozen=True)
class Loaded:
    """``features`` (N, D) of items ``ids``, with their images if any; ``labels`` is the truth where known.

    ``unreadable`` and ``dropped`` name what the source has besides: images that could not be read, items outside the subset.
    The items are ``rows`` (N,) of the ``n_listed`` that there were before these were left out; None: all of them.
    ``extraction`` says what a backbone did, where one did anything; then ``extracted`` is what the features are known by.
    """

    ids: tuple[str, ...]
    features: np.ndarray
    source: Images | None
    labels: Mapping[str, str] | None
    unreadable: tuple[str, ...] = ()
    dropped: frozenset[str] = frozenset()
    rows: NDArray[np.int64] | None = None
    extraction: Mapping[str, str | int | float] | None = None
    extracted: str | None = None

    @property
    def origin(self) -> Origin:
        """What the features are known by."""
        return self.features if self.extracted is None else self.extracted

    @property
    def has_features(self) -> bool:
        """Whether there are features yet."""
        return bool(self.features.shape[1] > 0)

    def with_classes(self, classes: Sequence[str] | None) -> Loaded:
        """The same items, whose labels are spelt as the ``classes`` are, whatever their case."""
        if self.labels is None or classes is None:
            return self
        known = KnownNames(classes, ignore_case=True).find_all({*self.labels.values()})
        return replace(self, labels={name: known[label] for name, label in self.labels.items()})

    @property
    def n_listed(self) -> int:
        """Items that were listed, or images that were found, before any was left out."""
        return len(self.ids) + len(self.unreadable) + len(self.dropped)


def list_items(
    root: str | None,
    features: str | None,
    labels: str | None,
    items: str | None,
    id_pattern: str | None,
    backbone: BackboneSettings,
    subset: Subset | None = None,
    allow_outside: bool = False,
) -> Loaded:
    """Items and images, with the features of a ready-made bank (``features``); those of a backbone are not there yet, (N, 0).

    With a ``subset`` only its items are read and looked up; else all. ``allow_outside``: see ``open_source``.
    """
    if features is None:
        return load_images(root, labels, items, id_pattern, backbone, subset, allow_outside)
    truth = _labels(labels)
    listed = list(truth) if truth is not None else _item_ids(items)
    source = None if root is None else _open(root, backbone, allow_outside)
    return _from_bank(features, source, truth, listed, id_pattern, subset)


def tell(notes: Sequence[str]) -> None:
    """Warn of what a user should know of the images: files that were passed over, classes named like splits."""
    for note in notes:
        logger.warning("%s", note)


def _from_bank(
    features: str,
    source: Images | None,
    truth: Mapping[str, str] | None,
    listed: list[str] | None,
    id_pattern: str | None,
    subset: Subset | None,
) -> Loaded:
    from lightning_annot.data.features import load_features

    bank = load_features(features)
    ids = listed if listed is not None else [str(i) for i in range(len(bank))]
    if len(ids) != len(bank):
        raise AnnotError(
            f"{features} has {len(bank)} rows, and data.labels or data.items names {len(ids)} items; row i is item i."
        )
    dropped: frozenset[str] = frozenset()
    rows = None
    if subset is not None:
        chosen, truth = subset.choose(ids, truth)
        rows = np.asarray(chosen)
        bank, ids, dropped = bank[rows], list(truth), frozenset(ids).difference(truth)
    source = source and _mapped(source, ids, id_pattern)
    return Loaded(tuple(ids), bank, source, truth, dropped=dropped, rows=rows)


def check_backbone(listed: Loaded, root: str | None, backbone: BackboneSettings, seed: int) -> None:
    """Raise AnnotError where the features of the items ``listed`` can be had from nowhere, whatever the images are."""
    if listed.has_features:
        return
    if backbone.name is not None:
        backbone_spec(backbone, seed)
    elif (root or DIGITS) != DIGITS:
        raise AnnotError(
            f"images of {root} need features: name a timm model as data.backbone.name (such as resnet50.a1_in1k), or give "
            "a ready-made bank as data.features."
        )


def add_features(listed: Loaded, backbone: BackboneSettings, seed: int, ranks: Ranks = ALONE) -> Loaded:
    """The items ``listed`` with features extracted by ``backbone``; digits without one have their pixels.

    Unreadable images are left out, if they may be. Several ``ranks`` share the extraction.
    """
    source, rows = listed.source, listed.rows
    if listed.has_features:
        return listed
    assert source is not None
    if backbone.name is None:
        from lightning_annot.data.sources import digits_features

        digits = digits_features()
        return replace(listed, features=digits if rows is None else digits[rows])
    found = extract_features(source, backbone, seed, ranks)
    listed = replace(
        listed,
        ids=found.ids,
        features=found.features,
        unreadable=found.unreadable,
        extraction=found.told,
        extracted=found.origin,
    )
    if not found.unreadable:
        return listed
    lost, truth = set(found.unreadable), listed.labels
    readable = [row for row, name in enumerate(source.ids) if name not in lost]
    return replace(
        listed,
        source=source.subset(readable),
        labels=None if truth is None else {name: label for name, label in truth.items() if name not in lost},
        rows=np.asarray(readable) if rows is None else rows[readable],
    )


def backbone_spec(backbone: BackboneSettings, seed: int) -> BackboneSpec:
    """The model of ``backbone``, whose name is given; AnnotError for a name, weights, options or a device that do not exist."""
    from lightning_annot.backbones.timm_features import BackboneSpec, check_options, resolve_device

    assert backbone.name is not None
    check_options(backbone.batch_size, backbone.num_workers, backbone.on_error)
    resolve_device(backbone.device)
    return BackboneSpec(backbone.name, backbone.weights, backbone.image_size, seed)


def fetch_weights(backbones: Sequence[BackboneSettings], seed: int) -> None:
    """Download the weights that are not here, and see that each backbone can be built."""
    from lightning_annot.backbones.timm_models import build_backbone

    for backbone in backbones:
        build_backbone(backbone_spec(backbone, seed))


def extract_features(source: Images, backbone: BackboneSettings, seed: int, ranks: Ranks = ALONE) -> FeatureSet:
    """Features of all images of ``source`` by ``backbone``, whose name is given; several ``ranks`` share the work."""
    from lightning_annot.backbones.timm_features import extract

    n = len(source.ids)
    spec = backbone_spec(backbone, seed)
    if 1 < ranks.size <= n:  # each hashes its part of the files; then all find all hashes in the cache
        source.subset(range(ranks.rank, n, ranks.size)).digests()
        ranks.wait()
    return extract(
        source,
        spec,
        backbone.cache_dir,
        backbone.batch_size,
        backbone.device,
        backbone.num_workers,
        on_error=backbone.on_error,  # type: ignore[arg-type]
        progress=ranks.rank == 0,
        ranks=ranks,
    )


def load_images(
    root: str | None,
    labels: str | None,
    items: str | None,
    id_pattern: str | None,
    backbone: BackboneSettings,
    subset: Subset | None = None,
    allow_outside: bool = False,
) -> Loaded:
    """Items that are images, unreadable ones among them, and no features (N, 0) yet."""
    truth = _labels(labels)
    listed = list(truth) if truth is not None else _item_ids(items)
    source = _open(root or DIGITS, backbone, allow_outside)
    source, known, dropped, chosen = _chosen(root or DIGITS, source, truth, listed, id_pattern, subset)
    rows, features = None if chosen is None else np.asarray(chosen), np.empty((len(source.ids), 0), np.float16)
    return Loaded(tuple(source.ids), features, source, known, dropped=dropped, rows=rows)


def _chosen(
    root: str,
    source: Images,
    truth: Mapping[str, str] | None,
    listed: list[str] | None,
    id_pattern: str | None,
    subset: Subset | None,
) -> tuple[Images, Mapping[str, str] | None, frozenset[str], list[int] | None]:
    """Images of the items, their truth, the ids that were left out, and the rows of the source that were not; None: all."""
    if listed is not None and (id_pattern is not None or root != DIGITS):
        source = _mapped(source, listed, id_pattern)
    truth = truth if truth is not None else source.labels
    if subset is None:
        return source, truth, frozenset(), None
    rows, kept = subset.choose(source.ids, truth)
    return source.subset(rows), kept, frozenset(source.ids).difference(kept), rows


def _open(root: str, backbone: BackboneSettings, allow_outside: bool) -> Images:
    from lightning_annot.data.sources import open_source

    return open_source(root, cache_dir=backbone.cache_dir or None, allow_outside=allow_outside)


def _mapped(source: Images, ids: list[str], id_pattern: str | None) -> Images:
    from lightning_annot.data.sources import remap_ids

    return remap_ids(source, ids, id_pattern or "%s")


def _labels(path: str | None) -> dict[str, str] | None:
    if path is None:
        return None
    from lightning_annot.annotations.formats import read_labels

    frame = read_labels(path)
    return dict(zip(frame["task"], frame["label"], strict=True))


def _item_ids(path: str | None) -> list[str] | None:
    if path is None:
        return None
    from pathlib import Path

    from lightning_annot.annotations.columns import check_names
    from lightning_annot.annotations.formats import read_table

    task = read_table(Path(path), ("task",))["task"]
    check_names(Path(path), task)
    ids: list[str] = task.tolist()
    return ids
