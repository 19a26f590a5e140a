"""The learner of one feature bank: heads, the weights they predict with, and their temperature."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_annot.data.pools import OwnTargets
from lightning_annot.learner.best import BestHeads
from lightning_annot.learner.calibration import fit_temperature, released_temperature
from lightning_annot.learner.heads import FoldHeads
from lightning_annot.learner.mixmatch import fold_use
from lightning_annot.learner.teacher import Teacher


class BankLearner(nn.Module):
    """Sees the columns from ``first`` on, as many as its ``heads`` take, of rows that hold all banks side by side.

    ``ema``: predict with an average of the weights; ``keep_best``: with the best; else with the last.
    """

    def __init__(self, heads: FoldHeads, first: int = 0, ema: float | None = None, keep_best: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.width = first, int(heads.weights[0].shape[1])
        self.averaged: AveragedModel | None = None
        self.best: BestHeads | None = None
        self._teacher: Teacher | None = None
        if ema is not None:
            follow = get_ema_multi_avg_fn(ema)  # type: ignore[no-untyped-call]
            self.averaged = AveragedModel(deepcopy(heads), multi_avg_fn=follow)
        if keep_best:
            self.best = BestHeads(heads)
        self.temperature: Tensor
        self.register_buffer("temperature", torch.ones((), dtype=torch.float64))

    @property
    def predictor(self) -> FoldHeads:
        """The heads that predict."""
        found = self.averaged.module if self.averaged is not None else self.best.heads if self.best is not None else self.heads
        assert isinstance(found, FoldHeads)
        return found

    def columns(self, x: Tensor) -> Tensor:
        """Its own features (..., d) of ``x`` (..., all banks)."""
        return x[..., self.first : self.first + self.width]

    def forward(self, x: Tensor) -> Tensor:
        """Class probabilities (B, K) of new items ``x``: the mean of the folds."""
        logits: Tensor = self.predictor(self.columns(x))
        return (logits.double() / self.temperature).softmax(-1).mean(0).to(x.dtype)

    def start_round(self, restart: int | None, forget: bool, hard: bool = False) -> None:
        """Begin a round: with fresh weights drawn by ``restart``, if it is a seed; ``forget`` the best so far, if asked to.

        What the heads say before it is what they learn of items without an answer; all on the largest class if ``hard``.
        """
        self._teacher = Teacher(self.predictor, float(self.temperature), hard)
        if restart is not None:
            self.heads.reset(torch.Generator().manual_seed(restart))
        if self.averaged is not None:
            self.averaged.module.load_state_dict(self.heads.state_dict())
            self.averaged.n_averaged.zero_()
        if self.best is not None and forget:
            self.best.forget()

    def own_targets(self, x: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Targets (F, m, K) of rows ``x`` (F, m, d) that nobody answered, and where heads are sure of them, (F, m) bool."""
        assert self._teacher is not None
        return self._teacher(x, batch["exponent"], batch["log_share"], batch["above"])

    @torch.no_grad()
    def sure_rows(self, x: Tensor, fold: Tensor, own: OwnTargets) -> Tensor:
        """Which rows ``x`` (B, all banks) any head but that of their own ``fold`` (B,) is sure of, (B,) bool."""
        teacher, device = Teacher(self.predictor, float(self.temperature)), self.temperature.device
        shares = x.new_zeros(self.heads.n_classes) if own.log_share is None else own.log_share.float()
        parts = (torch.tensor(own.exponent), shares, torch.tensor(own.above))
        _, sure = teacher(self.columns(x).to(device), *(part.to(device) for part in parts))
        return (sure & fold_use(self.heads.n_folds, fold.to(device))).any(0).cpu()

    def follow(self) -> None:
        """Take the weights of one more step into their average, where there is one."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.heads)

    def offer(self, x: Tensor, fold: Tensor, label: Tensor) -> None:
        """Keep the weights of those folds that have never been better on held-out rows."""
        if self.best is not None:
            self.best.offer(self.heads, self.columns(x), fold, label)

    @torch.no_grad()
    def calibrate(self, x: Tensor, fold: Tensor, label: Tensor, prior_scale: float = 0.5, released: bool = False) -> None:
        """Fit the temperature on rows ``x`` (P, all banks) of folds (P,) from 0 on; ``label`` as in ``fit_temperature``."""
        device = self.temperature.device
        logits = self.predictor.out_of_fold(self.columns(x).to(device), fold.to(device)).cpu()
        fitted = released_temperature(logits, label) if released else fit_temperature(logits, label, prior_scale)
        self.temperature.fill_(fitted)

    @torch.no_grad()
    def log_probability(self, x: Tensor, fold: Tensor) -> Tensor:
        """Calibrated log p(y | x) (B, K) in float32 on the CPU, out of fold; rows of fold -1 get the mean of all heads."""
        device, heads, temperature = self.temperature.device, self.predictor, float(self.temperature)
        x, fold = self.columns(x).to(device), fold.to(device)
        out = (heads.out_of_fold(x, fold).float() / temperature).log_softmax(-1)
        rows = (fold < 0).nonzero()[:, 0]
        if len(rows):
            each = (heads(x[rows]).float() / temperature).log_softmax(-1)
            out[rows] = each.logsumexp(0) - math.log(heads.n_folds)
        return out.cpu()
