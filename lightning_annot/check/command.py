"""``lightning-annot check``: look at everything that ``fit`` with the same words would need, and run nothing."""

from __future__ import annotations

from pathlib import Path

HELP = """usage: lightning-annot check --config FILE [all options of fit]

Look at images, classes, prototypes, answers, workers, weights and disk space without running, one line for each, and say how
long the extraction of features will take. Nothing is written or downloaded.

Exit status: 0 if fit can run, 2 if it would fail.
"""


def check_command(args: list[str]) -> int:
    """Run the command; returns its exit status."""
    if args and args[0] in ("-h", "--help"):
        print(HELP)
        return 0
    from lightning_annot.presets import expand

    words = expand(["fit", *args])  # before the heavy imports, so that a wrong name fails at once
    from rich.console import Console

    from lightning_annot.backbones.classifier import ClassifierModule
    from lightning_annot.backbones.classifier_data import ClassifierDataModule
    from lightning_annot.backbones.unlabelled import UnlabelledDataModule
    from lightning_annot.check.annotation import check_annotation
    from lightning_annot.check.lines import Lines
    from lightning_annot.check.others import check_adaptation, check_classifier
    from lightning_annot.cli import prepare
    from lightning_annot.data.datamodule import AnnotationDataModule
    from lightning_annot.types import AnnotError

    cli = prepare(words)
    lines, data, model, folder = Lines(Console()), cli.datamodule, cli.model, Path(cli.output_dir)
    if isinstance(data, AnnotationDataModule):
        check_annotation(lines, data, cli.annotation_round, model)
    elif isinstance(data, UnlabelledDataModule):
        check_adaptation(lines, data, cli.start, folder)
    elif isinstance(data, ClassifierDataModule) and isinstance(model, ClassifierModule):
        check_classifier(lines, data, model, cli.trainer, folder)
    else:
        raise AnnotError(
            f"check looks at annotation, adaptation and classifiers; it knows nothing of {type(data).__name__} with "
            f"{type(model).__name__}."
        )
    return 2 if lines.failed else 0
