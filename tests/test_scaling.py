"""How features are scaled: what is chosen on real and drawn banks, by which labels, and that a run says and keeps it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cli_runs import QUIET, SMALL, Bank, call, checkpoint, fit
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from lightning_annot.data.datamodule import AnnotationDataModule
from lightning_annot.data.items import ItemTable, build_items
from lightning_annot.data.known import NOTHING_KNOWN, Known, known_rows
from lightning_annot.data.projection import Projection, ProjectionSettings, fit_projection
from lightning_annot.data.scaling import CHOICES, Scale, choose_scale, unit_rows
from lightning_annot.data.view import FeatureView

SEEDS = range(101, 111)
LINEAR = ProjectionSettings(neighbours=0)


@cache
def digits(kind: str) -> np.ndarray:
    """1,797 handwritten digits: their ``pixels``, all principal ``components``, or pixels with ``random`` scales."""
    pixels = load_digits().data.astype(np.float32)
    if kind == "components":
        return PCA(64, random_state=0).fit_transform(pixels).astype(np.float32)
    if kind == "random":
        return pixels * np.exp(1.5 * np.random.default_rng(7).standard_normal(64)).astype(np.float32)
    return pixels


@cache
def truth() -> np.ndarray:
    return load_digits().target.astype(np.int64)


def prototypes(seed: int, per_class: int) -> Known:
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.choice(np.flatnonzero(truth() == k), per_class, replace=False) for k in range(10)])
    return Known(rows, truth()[rows])


def chosen(bank: np.ndarray, known: Known, seed: int = 0) -> str:
    return choose_scale(bank, known, lambda rows: bank[rows], seed).scale


@pytest.mark.parametrize("per_class", [3, 10])
def test_components_keep_their_proportions_and_random_scales_are_standardised(per_class: int) -> None:
    for seed in SEEDS:
        known = prototypes(seed, per_class)
        assert chosen(digits("components"), known, seed) in ("raw", "unit")
        assert chosen(digits("random"), known, seed) == "standard"


def test_a_bank_and_its_principal_components_are_seen_alike() -> None:
    """The learner's features of components tell classes apart as well as those of the pixels; whitened ones do not."""
    known = prototypes(101, 10)
    rest = np.setdiff1d(np.arange(len(truth())), known.row)

    def accuracy(kind: str, scale: Scale = "auto") -> float:
        x = fit_projection(digits(kind), replace(LINEAR, scale=scale), 0, known).apply(digits(kind)).numpy()
        model = LogisticRegression(C=10, max_iter=300).fit(x[known.row], known.label)
        return float((model.predict(x[rest]) == truth()[rest]).mean())

    assert accuracy("pixels") > accuracy("pixels", "standard") - 0.01
    assert accuracy("components", "standard") < accuracy("pixels") - 0.1
    assert accuracy("components") > accuracy("pixels") - 0.01
    assert accuracy("random", "raw") < accuracy("pixels", "standard") - 0.1
    assert accuracy("random") > accuracy("pixels", "standard") - 0.01


def test_without_labels_sorted_and_uncorrelated_features_are_taken_for_components() -> None:
    for known in (NOTHING_KNOWN, prototypes(1, 1)):
        assert chosen(digits("components"), known) == "raw"
        assert chosen(digits("pixels"), known) == chosen(digits("random"), known) == "standard"
    shuffled = np.random.default_rng(0).permutation(64)
    assert chosen(digits("components")[:, shuffled], NOTHING_KNOWN) == "standard"
    assert chosen(digits("components")[:, shuffled], prototypes(1, 5)) == "raw"


def test_noise_decides_nothing() -> None:
    rng = np.random.default_rng(5)
    bank = rng.standard_normal((500, 30)).astype(np.float32)
    found = [chosen(bank, Known(rng.choice(500, 60, replace=False), np.arange(60) % 3), seed) for seed in range(10)]
    assert found.count("standard") >= 8


