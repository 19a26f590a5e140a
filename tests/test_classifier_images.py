"""The classifier on images: a linear probe, then all of the backbone; stopped and resumed, it is as if it never had."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import CONFIGS, arguments, call, fit, run
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_annot.backbones.classifier import ClassifierModule
from lightning_annot.backbones.classifier_batches import InOrder, Shuffled, seeded
from lightning_annot.backbones.classifier_data import AugmentSettings, ClassifierDataModule
from lightning_annot.backbones.step_sizes import adamw, rise_and_fall, step_size
from lightning_annot.types import AnnotError

TINY = {"backbone": "test_resnet.r160_in1k", "weights": "random", "image_size": 32}
CONFIG = f"--config={CONFIGS / 'classify.yaml'}"
EPOCHS = 4


class Watch(Callback):
    """Keeps the backbone's weights and statistics at the end of each epoch, and stops after epoch ``end``, as Ctrl-C would."""

    def __init__(self, end: int | None = None) -> None:
        self.end, self.seen = end, list[dict[str, Tensor]]()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append({k: v.clone() for k, v in pl_module.backbone.state_dict().items()})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == self.end:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 noisy images, red, green or blue, below ``images/``, and ``labels.csv`` with a prototype in every five."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    (folder / "images").mkdir()
    names, colour = [f"{i:02d}.png" for i in range(60)], np.arange(60) % 3
    for name, k in zip(names, colour, strict=True):
        pixels = rng.integers(0, 160, (40, 36, 3))
        pixels[..., k] += 90
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / name)
    status = np.where(np.arange(60) % 5, "finished", "prototype")
    label = np.array(["blue", "green", "red"])[2 - colour]
    table = pd.DataFrame({"task": names, "label": label, "confidence": rng.uniform(0.7, 1, 60), "status": status})
    table.to_csv(folder / "labels.csv", index=False)
    return folder


def data(photos: Path, **changed: Any) -> ClassifierDataModule:
    options = {"run": str(photos), "root": str(photos / "images"), "batch_size": 16, "num_workers": 0, "seed": 3}
    return ClassifierDataModule(**options | changed)


def train(photos: Path, folder: Path, *callbacks: Callback, resume: bool = False, **model: Any) -> ClassifierModule:
    module = ClassifierModule(
        **TINY | {"probe_epochs": 2, "mixup": 0.4, "cutmix": 0.4, "dropout": 0.2, "ema_decay": 0.9} | model
    )
    saved = ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0, log_every_n_steps=1, callbacks=[saved, *callbacks],
    )  # fmt: skip
    augment = AugmentSettings(auto_augment="rand-m7-mstd0.5", re_prob=0.3)
    try:
        trainer.fit(module, data(photos, augment=augment), ckpt_path=folder / "last.ckpt" if resume else None)
    except (KeyboardInterrupt, SystemExit):
        assert not resume
    return module


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ClassifierModule, Watch]:
    watch = Watch()
    return train(photos, tmp_path_factory.mktemp("whole"), watch), watch


def test_the_backbone_is_frozen_and_then_learns(whole: tuple[ClassifierModule, Watch]) -> None:
    _, watch = whole
    states = watch.seen
    assert len(states) == EPOCHS + 1
    for state in states[1:3]:
        assert all(torch.equal(value, states[0][name]) for name, value in state.items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[3].items() if "running_mean" in name)
    assert all(not torch.equal(value, states[2][name]) for name, value in states[3].items() if name.endswith("conv1.weight"))


