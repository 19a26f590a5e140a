"""Which parameters learn how fast, and from when on: groups of an optimizer, and how their step sizes rise and fall."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from timm.optim import param_groups_layer_decay, param_groups_weight_decay  # type: ignore[attr-defined]
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


def adamw(head: nn.Module, backbone: nn.Module, lr: float, backbone_lr: float, layer_decay: float, decay: float) -> AdamW:
    """AdamW over both: the head with step size ``lr``, the backbone's last layers with ``lr * backbone_lr``.

    Each layer before has ``layer_decay`` times that of the next. Biases, scales and what the backbone names have no ``decay``.
    """
    skip: set[str] = getattr(backbone, "no_weight_decay", set)()
    fast = [group | {"lr": lr, "late": False} for group in param_groups_weight_decay(head, decay)]
    late: list[dict[str, Any]] = []
    if any(True for _ in backbone.parameters()):
        layers = param_groups_layer_decay(backbone, decay, no_weight_decay_list=skip, layer_decay=layer_decay)
        late = [group | {"lr": lr * backbone_lr * group["lr_scale"], "late": True} for group in layers]
    return AdamW([*fast, *late], lr=lr)


def rise_and_fall(optimizer: AdamW, begin: int, warmup: int, end: int) -> LambdaLR:
    """``step_size`` for each group of ``adamw``: the head's from the first step on, the backbone's from ``begin`` on."""
    starts = [begin if group["late"] else 0 for group in optimizer.param_groups]
    shapes: list[Callable[[int], float]] = [partial(step_size, start=start, warmup=warmup, end=end) for start in starts]
    return LambdaLR(optimizer, shapes)


def step_size(step: int, start: int, warmup: int, end: int) -> float:
    """Share of the largest: 0 before ``start``, rising for ``warmup`` steps, then falling by half a cosine to 0 at ``end``."""
    if step < start or step >= end:
        return 0.0
    rising = (step - start + 1) / warmup
    if rising < 1.0:
        return rising
    return 0.5 * (1.0 + math.cos(math.pi * (step - start - warmup + 1) / max(1, end - start - warmup + 1)))
