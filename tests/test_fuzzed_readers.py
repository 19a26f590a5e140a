"""Whatever bytes a file holds, it is read, or refused with its place; a refused file changes nothing."""

from __future__ import annotations

import importlib.util
import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from exchange_records import PLAIN, saved

from lightning_annot import stored
from lightning_annot.annotations.formats import read_labels
from lightning_annot.annotations.json_text import read_json
from lightning_annot.annotations.text import read_text
from lightning_annot.data.classes import read_classes
from lightning_annot.data.features import load_features
from lightning_annot.data.manifest import manifest_source
from lightning_annot.exchange import cifar, confusions, folders, json_files, label_studio, tables
from lightning_annot.exchange.records import Reading
from lightning_annot.stored import read_arrays
from lightning_annot.types import AnnotError

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def load_fuzzer() -> ModuleType:
    """``scripts/fuzz_readers.py`` as a module."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec = importlib.util.spec_from_file_location("fuzz_readers", SCRIPTS / "fuzz_readers.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["fuzz_readers"] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPTS))
    return module


FUZZER = load_fuzzer()
CASES = FUZZER.cases()


def check(name: str, files: int, seed: int, folder: Path) -> None:
    count = FUZZER.attack(name, CASES[name], files, seed, folder)
    assert count.faults == []
    assert (count.files, count.tracebacks, count.partial_writes) == (files + 1, 0, 0)
    assert count.read + count.refused == count.files


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", CASES)
def test_mutated_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    check(name, 8, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_many_mutated_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    check(name, 500, 2, tmp_path)


def test_the_script_counts_what_it_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def reads_everything(path: Path, target: Any) -> None:
        if b"\x00" in path.read_bytes():
            raise KeyError("a fault")
        if path.read_bytes() != b"task\n1\n":
            (target.folder / "half").write_bytes(path.read_bytes())
            raise AnnotError("refused too late")

    count = FUZZER.attack("faulty", FUZZER.Case("a.csv", b"task\n1\n", reads_everything), 60, 0, tmp_path)
    assert count.tracebacks > 0
    assert count.partial_writes > 0
    assert count.files == 61 == count.read + count.refused + count.tracebacks
    assert FUZZER.main(["--files", "4", "--readers", "labels", "--out", str(tmp_path / "out.json")]) == 0
    assert '"tracebacks": 0' in capsys.readouterr().out
    assert read_json(tmp_path / "out.json")["total"]["files"] == 5


# The same by hand, with the words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000 + "]" * 100_000, "line 1: brackets are nested too deeply"),
        ('{"a":' * 100_000, "line 1: brackets are nested too deeply"),
        ('{"a": 1,\n"b": ' + "9" * 5000 + "}", r"from line 2 on: 9999999999\.\.\. is a number of 5000 digits"),
        ('{"a": 1e999}', "1e999 is too large a number"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1, "a": 2}', "key 'a' twice, with two values"),
        ('{"a": 1\n"b": 2}', "line 2: Expecting ',' delimiter"),
        ('{"a": "\\ud83d\\ude00",\n"b": ["\\ud83d"]}', r"'\\ud83d' is half of a character"),
        ('{"a": {"\\ude00": 1}}', "from line 1 on: .* half of a character"),
        ("", "line 1: Expecting value"),
        ("\x00\x00\x00", "line 1"),
    ],
)
def test_json_that_no_parser_takes_is_refused_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(AnnotError, match=words):
        read_json(saved(tmp_path, text, "a.json"))


STUDIO, LEAN = label_studio.read_label_studio, json_files.read_lean
STUDY, CROWD_KIT = confusions.read_group_workers, tables.read_crowd_kit


def annotated(**changes: Any) -> list[Any]:
    result = [{"type": "choices", "from_name": "c", "value": {"choices": ["cat"]}}]
    return [{"data": {"image": "1"}, "annotations": [{"completed_by": 1, "result": result} | changes]}]


@pytest.mark.parametrize(
    ("read", "name", "content", "words"),
    [
        (
            label_studio.read_label_studio,
            "a.json",
            [{"data": {"image": ["1"]}, "annotations": [{}]}],
            r"task 1, data: \[\"1\"\] is no",
        ),
        (
            label_studio.read_label_studio,
            "a.json",
            annotated(completed_by="\ud800"),
            r"line 1 on: '\\ud800' is half of a character",
        ),
        (
            label_studio.read_label_studio,
            "a.json",
            annotated(lead_time=[1]),
            r"task 1, annotation 1, lead_time: \[1\] is no name",
        ),
        (STUDIO, "a.json", annotated(result={}), "dict where a list of results of task 1"),
        (json_files.read_peerannot, "answers.json", {"1": {"a": None}}, "task '1' by 'a': null is no name"),
        (
            LEAN,
            "a.json",
            {"annos": [{"image_id": {}, "worker_id": 1, "anno": {"label": 1}}]},
            "anno 1: {} is no name",
        ),
        (
            LEAN,
            "a.json",
            {"annos": [], "gt_labels": [{"image_id": 1, "label": 1}, {"image_id": 1, "label": 2}]},
            "gt_label 2: '1' is '2', and '1' above",
        ),
        (STUDY, "a.json", {"imagenet100": 3, "group_workers": {}}, "'3' as imagenet100, where a list"),
        (STUDY, "a.json", {"imagenet100": ["a"], "group_workers": [1]}, r"'\[1\]' as group_workers"),
        (
            confusions.read_group_workers,
            "a.json",
            {"imagenet100": ["a"], "group_workers": {"0": [[[9e6]], [[9e6]]]}},
            "at most 10000000",
        ),
        (STUDY, "a.json", {"imagenet100": ["a", "a"], "group_workers": {}}, r"\['a'\] more than once"),
        (folders.read_metadata, "metadata.jsonl", '\n{"file_name": [], "label": 1}', r"line 2: \[\] is no name"),
        (json_files.read_peerannot, "answers.json", {"x" * 10_001: {"a": "cat"}}, "task of more than 10000 characters"),
        (CROWD_KIT, "a.csv", "task,worker,label\n1,a\x00,cat\n", r"control character in the worker .line 2|contains NUL"),
        (
            tables.read_crowd_kit,
            "a.csv",
            f'task,worker,label\n1,"{"x" * 200_000}",cat\n',
            "line 2: field larger than field limit",
        ),
        (CROWD_KIT, "a.csv", "task,worker,label,seconds\n1,a,cat,1e999\n", "impossible seconds .line 2"),
        (CROWD_KIT, "a.csv", f"task,worker,label,seconds\n1,a,cat,{'9' * 5000}\n", "impossible seconds .line 2"),
    ],
)
def test_what_no_name_or_number_can_be_is_refused_with_its_place(
    tmp_path: Path, read: Callable[[Path, Reading], object], name: str, content: Any, words: str
) -> None:
    with pytest.raises(AnnotError, match=words):
        read(saved(tmp_path, content, name), PLAIN)


def test_a_long_word_beside_an_accent_is_read_at_once(tmp_path: Path) -> None:
    text = "Bär\n" + "x" * 300_000  # a search that tries each start and end of the word would take hours
    (tmp_path / "a.txt").write_bytes(text.encode("cp1252"))
    assert read_text(tmp_path / "a.txt") == (text, "cp1252")


def test_both_halves_of_a_character_are_one(tmp_path: Path) -> None:
    assert read_json(saved(tmp_path, '{"a": "\\ud83d\\ude00"}', "a.json")) == {"a": "\N{GRINNING FACE}"}


def test_class_names_with_control_characters(tmp_path: Path) -> None:
    with pytest.raises(AnnotError, match=r"names of data\.classes"):
        read_classes(["cat", "a\nb"])
    with pytest.raises(AnnotError, match=r"control character in the class .line 3"):
        read_classes(str(saved(tmp_path, 'class\n"a\nb"\n')))
    with pytest.raises(AnnotError, match=r"control character in the label .line 2"):
        read_labels(saved(tmp_path, "task,label\n1,a\x07b\n"))
    with pytest.raises(AnnotError, match="nested too deeply"):
        manifest_source(saved(tmp_path, "[" * 100_000, "a.jsonl"))


def zip_bomb(size: int) -> bytes:
    """A small zip file with one member of ``size`` zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(size))
    return buffer.getvalue()


def test_files_of_arrays_that_would_unpack_without_end_or_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MOST_BYTES", 1 << 20)
    path = tmp_path / "a.npz"
    path.write_bytes(zip_bomb(1 << 24))
    with pytest.raises(AnnotError, match=r"would unpack to 16,777,216 bytes.*mend it"):
        read_arrays(path, ["x"], "mend it")
    with pytest.raises(AnnotError, match="would unpack to"):
        cifar.read_cifar10n(path, PLAIN)
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(AnnotError, match=r"allow_pickle=False.*mend it"):
        read_arrays(path, ["x"], "mend it")
    with pytest.raises(AnnotError, match=r"is damaged .*mend it"):
        read_arrays(path, ["y"], "mend it")
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object))
    with pytest.raises(AnnotError, match=r"cannot be read as .npy"):
        load_features(tmp_path / "a.npy")
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((\n\n")
    with pytest.raises(AnnotError, match=r"cannot be read as .npy"):
        load_features(tmp_path / "b.npy")
    torch.save({"clean_label": torch.nn.Linear(1, 1)}, tmp_path / "a.pt")
    with pytest.raises(AnnotError, match="cannot be read as a file of arrays"):
        cifar.read_cifar10n(tmp_path / "a.pt", PLAIN)
