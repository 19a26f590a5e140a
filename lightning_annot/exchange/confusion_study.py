"""``lightning-annot confusions``: what people answered to gold questions, as a file for simulated workers, and as pictures."""

from __future__ import annotations

from pathlib import Path

from lightning_annot.commandline.options import OptionParser
from lightning_annot.exchange.command import open_log
from lightning_annot.files import write_bytes
from lightning_annot.types import AnnotError


def confusions_command(args: list[str]) -> int:
    """Write the counts and the pictures; returns 0, or raises AnnotError."""
    parser = OptionParser(
        "lightning-annot confusions",
        description="Count what each worker answered to gold questions, by the prototypes' classes. FILE.json has the form of "
        "the paper's confusion study, as AMTWorkers reads it (workers_file); FILE.png and FILE-people.png show it.",
    )
    parser.add_argument("dir", type=Path, help="folder of a run or of a study")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="file to write; pictures go beside it")
    parser.add_argument("--url", help="SQLAlchemy URL of the log, if it is not DIR/annotations.db")
    given = parser.parse_args(args)
    from lightning_annot.exchange.confusions import count_confusions, write_group_workers
    from lightning_annot.report.plots import figure_png, plot_confusion
    from lightning_annot.report.study_plots import plot_people, shares

    truth, classes, names = _known(given.dir)
    with open_log(given.dir, given.url) as log:
        answers = log.answers(kind="gold").rename(columns={"item": "task"})
    who, counts = count_confusions(answers, truth, classes)
    asked = counts.sum((0, 2))
    if missing := [name for name, n in zip(classes, asked, strict=True) if not n]:
        raise AnnotError(
            f"no gold answer is about {missing[:5]}{', ...' if len(missing) > 5 else ''}; ask about each class: let prototypes "
            "have all classes, and raise annotation.gold, or let people go on with the study."
        )
    write_group_workers(given.out, classes, names, {"0": counts}, {"0": who})
    write_bytes(given.out.with_suffix(".png"), figure_png(plot_confusion(shares(counts.sum(0)), names)))
    write_bytes(given.out.with_name(f"{given.out.stem}-people.png"), figure_png(plot_people(counts, who)))
    print(f"{given.out}: {counts.sum()} gold answers of {len(who)} workers about {len(names)} classes")
    return 0


def _known(directory: Path) -> tuple[dict[str, str], list[str], list[str]]:
    """The class of each prototype, the classes, and their names: of a study, else of a run."""
    from lightning_annot.data.page_task import TASK_FILE, PageTask
    from lightning_annot.report.run_files import read_run

    if (directory / TASK_FILE).is_file():
        task = PageTask.read(directory / TASK_FILE)
        if task.study is not None:
            return task.study.truth, list(task.classes), list(task.names)
    run = read_run(directory)
    known = run.labels[run.labels["status"] == "prototype"]
    return dict(zip(known["task"], known["label"], strict=True)), run.classes, [run.names[name] for name in run.classes]
