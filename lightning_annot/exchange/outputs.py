"""What a run's folder and log give away: answers, labels and open questions, each format by one function of (path, run).

Each returns what the format has no room for, as a number of answers by a word for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from lightning_annot.annotations.formats import write_table
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.exchange import cifar_out, confusions, folders, json_files, label_studio, tables
from lightning_annot.exchange.records import Records
from lightning_annot.files import replacing
from lightning_annot.report.run_files import RunFiles, check_items, image_root, read_run
from lightning_annot.types import AnnotError

Left = dict[str, int]


@dataclass(frozen=True)
class Outgoing:
    """A run to be exported; its files are read when they are needed.

    ``images``: folder of the images, by default that of the run's settings. ``copy``: copy them instead of linking.
    ``prefix``: stands before a task to make its address. ``finished``: leave out unfinished labels.
    """

    directory: Path
    log: AnnotationLog
    images: Path | None = None
    copy: bool = False
    prefix: str = ""
    finished: bool = False

    @cached_property
    def run(self) -> RunFiles:
        """The files of the run's folder, which have the items of the log."""
        run = read_run(self.directory)
        check_items(run, self.log)
        return run

    @cached_property
    def labels(self) -> pd.DataFrame:
        """``labels.csv``."""
        labels = self.run.labels
        return labels[labels["status"] != "unfinished"] if self.finished else labels

    def records(self, with_gold: bool = False) -> Records:
        """The answers of the log, with the time of each as ``answered_at``; the truth is that of the prototypes."""
        answers = self.log.answers().rename(columns={"item": "task"})
        kinds = ["annotation", "gold"] if with_gold else ["annotation"]
        answers = answers[answers["kind"].isin(kinds)].drop_duplicates(["task", "worker", "kind"])
        answers["skip"] = answers["label"].isna()
        columns = ["task", "worker", "label", "seconds", "kind", "skip", "answered_at"]
        if not (self.directory / "labels.csv").is_file():
            return Records(answers[columns])
        run = self.run
        known = run.labels[run.labels["status"] == "prototype"]
        return Records(answers[columns], dict(zip(known["task"], known["label"], strict=True)), tuple(run.classes))

    def without(self, *words: str) -> Left:
        """How many answers of the log there are of what has no place in a format: ``skips`` and ``times`` of ordinary answers,
        ``gold answers`` and ``audits``.
        """
        log = self.log.answers()
        ordinary = log["kind"] == "annotation"
        counts = {
            "skips": ordinary & log["label"].isna(),
            "times": ordinary & log["label"].notna() & log["seconds"].notna(),
            "gold answers": log["kind"] == "gold",
            "audits": log["kind"] == "audit",
        }
        return {word: int(counts[word].sum()) for word in (*words, "audits")}

    def address(self, task: str) -> str:
        """Where the image of a task is, as others see it."""
        return self.prefix + task


def crowd_kit(path: Path, run: Outgoing) -> Left:
    """``task,worker,label,seconds``."""
    tables.write_crowd_kit(path, run.records())
    return run.without("skips", "gold answers")


def cleanlab(path: Path, run: Outgoing) -> Left:
    """``task,annotator,label``."""
    tables.write_cleanlab(path, run.records())
    return run.without("skips", "gold answers", "times")


def cleanlab_wide(path: Path, run: Outgoing) -> Left:
    """A row a task, a column a worker."""
    tables.write_cleanlab_wide(path, run.records())
    return run.without("skips", "gold answers", "times")


def peerannot(path: Path, run: Outgoing) -> Left:
    """A folder with ``answers.json`` and ``metadata.json``."""
    json_files.write_peerannot(path, run.records())
    return run.without("skips", "gold answers", "times")


def lean(path: Path, run: Outgoing) -> Left:
    """``annos``, and prototypes as ``gt_labels``."""
    json_files.write_lean(path, run.records())
    return run.without("skips", "gold answers", "times")


def netease(path: Path, run: Outgoing) -> Left:
    """NetEaseCrowd, with prototypes as truth."""
    tables.write_netease(path, run.records())
    return run.without("skips", "gold answers", "times")


