"""Names of classes and people as they are written: ``yes``, ``0`` and ``null`` stay text, which YAML takes for other things."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError, OmegaConfBaseException

from lightning_annot.types import AnnotError

TEXT_LISTS = frozenset({"classes", "experts", "freeze", "prompts", "workers"})
"""Settings whose lists hold texts, wherever they are."""


def quoted_args(args: Sequence[str]) -> list[str]:
    """The words of a command line, with the entries of lists of texts quoted."""
    out: list[str] = []
    before = ""
    for word in args:
        name, equals, value = word.partition("=")
        if word.startswith("--") and equals and _takes_texts(name):
            word = f"{name}={_quoted_value(value)}"
        elif _takes_texts(before):
            word = _quoted_value(word)
        before = word if word.startswith("--") and not equals else ""
        out.append(word)
    return out


def quoted_yaml(text: str) -> str:
    """A YAML document with the entries of its lists of texts quoted; ``text`` itself where it has none, or is no YAML."""
    if not any(name in text for name in TEXT_LISTS):
        return text
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return text
    return yaml.serialize(root, allow_unicode=True, width=1 << 20) if root is not None and _quote_below(root) else text


def load(text: str) -> Any:
    """Read a value or a document as jsonargparse's mode ``omegaconf`` does, but lists of texts as they are written."""
    text = quoted_yaml(text)
    plain = get_loader("yaml")(text)
    if not isinstance(plain, (dict, list)):
        return plain
    try:
        found = OmegaConf.to_object(OmegaConf.load(io.StringIO(text)))
    except (InterpolationKeyError, InterpolationResolutionError) as error:
        reason = str(error).splitlines()[0]
        raise AnnotError(
            f"{text.strip()[:80]} given: ${{...}} stands for another setting ({reason}), and no name can hold it"
        ) from error
    return plain if found == {text: None} else found


def install() -> None:
    """Let jsonargparse read by ``load``."""
    set_loader("omegaconf", load, (yaml.YAMLError, OmegaConfBaseException))


def _takes_texts(option: str) -> bool:
    return option.startswith("--") and option.removesuffix("+").rpartition(".")[2] in TEXT_LISTS


def _quoted_value(value: str) -> str:
    try:
        root = yaml.compose(value, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return value
    if not isinstance(root, yaml.SequenceNode) or not all(isinstance(entry, yaml.ScalarNode) for entry in root.value):
        return value
    return json.dumps([entry.value for entry in root.value], ensure_ascii=False)


def _quote_below(node: yaml.Node) -> bool:
    """Quote what is to be text below ``node``; whether there was any."""
    found = False
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value in TEXT_LISTS and isinstance(value, yaml.SequenceNode):
                for entry in value.value:
                    if isinstance(entry, yaml.ScalarNode) and entry.style is None:
                        entry.style, entry.tag, found = '"', "tag:yaml.org,2002:str", True
            found |= _quote_below(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            found |= _quote_below(value)
    return found
