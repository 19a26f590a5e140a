"""Mutate valid files of every format, read them, and count what happens: each must be read, or refused without a traceback.

    python scripts/fuzz_readers.py --files 20000 --seed 1 --out fuzz.json

A refused file must change nothing: the log, and the files beside it, are compared before and after. Exits with status 1 where
a traceback or a partial write was found.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mutations import mutate

from lightning_annot.annotations.appending import last_id
from lightning_annot.annotations.formats import import_answers, read_labels
from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.schema import ANSWER, QUESTION
from lightning_annot.callbacks.run_folder import load_cost, load_oracle, load_prices
from lightning_annot.certificate.audit import commit, read_audit, simulated_answers
from lightning_annot.data.classes import read_classes
from lightning_annot.data.features import load_features
from lightning_annot.data.loading import BackboneSettings, list_items
from lightning_annot.data.manifest import manifest_source
from lightning_annot.data.run_labels import read_run_labels
from lightning_annot.exchange import cifar, confusions, folders, incoming, json_files, label_studio, tables
from lightning_annot.exchange.records import Reading, Records
from lightning_annot.types import AnnotError, Answer, Question, Task
from lightning_annot.workers.amt import AMTWorkers
from lightning_annot.workers.difficulty import DifficultyWorkers
from lightning_annot.workers.files import FileWorkers
from lightning_annot.workers.recorded import RecordedWorkers

ITEMS = ["1", "2", "3", "é 4.jpg"]
CLASSES = ["cat", "dog", "bird"]
MOST_ANSWERS = 100
PLAIN = Reading()


class Target:
    """A log and a folder that accepted files go into, and refused ones must leave as they are."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.has_run = folder, False
        folder.mkdir(parents=True, exist_ok=True)
        self._begin()

    def _begin(self) -> None:
        for old in self.folder.glob("annotations.db*"):
            old.unlink()
        (self.folder / incoming.CONVERTED).write_text("task,worker,label,seconds\n1,zoe,cat,\n", encoding="utf-8")
        self.log = AnnotationLog(self.folder / "annotations.db")
        self.log.record([(Question("1", "zoe"), Answer(0, "zoe", "cat"))])
        self.log.ask([Question(item, "expert", "audit") for item in ITEMS])

    def state(self) -> tuple[Any, ...]:
        """All that a refused file must not change."""
        beside = {path.name: path.read_bytes() for path in self.folder.iterdir() if not path.name.startswith("annotations.db")}
        with self.log.reading() as connection:  # the log only grows
            return last_id(connection, ANSWER), last_id(connection, QUESTION), beside

    def renew_if_large(self) -> None:
        """Start anew once many answers have come in."""
        if self.state()[0] > MOST_ANSWERS:
            self.log.close()
            self._begin()


@dataclass(frozen=True)
class Case:
    """A valid file by ``name``, what is done with one like it, and how it is mutated: csv, json, jsonl or bytes.

    ``beside``: files that lie in the same folder.
    """

    name: str
    content: bytes
    use: Callable[[Path, Target], object]
    kind: str = "csv"
    beside: Mapping[str, bytes] = field(default_factory=dict)


@dataclass
class Count:
    """What happened to the mutated files of one reader."""

    files: int = 0
    read: int = 0
    refused: int = 0
    tracebacks: int = 0
    partial_writes: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)


def imported(read: Callable[[Path, Reading], Records], how: Reading = PLAIN) -> Callable[[Path, Target], object]:
    """What ``import`` does: by turns into the log of a run, and into the file that is kept before there is one."""
    labels = pd.DataFrame({"task": ITEMS, "status": ["prototype", "finished", "finished", "unfinished"]}, dtype=object)

    def use(path: Path, target: Target) -> None:
        found = incoming.rename(path, read(path, how), {"airplane": "cat"})
        known = incoming.known_only(incoming.fitted(path, found, labels["task"], CLASSES), labels["task"])
        target.has_run = not target.has_run
        if target.has_run:
            incoming.into_log(path, target.log, known, labels, CLASSES, incoming.SOURCE)
        else:
            incoming.into_file(found, target.folder)

    return use


def bound(make: Callable[[Path], Any], collect: bool = False) -> Callable[[Path, Target], object]:
    """Workers who read a file when they are bound, or when answers are collected."""

    def use(path: Path, target: Target) -> None:
        workers = make(path)
        truth = dict(zip(ITEMS, [*CLASSES, "cat"], strict=True))
        workers.bind(Task(ITEMS, CLASSES, 0, str(path.parent), truth=truth))
        if collect:
            workers.submit([Question(item, None, id=row) for row, item in enumerate(ITEMS, start=1)])
            workers.collect()

    return use


