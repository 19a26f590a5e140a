"""What turns an image into a backbone's input."""

from __future__ import annotations

from collections.abc import Callable

from PIL.Image import Image
from torch import Tensor

Transform = Callable[[Image], Tensor]
"""An image to its input (3, H, W)."""
