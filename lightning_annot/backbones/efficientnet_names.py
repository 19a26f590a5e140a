"""Weights of EfficientNet-Lite under the names of the library ``efficientnet-lite-pytorch``, for timm's models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_annot.types import AnnotError

_FIRST = "_conv_stem.weight"  # in every checkpoint of this kind, and in none of timm's
_BLOCK = re.compile(r"_blocks\.(\d+)\.(_\w+)\.(\w+)")
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_WIDENED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def to_timm_names(state: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """The state dict under timm's names where it is of this kind, else as it is.

    That library counts blocks through, timm within each stage, and a block that does not widen its input has neither an
    expanding convolution nor its norm. Both pad as TensorFlow does; timm's models that pad otherwise have weights of the
    same shapes, would take these and give other features without a word, so they are refused.
    """
    if _FIRST not in state:
        return state
    architecture = str(getattr(model, "pretrained_cfg", {}).get("architecture"))
    if not architecture.startswith("tf_efficientnet_lite"):
        raise AnnotError(
            f"its weights are those of an EfficientNet-Lite that pads as TensorFlow does, and {architecture} is none; "
            "choose timm's tf_efficientnet_lite0, or that of the size that it was saved from"
        )
    stages: Any = model.blocks
    places = [f"blocks.{stage}.{block}" for stage, blocks in enumerate(stages) for block in range(len(blocks))]
    widened = {match[1] for key in state if (match := _BLOCK.match(key)) and match[2] == "_expand_conv"}
    return {_timm_name(key, places, widened): value for key, value in state.items()}


def _timm_name(key: str, places: list[str], widened: set[str]) -> str:
    """One name; what this naming does not know stays as it is, and is told among the weights that do not fit."""
    if match := _BLOCK.fullmatch(key):
        number, layer, tensor = match.groups()
        names = _WIDENED if number in widened else _PLAIN
        if int(number) < len(places) and layer in names:
            return f"{places[int(number)]}.{names[layer]}.{tensor}"
        return key
    layer, _, tensor = key.partition(".")
    return f"{_OUTSIDE[layer]}.{tensor}" if layer in _OUTSIDE else key
