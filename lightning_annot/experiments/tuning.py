"""Search over the learner's hyper-parameters by the loss on held-out prototypes; the truth of other images has no say."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_annot.experiments.grid import Cell, Value, expand
from lightning_annot.experiments.machine import environment
from lightning_annot.experiments.runner import Outcome, alone, job_of, run_jobs
from lightning_annot.files import write_text
from lightning_annot.types import AnnotError

if TYPE_CHECKING:
    from optuna import Study, Trial

BATCH = 1024
SCORE = "score.json"
TABLE_1: dict[str, list[float]] = {
    "lambda": [1e-3, 5e-4, 1e-4, 5e-5],
    "weight_decay": [1e-3, 5e-3, 5e-4, 1e-4],
    "mu": [3, 5, 10],
    "gamma": [50, 75, 100, 150],
}
"""Ranges of the paper's Table 1. mu and gamma, the unlabelled ratio and the weight of the mixed loss, are MixMatch's alone."""


@dataclass(frozen=True)
class Search:
    """Where the runs are and what they have in common; a trial's score is the mean over ``seeds``."""

    directory: Path
    config: str
    coordinates: Mapping[str, Value]
    seeds: Sequence[int]
    extra: Mapping[str, str]

    @property
    def space(self) -> dict[str, list[float]]:
        """The ranges that the method uses."""
        all_of_it = self.coordinates.get("method") == "mixmatch"
        return TABLE_1 if all_of_it else {name: TABLE_1[name] for name in ("lambda", "weight_decay")}

    def cells(self, values: Mapping[str, float]) -> list[Cell]:
        """The runs of one choice of values."""
        axes: dict[str, Sequence[Value]] = {name: [value] for name, value in self.coordinates.items()}
        return expand({**axes, "seed": list(self.seeds)}, self.config, {**self.extra, **settings(values)})


def settings(values: Mapping[str, float]) -> dict[str, str]:
    """Settings of a choice of values; the step size is lambda times the square root of the batch, as in the released code."""
    found = {"model.lr": f"{values['lambda'] * math.sqrt(BATCH):.6g}", "model.weight_decay": f"{values['weight_decay']:g}"}
    found["data.batches.size"] = str(BATCH)
    if "mu" in values:
        found |= {"data.batches.ratio": f"{values['mu']:g}", "model.mixed_weight": f"{values['gamma']:g}"}
    return found


def search(plan: Search, trials: int, root: Path, jobs: int) -> tuple[dict[str, Any], Outcome]:
    """Go on until ``trials`` choices have a score; returns the best as plain values, and how the runs ended.

    The study is ``study.db`` in the plan's folder. What a killed search had begun is tried again first; runs that have ended
    count, whoever asks for them.
    """
    if trials < 1 or jobs < 1:
        raise AnnotError(f"trials {trials}, jobs {jobs} given; both must be 1 or more.")
    plan.cells({name: some[0] for name, some in plan.space.items()})  # refuses what cannot be before anything is made
    with alone(plan.directory):
        study, outcome = _study(plan), Outcome()
        left = trials - len(_complete(study))
        while left > 0:
            asked = [study.ask() for _ in range(min(left, jobs))]
            scores = _scores(plan, [_values(trial, plan.space) for trial in asked], root, jobs, outcome)
            for trial, score in zip(asked, scores, strict=True):
                if score is None:
                    study.tell(trial, state=_state("FAIL"))
                else:
                    study.tell(trial, score)
            left -= len(asked)
        if not _complete(study):
            return {}, outcome
        best = study.best_trial
        return {"val_loss": best.value, "values": best.params, "settings": settings(best.params)}, outcome


def score_run(folder: Path) -> None:
    """``val_loss`` of the run's last learner on the prototypes, each by a head that never saw it, to ``score.json``."""
    from lightning_annot.cli import run

    cli = run(["validate", "--config", str(folder / "config.yaml")])
    write_text(folder / SCORE, json.dumps({"val_loss": float(cli.trainer.callback_metrics["val_loss"])}))


def _scores(
    plan: Search, choices: Sequence[Mapping[str, float]], root: Path, jobs: int, outcome: Outcome
) -> list[float | None]:
    machine, cells = environment(root), [plan.cells(values) for values in choices]
    each = {cell.name: cell for some in cells for cell in some}
    todo = [cell for name, cell in each.items() if not (plan.directory / name / SCORE).is_file()]
    outcome.skipped += [name for name, cell in each.items() if cell not in todo]
    run_jobs([job_of(cell, plan.directory, machine, then=score_run) for cell in todo], root, jobs, outcome)
    return [_mean([plan.directory / cell.name / SCORE for cell in some]) for some in cells]


def _mean(paths: Sequence[Path]) -> float | None:
    if not all(path.is_file() for path in paths):
        return None
    return sum(float(json.loads(path.read_text())["val_loss"]) for path in paths) / len(paths)


def _study(plan: Search) -> Study:
    try:
        import optuna
    except ImportError:
        raise AnnotError("tuning needs Optuna: pip install -e '.[tune]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    (first, *_) = plan.cells({name: some[0] for name, some in plan.space.items()})
    common = {key: value for key, value in first.settings.items() if key not in settings(dict.fromkeys(TABLE_1, 1.0))}
    name = json.dumps({**common, "seed_everything": list(plan.seeds)}, sort_keys=True)
    url, sampler = f"sqlite:///{plan.directory / 'study.db'}", optuna.samplers.TPESampler(seed=0)
    study = optuna.create_study(storage=url, study_name=name, sampler=sampler, direction="minimize", load_if_exists=True)
    for trial in study.get_trials(states=[_state("RUNNING")]):  # of a search that was killed
        study.tell(trial.number, state=_state("FAIL"))
        if len(trial.params) == len(plan.space):
            study.enqueue_trial(trial.params)
    return study


def _values(trial: Trial, space: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: float(trial.suggest_categorical(name, list(some))) for name, some in space.items()}


def _complete(study: Study) -> list[Any]:
    found: list[Any] = study.get_trials(deepcopy=False, states=[_state("COMPLETE")])
    return found


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]
