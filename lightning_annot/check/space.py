"""Check that disks and memory suffice for a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from lightning_annot.check.lines import Lines
from lightning_annot.files import check_writable, nearest

_ANSWER_BYTES = 400  # of the log and its journal
_ITEM_BYTES = 400  # in labels.csv, the posterior and the report
_FIXED_BYTES = 20_000_000  # report, curves, checkpoint's frame
_DIGEST_BYTES = 150  # of a file, in the bank and in the cache of digests


def run_bytes(items: int, answers: int, learner_values: int) -> int:
    """What a run's folder holds: the log, tables, and the checkpoint twice, with weights and momentum of the learner."""
    return _FIXED_BYTES + items * _ITEM_BYTES + answers * _ANSWER_BYTES + 2 * 2 * 4 * learner_values


def bank_bytes(missing: int, width: int) -> int:
    """What an extraction adds to the bank."""
    return missing * (2 * width + _DIGEST_BYTES)


def look_at_disks(lines: Lines, needs: Mapping[Path, int]) -> None:
    """Say for each folder whether it can be written, and whether it has room for so many bytes; one disk has to hold all."""
    by_disk: dict[int, int] = {}
    for folder, need in needs.items():
        disk = nearest(folder).stat().st_dev
        by_disk[disk] = by_disk.get(disk, 0) + need
    for folder, need in needs.items():
        if not lines.passes("disk", lambda folder=folder: check_writable(folder)):  # type: ignore[misc]
            continue
        there = nearest(folder)
        free, wanted = shutil.disk_usage(there).free, by_disk[there.stat().st_dev]
        text = f"{folder} needs about {_size(need)}, and its disk has {_size(free)} free"
        if wanted > free:
            more = f" ({_size(wanted)} with the other folders on it)" if wanted > need else ""
            lines.problem("disk", f"{text}{more}; make room, or choose a folder on another disk")
        else:
            lines.ok("disk", text)


def look_at_memory(lines: Lines, items: int, classes: int, width: int) -> None:
    """Say whether the posterior, the learner's table and the projected features fit into memory."""
    need = items * (classes * 4 * 3 + width * 4)
    free = _free_memory()
    text = f"about {_size(need)} for {items:,} items, {classes:,} classes and {width:,} projected features"
    if free is not None and need > free:
        lines.warn("memory", f"{text}, and {_size(free)} are free; lower data.projection.dim, or take a larger machine")
    else:
        lines.ok("memory", text if free is None else f"{text}; {_size(free)} are free")


def _free_memory() -> int | None:
    """Bytes; None where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6)):,} MB"
