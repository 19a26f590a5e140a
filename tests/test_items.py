"""Items, their prototypes and their folds."""

from __future__ import annotations

import pytest
import torch

from lightning_annot.data.items import ItemTable, build_items
from lightning_annot.types import AnnotError

IDS = [f"i{j}" for j in range(60)]
TRUTH = {name: "abc"[j % 3] for j, name in enumerate(IDS)}


def items(**change: object) -> ItemTable:
    good: dict[str, object] = {
        "ids": IDS, "classes": None, "truth": TRUTH, "prototypes": None, "prototypes_per_class": 6, "n_folds": 3, "seed": 0,
    }  # fmt: skip
    return build_items(**(good | change))  # type: ignore[arg-type]


def test_prototypes_and_folds_are_stratified() -> None:
    table = items()
    assert table.truth is not None
    assert table.drawn
    assert table.classes == ("a", "b", "c")
    assert torch.bincount(table.prototype[table.is_prototype]).tolist() == [6, 6, 6]
    assert torch.equal(table.prototype[table.is_prototype], table.truth[table.is_prototype])
    for k in range(3):
        assert torch.bincount(table.fold[table.prototype == k], minlength=3).tolist() == [2, 2, 2]
    assert int(torch.bincount(table.fold).min()) > 10


def test_items_are_a_function_of_the_seed() -> None:
    one, again, other = items(seed=1), items(seed=1), items(seed=2)
    assert torch.equal(one.prototype, again.prototype)
    assert torch.equal(one.fold, again.fold)
    assert not torch.equal(one.prototype, other.prototype)
    assert one.identity(1) == again.identity(1)
    assert one.identity(1)["prototypes"] != other.identity(1)["prototypes"]
    assert one.identity(1)["seed"] != one.identity(2)["seed"]
    assert one.identity(1)["classes"] != items(classes=["c", "b", "a"], seed=1).identity(1)["classes"]


def test_given_prototypes_and_class_order() -> None:
    table = items(truth=None, prototypes={"i5": "x", "i9": "y", "i11": "y"}, classes=["y", "x"])
    assert table.classes == ("y", "x")
    assert table.truth is None
    assert not table.drawn
    assert table.is_prototype.nonzero()[:, 0].tolist() == [5, 9, 11]
    assert table.prototype[[5, 9, 11]].tolist() == [1, 0, 0]


def test_a_start_without_prototypes_is_asked_for() -> None:
    none = items(prototypes_per_class=0)
    assert not bool(none.is_prototype.any())
    assert not none.drawn
    assert torch.bincount(none.fold).tolist() == [20, 20, 20]
    assert none.identity(0)["prototypes"].startswith("0 prototypes")
    named = items(prototypes_per_class=0, truth=None, classes=["a", "b"])
    assert torch.equal(named.fold, none.fold)
    some = items(prototypes_per_class=0, prototypes={"i4": "b"})
    assert some.prototype[some.is_prototype].tolist() == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": []}, "no items given"),
        ({"ids": [*IDS, "i3", "i4", "i4"]}, r"3 duplicate item ids, such as \['i3', 'i4', 'i4'\]"),
        ({"classes": ["a", "b", "a"]}, "names a class twice"),
        ({"truth": None}, "no classes given"),
        ({"truth": None, "classes": ["a", "b"]}, "no prototypes given"),
        ({"classes": ["a"]}, "at least 2"),
        ({"truth": dict.fromkeys(IDS, "a")}, "at least 2"),
        ({"truth": TRUTH | {"z1": "a"}}, r"1 ids only in data.labels, such as \['z1'\]"),
        ({"truth": {name: TRUTH[name] for name in IDS[2:]}}, r"2 items without a row there, such as \['i0', 'i1'\]"),
        ({"classes": ["a", "b"]}, r"data.labels has labels outside the classes: \['c'\]"),
        ({"prototypes": {"z1": "a"}}, r"1 ids only in data.prototypes, such as \['z1'\]"),
        ({"prototypes": {"i1": "d"}, "classes": ["a", "b", "c"]}, r"data.prototypes has labels outside the classes: \['d'\]"),
        ({"prototypes": {"i0": "a", "i1": "b"}}, r"1 classes without a prototype: \['c'\]"),
        ({"classes": ["a", "b", "c", "d"]}, r"1 classes without a prototype: \['d'\]"),
        ({"prototypes_per_class": -1}, "prototypes_per_class -1"),
        ({"prototypes_per_class": 0, "holdout": "prototypes"}, "data.holdout prototypes with data.prototypes_per_class 0"),
        ({"prototypes_per_class": 0, "truth": None}, "no classes given"),
        ({"prototypes_per_class": 20}, "20 prototypes a class take all 60 items"),
        ({"n_folds": 1}, "data.folds 1 given"),
    ],
)
def test_items_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(AnnotError, match=message):
        items(**change)
