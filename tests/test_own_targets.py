"""What heads teach themselves of items without an answer: against loops, and that nothing leaks from one fold to another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from made_up_heads import D, F, K, built, make_batch, own_targets, random_heads, seeded
from torch import Tensor

from lightning_annot.data.batches import BatchSettings, RoundBatches
from lightning_annot.data.pools import OwnTargets, Pools, first_pools, make_pools
from lightning_annot.learner.heads import FoldHeads
from lightning_annot.learner.module import MixMatchModule
from lightning_annot.learner.teacher import Teacher


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("hidden", [None, 5])
def test_a_teacher_equals_plain_loops(hidden: int | None, hard: bool) -> None:
    heads, batch = random_heads(hidden), make_batch(30, seed=4)
    parts = batch["exponent"], batch["log_share"], batch["above"]
    said, sure = Teacher(heads, 1.7, hard)(batch["x"], *parts)
    want, want_sure = own_targets(heads, 1.7, batch["x"], batch, hard)
    torch.testing.assert_close(said, want)
    assert torch.equal(sure, want_sure)
    assert 0 < int(sure.sum()) < sure.numel()
    own_rows = torch.randn(F, 9, D, generator=seeded(5))  # every head has rows of its own
    said, sure = Teacher(heads, 1.7, hard)(own_rows, *parts)
    for f in range(F):
        want, want_sure = own_targets(heads, 1.7, own_rows[f], batch, hard)
        torch.testing.assert_close(said[f], want[f])
        assert torch.equal(sure[f], want_sure[f])


def test_heads_are_sure_without_shares_and_say_it_with_them() -> None:
    """A class that is rare is learned of, as often as if it were not; and where it is likely, less surely."""
    heads = FoldHeads(1, 1, 2)
    heads.biases[0].data = torch.tensor([[[0.0, 3.0]]])  # .047 and .953
    shares = torch.tensor([0.99, 0.01]).log()
    said, sure = Teacher(heads, 1.0)(torch.zeros(1, 1), torch.tensor(1.0), shares, torch.tensor(0.9))
    assert bool(sure)
    rare = 0.01 * np.exp(3.0)
    assert said[0, 0].tolist() == pytest.approx([0.99 / (0.99 + rare), rare / (0.99 + rare)], rel=1e-5)
    said, _ = Teacher(heads, 1.0, hard=True)(torch.zeros(1, 1), torch.tensor(1.0), shares, torch.tensor(0.9))
    assert said[0, 0].tolist() == [1.0, 0.0]  # the largest of what is learned, not of what made it sure
    heads.biases[0].data = torch.tensor([[[0.0, 2.0]]])  # .881
    _, sure = Teacher(heads, 1.0)(torch.zeros(1, 1), torch.tensor(1.0), shares.flip(0), torch.tensor(0.9))
    assert not bool(sure)


def test_a_teacher_is_frozen() -> None:
    heads, batch = random_heads(None), make_batch(5)
    parts = batch["x"], batch["exponent"], batch["log_share"], batch["above"]
    teacher = Teacher(heads, 1.0)
    before, _ = teacher(*parts)
    assert not before.requires_grad
    for parameter in heads.parameters():
        parameter.data.add_(1.0 + torch.rand(parameter.shape))
    assert torch.equal(teacher(*parts)[0], before)


@pytest.mark.parametrize("restart", [None, 3])
def test_a_round_is_taught_by_the_weights_and_the_temperature_that_predicted_before_it(restart: int | None) -> None:
    learner, batch = built(None, ema=0.5).learner, make_batch(20)
    assert learner.averaged is not None
    learner.averaged.module.load_state_dict(random_heads(None, seed=8).state_dict())
    learner.temperature.fill_(2.0)
    learner.start_round(restart, False)
    learner.temperature.fill_(5.0)
    said, sure = learner.own_targets(batch["x"], batch)
    want, want_sure = own_targets(random_heads(None, seed=8), 2.0, batch["x"], batch)
    torch.testing.assert_close(said, want)
    assert torch.equal(sure, want_sure)


@pytest.mark.parametrize("share", [None, torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).log()])
def test_rows_are_sure_if_a_head_of_another_fold_is(share: Tensor | None) -> None:
    module, x, fold = built(), torch.randn(300, D, generator=seeded(1)), torch.randint(-1, F, (300,), generator=seeded(2))
    module.learner.temperature.fill_(3.0)
    own = OwnTargets(0.7, share, 0.6)
    batch = {"exponent": torch.tensor(0.7), "above": torch.tensor(0.6), "log_share": torch.zeros(K)}
    _, sure = own_targets(module.learner.heads, 3.0, x, batch)
    want = [any(bool(sure[f, i]) for f in range(F) if f != at) for i, at in enumerate(fold.tolist())]
    assert module.sure_rows(x, fold, own).tolist() == want
    assert 0 < sum(want) < len(want)


@dataclass
class Task:
    """Items ``x`` (n, D) in clusters with their ``fold`` and ``truth``, and the class of each ``prototype``, else -1."""

    x: Tensor
    fold: Tensor
    truth: Tensor
    prototype: Tensor


def clusters(seed: int, n: int = 400, in_fold: int = 2, spread: float = 1.5) -> Task:
    """``in_fold`` prototypes of each class in each fold."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(K, size=n)
    x = rng.normal(size=(n, D)) + spread * rng.normal(size=(K, D))[truth]
    prototype, fold = np.full(n, -1), rng.integers(F, size=n)
    for k in range(K):
        rows = np.flatnonzero(truth == k)[: in_fold * F]
        prototype[rows], fold[rows] = k, np.arange(len(rows)) % F
    whole = torch.from_numpy(x).float()
    parts = (torch.from_numpy(v) for v in (fold, truth, prototype))
    return Task(whole / whole.square().sum(1).mean().sqrt(), *parts)


