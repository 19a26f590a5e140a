"""Every command and every shipped configuration through the real command line, and what a run leaves behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from cli_runs import CONFIGS, QUIET, ROOT, SHARED, SMALL, Bank, Settings, answers, call, fit, questions, rounds, run
from offline_wandb import go_offline, logger_settings, read_offline
from PIL import Image

from lightning_annot.report.tables import ROUND_COLUMNS, TRUTH_COLUMNS

FILES = {
    "labels.csv", "workers.csv", "confusions.npz", "rounds.csv", "annotations.db", "report.html", "config.yaml",
    "summary.json", "checkpoints", "logs", "posterior.npz", "scorecards.csv", "scorecards.html",
}  # fmt: skip
LABEL_COLUMNS = ["task", "label", "confidence", "risk", "n_annotations", "status"]
WORKER_COLUMNS = ["worker", "n_annotations", "accuracy_mean", "accuracy_low", "accuracy_high", "state", "reason"]
QUICK = {**QUIET, "trainer.max_epochs": 3, "data.batches.steps": 30}
TINY_BACKBONE = {
    "data.backbone.name": "test_resnet.r160_in1k",
    "data.backbone.weights": "random",
    "data.backbone.image_size": 32,
    "data.backbone.num_workers": 0,
}
needs_shared_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside the project")


def check_run(run: Path, n_classes: int, n_prototypes: int, *, truth: bool) -> pd.DataFrame:
    """The contract of DESIGN.md's "What a run leaves", and its ways of counting; returns ``rounds.csv``."""
    assert {path.name for path in run.iterdir()} >= FILES
    assert (run / "checkpoints" / "last.ckpt").is_file()
    table = pd.read_csv(run / "rounds.csv")
    assert list(table) == [*ROUND_COLUMNS, *(TRUTH_COLUMNS if truth else ())]
    check_counts(run, table, n_prototypes)
    check_people(run, n_classes)
    assert "<html" in (run / "report.html").read_text()
    return table


def check_counts(run: Path, table: pd.DataFrame, n_prototypes: int) -> None:
    """``labels.csv`` and ``rounds.csv`` agree with the log."""
    labels, log = pd.read_csv(run / "labels.csv", dtype={"task": str}), answers(run)
    assert list(labels) == LABEL_COLUMNS
    assert set(labels["status"]) <= {"finished", "unfinished", "prototype"}
    of_prototypes = labels["status"] == "prototype"
    assert of_prototypes.sum() == n_prototypes
    assert not set(questions(run)["item"]) & set(labels["task"][of_prototypes])
    given = log.dropna(subset=["label"])["item"].value_counts().reindex(labels["task"], fill_value=0)
    assert labels["n_annotations"].tolist() == given.tolist()
    n = len(labels) - n_prototypes
    assert table["round"].tolist() == list(range(len(table)))
    assert table["annotations"].iloc[0] == 0
    assert table["annotations"].iloc[-1] == len(log)
    assert table["annotations_per_item"].tolist() == pytest.approx((table["annotations"] / n).tolist())
    finished = (labels["status"] == "finished").sum()
    assert table["finished_fraction"].iloc[-1] == pytest.approx(finished / n)
    assert table["mean_risk"].iloc[-1] == pytest.approx(labels["risk"][~of_prototypes].mean(), abs=1e-5)
    assert (labels["confidence"] + labels["risk"]).to_numpy() == pytest.approx(1.0, abs=2e-6)


def check_people(run: Path, n_classes: int) -> None:
    """``workers.csv`` and ``confusions.npz`` agree with the log and with each other."""
    workers, log = pd.read_csv(run / "workers.csv"), answers(run)
    assert list(workers) == WORKER_COLUMNS
    given = log["worker"].value_counts().reindex(workers["worker"], fill_value=0)
    assert workers["n_annotations"].tolist() == given.tolist()
    assert given.sum() == len(log)
    assert (workers["accuracy_low"] < workers["accuracy_mean"]).all()
    assert (workers["accuracy_mean"] < workers["accuracy_high"]).all()
    with np.load(run / "confusions.npz") as arrays:
        assert arrays["workers"].tolist() == workers["worker"].tolist()
        assert arrays["confusions"].shape == (len(workers), n_classes, n_classes)
        assert arrays["confusions"].sum(2) == pytest.approx(1.0, abs=1e-5)
        assert arrays["pooled"].sum(1) == pytest.approx(1.0, abs=1e-5)


