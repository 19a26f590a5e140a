"""``fit`` and ``check`` report a mistake in one sentence before anything is downloaded, adapted or extracted."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from cli_runs import CONFIGS, QUIET, Result, call, check_refused
from PIL import Image

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.annotations.peeking import peek_identity
from lightning_annot.data.classes import read_classes
from lightning_annot.types import AnnotError

Settings = dict[str, Any]
Maker = Callable[[Path], Settings]

N = 12


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, ``0.png`` to ``11.png``."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(N):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def settings(photos: Path, tmp_path: Path) -> Settings:
    """What ``fit`` over the images through a real backbone needs; two rounds, and two people through files."""
    prototypes = "".join(f"{i}.png,{'cat' if i % 2 else 'dog'}\n" for i in range(4))
    (tmp_path / "prototypes.csv").write_text(f"task,label\n{prototypes}")
    return {
        **QUIET,
        "trainer.max_epochs": 1,
        "data.root": photos,
        "data.classes": "[cat,dog]",
        "data.prototypes": tmp_path / "prototypes.csv",
        "data.batches.steps": 2,
        "data.backbone.name": "test_resnet.r160_in1k",
        "data.backbone.weights": "random",
        "data.backbone.image_size": 32,
        "data.backbone.num_workers": 0,
        "data.backbone.cache_dir": tmp_path / "cache",
        "annotation.workers": "lightning_annot.workers.files.FileWorkers",
        "annotation.output_dir": tmp_path / "run",
    }


def unknown_item(folder: Path) -> Settings:
    return {"data.prototypes": write(folder / "p.csv", "task,label\n0.png,cat\n1.png,dog\n99.png,dog\n")}


def unknown_class(folder: Path) -> Settings:
    return {"data.prototypes": write(folder / "p.csv", "task,label\n0.png,cat\n1.png,dog\n2.png,elk\n")}


def class_without_prototype(folder: Path) -> Settings:
    return {"data.classes": "[cat,dog,elk]"}


def class_twice(folder: Path) -> Settings:
    return {"data.classes": "[cat,dog,cat]"}


def labels_of_other_images(folder: Path) -> Settings:
    rows = "".join(f"{i}.jpg,{'cat' if i % 2 else 'dog'}\n" for i in range(N))
    return {"data.labels": write(folder / "labels.csv", f"task,label\n{rows}")}


def imported_for_nobody(folder: Path) -> Settings:
    return {"annotation.import_answers": write(folder / "old.csv", "task,worker,label\n99.png,anna,cat\n")}


def no_import(folder: Path) -> Settings:
    return {"annotation.import_answers": folder / "nowhere.csv"}


def small_cost(folder: Path) -> Settings:
    return {"annotation.cost": write(folder / "cost.csv", "0\n")}


def answers_of_another_class(folder: Path) -> Settings:
    (folder / "run").mkdir()
    write(folder / "run" / "answers.csv", "task,worker,label\n5.png,anna,elk\n")
    return {}


def recorded_for_nobody(folder: Path) -> Settings:
    answers = write(folder / "recorded.csv", "task,worker,label\n99.png,anna,cat\n")
    return {"annotation.workers": "lightning_annot.workers.recorded.RecordedWorkers", "annotation.workers.answers": answers}


def simulated_without_truth(folder: Path) -> Settings:
    return {"annotation.workers": "lightning_annot.workers.simulated.StructuredWorkers"}


def nobody_at_label_studio(folder: Path) -> Settings:
    workers = "lightning_annot.workers.label_studio.LabelStudioWorkers"
    return {"annotation.workers": workers, "annotation.workers.url": "http://127.0.0.1:9"}


def no_oracle(folder: Path) -> Settings:
    return {"annotation.crowd.oracle": folder / "nowhere.npz"}


def no_such_device(folder: Path) -> Settings:
    return {"data.banks": "[{backbone: {name: test_resnet, weights: random, device: 'cuda:7'}}]"}


def gold_to_anyone(folder: Path) -> Settings:
    return {"annotation.gold": 3}


def another_run(folder: Path) -> Settings:
    with AnnotationLog(folder / "run" / "annotations.db") as log:
        log.claim({"items": "7 items, abc", "seed": "0"})
    return {}


def no_held_out_prototypes(folder: Path) -> Settings:
    return {"model.keep_best": "round"}


def short_bank(folder: Path) -> Settings:
    np.save(folder / "short.npy", np.zeros((N - 1, 4), np.float32))
    return {"data.banks": f"[{{features: {folder / 'short.npy'}}}]"}


def unknown_second_backbone(folder: Path) -> Settings:
    return {"data.banks": "[{backbone: {name: resnet500}}]"}


def second_backbone_without_network(folder: Path) -> Settings:
    return {"data.banks": "[{backbone: {name: resnet50}}]"}


def missing_extra(folder: Path) -> Settings:
    return {"data.unlabelled_extra": folder / "nowhere"}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


FAULTS = [
    (unknown_item, "1 ids only in data.prototypes, such as ['99.png']"),
    (unknown_class, "data.prototypes has labels outside the classes: ['elk']"),
    (class_without_prototype, "1 classes without a prototype: ['elk']"),
    (class_twice, "data.classes names a class twice"),
    (labels_of_other_images, "0.jpg"),
    (imported_for_nobody, "1 rows have a task outside the items (line 2: '99.png')"),
    (no_import, "annotation.import_answers is"),
    (small_cost, "cost matrix of shape (1, 1) given; 2 classes need 2 x 2"),
    (answers_of_another_class, "have a label outside the classes (line 2: 'elk')"),
    (recorded_for_nobody, "have a task outside the items (line 2: '99.png')"),
    (simulated_without_truth, "answers from the truth, and this data has none"),
    (nobody_at_label_studio, "127.0.0.1:9 cannot be reached"),
    (gold_to_anyone, "questions go to anyone; gold questions need workers with names"),
    (another_run, "belongs to another run (old -> new: "),
    (no_held_out_prototypes, "model.keep_best round given"),
    (short_bank, "short.npy has 11 rows, and there are 12 items"),
    (unknown_second_backbone, "timm has no model 'resnet500'"),
    (second_backbone_without_network, "the weights of resnet50 could not be downloaded (no network: "),
    (no_oracle, "crowd.oracle is "),
    (no_such_device, "device 'cuda:7' cannot be used here"),
    (missing_extra, "does not exist; data.root names where images come from"),
]


@pytest.mark.parametrize(("make", "wanted"), FAULTS, ids=[make.__name__ for make, _ in FAULTS])
def test_nothing_is_extracted_before_a_mistake_is_told(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Maker, wanted: str
) -> None:
    no_network(monkeypatch, tmp_path)
    changed = {**settings, **make(tmp_path)}
    check_refused(changed, wanted)
    assert not list(tmp_path.rglob("*.f16"))
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "run" / "rounds.csv").exists()


def test_nothing_is_adapted_before_a_mistake_is_told(settings: Settings, tmp_path: Path) -> None:
    check_refused({**settings, "data.adapt.epochs": 1, **unknown_class(tmp_path)}, "labels outside the classes: ['elk']")
    assert not (tmp_path / "run" / "adapted").exists()


def no_network(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A hub that nothing answers at, an empty cache of it, and a token for Label Studio."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "token")


def check(settings: Settings, *more: str) -> Result:
    """Run ``check`` in this process."""
    return call("check", settings, *more)


def lines(result: Result, level: str) -> list[str]:
    """What ``check`` printed as ok, warning or problem."""
    return [line[len(level) :].strip() for line in result.out.splitlines() if line.startswith(level)]


def everything(folder: Path) -> dict[str, int]:
    """All below a folder, with the times of the last changes."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(("make", "wanted"), FAULTS[::3], ids=[make.__name__ for make, _ in FAULTS[::3]])
