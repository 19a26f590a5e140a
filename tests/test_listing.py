"""What is found below a root: what is passed over, names of all kinds, zips of all makers, and what leads out of it."""

from __future__ import annotations

import logging
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from made_up_images import fill, pack, png, shade

from lightning_annot.backbones.classifier_data import ClassifierDataModule
from lightning_annot.data.archives import zip_source
from lightning_annot.data.items import build_items
from lightning_annot.data.manifest import manifest_source
from lightning_annot.data.page_task import ImageSettings
from lightning_annot.data.sources import folder_source, open_source, remap_ids
from lightning_annot.exchange.folders import write_class_folders
from lightning_annot.types import AnnotError

NFC, NFD = (unicodedata.normalize(form, "Müsli Café.png") for form in ("NFC", "NFD"))
SETTINGS = {"prototypes_per_class": 10, "n_folds": 2, "seed": 0}

# Passed over


def test_what_is_passed_over_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = fill(tmp_path / "pets", ["cat/a.png", "dog/b.png", "dog/.hidden.png", "dog/Thumbs.db"])
    for name in ("cat/c.jpg_large", "cat/d.jpg_large", "dog/e", "dog/f.TXT", ".x/g.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(png(1))
    for name in ("bird", "fish/deep", "cat/empty"):
        (root / name).mkdir(parents=True)
    wanted = {".jpg_large": 2, "folders without images": 2, "without extension": 1, ".txt": 1}
    source = folder_source(root)
    assert source.passed_over == wanted
    assert source.subset([0]).passed_over == wanted
    said = f"{root}: passed over 4 files: 2 .jpg_large, 1 without extension, 1 .txt and 2 folders without images (bird, fish)"
    assert list(source.notes) == [said]
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, path.relative_to(root))
    assert open_source(str(tmp_path / "pets.zip")).passed_over == wanted
    with caplog.at_level(logging.WARNING):
        ClassifierDataModule(root=str(root)).setup("predict")
    assert caplog.messages == [said]