def test_losses_are_those_of_a_plain_cross_validation() -> None:
    """The slow way: all 64 columns, each scaling spelled out, folds by the order in which the rows are drawn."""
    from lightning_annot.data.scaling import _folds, _losses, _scaled, moments

    bank, known = digits("pixels"), prototypes(3, 4)
    kept, fold = _folds(known.label, 3)
    label = known.label[kept]
    assert np.bincount(fold).tolist() == [10, 10, 10, 10]
    unit = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    deviation = np.where(bank.std(0) > 0, bank.std(0), np.inf)
    slow = {"standard": (bank - bank.mean(0)) / deviation, "raw": bank - bank.mean(0), "unit": unit - unit.mean(0)}
    for scale, rows in _scaled(bank, bank[known.row[kept]], moments(bank)):
        x = slow[scale] / np.sqrt(np.square(slow[scale]).sum(1).mean())
        x = x[known.row[kept]]
        logits = np.zeros((len(x), 10))
        for f in range(4):
            model = LogisticRegression(C=10, max_iter=1000, tol=1e-8).fit(x[fold != f], label[fold != f])
            logits[fold == f] = model.decision_function(x[fold == f])
        scaled = torch.from_numpy(logits)[None] * torch.logspace(-1.3, 1.3, 3000).view(-1, 1, 1)
        losses = -scaled.log_softmax(2)[:, torch.arange(len(x)), torch.from_numpy(label)].mean(1)
        assert _losses(rows, label, fold).mean() == pytest.approx(float(losses.min()), abs=2e-3), scale


def test_many_classes_and_rows_cost_little() -> None:
    rng = np.random.default_rng(0)
    bank = rng.standard_normal((3000, 12)).astype(np.float32)
    read: list[int] = []

    def rows_of(rows: np.ndarray) -> np.ndarray:
        read.append(len(rows))
        return bank[rows]

    choose_scale(bank, Known(np.arange(3000), np.arange(3000) % 150), rows_of, 0)
    assert read == [400]


def test_the_choice_is_a_function_of_the_seed_and_the_labels() -> None:
    known = prototypes(2, 10)
    first, again = (fit_projection(digits("components"), ProjectionSettings(), 4, known) for _ in range(2))
    assert (first.scale, first.reason) == (again.scale, again.reason)
    assert torch.equal(first.matrix, again.matrix)


def test_unit_norm_hides_the_size_of_a_row() -> None:
    bank = digits("pixels")
    fitted = fit_projection(bank, ProjectionSettings(scale="unit"), 0)
    size = np.exp(np.random.default_rng(0).standard_normal((len(bank), 1))).astype(np.float32)
    torch.testing.assert_close(fitted.apply(bank * size), fitted.apply(bank), atol=1e-4, rtol=1e-3)
    assert fitted.apply(bank)[:, :64].square().sum(1).mean() == pytest.approx(1.0, abs=1e-3)
    assert np.linalg.norm(unit_rows(bank * np.float32(1e-30)), axis=1) == pytest.approx(1.0, abs=1e-5)
    assert not unit_rows(np.zeros((2, 3), np.float32)).any()


def test_features_of_unit_norm_are_safe() -> None:
    """As those of CLIP and DINO: any choice tells the classes apart."""
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((64, 64)))[0].astype(np.float32)
    bank, known = unit_rows(digits("pixels") @ turn), prototypes(101, 10)
    x = fit_projection(bank, LINEAR, 0, known).apply(bank).numpy()
    model = LogisticRegression(C=10, max_iter=300).fit(x[known.row], known.label)
    assert (model.predict(x) == truth()).mean() > 0.85


def test_one_huge_feature_does_not_hide_the_others() -> None:
    bank = digits("pixels").copy()
    bank[:, 20] *= 1e5
    assert chosen(bank, prototypes(101, 10)) == chosen(bank, NOTHING_KNOWN) == "standard"


@pytest.mark.parametrize("scale", CHOICES)
def test_rounding_errors_of_a_constant_feature_are_left_out(scale: Scale) -> None:
    rng = np.random.default_rng(0)
    bank = rng.standard_normal((50, 6)).astype(np.float32)
    bank[:, 2] = np.float32(1e9) + 64 * rng.integers(0, 3, 50)
    assert not fit_projection(bank, replace(LINEAR, scale=scale), 0).matrix[2].any()


def test_tiny_data_are_safe() -> None:
    rng = np.random.default_rng(0)
    for n, d in ((2, 1), (2, 5), (20, 40), (20, 3)):
        bank = rng.standard_normal((n, d)).astype(np.float16)
        for known in (NOTHING_KNOWN, Known(np.array([0, 1]), np.array([0, 1])), Known(np.arange(n), np.arange(n) % 2)):
            settings = ProjectionSettings(neighbours=0)
            assert bool(fit_projection(bank, settings, 0, known).apply(bank).isfinite().all())
    half = np.sign(rng.standard_normal((30, 4))).astype(np.float16) * np.float16(65504)
    known = Known(np.arange(30), np.arange(30) % 2)
    assert bool(fit_projection(half, ProjectionSettings(), 0, known).apply(half).isfinite().all())