def taught(task: Task, pools: Pools, module: MixMatchModule) -> Pools:
    """Pools of the next round, in which nobody has answered anything."""
    known, own = task.prototype >= 0, OwnTargets(above=0.6)
    posterior = module.log_probability(task.x, task.fold).exp()
    target = torch.where(known[:, None], pools.target, posterior)
    sure = module.sure_rows(task.x, task.fold, own)
    return make_pools(target, known, known | (posterior.amax(1) > 0.6), sure, own)


def train(
    module: MixMatchModule, task: Task, drawn: Pools, target: Tensor, settings: BatchSettings, by_others: bool = False
) -> None:
    """One round on batches drawn from the pools ``drawn``, with the ``target`` (n, K); temperatures stay as they are.

    ``by_others``: heads learn of unanswered items what the posterior says, which is the word of other folds' heads.
    """
    module.learner.start_round(None, False)
    optimizer = torch.optim.SGD(module.learner.heads.parameters(), lr=1.0, momentum=0.9, nesterov=True)
    data, rows = (RoundBatches(x, task.fold, drawn, settings, (0, 1)) for x in (task.x, torch.arange(len(task.x))[:, None]))
    for step in range(len(data)):
        batch = data[step]
        for suffix in ("", "_first", "_second"):
            if "x" + suffix in batch:
                batch["target" + suffix] = target[rows[step]["x" + suffix][:, 0]]
        if by_others:
            batch["free"] = torch.zeros_like(batch["free"])
        optimizer.zero_grad()
        module.training_step(batch, step).backward()
        optimizer.step()


@pytest.mark.parametrize("objective", ["pseudo", "mixmatch", "consistency"])
def test_prototypes_of_a_fold_do_not_reach_its_head_through_other_items(objective: str) -> None:
    """With other labels on the prototypes of fold f, and so with other words of the heads that saw them, head f is the same."""
    task = clusters(0)
    settings = BatchSettings(size=64, steps=12, passes=0.0, objective=objective)  # type: ignore[arg-type]
    first = first_pools(task.prototype, len(task.x), K)
    drawn: Pools | None = None

    def two_rounds(prototype: Tensor) -> tuple[FoldHeads, Tensor]:
        nonlocal drawn
        module = MixMatchModule(fold_share=1.0, consistency_above=0.6)
        module.build(F, [D], K)
        start = first_pools(prototype, len(task.x), K)
        train(module, task, first, start.target, settings)
        pools = taught(task, start, module)
        drawn = pools if drawn is None else drawn
        train(module, task, drawn, pools.target, settings)
        return module.learner.heads, pools.target

    plain, target = two_rounds(task.prototype)
    assert drawn is not None
    assert len(drawn.pseudo) > 50
    for f in range(F):
        other = torch.where((task.fold == f) & (task.prototype >= 0), (task.prototype + 1) % K, task.prototype)
        changed, changed_target = two_rounds(other)
        assert not torch.equal(changed_target[drawn.pseudo], target[drawn.pseudo])
        for p, q in zip(plain.parameters(), changed.parameters(), strict=True):
            assert torch.equal(p[f], q[f])
            assert all(not torch.equal(p[g], q[g]) for g in range(F) if g != f)


def gaps(seed: int, by_others: bool) -> float:
    """Nats by which prototypes are foretold better than other items after a round of teaching, less what they were before."""
    task = clusters(seed, spread=0.8)
    settings = BatchSettings(size=256, steps=40, passes=0.0)
    module, pools = MixMatchModule(fold_share=1.0), first_pools(task.prototype, len(task.x), K)
    module.build(F, [D], K)
    known, gap = task.prototype >= 0, []
    for _ in range(2):
        train(module, task, pools, pools.target, settings, by_others)
        module.calibrate(task.x[known], task.fold[known], task.prototype[known])
        loss = -module.log_probability(task.x, task.fold).gather(1, task.truth[:, None])[:, 0]
        gap.append(float(loss[~known].mean() - loss[known].mean()))
        pools = taught(task, pools, module)
    return gap[1] - gap[0]


@pytest.mark.slow
def test_prototypes_stay_out_of_fold_where_heads_teach_themselves() -> None:
    """Learned from each other's words, prototypes look better than the items that the temperature is for."""
    own, others = (np.array([gaps(seed, by_others) for seed in range(20)]) for by_others in (False, True))
    error = others.std() / np.sqrt(len(others))
    assert others.mean() > 3.0 * error > 0.0
    assert abs(own.mean()) < 0.02
