"""The best weights by validation loss, kept while training goes on."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from lightning_annot.learner.heads import FoldHeads


class BestHeads(nn.Module):
    """A copy of heads in which each fold holds the weights that had the lowest loss on that fold's own rows so far."""

    def __init__(self, heads: FoldHeads) -> None:
        super().__init__()
        self.heads = deepcopy(heads)
        self.loss: Tensor
        self.register_buffer("loss", torch.full((heads.n_folds,), torch.inf))

    def forget(self) -> None:
        """Take the next weights that are offered, whatever their loss."""
        self.loss.fill_(torch.inf)

    @torch.no_grad()
    def offer(self, heads: FoldHeads, x: Tensor, fold: Tensor, label: Tensor) -> None:
        """Keep those folds of ``heads`` whose mean loss on held-out rows ``x`` (P, d), ``fold``, ``label`` (P,) is lower."""
        held = fold >= 0
        loss = nn.functional.cross_entropy(heads.out_of_fold(x[held], fold[held]).float(), label[held], reduction="none")
        count = torch.bincount(fold[held], minlength=heads.n_folds)
        mean = torch.bincount(fold[held], loss, minlength=heads.n_folds) / count
        better = (mean < self.loss) & (count > 0)
        self.loss[better] = mean[better].to(self.loss)
        for own, new in zip(self.heads.parameters(), heads.parameters(), strict=True):
            own[better] = new.detach()[better]