def table(prototype: dict[str, str]) -> ItemTable:
    ids = [str(i) for i in range(8)]
    return build_items(ids, ["a", "b", "c"], None, prototype, prototypes_per_class=1, n_folds=2, seed=0)


def test_answers_are_labels_by_their_majority() -> None:
    items = table({"0": "a", "1": "b", "2": "c"})
    item = torch.tensor([3, 3, 3, 4, 4, 5, 5, 0, 6, 7, 7, 7])
    label = torch.tensor([1, 2, 2, 0, 1, 2, -1, 2, -1, 0, 0, 1])
    known = known_rows(items, item, label)
    assert dict(zip(known.row.tolist(), known.label.tolist(), strict=True)) == {0: 0, 1: 1, 2: 2, 3: 2, 5: 2, 7: 0}
    assert known_rows(items).row.tolist() == [0, 1, 2]


def test_each_bank_is_scaled_by_itself() -> None:
    banks = [digits(kind) for kind in ("components", "random")]
    view = FeatureView(banks, [digits("components")], None, LINEAR, 0, known=prototypes(101, 10))
    assert [p.scale for p in view.projections] == ["raw", "standard", "raw"]


@pytest.mark.parametrize("scale", ["standard", "none"])
def test_projections_of_older_checkpoints_are_read(scale: Scale) -> None:
    bank = digits("pixels") + 1
    fitted = fit_projection(bank, ProjectionSettings(dim=8, scale=scale), 0)
    state = {name: value for name, value in fitted.state().items() if name not in ("scale", "reason")}
    older = Projection.restored(state)
    assert older.scale == scale
    assert torch.equal(older.apply(bank), fitted.apply(bank))


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed are auto, standard, raw, unit, none"):
        ProjectionSettings(scale="whitened")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def components(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """400 digits as principal components."""
    folder = tmp_path_factory.mktemp("components")
    np.save(folder / "features.npy", PCA(64, random_state=0).fit_transform(digits("pixels")[:400]))
    label = [f"d{k}" for k in truth()[:400]]
    pd.DataFrame({"task": range(400), "label": label}).to_csv(folder / "labels.csv", index=False)
    pd.DataFrame({"task": range(400), "worker": "ann", "label": label}).to_csv(folder / "answers.csv", index=False)
    return Bank(folder / "features.npy", folder / "labels.csv", folder / "none", folder / "answers.csv")


def test_a_run_says_how_features_are_scaled_and_keeps_it(components: Bank, tmp_path: Path) -> None:
    settings = {**QUIET, **SMALL, "data.features": components.features, "data.labels": components.labels}
    settings |= {"trainer.max_epochs": 2, "annotation.output_dir": tmp_path / "run"}
    result = call("fit", settings)
    assert result.status == 0, result.err
    assert "features scaled: raw (log-loss on 30 labelled items: standard" in result.out
    assert "Feature scale" in result.out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["feature_scale"] == {"features": "raw"}
    assert "Feature scale" in (tmp_path / "run" / "report.html").read_text()
    paths = {name: str(settings[f"data.{name}"]) for name in ("features", "labels")}
    again = AnnotationDataModule(**paths, projection=ProjectionSettings(scale="standard"))
    again.load_state_dict(checkpoint(tmp_path / "run")["AnnotationDataModule"])
    again.setup("fit")
    again.know(torch.arange(100), torch.zeros(100, dtype=torch.int64))
    assert [scale for scale, _ in again.scales.values()] == ["raw"]


def test_answers_that_are_there_choose_where_no_prototypes_are(components: Bank, tmp_path: Path) -> None:
    shuffled = tmp_path / "shuffled.npy"
    np.save(shuffled, np.load(components.features)[:, np.random.default_rng(0).permutation(64)])
    settings = {**QUIET, **SMALL, "data.features": shuffled, "data.labels": components.labels, "trainer.max_epochs": 2}
    settings |= {"data.prototypes_per_class": 0, "annotation.import_answers": components.answers}
    run = fit(settings, tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["feature_scale"] == {"features": "raw"}
    assert "labelled items" in summary["feature_scale_reason"]["features"]
