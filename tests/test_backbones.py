"""Backbones and the extraction through them: parity, resume, reuse, kills, and every error."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from waiting import wait_for

from lightning_annot.backbones import timm_features
from lightning_annot.backbones.timm_features import BackboneSpec, FeatureSet, build_backbone, extract
from lightning_annot.backbones.timm_models import weights_digest
from lightning_annot.data.images import Images
from lightning_annot.data.sources import folder_source, zip_source
from lightning_annot.types import AnnotError

CIFAR = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "cifar10n" / "images.zip"
MODEL = "test_resnet.r160_in1k"
SPEC = BackboneSpec(MODEL, weights="random", image_size=32)


def photos(folder: Path, n: int) -> Path:
    """Write ``n`` images of noise, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in range(n):
        pixels = np.random.default_rng(row).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{row:03d}.png")
    return folder


class Counting:
    """A source that counts how often images are opened."""

    def __init__(self, source: Images) -> None:
        self.source = source
        self.ids, self.paths, self.labels, self.digests = source.ids, source.paths, source.labels, source.digests
        self.opened: list[str] = []

    def open(self, row: int) -> Image.Image:
        self.opened.append(self.ids[row])
        return self.source.open(row)


def run(root: Path, cache: Path, spec: BackboneSpec = SPEC, **options: Any) -> tuple[FeatureSet, list[str]]:
    """Extract a folder; the result and the ids that were opened."""
    source = Counting(folder_source(root, cache))
    settings: dict[str, Any] = {"batch_size": 4, "num_workers": 0, "progress": False} | options
    return extract(source, spec, cache, **settings), source.opened


# Backbones


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet5O"}, r"no model 'resnet5O'; did you mean resnet50"),
        ({"name": "test_resnet.other"}, r"no weights 'test_resnet.other' .*allowed: test_resnet.r160_in1k"),
        ({"name": "test_resnet", "weights": "/no/where.pth"}, r"which is no file; allowed: pretrained, random or"),
        ({"name": "test_resnet", "weights": __file__}, r"a checkpoint ends in one of .pth"),
        ({"name": "resnet10t", "weights": "random", "image_size": 0}, "at least 1 pixel"),
    ],
)
def test_spec_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(AnnotError, match=message):
        BackboneSpec(**arguments)


def test_spec_of_a_model_without_pretrained_weights() -> None:
    name = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    assert BackboneSpec(name, weights="random").name == name
    with pytest.raises(AnnotError, match=r"no pretrained weights .* give weights=random or a local checkpoint"):
        BackboneSpec(name)


def test_random_weights_follow_the_seed_and_spare_the_global_generator() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again = build_backbone(SPEC)[0], build_backbone(SPEC)[0]
    assert torch.equal(torch.get_rng_state(), before)
    other = build_backbone(BackboneSpec(MODEL, weights="random", seed=1))[0]
    assert weights_digest(first) == weights_digest(again) != weights_digest(other)
    assert not first.training


def test_weights_digest_notices_any_change() -> None:
    model = nn.BatchNorm1d(3).to(torch.bfloat16)
    before = weights_digest(model)
    assert model.num_batches_tracked is not None
    model.num_batches_tracked.add_(1)
    assert weights_digest(model) != before


@pytest.mark.parametrize("form", ["bare.pth", "wrapped.pt", "lightning.ckpt", "flat.safetensors"])
def test_local_checkpoint(tmp_path: Path, form: str) -> None:
    model: Any = timm.create_model(MODEL, num_classes=10)
    path, state = tmp_path / form, model.state_dict()
    if form == "flat.safetensors":
        save_file(state, path)
    else:
        torch.save({"bare.pth": state, "wrapped.pt": {"model": state}, "lightning.ckpt": {"state_dict": state}}[form], path)
    loaded, _ = build_backbone(BackboneSpec(MODEL, weights=str(path)))
    image = torch.rand(2, 3, 32, 32)
    model.eval().reset_classifier(0)
    with torch.inference_mode():
        assert torch.equal(loaded(image), model(image))