def test_check_finds_each_mistake_and_changes_nothing(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Maker, wanted: str
) -> None:
    no_network(monkeypatch, tmp_path)
    changed = {**settings, **make(tmp_path)}
    before = everything(tmp_path)
    result = check(changed)
    assert result.status == 2, result.out
    assert [line for line in lines(result, "problem") if wanted in line], result.out
    assert everything(tmp_path) == before


@pytest.mark.parametrize("make", [unknown_class, another_run])
def test_fit_says_what_check_says(settings: Settings, tmp_path: Path, make: Maker) -> None:
    changed = {**settings, **make(tmp_path)}
    (problem,) = lines(check(changed), "problem")
    check_refused(changed, problem.partition(": ")[2])


def test_check_of_what_is_in_order(settings: Settings, tmp_path: Path) -> None:
    before = everything(tmp_path)
    result = check(settings)
    assert result.status == 0, result.out
    assert everything(tmp_path) == before
    assert not lines(result, "problem")
    ok = lines(result, "ok")
    for text in (
        "classes: 2 (cat, dog)",
        f"images: {N} images (png {N}); all were opened and can be read",
        f"run folder: a new run in {tmp_path / 'run'}",
        f"workers: questions to anyone through {tmp_path / 'run' / 'questions.csv'}; no answers yet",
        "data.backbone: test_resnet.r160_in1k with the weights random",
        f"disk: {tmp_path / 'run'} needs about ",
        f"disk: {tmp_path / 'cache'} needs about ",
        "memory: about ",
        "device: cpu; torch ",
    ):
        assert [line for line in ok if line.startswith(text)], (text, ok)
    (speed,) = [line for line in ok if line.startswith("extraction: ")]
    assert f" for {N} images at " in speed
    assert speed.endswith("images/s (test_resnet.r160_in1k, cpu)")
    assert lines(result, "warning") == ["prototypes: 4, fewest 2 of 'cat'; about 10 of each class calibrate the model well"]


