"""Small heads, batches and modules with random numbers in them, for tests of the learner; what heads say, by loops."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_annot.learner.heads import FoldHeads
from lightning_annot.learner.module import MixMatchModule

F, D, K = 4, 6, 3
FIRST_SET = ("x", "target", "fold", "free", "log_share", "exponent", "above")  # what a batch without a second set holds
OF_ALL_ROWS = ("log_share", "exponent", "above")


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


def own_targets(
    heads: FoldHeads, temperature: float, x: Tensor, batch: dict[str, Tensor], hard: bool = False
) -> tuple[Tensor, Tensor]:
    """What each head says of rows ``x`` (B, D), (F, B, K), and which it is sure of, (F, B); row by row, in double precision."""
    said, sure = torch.zeros(heads.n_folds, len(x), heads.n_classes), torch.zeros(heads.n_folds, len(x), dtype=torch.bool)
    a = float(batch["exponent"])
    for f in range(heads.n_folds):
        for i, row in enumerate(x):
            p = (head(heads, f, row[None])[0].detach().double() / temperature).softmax(0)
            powers = p**a
            sure[f, i] = bool((powers / powers.sum()).max() > float(batch["above"]))
            shared = (p * batch["log_share"].double().exp()) ** a
            said[f, i] = (shared / shared.sum()).float()
            if hard:
                said[f, i] = torch.nn.functional.one_hot(shared.argmax(), len(p))
    return said, sure


def make_batch(n: int = 40, seed: int = 0, mixed: bool = False) -> dict[str, Tensor]:
    generator = seeded(seed)
    batch = {"log_share": torch.randn(K, generator=generator).log_softmax(0), "exponent": torch.tensor(0.8)}
    batch |= {"above": torch.tensor(0.7), "free": torch.rand(n, generator=generator) < 0.4}
    for suffix in ("", "_first", "_second") if mixed else ("",):
        batch["x" + suffix] = torch.randn(n, D, generator=generator)
        batch["target" + suffix] = torch.randn(n, K, generator=generator).softmax(1)
        batch["fold" + suffix] = torch.randint(0, F, (n,), generator=generator)
    if mixed:
        batch["share"] = torch.rand(n, generator=generator)
    return batch


def make_views(n: int = 40, seed: int = 0) -> dict[str, Tensor]:
    """A first set, and unanswered items with others to mix them with."""
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
    module.learner.start_round(None, False)
    return module
