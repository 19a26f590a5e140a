"""What is lost by the best decision about an item, before and after further answers, under a cost matrix."""

from __future__ import annotations

from torch import Tensor


def expected_loss(posterior: Tensor, cost: Tensor | None) -> Tensor:
    """Risk (n,) of items with ``posterior`` (n, K) as in ``crowd/risk.py``, in double precision; zero-one if no ``cost``."""
    if cost is None:
        return 1.0 - posterior.amax(1).double()
    return (posterior.double() @ cost.double()).amin(1)


def at_stake(posterior: Tensor, cost: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``top`` classes of each item that can cost most, and what the ``top`` cheapest decisions lose by them.

    Args:
        posterior: (n, K), rows sum to 1.
        cost: (K, K), row = true class, column = decided class.
        top: at most K.

    Returns:
        Probabilities (n, top) of these classes, the classes (n, top), ranked by probability times largest cost, and costs
        (n, top, top) by class and decision, the first of which is the best one now. With zero-one costs both are the most
        probable classes.
    """
    cost = cost.to(posterior)
    label = (posterior * cost.amax(1)).topk(top, dim=1).indices
    decision = (posterior @ cost).topk(top, dim=1, largest=False).indices
    return posterior.gather(1, label), label, cost[label[:, :, None], decision[:, None, :]]


def loss_reduction(joint: Tensor, loss: Tensor) -> Tensor:
    """Fall of the expected loss by each answer, (n, A), at least 0, times the probability of the answer.

    ``joint`` (n, top, A): probabilities of true class and answer; ``loss`` (n, top, decisions) as in ``at_stake``.
    """
    after = joint.transpose(1, 2) @ loss  # (n, A, decisions)
    return after[:, :, 0] - after.amin(2)