def test_check_of_a_run_that_is_under_way(settings: Settings, tmp_path: Path) -> None:
    settings["trainer.max_epochs"] = 2  # no answer is asked for after the last round
    assert call("fit", settings).status == 0
    shutil.copy(tmp_path / "run" / "questions.csv", tmp_path / "run" / "answers.csv")
    before = everything(tmp_path)
    result = check(settings, f"--config={tmp_path / 'run' / 'config.yaml'}")
    assert result.status == 2  # the copy lacks a column
    assert "answers.csv has columns ['task', 'worker', 'path'], without ['label']" in result.out
    assert f"run folder: the run in {tmp_path / 'run'} goes on" in result.out
    assert f"extraction: 0 s, features are there (all of {N} images)" in result.out
    assert everything(tmp_path) == before


def test_check_of_damaged_images(settings: Settings, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "7.png").write_bytes(b"no image")
    settings["data.root"] = tmp_path / "photos"
    text = (
        "images: 1 of 12 images cannot be read, of all that were opened (7.png: no image that Pillow knows); repair or remove"
    )
    result = check(settings)
    assert result.status == 2
    assert lines(result, "problem")[0].startswith(text)
    result = check({**settings, "data.backbone.on_error": "skip"})
    assert result.status == 0
    assert lines(result, "warning")[0].startswith(text)


def test_check_of_a_disk_without_room(settings: Settings) -> None:
    result = check({**settings, "annotation.output_dir": "/proc/run", "data.backbone.cache_dir": "/dev/null/cache"})
    assert result.status == 2
    problems = lines(result, "problem")
    assert [line for line in problems if "/dev/null is no folder" in line]
    assert [line for line in problems if line.startswith("disk: /proc/run ")]


def test_check_tells_what_will_be_downloaded(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_hub: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", free_hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    result = check({**settings, "data.backbone.weights": "pretrained"})
    assert result.status == 0, result.out
    assert "data.backbone: test_resnet.r160_in1k; its weights will be downloaded once, about 2 MB" in result.out
    assert f" for {N} images at " in result.out
    assert not (tmp_path / "hub").exists()


@pytest.fixture
def free_hub() -> Iterator[str]:
    """The address of a server that answers, and has nothing."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_check_of_other_workers(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    live = {**settings, "annotation.workers": "lightning_annot.workers.live.LiveWorkers"}
    assert "workers: questions to anyone who is invited, on the page" in check(live).out
    monkeypatch.setitem(sys.modules, "fastapi", None)
    found = check(live)
    assert found.status == 0
    assert [line for line in lines(found, "warning") if "the page needs fastapi" in line and "[serve]" in line]


@pytest.mark.parametrize(
    ("config", "change", "wanted"),
    [
        ("digits.yaml", {}, "adaptation: comes first, 30 epochs over all images"),
        ("adapt.yaml", {}, "prototypes: 100, for val_knn alone"),
        (
            "classify.yaml",
            {"model.weights": "random", "model.backbone": "test_resnet.r160_in1k"},
            "labels: 4 items of 2 classes",
        ),
    ],
)
def test_check_of_shipped_configurations(
    settings: Settings, photos: Path, tmp_path: Path, config: str, change: Settings, wanted: str
) -> None:
    if config == "classify.yaml":
        change = {**change, "data.root": photos, "data.run": settings["data.prototypes"]}
    result = check({"annotation.output_dir": tmp_path / "run", **change}, f"--config={CONFIGS / config}")
    assert result.status == 0, result.out
    assert wanted in result.out
    assert not (tmp_path / "run").exists()


def test_check_says_what_it_does() -> None:
    assert "Nothing is written or downloaded" in call("check", {}, "--help").out


def test_a_log_is_looked_at_without_a_change(tmp_path: Path) -> None:
    path = tmp_path / "annotations.db"
    assert peek_identity(path)[1] == {}
    with AnnotationLog(path) as log:
        log.claim({"seed": "3"})
        assert peek_identity(path)[1] == {"seed": "3"}  # while somebody else has it open
    before = everything(tmp_path)
    assert peek_identity(f"sqlite:///{path}") == (f"sqlite:///{path}", {"seed": "3"})
    assert everything(tmp_path) == before
    path.write_bytes(b"no database at all, and long enough to be none")
    with pytest.raises(AnnotError, match="cannot be read as an annotation log: file is not a database"):
        peek_identity(path)


def test_classes_are_named_once() -> None:
    with pytest.raises(AnnotError, match="names a class twice"):
        read_classes(["cat", "dog", "cat"])