def test_checkpoint_errors(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save(timm.create_model("test_vit").state_dict(), path)
    spec = BackboneSpec(MODEL, weights=str(path))
    with pytest.raises(AnnotError, match=r"lacks \d+ of \d+ weights of the backbone \(conv1.* choose the backbone"):
        build_backbone(spec)
    torch.save(timm.create_model(MODEL, in_chans=1).state_dict(), path)
    with pytest.raises(AnnotError, match="size mismatch"):
        build_backbone(spec)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(AnnotError, match="cannot be loaded"):
        build_backbone(spec)


@pytest.mark.parametrize(("setting", "value"), [("HF_HUB_OFFLINE", True), ("ENDPOINT", "http://127.0.0.1:9")])
def test_pretrained_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str, value: object) -> None:
    monkeypatch.setattr(f"huggingface_hub.constants.{setting}", value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(AnnotError, match=r"could not be downloaded \(no network: .*package:lite0 .*or random") as refused:
        build_backbone(BackboneSpec("test_efficientnet.r160_in1k"))
    assert "\n" not in str(refused.value)
    assert time.monotonic() - began < 8  # the hub's client alone would try for a minute


def test_weights_in_the_hub_s_cache_need_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    weights, _ = build_backbone(BackboneSpec(MODEL, weights="random", seed=3))
    full = timm.create_model(MODEL).state_dict() | weights.state_dict()
    repository = tmp_path / f"models--timm--{MODEL}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    save_file(full, repository / "snapshots" / "abc" / "model.safetensors")
    loaded, _ = build_backbone(BackboneSpec(MODEL))
    assert weights_digest(loaded) == weights_digest(weights)


def test_image_size() -> None:
    _, transform = build_backbone(SPEC)
    assert transform(Image.new("RGB", (50, 40))).shape == (3, 32, 32)
    vit, transform = build_backbone(BackboneSpec("test_vit", weights="random", image_size=64))
    pixels = torch.stack([transform(Image.new("RGB", (50, 40)))])
    assert vit(pixels).ndim == 2
    with pytest.raises(AnnotError, match="cannot take images of 50 pixels"):
        build_backbone(BackboneSpec("mixer_s32_224", weights="random", image_size=50))


# Extraction


def test_extraction_equals_a_direct_forward_pass(tmp_path: Path) -> None:
    root = photos(tmp_path / "images", 10)
    result, _ = run(root, tmp_path / "cache")
    source = folder_source(root)
    model, transform = build_backbone(SPEC)
    with torch.inference_mode():
        direct = torch.cat([model(transform(source.open(row))[None]) for row in range(10)]).numpy()
    assert result.ids == source.ids
    assert result.features.dtype == np.float16
    assert np.allclose(result.features, direct, rtol=2e-3, atol=1e-5)


def test_nothing_is_redone(tmp_path: Path) -> None:
    root, cache = photos(tmp_path / "images", 6), tmp_path / "cache"
    first, opened = run(root, cache)
    assert len(opened) == 6
    again, opened = run(root, cache)
    assert opened == []
    assert np.array_equal(first.features, again.features)

    (root / "000.png").rename(root / "900.png")
    (root / "copy.png").write_bytes((root / "002.png").read_bytes())
    renamed, opened = run(root, cache)
    assert opened == []
    assert renamed.ids[-2:] == ("900.png", "copy.png")
    assert np.array_equal(renamed.features, first.features[[1, 2, 3, 4, 5, 0, 2]])


def test_only_the_changed_image_is_redone(tmp_path: Path) -> None:
    root, cache = photos(tmp_path / "images", 6), tmp_path / "cache"
    first, _ = run(root, cache)
    Image.new("RGB", (24, 24), "red").save(root / "003.png")
    second, opened = run(root, cache)
    assert opened == ["003.png"]
    assert (first.features != second.features).any(1).tolist() == [row == 3 for row in range(6)]


def test_other_weights_or_sizes_have_banks_of_their_own(tmp_path: Path) -> None:
    root, cache = photos(tmp_path / "images", 2), tmp_path / "cache"
    run(root, cache)
    for spec in (BackboneSpec(MODEL, "random", 32, seed=1), BackboneSpec(MODEL, "random", 64)):
        assert len(run(root, cache, spec)[1]) == 2
    assert len(list(cache.glob("*/bank.json"))) == 3


def test_features_of_other_decoding_rules_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = photos(tmp_path / "images", 2), tmp_path / "cache"
    assert len(run(root, cache)[1]) == 2
    assert not run(root, cache)[1]
    monkeypatch.setattr("lightning_annot.backbones.timm_features.DECODING", "other")
    assert len(run(root, cache)[1]) == 2


def test_unreadable_images(tmp_path: Path) -> None:
    root, cache = photos(tmp_path / "images", 12), tmp_path / "cache"
    (root / "005.png").write_bytes(b"not an image")
    (root / "006.png").write_bytes((root / "007.png").read_bytes()[:200])
    with pytest.raises(AnnotError, match=r"2 images are unreadable among the first 8 .*005.png: .*on_error=skip"):
        run(root, cache)
    skipped, opened = run(root, cache, on_error="skip")
    assert opened == [
        "005.png",
        "006.png",
        "008.png",
        "009.png",
        "010.png",
        "011.png",
    ]  # the first two batches were kept
    assert skipped.unreadable == ("005.png", "006.png")
    assert len(skipped.ids) == len(skipped.features) == 10
    photos(root, 7)
    repaired, opened = run(root, cache)
    assert opened == ["005.png", "006.png"]
    assert (len(repaired.ids), repaired.unreadable) == (12, ())


def test_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(b"")
    result, _ = run(tmp_path / "images", tmp_path / "cache", on_error="skip")
    assert (result.features.shape, result.ids, result.unreadable) == ((0, 0), (), ("0.png",))


def test_features_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Overflow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1e5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) * self.scale

    transform = build_backbone(SPEC)[1]
    monkeypatch.setattr(timm_features, "build_backbone", lambda _: (Overflow().eval(), transform))
    root = tmp_path / "images"
    root.mkdir()
    for row, colour in enumerate(["gray", "white"]):
        Image.new("RGB", (24, 24), colour).save(root / f"{row}.png")
    with pytest.raises(AnnotError, match=r"1 images are NaN, inf or beyond float16's 65504 \(1.png\)"):
        run(root, tmp_path / "cache")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "allowed: raise, skip"),
        ({"batch_size": 0}, "at least 1"),
        ({"num_workers": -1}, "0 or more"),
        ({"flush_seconds": float("nan")}, "0 or more"),
        ({"device": "gpu"}, r"device 'gpu' cannot be used here .*allowed: auto, cpu"),
    ],
)
def test_option_errors(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AnnotError, match=message):
        run(photos(tmp_path / "images", 1), tmp_path / "cache", **options)