def cifar10n(path: Path, run: Outgoing) -> Left:
    """The ``.pt``, and the CSV beside it."""
    further = cifar_out.write_cifar10n(path, run.records())
    return run.without("skips", "gold answers") | {"labels beside three workers a batch": further}


def cifar10h(path: Path, run: Outgoing) -> Left:
    """Raw answers, gold as attention checks."""
    cifar_out.write_cifar10h(path, run.records(with_gold=True))
    return run.without("skips")


def mturk(path: Path, run: Outgoing) -> Left:
    """Results of a batch."""
    tables.write_mturk(path, run.records(), run.address)
    return run.without("gold answers")


def group_workers(path: Path, run: Outgoing) -> Left:
    """Counts of gold answers, of all people as one group."""
    found = run.records(with_gold=True)
    labels, classes = found.labels(), found.class_names()
    who, counts = confusions.count_confusions(labels[labels["kind"] == "gold"], found.truth, classes)
    if not len(who):
        raise AnnotError(f"{run.directory} has no gold answers to count; ask for some by annotation.gold or gold_rate")
    names = run.run.names
    confusions.write_group_workers(path, classes, [names[name] for name in classes], {"0": counts}, {"0": who})
    ordinary = int((found.answers["kind"] == "annotation").sum())
    return run.without() | {"ordinary answers": ordinary, "skips": int(found.answers["skip"].sum())}


def studio_csv(path: Path, run: Outgoing) -> Left:
    """Label Studio's CSV export."""
    label_studio.write_label_studio_csv(path, run.records(), run.address)
    return run.without("gold answers")


def studio(path: Path, run: Outgoing) -> Left:
    """Annotations of the log, and the run's labels, where it has any yet, as predictions."""
    given = run.records(with_gold=True)
    predictions = run.labels if (run.directory / "labels.csv").is_file() else None
    tasks = {*given.answers["task"], *([] if predictions is None else predictions["task"])}
    address = {task: run.address(task) for task in tasks} if run.prefix else None
    label_studio.write_label_studio(path, given, address, predictions)
    return run.without()


def mturk_input(path: Path, run: Outgoing) -> Left:
    """The open questions, one HIT each."""
    tasks = list(dict.fromkeys(run.log.questions(open_only=True, kind="annotation")["item"]))
    if not tasks:
        raise AnnotError(f"{run.directory} has no open questions; run fit until it waits for answers")
    tables.write_mturk_input(path, tasks, [run.address(task) for task in tasks])
    return {}


def labels_csv(path: Path, run: Outgoing) -> Left:
    """``labels.csv``, or the finished part of it."""
    write_table(path, run.labels)
    return {}


def parquet(path: Path, run: Outgoing) -> Left:
    """``labels.csv`` with the most probable classes of each item, ``top_label``, and their ``top_probability``, as lists."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise AnnotError("Parquet needs pyarrow; pip install 'lightning-annot[parquet]', or export as labels-csv") from error
    from lightning_annot.data.run_labels import read_run_labels  # loads torch

    soft = read_run_labels(run.directory)
    row = pd.Index(soft.ids).get_indexer(run.labels["task"])
    names = np.array(soft.classes, dtype=object)[soft.top.numpy()[row]]
    table = pa.Table.from_pandas(run.labels, preserve_index=False)
    table = table.append_column("top_label", pa.array(names.tolist(), pa.list_(pa.string())))
    table = table.append_column("top_probability", pa.array(soft.probability.numpy()[row].tolist(), pa.list_(pa.float32())))
    with replacing(path) as draft:
        pq.write_table(table, draft)
    return {}


def class_folders(path: Path, run: Outgoing) -> Left:
    """One folder a class, with links or copies."""
    root = run.images or image_root(run.run)
    if root is None:
        raise AnnotError(f"{run.directory} does not say where its images are; name their folder by --images DIR")
    folders.write_class_folders(path, run.labels, Path(root), run.copy)
    return {}


def imagefolder(path: Path, run: Outgoing) -> Left:
    """``metadata.jsonl``, or, where the file is to end in ``.csv``, ``metadata.csv``."""
    folders.write_metadata(path, run.labels)
    return {}
