"""Manifests of images: ids, labels, and every error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_up_images import fill, shade

from lightning_annot.data.sources import manifest_source
from lightning_annot.types import AnnotError


def test_csv_manifest(tmp_path: Path) -> None:
    fill(tmp_path, ["in/b.png", "in/a.png"])
    (tmp_path / "set.csv").write_text('\ufefftask,file_name,label\n"one",in/b.png,dog\ntwo,in/a.png,\n\n', encoding="utf-8")
    source = manifest_source(tmp_path / "set.csv")
    assert source.ids == ("one", "two")
    assert source.labels == {"one": "dog"}
    assert [shade(source, row) for row in range(2)] == [0, 1]


def test_jsonl_manifest_with_a_root(tmp_path: Path) -> None:
    fill(tmp_path / "pixels", ["a.png", "b.png"])
    records = [{"id": 7, "image": "b.png", "label": 3, "meta": [1]}, {"id": 8, "image": "a.png", "label": None}]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, records)))
    source = manifest_source(tmp_path / "set.jsonl", root=tmp_path / "pixels")
    assert (source.ids, source.labels) == (("7", "8"), {"7": "3"})
    (tmp_path / "bare.jsonl").write_text('{"path": "pixels/a.png"}')
    assert (manifest_source(tmp_path / "bare.jsonl").ids, manifest_source(tmp_path / "bare.jsonl").labels) == (
        ("pixels/a.png",),
        None,
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "", "lists no images"),
        ("m.csv", "path\n", "lists no images"),
        ("m.csv", "picture\na.png\n", r"has columns \['picture'\]; one of path, file_name, image"),
        ("m.csv", "path,label\na.png,cat\na.png", r"1 broken or cut rows \(line 3: 'a.png' has not the header's 2 cells\)"),
        ("m.csv", 'path,label\na.png,"ca', r"line 2: unexpected end of data"),
        ("m.csv", "path\na.png\ngone.png\n", r"1 of 2 files .* do not exist \(.*gone.png\)"),
        ("m.csv", "path\na.png\na.png\n", r"column 'path': 1 image ids occur more than once \(a.png\)"),
        ("m.csv", "task,path\n1,a.png\n,a.png\n", r"1 rows without a 'task' \(lines 3\)"),
        ("m.jsonl", '{"path": "a.png"}\n{"path": "a.p', r"line 2: Unterminated string"),
        ("m.jsonl", "[1]", r"line 1: '\[1\]' is no JSON object"),
        ("m.jsonl", '{"path": ["a.png"]}', "line 1: 'path' is no text"),
        ("m.jsonl", '{"picture": "a.png"}', r"has columns \['picture'\]"),
        ("m.txt", "path\na.png\n", "is no manifest"),
    ],
)
def test_manifest_errors(tmp_path: Path, name: str, text: str, message: str) -> None:
    fill(tmp_path, ["a.png"])
    (tmp_path / name).write_text(text)
    with pytest.raises(AnnotError, match=message):
        manifest_source(tmp_path / name)


def test_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(AnnotError, match="cannot be read"):
        manifest_source(tmp_path / "absent.csv")
    (tmp_path / "cut.csv").write_bytes("path\n€.png\n".encode("utf-16")[:-3])
    with pytest.raises(AnnotError, match="save it anew as UTF-8"):
        manifest_source(tmp_path / "cut.csv")
