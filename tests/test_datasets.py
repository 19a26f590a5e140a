"""Data sets of libraries: torchvision's and the digits."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from made_up_images import fill
from PIL import Image
from torchvision.datasets import CIFAR10

from lightning_annot.data.sources import digits_features, digits_source, folder_source, open_source, torchvision_source
from lightning_annot.types import AnnotError


def test_torchvision_without_classes(tmp_path: Path) -> None:
    source = torchvision_source("FakeData", tmp_path, size=4, image_size=(3, 8, 8))
    assert (source.ids, source.labels) == (("0", "1", "2", "3"), None)
    assert source.open(0).size == (8, 8)
    assert len(set(source.digests())) == 4
    assert torchvision_source("FakeData", tmp_path, size=4, image_size=(3, 8, 8)).digests() == source.digests()


def test_torchvision_cifar_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.arange(3 * 3072, dtype=np.uint64).reshape(3, 3072).astype(np.uint8)
    (folder / "batch").write_bytes(pickle.dumps({"data": pixels, "labels": [1, 0, 1]}))
    (folder / "meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog"]}))
    monkeypatch.setattr(CIFAR10, "train_list", [["batch", None]])
    monkeypatch.setattr(CIFAR10, "test_list", [["batch", None]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "meta", "key": "label_names", "md5": None})
    source = open_source("torchvision:CIFAR10", split="test", download_dir=tmp_path)
    assert source.labels == {"0": "dog", "1": "cat", "2": "dog"}
    expected = pixels[1].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(np.asarray(source.open(1)), expected)
    assert source.subset([1]).digests() == (source.digests()[1],)


def test_torchvision_image_folder_keeps_paths(tmp_path: Path) -> None:
    root = fill(tmp_path, ["cat/0.png", "dog/1.png"])
    source = torchvision_source("ImageFolder", root)
    assert source.labels == {"0": "cat", "1": "dog"}
    assert source.paths[1] == str(root / "dog/1.png")
    assert source.digests() == folder_source(root).digests()


def test_torchvision_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AnnotError, match=r"no data set 'CIFAR1O'; did you mean CIFAR10"):
        torchvision_source("CIFAR1O", tmp_path)
    with pytest.raises(AnnotError, match=r"CIFAR10 has no split 'val'; allowed: train or test"):
        torchvision_source("CIFAR10", tmp_path, split="val")
    with pytest.raises(AnnotError, match=r"FakeData has no split 'test'; allowed: train"):
        torchvision_source("FakeData", tmp_path, split="test")
    with pytest.raises(AnnotError, match=r"CIFAR10 cannot be had .*Dataset not found"):
        torchvision_source("CIFAR10", tmp_path, download=False)
    with pytest.raises(AnnotError, match=r"SVHN cannot be had .*Valid values"):
        torchvision_source("SVHN", tmp_path, split="val")
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/nothing.tar.gz")
    with pytest.raises(AnnotError, match=r"CIFAR10 could not be downloaded \(no network: .*refused\); connect, or copy"):
        torchvision_source("CIFAR10", tmp_path)


def test_digits() -> None:
    source, features = digits_source(), digits_features()
    assert len(source) == 1797
    assert (source.ids[1], source.labels and source.labels["1"]) == ("1", "1")
    assert features.dtype == np.float32
    assert (features.shape, float(features.min()), float(features.max())) == ((1797, 64), 0.0, 1.0)
    small = source.open(5).resize((8, 8), Image.Resampling.BOX)
    assert np.corrcoef(np.asarray(small)[..., 0].ravel(), features[5])[0, 1] > 0.95
    assert len(set(source.digests())) > 1790
