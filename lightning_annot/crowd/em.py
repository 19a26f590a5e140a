"""Joint EM of labels and worker confusions, with the learner's probabilities as the prior of each item.

Model (Liao et al. 2021, Section 3, after Branson et al. 2017): p(y_i) = p(y | x_i), p(z_ij | y_i, w_j) = w_j[y_i, z_ij],
rows of w_j ~ Dir(1 + m), m = strength x alpha. EM maximises the MAP objective

    L(w) = sum_i log sum_y p(y | x_i) prod_j w_j[y, z_ij] + sum_jyz m[y, z] log w_j[y, z]

E step: q_i(y) proportional to p(y | x_i) prod_j w_j[y, z_ij].
M step: w_j[y, z] = (m[y, z] + sum_i q_i(y) [z_ij = z]) / row sum.
In the soft mode L never falls. The hard mode puts all of q_i on its largest entry in the M step, as the released code does.

Tempered (crowd/tempering.py), q_i is proportional to p(y | x_i)^a prod_j w_j[y, z_ij]^b, and L's first sum becomes
sum_i (1/b) log sum_y p(y | x_i)^a prod_j w_j[y, z_ij]^b, which the same M step raises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from lightning_annot.crowd.incidence import Chunk, Incidence, build_incidence
from lightning_annot.crowd.pooled import Rivals
from lightning_annot.crowd.priors import Prior
from lightning_annot.crowd.tempering import Tempering
from lightning_annot.types import Annotations, AnnotError

PLAIN = Tempering()

LogPrior = Callable[[Tensor], Tensor]
"""Maps item rows (n,) to log p(y | x) (n, K); a tensor's ``__getitem__`` is one."""


def with_class_prior(log_prior: LogPrior, log_share: Tensor | None) -> LogPrior:
    """log of p(y | x) pi_y over its sum, for ``log_prior`` log p(y | x) and ``log_share`` log pi (K,); None changes nothing."""
    if log_share is None:
        return log_prior

    def prior(rows: Tensor) -> Tensor:
        out = log_prior(rows)
        return (out + log_share.to(out)).log_softmax(1)

    return prior


