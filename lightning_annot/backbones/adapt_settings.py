"""How a backbone is adapted to unlabelled images; plain values, so that the command line need not load what uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_annot.types import AnnotError

ADAPTED = "backbone.pt"  # the file that adaptation leaves

Method = Literal["vicreg", "simclr", "byol"]


@dataclass(frozen=True)
class ViewSettings:
    """What views of one image may differ in; what tells your classes apart must not be among it.

    ``crop``: smallest share of the image in view. ``flip``: probability of a mirrored view. ``rotate``: degrees to either side.
    ``jitter``: strength of changes of colour and light. ``grey``: probability of a view without colour. ``blur``: of one out
    of focus.
    """

    crop: float = 0.3
    flip: float = 0.5
    rotate: float = 0.0
    jitter: float = 0.5
    grey: float = 0.2
    blur: float = 0.0

    def __post_init__(self) -> None:
        odd = [name for name in ("flip", "grey", "blur") if not 0 <= getattr(self, name) <= 1]
        if odd or not 0 < self.crop <= 1 or self.rotate < 0 or self.jitter < 0:
            raise AnnotError(
                f"views {self} given; crop must be above 0 and at most 1, flip, grey and blur from 0 to 1, rotate and jitter 0 "
                "or more."
            )


@dataclass(frozen=True)
class StartSettings:
    """The timm model that is adapted: ``weights`` are pretrained, random, or the path of a local checkpoint."""

    name: str = "small_resnet"
    weights: str = "random"
    image_size: int | None = None


@dataclass(frozen=True)
class AdaptSettings:
    """Adaptation as the first stage of an annotation run, on one device; see ``SelfSupervisedModule`` and ``ViewSettings``.

    ``patience``: epochs without a better ``val_knn`` after which it ends (None: all ``epochs``). ``freeze``: names of the
    backbone's layers that stay as they are. ``num_workers``: processes that make views (None: by the machine).
    """

    method: Method = "vicreg"
    epochs: int = 50
    batch_size: int = 128
    lr: float = 3e-3
    views: ViewSettings = ViewSettings()
    patience: int | None = None
    freeze: tuple[str, ...] = ()
    precision: str = "32-true"
    num_workers: int | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or (self.patience is not None and self.patience < 1):
            raise AnnotError(
                f"adapt.epochs {self.epochs}, adapt.patience {self.patience} given; both must be at least 1; patience may be "
                "null."
            )
