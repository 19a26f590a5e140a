"""What a backbone learns from two views of unlabelled images: losses and heads of the library ``lightly``."""

from __future__ import annotations

import copy

from lightly.loss import NegativeCosineSimilarity, NTXentLoss, VICRegLoss
from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead, SimCLRProjectionHead, VICRegProjectionHead
from lightly.models.utils import update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn
from typing_extensions import override

from lightning_annot.backbones.adapt_settings import Method
from lightning_annot.types import AnnotError


class Objective(nn.Module):
    """A loss of a batch's two views, with whatever it trains besides the backbone.

    ``forward`` takes ``views`` (2B, 3, H, W), where rows b and B + b are views of one image, and the backbone's ``features``
    (2B, D) of them, and returns the loss, a scalar.
    """

    def gather(self, across: bool) -> None:
        """Whether the loss compares images of all devices (``across``) or of each alone; a loss of pairs needs no other."""

    def after_step(self, backbone: nn.Module, progress: float) -> None:
        """The optimizer has stepped; ``progress`` is the share of all steps that are done."""


class Projected(Objective):
    """A loss between the projections of both views."""

    def __init__(self, head: nn.Module, loss: nn.Module) -> None:
        super().__init__()
        self.head, self.loss = head, loss

    @override
    def forward(self, views: Tensor, features: Tensor) -> Tensor:
        first, second = self.head(features).chunk(2)
        loss: Tensor = self.loss(first, second)
        return loss

    @override
    def gather(self, across: bool) -> None:
        self.loss.gather_distributed = across  # type: ignore[assignment]


class BYOL(Objective):
    """Bootstrap your own latent (Grill et al., NeurIPS 2020, Eq. 2): predict a slow teacher's projection of the other view.

    The teacher is the moving average of the backbone and its head; its weight of the past rises from ``momentum`` to 1 by a
    cosine (their Section 3.2).
    """

    def __init__(self, backbone: nn.Module, width: int, hidden: int, output: int, momentum: float) -> None:
        super().__init__()
        self.head = BYOLProjectionHead(width, hidden, output)
        self.predictor = BYOLPredictionHead(output, hidden, output)
        self.teacher = copy.deepcopy(backbone).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.loss, self.momentum = NegativeCosineSimilarity(), momentum

    @override
    def forward(self, views: Tensor, features: Tensor) -> Tensor:
        first, second = self.predictor(self.head(features)).chunk(2)
        to_first, to_second = self.teacher_head(self.teacher(views)).detach().chunk(2)
        loss: Tensor = (self.loss(first, to_second) + self.loss(second, to_first)) / 2
        return loss

    @override
    def after_step(self, backbone: nn.Module, progress: float) -> None:
        keep = cosine_schedule(round(progress * 1_000_000), 1_000_000, self.momentum, 1.0)
        update_momentum(backbone, self.teacher, keep)
        update_momentum(self.head, self.teacher_head, keep)


def make_objective(
    method: Method, backbone: nn.Module, width: int, hidden: int, output: int, temperature: float, momentum: float
) -> Objective:
    """The objective of ``method`` for a backbone that gives features (B, ``width``).

    ``vicreg``: Bardes et al., ICLR 2022. ``simclr``: Chen et al., ICML 2020, with ``temperature``. ``byol``: with ``momentum``.
    """
    if method == "vicreg":
        return Projected(VICRegProjectionHead(width, hidden, output, num_layers=2), VICRegLoss())
    if method == "simclr":
        return Projected(SimCLRProjectionHead(width, hidden, output), NTXentLoss(temperature))
    if method == "byol":
        return BYOL(backbone, width, hidden, output, momentum)
    raise AnnotError(f"method {method!r} given; allowed are vicreg, simclr, byol.")
