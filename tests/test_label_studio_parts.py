"""What needs no server of the way to Label Studio: configuration, settings, addresses of images."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from cli_runs import ROOT
from hypothesis import given
from hypothesis import strategies as st

from lightning_annot.types import AnnotError, Task
from lightning_annot.workers.label_studio import LabelStudioWorkers
from lightning_annot.workers.label_studio_client import TOKEN_VARIABLE, LabelStudio
from lightning_annot.workers.label_studio_project import Control, Pictures, label_config

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="￾￿"), min_size=1)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, unique_by=lambda pair: pair[0]))
def test_answers_have_the_class_whatever_it_is_called(pairs: list[tuple[str, str]]) -> None:
    classes, names = zip(*pairs, strict=True)
    root = ElementTree.fromstring(label_config(classes, names))
    choices = root.findall("Choices/Choice")
    assert [choice.get("alias", choice.get("value")) for choice in choices] == list(classes)
    shown = [choice.get("value") for choice in choices]
    assert all(name == says or says == f"{name} ({id_})" for id_, name, says in zip(classes, names, shown, strict=True))


def test_the_control_is_found_whatever_it_is_called() -> None:
    found = {"type": "Choices", "to_name": ["photo"], "inputs": [{"value": "url"}], "labels": ["dog", "cat"]}
    other = {**found, "labels": ["sharp", "blurred"]}
    project = {"title": "pets", "parsed_label_config": {"quality": other, "animal": found}}
    assert Control.of(project, ["cat", "dog"]) == Control("animal", "photo", "url")
    with pytest.raises(AnnotError, match=r"takes its images from \$url"):
        Control.of(project, ["cat", "dog"], taken=("url",))
    with pytest.raises(AnnotError, match=r"other classes: it has \['blurred', 'cat', 'dog', 'sharp'\], this run has \['cow'\]"):
        Control.of(project, ["cow"])


@pytest.mark.parametrize(
    ("pattern", "address"),
    [("https://images.example.org/", "https://images.example.org/x%20y/%231.png"),
     ("/data/local-files/?d=in/{item}?v=1", "/data/local-files/?d=in/x%20y/%231.png?v=1")],
)  # fmt: skip
def test_addresses_by_pattern(pattern: str, address: str) -> None:
    assert Pictures(None, pattern, None).addresses(["x y/#1.png"]) == {"x y/#1.png": address}  # type: ignore[arg-type]


@pytest.mark.parametrize("paths", [None, {"a": "digits"}, {"a": "gone.png"}])
def test_a_run_without_image_files_does_not_start(paths: dict[str, str] | None) -> None:
    with pytest.raises(AnnotError, match=r"workers.images to where the images are"):
        Pictures(None, None, paths)  # type: ignore[arg-type]


@pytest.mark.parametrize("token", ["", "  ", "tökén", "a\nb"])
def test_no_token(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(AnnotError, match=f"{TOKEN_VARIABLE} is empty or no token") as error:
        LabelStudio("http://localhost:8080")
    assert not token.strip() or token not in str(error.value)


@pytest.mark.parametrize(
    "url", ["localhost:8080", "ftp://localhost", "http://", "http://ann:hidden@localhost", "http://localhost:port"]
)
def test_odd_addresses(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "1234")
    with pytest.raises(AnnotError, match="must be like http://localhost:8080") as error:
        LabelStudio(url)
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize(
    ("odd", "message"),
    [({"project": "ab"}, "3 to 50"), ({"until": 0}, "until 0"), ({"minutes": -1}, "minutes"),
     ({"poll_seconds": 0}, "poll_seconds"), ({"workers": ["ann", "ann"]}, "differ")],
)  # fmt: skip
def test_odd_settings(odd: dict[str, Any], message: str) -> None:
    with pytest.raises(AnnotError, match=message):
        LabelStudioWorkers(**odd)


def test_a_task_without_a_log(tmp_path: Path) -> None:
    with pytest.raises(AnnotError, match="log_url"):
        LabelStudioWorkers().bind(Task(["a"], ["cat", "dog"], seed=0, output_dir=str(tmp_path)))


def test_the_page_has_every_setting_and_its_default() -> None:
    text = (ROOT / "docs" / "label_studio.md").read_text(encoding="utf-8").partition("## What becomes")[0]
    told = {name: yaml.safe_load(value) for name, value in re.findall(r"^\| `([a-z_]+)` \| (\S+) \|", text, flags=re.M)}
    settings = inspect.signature(LabelStudioWorkers).parameters.values()
    assert told == {setting.name: setting.default for setting in settings}
