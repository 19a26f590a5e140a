"""Report weights of another model as an AnnotError."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_annot.types import AnnotError


class CheckedWeights(nn.Module):
    """A base class, before LightningModule, of modules whose checkpoints users choose."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights as torch does; AnnotError where names or shapes differ."""
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            lines = [line.strip().rstrip(".") for line in str(error).splitlines()]
            raise AnnotError(
                f"the checkpoint's weights differ from this {type(self).__name__}'s: {lines[min(1, len(lines) - 1)]}. Use the "
                "configuration that the checkpoint was made with, or delete it and repeat fit, which goes on without it."
            ) from error
