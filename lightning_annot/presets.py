"""Methods by name: ``--method NAME [--faithful true]`` stands for the settings that make one.

Names are those of Liao, Kar & Fidler 2021. Without ``faithful`` a preset is the method as the paper describes it, on our parts:
a normalised prior, soft EM, a converged temperature, class-balanced soft targets, never a worker twice on an item. With it, the
choices of the released code that matter to a number are made as well (``RELEASED``), to tell old from new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_annot.commandline.options import did_you_mean
from lightning_annot.types import AnnotError

Settings = Mapping[str, Any]

_PAPER = {
    "annotation.crowd.prior": "homogeneous",
    "annotation.crowd.strength": 10.0,
    "annotation.crowd.temper": False,
    "annotation.crowd.exclude": False,
    "annotation.sampling.cap": 3,
    "annotation.sampling.items": "uniform",
    "annotation.sampling.workers": "random",
    "data.batches.pseudo_after": 0.0,
    "annotation.stopping.patience": 10,  # released: 5, and no sooner than N / 2 answers, so never where a method is good
}
_NO_LEARNER = {
    **_PAPER,
    "model": "lightning_annot.learner.uniform.UniformModule",
    "data.projection.dim": 1,
    "data.projection.scale": "standard",  # nothing learns from features, so there is nothing to choose
    "data.projection.neighbours": 0,
    "data.batches.size": 1,
    "data.batches.steps": 1,
    "data.batches.passes": 0,
    "data.batches.objective": "labelled",
}
_PROTOTYPES = {**_PAPER, "data.holdout": "prototypes", "data.folds": 1, "model.keep_best": "round"}

METHODS: Mapping[str, Settings] = {
    # Released: shares of votes. Here: one fixed accuracy for all, so that the label is the majority's and risk is defined.
    "majority_vote": {**_NO_LEARNER, "annotation.crowd.strength": 1e6},
    # Released: hard M step, raw-count oracle prior. Here: soft EM, normalised prior, accuracy not read from the simulation.
    "online_ds": _NO_LEARNER,
    # Released: every item gets the mean of the folds, also of those that learned from it. Here: out of fold, as in Lean itself.
    "lean": {**_PAPER, "data.folds": 3, "data.batches.objective": "labelled", "model.keep_best": "round"},
    # Released: the best model of all rounds for ever. Here: the best of each round; half of the prototypes are learned from.
    "improved_lean": {**_PROTOTYPES, "data.batches.objective": "labelled"},
    # Released: drops annotated items that are not yet confident, hard labels. Here: keeps them, soft labels.
    "efficient_annotation": {**_PROTOTYPES, "data.batches.objective": "pseudo"},
    # Released: no training path. Here: Eq. 2, ratio 5 and weight 75 as in the supplement's Dog+Vertebrate.
    "mixmatch": {
        **_PROTOTYPES, "data.batches.objective": "mixmatch", "data.batches.ratio": 5.0, "model.mixed_weight": 75.0,
    },
    # Ours: cross-fitting, tiered prior, expected error reduction, soft pseudo labels; the defaults.
    "ours": {},
}  # fmt: skip

RELEASED: Settings = {
    "annotation.crowd.m_step": "hard",
    "annotation.crowd.max_iterations": 3,  # where its test of convergence always ends
    "annotation.crowd.oracle": "simulated_workers.npz",  # its prior reads the simulated workers' true accuracy
    "annotation.crowd.strength": 240.0,  # raw counts, 200 to 277 a row
    "annotation.sampling.hit_size": 40,
    "annotation.sampling.refill": True,  # it lowers C until its HITs are full
}
_RELEASED_LEARNER = {
    "model.hidden": 64,
    "model.lr": 1e-4,
    "model.schedule": "sqrt",
    "model.weight_decay": 0.01,  # divided by the number of classes: 1e-3 with ten
    "model.keep_best": "run",
    "model.restart": True,
    "model.calibration": "released",
    "data.projection": "{dim: null, scale: none, neighbours: 0}",  # features as they are
    "data.batches.steps": 300,
    "data.batches.targets": "hard",
    "data.batches.shrink": True,
}
RELEASED_BY_METHOD: Mapping[str, Settings] = {
    "online_ds": {},
    "lean": {**_RELEASED_LEARNER, "model.keep_best": "round", "model.average_folds": True},
    "improved_lean": _RELEASED_LEARNER,
    "efficient_annotation": {**_RELEASED_LEARNER, "data.batches.objective": "confident"},
    "mixmatch": _RELEASED_LEARNER,
}


def preset(method: str, faithful: bool = False) -> dict[str, Any]:
    """Dotted settings of ``method``; AnnotError for an unknown one, and for one that was never released."""
    if method not in METHODS:
        raise AnnotError(f"method {method!r} given{did_you_mean(method, METHODS)}; allowed are {', '.join(METHODS)}.")
    if not faithful:
        return {"annotation.method": method, **METHODS[method]}
    if method not in RELEASED_BY_METHOD:
        raise AnnotError(f"method {method!r} has no released form to be faithful to; those of {list(RELEASED_BY_METHOD)} have.")
    return {"annotation.method": f"{method}-released", **METHODS[method], **RELEASED, **RELEASED_BY_METHOD[method]}


def expand(args: Sequence[str]) -> list[str]:
    """Replace ``--method`` and ``--faithful`` among command-line ``args`` by their settings, right after the last --config.

    So a preset has the last word over configuration files, and what follows on the command line over both.
    """
    method, faithful, rest = None, False, []
    words = iter(args)
    for word in words:
        name, _, value = word.partition("=")
        if name not in ("--method", "--faithful"):
            rest.append(word)
            continue
        value = value or next(words, "")
        if name == "--method":
            method = value
        elif value.lower() in ("true", "false"):
            faithful = value.lower() == "true"
        else:
            raise AnnotError(f"--faithful {value!r} given; allowed are true, false.")
    if method is None:
        if faithful:
            raise AnnotError("--faithful given without --method; name the method to be faithful to.")
        return rest
    at = max((i + 1 for i, word in enumerate(rest) if word.startswith("--config=")), default=1)
    at = max(at, *(i + 2 for i, word in enumerate(rest) if word in ("--config", "-c")), 1)
    return [*rest[:at], *arguments(preset(method, faithful)), *rest[at:]]


def arguments(settings: Settings) -> list[str]:
    """``--key=value`` for each setting."""
    return [f"--{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in settings.items()]
