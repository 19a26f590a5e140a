"""Images outside the root: links, absolute paths and ``..`` are refused everywhere unless they are allowed."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from made_up_images import fill, pack, png, shade

from lightning_annot.__main__ import main
from lightning_annot.backbones.classifier_data import ClassifierDataModule
from lightning_annot.data.archives import zip_source
from lightning_annot.data.loading import BackboneSettings, add_features, list_items
from lightning_annot.data.manifest import manifest_source
from lightning_annot.data.page_task import ImageSettings
from lightning_annot.data.soft_labels import SoftLabels
from lightning_annot.data.sources import folder_source, open_source
from lightning_annot.exchange.folders import read_class_folders, write_class_folders
from lightning_annot.exchange.records import Reading
from lightning_annot.types import AnnotError

NFC, NFD = (unicodedata.normalize(form, "Müsli Café.png") for form in ("NFC", "NFD"))
SETTINGS = {"prototypes_per_class": 10, "n_folds": 2, "seed": 0}


def test_links_out_of_a_folder(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", ["deep/a.png", "b.png"])
    root = fill(tmp_path / "set", ["cat/1.png", "dog/2.png"])
    (root / "dog" / "inside.png").symlink_to("../cat/1.png")
    (root / "dog" / "round").symlink_to("..")  # a circle
    assert folder_source(root).ids == ("cat/1.png", "dog/2.png", "dog/inside.png")
    for link, target in (("cat/x.png", "b.png"), ("bird", "deep")):
        (root / link).symlink_to(tmp_path / "elsewhere" / target)
        with pytest.raises(AnnotError, match=rf"1 images lie outside {root} \({link}.*data.allow_outside"):
            folder_source(root)
        assert len(folder_source(root, allow_outside=True)) == 4
        (root / link).unlink()
    linked = tmp_path / "link"
    linked.symlink_to(root)
    assert len(folder_source(linked)) == 3  # the root itself may be a link


def test_manifests_and_zips_that_lead_out(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", ["a.png"])
    root = fill(tmp_path / "set", ["1.png", "deep/2.png"])
    manifest = root / "set.csv"
    manifest.write_text("path\ndeep/../1.png\n")
    assert len(manifest_source(manifest)) == 1
    (root / "link").symlink_to(tmp_path / "elsewhere")
    for path in ("../elsewhere/a.png", str(tmp_path / "elsewhere" / "a.png"), "link/a.png", "..\\elsewhere\\a.png"):
        manifest.write_text(f"path\n{path}\n")
        with pytest.raises(AnnotError, match=r"lie outside .*set \(.*a.png\), by links, absolute paths or '..'"):
            open_source(str(manifest))
        assert shade(open_source(str(manifest), allow_outside=True), 0) == 0
    for name in ("../a.png", "/a.png", "C:/a.png", "..\\a.png", "x/../../a.png"):
        pack(tmp_path / "a.zip", {name: png(7)})
        with pytest.raises(AnnotError, match=r"1 images lie outside .*a.zip"):
            zip_source(tmp_path / "a.zip")
        assert shade(zip_source(tmp_path / "a.zip", allow_outside=True), 0) == 7


def test_every_part_that_opens_images_obeys(tmp_path: Path) -> None:
    fill(tmp_path / "photos", ["a.png", "b.png"])
    labels = pd.DataFrame({"task": ["a.png", "b.png"], "label": ["cat", "dog"]})
    out = tmp_path / "out"
    write_class_folders(out, labels, tmp_path / "photos")
    refused = [
        lambda allow: ImageSettings(str(out), allow_outside=allow).open(),
        lambda allow: ClassifierDataModule(root=str(out), allow_outside=allow).setup("predict"),
        lambda allow: add_features(
            list_items(str(out), None, None, None, None, random(tmp_path), allow_outside=allow), random(tmp_path), 0
        ),
    ]
    for opening in refused:
        with pytest.raises(AnnotError, match=r"data\.allow_outside"):
            opening(False)
        opening(True)
    study = [
        "study",
        str(tmp_path / "study"),
        "--root",
        str(out),
        "--prototypes",
        str(tmp_path / "labels.csv"),
        "--examples",
        "0",
    ]
    labels.to_csv(tmp_path / "labels.csv", index=False)
    assert main(study) == 2
    assert main([*study, "--allow-outside"]) == 0
    found = read_class_folders(out, Reading())
    assert sorted(found.answers["task"]) == ["a.png", "b.png"]  # labels alone are read


def test_images_of_soft_labels(tmp_path: Path) -> None:
    fill(tmp_path, ["secret.png", f"photos/{NFD}"])
    (tmp_path / "photos" / "link.png").symlink_to(tmp_path / "secret.png")
    labels = {NFC: "cat", "../secret.png": "cat", "link.png": "dog"}
    pd.DataFrame({"task": list(labels), "label": list(labels.values())}).to_csv(tmp_path / "labels.csv", index=False)
    found = SoftLabels(tmp_path / "labels.csv", tmp_path / "photos")
    assert found[0][0].getpixel((0, 0)) == (1, 0, 0)
    for row in (1, 2):
        with pytest.raises(AnnotError, match=r"allow_outside"):
            found[row]
        assert SoftLabels(tmp_path / "labels.csv", tmp_path / "photos", allow_outside=True)[row][0].getpixel((0, 0)) == (
            0,
            0,
            0,
        )


def random(tmp_path: Path) -> BackboneSettings:
    return BackboneSettings("resnet10t", "random", 32, device="cpu", cache_dir=str(tmp_path / "cache"))
