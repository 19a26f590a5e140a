"""What is written in a format is read as it was."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_records import PLAIN, ROUND, Read, made, rows
from hypothesis import given
from hypothesis import strategies as st

from lightning_annot.exchange import confusions, json_files, label_studio, tables

NAME = st.text(string.ascii_letters + string.digits + ' ,;"é-./', min_size=1, max_size=6).filter(
    lambda s: s.strip() == s and s.lower() not in ("nan", "expert_label") and not s.startswith("{")
)
ANSWERS = st.dictionaries(
    st.tuples(NAME, NAME), st.tuples(NAME, st.none() | st.integers(0, 90).map(float)), min_size=1, max_size=12
).map(lambda given: [(*key, *value) for key, value in given.items()])


@pytest.mark.parametrize(
    ("write", "read", "timed"),
    [
        (tables.write_crowd_kit, tables.read_crowd_kit, True),
        (tables.write_cleanlab, tables.read_cleanlab, False),
        (tables.write_cleanlab_wide, tables.read_cleanlab_wide, False),
        (json_files.write_lean, json_files.read_lean, False),
        (json_files.write_peerannot, json_files.read_peerannot, False),
        (label_studio.write_label_studio, label_studio.read_label_studio, True),
    ],
)
@ROUND
@given(cells=ANSWERS)
def test_there_and_back(tmp_path: Path, write: Any, read: Read, timed: bool, cells: list[Any]) -> None:
    write(tmp_path / "out", made(cells))
    found = {row[:4] for row in rows(read(tmp_path / "out", PLAIN))}
    assert found == {(*cell[:3], cell[3] if timed else None) for cell in cells}


@ROUND
@given(cells=ANSWERS, data=st.data())
def test_label_studio_keeps_skips_and_gold(tmp_path: Path, cells: list[Any], data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(["annotation", "gold", "skip"]), min_size=len(cells), max_size=len(cells)))
    given_ = [
        (t, w, None if k == "skip" else c, s, "gold" if k == "gold" else "annotation")
        for (t, w, c, s), k in zip(cells, kinds, strict=True)
    ]
    label_studio.write_label_studio(tmp_path / "a.json", made(given_))
    assert set(rows(label_studio.read_label_studio(tmp_path / "a.json", PLAIN))) == set(given_)


@ROUND
@given(seed=st.integers(0, 2**16), k=st.integers(2, 5))
def test_group_workers_there_and_back(tmp_path: Path, seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    groups = {str(g): rng.integers(0, 3, (rng.integers(1, 4), k, k)) for g in range(2)}
    classes = [f"n{i}" for i in range(k)]
    confusions.write_group_workers(tmp_path / "a.json", classes, classes, groups)
    found = confusions.read_group_workers(tmp_path / "a.json", PLAIN)
    names, counts = confusions.count_confusions(found.answers, found.truth, classes)
    wanted = {f"{g}-{j}": c for g, people in groups.items() for j, c in enumerate(people) if c.sum()}
    assert set(names) == set(wanted)
    for name, count in zip(names, counts, strict=True):
        np.testing.assert_array_equal(count, wanted[name])
