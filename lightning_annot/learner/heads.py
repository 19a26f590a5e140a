"""F heads, one a fold, as one batched tensor: five cross-fitted heads cost little more than one."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


class FoldHeads(nn.Module):
    """F independent heads over the same features: linear, or with one hidden layer of ``hidden`` tanh units.

    No parameter is shared between folds, so an item's own fold never sees its answers (cross-fitting).
    """

    def __init__(self, n_folds: int, n_inputs: int, n_classes: int, hidden: int | None = None) -> None:
        super().__init__()
        sizes = [n_inputs, n_classes] if hidden is None else [n_inputs, hidden, n_classes]
        self.n_folds, self.n_classes = n_folds, n_classes
        self.weights = nn.ParameterList(torch.zeros(n_folds, i, o) for i, o in pairwise(sizes))
        self.biases = nn.ParameterList(torch.zeros(n_folds, 1, o) for o in sizes[1:])

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Start anew, in place: zeros for a linear head (its loss is convex), scaled normal values for hidden layers."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            draws = torch.randn(weight.shape, generator=generator)
            scale = 0.0 if len(self.weights) == 1 else math.sqrt(1.0 / weight.shape[1])
            weight.copy_(draws * scale)
            bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (F, B, K) of all folds for features ``x`` (B, D), or (F, B, D) where every fold has rows of its own."""
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.matmul(torch.tanh(x) if i else x, weight) + bias
        return x

    def out_of_fold(self, x: Tensor, fold: Tensor) -> Tensor:
        """Logits (B, K), each row by the head of its own ``fold`` (B,), untrained on it; 0 where it has none (-1)."""
        logits = x.new_zeros(len(x), self.n_classes)
        for f in range(self.n_folds):
            rows = (fold == f).nonzero()[:, 0]
            y = x[rows]
            for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                y = torch.addmm(bias[f], torch.tanh(y) if i else y, weight[f])
            logits[rows] = y.to(logits)  # autocast gives bfloat16
        return logits
