"""What the documents show is true: commands parse or run, code runs, keys, defaults and paths exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from cli_runs import PIXELS, arguments
from PIL import Image
from sklearn.datasets import load_digits

from lightning_annot.__main__ import main
from lightning_annot.certificate.command import certify_parser
from lightning_annot.cli import AnnotationCLI, run
from lightning_annot.exchange.command import export_parser, import_parser
from lightning_annot.exchange.formats import FORMATS
from lightning_annot.exchange.study import study_parser
from lightning_annot.presets import expand

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # pytest has arguments of its own

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    "README.md",
    "docs/architecture.md",
    "docs/certificate.md",
    "docs/economy.md",
    "docs/method.md",
    "docs/adaptation.md",
    "docs/classifier.md",
    "docs/features.md",
    "docs/images.md",
    "docs/label_studio.md",
    "docs/formats.md",
    "docs/machines.md",
    "docs/people.md",
    "docs/study.md",
    "docs/trust.md",
    "CHANGELOG.md",
    "checkpoints/README.md",
)
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
CERTIFICATE = (ROOT / "docs" / "certificate.md").read_text(encoding="utf-8")
FEATURES = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
FORMAT_PAGE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
LABEL_STUDIO = (ROOT / "docs" / "label_studio.md").read_text(encoding="utf-8")
MACHINES = (ROOT / "docs" / "machines.md").read_text(encoding="utf-8")
TRUST = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
QUICK = ["--trainer.max_epochs", "2", "--trainer.enable_progress_bar", "false", "--data.batches.steps", "5"]
TINY_BACKBONE = ["--data.backbone.name", "resnet10t", "--data.backbone.weights", "random", "--data.backbone.image_size", "32"]
PER_ROUND = 10


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language, without the indentation of a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", text, flags=re.M | re.S)
    return [re.sub(rf"^{indent}", "", body, flags=re.M) for indent, body in found]


def commands(text: str) -> list[list[str]]:
    """Arguments of each ``lightning-annot ...`` in shell text, without what comes before it."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"\s&&\s", line):
            words = shlex.split(part.replace("python -m lightning_annot", "lightning-annot"))
            if "lightning-annot" in words:
                found.append(words[words.index("lightning-annot") + 1 :])
    return found


def in_comments(config: Path) -> str:
    """The indented lines of a configuration's comments, where commands are shown."""
    return "\n".join(line[4:] for line in config.read_text().splitlines() if line.startswith("#   "))


PAGES = (README, FEATURES, LABEL_STUDIO, MACHINES, TRUST)
SHOWN = commands("\n".join(block for page in PAGES for block in blocks(page, "sh"))) + [
    c for path in CONFIGS for c in commands(in_comments(path))
]
FITS = [c for c in [*SHOWN, *commands("\n".join(blocks(CERTIFICATE, "sh")))] if c[0] == "fit"]
OTHERS = [c for c in SHOWN if c[0] != "fit"]
FOLDER = next(c for c in FITS if "configs/folder.yaml" in c)
PROGRAM = next(c for c in FITS if "my_workers.ProgramWorkers" in c)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README's reader has it: configs, photographs, prototypes, workers of their own, and two runs."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "configs").symlink_to(ROOT / "configs")
    digits = load_digits()
    names = {0: "cat", 1: "dog"}
    rows = [row for row, label in enumerate(digits.target) if label in names][:60]
    for directory, some in (("photos", rows), ("new_photos", rows[:5])):
        (folder / directory).mkdir()
        for row in some:
            Image.fromarray((digits.images[row] * 15).astype("uint8")).resize((32, 32)).save(
                folder / directory / f"{row:04d}.jpg"
            )
    truth = pd.DataFrame({"task": [f"{row:04d}.jpg" for row in rows], "label": [names[digits.target[row]] for row in rows]})
    truth.to_csv(folder / "truth.csv", index=False)
    truth.groupby("label").head(10).to_csv(folder / "prototypes.csv", index=False)
    (folder / "my_workers.py").write_text(next(b for b in blocks(README, "python") if b.startswith("# my_workers.py")))
    (folder / "classify.sh").write_text('#!/bin/sh\ngrep "^$(basename "$1")," truth.csv | cut -d, -f2\n')
    (folder / "classify.sh").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", "configs/digits.yaml", *arguments(PIXELS), *QUICK, "--data.batches.steps", "60"]) == 0
        assert main([*FOLDER, *QUICK, *TINY_BACKBONE, "--annotation.sampling.per_round", str(PER_ROUND)]) == 0
    return folder


def test_brackets_are_quoted_for_the_shell() -> None:
    """A shell such as zsh takes them for a pattern of file names."""
    places = [*(ROOT / name for name in DOCUMENTS), *CONFIGS, *(ROOT / "lightning_annot").rglob("*.py")]
    bare = [
        (path.name, found)
        for path in places
        for found in re.findall(r"--[a-z_.]+\+?[ =]\[\S*", path.read_text(encoding="utf-8"))
    ]
    assert bare == []


