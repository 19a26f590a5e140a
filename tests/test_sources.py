"""Each image source: ids, labels, pixels, digests, what survives a pickle, and every error."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from lightning_annot.data import digests as digests_module
from lightning_annot.data.digests import content_digest, file_digests
from lightning_annot.data.images import Images, to_rgb
from lightning_annot.data.sources import (
    digits_features,
    digits_source,
    folder_source,
    manifest_source,
    open_source,
    remap_ids,
    torchvision_source,
    zip_source,
)
from lightning_annot.types import AnnotError, ImageSource


def png(shade: int, size: int = 6) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (size, size), (shade, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def fill(folder: Path, names: Sequence[str]) -> Path:
    """Write image i of ``names`` in a shade of its own."""
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(shade))
    return folder


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def shade(source: ImageSource, row: int) -> int:
    image = source.open(row)
    assert image.mode == "RGB"
    return int(np.asarray(image)[0, 0, 0])


# Folders


def test_class_folders(tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", ["dog/b.png", "cat/deep/a.JPG", "cat/c.png", ".hidden/x.png", "cat/.x.png"])
    (root / "dog" / "notes.txt").write_text("no image")
    source: ImageSource = folder_source(root)
    assert source.ids == ("cat/c.png", "cat/deep/a.JPG", "dog/b.png")
    assert source.labels == {"cat/c.png": "cat", "cat/deep/a.JPG": "cat", "dog/b.png": "dog"}
    assert [shade(source, row) for row in range(3)] == [2, 1, 0]
    assert all(Path(path).is_file() for path in source.paths)


def test_flat_folder_and_a_wrapper_have_no_labels(tmp_path: Path) -> None:
    root = fill(tmp_path, ["images/2.png", "images/1.png"])
    assert folder_source(root / "images").labels is None
    wrapped = folder_source(root)
    assert wrapped.ids == ("images/1.png", "images/2.png")
    assert wrapped.labels is None


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(AnnotError, match="is no folder"):
        folder_source(tmp_path / "absent")
    with pytest.raises(AnnotError, match=r"holds no images; known extensions: .*\.webp"):
        folder_source(tmp_path)
    fill(tmp_path, ["top.png", "cat/a.png", "dog/b.png"])
    with pytest.raises(AnnotError, match=r"mixes 1 images at the top \(top.png\) with 2 class folders \(cat, dog\)"):
        folder_source(tmp_path)


def test_folder_follows_links_to_folders(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", ["a.png"])
    root = fill(tmp_path / "root", ["dog/b.png"])
    (root / "cat").symlink_to(tmp_path / "elsewhere")
    assert folder_source(root).ids == ("cat/a.png", "dog/b.png")


def test_control_characters_in_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotError, match="rename the files"):
        folder_source(fill(tmp_path, ["a\nb.png"]))


# Digests


def test_digests_follow_content_not_names(tmp_path: Path) -> None:
    root = fill(tmp_path / "a", ["0.png", "1.png"])
    before = folder_source(root).digests()
    (root / "0.png").rename(root / "2.png")
    assert folder_source(root).digests() == (before[1], before[0])
    assert len(set(before)) == 2
    assert all(len(bytes.fromhex(digest)) == 16 for digest in before)


def test_unchanged_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = fill(tmp_path / "a", [f"{i:04d}.png" for i in range(600)]), tmp_path / "cache"
    first = folder_source(root, cache).digests()
    assert first == folder_source(root).digests()

    (root / "0003.png").write_bytes(png(200, size=7))
    hashed: list[str] = []
    hash_file = digests_module._hash_file

    def recording(path: str) -> str | None:
        hashed.append(Path(path).name)
        return hash_file(path)

    monkeypatch.setattr(digests_module, "_hash_file", recording)
    second = folder_source(root, cache).digests()
    assert hashed == ["0003.png"]
    assert [row for row in range(600) if first[row] != second[row]] == [3]


def test_unreadable_files_are_never_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "later.png"
    absent = file_digests([str(path)], tmp_path)
    path.write_bytes(png(1))
    with monkeypatch.context() as patch:
        patch.setattr(digests_module, "_hash_file", lambda _: None)  # as without permission
        assert file_digests([str(path)], tmp_path) == file_digests([str(path)]) == absent
    assert file_digests([str(path)], tmp_path) == [content_digest(png(1))]


def test_a_dangling_link_is_one_unreadable_image(tmp_path: Path) -> None:
    root = fill(tmp_path / "a", ["1.png"])
    (root / "0.png").symlink_to(root / "gone")
    source = folder_source(root, tmp_path)
    assert len(set(source.digests())) == 2
    assert shade(source, 1) == 0
    with pytest.raises(OSError, match=r"0.png"):
        source.open(0)


def test_damaged_digest_cache(tmp_path: Path) -> None:
    root = fill(tmp_path / "a", ["0.png"])
    (tmp_path / "digests.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(AnnotError, match=r"digests.sqlite cannot be used .* delete the file"):
        folder_source(root, tmp_path).digests()


# Pixels


def test_broken_images_raise_oserror(tmp_path: Path) -> None:
    content = png(9, size=64)
    broken = {"a.png": b"not an image", "b.png": content[: len(content) // 2], "c.png": b""}
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
    source = folder_source(tmp_path)
    for row, name in enumerate(broken):
        with pytest.raises(OSError, match=name):
            source.open(row)


def test_to_rgb_turns_by_exif_and_keeps_16_bit_grey() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    buffer = BytesIO()
    Image.new("RGB", (8, 4)).save(buffer, "jpeg", exif=exif)
    assert to_rgb(Image.open(buffer)).size == (4, 8)
    grey = Image.fromarray(np.array([[0, 0x1234, 0xFFFF]], np.uint16))
    assert np.asarray(to_rgb(grey))[0, :, 0].tolist() == [0, 0x12, 0xFF]
    assert to_rgb(Image.new("RGBA", (2, 2))).mode == "RGB"


# Rows and ids


def test_subset_and_renamed(tmp_path: Path) -> None:
    source = folder_source(fill(tmp_path, ["cat/0.png", "cat/1.png", "dog/2.png"]))
    part = source.subset([2, 0])
    assert part.ids == ("dog/2.png", "cat/0.png")
    assert part.labels == {"dog/2.png": "dog", "cat/0.png": "cat"}
    assert [shade(part, row) for row in range(2)] == [2, 0]
    assert part.digests() == (source.digests()[2], source.digests()[0])
    again = part.subset([1]).renamed(["new"], [0])
    assert (again.ids, again.labels, shade(again, 0)) == (("new",), {"new": "cat"}, 0)


def test_ids_must_be_unique_and_present(tmp_path: Path) -> None:
    source = folder_source(fill(tmp_path, ["0.png", "1.png"]))
    with pytest.raises(AnnotError, match="1 image ids occur more than once"):
        source.subset([0, 0])
    with pytest.raises(AnnotError, match="no images"):
        source.subset([])


def test_remap_ids(tmp_path: Path) -> None:
    source = folder_source(fill(tmp_path, ["x/00000.png", "x/00001.png", "y/00012.png"]))
    mapped = remap_ids(source, ["12", "0"], "%05d.png")
    assert mapped.ids == ("12", "0")
    assert [shade(mapped, row) for row in range(2)] == [2, 0]
    assert mapped.labels == {"12": "y", "0": "x"}
    assert remap_ids(source, ["y/00012", "00001"], "%s.png").paths[0].endswith("y/00012.png")
    assert remap_ids(source, ["x/00001.png"]).labels == {"x/00001.png": "x"}


@pytest.mark.parametrize(
    ("tasks", "pattern", "message"),
    [
        (
            ["0", "7", "8"],
            "%05d.png",
            r"2 of 3 tasks have no image .*'7' -> '00007.png'.* image ids are like x/00000.png",
        ),
        (["zero"], "%05d.png", r"numbers, got 'zero'; use %s"),
        (["1"], "%s.png", r"match several images by base name \('1.png': x/1.png, y/1.png\)"),
        (["1"], "image.png", "exactly one %d or %s"),
        (["1"], "%d-%d.png", "exactly one %d or %s"),
        (["1"], "%q.png", "exactly one %d or %s"),
        (["0", "0"], "%05d.png", "occur more than once"),
    ],
)
def test_remap_errors(tmp_path: Path, tasks: list[str], pattern: str, message: str) -> None:
    source = folder_source(fill(tmp_path, ["x/00000.png", "x/1.png", "y/1.png"]))
    with pytest.raises(AnnotError, match=message):
        remap_ids(source, tasks, pattern)


# Manifests


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
        ("m.csv", "path,label\na.png,cat\na.png\n", r"1 broken or cut rows \(line 3: 1 cells, the header has 2\)"),
        ("m.csv", 'path,label\na.png,"ca', r"1 broken or cut rows \(line 2: unexpected end of data"),
        ("m.csv", "path\na.png\ngone.png\n", r"1 of 2 files .* do not exist \(.*gone.png\)"),
        ("m.csv", "path\na.png\na.png\n", r"column 'path': 1 image ids occur more than once \(a.png\)"),
        ("m.csv", "task,path\n1,a.png\n,a.png\n", r"1 rows without a 'task' \(lines 3\)"),
        ("m.jsonl", '{"path": "a.png"}\n{"path": "a.p', r"1 broken or cut rows \(line 2: "),
        ("m.jsonl", "[1]", "line 1: no JSON object"),
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
    (tmp_path / "latin.csv").write_bytes(b"path\n\xff.png\n")
    with pytest.raises(AnnotError, match="save it as UTF-8"):
        manifest_source(tmp_path / "latin.csv")


# Zip files


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
    assert results.get(timeout=20) == 3
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


# Data sets of libraries


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
    with pytest.raises(AnnotError, match=r"CIFAR10 cannot be had .*refused.*Check the split and the network"):
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


# What a root may be


def test_open_source_dispatch(tmp_path: Path) -> None:
    root = fill(tmp_path / "folder", ["a.png"])
    (tmp_path / "set.csv").write_text("path\nfolder/a.png\n")
    archive = pack(tmp_path / "a.ZIP", {"a.png": png(0)})
    assert len(open_source("digits")) == 1797
    assert open_source(str(root)).ids == ("a.png",)
    assert open_source(str(archive)).ids == ("a.png",)
    assert open_source(str(tmp_path / "set.csv"), cache_dir=tmp_path / "cache").digests() == open_source(str(root)).digests()
    assert (tmp_path / "cache" / "digests.sqlite").exists()


def test_open_source_errors(tmp_path: Path) -> None:
    with pytest.raises(
        AnnotError, match=r"'/no/where.zip' does not exist; data.root names where images come from: a folder, a .zip"
    ):
        open_source("/no/where.zip")
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(AnnotError, match="is a file of another kind"):
        open_source(str(tmp_path / "a.tar"))
