"""Zip files of images: labels, digests, what survives a pickle, and every error."""

from __future__ import annotations

import multiprocessing
import pickle
import zipfile
from pathlib import Path

import pytest
from made_up_images import pack, png, shade

from lightning_annot.data.images import Images
from lightning_annot.data.sources import zip_source
from lightning_annot.types import AnnotError


def test_zip_with_class_folders(tmp_path: Path) -> None:
    members = {"all/dog/1.png": png(1), "all/cat/0.png": png(0), "__MACOSX/all/._0.png": b"x", "all/readme.txt": b"x"}
    source = zip_source(pack(tmp_path / "a.zip", members))
    assert source.ids == ("all/cat/0.png", "all/dog/1.png")
    assert source.labels == {"all/cat/0.png": "cat", "all/dog/1.png": "dog"}
    assert [shade(source, row) for row in range(2)] == [0, 1]


def test_zip_digests_read_nothing_and_tell_equal_checksums_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / "a.zip", {"0.png": png(0), "1.png": png(1)})
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("the zip was read"))
    assert zip_source(path).digests() == zip_source(pack(tmp_path / "b.zip", {"x/7.png": png(0), "y/8.png": png(1)})).digests()
    monkeypatch.undo()

    monkeypatch.setattr("lightning_annot.data.archives._stamp", lambda _: (1, 1))
    source = zip_source(pack(tmp_path / "c.zip", {"0.png": png(0), "1.png": png(1), "2.png": png(0)}))
    same, other, twin = source.digests()
    assert same == twin != other


def _shade_of(source: Images, row: int, results: multiprocessing.Queue[int]) -> None:
    results.put(shade(source, row))


def test_zip_survives_pickle_and_fork(tmp_path: Path) -> None:
    source = zip_source(pack(tmp_path / "a.zip", {f"{i}.png": png(i) for i in range(4)}))
    assert shade(source, 1) == 1  # the handle is open when it is pickled and forked
    assert shade(pickle.loads(pickle.dumps(source)), 2) == 2
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[int] = context.Queue()
    child = context.Process(target=_shade_of, args=(source, 3, results))
    child.start()
    assert results.get(timeout=600) == 3
    child.join()
    assert shade(source, 0) == 0


def test_zip_errors(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", {"0.png": png(0), "1.png": png(1)})
    content = path.read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(AnnotError, match=r"cut.zip cannot be read as a zip file"):
        zip_source(tmp_path / "cut.zip")
    with pytest.raises(AnnotError, match="cannot be read"):
        zip_source(tmp_path / "absent.zip")
    with pytest.raises(AnnotError, match="holds no images"):
        zip_source(pack(tmp_path / "b.zip", {"a.txt": b"x"}))
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(content.replace(png(0), png(0)[:-20] + b"\0" * 20))
    with pytest.raises(OSError, match=r"0.png: Bad CRC-32"):
        zip_source(damaged).open(0)
