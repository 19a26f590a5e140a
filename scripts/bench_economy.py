"""Answers per image at equal label accuracy: methods side by side, and how far each is from the oracle bound.

    python scripts/bench_economy.py --group dog commodity --methods ours oracle --seeds 11 12 13 --out economy.csv
    python scripts/bench_economy.py --answers --rows 0:5000 --methods ours lean "soft:annotation.crowd.strength=30" --out p.csv
    python scripts/bench_economy.py --group dog --tail 10 --workers 20 --methods ours oracle-best-worker --out tail.csv
    python scripts/bench_economy.py --answers --against-rest cat --principal 256 --methods ours --out cat.csv

``--answers`` replays real people (configs/recorded.yaml), each ``--group`` asks simulated ones (configs/simulated.yaml). A
method is ``ours``, another preset, ``oracle`` or ``oracle-best-worker`` (true confusions, and a model that has learned from all
true labels), or ``NAME:key=value,key=value``: ours with these settings. The file has one row a run, written as runs end; the
same command goes on where it was stopped. What holds for all methods is part of the setting's name. Relative paths among
settings are read from the project's folder.

No figure counts prototypes. ``to90`` is answers an image at the first round with 90% of the labels right, and empty where no
round is. ``ece_max`` is the largest ECE after round 0. ``claim_gap_max`` is the largest true minus stated error of the finished
items, over rounds after round 0 with 200 or more of them. ``interval_coverage`` is the share of workers with 20 answers or more
whose 90% interval holds their share of right answers. ``f1`` is that of the class of ``--against-rest``.

``--rows``, ``--tail``, ``--against-rest``, ``--principal``, ``--scale`` and ``--unit-norm`` combine, and apply in this order.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lightning_annot.experiments.cuts import BankFiles, Cut, cut_bank, read_rows
from lightning_annot.experiments.economy import Setting, plan, read_method, read_table, run_economy
from lightning_annot.experiments.economy_table import economy_page, prototypes_of
from lightning_annot.experiments.grid import SIMULATED, read_settings
from lightning_annot.files import write_text
from lightning_annot.types import AnnotError

ROOT = Path(__file__).resolve().parents[1]
RECORDED = "configs/recorded.yaml"
CONFIGURED = "the configuration's"


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--features", type=Path, help=f"feature bank, .npy (default: {CONFIGURED})")
    found.add_argument("--labels", type=Path, help=f"CSV task,label with the truth (default: {CONFIGURED})")
    found.add_argument("--answers", nargs="?", const=CONFIGURED, help=f"replay people; CSV of answers (default: {CONFIGURED})")
    found.add_argument("--workers-file", type=Path, help=f"JSON of the AMT confusions (default: {CONFIGURED})")
    found.add_argument("--groups-file", type=Path, help=f"groups of classes (default: {CONFIGURED})")
    found.add_argument("--group", nargs="+", default=[], help="groups whose confusions are simulated, a setting each")
    found.add_argument("--methods", nargs="+", required=True, metavar="METHOD")
    found.add_argument("--seeds", nargs="+", type=int, default=[11, 12, 13])
    found.add_argument("--out", type=Path, required=True, help="CSV with a row a run")
    found.add_argument("--runs", type=Path, help="folder of the runs (default: beside --out, named after it)")
    found.add_argument("--table", type=Path, metavar="FILE.md", help="write the tables to this file, too")
    found.add_argument("--rows", metavar="A:B", help="only items A to B - 1")
    found.add_argument("--tail", type=float, metavar="R", help="class k of K keeps R^(-k / (K - 1)) of its items")
    found.add_argument("--against-rest", metavar="CLASS", help="this class against all others, of recorded people")
    found.add_argument("--principal", type=int, metavar="N", help="features as N principal components, not whitened")
    found.add_argument("--scale", type=int, metavar="SEED", help="multiply each feature by a random factor of its own")
    found.add_argument("--unit-norm", action="store_true", help="divide the features of each item by their norm")
    found.add_argument("--workers", type=int, help="number of simulated workers")
    found.add_argument("--spammers", type=float, help="share of the simulated workers who do not look")
    found.add_argument("--per-round", type=int, help="answers a round")
    found.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="any other setting, for all methods")
    found.add_argument("--jobs", type=int, default=2, help="runs side by side")
    return found


def main(argv: list[str] | None = None) -> int:
    """Run what has not ended and print the tables; 1 if a run failed, 2 if the comparison cannot be."""
    given = parser().parse_args(argv)
    runs = given.runs or given.out.with_suffix("")
    try:
        methods = [read_method(text) for text in given.methods]
        entries = plan(settings_of(given, runs), methods, given.seeds)
        outcome = run_economy(entries, given.out, runs, ROOT, given.jobs)
        text = economy_page(read_table(given.out), prototypes_of(entries, runs))
    except AnnotError as error:
        print(f"bench_economy: {error}", file=sys.stderr)
        return 2
    for name, tail in outcome.failed.items():
        print(f"\n{name} failed; the end of {runs / name / 'run.log'}:\n{tail}", file=sys.stderr)
    print(f"{text}\n{outcome}")
    if given.table is not None:
        write_text(given.table, text)
    return 1 if outcome.failed else 0


def settings_of(given: argparse.Namespace, runs: Path) -> list[Setting]:
    """People, then the groups; data that are cut are written below ``runs``."""
    if given.answers is None and not given.group:
        raise AnnotError("no setting given; give --answers to replay people, --group for simulated workers, or both.")
    if given.group and given.against_rest is not None:
        raise AnnotError(
            "--against-rest and --group given; simulated workers confuse all classes of their study, so give --answers alone."
        )
    rows = None if given.rows is None else read_rows(given.rows)
    cut = Cut(rows, given.tail, given.against_rest, given.principal, given.scale, given.unit_norm)
    for_all = read_settings(given.set)
    if given.per_round is not None:
        for_all["annotation.sampling.per_round"] = str(given.per_round)
    note = "".join(f" {key.removeprefix('annotation.sampling.')}={value}" for key, value in for_all.items())
    found = []
    if given.answers is not None:
        # Pictures are for the report alone, and other labels need not have any.
        settings = {**_bank(given, RECORDED, cut, runs), "data.root": "null", **for_all}
        found.append(Setting(f"people{cut.name}{note}", RECORDED, None, settings))
    if given.group:
        of_workers = {"n_workers": given.workers, "spammers": given.spammers}
        of_workers |= {"workers_file": given.workers_file, "groups_file": given.groups_file}
        settings = {f"annotation.workers.{key}": _text(value) for key, value in of_workers.items() if value is not None}
        settings = {**_bank(given, SIMULATED, cut, runs), **settings, **for_all}
        counts = {"workers": given.workers, "spammers": given.spammers}
        note = "".join(f" {key}={value:g}" for key, value in counts.items() if value is not None) + note
        found += [Setting(f"{group}{cut.name}{note}", SIMULATED, group, settings) for group in given.group]
    return found


def _bank(given: argparse.Namespace, config: str, cut: Cut, runs: Path) -> dict[str, str]:
    """Settings of the data: the files given, or, where there is a cut, the files that were cut from them."""
    replay = config == RECORDED
    files: dict[str, Any] = {"data.features": given.features, "data.labels": given.labels}
    if replay:
        files["annotation.workers.answers"] = None if given.answers == CONFIGURED else Path(given.answers)
    if cut != Cut():
        tree = OmegaConf.load(ROOT / config)
        own = {"data.features": tree.data.init_args.features, "data.labels": tree.data.init_args.labels}
        if replay:
            own["annotation.workers.answers"] = tree.annotation.workers.init_args.answers
        whole = [(ROOT / own[key]).resolve() if path is None else path.resolve() for key, path in files.items()]
        part = cut_bank(BankFiles(*whole), cut, runs.resolve())
        files = dict(zip(files, (part.features, part.labels, part.answers), strict=False))
    return {key: _text(path) for key, path in files.items() if path is not None}


def _text(value: Path | float) -> str:
    return str(value.resolve()) if isinstance(value, Path) else f"{value:g}"


if __name__ == "__main__":
    sys.exit(main())
