"""Frozen feature extractors, timm's above all: which model, which weights, which transform."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models import load_checkpoint
from torch import nn

from lightning_annot.backbones import small_resnet  # noqa: F401  timm knows it from here on
from lightning_annot.backbones.adapted import backbone_weights
from lightning_annot.backbones.efficientnet_names import to_timm_names
from lightning_annot.backbones.image_text import PREFIX, build_image_side, check_image_text
from lightning_annot.backbones.pretrained import not_downloaded, of_timm
from lightning_annot.backbones.transforms import Transform
from lightning_annot.backbones.weight_files import checkpoint_path
from lightning_annot.data.images import first_few
from lightning_annot.data.network import in_short, is_offline
from lightning_annot.types import AnnotError


@dataclass(frozen=True)
class BackboneSpec:
    """Which timm model, or image side of an ``open_clip:MODEL``, turns images into features.

    ``weights`` is ``"pretrained"``, ``"random"`` (drawn by ``seed``), the path of a local checkpoint, or ``"package:NAME"``
    for a checkpoint that an installed package holds (``weight_files.py``).
    Those of open_clip have tags too. ``image_size`` is the side of the square input in
    pixels; by default what the model was trained with.
    """

    name: str
    weights: str = "pretrained"
    image_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise AnnotError(f"image_size is {self.image_size}; it must be at least 1 pixel, or null for the model's own")
        if self.name.startswith(PREFIX):
            check_image_text(self.name, self.weights)
        else:
            self._check_timm()

    def _check_timm(self) -> None:
        if not timm.is_model(self.name):
            near = get_close_matches(self.name, timm.list_models(), n=5, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them"
            raise AnnotError(f"timm has no model {self.name!r}; {hint}")
        tags = timm.list_pretrained(f"{self.name.partition('.')[0]}.*")
        if "." in self.name and self.name not in tags:
            allowed = ", ".join(tags) or "none"
            raise AnnotError(f"timm has no weights {self.name!r} for this model; allowed: {allowed}")
        if self.weights == "pretrained" and not timm.is_model_pretrained(self.name):
            raise AnnotError(f"timm has no pretrained weights for {self.name!r}; give weights=random or a local checkpoint")
        if self.weights not in ("pretrained", "random"):
            checkpoint_path(self.weights)  # refused here rather than after the images were looked through


def build_backbone(spec: BackboneSpec) -> tuple[nn.Module, Transform]:
    """The model in eval mode, giving pooled features (B, D), and the transform of an image to its input (3, H, W)."""
    if spec.name.startswith(PREFIX):
        return build_image_side(spec.name, spec.weights, spec.image_size, spec.seed)
    model = _create(spec)
    if spec.weights not in ("pretrained", "random"):
        load_weights(model, spec.weights)
    data_config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    if spec.image_size is not None:
        size = (spec.image_size, spec.image_size)
        _resize_input(model, spec.name, size)
        data_config["input_size"] = (data_config["input_size"][0], *size)
    return model.eval().requires_grad_(False), create_transform(**data_config, is_training=False)


def weights_digest(model: nn.Module) -> str:
    """Digest of every parameter and buffer, so that any change of the weights is noticed."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _create(spec: BackboneSpec) -> nn.Module:
    """The model with pretrained weights, or random ones drawn by the seed; leaves the global generator as it was."""
    pretrained, overlay = spec.weights == "pretrained", None
    if pretrained:
        weights = of_timm(spec.name)
        copy = weights.need()
        overlay = {"file": copy} if copy is not None and weights.is_plain else None  # asks the hub nothing
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        try:
            return timm.create_model(spec.name, pretrained=pretrained, pretrained_cfg_overlay=overlay, num_classes=0)
        except Exception as error:
            if pretrained and is_offline(error):
                raise not_downloaded(spec.name, error) from error
            if not isinstance(error, OSError | RuntimeError):
                raise
            raise AnnotError(
                f"timm's {spec.name} with weights={spec.weights} cannot be had: {in_short(error)}; give the path of a local "
                "checkpoint as weights, or weights=random"
            ) from error


def load_weights(model: nn.Module, weights: str) -> None:
    """Load the state dict of a file or package, bare or below ``state_dict`` or ``model``; what the model lacks is left out.
    Names that EfficientNet-Lite has elsewhere become timm's.

    A checkpoint that lacks any weight of the backbone is refused: layers left random would give features that look
    right.
    """
    path = checkpoint_path(weights)
    try:
        result = load_checkpoint(
            model, path, strict=False, filter_fn=lambda state, model: to_timm_names(backbone_weights(state, model), model)
        )
    except Exception as error:  # each checkpoint format raises errors of its own kind
        raise AnnotError(f"the checkpoint {path} cannot be loaded into the backbone: {_in_short(error)}") from error
    absent = [key for key in result.missing_keys if not key.endswith("num_batches_tracked")]
    if absent:
        raise AnnotError(
            f"the checkpoint {path} lacks {len(absent)} of {len(model.state_dict())} weights of the backbone "
            f"({first_few(absent)}) and has {first_few(result.unexpected_keys) or 'no others'} instead; "
            "choose the backbone that it was saved from"
        )


def _in_short(error: Exception) -> str:
    """What happened; of the hundreds of lines that torch writes about weights of other shapes, the first."""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines()]
    if len(lines) < 2:
        return str(error)
    return f"{lines[1]} (1 of {len(lines) - 1} that differ); choose the backbone that it was saved from"


def _resize_input(model: Any, name: str, size: tuple[int, int]) -> None:
    """Tell models with a fixed input (most transformers) their new size; convolutional ones need nothing."""
    try:
        if hasattr(model, "set_input_size"):
            model.set_input_size(img_size=size)
        elif model.pretrained_cfg.get("fixed_input_size") and size != tuple(model.pretrained_cfg["input_size"][1:]):
            raise ValueError("its input has a fixed size")
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise AnnotError(
            f"timm's {name} cannot take images of {size[0]} pixels ({error}); "
            "leave image_size out, or choose a multiple of its patch"
        ) from error
