"""Imports point one way, as the design says; read from the source, so that imports inside functions count too."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_annot

PACKAGE = Path(lightning_annot.__file__).parent

PURE = {"types", "annotations", "crowd", "sampling", "round"}
FLOOR = {"types", "files", "names", "locks", "stored"}  # everybody may import these
# What each part may import in addition to itself and the floor. ``data`` and ``backbones`` meet where images become features.
ALLOWED = {
    "types": set[str](),
    "names": {"types"},
    "files": {"types"},
    "checkpoints": {"types", "files"},
    "locks": {"types", "files"},
    "stored": {"types"},
    "annotations": {"types"},
    "crowd": {"types"},
    "sampling": {"types", "crowd"},
    "round": {"types", "annotations", "crowd", "sampling"},
    "recalibration": {"types", "crowd", "round"},
    "workers": {"types", "annotations", "exchange"},
    "learner": PURE | {"data"},
    "data": PURE | {"backbones"},
    "backbones": {"types", "annotations", "data", "learner", "checkpoints", "commandline"},
    "ledger": PURE | {"workers"},
    "report": PURE,
    "certificate": {"types", "annotations", "report", "commandline"},
    "exchange": {"types", "annotations", "data", "report", "commandline"},
    "serve": {"types", "annotations", "data", "report", "exchange", "commandline"},
    "callbacks": PURE | {"workers", "learner", "data", "ledger", "recalibration", "report", "certificate", "commandline"},
    "presets": {"types", "commandline"},
    "commandline": {"types"},
    "check": PURE | {"data", "backbones", "callbacks", "presets", "cli", "commandline"},
    "quiet": set[str](),
    "experiments": PURE | {"workers", "data", "learner", "report", "presets", "checkpoints", "cli", "__main__"},
}
LIGHTNING = {"checkpoints.py", "data/datamodule.py", "learner/module.py", "learner/uniform.py", "cli.py"}
LIGHTNING_FOLDERS = {"backbones", "callbacks", "check"}


def sources() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imports(source: str) -> set[str]:
    """Dotted names that a file imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / source).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(source: str) -> str:
    return source.split("/")[0].removesuffix(".py")


def test_every_part_is_known() -> None:
    top = {part(source) for source in sources()}
    assert top == ALLOWED.keys() | {"__init__", "__main__", "cli"}


@pytest.mark.parametrize("source", [s for s in sources() if part(s) in ALLOWED])
def test_imports_point_one_way(source: str) -> None:
    ours = {name.split(".")[1] for name in imports(source) if name.startswith("lightning_annot.")}
    floor = set() if part(source) in FLOOR else FLOOR
    assert ours <= ALLOWED[part(source)] | floor | {part(source)}


def test_only_thin_layers_know_lightning() -> None:
    users = {s for s in sources() if any(n.split(".")[0] in ("lightning", "pytorch_lightning") for n in imports(s))}
    assert users >= LIGHTNING
    assert {s for s in users if part(s) not in LIGHTNING_FOLDERS} == LIGHTNING


def test_the_pure_learner_and_data_do_not_know_their_lightning_layer() -> None:
    for source in sources():
        if part(source) in ("learner", "data") and source not in LIGHTNING:
            heavy = ("lightning_annot.learner.module", "lightning_annot.data.datamodule")
            assert not any(name.startswith(heavy) for name in imports(source))


def test_there_is_no_cycle_between_files() -> None:
    """Files could be loaded in some order even if all their imports stood at the head."""
    graph = {}
    for source in sources():
        known = {s: "lightning_annot." + s.removesuffix(".py").replace("/", ".") for s in sources()}
        found = imports(source)
        graph[source] = {
            s for s, dotted in known.items() if s != source and any((n + ".").startswith(dotted + ".") for n in found)
        }
    while ready := {source for source, needs in graph.items() if not needs}:
        graph = {source: needs - ready for source, needs in graph.items() if source not in ready}
    assert graph == {}


def test_import_is_light() -> None:
    code = """
import sys, lightning_annot
heavy = {"torch", "pytorch_lightning", "lightning", "timm", "numpy", "pandas", "sklearn", "scipy", "matplotlib", "sqlalchemy"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pure_modules_load_without_lightning() -> None:
    pure = [s.removesuffix(".py").replace("/", ".") for s in sources() if part(s) in PURE | {"workers", "ledger"}]
    code = f"""
import sys
from importlib import import_module
for name in {[name for name in pure if not name.endswith("__init__")]}:
    import_module("lightning_annot." + name)
print(sorted({{"pytorch_lightning", "lightning"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_page_starts_without_what_it_does_not_need() -> None:
    """Whoever labels waits for these seconds whenever the page is started anew."""
    code = """
import sys, lightning_annot.serve.app, lightning_annot.serve.command, lightning_annot.serve.wire
print(sorted({"numpy", "pandas"} & set(sys.modules)))
import lightning_annot.data.loading, lightning_annot.data.sources
print(sorted({"pandas", "sklearn", "torch"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]


def test_commands_that_need_no_model_load_no_torch() -> None:
    code = """
import sys, lightning_annot.report.page, lightning_annot.exchange.outputs, lightning_annot.exchange.incoming
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_public_names() -> None:
    for name in lightning_annot.__all__:
        assert getattr(lightning_annot, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lightning_annot.nothing  # noqa: B018
