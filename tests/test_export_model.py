"""An exported classifier says what the module says, and its sidecar says how to ask it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_runs import call
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from lightning_annot.__main__ import main
from lightning_annot.backbones.classifier import ClassifierModule
from lightning_annot.backbones.export import load_classifier

CLASSES = ["ant", "bee", "cow"]


def onnx(path: Path) -> Callable[[Tensor], Tensor]:
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    return lambda x: torch.from_numpy(session.run(["probability"], {"x": x.numpy()})[0])


READERS: dict[str, Callable[[Path], Callable[[Tensor], Tensor]]] = {
    "torchscript": lambda path: torch.jit.load(path),
    "pt2": lambda path: torch.export.load(path).module(),
    "onnx": onnx,
}


def saved(path: Path, n_features: int | None = None, **model: Any) -> ClassifierModule:
    """A checkpoint of a classifier with random weights, and temperature 2."""
    module = ClassifierModule(**model)
    module.build(CLASSES, n_features, "random", 0)
    for network in (module.network, module.predictor):
        torch.nn.init.normal_(network.head[-1].weight, generator=torch.Generator().manual_seed(1))
    module.temperature.fill_(2.0)
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)
    return module.eval()


@pytest.mark.parametrize("form", READERS)
@pytest.mark.parametrize("backbone", [None, "test_resnet", "test_vit"])
def test_it_says_what_the_module_says(tmp_path: Path, form: str, backbone: str | None) -> None:
    pytest.importorskip("onnxscript") if form == "onnx" else None
    run = tmp_path / "run"
    module = saved(run / "checkpoints" / "last.ckpt", None if backbone else 6, backbone=backbone, image_size=backbone and 64)
    out = tmp_path / "made" / f"model.{form}"
    result = call("export-model", None, str(run), "--format", form, "--out", str(out))
    assert result.status == 0, result.err
    told = json.loads(out.with_name(out.name + ".json").read_text())
    assert told["classes"] == CLASSES
    assert told["input_size"] == ([3, 64, 64] if backbone else [6])
    assert {path.name for path in out.parent.iterdir()} == {out.name, out.name + ".json"}
    model = READERS[form](out)
    for n in (1, 5):
        x = torch.randn(n, *told["input_size"])
        with torch.no_grad():
            torch.testing.assert_close(model(x), module(x), atol=1e-5, rtol=1e-4)


def test_the_sidecar_tells_the_preprocessing(tmp_path: Path) -> None:
    """An image prepared by hand, as the sidecar says, is what the evaluation's transform makes of it."""
    from timm.data import create_transform

    module = saved(tmp_path / "last.ckpt", backbone="test_resnet", image_size=64)
    assert main(["export-model", str(tmp_path / "last.ckpt"), "--format", "torchscript", "--out", str(tmp_path / "m.pt")]) == 0
    told = json.loads((tmp_path / "m.pt.json").read_text())
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    side = int(told["input_size"][1] / told["crop_pct"])
    resized = v2.Resize(side, v2.InterpolationMode(told["interpolation"]))(image)
    cropped = v2.CenterCrop(told["input_size"][1:])(resized)
    by_hand = (torch.from_numpy(np.asarray(cropped)).permute(2, 0, 1) / 255 - torch.tensor(told["mean"])[:, None, None]) / (
        torch.tensor(told["std"])[:, None, None]
    )
    torch.testing.assert_close(create_transform(**module.preprocessing, is_training=False)(image), by_hand)
    assert f"size={side}" in told["transform"].replace("size=(", "size=")


def test_the_whole_checkpoint_is_loaded(tmp_path: Path) -> None:
    module = saved(tmp_path / "last.ckpt", 6)
    loaded = load_classifier(tmp_path / "last.ckpt")
    assert loaded.classes == CLASSES
    assert not loaded.training
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_what_is_no_classifier_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--format", "onnx", "--out", str(tmp_path / "m.onnx")]
    assert "cannot be read as a checkpoint" in call("export-model", None, str(tmp_path), *words).err
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert "holds no classifier" in call("export-model", None, str(tmp_path / "other.ckpt"), *words).err
    saved(tmp_path / "last.ckpt", 6)
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # from here on ``import onnxscript`` is an error
    result = call("export-model", None, str(tmp_path / "last.ckpt"), *words)
    assert result.status == 2
    assert "pip install 'lightning-annot[export]'" in result.err
    assert [path.name for path in tmp_path.glob("*m.onnx*")] == []
