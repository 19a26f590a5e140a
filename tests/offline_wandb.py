"""What an offline Weights & Biases run holds, read back from its ``.wandb`` file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2

FILE_HEADER, BLOCK, HEADER = 7, 32768, 7
WHOLE, LAST = 1, 4  # types of a chunk that end a record


@dataclass(frozen=True)
class OfflineRun:
    """``config``: hyper-parameters. ``history``: one dictionary a logged step."""

    config: dict[str, Any]
    history: list[dict[str, Any]]

    def curve(self, name: str) -> list[float]:
        """All logged values of ``name``, in order."""
        return [row[name] for row in self.history if name in row]


def go_offline(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Nothing is sent and nothing is said, and all of wandb's own files go below ``folder``."""
    patch.setenv("WANDB_MODE", "offline")
    patch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        patch.setenv(name, os.fspath(folder / name.lower()))


def logger_settings(folder: Path) -> dict[str, Any]:
    """Settings of the command line for a real ``WandbLogger`` that saves below ``folder``."""
    prefix = "trainer.logger.init_args."
    return {"trainer.logger": "WandbLogger", f"{prefix}project": "test", f"{prefix}save_dir": folder}


def read_offline(folder: Path) -> OfflineRun:
    """The one run below ``folder``, which ends here."""
    records = last_records(folder)
    config: dict[str, Any] = {}
    for record in records:
        if record.HasField("run") or record.HasField("config"):
            config |= _values((record.run.config if record.HasField("run") else record.config).update)
    return OfflineRun(config, [_values(record.history.item) for record in records if record.HasField("history")])


def last_records(folder: Path) -> list[Any]:
    """All records of the one run below ``folder``, which ends here."""
    import wandb

    wandb.finish()
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    records, late = [], time.monotonic() + 60
    while not any(record.HasField("exit") for record in records):  # another process writes on after ``finish``
        assert time.monotonic() < late, f"{path} has no end"
        time.sleep(0.05)
        records = list(_records(path.read_bytes()))
    return records


def riskiest_table(folder: Path) -> list[list[Any]]:
    """Rows of the table of the riskiest items that a run left below ``folder``, which has its picture of confusions too."""
    (media,) = folder.glob("wandb/offline-run-*/files/media")
    assert list(media.glob("images/confusion*.png"))
    (table,) = media.glob("table/riskiest_items*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["task", "image", "label", "confidence", "risk", "answers"]
    return content["data"]


def staged_files(folder: Path, run: Path) -> list[bytes]:
    """Contents of all files that the run below ``folder`` hands over; those of the annotation run ``run`` are among them."""
    staged = [path.read_bytes() for path in (folder / "wandb_data_dir").rglob("*") if path.is_file()]
    for name in ("labels.csv", "workers.csv", "rounds.csv", "report.html"):
        assert (run / name).read_bytes() in staged, name
    return staged


def _values(items: Iterable[Any]) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(content: bytes) -> Iterator[Any]:
    """LevelDB's log: blocks of 32 KiB with chunks of records, each after its checksum (4 bytes), length (2) and type (1)."""
    at, parts = FILE_HEADER, b""
    while at + HEADER <= len(content):
        if (left := BLOCK - at % BLOCK) < HEADER:  # too short for a chunk: padding
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if at > len(content):  # still being written
            return
        if kind in (WHOLE, LAST):
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""
