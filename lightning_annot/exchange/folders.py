"""Labels of image folders: one folder a class, or a ``metadata`` file as Hugging Face's imagefolder has it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from lightning_annot.annotations.formats import read_table, write_table
from lightning_annot.annotations.json_text import name_of, read_json_lines
from lightning_annot.data.files import folder_source
from lightning_annot.data.places import Finder
from lightning_annot.exchange.records import Reading, Records, column, member, records
from lightning_annot.files import replacing, write_text
from lightning_annot.types import AnnotError

FOLDER = "folder"  # who said what a folder says, unless somebody is named
_SHOWN = 5


def read_class_folders(path: Path, how: Reading) -> Records:
    """``CLASS/a.jpg``: the task is the path below the class folder. All of it is one worker's, "folder" unless named."""
    source = folder_source(path, allow_outside=True)  # names are read, and no pixels: links to images are as good as images
    if source.labels is None:
        raise AnnotError(f"{path} holds images, and no class folders; give a folder with one folder a class")
    names = list(source.ids)
    label = [source.labels[name] for name in names]
    task = [_below(name, folder) for name, folder in zip(names, label, strict=True)]
    who = column([how.worker or FOLDER] * len(names), names, "file")
    return records(path, column(task, names, "file"), who, column(label, names, "file"))


def read_metadata(path: Path, how: Reading) -> Records:
    """``metadata.csv`` or ``metadata.jsonl`` (or the folder with one) with ``file_name`` and ``label``, all of one worker."""
    path = _metadata_of(path)
    task, label = how.column("task", "file_name"), how.column("label")
    if path.suffix.lower() == ".csv":
        table = read_table(path, (task, label))
    else:
        rows = read_json_lines(path)
        places = [(f"line {line}", row) for line, row in rows]
        cells = {key: [name_of(path, at, member(path, at, row, key)) for at, row in places] for key in (task, label)}
        table = pd.DataFrame(cells, index=pd.Index([line for line, _ in rows], name="line"), dtype=object)
    who = pd.Series(how.worker or FOLDER, index=table.index, dtype=object)
    return records(path, table[task], who, table[label])


def write_metadata(path: Path, labels: pd.DataFrame) -> None:
    """``file_name``, ``label`` and ``confidence`` of each image, as CSV where ``path`` says so, else ``metadata.jsonl``.

    It belongs into the images' folder.
    """
    path = path / "metadata.jsonl" if path.is_dir() else path
    if path.suffix.lower() == ".csv":
        write_table(path, labels[["task", "label", "confidence"]].rename(columns={"task": "file_name"}))
        return
    rows = zip(labels["task"], labels["label"], labels["confidence"], strict=True)
    lines = [json.dumps({"file_name": t, "label": c, "confidence": p}, ensure_ascii=False) for t, c, p in rows]
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_class_folders(path: Path, labels: pd.DataFrame, images: Path, copy: bool = False) -> None:
    """Below the new or empty folder ``path`` one folder a class, with links to (or copies of) the files of ``images``.

    Nothing is written unless all files are there and all names stay inside.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise AnnotError(f"{path} exists and is no empty folder; give a new one")
    tasks, classes = labels["task"].tolist(), labels["label"].tolist()
    _check_inside(tasks, {*classes})
    finder = Finder(images.resolve())
    places = [Path(finder.find(task)) for task in tasks]
    missing = [task for task, place in zip(tasks, places, strict=True) if not place.is_file()]
    if missing:
        raise AnnotError(
            f"{len(missing)} of {len(tasks)} images are not below {images} ({', '.join(missing[:_SHOWN])}); name their folder "
            "by --images DIR"
        )
    with replacing(path) as draft:
        draft.mkdir()
        for task, name, place in zip(tasks, classes, places, strict=True):
            target = draft / name / task
            target.parent.mkdir(parents=True, exist_ok=True)
            if copy:
                shutil.copyfile(place, target)
            else:
                target.symlink_to(place)


def _below(name: str, folder: str) -> str:
    parts = PurePosixPath(name).parts
    return "/".join(parts[parts.index(folder) + 1 :])


def _check_inside(tasks: Sequence[str], classes: set[str]) -> None:
    """AnnotError unless every task is a relative path without ``..``, and every class one plain name."""
    odd = [t for t in tasks if PurePosixPath(t).is_absolute() or {"..", "."} & {*t.split("/")} or not t or "\0" in t]
    odd += sorted(name for name in classes if name in ("", ".", "..") or {"/", "\\", "\0"} & {*name})
    if odd:
        raise AnnotError(f"{odd[:_SHOWN]} cannot name a file or folder below another; export as csv instead")


def _metadata_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in ("metadata.jsonl", "metadata.csv") if (path / name).is_file()]
    if len(found) != 1:
        raise AnnotError(f"{path} has {len(found)} of metadata.jsonl and metadata.csv; give the file itself")
    return found[0]
