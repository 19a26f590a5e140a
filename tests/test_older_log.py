"""A run goes on from its own log and its own features alone."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_runs import Bank, answers, call, check_refused, checkpoint, fit, rounds
from PIL import Image

from lightning_annot.annotations.log import AnnotationLog
from lightning_annot.data.bank_digest import bank_digest
from lightning_annot.data.loading import BackboneSettings, add_features, list_items

KEPT = ("annotations.db", "rounds.csv", "checkpoints")


@pytest.fixture(scope="module")
def whole(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rounds with 40 answers, never to be changed."""
    return fit(bank.settings(), tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    for name in KEPT:
        path = whole / name
        (tmp_path / "run").mkdir(exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, tmp_path / "run" / name)
        else:
            shutil.copy(path, tmp_path / "run" / name)
    return tmp_path / "run"


def put_older_log(run: Path, n_answers: int) -> None:
    """What somebody gets who takes back an old copy: the first questions and answers, and the run's identity."""
    with AnnotationLog(run / "annotations.db") as log:
        identity = log.identity()
    (run / "annotations.db").rename(run / "newer.db")
    with AnnotationLog(run / "annotations.db") as log:
        log.claim(identity)
    with sqlite3.connect(run / "annotations.db") as raw:
        raw.execute("ATTACH ? AS newer", (str(run / "newer.db"),))
        raw.execute("INSERT INTO question SELECT * FROM newer.question WHERE id <= ?", (n_answers,))
        raw.execute("INSERT INTO answer SELECT * FROM newer.answer WHERE id <= ?", (n_answers,))


def test_a_checkpoint_that_knows_of_more_is_refused(bank: Bank, run: Path) -> None:
    assert checkpoint(run)["callbacks"]["AnnotationRound"]["log_size"] == [40, 40]
    put_older_log(run, 20)
    (run / "rounds.csv").unlink()
    settings = {**bank.settings(), "annotation.output_dir": run, "trainer.max_epochs": 4}
    check_refused(settings, "annotations.db holds 20 questions", "last.ckpt knows of 40", "Put the newer log back", "remove")
    assert len(answers(run)) == 20
    shutil.rmtree(run / "checkpoints")
    fit(settings, run)
    assert rounds(run)["annotations"].tolist() == [0, 20, 40, 60]


def test_a_damaged_or_empty_log_is_refused_before_anything_else(bank: Bank, run: Path) -> None:
    settings = {**bank.settings(), "annotation.output_dir": run}
    for content, told in ((b"no database " * 500, "file is not a database"), (b"", "holds 0 answers")):
        (run / "annotations.db").write_bytes(content)
        check_refused(settings, "annotations.db", told)
        assert (run / "annotations.db").read_bytes() == content


def test_a_checkpoint_of_an_older_version_counts_answers(bank: Bank, run: Path) -> None:
    path = run / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    del state["callbacks"]["AnnotationRound"]["log_size"]
    torch.save(state, path)
    put_older_log(run, 20)
    (run / "rounds.csv").unlink()
    check_refused({**bank.settings(), "annotation.output_dir": run}, "holds 20 answers", "last.ckpt knows of 40")


def test_rounds_that_know_of_more_are_refused_and_nothing_is_made(bank: Bank, run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "annotations.db").rename(run / "newer.db")
    settings = {**bank.settings(), "annotation.output_dir": run}
    wanted = ("annotations.db holds 0 answers", "rounds.csv knows of 40", "remove")
    check_refused(settings, *wanted)
    assert not (run / "annotations.db").exists()
    other = run.parent / "other.db"
    check_refused(
        {**settings, "annotation.log_url": f"sqlite:///{other}"}, "other.db holds 0 answers", "rounds.csv knows of 40"
    )
    assert not other.exists()
    (run / "newer.db").rename(run / "annotations.db")
    put_older_log(run, 39)
    check_refused(settings, "annotations.db holds 39 answers")
    result = call("check", settings)
    assert result.status == 2
    assert "annotations.db holds 39 answers" in result.out


def test_the_whole_log_goes_on_whatever_became_of_the_tables(bank: Bank, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(run / "checkpoints")
    for name in ("rounds.csv", "config.yaml", "summary.json", "workers.csv", "confusions.npz"):
        (run / name).write_bytes(b"\x00\xff garbage")
    for name in ("labels.csv", "posterior.npz", "thumbnails.json"):
        (run / name).write_bytes(b"")
    with sqlite3.connect(run / "annotations.db") as raw:  # as an older version left it
        raw.execute("DELETE FROM identity WHERE key = 'features'")
    fit(bank.settings(), run)
    with AnnotationLog(run / "annotations.db") as log:
        assert len(log.identity()["features"]) == 24
    assert len(answers(run)) == 40
    assert rounds(run)["annotations"].tolist() == [0, 20, 40]
    assert "rounds.csv is damaged" in caplog.text
    assert call("report", None, str(run)).status == 0


def test_other_features_of_the_same_shape_are_refused(bank: Bank, run: Path, tmp_path: Path) -> None:
    features = np.load(bank.features)
    features[7, 3] = np.nextafter(features[7, 3], np.float32(9))
    np.save(tmp_path / "other.npy", features)
    settings = {**bank.settings(), "annotation.output_dir": run}
    check_refused({**settings, "data.features": tmp_path / "other.npy"}, "belongs to another run", "features: ", "have changed")
    banks = f"[{{features: {tmp_path / 'other.npy'}}}]"
    check_refused({**settings, "data.banks": banks}, "features: ")
    check_refused({**settings, "data.unlabelled_extra": tmp_path / "other.npy"}, "features: ")


def test_the_digest_is_of_all_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    features = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    whole = bank_digest([features])
    monkeypatch.setattr("lightning_annot.data.bank_digest._CHUNK_BYTES", 100)
    assert bank_digest([np.asfortranarray(features)]) == whole
    other = features.copy()
    other[-1, -1] += 1
    digests = [
        bank_digest(some) for some in ([other], [features[:, :6]], [features, "x"], [features.astype(np.float16)], ["x"])
    ]
    assert len({whole, *digests}) == 6


def test_extracted_features_count_by_image_and_backbone(tmp_path: Path) -> None:
    """Computed anew by another batch size, they may differ in their last bits, and are the same features."""

    def origins(images: Sequence[str], cache: str, **more: Any) -> str:
        root = tmp_path / cache / "images"
        root.mkdir(parents=True)
        for i, colour in enumerate(images):
            Image.new("RGB", (40, 40), colour).save(root / f"{i}.png")
        settings = {"name": "test_resnet.r160_in1k", "weights": "random", "device": "cpu", "cache_dir": str(tmp_path / cache)}
        backbone = BackboneSettings(**{**settings, **more})
        loaded = add_features(list_items(str(root), None, None, None, None, backbone), backbone, seed=3)
        assert isinstance(loaded.origin, str)
        return bank_digest([loaded.origin])

    first = origins(["red", "green", "blue"], "a")
    assert first == origins(["red", "green", "blue"], "b", batch_size=1)
    assert first != origins(["red", "green", "yellow"], "c")
    assert first != origins(["red", "green", "blue"], "d", image_size=64)
