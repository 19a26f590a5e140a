"""``lightning-annot COMMAND``: commands without a Trainer are dispatched here, all others are Lightning's."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from lightning_annot import __version__
from lightning_annot.certificate.command import certify
from lightning_annot.check.command import check_command
from lightning_annot.commandline.options import OptionParser, did_you_mean, typed
from lightning_annot.exchange.command import export_command, import_command, open_log
from lightning_annot.exchange.confusion_study import confusions_command
from lightning_annot.exchange.handover import unfinished_command
from lightning_annot.exchange.study import study_command
from lightning_annot.files import of_the_disk
from lightning_annot.quiet import hush
from lightning_annot.types import AnnotError

USAGE = """lightning-annot: label image sets with as few human answers as possible

  lightning-annot fit --config FILE      annotate; the same command goes on where it stopped
  lightning-annot check --config FILE    look at all that fit needs without running, and say how long features will take
  lightning-annot validate --config FILE out-of-fold loss and calibration of the run's learner on the prototypes
  lightning-annot test --config FILE     compare the run's labels with the truth, where data.labels has it
  lightning-annot predict --config FILE  label the images of --data.root or --data.features with the run's learner
  lightning-annot report DIR             write DIR/report.html anew
  lightning-annot scorecards DIR         write DIR/scorecards.csv and scorecards.html: how each worker does
  lightning-annot import DIR FILE        put answers into the run, in any of the formats that --help lists
  lightning-annot export DIR FILE        write answers, labels or open questions; by default CSV: task,worker,label
  lightning-annot unfinished DIR FILE    write the unfinished items for experts, best gain first, and why
  lightning-annot confusions DIR --out FILE   count who takes what for what in the gold answers, for simulated workers
  lightning-annot export-model CKPT --out FILE   write a trained classifier as ONNX, TorchScript or pt2
  lightning-annot serve DIR              the page where people answer, while a run with live workers goes on
  lightning-annot study DIR              a confusion study on that page: people answer prototypes alone, no run is needed
  lightning-annot certify DIR            draw an audit for an expert, and bound the error of the finished labels by it

FILE is one of configs/*.yaml or a run's own config.yaml; every key can be given as --group.key value.
--method NAME stands for the settings of majority_vote, online_ds, lean, improved_lean, efficient_annotation, mixmatch or
ours; --faithful true makes the choices of the paper's released code as well.
lightning-annot COMMAND --help lists them; lightning-annot --version names the version.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors that a user can mend are shown without a traceback, and give exit status 2."""
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if args[0] == "--version":
        print(f"lightning-annot {__version__}")
        return 0
    hush()  # before the libraries load
    try:
        if args[0] in _COMMANDS:
            return _COMMANDS[args[0]](args[1:])
        if args[0] not in _OF_LIGHTNING and args[0] not in ("-c", "--config"):
            known = [*_OF_LIGHTNING, *_COMMANDS]
            if args[0].startswith("-"):
                known = ["--help", "--version", *known]
            raise AnnotError(f"there is no command {args[0]}{did_you_mean(args[0], known)}; there are {', '.join(known)}.")
        from lightning_annot.presets import expand

        args = expand(args)  # before the heavy imports: a wrong name is told at once
        from lightning_annot.cli import run

        try:
            run(args)
        except SystemExit as stop:  # Lightning's answer to Ctrl-C while its Trainer is at work
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise stop.__context__ from None
            raise
    except KeyboardInterrupt:
        print(f"lightning-annot: interrupted; the same command goes on: {typed(sys.argv)}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        told = _told(error)
        if told is None:
            raise
        with suppress(OSError):  # standard error may be a file on the same full disk
            print(f"lightning-annot: {told}", file=sys.stderr)
        return 2
    return 0


def _told(error: ValueError | OSError) -> str | None:
    """The sentence for an error that a user can mend, or None where it is a fault of the code."""
    first = error if isinstance(error, AnnotError) else error.__cause__  # jsonargparse wraps those of models and data
    if isinstance(error, OSError) and first is None:
        first = error.__context__  # on a full disk, loggers that end with the run fail too
    if isinstance(first, AnnotError):
        return str(first)
    if isinstance(error, OSError) and of_the_disk(error):
        return f"{error}; check the disk's free space and the permissions, then repeat the same command"
    return None


def _report(args: list[str]) -> int:
    parser = OptionParser("lightning-annot report", description="Write DIR/report.html anew from the run's files.")
    parser.add_argument("dir", type=Path)
    directory = parser.parse_args(args).dir
    from lightning_annot.report.page import write_report

    print(write_report(directory))
    return 0


def _scorecards(args: list[str]) -> int:
    parser = OptionParser(
        "lightning-annot scorecards", description="Write DIR/scorecards.csv and DIR/scorecards.html: how each worker does."
    )
    parser.add_argument("dir", type=Path, help="folder of a run")
    parser.add_argument("--url", help="SQLAlchemy URL of the log, if it is not DIR/annotations.db")
    given = parser.parse_args(args)
    from lightning_annot.report.scorecard_page import write_scorecards

    with open_log(given.dir, given.url) as log:
        print(write_scorecards(given.dir, log.answers()))
    return 0


def _export_model(args: list[str]) -> int:
    from lightning_annot.backbones.export import command

    return command(args)


def _serve(args: list[str]) -> int:
    from lightning_annot.serve.command import serve

    return serve(args)


_OF_LIGHTNING = ("fit", "validate", "test", "predict")
_COMMANDS = {
    "check": check_command,
    "report": _report,
    "scorecards": _scorecards,
    "import": import_command,
    "export": export_command,
    "export-model": _export_model,
    "unfinished": unfinished_command,
    "confusions": confusions_command,
    "serve": _serve,
    "study": study_command,
    "certify": certify,
}

if __name__ == "__main__":
    sys.exit(main())
