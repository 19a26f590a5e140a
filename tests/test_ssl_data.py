"""Random views are a function of seed, epoch and row; images are kept small; what cannot be batched is refused."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_images import fill
from PIL import Image

from lightning_annot.backbones.adapt_settings import AdaptSettings, ViewSettings
from lightning_annot.backbones.ssl_data import (
    EpochOrder,
    Inputs,
    KeptImages,
    ViewPairs,
    pair_loader,
    probe_loader,
    reading_processes,
)
from lightning_annot.data.sources import digits_source, folder_source
from lightning_annot.types import AnnotError

INPUTS = Inputs(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
ALL = ViewSettings(crop=0.4, flip=0.5, rotate=20, jitter=0.5, grey=0.2, blur=0.5)


def pairs(n: int = 12, seed: int = 0) -> ViewPairs:
    return ViewPairs(digits_source().subset(range(n)), ALL, INPUTS, seed)


def test_views_depend_on_seed_epoch_and_row_alone() -> None:
    views = pairs()
    one = torch.stack(views[3, 5])
    assert one.shape == (2, 3, 8, 8)
    assert not torch.equal(one[0], one[1])
    others = views.__getitems__([(3, 4), (3, 5), (4, 5)])
    assert torch.equal(torch.stack(others[1]), one)
    assert not torch.equal(torch.stack(others[2]), one)
    assert not torch.equal(torch.stack(pairs(seed=1)[3, 5]), one)


def test_views_leave_the_global_generators_alone() -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    want = torch.rand(1), np.random.random(), random.random()  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    pairs()[0, 0]
    assert (torch.rand(1), np.random.random(), random.random()) == want  # noqa: NPY002


def test_reading_processes_change_nothing() -> None:
    alone, helped = (pair_loader(pairs(), 4, workers) for workers in (0, 2))
    for loader in (alone, helped):
        loader.sampler.set_epoch(7)  # type: ignore[attr-defined]
    batches = list(alone)
    assert len(batches) == 3
    for ours, theirs in zip(batches, helped, strict=True):
        assert torch.equal(torch.stack(ours), torch.stack(theirs))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 60), world=st.integers(1, 4), epoch=st.integers(0, 5))
def test_devices_share_an_epoch(n: int, world: int, epoch: int) -> None:
    parts = []
    for rank in range(world):
        order = EpochOrder(n, 9, rank, world)
        order.set_epoch(epoch)
        parts.append([row for _, row in order])
    assert {len(part) for part in parts} == {n // world}
    seen = [row for part in parts for row in part]
    assert len(set(seen)) == len(seen) == n // world * world
    assert set(seen) <= set(range(n))


def test_order_changes_by_epoch() -> None:
    order = EpochOrder(50, 0)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert {epoch for epoch, _ in second} == {1}
    assert [row for _, row in first] != [row for _, row in second]


def test_kept_images_are_shrunk_or_opened_again() -> None:
    source = digits_source().subset(range(5))
    kept, opened = KeptImages(source, 16), KeptImages(source, 16, most_bytes=100)
    for row in range(5):
        assert kept.open(row).size == (16, 16)
        assert np.array_equal(kept.open(row), opened.open(row))
    assert np.array_equal(KeptImages(source, 500).open(0), source.open(0))


def test_shape_is_kept(tmp_path: Path) -> None:
    Image.new("RGB", (60, 30)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 3)).save(tmp_path / "b.png")
    kept = KeptImages(folder_source(tmp_path), 10)
    assert [kept.open(row).size for row in (0, 1)] == [(20, 10), (4, 3)]


@pytest.mark.parametrize("most_bytes", [0, 1 << 20])
def test_unreadable_images(tmp_path: Path, most_bytes: int) -> None:
    fill(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "b.png").write_bytes(b"broken")
    source = folder_source(tmp_path)
    kept = KeptImages(source, 8, most_bytes=most_bytes)
    plain = ViewSettings(crop=1.0, flip=0.0, jitter=0.0, grey=0.0)
    with pytest.raises(AnnotError, match=r"b\.png cannot be read .*on_error: skip"):
        ViewPairs(kept, plain, INPUTS, 0)[0, 1]
    instead = ViewPairs(kept, plain, INPUTS, 0, skip=True)
    assert torch.equal(torch.stack(instead[0, 1]), torch.stack(instead[0, 2]))  # plain red: crops are alike


def test_probe_has_readable_labelled_images(tmp_path: Path) -> None:
    fill(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "b.png").write_bytes(b"broken")
    label = torch.tensor([-1, 0, 1])
    batches = list(probe_loader(folder_source(tmp_path), label, lambda image: torch.zeros(3, 8, 8)))
    assert [part.tolist() for part in batches[0][1:]] == [[1], [2]]
    label = torch.tensor([-1, 0, -1])
    assert list(probe_loader(folder_source(tmp_path), label, lambda image: torch.zeros(3, 8, 8))) == [[]]


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(AnnotError, match="batch_size 1 given"):
        pair_loader(pairs(), 1, 0)
    with pytest.raises(AnnotError, match=r"12 images given, fewer than one batch of 8 on 2 devices; .* at most 6"):
        pair_loader(pairs(), 8, 0, world=2)
    with pytest.raises(AnnotError, match="num_workers is -1"):
        reading_processes(3, -1)
    with pytest.raises(AnnotError, match="crop must be above 0"):
        ViewSettings(crop=0.0)
    with pytest.raises(AnnotError, match="flip"):
        ViewSettings(flip=2.0)
    with pytest.raises(AnnotError, match=r"adapt\.epochs 0"):
        AdaptSettings(epochs=0)
    assert reading_processes(1797, 3) == 3
    assert reading_processes(10, None) == 0
