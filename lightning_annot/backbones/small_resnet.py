"""A small residual network for small images, known to timm by the name ``small_resnet``.

timm's own ResNets halve the image three times before their first block is done: 32 pixels are 8 by then. This one is timm's
``ByobNet`` with a 3x3 stem, basic blocks and no pooling in front: 307,360 parameters, 128 features, from 8 pixels on.
"""

from __future__ import annotations

from typing import Any

from timm.models import register_model
from timm.models._builder import build_model_with_cfg
from timm.models._registry import generate_default_cfgs
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

__all__ = ["small_resnet"]

default_cfgs = generate_default_cfgs(
    {
        "small_resnet": {
            "url": "",
            "num_classes": 0,
            "input_size": (3, 32, 32),
            "pool_size": (4, 4),
            "crop_pct": 1.0,  # the edge of a small image is part of it
            "interpolation": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "stem.conv",
            "classifier": "head.fc",
        }
    }
)


@register_model
def small_resnet(pretrained: bool = False, **kwargs: Any) -> ByobNet:
    """Stem of 32 channels at half the size, then one basic block each of 32, 64 and 128 channels, halving twice."""
    blocks = tuple(ByoBlockCfg(type="basic", d=1, c=width, s=stride, gs=0) for width, stride in ((32, 1), (64, 2), (128, 2)))
    config = ByoModelCfg(blocks=blocks, stem_chs=32, stem_type="3x3", stem_pool="")
    model: ByobNet = build_model_with_cfg(
        ByobNet, "small_resnet", pretrained, model_cfg=config, feature_cfg={"flatten_sequential": True}, **kwargs
    )
    return model