def cases() -> dict[str, Case]:
    """Every reader by name."""
    return {**_answers(), **_json_answers(), **_of_a_task(), **_arrays()}


def _answers() -> dict[str, Case]:
    answers = "task,worker,label,seconds\n1,ann,cat,2.5\n2,ann,dog,\n1,ben,cat,3\né 4.jpg,ben,bird,1\n".encode()
    expert = b"task,label,risk,expert_label\n1,cat,.5,dog\n2,cat,.4,skip\n3,cat,.3,\n"
    turk = (
        b"HITId,WorkerId,AssignmentStatus,WorkTimeInSeconds,Input.image_url,Answer.label,Reject\n"
        b"H1,A1,Approved,12,1,cat,\nH1,A2,Rejected,1,1,dog,spam\nH2,A1,Submitted,9,2,,\n"
    )
    studio = b"image,id,choice,annotator,annotation_id,created_at,updated_at,lead_time\n1,1,cat,3,1,t,t,4.5\n2,2,,3,2,t,t,\n"
    ten_h = (
        f"annotator_id,trial_index,is_attn_check,true_category,chosen_category,{cifar.INDEX[0]},reaction_time\n"
        "3,0,0,cat,dog,2,1500\n3,1,1,dog,dog,-99999,900\n"
    ).encode()
    netease = b"tasksetId,taskId,workerId,answer,completeTime,truth,capability\n5,1,0,0,16,0,3\n5,2,1,1,16,,3\n"
    names = b"column,number,name\nanswer,0,cat\nanswer,1,dog\ntruth,0,cat\ntruth,1,dog\n"
    numbers, slots = imported(tables.read_netease), answers.replace(b",seconds", b",slot").replace(b"2.5", b"1")
    wide = b"task,ann,ben\n1,cat,\n2,dog,cat\n3,,bird\n"
    return {
        "crowd-kit": Case("a.csv", answers, imported(tables.read_crowd_kit)),
        "expert's table": Case("a.csv", expert, imported(tables.read_crowd_kit, Reading(worker="eve"))),
        "cleanlab": Case("a.csv", answers.replace(b"worker", b"annotator"), imported(tables.read_cleanlab)),
        "cleanlab-wide": Case("a.csv", wide, imported(tables.read_cleanlab_wide)),
        "mturk": Case("a.csv", turk, imported(tables.read_mturk)),
        "label-studio-csv": Case("a.csv", studio, imported(label_studio.read_label_studio_csv)),
        "cifar10h": Case("a.csv", ten_h, imported(cifar.read_cifar10h)),
        "netease": Case("a.csv", netease, numbers, beside={"a.names.csv": names}),
        "netease's names": Case("a.names.csv", names, _next_to(numbers, "a.csv"), beside={"a.csv": netease}),
        "import_answers": Case("a.csv", answers, lambda path, target: import_answers(target.log, path, CLASSES, ITEMS)),
        "answers.csv": Case("answers.csv", answers, bound(lambda path: FileWorkers(), collect=True)),
        "recorded": Case("a.csv", slots.replace(b",\n", b",1\n"), bound(lambda p: RecordedWorkers(str(p)))),
    }  # fmt: skip


