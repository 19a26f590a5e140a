"""``lightning-annot COMMAND``: commands without a Trainer are dispatched here, all others are Lightning's."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_annot.certificate.command import certify
from lightning_annot.types import AnnotError

if TYPE_CHECKING:
    from lightning_annot.annotations.log import AnnotationLog

USAGE = """lightning-annot: label image sets with as few human answers as possible

  lightning-annot fit --config FILE      annotate; the same command goes on where it stopped
  lightning-annot validate --config FILE out-of-fold loss and calibration of the run's learner on the prototypes
  lightning-annot test --config FILE     compare the run's labels with the truth, where data.labels has it
  lightning-annot predict --config FILE  label the images of --data.root or --data.features with the run's learner
  lightning-annot report DIR             write DIR/report.html anew
  lightning-annot export DIR FILE        write the annotation log as CSV: task,worker,label
  lightning-annot unfinished DIR FILE    write the unfinished items for experts, riskiest first, and why
  lightning-annot export-model CKPT --out FILE   write a trained classifier as ONNX, TorchScript or pt2
  lightning-annot serve DIR              the page where people answer, while a run with live workers goes on
  lightning-annot certify DIR            draw an audit for an expert, and bound the error of the finished labels by it

FILE is one of configs/*.yaml or a run's own config.yaml; every key can be given as --group.key value.
--method NAME stands for the settings of majority_vote, online_ds, lean, improved_lean, efficient_annotation, mixmatch or
ours; --faithful true makes the choices of the paper's released code as well.
lightning-annot COMMAND --help lists them.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors that a user can mend are shown without a traceback, and give exit status 2."""
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    try:
        if args[0] in _COMMANDS:
            return _COMMANDS[args[0]](args[1:])
        from lightning_annot.presets import expand

        args = expand(args)  # before the heavy imports: a wrong name is told at once
        from lightning_annot.cli import run

        run(args)
    except ValueError as error:
        ours = error if isinstance(error, AnnotError) else error.__cause__  # jsonargparse wraps those of models and data
        if not isinstance(ours, AnnotError):
            raise
        print(f"lightning-annot: {ours}", file=sys.stderr)
        return 2
    return 0


def _report(args: list[str]) -> int:
    parser = argparse.ArgumentParser("lightning-annot report", description="Write DIR/report.html anew from the run's files.")
    parser.add_argument("dir", type=Path)
    directory = parser.parse_args(args).dir
    from lightning_annot.report.page import write_report

    print(write_report(directory))
    return 0


def _export(args: list[str]) -> int:
    parser = argparse.ArgumentParser("lightning-annot export", description="Write all answers as CSV: task,worker,label.")
    parser.add_argument("dir", type=Path, help="folder of a run")
    parser.add_argument("file", type=Path, help="CSV to write")
    parser.add_argument("--url", help="SQLAlchemy URL of the log, if it is not DIR/annotations.db")
    given = parser.parse_args(args)
    from lightning_annot.annotations.formats import write_answers

    with _open_log(given.dir, given.url) as log:
        write_answers(log, given.file)
    print(given.file)
    return 0


def _unfinished(args: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "lightning-annot unfinished",
        description="Write the items that a run left unfinished, riskiest first, and why each is there: "
        "task,label,confidence,risk,n_annotations,reason.",
    )
    parser.add_argument("dir", type=Path, help="folder of a run")
    parser.add_argument("file", type=Path, help="CSV to write")
    parser.add_argument("--url", help="SQLAlchemy URL of the log, if it is not DIR/annotations.db")
    given = parser.parse_args(args)
    from lightning_annot.annotations.formats import write_table
    from lightning_annot.report.run_files import read_run
    from lightning_annot.report.unfinished import unfinished_items

    run = read_run(given.dir)
    with _open_log(given.dir, given.url) as log:
        questions, answers = log.questions(open_only=True, kind="annotation"), log.answers(kind="annotation")
    left = unfinished_items(run.labels, questions, answers, run.summary)
    write_table(given.file, left)
    print(f"{given.file}: {len(left)} items")
    return 0


def _open_log(directory: Path, url: str | None) -> AnnotationLog:
    """The log of a run, which must exist."""
    from lightning_annot.annotations.log import AnnotationLog

    path = directory / "annotations.db"
    if url is None and not path.is_file():
        raise AnnotError(f"{path} does not exist; give the folder of a run, or --url.")
    return AnnotationLog(url or path)


def _export_model(args: list[str]) -> int:
    from lightning_annot.backbones.export import command

    return command(args)


def _serve(args: list[str]) -> int:
    from lightning_annot.serve.command import serve

    return serve(args)


_COMMANDS = {
    "report": _report,
    "export": _export,
    "export-model": _export_model,
    "unfinished": _unfinished,
    "serve": _serve,
    "certify": certify,
}

if __name__ == "__main__":
    sys.exit(main())
