"""A round's training batches: drawn with replacement by (seed, round), sliced by rank, gathered by index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_annot.data.pools import OBJECTIVES, Objective, Pools, balanced_weights, draw, harden
from lightning_annot.types import AnnotError

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class BatchSettings:
    """``size`` rows a step; ``steps`` steps a round, or as many as ``passes`` over the pool take if that is more.

    ``objective``, which pools are learned from: labelled, prototypes and annotated items; pseudo, those and items without an
    answer, each by the heads that are sure of it; confident, the same without annotated items whose risk is not low;
    mixmatch, labelled, and ``ratio`` x ``size`` mixed pairs of a labelled and an unlabelled item whose largest posterior is
    above 1 - ``tau``, with shares from Beta(``alpha``, ``alpha``) (Liao et al. 2021, Eq. 2); consistency, labelled, and
    ``ratio`` x ``size`` items without an answer, each with another one that its features are mixed with by such a share.

    ``targets``: the posterior, of items without an answer what each head says itself, or (hard) its largest class.
    ``shrink``: a step has at most as many rows as the pool. ``pseudo_after``: answers a class, prototypes among them, at which
    items without an answer together weigh at most half of what the others do: after A answers, at most
    A / (A + ``pseudo_after`` K) of it. 0: no limit.
    """

    size: int = 1024
    steps: int = 60
    objective: Objective = "pseudo"
    alpha: float = 0.75
    ratio: float = 1.0
    tau: float = 0.1
    targets: Literal["soft", "hard"] = "soft"
    shrink: bool = False
    passes: float = 1.0
    pseudo_after: float = 30.0

    def __post_init__(self) -> None:
        if (
            min(self.size, self.steps, self.alpha, self.ratio) <= 0
            or min(self.passes, self.pseudo_after) < 0
            or not 0 < self.tau < 1
        ):
            raise AnnotError(
                f"{self} given; size, steps, alpha and ratio must be above 0, passes and pseudo_after 0 or more, tau between "
                "0 and 1."
            )
        if self.objective not in OBJECTIVES:
            raise AnnotError(f"objective {self.objective!r} given; allowed are {', '.join(OBJECTIVES)}.")


class RoundBatches(Dataset[Batch]):
    """Step i is a batch of ``features`` (N, d) with soft ``target`` and ``fold``; mixmatch adds a second, paired set.

    Every rank draws the same rows and keeps its own slice, so the processes of a run together see what one would.
    ``rows_a_step`` and ``pairs_a_step`` are the rows of all ranks together, in the first set and in the second. Where nothing
    is known yet, there is one step, and it is empty.
    """

    def __init__(
        self,
        features: Tensor,
        folds: Tensor,
        pools: Pools,
        settings: BatchSettings,
        seed: tuple[int, int],
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if settings.targets == "hard":
            pools = harden(pools)
        self._features, self._folds, self._target, self._own = features, folds, pools.target, pools.own
        self._free = torch.zeros(len(features), dtype=torch.bool)
        self._free[torch.cat([pools.pseudo, pools.unlabelled])] = True
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        rows = pools.rows(settings.objective)
        most = len(rows) if settings.shrink or not len(rows) else settings.size
        self.rows_a_step = size = min(settings.size, most)
        n_steps = max(settings.steps, round(settings.passes * len(rows) / size)) if size else 1
        self.pairs_a_step = pairs = max(1, round(settings.ratio * size))
        weight = _limited(balanced_weights(pools.target, rows), self._free[rows], pools, settings.pseudo_after)
        keep = slice(rank, None, world)

        def steps(pool: Tensor, by: Tensor, size: int) -> Tensor:
            return draw(pool, by, n_steps * size, generator).view(n_steps, size)[:, keep]

        self._rows = steps(rows, weight, size)
        self._pair: tuple[Tensor, Tensor, Tensor] | None = None
        mixable = _mixable(pools, settings.tau) if settings.objective == "mixmatch" else rows[:0]
        if len(mixable):
            share = np.random.default_rng((*seed, 1)).beta(settings.alpha, settings.alpha, (n_steps, pairs))
            second = steps(mixable, balanced_weights(pools.target, mixable), pairs)
            self._pair = (steps(rows, weight, pairs), second, torch.from_numpy(share).float()[:, keep])
        self._view: tuple[Tensor, Tensor, Tensor] | None = None
        free = torch.cat([pools.pseudo, pools.unlabelled]) if settings.objective == "consistency" and size else rows[:0]
        if len(free):
            weight = balanced_weights(pools.target, free)
            share = np.random.default_rng((*seed, 1)).beta(settings.alpha, settings.alpha, (n_steps, pairs))
            own, other = steps(free, weight, pairs), steps(free, weight, pairs)
            self._view = (own, other, torch.from_numpy(share).float()[:, keep])

    def release(self) -> None:
        """Let go of the targets, the largest array of a run; to be called when the round's last batch is done."""
        self._target = self._target.new_empty(0, self._target.shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, step: int) -> Batch:
        shares = self._own.log_share
        log_share = torch.zeros(self._target.shape[1]) if shares is None else shares.float()
        batch = self._gather("", self._rows[step])
        batch |= {"free": self._free[self._rows[step]], "log_share": log_share}
        batch |= {"exponent": torch.tensor(self._own.exponent), "above": torch.tensor(self._own.above)}
        if self._pair is not None:
            first, second, share = (part[step] for part in self._pair)
            batch |= self._gather("_first", first) | self._gather("_second", second) | {"share": share}
        if self._view is not None:
            own, other, share = (part[step] for part in self._view)
            batch |= {"x_own": self._features[own], "fold_own": self._folds[own], "share_view": share}
            batch |= {"x_other": self._features[other], "fold_other": self._folds[other]}
        return batch

    def _gather(self, suffix: str, rows: Tensor) -> Batch:
        return {
            "x" + suffix: self._features[rows],
            "target" + suffix: self._target[rows].float(),
            "fold" + suffix: self._folds[rows],
        }


def _limited(weight: Tensor, free: Tensor, pools: Pools, after: float) -> Tensor:
    """``weight`` (n,) of rows, less of those that are ``free`` (n,) bool: together A / (A + ``after`` K) of the others'.

    With few answers, what heads say themselves teaches them nothing new, and makes them too sure of it. A counts prototypes and
    answered items.
    """
    known, k = len(pools.labelled), pools.target.shape[1]
    most = known / (known + after * k) * float(weight[~free].sum())
    total = float(weight[free].sum())
    return torch.where(free, weight * (most / total), weight) if total > most else weight


def _mixable(pools: Pools, tau: float, chunk: int = 1 << 16) -> Tensor:
    """Rows without an answer whose largest posterior is above 1 - ``tau``."""
    rows = torch.cat([pools.pseudo, pools.unlabelled])
    sure = [part[pools.target[part].amax(1) > 1.0 - tau] for part in torch.split(rows, chunk)]
    return torch.cat(sure)


class FixedRows(Dataset[Batch]):
    """Rows in order and in chunks: ``x``, ``fold``, ``row``, and ``label`` where given."""

    def __init__(self, features: Tensor, folds: Tensor, rows: Tensor, label: Tensor | None, chunk: int = 8192) -> None:
        self._features, self._folds, self._label = features, folds, label
        self._parts = torch.split(rows, chunk) if len(rows) else ()

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, step: int) -> Batch:
        rows = self._parts[step]
        batch = {"x": self._features[rows], "fold": self._folds[rows], "row": rows}
        return batch if self._label is None else batch | {"label": self._label[rows]}