@pytest.fixture(scope="module")
def settings() -> list[dict[str, Any]]:
    """Resolved settings: the defaults, then those of each configuration."""
    return [printed([]), *(printed(["--config", str(path)]) for path in CONFIGS)]


def printed(args: list[str]) -> dict[str, Any]:
    """What ``fit --print_config`` prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as stop:
        run(["fit", *args, "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(output.getvalue())


def find(tree: Any, key: str) -> list[Any]:
    """The value of a dotted key as the command line takes it, as a list of none or one."""
    for part in key.split("."):
        if isinstance(tree, dict) and part not in tree and "init_args" in tree:
            tree = tree["init_args"]
        if not isinstance(tree, dict) or part not in tree:
            return []
        tree = tree[part]
    return [tree]


@pytest.mark.parametrize("args", FITS, ids=" ".join)
def test_fit_commands_parse(desk: Path, monkeypatch: pytest.MonkeyPatch, args: list[str]) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(desk)
    monkeypatch.setattr(AnnotationCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(AnnotationCLI, "_run_subcommand", lambda self, subcommand: None)
    config = run(expand(args)).config["fit"]
    beside = ("--config", "--trainer.logger", "--method", "--faithful")
    given = [word.removeprefix("--") for word in args if word.startswith("--") and word not in beside]
    logger = "trainer.logger."
    assert all(find(config.as_dict(), key) for key in given if not key.startswith(logger))
    assert (config.trainer.logger is not None) == any(key.startswith(logger) for key in given)


@pytest.mark.parametrize("args", OTHERS, ids=" ".join)
def test_other_commands_run(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str]
) -> None:
    monkeypatch.chdir(desk)
    assert main([*args, *TINY_BACKBONE] if "configs/folder.yaml" in args else args) == 0  # its own has to be downloaded
    said = capsys.readouterr().out
    leaves = {
        "check": ["classes: ", "images: ", "extraction: "],
        "validate": ["val_loss", "val_ece", "val_accuracy"],
        "test": ["label_accuracy", "test_accuracy"],
        "predict": ["5 predictions are in checkpoints/pets/predictions.csv"],
        "report": ["checkpoints/digits/report.html"],
        "export": ["answers_all.csv"],
        "import": ["0 new answers of "],
        "scorecards": ["checkpoints/digits/scorecards.html"],
        "unfinished": ["for_experts.csv"],
        "certify": ["audit.csv"],
    }
    assert all(words in said for words in leaves[args[0]])


def test_a_certificate_is_stated(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The session of its page, with an expert between the commands, on a copy of the run."""
    shutil.copytree(desk / "checkpoints" / "digits", tmp_path / "checkpoints" / "digits")
    monkeypatch.chdir(tmp_path)
    shown = [args for args in commands("\n".join(blocks(CERTIFICATE, "sh"))) if args[0] == "certify"]
    assert len(shown) == 3
    assert main(shown[0]) == 0
    audit = pd.read_csv("audit.csv", dtype=str, keep_default_na=False)
    audit["label"] = load_digits().target.astype(str)[audit["task"].astype(int)]
    audit.to_csv("audit.csv", index=False)
    assert all(main(args) == 0 for args in shown[1:])
    said = capsys.readouterr().out
    words = [line.split(":")[0] for line in blocks(CERTIFICATE, "text")[0].splitlines()]
    assert all(f"{word}: " in said for word in words)
    options = set(re.findall(r"--[a-z]+", certify_parser().format_help())) - {"--help", "--url"}
    assert options == set(re.findall(r"`(--[a-z]+)", CERTIFICATE))


