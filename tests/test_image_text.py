"""Image-text models: a small one with random weights stands for those whose weights need a hub."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import QUIET, call, fit
from PIL import Image
from torch.nn.functional import normalize

from lightning_annot.backbones.image_text import text_embeddings
from lightning_annot.backbones.timm_features import BackboneSpec, build_backbone, extract
from lightning_annot.backbones.zero_shot import class_scores
from lightning_annot.data.sources import folder_source
from lightning_annot.types import AnnotError

open_clip = pytest.importorskip("open_clip")

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
NAME = "open_clip:tiny-clip"
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture(autouse=True)
def _tiny_model(tmp_path: Path) -> None:
    path = tmp_path / "models" / "tiny-clip.json"
    path.parent.mkdir()
    path.write_text(json.dumps(TINY))
    open_clip.add_model_config(path.parent)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights in a file, as a hub would give them."""
    torch.manual_seed(3)
    model, _, _ = open_clip.create_model_and_transforms("tiny-clip")
    path = tmp_path / "tiny.pt"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Sixty images of three colours, with a little noise, in one folder a class."""
    root = tmp_path / "photos"
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for row in range(20):
            noise = np.random.default_rng(row).integers(0, 60, (32, 32, 3))
            pixels = np.clip(np.array(colour) * 0.7 + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{name}{row:02d}.png")
    return root


def test_the_image_side_is_the_model_s(weights: Path) -> None:
    model, transform = build_backbone(BackboneSpec(NAME, weights=str(weights)))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    whole, _, theirs = open_clip.create_model_and_transforms("tiny-clip", pretrained=str(weights))
    x = transform(image)[None]
    assert torch.equal(x[0], theirs(image))
    torch.testing.assert_close(model(x), whole.eval().encode_image(x))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_extraction_tells_the_size_of_its_own_inputs(photos: Path, tmp_path: Path) -> None:
    found = extract(
        folder_source(photos, tmp_path), BackboneSpec(NAME, weights="random"), tmp_path, num_workers=0, progress=False
    )
    assert (found.told["backbone"], found.told["image_size"], found.told["width"]) == (NAME, 32, 32)


def test_random_weights_are_drawn_by_the_seed() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (
        build_backbone(BackboneSpec(NAME, weights="random", seed=seed))[0].state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_scores_are_those_of_the_paper(weights: Path) -> None:
    prompts, classes = ("a photo of a {}.", "a {}"), ("red", "green", "blue")
    features = np.random.default_rng(0).normal(size=(7, 32)).astype(np.float16)
    got = class_scores(features, NAME, str(weights), prompts, classes)
    whole, _, _ = open_clip.create_model_and_transforms("tiny-clip", pretrained=str(weights))
    tokens = open_clip.get_tokenizer("tiny-clip")
    image = normalize(torch.from_numpy(features.astype(np.float32)), dim=1)
    logits = []
    with torch.inference_mode():
        for name in classes:
            each = torch.stack([whole.eval().encode_text(tokens([text.format(name)]))[0] for text in prompts])
            logits.append(whole.logit_scale.exp() * image @ normalize(normalize(each, dim=1).mean(0), dim=0))
    torch.testing.assert_close(got, torch.stack(logits, 1).log_softmax(1), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(got.exp().sum(1), torch.ones(7))


def test_an_image_text_model_is_learner_s_bank_and_machine_at_once(photos: Path, weights: Path, tmp_path: Path) -> None:
    backbone = {"name": NAME, "weights": str(weights), "cache_dir": str(tmp_path / "cache"), "num_workers": 0}
    prompts = ["a photo of a {}."]
    run = fit(
        {
            **QUIET,
            "data.root": photos,
            "data.backbone": json.dumps(backbone),
            "data.banks": json.dumps([{"machine": "words", "backbone": backbone, "prompts": prompts}]),
            "data.prototypes_per_class": 3,
            "data.projection.neighbours": 0,
            "annotation.sampling.per_round": 10,
            "trainer.max_epochs": 3,
        },
        tmp_path / "run",
    )
    assert len(list((tmp_path / "cache").glob("open_clip*"))) == 1  # both look at one bank
    machines = pd.read_csv(run / "machines.csv")
    assert machines["machine"].tolist() == ["words"]
    assert pd.read_csv(run / "rounds.csv")["accuracy"].iloc[-1] > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "open_clip:ViT-B-23"}, "no model 'ViT-B-23'; it has .*ViT-B-32"),
        ({"name": "open_clip:ViT-B-32"}, "for open_clip:ViT-B-32 allowed are random, .*laion2b_s34b_b79k"),
        ({"name": NAME, "weights": "/no/where.pt"}, r"and the tags \(none\)"),
        ({"name": NAME, "weights": "random", "image_size": 0}, "at least 1 pixel"),
    ],
)
def test_wrong_names_are_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(AnnotError, match=message):
        BackboneSpec(**arguments)  # type: ignore[arg-type]


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(AnnotError, match="cannot be had"):
        text_embeddings(NAME, str(path), ["{}"], ["a", "b"])


def test_adaptation_is_for_timm_s_models(photos: Path, tmp_path: Path) -> None:
    settings = {"data.root": photos, "data.backbone.name": NAME, "data.backbone.weights": "random", "data.adapt.epochs": 1}
    result = call("fit", {**QUIET, **settings, "annotation.output_dir": tmp_path / "run"})
    assert result.status != 0
    assert "data.adapt adapts timm's models" in result.err
