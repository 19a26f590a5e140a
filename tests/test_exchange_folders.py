"""Labelled images as folders: a folder a class, or metadata beside the images; there and back."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from exchange_records import PLAIN, rows, saved
from PIL import Image

from lightning_annot.exchange import folders
from lightning_annot.exchange.records import Reading
from lightning_annot.types import AnnotError


def test_class_folders_there_and_back(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for name in ("a.jpg", "deep/cat/b.jpg", "c.jpg"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(images / name)
    labels = pd.DataFrame({"task": ["a.jpg", "deep/cat/b.jpg", "c.jpg"], "label": ["cat", "cat", "dog"], "confidence": 1.0})
    for copy in (False, True):
        out = tmp_path / f"out{copy}"
        folders.write_class_folders(out, labels, images, copy)
        assert (out / "cat" / "a.jpg").is_symlink() != copy
        assert (out / "dog" / "c.jpg").read_bytes() == (images / "c.jpg").read_bytes()
        found = folders.read_class_folders(out, Reading(worker="eve"))
        assert {row[:3] for row in rows(found)} == {(t, "eve", c) for t, c in zip(labels["task"], labels["label"], strict=True)}
    with pytest.raises(AnnotError, match="no empty folder"):
        folders.write_class_folders(out, labels, images)
    missing = pd.concat([labels, pd.DataFrame({"task": ["z.jpg"], "label": ["cat"]})])
    with pytest.raises(AnnotError, match=r"1 of 4 images are not below .*z.jpg.*--images"):
        folders.write_class_folders(tmp_path / "new", missing, images)
    for task, label in (("../a.jpg", "cat"), ("/a.jpg", "cat"), ("a.jpg", ".."), ("a.jpg", "x/y"), ("a.jpg", "")):
        with pytest.raises(AnnotError, match="cannot name a file"):
            folders.write_class_folders(tmp_path / "new", pd.DataFrame({"task": [task], "label": [label]}), images)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "outFalse", "outTrue"}
    with pytest.raises(AnnotError, match="no class folders"):
        folders.read_class_folders(images / "deep" / "cat", PLAIN)


def test_metadata_there_and_back(tmp_path: Path) -> None:
    labels = pd.DataFrame({"task": ["a.jpg", "ü b.jpg"], "label": ["cat", "NA"], "confidence": [0.5, 1.0]})
    folders.write_metadata(tmp_path, labels)
    first = (tmp_path / "metadata.jsonl").read_text().splitlines()[0]
    assert json.loads(first) == {"file_name": "a.jpg", "label": "cat", "confidence": 0.5}
    wanted = [("a.jpg", "folder", "cat"), ("ü b.jpg", "folder", "NA")]
    assert [row[:3] for row in rows(folders.read_metadata(tmp_path, PLAIN))] == wanted
    path = saved(tmp_path, "file_name,label\na.jpg,cat\nü b.jpg,NA\n", "metadata.csv")
    assert [row[:3] for row in rows(folders.read_metadata(path, PLAIN))] == wanted
    with pytest.raises(AnnotError, match="2 of metadata"):
        folders.read_metadata(tmp_path, PLAIN)


def test_metadata_is_what_hugging_face_reads(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    folders.write_metadata(tmp_path, pd.DataFrame({"task": ["a.jpg"], "label": ["cat"], "confidence": [0.5]}))
    found = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert found[0]["label"] == "cat"
