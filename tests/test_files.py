"""Files are replaced whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from lightning_annot.files import replacing, write_text
from lightning_annot.types import AnnotError


def test_content_is_replaced_and_nothing_is_left_beside(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    write_text(path, "nëw")
    assert path.read_bytes() == "nëw".encode()
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as draft:
        draft.write_bytes(b"half" * (draft.write_bytes(b"half") // 0))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("place", ["nowhere/a.txt", "folder"])
def test_what_cannot_be_written_is_an_error_that_names_it(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(AnnotError, match="cannot be written"):
        write_text(tmp_path / place, "new")
    assert os.listdir(tmp_path) == ["folder"]


def _die_halfway(path: Path) -> None:
    with replacing(path) as draft:
        draft.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_tidies_up(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    process = multiprocessing.get_context("spawn").Process(target=_die_halfway, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 2
    write_text(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]
