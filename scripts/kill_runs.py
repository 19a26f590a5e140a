"""Kill small runs at random moments (SIGKILL), start the same command again, and compare with undisturbed runs; prints JSON.

    python scripts/kill_runs.py                              # 200 kills, 25 a run, below /dev/shm where there is one
    python scripts/kill_runs.py --kills 50 --hidden 4096 --folder /data/tmp

The checkpoint is large beside all else that a round does, so that many kills fall while it is written. The exit status is 1 if
any start was refused, a checkpoint was damaged, an answer was lost or asked for twice, or labels, questions or answers differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from lightning_annot.experiments.kills import Pace, Small, Toll, disturbed, undisturbed

SHARED_MEMORY = Path("/dev/shm")  # another file system than that of temporary files, on most machines


def main(argv: list[str] | None = None) -> int:
    """Kill, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="kills that meet a living run")
    parser.add_argument("--kills-a-run", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=45, help="rounds of each run")
    parser.add_argument("--hidden", type=int, default=8192, help="units of a hidden layer; a checkpoint holds 2 KiB for each")
    parser.add_argument("--seed", type=int, default=1, help="of the first run; each has the next")
    parser.add_argument("--folder", type=Path, default=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)
    given = parser.parse_args(argv)
    begun, tolls, paces = time.monotonic(), list[Toll](), list[Pace]()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        while (done := sum(toll.hits for toll in tolls)) < given.kills:
            run = Small(Path(folder) / str(len(tolls)), given.seed + len(tolls), given.rounds, given.hidden)
            run.write_bank()
            paces.append(undisturbed(run, run.folder / "undisturbed"))
            kills = min(given.kills_a_run, given.kills - done)
            tolls.append(disturbed(run, run.folder / "killed", run.folder / "undisturbed", paces[-1], kills))
            print(f"run {len(tolls)}: {asdict(tolls[-1])}", file=sys.stderr)
    summed = {name: sum(asdict(toll)[name] for toll in tolls) for name in asdict(tolls[0]) if name != "checkpoint_bytes"}
    pace = {f"seconds_{name}": round(sum(asdict(p)[name] for p in paces) / len(paces), 2) for name in asdict(paces[0])}
    figures = {"runs": len(tolls), **summed, "checkpoint_mib": round(tolls[0].checkpoint_bytes / 2**20, 1), **pace}
    print(json.dumps({**figures, "seconds": round(time.monotonic() - begun)}, indent=1))
    return 0 if all(toll.survived for toll in tolls) else 1


if __name__ == "__main__":
    sys.exit(main())