def test_a_class_whose_images_are_all_passed_over_is_named(tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", ["cat/a.png"])
    (root / "dog").mkdir()
    (root / "dog" / "b.jpg_large").write_bytes(png(1))
    assert "1 folders without images (dog)" in folder_source(root).notes[0]
    (root / "cat" / "a.png").unlink()
    with pytest.raises(AnnotError, match=r"holds no images, but 1 files: 1 .jpg_large; known extensions"):
        folder_source(root)


def test_heic_without_its_library(tmp_path: Path) -> None:
    fill(tmp_path, ["a.heic", "b.HEIC", "c.png"])
    (tmp_path / "set.csv").write_text("path\na.heic\n")
    code = f"""
import sys
sys.modules["pillow_heif"] = None  # as where it is not installed
from lightning_annot.data.sources import open_source
print(*open_source({str(tmp_path)!r}).notes)
open({str(tmp_path / "a.heic")!r}, "wb").write(b"\\0\\0\\0\\x18ftypheic\\0\\0\\0\\0mif1heic" + bytes(99))
try:
    open_source({str(tmp_path / "set.csv")!r}).open(0)
except OSError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "passed over 3 files: 2 .heic (pip install 'lightning-annot[heif]'), 1 .csv" in found
    assert "a.heic: no image that Pillow knows (pip install 'lightning-annot[heif]' reads HEIC)" in found


@pytest.mark.parametrize("names", [("train", "test"), ("Val", "cat"), ("validation", "training")])
def test_classes_named_like_splits_earn_a_warning(tmp_path: Path, names: tuple[str, ...]) -> None:
    files = [f"{name}/{i}.png" for name in names for i in range(2)]
    fill(tmp_path / "set", files)
    splits = ", ".join(name for name in sorted(names) if name != "cat")
    (tmp_path / "set.csv").write_text("path,label\n" + "".join(f"set/{name},{name.split('/')[0]}\n" for name in files))
    pack(tmp_path / "set.zip", {name: png(1) for name in files})
    for place in ("set", "set.zip", "set.csv"):
        (note,) = open_source(str(tmp_path / place)).notes
        assert f"{splits} count as classes here, but are named like splits of a data set" in note
    assert not folder_source(fill(tmp_path / "other", ["trains/a.png", "tests/b.png"])).notes


def test_torchvision_trees_are_looked_at_too(tmp_path: Path) -> None:
    fill(tmp_path / "root", ["train/a.png", "val/b.png"])
    from lightning_annot.data.datasets import torchvision_source

    (note,) = torchvision_source("ImageFolder", tmp_path / "root").notes
    assert "train, val count as classes" in note
    fill(tmp_path / "elsewhere", ["a.png"])
    (tmp_path / "root" / "val" / "c.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    with pytest.raises(AnnotError, match=r"data\.allow_outside"):
        torchvision_source("ImageFolder", tmp_path / "root")


# Names


def test_names_that_file_systems_have(tmp_path: Path) -> None:
    names = [
        "Screenshot 2024-01-01 at 9.41.00\u202fAM.png",
        "a\u00a0b.png",
        "\U0001f469\u200d\U0001f52c.png",
        "日本.png",
        "\ue000.png",
    ]
    source = folder_source(fill(tmp_path, names))
    assert set(source.ids) == set(names)
    for bad in ("a\x07b.png", "a\u2028b.png", "a\nb.png", "a\udcffb.png"):
        with pytest.raises(AnnotError, match="names of images are empty or hold a control"):
            folder_source(fill(tmp_path / str(ord(bad[1])), [bad]))


def test_white_space_around_names_is_no_part_of_them(tmp_path: Path) -> None:
    root = fill(tmp_path / "a", [" a.png", "b.png ", "c\u00a0d.png"])
    source = folder_source(root)
    assert source.ids == ("a.png", "b.png", "c\u00a0d.png")
    assert [Path(path).name for path in source.paths] == [" a.png", "b.png ", "c\u00a0d.png"]
    assert [shade(source, row) for row in range(3)] == [0, 1, 2]
    source = folder_source(fill(tmp_path / "b", ["cat /1.png", "cat/2.png", "dog/ 3.png"]))
    assert source.labels == {"cat/1.png": "cat", "cat/2.png": "cat", "dog/3.png": "dog"}
    with pytest.raises(AnnotError, match=r"'cat /1.png' and 'cat/1.png'|'cat/1.png' and 'cat /1.png'"):
        folder_source(fill(tmp_path / "c", ["cat /1.png", "cat/1.png", "dog/1.png"]))
    (tmp_path / "set.csv").write_text("path,task,label\na/ a.png, x ,cat \na/b.png , y,dog\n")
    source = manifest_source(tmp_path / "set.csv")
    assert (source.ids, source.labels) == (("x", "y"), {"x": "cat", "y": "dog"})
    (tmp_path / "set.csv").write_text("path,task\na/ a.png,x\na/b.png ,x \n")
    with pytest.raises(AnnotError, match=r"occur more than once \(x\)"):
        manifest_source(tmp_path / "set.csv")


@pytest.mark.parametrize(("on_disk", "written"), [(NFC, NFD), (NFD, NFC)])
def test_unicode_forms_match_wherever_two_sources_meet(tmp_path: Path, on_disk: str, written: str) -> None:
    class_on_disk, class_written = on_disk.removesuffix(".png"), written.removesuffix(".png")
    root = fill(tmp_path / "set", [f"{class_on_disk}/{on_disk}", f"{class_on_disk}/b.png", "dog/c.png", "dog/d.png"])
    source = folder_source(root)
    assert source.labels is not None

    for task in (f"{class_written}/{written}", written):
        mapped = remap_ids(source, [task])
        assert mapped.ids == (task,)
        assert shade(mapped, 0) == 0
    assert shade(remap_ids(source, [f"{class_written}/{written.removesuffix('.png')}"], "%s.png"), 0) == 0

    (tmp_path / "set.csv").write_text(f"path\nset/{class_written}/{written}\n", encoding="utf-8")
    assert shade(manifest_source(tmp_path / "set.csv"), 0) == 0

    prototypes = {f"{class_written}/{written}": class_written, "dog/c.png": "dog"}
    for classes in ([class_written, "dog"], [class_on_disk, "dog"], None):
        table = build_items(source.ids, classes, source.labels, prototypes, **SETTINGS)  # type: ignore[arg-type]
        assert len(table.classes) == 2
        assert table.is_prototype.sum() == 2
        assert table.truth is not None
        assert (table.truth[table.is_prototype] == table.prototype[table.is_prototype]).all()
    with pytest.raises(AnnotError, match="in different spellings"):
        build_items(source.ids, None, source.labels, {**prototypes, f"{class_on_disk}/{on_disk}": class_on_disk}, **SETTINGS)  # type: ignore[arg-type]

    images = ImageSettings(str(root), items=str(tmp_path / "items.csv"))
    pd.DataFrame({"task": [f"{class_written}/{written}", "dog/d.png"]}).to_csv(tmp_path / "items.csv", index=False)
    assert images.open().ids == (f"{class_written}/{written}", "dog/d.png")

    labels = pd.DataFrame({"task": [f"{class_written}/{written}"], "label": ["cat"]})
    write_class_folders(tmp_path / "out", labels, root, copy=True)
    assert (tmp_path / "out" / "cat" / class_written / written).read_bytes() == png(0)


def test_both_forms_side_by_side_stay_two_images_of_one_class(tmp_path: Path) -> None:
    names = [f"{NFC[:-4]}/1.png", f"{NFD[:-4]}/2.png", "dog/3.png", f"dog/{NFC}", f"dog/{NFD}"]
    source = folder_source(fill(tmp_path, names))
    assert len(source) == 5
    assert source.labels is not None
    assert len({*source.labels.values()}) == 2
    assert [shade(remap_ids(source, [name]), 0) for name in names] == [0, 1, 2, 3, 4]


# Zips


def test_zips_of_windows_and_macos(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in (("cat\\", b""), ("cat\\1.png", png(1)), ("dog\\deep\\2.png", png(2))):
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = name, 0
            archive.writestr(info, content)
    source = zip_source(tmp_path / "a.zip")
    assert source.labels == {"cat/1.png": "cat", "dog/deep/2.png": "dog"}
    assert [shade(source, row) for row in range(2)] == [1, 2]
    assert not source.passed_over
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("cat/1.png", png(3))
    with pytest.raises(AnnotError, match=r"'cat/1.png' and 'cat\\\\1.png'"):
        zip_source(tmp_path / "a.zip")

    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as archive:
        archive.writestr(Unflagged("é/ü.png"), png(1))
        archive.writestr(Unflagged("dog/2.png"), png(2))
    source = zip_source(tmp_path / "mac.zip")
    assert source.labels == {"é/ü.png": "é", "dog/2.png": "dog"}
    assert shade(source, source.ids.index("é/ü.png")) == 1


class Unflagged(zipfile.ZipInfo):
    """A member whose name is UTF-8 and does not say so, as macOS writes it."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.filename.encode(), self.flag_bits
