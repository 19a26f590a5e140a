"""A fault on the command line or in a configuration is one line that says what was meant; names stay text."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_runs import CONFIGS, call
from hypothesis import given
from hypothesis import strategies as st

from lightning_annot import __version__
from lightning_annot.callbacks.annotation_round import AnnotationRound
from lightning_annot.cli import OTHERS, ROOTS, build
from lightning_annot.commandline.faults import explain
from lightning_annot.commandline.known import members, settings_of, subclasses
from lightning_annot.commandline.options import most_similar
from lightning_annot.commandline.texts import TEXT_LISTS, load, quoted_args, quoted_yaml
from lightning_annot.workers.base import Workers

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # pytest has arguments of its own

LIVE = "lightning_annot.workers.live.LiveWorkers"
ODD = ["yes", "no", "on", "0", "1", "1.0", "null", "~", "2024-01-01", "x", "1e3", "0x10", "True"]


BAD_FILES = {
    b"data:\n\troot: x\n": "line 2 begins with a tab; YAML is indented by spaces",
    b"a: 1\ndata: {a: [1,2\n": "line 3 is no YAML: expected ',' or ']'",
    b"# \xe9\ndata: {}\n": "line 1 is no UTF-8",
    "data: {}\n".encode("utf-16"): "line 1 is no UTF-8",
    b"": "is empty; it needs settings",
    b"- a\n": "holds \"['a']\"; it needs settings",
}


def refused(*words: str) -> str:
    """The one line that ``words`` are refused with."""
    result = call(words[0], {}, *words[1:])
    assert result.status == 2
    assert result.out == ""
    assert result.err.startswith("lightning-annot: ")
    assert result.err.count("\n") == 1
    assert not [text for text in ("NestedArg", "Traceback", "<class", "usage:", "Union") if text in result.err], result.err
    return result.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--annotation.treshold 0.2", ["no setting --annotation.treshold", "did you mean --annotation.threshold?"]),
        ("--anotation.threshold=0.2", ["did you mean --annotation.threshold?"]),
        ("--sed_everything 1", ["did you mean --seed_everything?"]),
        ("--trainer.max_epochz 1", ["did you mean --trainer.max_epochs?"]),
        ("--data.batch 3", ["did you mean --data.batches?"]),
        ("--data.init_args.batches.objectiv x", ["did you mean --data.batches.objective?"]),
        ("--data.adapt.views.crp 0.5", ["did you mean --data.adapt.views.crop?"]),
        ("--model.hiden 3", ["did you mean --model.hidden?"]),
        (f"--annotation.workers {LIVE} --annotation.workers.untill all", ["did you mean --annotation.workers.until?"]),
        ("--annotation.workers.until all", ["--annotation.workers.until given without a class"]),
        ("--annotation.workers FileWorker", ["did you mean lightning_annot.workers.files.FileWorkers?"]),
        ("--annotation.workers lightning_annot.workers.live.LifeWorkers", [f"did you mean {LIVE}?"]),
        ("--trainer.logger WandLogger", ["did you mean pytorch_lightning.loggers.wandb.WandbLogger?"]),
        ("--annotation.threshold high", ["--annotation.threshold high given", "allowed is a number"]),
        ("--annotation.sampling.per_round 1.5", ["--annotation.sampling.per_round 1.5 given", "a whole number"]),
        ("--annotation.crowd.temper perhaps", ["true or false"]),
        ("--annotation.crowd.prior teired", ["did you mean tiered", "tiered, homogeneous, class, worker, class_worker"]),
        ("--trainer.max_epochs 1 --trainer.fast_dev_run=1.5", ["--trainer.fast_dev_run 1.5 given"]),
        ("--data.holdout item", ["did you mean items", "items, prototypes"]),
        ("--data.projection.standardise false", ["--data.projection.standardise given; it is now --data.projection.scale"]),
        ('--data.projection={"standardise":0}', ["it is now --data.projection.scale", "standard for true and none for false"]),
        ("--data.projection.scale standart", ["did you mean standard", "auto, standard, raw, unit, none"]),
        ("--data.folds=", ["--data.folds '' given", "a whole number"]),
        ("--data.folds --data.root x", ["--data.folds '' given"]),
        ("--trainer.accelerator gpuu", ["refuses the trainer's settings", "gpuu"]),
        ("--method mixmach", ["did you mean mixmatch?", "majority_vote"]),
        ("stray", ["'stray' given"]),
        ("--config missing.yaml", ["cannot be read: No such file", "missing.yaml"]),
    ],
)  # fmt: skip
def test_a_fault_of_fit_is_one_line(words: str, told: list[str]) -> None:
    err = refused("fit", *words.split())
    assert not [text for text in told if text not in err], err


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("annotation: {treshold: 0.2}", ["no setting --annotation.treshold in", "did you mean --annotation.threshold?"]),
        ("data: {init_args: {projection: {standardise: true}}}", ["standardise given in", "--data.projection.scale"]),
        ("annotation: {threshold: high}", ["--annotation.threshold high given in", "allowed is a number"]),
        ("data: {init_args: {batches: {steps: 1.5}}}", ["--data.batches.steps 1.5 given in", "allowed is a whole number"]),
        (f"annotation: {{workers: {{class_path: {LIVE}, init_args: {{untill: all}}}}}}", ["--annotation.workers.until?"]),
        ("annotation: {workers: {class_path: lightning_annot.workers.live.LifeWorkers}}", [f"did you mean {LIVE}?"]),
        ("trainr: {max_epochs: 3}", ["no setting --trainr.max_epochs in", "did you mean --trainer.max_epochs?"]),
    ],
)
def test_a_fault_in_a_configuration_is_one_line_that_names_the_file(tmp_path: Path, document: str, told: list[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(document)
    err = refused("fit", "--config", str(path))
    assert not [text for text in [*told, str(path)] if text not in err], err


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=str)
def test_nothing_is_wrong_with_the_shipped_configurations(path: Path) -> None:
    words = ["--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--trainer.logger", "false", "--model", "null"]
    assert explain(["--config", str(path), *words], "what jsonargparse says", ROOTS, OTHERS) == "what jsonargparse says"


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_other_commands_of_lightning_say_it_alike(command: str) -> None:
    assert "did you mean --annotation.threshold?" in refused(command, "--annotation.treshold", "1")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("fti", "did you mean fit?"),
        ("exprt", "did you mean export?"),
        ("--versio", "did you mean --version?"),
        ("--annotation.threshold 1 fit", "there are --help, --version, fit"),
        ("-c missing.yaml", "missing.yaml"),
        ("report", "required: dir"),
        ("scorecards x --ulr y", "did you mean --url?"),
        ("import x y --wroker ann", "did you mean --worker?"),
        ("export x y --formt csv", "did you mean --format?"),
        ("export x y --format lable-studio", "did you mean label-studio?"),
        ("export-model x --out y --format onxx", "did you mean onnx?"),
        ("unfinished x y --ulr z", "did you mean --url?"),
        ("confusions x --oot y", "did you mean --out?"),
        ("serve x --port abc", "argument --port: invalid int value: 'abc'"),
        ("study x --protoypes p.csv", "did you mean --prototypes?"),
        ("certify x --drow 3", "did you mean --draw?"),
    ],
)
def test_a_fault_of_the_other_commands_is_one_line(words: str, told: str) -> None:
    assert told in refused(*words.split())


def test_the_version_is_told_without_heavy_imports() -> None:
    check = "import sys; from lightning_annot.__main__ import main; main(['--version']); print([*sys.modules])"
    out = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[0] == f"lightning-annot {__version__}"
    assert not [name for name in ("torch", "pandas", "pytorch_lightning", "numpy", "sqlalchemy") if f"'{name}'" in out]


def test_names_of_classes_and_people_stay_text_on_the_command_line() -> None:
    odd = f"[{', '.join(ODD)}]"
    words = [f"--data.classes={odd}", "--annotation.crowd.experts", "[1,2]", "--annotation.workers", LIVE]
    cli = build([*words, "--annotation.workers.workers", odd, "--trainer.devices", "1", "--trainer.accelerator", "cpu"])
    assert cli.datamodule.owner.classes == ODD
    assert cli.annotation_round.crowd.experts == ("1", "2")
    assert cli.annotation_round.workers.names() == ODD
    assert build(["--data.classes+=yes", "--data.classes+", "no"]).datamodule.owner.classes == ["yes", "no"]


def test_names_of_classes_and_people_stay_text_in_configurations(tmp_path: Path) -> None:
    odd = f"[{', '.join(ODD)}]"
    lines = "\n".join(f"    - {name}" for name in ODD)
    for n, data in enumerate(
        (f"data:\n  classes: {odd}", f"data:\n  init_args:\n   classes:\n{lines}", f"data: {{classes: {odd}}}")
    ):
        path = tmp_path / f"{n}.yaml"
        path.write_text(
            f"{data}\nannotation:\n  threshold: 1e-3\n  crowd: {{experts: [7, 'eight']}}\ntrainer: {{accelerator: cpu}}\n"
        )
        cli = build(["--config", str(path)])
        assert cli.datamodule.owner.classes == ODD
        assert cli.annotation_round.crowd.experts == ("7", "eight")
        assert cli.annotation_round.threshold == 0.001


def is_text_list(hint: Any) -> bool:
    """Whether a setting takes a list of texts."""
    lists = [part for part in members(hint) if typing.get_origin(part) in (list, tuple, Sequence)]
    return any(str in typing.get_args(part) for part in lists)


def test_every_list_of_texts_is_known() -> None:
    found: set[str] = set()
    for base in (Workers, __import__("pytorch_lightning").LightningDataModule, __import__("pytorch_lightning").LightningModule):
        for kind in (AnnotationRound, *subclasses(base).values()):
            if kind.__module__.startswith("lightning_annot.") and not inspect.isabstract(kind):
                settings = settings_of(kind, "x")
                found |= {name.rpartition(".")[2] for name, hint in settings.items() if is_text_list(hint)}
    found |= {"prompts"}  # of a bank in the list data.banks
    assert found == TEXT_LISTS


_SCALARS = st.sampled_from(ODD) | st.text("abcü '\"[]{},:#-é", min_size=1, max_size=8)


@given(st.lists(_SCALARS, min_size=1, max_size=5))
def test_text_that_is_quoted_already_stays_as_it_is(names: list[str]) -> None:
    quoted = yaml.safe_dump({"data": {"classes": names, "folds": 5}}, allow_unicode=True)
    assert load(quoted) == {"data": {"classes": names, "folds": 5}}
    flow = yaml.safe_dump(names, default_flow_style=True, allow_unicode=True, width=1 << 20).strip()
    assert load(quoted_args([f"--data.classes={flow}"])[0].partition("=")[2]) == names


@pytest.mark.parametrize(
    "text", ["classes: [", "workers: lightning_annot.workers.live.LiveWorkers", "folds: [1, 2]", "", "a: &x [1]\nb: *x"]
)
def test_documents_without_lists_of_texts_stay_as_they_are(text: str) -> None:
    assert quoted_yaml(text) == text


def test_anchors_and_merged_keys_survive_the_quoting() -> None:
    text = "base: &b {steps: 3, lr: 1e-3}\ndata: {<<: *b, classes: [no, 1]}\n"
    found: Any = yaml.safe_load(quoted_yaml(text))
    assert found["data"] == {"steps": 3, "lr": "1e-3", "classes": ["no", "1"]}  # 1e-3 is text in YAML 1.1, here as before


def test_what_is_most_similar() -> None:
    known = ["--a.threshold", "--b.threshold", "--a.steps"]
    assert most_similar("--b.treshold", known) == "--b.threshold"
    assert most_similar("--a.xyz", known) is None
    assert most_similar("x", []) is None


def test_classes_are_listed_without_the_packages_of_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lightning_annot.workers.label_studio_client", raising=False)
    monkeypatch.setitem(sys.modules, "httpx", None)
    assert LIVE in subclasses(Workers)


@pytest.mark.parametrize("content", BAD_FILES)
def test_a_configuration_file_that_cannot_be_read_is_named_with_the_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    told = refused("fit", "--config", str(path))
    assert f"--config {path}" in told
    assert BAD_FILES[content] in told


def test_a_configuration_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert f"--config {tmp_path / 'a.yaml'} cannot be read: No such file" in refused("check", f"--config={tmp_path / 'a.yaml'}")


def test_a_name_that_would_stand_for_another_setting_is_refused() -> None:
    assert "${...} stands for another setting" in refused("fit", "--data.classes", '["${x}",b]')


def test_ctrl_c_while_the_trainer_is_at_work_names_the_command_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pytorch_lightning.trainer.connectors.data_connector._DataConnector.prepare_data", stopped)
    result = call("fit", {"data.root": "digits", "data.backbone": "{name: null}", "trainer.accelerator": "cpu"})
    assert result.status == 130
    assert "interrupted; the same command goes on: lightning-annot fit" in result.err
