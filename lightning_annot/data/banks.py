"""Further feature banks of the same items: joined to the learner's own, or the eyes of a machine worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lightning_annot.backbones.image_text import PREFIX
from lightning_annot.data.bank_digest import Origin
from lightning_annot.data.features import load_features
from lightning_annot.data.images import Images, first_few
from lightning_annot.data.loading import BackboneSettings, Loaded, backbone_spec, extract_features
from lightning_annot.data.ranks import ALONE, Ranks
from lightning_annot.types import AnnotError


@dataclass(frozen=True)
class BankSettings:
    """What else is known of the items.

    One of: ``features``, a ready-made bank (.npy), row i for row i of ``data.labels``, ``data.items`` or the other bank;
    ``backbone``, which extracts one from the images; ``scores``, what any model says of the classes, (N, K) in a .npy:
    probabilities or, else, logits, columns in the order of the classes.

    ``machine``: the name of a machine worker who looks at this bank; without one, features are joined to the learner's own.
    ``prompts``: texts with ``{}`` for a class, by which an image-text backbone (``open_clip:MODEL``) scores the classes.
    """

    features: str | None = None
    backbone: BackboneSettings | None = None
    scores: str | None = None
    machine: str | None = None
    prompts: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse what does not go together; the data module asks, since the command line would bury an error of here."""
        given = [name for name in ("features", "backbone", "scores") if getattr(self, name) is not None]
        if len(given) != 1:
            raise AnnotError(
                f"an entry of data.banks has {' and '.join(given) or 'none'} of features, backbone, scores; give one of them."
            )
        if self.backbone is not None and self.backbone.name is None:
            raise AnnotError(
                "an entry of data.banks has a backbone without a name; give a timm model, such as resnet50.a1_in1k."
            )
        if self.machine is None and (self.scores is not None or self.prompts):
            raise AnnotError(
                "data.banks has scores or prompts without a machine; name the machine worker, such as machine: clip."
            )
        if self.prompts and (self.backbone is None or not (self.backbone.name or "").startswith(PREFIX)):
            raise AnnotError(
                f"data.banks has prompts, which need an image-text backbone; give its name as {PREFIX}MODEL, such as "
                f"{PREFIX}ViT-B-32."
            )
        if wrong := [text for text in self.prompts if "{}" not in text]:
            raise AnnotError(
                f"data.banks has the prompts {wrong[:3]}, without {{}} where the class goes; write 'a photo of a {{}}'."
            )


@dataclass(frozen=True)
class Banks:
    """``joined``: features (N, D) beside the learner's own. ``machines``: features by the name of the machine worker who learns
    from them. ``scores``: log p(class) (N, K) float32 by the name of the one who needs not learn. ``origins``: what each bank
    is known by, in the order of the settings.
    """

    joined: tuple[np.ndarray, ...] = ()
    machines: Mapping[str, np.ndarray] = field(default_factory=dict)
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    origins: tuple[Origin, ...] = ()


def check_banks(settings: Sequence[BankSettings], listed: Loaded, names: Sequence[str] | None, seed: int) -> None:
    """Raise AnnotError for what ``load_banks`` would refuse, before any bank is extracted; ``listed`` needs no features."""
    machines = [bank.machine for bank in settings if bank.machine is not None]
    if twice := [name for name in machines if machines.count(name) > 1]:
        raise AnnotError(f"data.banks names the machine {twice[0]!r} twice; give each a name of its own.")
    for bank in settings:
        if bank.machine is not None and names is None:
            continue
        if bank.features is not None:
            _chosen(load_features(bank.features), bank.features, listed)
        elif bank.scores is not None:
            assert names is not None
            _scores(bank.scores, listed, len(names))
        elif bank.backbone is not None:
            _source(listed)
            backbone_spec(bank.backbone, seed)


def load_banks(
    settings: Sequence[BankSettings],
    loaded: Loaded,
    names: Sequence[str] | None,
    seed: int,
    ranks: Ranks = ALONE,
) -> Banks:
    """All banks, which ``check_banks`` has passed, for the items ``loaded``.

    ``names`` (K,): what the classes are called, None where nobody asks the machines.
    """
    joined: list[np.ndarray] = []
    machines: dict[str, np.ndarray] = {}
    scores: dict[str, Tensor] = {}
    origins: list[Origin] = []
    for bank in settings:
        if bank.machine is None:
            found, origin = _features(bank, loaded, seed, ranks)
            joined.append(found)
            origins.append(origin)
            continue
        if names is None:
            continue
        if bank.scores is not None:
            scores[bank.machine], origin = _scores(bank.scores, loaded, len(names))
        elif bank.prompts:
            from lightning_annot.backbones.zero_shot import class_scores

            backbone = bank.backbone
            assert backbone is not None
            assert backbone.name is not None
            features, seen = _features(bank, loaded, seed, ranks)
            origin = f"{seen} {list(bank.prompts)}"
            scores[bank.machine] = class_scores(features, backbone.name, backbone.weights, bank.prompts, names, seed)
        else:
            machines[bank.machine], origin = _features(bank, loaded, seed, ranks)
        origins.append(origin)
    return Banks(tuple(joined), machines, scores, tuple(origins))


def _features(bank: BankSettings, loaded: Loaded, seed: int, ranks: Ranks) -> tuple[np.ndarray, Origin]:
    """The features, and what they are known by."""
    if bank.features is not None:
        rows = _chosen(load_features(bank.features), bank.features, loaded)
        return rows, rows
    assert bank.backbone is not None
    found = extract_features(_source(loaded), bank.backbone, seed, ranks)
    if found.unreadable:
        raise AnnotError(
            f"{len(found.unreadable)} images can be read no more ({first_few(found.unreadable)}); they could be when the "
            "learner's own features were made."
        )
    return found.features, found.origin


def _source(loaded: Loaded) -> Images:
    if loaded.source is None:
        raise AnnotError("data.banks names a backbone, and this run has no images; give data.root, or ready-made features.")
    return loaded.source


def _chosen(rows: np.ndarray, path: str, loaded: Loaded) -> np.ndarray:
    """The rows of a file that are items of this run."""
    if len(rows) != loaded.n_listed:
        raise AnnotError(f"{path} has {len(rows)} rows, and there are {loaded.n_listed} items; row i is item i.")
    return rows if loaded.rows is None else rows[loaded.rows]


def _scores(path: str, loaded: Loaded, n_classes: int) -> tuple[Tensor, Origin]:
    rows = _chosen(load_features(path), path, loaded)
    found = torch.from_numpy(np.array(rows, dtype=np.float32))
    if found.shape[1] != n_classes:
        raise AnnotError(
            f"{path} has {found.shape[1]} columns, and there are {n_classes} classes; give one column a class, in their order."
        )
    total = found.sum(1)
    if bool((found >= 0).all()) and bool(((total - 1.0).abs() < 1e-2).all()):
        found = found.clamp(min=1e-6).log()
    return found.log_softmax(1), rows
