"""What one more answer is worth beside an expert's label, and which items are left without either."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_annot.sampling.items import expected_error_reduction
from lightning_annot.sampling.loss import at_stake, expected_loss, loss_reduction


def worth_asking(
    posterior: Tensor,
    confusion: Tensor,
    rows: Tensor,
    room: Tensor,
    expert_price: float,
    answer_price: float = 1.0,
    cost: Tensor | None = None,
) -> Tensor:
    """Whether answers about ``rows`` (n,) are the better buy than an expert's labels, (n,) bool.

    An expert takes away an item's risk, the error of probability 1 - max_y p(y) unless there is a ``cost`` (K, K), for
    ``expert_price``. One more answer, or, where ``room`` (n,) allows as many, the mean of two, brings the expected fall of the
    risk for ``answer_price``: two, because one alone often cannot change a label, and so gains nothing, where two that agree
    can. ``posterior`` (N, K), pooled ``confusion`` (K, K).
    """
    risk = expected_loss(posterior[rows], cost) * answer_price
    worth = expected_error_reduction(posterior, confusion, rows, cost=cost).double() * expert_price >= risk
    rest = (~worth & (room >= 2)).nonzero()[:, 0]
    pair = pair_error_reduction(posterior, confusion, rows[rest], cost=cost).double() / 2.0
    worth[rest] = pair * expert_price >= risk[rest]
    return worth


def pair_error_reduction(
    posterior: Tensor, confusion: Tensor, rows: Tensor, top: int = 8, cost: Tensor | None = None
) -> Tensor:
    """Expected fall of the error of ``rows`` (n,) from two more answers of average workers: (n,), at least 0.

    sum_{z, z'} max_y p(y) c[y, z] c[y, z'] - max_y p(y); otherwise, with ``cost`` too, as ``expected_error_reduction``.
    """
    top = min(top, posterior.shape[1])
    confusion = confusion.to(torch.promote_types(posterior.dtype, confusion.dtype))
    gains = [confusion.new_empty(0)]
    for part in torch.split(rows, max(1, (1 << 21) // top**3)):
        if cost is None:
            prob, label = posterior[part].to(confusion).topk(top, dim=1)
        else:
            prob, label, loss = at_stake(posterior[part].to(confusion), cost, top)
        answer = confusion[label[:, :, None], label[:, None, :]]  # (n, true y, answer z)
        joint = prob[:, :, None, None] * answer[:, :, :, None] * answer[:, :, None, :]  # (n, y, z, z')
        if cost is None:
            gains.append((joint.amax(1) - joint[:, 0]).sum((1, 2)))
        else:
            gains.append(loss_reduction(joint.flatten(2), loss).sum(1))
    return torch.cat(gains).clamp_(min=0.0)


def deserted(
    n_asked: Tensor,
    capacity: Tensor | None,
    askable: int,
    asked_item: Tensor,
    asked_worker: Tensor,
    possible: tuple[Tensor, Tensor] | None = None,
    worker_cap: int | None = None,
) -> Tensor:
    """Items (N,) bool that nobody is left to ask about.

    ``n_asked`` (N,) has reached ``capacity`` (N,), or each of the first ``askable`` workers, who have names (0: questions go to
    anyone), was asked already (``asked_item``, ``asked_worker`` (Q,), a pair once, -1 for anyone), cannot answer it
    (``possible``: pairs that can be answered, None for all) or has had ``worker_cap`` questions.
    """
    n_items = len(n_asked)
    full = torch.zeros(n_items, dtype=torch.bool) if capacity is None else n_asked >= capacity
    if not askable:
        return full
    named = (asked_worker >= 0) & (asked_worker < askable)
    asked_item, asked_worker = asked_item[named], asked_worker[named]
    rested = torch.ones(askable, dtype=torch.bool)
    if worker_cap is not None:
        rested = torch.bincount(asked_worker, minlength=askable) < worker_cap
    asked = (asked_item * askable + asked_worker)[rested[asked_worker]]
    if possible is None:
        left = int(rested.sum()) - torch.bincount(asked // askable, minlength=n_items)
    else:
        item, worker = possible
        pair = (item * askable + worker)[rested[worker]]
        left = torch.bincount(pair[~torch.isin(pair, asked)] // askable, minlength=n_items)
    return full | (left <= 0)
