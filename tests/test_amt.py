"""Workers of the AMT confusion study: against Listing 1 in plain loops, and of the real study."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lightning_annot.types import OTHER, AnnotError
from lightning_annot.workers.amt import GROUP_NAMES, AMTWorkers

AMT = Path(__file__).resolve().parents[2] / "shared" / "data" / "amt_imagenet100"
needs_amt = pytest.mark.skipif(not AMT.is_dir(), reason="the AMT confusion study is not beside the project")


N_IDS = 12  # two class ids in each of the six groups


@pytest.fixture
def small_amt(tmp_path: Path) -> tuple[str, str]:
    """A study of made-up counts, in the form of the released one; ids stand in the file in another order than in the groups."""
    rng = np.random.default_rng(0)
    ids = [f"n{k:02d}" for k in rng.permutation(N_IDS)]
    people = {str(g): rng.integers(1, 9, (2 + g % 3, N_IDS, N_IDS)).tolist() for g in range(6)}
    workers, groups = tmp_path / "group_workers.json", tmp_path / "groups.txt"
    workers.write_text(json.dumps({"imagenet100": ids, "group_workers": people}))
    groups.write_text("\n\n".join(f"n{2 * b:02d}\nn{2 * b + 1:02d}" for b in range(6)) + "\n")
    return str(workers), str(groups)


def slow_worker(
    files: tuple[str, str], chosen: list[str], seed: tuple[int, int], smooth: float, outside: float
) -> list[list[float]]:
    """Listing 1 in plain loops; ``OTHER`` is all ids of the file that are not chosen."""
    data = json.loads(Path(files[0]).read_text())
    group_of = {}
    for b, block in enumerate(Path(files[1]).read_text().strip().split("\n\n")):
        for name in block.split():
            group_of[name] = b
    index = {name: i for i, name in enumerate(data["imagenet100"])}
    rng = np.random.default_rng(seed)
    person = {g: int(rng.integers(len(data["group_workers"][g]))) for g in sorted(data["group_workers"])}
    merged = {name: [i for c, i in index.items() if c not in chosen] if name == OTHER else [index[name]] for name in chosen}
    rows = []
    for true in chosen:
        row = []
        for answer in chosen:
            value = 0.0
            for g, people in data["group_workers"].items():
                for a in merged[true]:
                    for b in merged[answer]:
                        value += smooth * sum(counts[a][b] for counts in people)
                        value += people[person[g]][a][b]
            row.append(value)
        row = [value / sum(row) for value in row]
        others = [i for i, name in enumerate(chosen) if true != OTHER and group_of.get(name) != group_of[true]]
        if others:
            moved = outside * sum(row[i] for i in range(len(row)) if i not in others)
            row = [v + moved / len(others) if i in others else v * (1 - outside) for i, v in enumerate(row)]
        rows.append(row)
    return rows


@pytest.mark.parametrize("outside", [0.0, 0.03])
@pytest.mark.parametrize(
    "chosen",
    [
        ["n03", "n02"],
        ["n00", "n01", "n07", "n06", "n11"],
        ["n03", "n02", OTHER],
        ["n00", "n01", "n07", "n06", "n11", OTHER],
        ["n05", OTHER],
    ],
)
def test_amt_equals_listing_1(small_amt: tuple[str, str], chosen: list[str], outside: float) -> None:
    workers = AMTWorkers(*small_amt, n_workers=4, smooth=0.2, outside=outside)
    want = [slow_worker(small_amt, chosen, (5, j), 0.2, outside) for j in range(4)]
    np.testing.assert_allclose(workers.confusions(chosen, 5), want, atol=1e-12)


def test_amt_maps_classes_to_the_groups_ids_in_order(small_amt: tuple[str, str]) -> None:
    by_group = AMTWorkers(*small_amt, group="objects", n_workers=3).confusions(["cat", "dog"], 0)
    by_id = AMTWorkers(*small_amt, n_workers=3).confusions(["n06", "n07"], 0)
    np.testing.assert_array_equal(by_group, by_id)
    with pytest.raises(AnnotError, match="the task has 3 classes; group 'objects' has 2"):
        AMTWorkers(*small_amt, group="objects").confusions(["cat", "dog", "emu"], 0)


def test_amt_maps_all_classes_but_other(small_amt: tuple[str, str]) -> None:
    by_group = AMTWorkers(*small_amt, group="objects", n_workers=3).confusions(["cat", "dog", OTHER], 0)
    by_id = AMTWorkers(*small_amt, n_workers=3).confusions(["n06", "n07", OTHER], 0)
    np.testing.assert_array_equal(by_group, by_id)
    without = AMTWorkers(*small_amt, group="objects", n_workers=3).confusions(["cat", "dog"], 0)
    assert (by_group[:, :2, :2].sum(2) < 1).all()
    assert without.shape == (3, 2, 2)
    with pytest.raises(AnnotError, match="the task has 3 classes; group 'objects' has 2"):
        AMTWorkers(*small_amt, group="objects").confusions(["cat", "dog", "emu", OTHER], 0)
    with pytest.raises(AnnotError, match="all 12 classes of the AMT study, so it knows nothing of 'other'"):
        AMTWorkers(*small_amt).confusions([*(f"n{k:02d}" for k in range(N_IDS)), OTHER], 0)


def test_amt_moves_mass_to_other_and_none_of_its_own(small_amt: tuple[str, str]) -> None:
    stay, move = (AMTWorkers(*small_amt, n_workers=2, outside=o).confusions(["n02", "n03", OTHER], 0) for o in (0.0, 0.5))
    np.testing.assert_allclose(move[:, :2, :2], 0.5 * stay[:, :2, :2])
    np.testing.assert_allclose(move[:, :2, 2], stay[:, :2, 2] + 0.5 * stay[:, :2, :2].sum(2))
    np.testing.assert_allclose(move[:, 2], stay[:, 2])


def test_amt_moves_mass_outside_only_where_there_is_an_outside(small_amt: tuple[str, str]) -> None:
    inside, mixed = ["n02", "n03"], ["n02", "n03", "n04"]
    for chosen, moves in ((inside, False), (mixed, True)):
        stay, move = (AMTWorkers(*small_amt, n_workers=2, outside=o).confusions(chosen, 0) for o in (0.0, 0.5))
        np.testing.assert_allclose(move.sum(2), 1.0)
        assert np.allclose(stay, move) != moves
    np.testing.assert_allclose(move[:, :2, :2].sum(2), 0.5 * stay[:, :2, :2].sum(2))


@pytest.mark.parametrize("chosen", [["n00", "n01", "n07", "n06"], ["n00", "n01", "n07", OTHER]])
def test_amt_uniform_noise_keeps_the_diagonal(small_amt: tuple[str, str], chosen: list[str]) -> None:
    plain, even = (AMTWorkers(*small_amt, n_workers=3, noise=n).confusions(chosen, 1) for n in ("structured", "uniform"))  # type: ignore[arg-type]
    np.testing.assert_allclose(even.diagonal(0, 1, 2), plain.diagonal(0, 1, 2))
    np.testing.assert_allclose(even.sum(2), 1.0)
    for j in range(3):
        for k in range(4):
            assert np.ptp(np.delete(even[j, k], k)) < 1e-12


def test_amt_workers_depend_on_seed_and_number_alone(small_amt: tuple[str, str]) -> None:
    few, many = (AMTWorkers(*small_amt, n_workers=n).confusions(["n00", "n01"], 3) for n in (2, 8))
    np.testing.assert_array_equal(few, many[:2])
    assert not np.array_equal(many, AMTWorkers(*small_amt, n_workers=8).confusions(["n00", "n01"], 4))


def test_amt_groups_file_of_another_form(small_amt: tuple[str, str]) -> None:
    Path(small_amt[1]).write_text("n00\nn01\n")
    with pytest.raises(AnnotError, match="has 1 blocks of ids; 6 are expected"):
        AMTWorkers(*small_amt).confusions(["n00", "n01"], 0)


@needs_amt
@pytest.mark.parametrize(("group", "accuracy"), [("dog", 0.67), ("commodity", 0.84)])
def test_amt_real_people(group: str, accuracy: float) -> None:
    files = str(AMT / "group_workers.json"), str(AMT / "groups.txt")
    confusions = AMTWorkers(*files, group=group, n_workers=50).confusions([f"c{k}" for k in range(10)], 0)
    assert confusions.diagonal(0, 1, 2).mean() == pytest.approx(accuracy, abs=0.02)
    np.testing.assert_allclose(confusions.sum(2), 1.0)


@needs_amt
def test_amt_real_groups() -> None:
    workers = AMTWorkers(str(AMT / "group_workers.json"), str(AMT / "groups.txt"), n_workers=3)
    ids, people, blocks = workers._read()
    assert [len(block) for block in blocks] == [19, 18, 13, 19, 16, 15]
    assert sorted(ids) == sorted(name for block in blocks for name in block)
    assert sum(len(counts) for counts in people) == 58
    assert len(GROUP_NAMES) == len(blocks)
    confusions = workers.confusions(ids, 0)
    block = {name: b for b, members in enumerate(blocks) for name in members}
    outside = np.array([[block[a] != block[b] for b in ids] for a in ids])
    assert (confusions * outside).sum(2).min() >= 0.03 * 0.99
