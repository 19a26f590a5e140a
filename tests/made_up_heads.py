"""Small heads, batches and modules with random numbers in them, for tests of the learner."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_annot.learner.heads import FoldHeads
from lightning_annot.learner.module import MixMatchModule

F, D, K = 4, 6, 3


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_heads(hidden: int | None, seed: int = 0) -> FoldHeads:
    heads = FoldHeads(F, D, K, hidden)
    generator = seeded(seed)
    for parameter in heads.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return heads


def head(heads: FoldHeads, f: int, x: Tensor) -> Tensor:
    """One fold's logits, written out."""
    for i, (weight, bias) in enumerate(zip(heads.weights, heads.biases, strict=True)):
        x = (x.tanh() if i else x) @ weight[f] + bias[f, 0]
    return x


def make_batch(n: int = 40, seed: int = 0, mixed: bool = False) -> dict[str, Tensor]:
    generator = seeded(seed)
    batch = {}
    for suffix in ("", "_first", "_second") if mixed else ("",):
        batch["x" + suffix] = torch.randn(n, D, generator=generator)
        batch["target" + suffix] = torch.randn(n, K, generator=generator).softmax(1)
        batch["fold" + suffix] = torch.randint(0, F, (n,), generator=generator)
    if mixed:
        batch["share"] = torch.rand(n, generator=generator)
    return batch


def make_views(n: int = 40, seed: int = 0) -> dict[str, Tensor]:
    """A labelled batch, and unanswered items with others to mix them with."""
    generator = seeded(seed + 1000)
    batch = make_batch(n, seed)
    for suffix in ("_own", "_other"):
        batch["x" + suffix] = 3.0 * torch.randn(n, D, generator=generator)
        batch["fold" + suffix] = torch.randint(0, F, (n,), generator=generator)
    return batch | {"share_view": torch.rand(n, generator=generator)}


def built(hidden: int | None = None, **options: object) -> MixMatchModule:
    module = MixMatchModule(hidden=hidden, **{"fold_share": 1.0, **options})  # type: ignore[arg-type]
    module.build(F, [D], K)
    module.learner.heads = random_heads(hidden)
    return module
