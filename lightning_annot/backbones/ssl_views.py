"""Random views of images: what has a shape image by image (PIL), colours of a whole batch at once (torch).

It is SimCLR's transform (Chen et al., ICML 2020, Appendix A) at the rates of ``lightly``'s, in a third of its time for images
of 32 pixels, where nearly all of the time goes into calls. Colours change in one order: light, contrast, saturation, hue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from lightning_annot.backbones.adapt_settings import ViewSettings

DRAWS = 14
"""Numbers from 0 to 1 that a view is made by: 8 for its shape, 6 for its colours."""

_SHAPES = 8
_LONGER = math.log(4 / 3)  # of the sides of a view, at most
_JITTERED = 0.8  # of all views
_GREY = torch.tensor([0.299, 0.587, 0.114])[:, None, None]  # ITU-R 601-2 luma, as PIL has it


def make_views(images: Sequence[Image.Image], draws: NDArray[np.float64], settings: ViewSettings, size: int) -> Tensor:
    """V views (B, V, 3, ``size``, ``size``) from 0 to 1 of B RGB images by ``draws`` (B, V, ``DRAWS``), uniform from 0 to 1."""
    flat = draws.reshape(-1, DRAWS)
    of = np.repeat(np.arange(len(images)), draws.shape[1]).tolist()
    shaped = [_shape(images[i], draw, settings, size) for i, draw in zip(of, flat[:, :_SHAPES].tolist(), strict=True)]
    views = torch.from_numpy(np.stack(shaped)).permute(0, 3, 1, 2).contiguous().float() / 255
    views = recolour(views, torch.from_numpy(flat[:, _SHAPES:]).float(), settings.jitter, settings.grey)
    return views.view(*draws.shape[:2], *views.shape[1:])


def _shape(image: Image.Image, draw: list[float], settings: ViewSettings, size: int) -> NDArray[np.uint8]:
    """Pixels (size, size, 3) of a part of the image, mirrored, turned or blurred, or not.

    The part has the share ``settings.crop`` of the image to all of it, and sides of 3:4 to 4:3; what would be longer than the
    image is as long as the image.
    """
    share, ratio, left, top, flip, turn, blur, sigma = draw
    side = math.sqrt((settings.crop + (1 - settings.crop) * share) * image.width * image.height)
    stretch = math.exp((ratio - 0.5) * _LONGER)
    width, height = min(side * stretch, image.width), min(side / stretch, image.height)
    x, y = left * (image.width - width), top * (image.height - height)
    view = image.resize((size, size), Image.Resampling.BILINEAR, (x, y, x + width, y + height))
    if settings.rotate:
        view = view.rotate((2 * turn - 1) * settings.rotate, Image.Resampling.BILINEAR)
    if blur < settings.blur:
        view = view.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * sigma))
    pixels = np.asarray(view)
    return pixels[:, ::-1] if flip < settings.flip else pixels


def recolour(views: Tensor, draws: Tensor, jitter: float, grey: float) -> Tensor:
    """``views`` (B, 3, H, W) from 0 to 1 in other light and colours by ``draws`` (B, 6), from 0 to 1.

    Four of five views are jittered: light, contrast and saturation by factors from 1 - 0.8 ``jitter`` (at least 0) to
    1 + 0.8 ``jitter``, hue by up to 0.2 ``jitter`` of the circle. The share ``grey`` loses all colour.
    """
    whether, light, contrast, saturation, hue, colourless = draws[:, :, None, None, None].unbind(1)
    if jitter:
        views = torch.where(whether < _JITTERED, _jittered(views, light, contrast, saturation, hue, jitter), views)
    return torch.where(colourless < grey, _luma(views), views) if grey else views


def _jittered(views: Tensor, light: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor, jitter: float) -> Tensor:
    least, most = max(0.0, 1 - 0.8 * jitter), 1 + 0.8 * jitter
    light, contrast, saturation = (least + (most - least) * part for part in (light, contrast, saturation))
    views = (views * light).clamp(0, 1)
    mean = _luma(views).mean((2, 3), keepdim=True)
    views = torch.lerp(mean, views, contrast).clamp(0, 1)
    views = torch.lerp(_luma(views), views, saturation).clamp(0, 1)
    return turn_hue(views, (2 * hue - 1) * min(0.5, 0.2 * jitter))


def _luma(views: Tensor) -> Tensor:
    """Grey (B, 1, H, W) of the same lightness."""
    return (views * _GREY).sum(1, keepdim=True)


def turn_hue(views: Tensor, turn: Tensor) -> Tensor:
    """``views`` (B, 3, H, W) from 0 to 1, their hue further by ``turn`` (B, 1, 1, 1) of the circle; value and chroma stay.

    There and back in one: with hue h in sixths of the circle, value v and chroma c, a channel is
    v - c max(0, min(k, 4 - k, 1)), k = (n + h) mod 6, n = 5, 3, 1 for red, green, blue (Smith, SIGGRAPH 1978).
    """
    value, least = views.amax(1, keepdim=True), views.amin(1, keepdim=True)
    chroma = value - least
    red, green, blue = (views / torch.where(chroma > 0, chroma, 1)).chunk(3, dim=1)
    hue = torch.where(views[:, :1] == value, green - blue, 4 + red - green)
    hue = torch.where((views[:, 1:2] == value) & (views[:, :1] < value), 2 + blue - red, hue)
    k = (torch.tensor([5.0, 3.0, 1.0])[:, None, None] + hue + 6 * turn) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)
