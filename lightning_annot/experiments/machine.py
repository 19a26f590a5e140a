"""Where runs were made, without names of hosts, people or places."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch


def environment(root: Path) -> dict[str, str]:
    """CPU, cores, memory, versions, and the commit of the code below ``root`` (``unknown`` outside a repository)."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    return {
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "memory": "unknown" if memory is None else f"{memory:.0f} GiB",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(root),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _commit(root: Path) -> str:
    head = _git(root, "rev-parse", "--short=10", "HEAD")
    if head is None:
        return "unknown"
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "lightning_annot", "configs")
    return f"{head} with changes" if changed else head


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