def _json_answers() -> dict[str, Case]:
    choice = {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}
    skip = {"id": 2, "completed_by": {"id": 4, "email": "b@x"}, "was_cancelled": True, "result": []}
    said = {"id": 1, "completed_by": 3, "lead_time": 4.5, "was_cancelled": False, "ground_truth": True, "result": [choice]}
    studio = [
        {"id": 7, "data": {"image": "/data/upload/3/ab12cd34-1"}, "annotations": [said, skip]},
        {"id": 8, "data": {"image": "http://host/2"}, "completions": [{"id": 3, "completed_by": 5, "result": [choice]}]},
    ]
    peer = {"1": {"ann": "cat", "ben": "dog"}, "2": {"ann": "dog"}}
    numbered, named = {"0": {"0": 1, "1": 0}}, {"name": "x", "tasks": ["1"], "workers": ["ann", "ben"], "classes": CLASSES}
    annos = [
        {"image_id": "1", "worker_id": "ann", "anno": {"label": "cat"}},
        {"image_id": 2, "worker_id": 5, "anno": {"label": "dog"}},
    ]
    lean = {"annos": annos, "gt_labels": [{"image_id": "1", "label": {"label": "cat"}}, {"image_id": 2, "label": "dog"}]}
    counts = (np.arange(18).reshape(2, 3, 3) + 1).tolist()
    study = {
        "imagenet100": CLASSES,
        "imagenet100_name": CLASSES,
        "group_workers": {"0": counts},
        "workers": {"0": ["ann", "ben"]},
    }
    lines = b'{"file_name": "1", "label": "cat", "confidence": 0.5}\n{"file_name": "2", "label": "dog"}\n'
    peerannot = imported(json_files.read_peerannot)
    return {
        "label-studio": Case("a.json", _dumped(studio), imported(label_studio.read_label_studio), "json"),
        "peerannot": Case("answers.json", _dumped(peer), peerannot, "json"),
        "peerannot's names": Case(
            "metadata.json", _dumped(named), _next_to(peerannot, "answers.json"), "json", {"answers.json": _dumped(numbered)}
        ),
        "lean": Case("a.json", _dumped(lean), imported(json_files.read_lean), "json"),
        "group-workers": Case("a.json", _dumped(study), imported(confusions.read_group_workers), "json"),
        "simulated from a study": Case("a.json", _dumped(study), bound(lambda p: AMTWorkers(str(p), n_workers=2)), "json"),
        "imagefolder jsonl": Case("metadata.jsonl", lines, imported(folders.read_metadata), "jsonl"),
        "imagefolder csv": Case("metadata.csv", b"file_name,label\n1,cat\n2,dog\n", imported(folders.read_metadata)),
    }  # fmt: skip


def _of_a_task() -> dict[str, Case]:
    labels = "task,label\n1,cat\n2,dog\n3,bird\né 4.jpg,cat\n".encode()
    images = {"1.png": b"", "2.png": b""}
    listed = b"task,path,label\n1,1.png,cat\n2,2.png,dog\n"
    lines = b'{"id": 1, "path": "1.png", "label": "cat"}\n{"id": 2, "path": "2.png"}\n'
    bank = {"features.npy": _npy(np.ones((4, 2), np.float32))}
    return {
        "labels": Case("a.csv", labels, lambda path, target: read_labels(path, CLASSES)),
        "classes": Case("a.csv", b"class,name\nn1,cat\nn2,dog\n", lambda path, target: read_classes(str(path))),
        "prices": Case("a.csv", b"worker,price\nann,0.05\nben,1\n", lambda path, target: load_prices(str(path))),
        "cost": Case("a.csv", b"0,1,2.5\n1,0,1\n1,1,0\n", lambda path, target: load_cost(str(path), 3)),
        "words": Case("a.csv", b"from,to\nKatze,cat\nHund,dog\n", lambda path, target: incoming.read_words(path)),
        "items": Case("a.csv", "task,note\n1,x\n2,\n3,\né 4.jpg,\n".encode(), _items, beside=bank),
        "manifest csv": Case("a.csv", listed, lambda path, target: manifest_source(path), beside=images),
        "manifest jsonl": Case("a.jsonl", lines, lambda path, target: manifest_source(path), "jsonl", images),
        "audit": Case(
            "a.csv", labels, lambda path, target: commit(target.log, read_audit(target.log, path, CLASSES))
        ),
        "simulated expert": Case("a.csv", labels, lambda path, target: simulated_answers(path, ITEMS, CLASSES)),
        "run labels": Case("a.csv", b"task,label,confidence,status\n1,cat,.9,finished\n2,dog,.5,unfinished\n", _run_labels),
    }  # fmt: skip