@pytest.mark.parametrize("end", [1, 3], ids=["in the probe", "after it"])
def test_stopped_and_resumed_is_uninterrupted(
    photos: Path, whole: tuple[ClassifierModule, Watch], tmp_path: Path, end: int
) -> None:
    train(photos, tmp_path, Watch(end))
    torch.manual_seed(99)  # what a new process begins with must not matter
    random.seed(99)
    resumed = train(photos, tmp_path, resume=True)
    ours, theirs = resumed.state_dict(), whole[0].state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_through_the_command_line(photos: Path, tmp_path: Path) -> None:
    settings = {
        "trainer.accelerator": "cpu", "trainer.enable_progress_bar": False, "trainer.max_epochs": 12, "data.num_workers": 1,
        "data.run": photos, "data.root": photos / "images", "data.batch_size": 16, "data.augment.color_jitter": 0,
        "data.labels": photos / "truth.csv", "model.lr": 0.02, "model.ema_decay": 0.5, "model.probe_epochs": 0,
        "model.layer_decay": 0.8, **{f"model.{key}": value for key, value in TINY.items()},
    }  # fmt: skip
    pd.read_csv(photos / "labels.csv")[["task", "label"]].to_csv(photos / "truth.csv", index=False)
    output = fit(settings, tmp_path / "out", CONFIG)
    result = call("test", None, f"--config={output / 'config.yaml'}")
    assert result.status == 0, result.err
    assert "test_ece" in result.out
    assert call("predict", None, f"--config={output / 'config.yaml'}").status == 0
    table = pd.read_csv(output / "predictions.csv")
    assert table["task"].tolist() == [f"{i:02d}.png" for i in range(60)]
    assert (table["label"] == pd.read_csv(photos / "truth.csv")["label"]).mean() > 0.9


