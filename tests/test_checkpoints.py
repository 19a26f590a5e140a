"""Checkpoints: replaced whole; a damaged one is passed over by ``fit`` and refused by name elsewhere."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import Bank, answers, assert_equal_runs, call, checkpoint, fit
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_annot.checkpoints import TRAINING, WEIGHTS, DurableCheckpointIO, fault
from lightning_annot.types import AnnotError

ROUND = "AnnotationRound"


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def random_bytes(path: Path) -> None:
    path.write_bytes(os.urandom(5000))


def one_bit(path: Path) -> None:
    """A bit of the weights, which ``torch.load`` does not notice."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + largest.file_size // 2] ^= 1
    path.write_bytes(bytes(content))


def foreign_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Path("of another program")))


def foreign_object(path: Path) -> None:
    torch.save({**{name: {} for name in TRAINING}, "model": nn.Linear(2, 2)}, path)


def foreign_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.txt", "hello")


def weights_alone(path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), path)


def a_list(path: Path) -> None:
    torch.save([1, 2], path)


def without(*place: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        state = inner = torch.load(path, weights_only=True)
        for name in place[:-1]:
            inner = inner[name]
        del inner[next(key for key in inner if key.startswith(place[-1]))]
        torch.save(state, path)

    damage.__name__ = f"without {place[-1]}"
    return damage


DAMAGES = [
    empty, cut, random_bytes, one_bit, foreign_pickle, foreign_object, foreign_zip, weights_alone, a_list,
    *(without(name) for name in (*TRAINING, "AnnotationDataModule")), without("callbacks", ROUND),
]  # fmt: skip


def last(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def parts(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds, never to be changed."""
    return fit(bank.settings(), tmp_path_factory.mktemp("parts"), trainer__max_epochs=2)


@pytest.fixture(scope="module")
def whole(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for three rounds, undisturbed."""
    return fit(bank.settings(), tmp_path_factory.mktemp("whole"), trainer__max_epochs=3)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_fault_is_found(parts: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = Path(shutil.copy(last(parts), tmp_path))
    wanted = ((*TRAINING, "AnnotationDataModule"), [ROUND])
    assert fault(path, *wanted) is None
    damage(path)
    reason = fault(path, *wanted)
    assert reason
    assert "\n" not in reason


@pytest.mark.parametrize("damage", [empty, one_bit, foreign_pickle], ids=lambda d: d.__name__)
def test_fit_goes_on_from_the_log(
    bank: Bank, parts: Path, whole: Path, tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(parts, tmp_path / "run")
    damage(last(run))
    with caplog.at_level(logging.WARNING, "lightning_annot"):
        fit(bank.settings(), run, trainer__max_epochs=3)
    (said,) = [record.message for record in caplog.records if record.name.startswith("lightning_annot")]
    assert f"the checkpoint {last(run)} cannot be used" in said
    assert "the run goes on from its log" in said
    assert_equal_runs(run, whole)


def test_damaged_records_do_not_stop_fit(bank: Bank, parts: Path, whole: Path, tmp_path: Path) -> None:
    """What loggers have written is never read, and the configuration is written anew."""
    run = shutil.copytree(parts, tmp_path / "run")
    records = run / "logs" / "version_0"
    cut(records / "metrics.csv")
    for path in (records / "hparams.yaml", run / "config.yaml"):
        path.write_bytes(b"\xff\x00{")
    fit(bank.settings(), run, trainer__max_epochs=3)
    assert_equal_runs(run, whole)
    assert "max_epochs: 3" in (run / "config.yaml").read_text()


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
@pytest.mark.parametrize("damage", [empty, random_bytes, foreign_zip, weights_alone], ids=lambda damage: damage.__name__)
def test_other_commands_name_it(bank: Bank, parts: Path, tmp_path: Path, command: str, damage: Callable[[Path], None]) -> None:
    run = shutil.copytree(parts, tmp_path / "run")
    damage(last(run))
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.suffix != ".lock"}
    result = call(command, bank.settings(**{"annotation.output_dir": run}))
    assert result.status == 2
    assert f"the checkpoint {last(run)} cannot be used" in result.err
    assert "Run fit" in result.err
    assert "Traceback" not in result.err
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name in before} == before


@pytest.mark.parametrize("command", ["fit", "test"])
@pytest.mark.parametrize("given", ["damaged", "missing"])
def test_a_named_one_is_never_passed_over(bank: Bank, parts: Path, tmp_path: Path, command: str, given: str) -> None:
    run, path = shutil.copytree(parts, tmp_path / "run"), tmp_path / "mine.ckpt"
    if given == "damaged":
        cut(Path(shutil.copy(last(parts), path)))
    settings = bank.settings(**{"annotation.output_dir": run, "ckpt_path": path, "trainer.max_epochs": 3})
    result = call(command, settings)
    assert result.status == 2
    assert f"the checkpoint {path} cannot be used" in result.err
    assert len(answers(run)) == len(answers(parts))


def test_weights_of_another_model_are_named(bank: Bank, parts: Path, tmp_path: Path) -> None:
    run = shutil.copytree(parts, tmp_path / "run")
    settings = bank.settings(**{"annotation.output_dir": run, "model.hidden": 8, "trainer.max_epochs": 3})
    result = call("fit", settings)
    assert result.status == 2
    assert "checkpoint's weights differ" in result.err


class Tiny(LightningModule):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.layer(batch).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, epochs: int, **more: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", max_epochs=epochs, default_root_dir=folder, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, plugins=DurableCheckpointIO(), **more,
    )  # fmt: skip


def test_any_lightning_module_can_use_it(tmp_path: Path) -> None:
    data, path = DataLoader(torch.ones(4, 1)), tmp_path / "new" / "a.ckpt"
    first = trainer(tmp_path, 1)
    first.fit(Tiny(), data)
    first.save_checkpoint(path)
    content = path.read_bytes()
    first.save_checkpoint(path)
    assert path.read_bytes() == content  # whatever the file was called meanwhile
    assert os.listdir(path.parent) == ["a.ckpt"]
    assert fault(path, TRAINING) is None
    second = trainer(tmp_path, 2)
    second.fit(Tiny(), data, ckpt_path=path)
    assert second.global_step == 8
    first.save_checkpoint(path, weights_only=True)
    assert fault(path, WEIGHTS) is None
    assert "optimizer_states" in str(fault(path, TRAINING))
    cut(path)
    with pytest.raises(AnnotError, match=f"the checkpoint {path} cannot be used"):
        trainer(tmp_path, 2).fit(Tiny(), data, ckpt_path=path)


def test_checkpoints_of_runs_do_not_pass_through_the_temporary_folder(
    bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``fsspec`` would write there first, and copy."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not there"))
    run = fit(bank.settings(), tmp_path / "run", trainer__max_epochs=1)
    assert checkpoint(run)["epoch"] == 0
    assert os.listdir(run / "checkpoints") == ["last.ckpt"]
