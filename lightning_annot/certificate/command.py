"""``lightning-annot certify``: draw an audit, take its answers in, state the certificate."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_annot.commandline.options import OptionParser
from lightning_annot.types import AnnotError

if TYPE_CHECKING:
    from lightning_annot.annotations.log import AnnotationLog
    from lightning_annot.certificate.record import Record
    from lightning_annot.certificate.sample import CertifiedSet
    from lightning_annot.report.run_files import RunFiles

_DESCRIPTION = """State an upper bound of the share of wrong labels among the finished ones, from a random audit by an expert.

  certify DIR --draw 300 --out audit.csv   draw labels and write them for the expert, who fills the column label
  certify DIR --answers audit.csv          take the answers in, as many as there are, and state the certificate
  certify DIR                              state it from the answers so far

DIR/certificate.json holds it. The annotation log keeps the record of all audits and looks, on which later claims depend.
"""


def certify(args: list[str]) -> int:
    """Run the command; returns 0, or raises AnnotError."""
    given = certify_parser().parse_args(args)
    _check(given)
    from lightning_annot.annotations.log import AnnotationLog
    from lightning_annot.report.run_files import check_items, read_run

    run, path = read_run(given.dir), given.dir / "annotations.db"
    if given.url is None and not path.is_file():
        raise AnnotError(f"{path} does not exist; give the folder of a run, or --url.")
    with AnnotationLog(given.url or path, create=False) as log:
        check_items(run, log)
        session = _open(run, log, given)
        if given.answers is not None:
            _take_answers(session, given.answers)
        if given.draw is not None:
            session = _draw(session, given)
        if given.draw is None or given.expert is not None:
            _state(session, given.target, given.confidence)
    return 0


@dataclass(frozen=True)
class _Session:
    """The run, its log, the set of labels as it is now, and what was looked at so far."""

    run: RunFiles
    log: AnnotationLog
    found: CertifiedSet
    below: float | None
    record: Record


def certify_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = OptionParser(
        "lightning-annot certify", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dir", type=Path, help="folder of a run")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--draw", type=int, metavar="N", help="draw the next N labels of the random order")
    action.add_argument("--answers", type=Path, metavar="CSV", help="take in the expert's answers: task,label")
    parser.add_argument("--out", type=Path, metavar="CSV", help="with --draw: file for the expert")
    parser.add_argument("--expert", type=Path, metavar="CSV", help="with --draw: answer at once from task,label")
    parser.add_argument("--once", action="store_true", help="with --draw: plan a single look, when all N are answered")
    parser.add_argument("--seed", type=int, help="of the random order; set by the first draw (default: 0)")
    parser.add_argument("--below", type=float, metavar="RISK", help="certify all labels of a smaller risk, not the finished")
    parser.add_argument("--target", type=float, metavar="SHARE", help="choose the largest threshold within it, such as 0.02")
    parser.add_argument("--confidence", type=float, default=0.95, help="of what is claimed (default: 0.95)")
    parser.add_argument("--url", help="SQLAlchemy URL of the log, if it is not DIR/annotations.db")
    return parser


def _check(given: argparse.Namespace) -> None:
    from lightning_annot.certificate.bounds import check_confidence

    check_confidence(given.confidence)
    if given.target is not None and not 0 < given.target < 1:
        raise AnnotError(f"--target {given.target} given; it must be between 0 and 1, such as 0.02 for at most 2% wrong.")
    if given.draw is None:
        if named := [name for name in ("out", "expert", "once") if getattr(given, name)]:
            raise AnnotError(f"--{named[0]} given without --draw; say how many labels to draw, such as --draw 300.")
    elif given.draw < 1:
        raise AnnotError(f"--draw {given.draw} given; it must be 1 or more.")
    elif given.out is None and given.expert is None:
        raise AnnotError("--draw given alone; add --out audit.csv for an expert, or --expert labels.csv to simulate one.")


def _open(run: RunFiles, log: AnnotationLog, given: argparse.Namespace) -> _Session:
    from lightning_annot.certificate.keeping import read_record
    from lightning_annot.certificate.sample import certified_set

    record = read_record(log, run.directory, given.seed)
    below = given.below
    if below is None and given.draw is None and record.stages:
        below = record.stages[-1].below
    return _Session(run, log, certified_set(run.labels, run.summary.get("threshold"), below), below, record)


def _take_answers(session: _Session, path: Path) -> None:
    from lightning_annot.certificate.audit import commit, read_audit

    answers = read_audit(session.log, path, session.run.classes)
    print(f"{path}: {commit(session.log, answers)} new answers")


def _draw(session: _Session, given: argparse.Namespace) -> _Session:
    """Plan the stage, commit the questions, and write them for the expert or let the simulated one answer."""
    from lightning_annot.certificate import audit
    from lightning_annot.certificate.keeping import write_certificate
    from lightning_annot.certificate.sample import drawn_order
    from lightning_annot.certificate.statement import plan
    from lightning_annot.report.run_files import image_root

    known = audit.known_answers(session.log)
    found, size = session.found, len(session.found)
    new = plan(found, min(given.draw, size) if given.once else None, session.below)
    index, record = session.record.planned(new)
    tasks = found.task.to_numpy()[drawn_order(found, record.seed, record.lost + index)]
    among = tasks[: given.draw if given.once else given.draw + len(known)]  # no more than these can be needed
    drawn = [task for task in among if task not in known][: given.draw]
    answers = {} if given.expert is None else audit.simulated_answers(given.expert, drawn, session.run.classes)
    session = _keep(session, record)  # before the questions: a stage that was begun is never forgotten
    write_certificate(session.run.directory, record)
    audit.ask(session.log, drawn, int(session.run.last_round.get("round", 0)))
    if given.out is not None:
        audit.write_audit(given.out, drawn, image_root(session.run))
        print(f"{given.out}: {len(drawn)} labels to audit")
    audit.commit(session.log, answers)
    return session


def _state(session: _Session, target: float | None, confidence: float) -> None:
    """Print the certificate, and keep it with the look that it was."""
    from lightning_annot.certificate.audit import known_answers
    from lightning_annot.certificate.keeping import write_certificate
    from lightning_annot.certificate.sample import audits_of, drawn_order
    from lightning_annot.certificate.statement import describe, state

    record, found = session.record, session.found
    index = record.find(found.digest)
    if index is None and (weighted := record.find_weighted(found.digest)) is not None:
        _restate(session, weighted, confidence)
        return
    if index is None:
        raise AnnotError(
            "no audit was drawn for these labels as they are now; labels that change need an audit of their own: "
            "draw it with --draw 300 --out audit.csv. Answers so far are kept, and count where their items are drawn again."
        )
    stage, order = session.record.stages[index], drawn_order(found, record.seed, record.lost + index)
    audits = audits_of(found, order, known_answers(session.log))
    if stage.once is not None:
        if len(audits.wrong) < stage.once:
            print(f"waiting: {len(audits.wrong) + audits.waiting} answers so far; one look was planned, at {stage.once} audits")
            return
        audits = audits.first(stage.once)
    believed = float(1 - session.run.labels.loc[found.task.index, "confidence"].mean())
    certificate, record = state(found, audits, session.record, index, confidence, target, believed)
    record = _keep(session, replace(record, certificate=asdict(certificate))).record
    write_certificate(session.run.directory, record)
    whole = "finished labels" if session.below is None else f"labels with a risk below {session.below:g}"
    print("\n".join(describe(certificate, whole)))


def _restate(session: _Session, index: int, confidence: float) -> None:
    """Print what the run's own audit of these labels has shown."""
    from lightning_annot.certificate.audit import known_answers
    from lightning_annot.certificate.trial import describe_trial, resume

    record = session.record
    trial, looks = resume(session.found, record, index), record.stages[index].looks
    n = looks[-1][0] if looks else 0
    standing = trial.standing(known_answers(session.log), n, record.stage_level(index, confidence))
    print(describe_trial(standing, trial, confidence))


def _keep(session: _Session, record: Record) -> _Session:
    """Append to the log what the record has gained."""
    from lightning_annot.certificate.keeping import keep_stages

    keep_stages(session.log, session.record, record)
    return replace(session, record=record)
