"""Image-text models of open_clip: their image side as a backbone, their text side to score classes by name."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lightning_annot.backbones.pretrained import not_downloaded, of_open_clip
from lightning_annot.backbones.transforms import Transform
from lightning_annot.data.network import in_short, is_offline
from lightning_annot.types import AnnotError

PREFIX = "open_clip:"
"""How the names of these models begin in our settings."""


def check_image_text(name: str, weights: str) -> None:
    """Refuse a model or weights that open_clip does not know; ``weights``: a tag of its hub, a file, or random."""
    open_clip, model = _library(), name.removeprefix(PREFIX)
    known: list[str] = open_clip.list_models()
    if model not in known:
        near = get_close_matches(model, known, n=5, cutoff=0.3) or known[:5]
        raise AnnotError(f"open_clip has no model {model!r}; it has {', '.join(near)} and others (open_clip.list_models())")
    tags: list[str] = open_clip.list_pretrained_tags_by_model(model)
    if weights != "random" and weights not in tags and not Path(weights).is_file():
        raise AnnotError(
            f"weights are {weights!r}; for {name} allowed are random, the path of a checkpoint, and the tags "
            f"{', '.join(tags) or '(none)'}"
        )


def build_image_side(name: str, weights: str, image_size: int | None, seed: int) -> tuple[nn.Module, Transform]:
    """The image side in eval mode, giving embeddings (B, D), and the transform of an image to its input (3, H, W)."""
    model, transform = _create(name, weights, image_size, seed)
    return _ImageSide(model.visual).eval().requires_grad_(False), transform


def text_embeddings(
    name: str, weights: str, prompts: Sequence[str], classes: Sequence[str], seed: int = 0
) -> tuple[Tensor, float]:
    """One text embedding of unit length a class, (K, D), and the factor of its cosine with an image's: a logit.

    A class is the mean of its ``prompts``, in which ``{}`` stands for its name (Radford et al., ICML 2021, Section 3.1.4).
    """
    model, _ = _create(name, weights, None, seed)
    try:
        tokens = _library().get_tokenizer(name.removeprefix(PREFIX))
    except Exception as error:
        if not is_offline(error):
            raise
        raise not_downloaded(f"{name}'s tokenizer", error) from error
    with torch.inference_mode():
        each = [normalize(model.encode_text(tokens([text.replace("{}", name) for name in classes])), dim=1) for text in prompts]
    return normalize(torch.stack(each).mean(0), dim=1).clone(), model.logit_scale.exp().item()


class _ImageSide(nn.Module):
    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, x: Tensor) -> Tensor:
        out = self.visual(x)
        embedding: Tensor = out[0] if isinstance(out, tuple) else out  # some give their tokens as well
        return embedding


def _create(name: str, weights: str, image_size: int | None, seed: int) -> tuple[Any, Transform]:
    """The model in eval mode; random weights are drawn by ``seed``, and the global generator stays as it was."""
    tag = None if weights == "random" else weights
    if tag is not None and (known := of_open_clip(name, name.removeprefix(PREFIX), tag)) is not None:
        known.need()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model, _, transform = _library().create_model_and_transforms(
                name.removeprefix(PREFIX), pretrained=tag, force_image_size=image_size
            )
        except (OSError, RuntimeError, ValueError) as error:
            if is_offline(error):
                raise not_downloaded(name, error) from error
            raise AnnotError(
                f"{name} with weights={weights} cannot be had: {in_short(error)}; give the path of a checkpoint"
            ) from error
    return model.eval(), transform


def _library() -> Any:
    try:
        return import_module("open_clip")
    except ImportError as error:
        raise AnnotError(f"{PREFIX}MODEL needs open_clip ({error}); pip install 'lightning-annot[clip]'") from error