def _arrays() -> dict[str, Case]:
    names = np.array(CLASSES)
    posterior = _npz(classes=names, label=np.array([[0, 1], [1, 2]]), probability=np.full((2, 2), 0.5, np.float32))
    oracle = _npz(workers=np.array(["ann"]), classes=names, confusions=np.full((1, 3, 3), 1 / 3))
    hard = _npz(items=np.array(ITEMS), classes=names, probabilities=np.full((4, 3), 1 / 3))
    table = b"task,label\n1,cat\n2,dog\n"
    ten = {
        name: torch.tensor([2, 3, 5, 5, 3, 2, 2, 3, 5, 3])
        for name in ("clean_label", *(f"random_label{slot}" for slot in (1, 2, 3)))
    }
    side = (
        "Image-batch,"
        + ",".join(f"Worker{slot}-id,Work-time-in-seconds-{slot}" for slot in (1, 2, 3))
        + "\n0 -- 9,7,20,8,30,9,4\n"
    ).encode()
    ten_n = imported(cifar.read_cifar10n)
    return {
        "posterior": Case(
            "posterior.npz", posterior, lambda path, target: read_run_labels(path.parent), "npz", {"labels.csv": table}
        ),
        "oracle": Case("a.npz", oracle, lambda path, target: load_oracle(path, ["ann"], CLASSES), "npz"),
        "difficulty": Case("a.npz", hard, bound(lambda path: DifficultyWorkers(str(path))), "npz"),
        "features": Case("a.npy", _npy(np.ones((4, 2), np.float32)), lambda path, target: load_features(path), "bytes"),
        "cifar10n": Case("a.pt", _pt(ten), ten_n, "bytes", {cifar.SIDE: side}),
        "cifar10n's side": Case(cifar.SIDE, side, _next_to(ten_n, "a.pt"), beside={"a.pt": _pt(ten)}),
    }


def _next_to(use: Callable[[Path, Target], object], name: str) -> Callable[[Path, Target], object]:
    """``use`` of the file ``name`` beside the one that is mutated."""
    return lambda path, target: use(path.with_name(name), target)


def _items(path: Path, target: Target) -> object:
    features = str(path.with_name("features.npy"))
    return list_items(None, features, None, str(path), None, BackboneSettings())


def _run_labels(path: Path, target: Target) -> object:
    return read_run_labels(path)


def _dumped(tree: object) -> bytes:
    return json.dumps(tree).encode()


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _pt(arrays: Mapping[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(arrays, buffer)
    return buffer.getvalue()


def attack(name: str, case: Case, files: int, seed: int, folder: Path, keep: int = 5) -> Count:
    """Read ``files`` mutations of one case below ``folder``; ``keep`` descriptions of faults at most."""
    rng, count = random.Random(f"{seed} {name}"), Count()
    target, place = Target(folder / "target"), folder / "files"
    place.mkdir()
    for beside, content in case.beside.items():
        (place / beside).write_bytes(content)
    path = place / case.name
    try:
        for number in range(-1, files):  # -1: the valid file
            path.write_bytes(case.content if number < 0 else mutate(rng, case.content, case.kind))
            _read_one(case, path, target, count, number, keep)
    finally:
        target.log.close()
    return count


def _read_one(case: Case, path: Path, target: Target, count: Count, number: int, keep: int) -> None:
    before, begun = target.state(), time.perf_counter()
    fault = ""
    try:
        case.use(path, target)
        count.read += 1
    except AnnotError as error:
        count.refused += 1
        str(error).encode("utf-8", errors="backslashreplace")
        if number < 0:
            fault = f"the valid file is refused: {error}"
        if target.state() != before:
            count.partial_writes += 1
            fault = f"file {number} is refused, and changed what was there: {error}"
    except Exception:
        count.tracebacks += 1
        fault = f"file {number}: {traceback.format_exc()[-1500:]}"
    took = time.perf_counter() - begun
    count.files, count.seconds, count.slowest = count.files + 1, count.seconds + took, max(count.slowest, took)
    if fault and len(count.faults) < keep:
        count.faults.append(fault)
    target.renew_if_large()


def main(argv: list[str] | None = None) -> int:
    """Attack all readers, or those named; print the counts, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000, help="mutated files over all readers (20,000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--readers", nargs="+", metavar="NAME", help="these alone")
    parser.add_argument("--out", type=Path, metavar="JSON")
    given = parser.parse_args(argv)
    chosen = {name: case for name, case in cases().items() if given.readers is None or name in given.readers}
    each, found = -(-given.files // len(chosen)), {}
    for name, case in chosen.items():
        logging.disable(logging.CRITICAL)
        with tempfile.TemporaryDirectory() as folder:
            found[name] = attack(name, case, each, given.seed, Path(folder))
        logging.disable(logging.NOTSET)
        shown = {key: value for key, value in asdict(found[name]).items() if key != "faults"}
        print(name, json.dumps(shown), *found[name].faults[:1], flush=True)
    keys = ("files", "read", "refused", "tracebacks", "partial_writes")
    total = {key: sum(getattr(count, key) for count in found.values()) for key in keys}
    print(json.dumps(total))
    if given.out is not None:
        report = {"seed": given.seed, "total": total, "readers": {name: asdict(count) for name, count in found.items()}}
        given.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return int(any(count.faults for count in found.values()))


if __name__ == "__main__":
    sys.exit(main())
