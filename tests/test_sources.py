"""Folders of images and what a root may be: ids, labels, pixels, digests, rows, and every error."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from made_up_images import fill, pack, png, shade
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from lightning_annot.data import digests as digests_module
from lightning_annot.data.decode import decode
from lightning_annot.data.digests import content_digest, file_digests
from lightning_annot.data.listing import TORCHVISION_EXTENSIONS
from lightning_annot.data.sources import folder_source, open_source, remap_ids
from lightning_annot.types import AnnotError, ImageSource

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
    assert folder_source(root, allow_outside=True).ids == ("cat/a.png", "dog/b.png")


def test_control_characters_in_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotError, match="names of images are empty or hold a control"):
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


def test_decode_turns_by_exif_and_keeps_16_bit_grey() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    buffer = BytesIO()
    Image.new("RGB", (8, 4)).save(buffer, "jpeg", exif=exif)
    assert decode(buffer.getvalue()).size == (4, 8)
    grey = Image.fromarray(np.array([[0, 0x1234, 0xFFFF]], np.uint16))
    assert np.asarray(decode(grey))[0, :, 0].tolist() == [0, 0x12, 0xFF]
    assert decode(Image.new("RGBA", (2, 2))).mode == "RGB"


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


def test_extensions_are_torchvisions() -> None:
    assert set(TORCHVISION_EXTENSIONS) == set(IMG_EXTENSIONS)