def test_an_image_that_cannot_be_read_is_named(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for path in (photos / "images").iterdir():
        (tmp_path / "images" / path.name).write_bytes(path.read_bytes()[: 50 if path.name == "01.png" else None])
    with pytest.raises(AnnotError, match=r"01\.png.*repair it"):
        train_on(data(photos, root=str(tmp_path / "images")))
    (tmp_path / "images" / "01.png").unlink()
    with pytest.raises(AnnotError, match=r"1 of 60 tasks have no image.*01\.png"):
        train_on(data(photos, root=str(tmp_path / "images")))
    with pytest.raises(AnnotError, match="images need a backbone"):
        train_on(data(photos), backbone=None)


def train_on(data: ClassifierDataModule, **model: Any) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    Trainer(max_epochs=1, accelerator="cpu", **quiet).fit(ClassifierModule(**TINY | model), data)


@pytest.mark.slow
def test_two_processes(photos: Path, tmp_path: Path) -> None:
    settings = {
        "trainer.accelerator": "cpu", "trainer.enable_progress_bar": False, "trainer.max_epochs": 2, "data.num_workers": 0,
        "data.run": photos, "data.root": photos / "images", "data.batch_size": 8, "model.probe_epochs": 1,
        **{f"model.{key}": value for key, value in TINY.items()}, "annotation.output_dir": tmp_path, "trainer.devices": 2,
    }  # fmt: skip
    found = run("fit", CONFIG, *arguments(settings | {"trainer.strategy": "ddp"}), OMP_NUM_THREADS="1")
    assert found.returncode == 2, found.stderr
    assert "ddp_find_unused_parameters_true" in found.stderr
    done = run(
        "fit", CONFIG, *arguments(settings | {"trainer.strategy": "ddp_find_unused_parameters_true"}), OMP_NUM_THREADS="1"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


def test_pairs_are_mixed_with_their_weights() -> None:
    module = ClassifierModule(mixup=0.5)
    x, mass = torch.rand(6, 4), torch.rand(6, 3)
    with seeded(5):
        mixed, mixed_mass = module._mix(x, mass)
    share = ((mixed[0] - x[5]) / (x[0] - x[5])).mean()
    torch.testing.assert_close(mixed, share * x + (1 - share) * x.roll(1, 0))
    torch.testing.assert_close(mixed_mass, share * mass + (1 - share) * mass.roll(1, 0))
    assert ClassifierModule(mixup=0.0)._mix(x, mass) == (x, mass)


def test_labels_are_smoothed_and_weighted() -> None:
    module = ClassifierModule(smoothing=0.3)
    module.classes = ["a", "b", "c"]
    batch = {"top": torch.tensor([[2], [0]]), "probability": torch.tensor([[0.8], [1.0]]), "weight": torch.tensor([1.0, 0.5])}
    wanted = torch.tensor([[0.1, 0.1, 0.8], [1.0, 0.0, 0.0]]) * 0.7 + 0.1
    torch.testing.assert_close(module._mass(batch), wanted * torch.tensor([[1.0], [0.5]]))


def test_step_sizes_rise_and_fall() -> None:
    sizes = [step_size(step, start=10, warmup=5, end=40) for step in range(42)]
    assert sizes[:10] == [0.0] * 10
    assert sizes[10:15] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a > b for a, b in pairwise(sizes[14:41]))
    assert sizes[14 + 13] == pytest.approx(0.5)  # half way from 14 to 40
    assert sizes[40:] == [0.0, 0.0]


@pytest.mark.parametrize(("n", "size", "world"), [(50, 8, 1), (50, 8, 2), (7, 64, 1), (7, 64, 3)])
def test_ranks_share_an_epoch(n: int, size: int, world: int) -> None:
    def rows(sampler: Shuffled) -> Sequence[Sequence[int]]:
        return [found for _, found in sampler]

    own = np.arange(100, 100 + n)
    ranks = [Shuffled(own, size, 5, rank, world) for rank in range(world)]
    seen = [row for sampler in ranks for step in rows(sampler) for row in step]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(own.tolist())
    assert {len(rows(sampler)) for sampler in ranks} == {len(ranks[0])}
    assert len(seen) > n - size * world
    again = rows(ranks[0])
    ranks[0].set_epoch(1)
    assert rows(ranks[0]) != again
    ranks[0].set_epoch(0)
    assert rows(ranks[0]) == again
    whole = [row for _, step in InOrder(own, size) for row in step]
    assert whole == own.tolist()
    with pytest.raises(AnnotError, match="at least 2"):
        Shuffled(own[:1], size, 5)


def test_global_generators_are_left_as_they_were() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    states = random.getstate(), torch.random.get_rng_state()
    with seeded(1, 2):
        first = draw()
    with seeded(1, 2):
        assert draw() == first
    with seeded(1, 3):
        assert draw() != first
    assert random.getstate() == states[0]
    assert torch.equal(torch.random.get_rng_state(), states[1])


def test_layers_learn_at_their_own_step_sizes() -> None:
    module = ClassifierModule(**TINY)
    module.build(["a", "b"], None, "random", 0)
    assert module.network is not None
    optimizer = adamw(module.network.head, module.backbone, lr=1.0, backbone_lr=0.1, layer_decay=0.5, decay=0.3)
    named = {id(value): name for name, value in module.network.named_parameters()}
    rate = {named[id(value)]: group["lr"] for group in optimizer.param_groups for value in group["params"]}
    decay = {named[id(value)]: group["weight_decay"] for group in optimizer.param_groups for value in group["params"]}
    assert rate.keys() == set(named.values())
    assert rate["head.2.weight"] == rate["head.2.bias"] == 1.0
    stem, first, last = "backbone.conv1.0.weight", "backbone.layer1.0.conv1.weight", "backbone.layer4.0.conv1.weight"
    assert rate[stem] < rate[first] < rate[last] <= 0.1
    matrices = {name for name, value in module.network.named_parameters() if value.ndim > 1}
    assert {name for name in decay if decay[name]} == matrices
    steps = rise_and_fall(optimizer, begin=4, warmup=1, end=8)
    for step in range(8):
        now = {named[id(value)]: group["lr"] for group in optimizer.param_groups for value in group["params"]}
        assert (now[stem] > 0) == (step >= 4)
        assert now["head.2.weight"] > 0
        optimizer.step()
        steps.step()
