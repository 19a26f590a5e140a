"""From the settings of a data module to ids, images and raw features; the only place that knows which source wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_annot.data.ranks import ALONE, Ranks
from lightning_annot.names import KnownNames
from lightning_annot.types import AnnotError

if TYPE_CHECKING:
    from lightning_annot.backbones.timm_features import FeatureSet
    from lightning_annot.data.classes import Subset
    from lightning_annot.data.images import Images

DIGITS = "digits"


@dataclass(frozen=True)
class BackboneSettings:
    """A timm model by ``name``; ``weights``: pretrained, random, the path of a local checkpoint, or package:NAME for those of
    an installed package. ``image_size``: None for the model's own. ``device``: auto, cpu, cuda, ... ``on_error``: raise, or
    skip unreadable images (named and counted).
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
    ``extraction`` says what a backbone did, where one did anything.
    """

    ids: tuple[str, ...]
    features: np.ndarray
    source: Images | None
    labels: Mapping[str, str] | None
    unreadable: tuple[str, ...] = ()
    dropped: frozenset[str] = frozenset()
    rows: NDArray[np.int64] | None = None
    extraction: Mapping[str, str | int | float] | None = None

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


def load_items(
    root: str | None,
    features: str | None,
    labels: str | None,
    items: str | None,
    id_pattern: str | None,
    backbone: BackboneSettings,
    seed: int = 0,
    subset: Subset | None = None,
    ranks: Ranks = ALONE,
) -> Loaded:
    """Features from a ready-made bank (``features``), or extracted from the images under ``root``; digits use their pixels.

    With a ``subset`` only its items are read, looked up and extracted; else all. Several ``ranks`` share the extraction.
    """
    truth = _labels(labels)
    listed = list(truth) if truth is not None else _item_ids(items)
    if features is not None:
        return _from_bank(features, root, truth, listed, id_pattern, backbone, subset)
    return _from_images(root or DIGITS, truth, listed, id_pattern, backbone, seed, subset, ranks)


def _from_bank(
    features: str,
    root: str | None,
    truth: Mapping[str, str] | None,
    listed: list[str] | None,
    id_pattern: str | None,
    backbone: BackboneSettings,
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
    source = None if root is None else _mapped(_open(root, backbone), ids, id_pattern)
    return Loaded(tuple(ids), bank, source, truth, dropped=dropped, rows=rows)


def _from_images(
    root: str,
    truth: Mapping[str, str] | None,
    listed: list[str] | None,
    id_pattern: str | None,
    backbone: BackboneSettings,
    seed: int,
    subset: Subset | None,
    ranks: Ranks,
) -> Loaded:
    source, truth, dropped, chosen = _chosen(root, truth, listed, id_pattern, backbone, subset)
    rows = None if chosen is None else np.asarray(chosen)
    if backbone.name is None:
        if root != DIGITS:
            raise AnnotError(
                f"images of {root} need features: name a timm model as data.backbone.name (such as resnet50.a1_in1k), or give "
                "a ready-made bank as data.features."
            )
        from lightning_annot.data.sources import digits_features

        digits = digits_features()
        return Loaded(tuple(source.ids), digits if rows is None else digits[rows], source, truth, (), dropped, rows)
    found = extract_features(source, backbone, seed, ranks)
    if found.unreadable:
        lost = set(found.unreadable)
        readable = [row for row, name in enumerate(source.ids) if name not in lost]
        rows = np.asarray(readable) if rows is None else rows[readable]
        source = source.subset(readable)
        truth = None if truth is None else {name: label for name, label in truth.items() if name not in lost}
    return Loaded(found.ids, found.features, source, truth, found.unreadable, dropped, rows, found.told)


def extract_features(source: Images, backbone: BackboneSettings, seed: int, ranks: Ranks = ALONE) -> FeatureSet:
    """Features of all images of ``source`` by ``backbone``, whose name is given; several ``ranks`` share the work."""
    from lightning_annot.backbones.timm_features import BackboneSpec, extract

    assert backbone.name is not None
    n = len(source.ids)
    spec = BackboneSpec(backbone.name, backbone.weights, backbone.image_size, seed)
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
) -> Loaded:
    """What ``load_items`` finds, unreadable images among it, and no features (N, 0) yet."""
    truth = _labels(labels)
    listed = list(truth) if truth is not None else _item_ids(items)
    source, known, dropped, _ = _chosen(root or DIGITS, truth, listed, id_pattern, backbone, subset)
    return Loaded(tuple(source.ids), np.empty((len(source.ids), 0), np.float16), source, known, dropped=dropped)


def _chosen(
    root: str,
    truth: Mapping[str, str] | None,
    listed: list[str] | None,
    id_pattern: str | None,
    backbone: BackboneSettings,
    subset: Subset | None,
) -> tuple[Images, Mapping[str, str] | None, frozenset[str], list[int] | None]:
    """Images of the items, their truth, the ids that were left out, and the rows of the source that were not; None: all."""
    source = _open(root, backbone)
    if listed is not None and (id_pattern is not None or root != DIGITS):
        source = _mapped(source, listed, id_pattern)
    truth = truth if truth is not None else source.labels
    if subset is None:
        return source, truth, frozenset(), None
    rows, kept = subset.choose(source.ids, truth)
    return source.subset(rows), kept, frozenset(source.ids).difference(kept), rows


def _open(root: str, backbone: BackboneSettings) -> Images:
    from lightning_annot.data.sources import open_source

    return open_source(root, cache_dir=backbone.cache_dir)


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
