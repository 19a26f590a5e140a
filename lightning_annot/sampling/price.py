"""What answers cost: money spent, money owed for open questions, and who gives most for the price."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_annot.types import AnnotError

FREE = 1e-6  # a worker for nothing counts as this share of the dearest price, so that gain per price stays finite


@dataclass(frozen=True)
class PriceSettings:
    """What an answer costs, in any currency; a skip, a gold question and an audit cost the same.

    ``per_answer``: its price. ``workers``: CSV ``worker,price`` of workers whose answers have another. ``per_second``: price of
    each second that it took, besides; an answer without a time costs no seconds.
    """

    per_answer: float = 1.0
    per_second: float = 0.0
    workers: str | None = None

    def __post_init__(self) -> None:
        for name, price in (("per_answer", self.per_answer), ("per_second", self.per_second)):
            if not 0.0 <= price < math.inf:
                raise AnnotError(f"prices.{name} {price} given; it must be a number from 0 on.")

    @property
    def given(self) -> bool:
        """Whether anything costs other than one an answer."""
        return self != PriceSettings()


@dataclass(frozen=True)
class Account:
    """``spent`` on answers, ``owed`` for open questions as far as expected; ``expected`` (W,): price of a question to each
    worker, ``anyone``: of one to nobody by name.
    """

    spent: float
    owed: float
    expected: Tensor
    anyone: float

    def price(self, worker: Tensor) -> Tensor:
        """Expected price (n,) of questions to ``worker`` (n,), -1 for anyone."""
        return torch.cat([self.expected, self.expected.new_tensor([self.anyone])])[worker]  # row -1 is the last

    def cheapest(self, askable: int) -> float:
        """Least expected price of a question to one of the first ``askable`` workers, or, with 0, to anyone."""
        return float(self.expected[:askable].min()) if askable else self.anyone


def settle(
    prices: PriceSettings,
    listed: Mapping[str, float],
    names: Sequence[str],
    paid_worker: Tensor,
    paid_seconds: Tensor,
    owed_worker: Tensor,
) -> Account:
    """The account after answers by ``paid_worker`` (P,), -1 for an expert beside the workers, that took ``paid_seconds`` (P,),
    0 where unknown, while questions to ``owed_worker`` (Q,), -1 for anyone, are open.

    ``listed``: prices by name of those who have one of their own. A question is expected to take the mean of all times so far,
    and one to anyone to cost the mean price of all answers so far, or, before any, of all workers.
    """
    base = torch.tensor([listed.get(name, prices.per_answer) for name in names], dtype=torch.float64)
    answered = torch.cat([base, base.new_tensor([prices.per_answer])])[paid_worker]  # row -1 is the last
    typical = next((p for p in (answered, base, torch.tensor([*listed.values()]).double()) if len(p)), None)
    anyone = prices.per_answer if typical is None else float(typical.mean())
    seconds = float(paid_seconds.sum(dtype=torch.float64))
    waiting = prices.per_second * seconds / max(1, len(paid_seconds))
    account = Account(float(answered.sum()) + prices.per_second * seconds, 0.0, base + waiting, anyone + waiting)
    return Account(account.spent, float(account.price(owed_worker).sum()), account.expected, account.anyone)


def affordable(price: Tensor, left: float) -> Tensor:
    """Which questions (n,) of ``price`` (n,) are bought, bool, when each in turn is that the money still ``left`` pays for."""
    bought, rows = torch.zeros(len(price), dtype=torch.bool), torch.arange(len(price))
    while len(rows := rows[price[rows] <= left]):
        total = price[rows].cumsum(0)
        n = int((total <= left).sum())
        bought[rows[:n]] = True
        left -= float(total[n - 1])
        rows = rows[n + 1 :]
    return bought


def per_price(worth: Tensor, price: Tensor, chance: float) -> Tensor:
    """What each worker gives for the price, (n, W): ``worth`` (n, W) above that of a guess, ``chance``, over ``price`` (W,).

    Who guesses is no bargain at any price: ``chance`` is 1 / K of a reliability. Prices count in relation to the cheapest.
    """
    price = price.clamp(min=max(FREE * float(price.max()), 1e-30))
    share: Tensor = (price.min() / price).to(worth)
    return (worth - chance).clamp(min=0.0) * share
