"""The one table of formats: what each is called, and which functions read and write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning_annot.commandline.options import did_you_mean
from lightning_annot.types import AnnotError


@dataclass(frozen=True)
class Format:
    """``about``: what it is. ``suffix``: what files that are of this format unless told otherwise end in.

    ``read``: a function of (path, ``Reading``) to ``Records``; ``write``: one of (path, ``Outgoing``) to what was left out;
    each as ``module:name`` below this package, so that a list of formats loads nothing.
    """

    about: str
    read: str | None = None
    write: str | None = None
    suffix: str | None = None

    @property
    def directions(self) -> str:
        """``in``, ``out`` or both."""
        return ", ".join(word for word, there in (("in", self.read), ("out", self.write)) if there)


FORMATS = {
    "crowd-kit": Format("answers: CSV task,worker,label[,seconds]", "tables:read_crowd_kit", "outputs:crowd_kit", ".csv"),
    "cleanlab": Format("answers: CSV task,annotator,label", "tables:read_cleanlab", "outputs:cleanlab"),
    "cleanlab-wide": Format("answers: CSV, row = task, column = worker", "tables:read_cleanlab_wide", "outputs:cleanlab_wide"),
    "label-studio": Format(
        "answers: JSON; out with the run's labels as predictions", "label_studio:read_label_studio", "outputs:studio"
    ),
    "label-studio-csv": Format(
        "answers: Label Studio's CSV export", "label_studio:read_label_studio_csv", "outputs:studio_csv"
    ),
    "mturk": Format("answers: Mechanical Turk batch results", "tables:read_mturk", "outputs:mturk"),
    "mturk-input": Format("open questions: Mechanical Turk batch input", None, "outputs:mturk_input"),
    "cifar10n": Format(
        "answers: CIFAR-10N .pt and the CSV beside it (--side)", "cifar:read_cifar10n", "outputs:cifar10n", ".pt"
    ),
    "cifar10h": Format("answers: CIFAR-10H raw CSV", "cifar:read_cifar10h", "outputs:cifar10h"),
    "netease": Format("answers: NetEaseCrowd CSV", "tables:read_netease", "outputs:netease"),
    "peerannot": Format("answers: folder with answers.json, metadata.json", "json_files:read_peerannot", "outputs:peerannot"),
    "lean": Format("answers: Lean crowdsourcing JSON", "json_files:read_lean", "outputs:lean"),
    "group-workers": Format(
        "gold answers: confusion counts of the AMT study", "confusions:read_group_workers", "outputs:group_workers"
    ),
    "class-folders": Format("labels: a folder a class, links or copies", "folders:read_class_folders", "outputs:class_folders"),
    "imagefolder": Format("labels: metadata.csv or metadata.jsonl", "folders:read_metadata", "outputs:imagefolder", ".jsonl"),
    "labels-csv": Format("labels: CSV, as labels.csv", None, "outputs:labels_csv"),
    "parquet": Format("labels: Parquet, with the five most probable classes", None, "outputs:parquet", ".parquet"),
}


def find(name: str | None, path: Path, direction: str) -> Callable[..., Any]:
    """The function that reads ("read") or writes ("write") format ``name``, or the format that the suffix of ``path`` means."""
    able = {key: form for key, form in FORMATS.items() if getattr(form, direction)}
    if name is None:
        name = next((key for key, form in able.items() if form.suffix == path.suffix.lower()), None)
        if name is None:
            raise AnnotError(f"{path} may be of several formats; name one by --format: {', '.join(able)}")
    if name not in able:
        raise AnnotError(f"--format {name} given{did_you_mean(name, able)}; what can be {direction}: {', '.join(able)}")
    module, function = getattr(able[name], direction).split(":")
    found: Callable[..., Any] = getattr(import_module(f"lightning_annot.exchange.{module}"), function)
    return found


def listing(direction: str) -> str:
    """One line a format, for people."""
    able = {key: form.about for key, form in FORMATS.items() if getattr(form, direction)}
    return "\n".join(f"  {key:17} {about}" for key, about in able.items())