@dataclass(frozen=True)
class EMResult:
    """Fitted confusions, kept as expected counts of the (worker, answer) pairs that occur.

    ``counts`` (P, K): expected annotations of pair (worker, answer) by true class. ``prior``: pseudo-counts beside them.
    ``objective_history``: L before each M step, so the returned confusions reach at least its last value. ``log_share`` (K,):
    logarithms of class shares that p(y | x) is multiplied by; None: it is not multiplied. ``rivals``: accounts of the answers
    with class shares and without, where these were learned.
    """

    incidence: Incidence
    counts: Tensor
    prior: Prior
    objective_history: tuple[float, ...]
    converged: bool
    log_share: Tensor | None = None
    rivals: Rivals | None = None

    @property
    def n_iterations(self) -> int:
        """M steps taken."""
        return len(self.objective_history)

    @cached_property
    def _log_totals(self) -> Tensor:
        return self.row_totals().log()

    def row_totals(self) -> Tensor:
        """Prior and expected annotations of each worker and true class, (W, K)."""
        return self.incidence.worker_sums(self.counts) + self.prior.totals()

    def all_counts(self) -> Tensor:
        """Prior and expected annotations (W, K, K), row = true class, column = answer; dense, for small W x K x K."""
        inc = self.incidence
        dense = self.prior.each(inc.n_workers).clone()
        dense[inc.pair_worker, :, inc.pair_label] += self.counts
        return dense

    def confusions(self) -> Tensor:
        """Confusions (W, K, K), row = true class, column = answer; dense, for small W x K x K."""
        dense = self.all_counts()
        return dense / dense.sum(2, keepdim=True)

    def pooled_confusion(self, apart: Tensor | None = None) -> Tensor:
        """One (K, K) confusion of all workers together: expected counts plus the prior once, rows sum to 1.

        Without those who stand ``apart`` (W,) bool, unless all do.
        """
        label, counts, prior = self.incidence.pair_label, self.counts, self.prior.mean()
        if apart is not None and bool(apart.any()) and not bool(apart.all()):
            ours = ~apart[self.incidence.pair_worker]
            label, counts, prior = label[ours], counts[ours], self.prior.mean(~apart)
        pooled = prior.T.clone().index_add_(0, label, counts).T
        return pooled / pooled.sum(1, keepdim=True)

    def diagonal(self) -> Tensor:
        """p(answer = y given true = y) of each worker, (W, K)."""
        inc = self.incidence
        right = self.prior.diagonal().expand(inc.n_workers, -1).clone()
        right[inc.pair_worker, inc.pair_label] += self.counts[torch.arange(len(self.counts)), inc.pair_label]
        return right / self.row_totals()

    def log_answer(self, worker: Tensor, label: Tensor) -> Tensor:
        """log w_j[y, z] of answers ``label`` z (n,) by ``worker`` j (n,) for every true class y, (n, K); any worker may be new.

        A worker beyond those of the fit is what the prior's mean says.
        """
        inc, known = self.incidence, worker < self.incidence.n_workers
        out = self.prior.mean().T[label] / self.prior.mean().sum(1)
        worker, label = worker[known], label[known]
        code = worker * inc.n_classes + label
        codes = inc.pair_worker * inc.n_classes + inc.pair_label
        at = torch.searchsorted(codes, code).clamp(max=max(0, len(codes) - 1))
        mass = self.prior.rows(worker, label).clone()
        if len(codes):
            mass += self.counts[at] * (codes[at] == code)[:, None]
        out[known] = mass / self.row_totals()[worker]
        return out.log()

    def log_likelihood(self, chunk: Chunk, weight: Tensor | None = None) -> Tensor:
        """log prod_j w_j[y, z_ij] of the chunk's items by class y, (n, K); needs no table of all pairs.

        ``weight``: how often each annotation of the chunk counts; None: once.
        """
        inc, pairs = self.incidence, chunk.pairs
        table = (self.counts[pairs] + self.prior.rows(inc.pair_worker[pairs], inc.pair_label[pairs])).log_()
        table -= self._log_totals[inc.pair_worker[pairs]]
        at = torch.searchsorted(pairs, chunk.pair)
        return embedding_bag(at, table, chunk.item_offset, mode="sum", per_sample_weights=weight)


def run_em(
    annotations: Annotations,
    log_prior: LogPrior | Tensor,
    pseudo_counts: Prior | Tensor,
    n_workers: int,
    *,
    m_step: Literal["soft", "hard"] = "soft",
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    tempering: Tempering = PLAIN,
    expert: Tensor | None = None,
    chunk_elements: int = 1 << 21,
) -> EMResult:
    """Fit worker confusions to ``annotations`` by EM, with fixed Dirichlet ``pseudo_counts``: a prior, (K, K) or (W, K, K).

    ``log_prior`` gives log p(y | x) by item row; it may compute its rows when asked, so no (N, K) array need exist. Stops when
    the objective gains no more than ``tolerance`` nats an annotation. It starts from the prior's mean each time, so that a run
    that is resumed finds the same: with a few iterations it is a small part of a round.
    Workers who are ``expert`` (W,) bool do not share the errors of others, so their answers are not tempered: each counts 1/b
    times, in both steps.
    """
    prior = Prior(pseudo_counts) if isinstance(pseudo_counts, Tensor) else pseudo_counts
    check_em(annotations, prior, n_workers, m_step, max_iterations)
    if isinstance(log_prior, Tensor):
        log_prior = log_prior.__getitem__
    n_classes, kind = prior.counts.shape[-1], prior.counts.dtype
    weight = None if expert is None else answer_weight(annotations, expert, tempering, kind)
    inc = build_incidence(annotations, n_workers, n_classes, weight=weight, chunk_elements=chunk_elements)
    counts = prior.counts.new_zeros(len(inc.pair_worker), n_classes)
    history: list[float] = []
    converged = False
    while not converged and len(history) < max_iterations:
        # The table takes the memory of the counts: two (P, K) arrays are alive, not three.
        table, log_density = _log_table(inc, counts, prior)
        counts, log_evidence = renewed_counts(inc, table, log_prior, m_step == "hard", tempering)
        history.append(log_evidence + log_density)
        converged = len(history) > 1 and history[-1] - history[-2] <= tolerance * len(annotations)
    return EMResult(inc, counts, prior, tuple(history), converged)