def run_config(name: str, settings: Settings, output: Path) -> Path:
    """One shipped configuration."""
    return fit(settings, output, f"--config={CONFIGS / name}")


@pytest.fixture(scope="module")
def finished(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three rounds over the tiny bank."""
    return fit(bank.settings(), tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def people(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A bank whose truth nobody knows: ids, prototypes and recorded answers."""
    items = tmp_path_factory.mktemp("people") / "items.csv"
    pd.read_csv(bank.labels)[["task"]].to_csv(items, index=False)
    known = {"data.labels": None, "data.items": items, "data.prototypes": bank.prototypes}
    workers = "lightning_annot.workers.recorded.RecordedWorkers"
    return bank.settings(**known, **{"annotation.workers": workers, "annotation.workers.answers": bank.answers})


def test_digits_config(tmp_path: Path) -> None:
    short = {"trainer.max_epochs": 3, "data.batches.steps": 30, "data.adapt.epochs": 1}
    cache = {"data.backbone.cache_dir": tmp_path / "features"}
    run = tmp_path / "run"
    result = call("fit", {**short, **cache, "annotation.output_dir": run}, f"--config={CONFIGS / 'digits.yaml'}")
    assert result.status == 0, result.err
    table = check_run(run, n_classes=10, n_prototypes=100, truth=True)
    assert table["annotations"].tolist() == [0, 50, 100]
    assert table["accuracy"].min() > 0.5  # one epoch of thirty
    assert {path.name for path in run.iterdir()} == {*FILES, "thumbnails.json", "simulated_workers.npz", "adapted"}
    said = result.out + result.err
    assert "the last allowed round is done" in said
    assert "report.html" in said


@needs_shared_data
@pytest.mark.parametrize(("name", "by"), [("simulated.yaml", "simulated"), ("recorded.yaml", "recorded")])
def test_config_of_the_shared_bank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, by: str) -> None:
    monkeypatch.setenv("ANNOT_DATA", str(SHARED))
    run = run_config(name, QUICK, tmp_path)
    table = check_run(run, n_classes=10, n_prototypes=100, truth=True)
    assert table["annotations"].tolist() == [0, 200, 400]
    assert set(answers(run)["source"]) == {by}
    assert table["accuracy"].iloc[-1] > 0.6


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``photos/`` and ``new/`` with JPEGs that are red or green, ``prototypes.csv`` of the first six of ``photos/``."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, n in (("photos", 40), ("new", 6)):
        (folder / name).mkdir()
        for i in range(n):
            pixels = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
            pixels[..., i % 2] += 160
            Image.fromarray(pixels).save(folder / name / f"{i:02d}.jpg")
    rows = [f"{i:02d}.jpg,{colour(f'{i:02d}.jpg')}\n" for i in range(6)]
    (folder / "prototypes.csv").write_text("task,label\n" + "".join(rows))
    return folder


def colour(task: str) -> str:
    """The class of an image of ``photos``."""
    return "green" if int(Path(task).stem) % 2 else "red"


@pytest.fixture(scope="module")
def folder_settings(photos: Path) -> dict[str, Any]:
    """The README's command for one's own images, with a tiny backbone."""
    return {
        **QUIET,
        **TINY_BACKBONE,
        "data.root": photos / "photos",
        "data.classes": "[red,green]",
        "data.prototypes": photos / "prototypes.csv",
        "data.backbone.cache_dir": photos / "cache",
        "data.batches.steps": 8,
        "annotation.sampling.per_round": 5,
        "annotation.threshold": 0.001,
    }


