"""Which runs each section of the results needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lightning_annot.experiments.grid import METHODS, SIMULATED, Cell, Value, expand, unique

SEEDS = (11, 1012, 2013)  # far apart: see Protocol in the page
FULL_SEEDS = (*SEEDS, 3014, 4015)
FAITHFUL = ("online_ds", "improved_lean", "efficient_annotation")
CLASSES = "airplane,automobile,bird"  # kept where all others are distractors
GOLD = 20
PAPER = "efficient_annotation"
PATIENCE = {
    "annotation.stopping.patience": "10"
}  # as the paper's presets; with the default the last rounds ask next to nothing
MINIATURE = {"trainer.max_epochs": "2", "data.batches.steps": "5"}


@dataclass(frozen=True)
class Plan:
    """``grouped``: the simulated workers have groups and noise, as those of the AMT study. ``extra``: settings of every run."""

    config: str = SIMULATED
    recorded: str = "configs/recorded.yaml"
    seeds: tuple[int, ...] = SEEDS
    per_round: int = 1000
    full: bool = False
    miniature: bool = False
    grouped: bool = True
    extra: Mapping[str, str] = field(default_factory=dict)

    def few(self, values: Sequence[Value], full: Sequence[Value] = ()) -> list[Value]:
        """The values of the plan's size: ``full`` besides in a full one, the first two in a miniature."""
        chosen = [*values, *full] if self.full else list(values)
        return chosen[:2] if self.miniature else chosen

    @property
    def fewer(self) -> Plan:
        """The same on two seeds at most, for what is slow or beside the point; all in a full plan."""
        return self if self.full else replace(self, seeds=self.seeds[:2])

    def cells(self, groups: Sequence[Value] = ("dog",), **axes: Sequence[Value]) -> list[Cell]:
        """Runs of the simulated configuration on all seeds."""
        base: dict[str, Sequence[Value]] = {"group": list(groups)} if self.grouped else {}
        rounds = {"per_round": axes.pop("per_round", [self.per_round])}
        return expand({**base, **axes, **rounds, "seed": self.seeds}, self.config, {**PATIENCE, **self.extra})


def small(plan: Plan) -> Plan:
    """The plan that tries every step in a minute: two rounds, few values, one seed."""
    return replace(plan, miniature=True, seeds=plan.seeds[:1], per_round=20, extra={**plan.extra, **MINIATURE})


def large(plan: Plan) -> Plan:
    """The plan of the paper's size: 200 labels a round, more values, five seeds."""
    return replace(plan, full=True, seeds=FULL_SEEDS, per_round=200)


def released(plan: Plan) -> list[Cell]:
    """The presets that follow the released code, at the batch size of its curves."""
    size = plan.per_round if plan.miniature else 1000
    axes: dict[str, Sequence[Value]] = {"faithful": [True], "per_round": [size]}
    slow = [] if plan.miniature else plan.fewer.cells(["dog", "commodity"], method=["lean"], **axes)  # trains three networks
    return plan.cells(["dog", "commodity"], method=plan.few(FAITHFUL), **axes) + slow


def methods(plan: Plan) -> list[Cell]:
    """All presets."""
    return plan.cells(["dog", "commodity"], method=METHODS)


def threshold(plan: Plan) -> list[Cell]:
    """C; None is the default, .1."""
    return plan.cells(threshold=plan.few([None, 0.2, 0.3, 0.5], [0.05]))


def workers(plan: Plan) -> list[Cell]:
    """Number of workers, with confusions that shrink to the pooled one, and to even errors."""
    return plan.cells(workers=plan.few([None, 10, 200, 1000], [100, 500]), prior=plan.few([None, "homogeneous"]))


def per_round(plan: Plan) -> list[Cell]:
    """Labels a round."""
    if plan.miniature:
        return plan.cells(per_round=[20, 40])
    return plan.cells(per_round=plan.few([200, 1000, 2000, 4000], [500]))


def priors(plan: Plan) -> list[Cell]:
    """Priors from honest gold questions at two strengths, from an oracle, and in the paper's method as it was released."""
    kinds = plan.few(["homogeneous", "class", "worker", "class_worker"])
    honest = plan.cells(prior=kinds, strength=[10.0, 30.0], gold=[GOLD], estimate=["gold"])
    known = plan.fewer.cells(prior=kinds, strength=[10.0, 30.0] if plan.full else [10.0], oracle=[True])
    return honest + known + plan.fewer.cells(method=[PAPER], faithful=[True], prior=kinds, strength=[240.0], oracle=[True])


def assignment(plan: Plan) -> list[Cell]:
    """Random, and greedy with and without a cap."""
    groups = ["dog", "commodity"]
    capped = plan.cells(groups, assignment=["greedy"], worker_cap=[400]) if plan.full else []
    return plan.cells(groups, assignment=[None, "greedy"]) + capped


def noise(plan: Plan) -> list[Cell]:
    """Structured (the default) and uniform, with our method and with the paper's as it was released."""
    return plan.cells(noise=[None, "uniform"]) + plan.fewer.cells(method=[PAPER], faithful=[True], noise=[None, "uniform"])


def distractors(plan: Plan) -> list[Cell]:
    """Shares of images that belong to none of the classes kept."""
    return plan.cells(distractors=plan.few([0.0, 0.3, 1.0, 2.0], [0.1, 0.5]), classes=[CLASSES])


def people(plan: Plan) -> list[Cell]:
    """Recorded answers of real people."""
    chosen = plan.few(["ours", "online_ds", "lean", "improved_lean", "efficient_annotation"], ["majority_vote", "mixmatch"])
    axes: dict[str, Sequence[Value]] = {"method": chosen, "per_round": [plan.per_round], "seed": list(plan.seeds)}
    return expand(axes, plan.recorded, {**PATIENCE, **plan.extra})


GRIDS: dict[str, Callable[[Plan], list[Cell]]] = {
    "released": released,
    "methods": methods,
    "threshold": threshold,
    "workers": workers,
    "per_round": per_round,
    "priors": priors,
    "assignment": assignment,
    "noise": noise,
    "distractors": distractors,
    "people": people,
}
GROUPED = ("released", "priors", "noise", "distractors")  # sections that need groups of workers or named classes


def cells_of(plan: Plan, sections: Sequence[str]) -> dict[str, list[Cell]]:
    """The runs of each section that the plan can have; sections share runs that are equal."""
    possible = [name for name in sections if name in GRIDS and (plan.grouped or name not in GROUPED)]
    return {name: unique(GRIDS[name](plan)) for name in possible}