def write_posterior(
    result: EMResult,
    log_prior: LogPrior | Tensor,
    n_items: int,
    out: Tensor | None = None,
    tempering: Tempering = PLAIN,
) -> Tensor:
    """Posterior of all items (N, K): p(y | x) where nobody answered, times the workers' likelihood elsewhere, both tempered.

    Streams in chunks, so that the (N, K) result is the only array of its size.
    """
    if isinstance(log_prior, Tensor):
        log_prior = log_prior.__getitem__
    log_prior = with_class_prior(log_prior, result.log_share)
    inc, counts = result.incidence, result.counts
    out = counts.new_empty(n_items, inc.n_classes) if out is None else out
    rows = max(1, (1 << 21) // inc.n_classes)
    for start in range(0, n_items, rows):
        stop = min(start + rows, n_items)
        items = torch.arange(start, stop, device=out.device)
        unanswered = log_prior(items)
        _check_rows(unanswered.amax(1), items, log_prior)
        out[start:stop] = unanswered.exp() if tempering.model[0] == 1.0 else (tempering.model[0] * unanswered).softmax(1)
    for chunk in inc.chunks:
        items = inc.items[chunk.start : chunk.stop]
        joint, _ = _tempered(result.log_likelihood(chunk, chunk.weight), log_prior(items), chunk, tempering)
        _check_rows(joint.amax(1), items, log_prior)
        out[items] = joint.softmax(1).to(out)
    return out


def renewed_counts(
    inc: Incidence, table: Tensor, log_prior: LogPrior, hard: bool, tempering: Tempering
) -> tuple[Tensor, float]:
    """One E step and the counts (P, K) of the M step after it, with the summed log evidence."""
    renewed, evidence = torch.zeros_like(table), 0.0
    for chunk in inc.chunks:
        posterior, log_evidence = _e_step(inc, chunk, table, log_prior, tempering)
        evidence += log_evidence
        if hard:
            posterior = torch.zeros_like(posterior).scatter_(1, posterior.argmax(1, keepdim=True), 1.0)
        inc.add_pair_sums(chunk, posterior, renewed)
    return renewed, evidence


def _e_step(inc: Incidence, chunk: Chunk, table: Tensor, log_prior: LogPrior, tempering: Tempering) -> tuple[Tensor, float]:
    """Posterior of the chunk's items (n, K), and their summed log evidence."""
    joint, share = _tempered(inc.item_sums(chunk, table), log_prior(inc.items[chunk.start : chunk.stop]), chunk, tempering)
    # One pass of exp serves both the posterior and the evidence.
    peak = joint.amax(1, keepdim=True)
    _check_rows(peak, inc.items[chunk.start : chunk.stop], log_prior)
    posterior = joint.sub_(peak).exp_()
    total = posterior.sum(1, keepdim=True)
    evidence = float(total.log().add_(peak).mul_(share).sum(dtype=torch.float64))
    return posterior.div_(total), evidence


def _tempered(people: Tensor, model: Tensor, chunk: Chunk, tempering: Tempering) -> tuple[Tensor, Tensor | float]:
    """b log-likelihood + a log p(y | x) of the chunk's items, in place of ``people`` (n, K), and 1 / b, (n, 1) or 1."""
    if tempering.is_plain:
        return people.add_(model), 1.0
    a, b = (e.to(people) for e in tempering.of(chunk.n_answers))
    return people.mul_(b).add_(model * a), 1.0 / b


def answer_weight(annotations: Annotations, expert: Tensor, tempering: Tempering, dtype: torch.dtype) -> Tensor | None:
    """How often each annotation (A,) counts: 1/b if it is an expert's, so that the exponent b leaves it as it is; else once."""
    if tempering.is_plain or not bool(expert.any()):
        return None
    n_answers = torch.bincount(annotations.item)[annotations.item]
    _, people = tempering.of(n_answers)
    return torch.where(expert[annotations.worker], 1.0 / people[:, 0], 1.0).to(dtype)


def _log_table(inc: Incidence, counts: Tensor, prior: Prior) -> tuple[Tensor, float]:
    """Turn ``counts`` into log w of each occurring pair (P, K), in place; also the log density of all confusions.

    An answer that a worker never gave has w = m / row sum, so its part of the density needs no row of its own.
    """
    log_total = (inc.worker_sums(counts) + prior.totals()).log()
    table = counts
    density = prior.sum_over_workers(torch.xlogy(prior.counts, prior.counts), inc.n_workers)
    density -= float((log_total * prior.totals()).sum(dtype=torch.float64))
    rows = max(1, (1 << 21) // inc.n_classes)
    for start in range(0, len(table), rows):
        part, worker = table[start : start + rows], inc.pair_worker[start : start + rows]
        before = prior.rows(worker, inc.pair_label[start : start + rows])
        part += before
        part.log_()
        density += float((before * (part - before.log())).sum(dtype=torch.float64))
        part -= log_total[worker]
    return table, density


def _check_rows(peak: Tensor, items: Tensor, log_prior: LogPrior) -> None:
    """Refuse log probabilities that are NaN, or that leave no class possible; ``peak`` (n,) is the largest of each item's."""
    broken = items[~peak.reshape(-1).isfinite()]
    if len(broken):
        row = [round(value, 3) for value in log_prior(broken[:1])[0, :8].tolist()]
        raise AnnotError(
            f"log_prior of {len(broken)} items cannot be used, such as row {int(broken[0])}: {row}; a row needs a class whose "
            "probability is above 0, and no NaN or infinity."
        )


def check_em(annotations: Annotations, prior: Prior, n_workers: int, m_step: str, max_iterations: int) -> None:
    shape = tuple(prior.counts.shape)
    n_classes = shape[-1] if shape else 0
    n_priors = n_workers if prior.group is None else shape[0]
    grouped = prior.group is None or len(prior.group) == n_workers
    fits = grouped and shape in ((n_classes, n_classes), (n_priors, n_classes, n_classes))
    if not fits:
        raise AnnotError(f"pseudo_counts of shape {shape} given; need (K, K) or ({n_workers}, K, K), all above 0.")
    broken = (~((prior.counts > 0) & prior.counts.isfinite())).any(-1).nonzero()
    if len(broken):
        row = [round(value, 3) for value in prior.counts[tuple(broken[0])][:8].tolist()]
        raise AnnotError(
            f"pseudo_counts of shape {shape} given, with row {broken[0].tolist()} as {row}; all must be finite and above 0."
        )
    if m_step not in ("soft", "hard"):
        raise AnnotError(f"m_step {m_step!r} given; allowed are 'soft' and 'hard'.")
    if max_iterations < 1:
        raise AnnotError(f"max_iterations {max_iterations} given; at least 1 is needed.")
    for name, index, size in (("worker", annotations.worker, n_workers), ("label", annotations.label, n_classes)):
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < size:
            raise AnnotError(f"{name} indices {int(index.min())}..{int(index.max())} given; allowed are 0..{size - 1}.")