@pytest.fixture(scope="module")
def folder_run(folder_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder configuration after two rounds of answers; the same command each time."""
    run = tmp_path_factory.mktemp("folder")
    for who in ("anna", "bert", None):
        run_config("folder.yaml", folder_settings, run)
        if who is not None:
            asked = pd.read_csv(run / "questions.csv", dtype=str, keep_default_na=False)
            rows = "".join(f"{task},{who},{colour(task)}\n" for task in asked["task"])
            with open(run / "answers.csv", "a") as file:
                file.write(("" if file.tell() else "task,worker,label\n") + rows)
    return run


def test_folder_config(folder_run: Path, photos: Path) -> None:
    table = check_run(folder_run, n_classes=2, n_prototypes=6, truth=False)
    assert table["annotations"].tolist() == [0, 5, 10]
    assert set(answers(folder_run)["worker"]) == {"anna", "bert"}
    assert json.loads((folder_run / "summary.json").read_text())["stop_reason"].startswith("waiting for the answers to 5")
    labels = pd.read_csv(folder_run / "labels.csv")
    assert (labels["label"] == labels["task"].map(colour))[labels["n_annotations"] > 0].all()
    asked = pd.read_csv(folder_run / "questions.csv")
    assert [Path(path).resolve() for path in asked["path"]] == [photos / "photos" / task for task in asked["task"]]


def test_records_tell_what_was_extracted(
    folder_settings: dict[str, Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_offline(monkeypatch, tmp_path)
    shutil.copytree(photos / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "39.jpg").write_bytes(b"broken")
    more = {"data.root": tmp_path / "photos", "data.backbone.on_error": "skip", "data.backbone.cache_dir": tmp_path / "cache"}
    run_config("folder.yaml", {**folder_settings, **more, **logger_settings(tmp_path)}, tmp_path / "run")
    extraction = read_offline(tmp_path).config["extraction"]
    assert extraction.pop("images_per_second") == pytest.approx(39 / extraction.pop("seconds"))
    assert extraction == {
        "backbone": "test_resnet.r160_in1k", "weights": "random", "image_size": 32, "width": 96,
        "images": 39, "computed": 39, "unreadable": 1,
    }  # fmt: skip


def test_new_images_get_labels(folder_run: Path, folder_settings: dict[str, Any], photos: Path) -> None:
    unknown = {key: value for key, value in folder_settings.items() if key not in ("data.classes", "data.prototypes")}
    settings = {**unknown, "data.root": photos / "new", "annotation.output_dir": folder_run}
    result = call("predict", settings, f"--config={CONFIGS / 'folder.yaml'}")
    assert result.status == 0, result.err
    table = pd.read_csv(folder_run / "predictions.csv")
    assert list(table) == ["task", "label", "confidence"]
    assert table["task"].tolist() == [f"{i:02d}.jpg" for i in range(6)]
    assert table["label"].tolist() == ["red", "green"] * 3


@needs_shared_data
def test_zip_of_photographs_goes_through_to_labels(tmp_path: Path) -> None:
    n = 1000  # of its 10,000: the others are left out because the labels do not name them
    truth = pd.read_csv(SHARED / "cifar10n" / "true_labels.csv", dtype=str)[:n]
    truth.to_csv(tmp_path / "truth.csv", index=False)
    settings = {
        **QUICK,
        **TINY_BACKBONE,
        "data.root": SHARED / "cifar10n" / "images.zip",
        "data.labels": tmp_path / "truth.csv",
        "data.id_pattern": "%05d.jpg",
        "data.backbone.cache_dir": tmp_path / "cache",
        "annotation.sampling.per_round": 50,
    }
    run = fit(settings, tmp_path / "run")
    table = check_run(run, n_classes=10, n_prototypes=100, truth=True)
    assert pd.read_csv(run / "labels.csv", dtype=str)["task"].tolist() == truth["task"].tolist()
    assert table["accuracy"].iloc[-1] > 0.15  # random weights know little, yet more than chance
    assert json.loads((run / "thumbnails.json").read_text())


def test_without_truth_there_are_no_figures_of_it(people: dict[str, Any], tmp_path: Path) -> None:
    run = fit(people, tmp_path)
    table = check_run(run, n_classes=4, n_prototypes=12, truth=False)
    assert table["annotations"].tolist() == [0, 20, 40]
    result = call("test", {**people, "annotation.output_dir": run})
    assert result.status == 2
    assert "this data has none; give it as data.labels" in result.err
    assert "Traceback" not in result.err


def test_a_run_leaves_what_the_design_says(finished: Path) -> None:
    table = check_run(finished, n_classes=4, n_prototypes=12, truth=True)
    assert {path.name for path in finished.iterdir()} == {*FILES, "simulated_workers.npz"}
    assert table["annotations"].tolist() == [0, 20, 40]
    assert (table["paid_per_item"] == table["annotations_per_item"]).all()
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["n_items"] == 288
    assert summary["prototypes_drawn"] is True
    assert summary["unreadable_images"] == []


def test_accuracy_counts_what_is_no_prototype(finished: Path, bank: Bank) -> None:
    labels = pd.read_csv(finished / "labels.csv").merge(pd.read_csv(bank.labels), on="task", suffixes=("", "_true"))
    right = (labels["label"] == labels["label_true"])[labels["status"] != "prototype"]
    assert rounds(finished)["accuracy"].iloc[-1] == pytest.approx(right.mean())


def test_a_run_goes_on_by_its_own_config(bank: Bank, finished: Path, tmp_path: Path) -> None:
    first = fit(bank.settings(), tmp_path)
    again = call("fit", {"trainer.max_epochs": 4}, f"--config={first / 'config.yaml'}")
    assert again.status == 0, again.err
    assert rounds(first)[:3].equals(rounds(finished))
    assert rounds(first)["annotations"].tolist() == [0, 20, 40, 60]
    assert yaml.safe_load((first / "config.yaml").read_text())["trainer"]["max_epochs"] == 4


def test_validate_and_test_say_how_good_the_run_is(finished: Path, bank: Bank) -> None:
    settings = bank.settings(**{"annotation.output_dir": finished})
    validated, tested = call("validate", settings), call("test", settings)
    assert (validated.status, tested.status) == (0, 0), validated.err + tested.err
    for name in ("val_loss", "val_ece", "val_accuracy"):
        assert name in validated.out
    last = rounds(finished).iloc[-1]
    assert printed_number(tested.out, "label_accuracy") == pytest.approx(last["accuracy"], abs=1e-6)
    assert printed_number(tested.out, "test_accuracy") == pytest.approx(last["learner_accuracy"], abs=1e-6)


def printed_number(text: str, name: str) -> float:
    """The number in the row ``name`` of Lightning's table of results."""
    (line,) = (line for line in text.splitlines() if f" {name} " in line)
    return float(line.split()[-2])


def test_predict_labels_another_bank(finished: Path, bank: Bank, tmp_path: Path) -> None:
    features = np.load(bank.features)[::-1]
    np.save(tmp_path / "other.npy", features.astype(np.float16))
    settings = {**QUIET, "data.features": tmp_path / "other.npy", "annotation.output_dir": finished}
    result = call("predict", settings)
    assert result.status == 0, result.err
    table = pd.read_csv(finished / "predictions.csv")
    (finished / "predictions.csv").unlink()
    assert list(table) == ["task", "label", "confidence"]
    assert table["task"].tolist() == list(range(len(features)))
    truth = pd.read_csv(bank.labels)["label"][::-1].to_numpy()
    assert (table["label"].to_numpy() == truth).mean() > 0.85
    assert table["confidence"].between(0.25, 1.0).all()


def test_predict_refuses_other_features(finished: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "narrow.npy", np.zeros((5, 7), dtype=np.float32))
    settings = {**QUIET, "data.features": tmp_path / "narrow.npy", "annotation.output_dir": finished}
    result = call("predict", settings)
    assert result.status == 2
    assert "features of width 7 given; this run's learner takes 16" in result.err


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_commands_that_need_a_learner_say_so(bank: Bank, tmp_path: Path, command: str) -> None:
    result = call(command, bank.settings(**{"annotation.output_dir": tmp_path / "empty"}))
    assert result.status == 2
    assert f"{command} needs a trained learner" in result.err
    assert "Run fit first" in result.err
    assert not (tmp_path / "empty").exists()


def test_report_is_written_anew(finished: Path) -> None:
    before = (finished / "report.html").read_text()
    (finished / "report.html").unlink()
    result = call("report", {}, str(finished))
    assert (result.status, result.out.strip()) == (0, str(finished / "report.html"))
    assert (finished / "report.html").read_text() == before


def test_export_writes_every_answer(finished: Path, tmp_path: Path) -> None:
    result = call("export", {}, str(finished), str(tmp_path / "all.csv"))
    assert result.status == 0, result.err
    table = pd.read_csv(tmp_path / "all.csv")
    assert list(table) == ["task", "worker", "label", "seconds"]
    columns = ["item", "worker", "label"]
    assert table[["task", "worker", "label"]].to_numpy().tolist() == answers(finished)[columns].to_numpy().tolist()


def test_the_unfinished_are_left_for_experts(finished: Path, tmp_path: Path) -> None:
    result = call("unfinished", {}, str(finished), str(tmp_path / "left.csv"))
    assert result.status == 0, result.err
    table, labels = (
        pd.read_csv(tmp_path / "left.csv", dtype={"task": str}),
        pd.read_csv(finished / "labels.csv", dtype={"task": str}),
    )
    assert list(table) == ["task", "label", "confidence", "risk", "n_annotations", "reason"]
    ended = "the run ended first: the last allowed round is done (trainer.max_epochs)"
    assert set(table["reason"]) <= {"never asked", ended}
    assert ((table["reason"] == ended) == table["task"].isin(answers(finished)["item"])).all()
    assert set(table["task"]) == set(labels.query("status == 'unfinished'")["task"])
    assert len(table) > 0
    assert table["risk"].is_monotonic_decreasing
    assert table["risk"].min() >= SMALL["annotation.threshold"]


@pytest.mark.parametrize(
    ("command", "words"),
    [("report", "labels.csv"), ("export", "annotations.db"), ("unfinished", "labels.csv"), ("certify", "labels.csv")],
)
def test_a_folder_without_a_run_is_an_error(tmp_path: Path, command: str, words: str) -> None:
    result = call(command, {}, str(tmp_path), *([str(tmp_path / "all.csv")] if command in ("export", "unfinished") else []))
    assert result.status == 2
    assert words in result.err
    assert not list(tmp_path.iterdir())


def test_other_models_train_without_rounds(tmp_path: Path) -> None:
    demos = "pytorch_lightning.demos.boring_classes"
    settings = {**QUIET, "model": f"{demos}.BoringModel", "data": f"{demos}.BoringDataModule", "trainer.max_epochs": 1}
    run = fit(settings, tmp_path)
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert not (run / "annotations.db").exists()
    assert not (run / "labels.csv").exists()


def test_help_loads_nothing_heavy() -> None:
    shown = run("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(
        f"lightning-annot {name} " in shown.stdout
        for name in ("fit", "validate", "test", "predict", "report", "export", "unfinished", "certify")
    )
    check = "import sys; from lightning_annot.__main__ import main; main(['--help']); print([*sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not [name for name in ("torch", "pandas", "pytorch_lightning", "timm", "sklearn") if f"'{name}'" in loaded]


def test_help_of_fit_names_the_settings() -> None:
    shown = run("fit", "--help")
    assert shown.returncode == 0, shown.stderr
    for key in ("--annotation.output_dir", "--annotation.sampling.per_round", "--seed_everything", "--trainer.max_epochs"):
        assert key in shown.stdout


@pytest.mark.parametrize(
    ("words", "named"), [(["anotate"], "anotate"), (["fit", "--data.batch", "3"], "'batch' is not accepted")]
)
def test_unknown_commands_and_settings_are_refused(words: list[str], named: str) -> None:
    result = call(words[0], {}, *words[1:])
    assert result.status == 2
    assert named in result.err