SLOW_EXTRACTION = """
import sys, time, torch
from lightning_annot.backbones.timm_features import BackboneSpec, extract
from lightning_annot.data.sources import Images, folder_source
torch.set_num_threads(1)
open_image = Images.open
Images.open = lambda self, row: (time.sleep(0.05), open_image(self, row))[1]
spec = BackboneSpec({model!r}, weights="random", image_size=32)
extract(folder_source({root!r}), spec, {cache!r}, batch_size=2, num_workers=0, flush_seconds=0.0, progress=False)
"""


def test_extraction_goes_on_after_kill_9(tmp_path: Path) -> None:
    root, cache = photos(tmp_path / "images", 200), tmp_path / "cache"
    script = SLOW_EXTRACTION.format(model=MODEL, root=str(root), cache=str(cache))
    project = Path(__file__).resolve().parents[1]
    child = subprocess.Popen([sys.executable, "-c", script], cwd=project)
    try:
        wait_for(
            lambda: any(path.stat().st_size >= 10 * 16 for path in cache.glob("*/digests.bin")), lambda: child.poll() is None
        )
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    resumed, opened = run(root, cache)
    assert 0 < len(opened) <= 190
    fresh, _ = run(root, tmp_path / "fresh")
    assert np.allclose(resumed.features, fresh.features, rtol=2e-3, atol=1e-5)  # batches differ, so the last bit may


def test_real_photographs_with_reading_processes(tmp_path: Path) -> None:
    if not CIFAR.is_file():
        pytest.skip(f"real images are absent: {CIFAR}")
    source = zip_source(CIFAR).subset(range(64))
    result = extract(source, SPEC, tmp_path, batch_size=16, num_workers=2, progress=True)
    alone = extract(source, SPEC, tmp_path / "other", batch_size=16, num_workers=0, progress=False)
    assert result.features.shape == (64, 96)
    assert np.array_equal(result.features, alone.features)
    assert len(np.unique(result.features.round(3), axis=0)) > 60
