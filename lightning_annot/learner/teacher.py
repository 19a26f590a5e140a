"""Each head's own probabilities, frozen at a round's start: the targets of items that nobody has answered.

A head must not learn from the rows of its own fold, and it must not learn from them through another head either. Head g has
learned from fold f's prototypes; if head f learned what head g says of their neighbours, those prototypes would no longer be
out of fold for f, and a temperature fitted to them would be too low. So of an unanswered item each head learns what it said
itself (self-training, as in Sohn et al. 2020), where it was sure.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from lightning_annot.learner.heads import FoldHeads


class Teacher:
    """Frozen copies of ``heads`` with their ``temperature``; ``hard``: all of a target is on its largest class."""

    def __init__(self, heads: FoldHeads, temperature: float, hard: bool = False) -> None:
        self._heads = deepcopy(heads).requires_grad_(False)
        self._temperature, self._hard = temperature, hard

    @torch.no_grad()
    def __call__(self, x: Tensor, exponent: Tensor, log_share: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each head says of its rows.

        Args:
            x: features (F, m, d), each head's own rows, or (m, d).
            exponent: () power of p(y | x), see crowd/tempering.py.
            log_share: (K,) logarithms of the class shares, up to a constant.
            above: () least probability of the largest class of a sure head, as if all classes were of one size.

        Returns:
            Probabilities (F, m, K), proportional to p(y | x) times the class share to the power ``exponent``, and which rows
            are sure, (F, m) bool.
        """
        log_p = (self._heads(x).float() / self._temperature).log_softmax(-1)
        sure = (exponent * log_p).softmax(-1).amax(-1) > above
        said = (exponent * (log_p + log_share)).softmax(-1)
        if self._hard:
            said = torch.zeros_like(said).scatter_(-1, said.argmax(-1, keepdim=True), 1.0)
        return said, sure
