"""Full and read-only disks: one clear error, nothing half-written, and the same command goes on once there is room."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import Bank, assert_equal_runs, call, fit
from small_disk import SmallDisk, small_disk

from lightning_annot.annotations.formats import write_table
from lightning_annot.data.digests import content_digest, file_digests
from lightning_annot.data.features import FeatureBank
from lightning_annot.files import replacing, write_bytes, write_text, write_torch
from lightning_annot.types import AnnotError

BIG = os.urandom(1 << 20)
DIM = 256


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 256 KiB."""
    with small_disk(tmp_path / "disk", 256) as mounted:
        yield mounted


def big_arrays(path: Path) -> None:
    with replacing(path) as draft:
        np.savez(draft, x=np.frombuffer(BIG, np.uint8))


def big_folder(path: Path) -> None:
    with replacing(path) as draft:
        draft.mkdir()
        (draft / "small.txt").write_text("small")
        (draft / "big.bin").write_bytes(BIG)


WRITERS: list[Callable[[Path], None]] = [
    lambda path: write_text(path, BIG.hex()),
    lambda path: write_bytes(path, BIG),
    lambda path: write_torch(path, {"x": torch.arange(1 << 17)}),
    lambda path: write_table(path, pd.DataFrame({"x": range(1 << 17)})),
    big_arrays,
    big_folder,
]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("state", ["full", "read-only"])
def test_a_file_that_does_not_fit_leaves_the_old_one(disk: SmallDisk, write: Callable[[Path], None], state: str) -> None:
    path = disk.path / "a.npz"
    if write is not big_folder:
        path.write_text("old")
    disk.allow_writing(state == "full")
    with pytest.raises(AnnotError, match=rf"{path} cannot be written: .*(No space left|Read-only).*; check the disk"):
        write(path)
    assert os.listdir(disk.path) == ([] if write is big_folder else ["a.npz"])
    disk.allow_writing(True)
    disk.resize(16384)
    write(path)
    assert os.listdir(disk.path) == ["a.npz"]


def digests(n: int) -> list[str]:
    return [content_digest(str(i).encode()) for i in range(n)]


def test_features_that_do_not_fit_leave_the_rows_before_them(disk: SmallDisk) -> None:
    rows = np.random.default_rng(0).normal(size=(600, DIM)).astype(np.float16)
    bank, names = FeatureBank.open(disk.path, {"model": "m"}), digests(600)
    bank.append(names[:200], rows[:200])  # 100 KiB
    with pytest.raises(AnnotError, match=r"features\.f16 cannot be written: .*No space left"):
        bank.append(names[200:], rows[200:])
    assert (bank.folder / "features.f16").stat().st_size == 200 * DIM * 2
    for seen in (bank, FeatureBank.open(disk.path, {"model": "m"})):
        assert len(seen) == 200
        np.testing.assert_array_equal(seen.read(names[:200]), rows[:200])
    disk.resize(16384)
    bank.append(names[200:], rows[200:])
    np.testing.assert_array_equal(FeatureBank.open(disk.path, {"model": "m"}).read(names), rows)


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_a_bank_whose_disk_has_no_room_at_all(disk: SmallDisk, state: str) -> None:
    bank, rows = FeatureBank.open(disk.path, {"model": "m"}), np.ones((2, DIM), np.float16)
    with bank.writing():
        pass  # the lock's file is there
    disk.fill()
    disk.allow_writing(state == "full")
    with pytest.raises((AnnotError, OSError), match=r"No space left|Read-only"):
        bank.append(digests(2), rows)
    disk.allow_writing(True)
    disk.free()
    bank.append(digests(2), rows)
    np.testing.assert_array_equal(bank.read(digests(2)), rows)


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_digests_that_cannot_be_kept(disk: SmallDisk, tmp_path: Path, state: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"a")
    file_digests([str(path)], disk.path)
    more = [tmp_path / f"{'long' * 50}{i}.jpg" for i in range(600)]
    for file in more:
        file.write_bytes(b"b")
    disk.fill()
    disk.allow_writing(state == "full")
    with pytest.raises(AnnotError, match=r"digests\.sqlite cannot be written: .*(full|readonly|disk I/O).*check the disk"):
        file_digests([str(file) for file in more], disk.path)
    disk.allow_writing(True)
    disk.free()
    disk.resize(16384)
    assert len(set(file_digests([str(file) for file in more], disk.path))) == 1


@pytest.fixture(scope="module")
def large(bank: Bank) -> dict[str, Any]:
    """Settings of a run whose checkpoint takes more than all else."""
    return bank.settings(**{"model.hidden": 256})


@pytest.fixture(scope="module")
def whole(large: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run, undisturbed."""
    return fit(large, tmp_path_factory.mktemp("whole"))


def test_the_same_command_goes_on_whenever_there_is_more_room(large: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    """The disk is full at one stage after the other: log, tables, checkpoint, report."""
    stages = set()
    with small_disk(tmp_path / "disk", 4) as disk:
        run = disk.path / "run"
        settings = large | {"annotation.output_dir": run}
        for size in (76, 124, 184, 500, 900, 16384):
            result = call("fit", settings)
            assert result.status == 2, result.err
            assert "Traceback" not in result.err
            last = result.err.strip().splitlines()[-1]
            assert re.fullmatch(r"lightning-annot: .*(full|No space left|disk I/O).*", last)
            assert not list(run.rglob(".*.tmp*"))
            stages |= {name for name in ("annotations.db", ".csv", ".npz", "last.ckpt") if name in last}
            disk.resize(size)
        fit(settings, run)
        assert_equal_runs(run, whole)
    assert stages > {"annotations.db", "last.ckpt"}, stages


def test_a_read_only_disk(large: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 16384) as disk:
        run = fit(large, disk.path / "run", trainer__max_epochs=2)
        disk.allow_writing(False)
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        for command, words in (("fit", ()), ("report", (str(run),)), ("scorecards", (str(run),)), ("predict", ())):
            settings = {} if words else large | {"annotation.output_dir": run}
            result = call(command, settings, *words)
            assert result.status == 2, result.err
            assert "Traceback" not in result.err
            assert re.search("Read-only|readonly|unable to open", result.err), result.err
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        disk.allow_writing(True)
        fit(large, run)
        assert_equal_runs(run, whole)


def test_a_folder_that_cannot_be_made(bank: Bank, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    result = call("fit", bank.settings(**{"annotation.output_dir": tmp_path / "file" / "run"}))
    assert result.status == 2
    assert str(tmp_path / "file") in result.err
    assert "repeat the same command" in result.err
    assert "Traceback" not in result.err