def test_validate_takes_the_trained_learner(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    cli = run(["validate", "--config", "checkpoints/digits/config.yaml"])
    assert float(cli.trainer.callback_metrics["val_accuracy"]) > 0.5  # untrained heads would give 0.1


def test_a_folder_goes_on_with_answers(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    pets = Path("checkpoints/pets")
    questions = pd.read_csv(pets / "questions.csv", dtype=str, keep_default_na=False)
    assert list(questions) == ["task", "worker", "path"]
    assert len(questions) == PER_ROUND
    assert all(Path(path).is_file() for path in questions["path"])
    truth = pd.read_csv("truth.csv", dtype=str).set_index("task")["label"]
    answers = questions.assign(worker="anna", label=truth[questions["task"]].to_numpy()).head(6)
    answers.loc[0, "label"] = "unsure"
    answers.to_csv(pets / "answers.csv", index=False)
    assert main([*FOLDER, *QUICK, *TINY_BACKBONE, "--annotation.sampling.per_round", str(PER_ROUND)]) == 0
    assert pd.read_csv(pets / "rounds.csv")["annotations"].tolist() == [0, 6]
    assert pd.read_csv(pets / "labels.csv")["n_annotations"].sum() == 5  # a skip is no label
    still_open = pd.read_csv(pets / "questions.csv", dtype=str, keep_default_na=False)
    assert set(questions["task"][6:]) <= set(still_open["task"])


def test_own_workers_answer(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(desk)
    assert main([*PROGRAM, *QUICK, *TINY_BACKBONE, "--annotation.sampling.per_round", str(PER_ROUND)]) == 0
    assert main(["export", "checkpoints/program", "program.csv"]) == 0
    answers = pd.read_csv("program.csv", dtype=str)
    assert set(answers["worker"]) == {"program"}
    truth = pd.read_csv("truth.csv", dtype=str).set_index("task")["label"]
    assert len(answers) == PER_ROUND
    assert (answers["label"].to_numpy() == truth[answers["task"]].to_numpy()).all()


@pytest.mark.parametrize("code", blocks(README, "python"), ids=lambda code: code.splitlines()[0])
def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, "README.md", "exec"), names)
    if "trainer" in names:
        assert names["rounds"].stop_reason == "the last allowed round is done (trainer.max_epochs)"
        assert names["rounds"].rows[-1]["accuracy"] > 0.9
        assert (tmp_path / "checkpoints" / "python" / "labels.csv").is_file()
    if "posterior" in names:
        assert names["posterior"].sum(1).tolist() == pytest.approx([1.0] * 4)
        assert names["posterior"].argmax(1)[:2].tolist() == [1, 0]


def test_settings_have_the_defaults_shown(settings: list[dict[str, Any]]) -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| (\S+) \|", README, flags=re.M)
    assert len(rows) > 20
    wrong = [(key, shown, find(settings[0], key)) for key, shown in rows if find(settings[0], key) != [yaml.safe_load(shown)]]
    assert not wrong


@pytest.mark.parametrize("document", DOCUMENTS)
def test_keys_exist(document: str, settings: list[dict[str, Any]]) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    flags = re.findall(r"--((?:data|model|annotation|trainer)\.[a-z_.]*[a-z])", text)
    quoted = re.findall(r"`((?:data|model|annotation|trainer)\.[a-z_.]*[a-z])[`:]", text)
    own = ("annotation.workers.", "trainer.logger.")  # of classes that the command itself names
    keys = {key for key in (*flags, *quoted) if not key.startswith(own)}
    assert not [key for key in sorted(keys) if not any(find(tree, key) for tree in settings)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_paths_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    here = (ROOT / document).parent
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if not link.startswith("http")]
    modules = re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)(?:::[A-Za-z_]+)*`", text)
    written_by_reader = {"my_workers.py"}
    missing = [link for link in links if not (here / link).exists()]
    missing += [
        name
        for name in modules
        if name not in written_by_reader and not any((base / name).is_file() for base in (ROOT, ROOT / "lightning_annot"))
    ]
    assert not missing


def test_names_in_the_architecture_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_/]+\.py)::([A-Za-z_]+)`", text)
    assert named
    for module, name in named:
        assert re.search(rf"^(class|def) {name}\b", (ROOT / "lightning_annot" / module).read_text(), flags=re.M), (module, name)


def test_readme_begins_with_the_two_commands_and_names_every_config() -> None:
    first = blocks(README, "sh")[0].splitlines()
    assert first == [
        "pip install -e . && lightning-annot fit --config configs/digits.yaml",
        "pip install -e '.[test]' && pytest",
    ]
    assert not [path.name for path in CONFIGS if f"`configs/{path.name}`" not in README]


def test_files_of_a_run_are_told(desk: Path) -> None:
    made = {path.name for path in (desk / "checkpoints" / "digits").iterdir() if path.is_file()}
    told = set(re.findall(r"^\| `([a-z_]*\.(?:csv|html|npz|db|yaml|json|lock))` \|", README, flags=re.M))
    assert made - {"predictions.csv"} <= told
    assert told <= made


def test_formats_are_told(tmp_path: Path) -> None:
    """Every command of the page parses, and its tables have every format and option."""
    parsers = {"import": import_parser(), "export": export_parser()}
    shown = [args for args in commands("\n".join(blocks(FORMAT_PAGE, "sh"))) if args[0] in parsers]
    assert len(shown) > 4
    assert all(parsers[args[0]].parse_args(args[1:]).dir == Path("checkpoints/pets") for args in shown)
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| ([a-z ]*)\| ([a-z ]*)\|", FORMAT_PAGE, flags=re.M)
    assert {name for name, _, _ in rows} == set(FORMATS)
    for name, comes, goes in rows:
        assert bool(comes.strip()) == bool(FORMATS[name].read)
        assert bool(goes.strip()) == bool(FORMATS[name].write)
    options = {word for parser in parsers.values() for word in re.findall(r"--[a-z-]+", parser.format_help())} - {"--help"}
    assert not [word for word in options if f"`{word}" not in FORMAT_PAGE and f" {word} " not in FORMAT_PAGE]


def test_options_of_a_study_are_told() -> None:
    text = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    options = set(re.findall(r"--[a-z-]+", study_parser().format_help())) - {"--help"}
    assert options == set(re.findall(r"^\| `(--[a-z-]+)`", text, flags=re.M))
    shown = [args for args in commands("\n".join(blocks(text, "sh"))) if args[0] == "study"]
    assert shown
    assert all(study_parser().parse_args(args[1:]).each == 9 for args in shown)
