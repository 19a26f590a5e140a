"""Views have the parts, turns and colours that their numbers say; colours are torchvision's."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as torchvision

from lightning_annot.backbones.adapt_settings import ViewSettings
from lightning_annot.backbones.ssl_views import DRAWS, make_views, recolour, turn_hue

STILL = ViewSettings(crop=1.0, flip=0.0, rotate=0.0, jitter=0.0, grey=0.0, blur=0.0)
ALL = ViewSettings(crop=0.3, flip=0.5, rotate=20, jitter=0.5, grey=0.2, blur=0.5)


def picture(width: int = 12, height: int = 12, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def draws(b: int, v: int = 2, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).random((b, v, DRAWS))


def one(image: Image.Image, chosen: ViewSettings, size: int, **numbers: float) -> Tensor:
    """The view by ``numbers``; a half for those that are not named."""
    names = ("share", "ratio", "left", "top", "flip", "turn", "blur", "sigma")
    names += ("whether", "light", "contrast", "saturation", "hue", "colourless")
    return make_views([image], np.array([[[numbers.get(name, 0.5) for name in names]]]), chosen, size)[0, 0]


def as_tensor(image: Image.Image) -> Tensor:
    return torchvision.pil_to_tensor(image) / 255


def test_nothing_changed_is_the_image() -> None:
    assert torch.equal(one(picture(), STILL, 12), as_tensor(picture()))


def test_view_is_a_function_of_its_image_and_numbers() -> None:
    images, numbers = [picture(seed=i) for i in range(5)], draws(5)
    views = make_views(images, numbers, ALL, 8)
    assert views.shape == (5, 2, 3, 8, 8)
    for i in range(5):
        for v in range(2):
            alone = make_views([images[i]], numbers[i : i + 1, v : v + 1], ALL, 8)
            assert torch.equal(alone[0, 0], views[i, v])


@pytest.mark.parametrize(
    ("numbers", "box"),
    [
        ({"share": 0.0, "left": 0.0, "top": 1.0}, (0, 8, 8, 16)),
        ({"share": 1.0, "left": 0.3, "top": 0.3}, (0, 0, 16, 16)),
        ({"share": 0.0, "ratio": 1.0, "left": 0.0, "top": 0.0}, (0, 0, 8 * (4 / 3) ** 0.5, 8 * (3 / 4) ** 0.5)),
        ({"share": 1.0, "ratio": 0.0, "left": 1.0, "top": 0.0}, (16 - 16 * (3 / 4) ** 0.5, 0, 16, 16)),
    ],
)
def test_part_in_view(numbers: dict[str, float], box: tuple[float, float, float, float]) -> None:
    image = picture(16, 16)
    want = as_tensor(image.resize((8, 8), Image.Resampling.BILINEAR, box))
    assert torch.equal(one(image, ViewSettings(crop=0.25, flip=0.0, jitter=0.0, grey=0.0), 8, **numbers), want)


def test_long_images_keep_their_shape_in_view() -> None:
    view = one(picture(40, 10), ViewSettings(crop=0.01, flip=0.0, jitter=0.0, grey=0.0), 8, share=0.0, left=0.0, top=0.0)
    assert torch.equal(view, as_tensor(picture(40, 10).resize((8, 8), Image.Resampling.BILINEAR, (0, 0, 2, 2))))


def test_mirrored_turned_and_out_of_focus() -> None:
    image = picture()
    still = as_tensor(image)
    mirrored = ViewSettings(crop=1.0, flip=0.4, jitter=0.0, grey=0.0)
    assert torch.equal(one(image, mirrored, 12, flip=0.39), still.flip(2))
    assert torch.equal(one(image, mirrored, 12, flip=0.41), still)
    turned = ViewSettings(crop=1.0, flip=0.0, rotate=90.0, jitter=0.0, grey=0.0)
    assert torch.equal(one(image, turned, 12, turn=1.0), still.rot90(1, (1, 2)))
    blurred = ViewSettings(crop=1.0, flip=0.0, jitter=0.0, grey=0.0, blur=0.4)
    assert one(image, blurred, 12, blur=0.39, sigma=1.0).std() < still.std() / 2
    assert torch.equal(one(image, blurred, 12, blur=0.41), still)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), jitter=st.floats(0, 3))
def test_colours_are_those_of_torchvision(seed: int, jitter: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    views, numbers = torch.rand(6, 3, 5, 4, generator=generator), torch.rand(6, 6, generator=generator)
    views[0, :] = 0.5  # grey has no hue
    got = recolour(views, numbers, jitter, 0.3)
    for view, (whether, light, contrast, saturation, hue, colourless), mine in zip(views, numbers.tolist(), got, strict=True):
        want = view
        if jitter and whether < 0.8:
            least, most = max(0.0, 1 - 0.8 * jitter), 1 + 0.8 * jitter
            want = torchvision.adjust_brightness(want, least + (most - least) * light)
            want = torchvision.adjust_contrast(want, least + (most - least) * contrast)
            want = torchvision.adjust_saturation(want, least + (most - least) * saturation)
            want = torchvision.adjust_hue(want, (2 * hue - 1) * min(0.5, 0.2 * jitter))
        if colourless < 0.3:
            want = torchvision.rgb_to_grayscale(want, 3)
        assert torch.allclose(mine, want, atol=2e-3)  # torchvision's weights of grey have three places and sum to 0.9999


@settings(max_examples=50, deadline=None)
@given(colour=st.tuples(*[st.floats(0, 1, width=32)] * 3), turn=st.floats(-0.5, 0.5, width=32))
def test_hue_is_that_of_colorsys(colour: tuple[float, float, float], turn: float) -> None:
    got = turn_hue(torch.tensor(colour).view(1, 3, 1, 1), torch.tensor(turn).view(1, 1, 1, 1)).flatten()
    hue, saturation, value = colorsys.rgb_to_hsv(*colour)
    assert got.tolist() == pytest.approx(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), width=st.integers(1, 30), height=st.integers(1, 30), crop=st.floats(0.01, 1))
def test_any_image_gives_pixels(seed: int, width: int, height: int, crop: float) -> None:
    chosen = ViewSettings(crop=crop, flip=0.5, rotate=180, jitter=2.0, grey=0.5, blur=0.5)
    views = make_views([picture(width, height)], draws(1, 3, seed), chosen, 8)
    assert views.shape == (1, 3, 3, 8, 8)
    assert (views >= -1e-5).all()
    assert (views <= 1 + 1e-5).all()
