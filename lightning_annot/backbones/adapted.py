"""The backbone's weights in the checkpoint of a LightningModule that holds it."""

from __future__ import annotations

from typing import Any

from torch import nn

PREFIX = "backbone."


def backbone_weights(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """What ``state`` has below ``backbone.``, where a LightningModule keeps its backbone; a bare state as it is."""
    inner = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    return inner if inner and not any(name.startswith(PREFIX) for name in model.state_dict()) else state
