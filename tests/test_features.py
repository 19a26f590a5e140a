"""The feature bank, and features that come ready-made: what is kept after cuts and by two writers, and every error."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lightning_annot.data import features as features_module
from lightning_annot.data.digests import content_digest
from lightning_annot.data.features import FeatureBank, load_features
from lightning_annot.data.ranks import ALONE, Ranks
from lightning_annot.types import AnnotError

KEY = {"backbone": "tiny", "weights": "w"}


def digests_of(rows: range) -> list[str]:
    return [content_digest(str(row).encode()) for row in rows]


def block_of(rows: range, dim: int = 5) -> NDArray[np.float16]:
    return (np.arange(rows.start, rows.stop)[:, None] + np.arange(dim) / 8).astype(np.float16)


# The bank


def test_bank_round_trip_in_any_order(tmp_path: Path) -> None:
    digests = digests_of(range(10))
    bank = FeatureBank.open(tmp_path, KEY)
    assert bank.missing(digests).tolist() == list(range(10))
    bank.append(digests[:4], block_of(range(4)))
    bank.append(digests[4:8], block_of(range(4, 8)))
    for reader in (bank, FeatureBank.open(tmp_path, KEY)):
        assert len(reader) == 8
        assert reader.missing(digests).tolist() == [8, 9]
        assert reader.contains([digests[9], digests[3]]).tolist() == [False, True]
        assert np.array_equal(reader.read(digests[2:7]), block_of(range(2, 7)))
        order = [7, 0, 0, 3]
        assert np.array_equal(reader.read([digests[row] for row in order]), block_of(range(8))[order])
        assert reader.read([]).shape == (0, 5)
    assert isinstance(bank.read(digests[2:7]), np.memmap)
    assert not isinstance(bank.read(digests[1::-1]), np.memmap)


def test_bank_keys_do_not_mix(tmp_path: Path) -> None:
    FeatureBank.open(tmp_path, KEY).append(digests_of(range(2)), block_of(range(2)))
    assert len(FeatureBank.open(tmp_path, KEY | {"weights": "other"})) == 0
    assert len(FeatureBank.open(tmp_path, dict(reversed(KEY.items())) | KEY)) == len(FeatureBank.open(tmp_path, KEY)) == 2


def test_missing_names_equal_images_once(tmp_path: Path) -> None:
    bank = FeatureBank.open(tmp_path, KEY)
    one, two = digests_of(range(2))
    assert bank.missing([two, one, two, one]).tolist() == [0, 1]
    bank.append([one, one], block_of(range(2)))
    assert np.array_equal(bank.read([one]), block_of(range(1)))  # the first row of a digest stays


def test_digests_with_zero_bytes(tmp_path: Path) -> None:
    digests = ["00" * 16, "61" + "00" * 15, "00" * 15 + "61", "61" * 16]
    bank = FeatureBank.open(tmp_path, KEY)
    bank.append(digests[:3], block_of(range(3)))
    assert FeatureBank.open(tmp_path, KEY).missing(digests).tolist() == [3]
    assert np.array_equal(bank.read(digests[2::-1]), block_of(range(3))[::-1])


@pytest.mark.parametrize(("name", "cut", "left"), [("features.f16", 3, 7), ("features.f16", 30, 5), ("digests.bin", 5, 7)])
def test_bank_goes_on_after_a_cut_file(tmp_path: Path, name: str, cut: int, left: int) -> None:
    digests = digests_of(range(8))
    bank = FeatureBank.open(tmp_path, KEY)
    bank.append(digests, block_of(range(8)))
    path = bank.folder / name
    os.truncate(path, path.stat().st_size - cut)

    bank = FeatureBank.open(tmp_path, KEY)
    assert len(bank) == left
    assert np.array_equal(bank.read(digests[:left]), block_of(range(left)))
    rows = bank.missing(digests)
    bank.append([digests[row] for row in rows], block_of(range(8))[rows])
    assert np.array_equal(FeatureBank.open(tmp_path, KEY).read(digests), block_of(range(8)))


def test_features_without_digests_are_overwritten(tmp_path: Path) -> None:
    digests = digests_of(range(4))
    bank = FeatureBank.open(tmp_path, KEY)
    bank.append(digests[:2], block_of(range(2)))
    with open(bank.folder / "features.f16", "ab") as file:  # killed between the two files of a block
        file.write(b"\xff" * 37)
    bank = FeatureBank.open(tmp_path, KEY)
    bank.append(digests[2:], block_of(range(2, 4)))
    assert np.array_equal(FeatureBank.open(tmp_path, KEY).read(digests), block_of(range(4)))


def test_a_second_writer_waits_and_sees_the_rows(tmp_path: Path) -> None:
    first, second = FeatureBank.open(tmp_path, KEY), FeatureBank.open(tmp_path, KEY)
    digests = digests_of(range(2))
    seen: list[int] = []

    def later() -> None:
        with second.writing():
            seen.extend(second.missing(digests).tolist())

    with first.writing():
        thread = threading.Thread(target=later)
        thread.start()
        time.sleep(0.1)
        assert seen == []
        first.append(digests[:1], block_of(range(1)))
    thread.join(timeout=600)
    assert seen == [1]


# Several writers at once


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 30), min_size=1, max_size=6)), max_size=8),
    wanted=st.lists(st.integers(0, 30), max_size=20),
)
def test_readers_see_the_union_of_shards(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[tuple[int, list[int]]], wanted: list[int]
) -> None:
    folder, names = tmp_path_factory.mktemp("bank"), digests_of(range(31))
    writers = [FeatureBank.open(folder, KEY, shard) for shard in range(4)]
    for shard, rows in blocks:
        writers[shard].append([names[row] for row in rows], np.stack([block_of(range(row, row + 1))[0] for row in rows]))
    there = {row for _, rows in blocks for row in rows}
    for bank in (FeatureBank.open(folder, KEY), *writers):
        assert bank.contains(names).tolist() == [row in there for row in range(31)]
        present = [row for row in wanted if row in there]
        found = bank.read([names[row] for row in present])
        assert all(np.array_equal(found[at], block_of(range(row, row + 1))[0]) for at, row in enumerate(present))


def test_writers_of_different_shards_do_not_wait(tmp_path: Path) -> None:
    first, second = FeatureBank.open(tmp_path, KEY), FeatureBank.open(tmp_path, KEY, shard=1)
    digests = digests_of(range(4))
    with first.writing(), second.writing():
        second.append(digests[1::2], block_of(range(4))[1::2])
        first.append(digests[::2], block_of(range(4))[::2])
    third = FeatureBank.open(tmp_path, KEY)
    assert np.array_equal(third.read(digests), block_of(range(4)))
    assert isinstance(third.read(digests[::2]), np.memmap)  # in order within one shard
    assert isinstance(third.read(digests[1::2]), np.memmap)


def test_a_cut_shard_goes_on_and_others_are_as_they_were(tmp_path: Path) -> None:
    digests = digests_of(range(8))
    for shard in (0, 1):
        bank = FeatureBank.open(tmp_path, KEY, shard)
        bank.append(digests[shard::2], block_of(range(8))[shard::2])
    path = bank.folder / "features.1.f16"
    os.truncate(path, path.stat().st_size - 13)
    bank = FeatureBank.open(tmp_path, KEY, 1)
    assert bank.missing(digests).tolist() == [5, 7]
    bank.append([digests[5], digests[7]], block_of(range(8))[[5, 7]])
    assert np.array_equal(FeatureBank.open(tmp_path, KEY).read(digests), block_of(range(8)))


def test_a_large_copy_is_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "_IN_MEMORY", 100)
    monkeypatch.setattr(features_module, "_CHUNK_ROWS", 7)
    digests = digests_of(range(40))
    for shard in (0, 1):
        bank = FeatureBank.open(tmp_path, KEY, shard)
        bank.append(digests[shard::2], block_of(range(40))[shard::2])
    files = set(bank.folder.iterdir())
    copy = bank.read(digests)
    assert isinstance(copy, np.memmap)
    assert np.array_equal(copy, block_of(range(40)))
    assert set(bank.folder.iterdir()) == files  # its file has no name, and goes with the array


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_are_parts_whatever_is_missing(size: int) -> None:
    rows = np.flatnonzero(np.random.default_rng(0).random(100) < 0.7)
    shares = [Ranks(rank, size).share(rows) for rank in range(size)]
    assert np.array_equal(np.sort(np.concatenate(shares)), rows)
    assert all(set(Ranks(rank, size).share(rows[30:])) <= set(shares[rank]) for rank in range(size))
    assert max(map(len, shares)) - min(map(len, shares)) < 10
    assert np.array_equal(ALONE.share(rows), rows)


# Errors


def test_bank_errors(tmp_path: Path) -> None:
    bank = FeatureBank.open(tmp_path, KEY)
    digests = digests_of(range(2))
    with pytest.raises(AnnotError, match=r"shape \(3, 5\) came for 2 digests"):
        bank.append(digests, block_of(range(3)))
    with pytest.raises(AnnotError, match=r"1 feature rows are not finite in float16 \(rows 1"):
        bank.append(digests, np.array([[1.0], [70000.0]]))
    with pytest.raises(AnnotError, match=r"2 images are not in the bank"):
        bank.read(digests)
    with pytest.raises(AnnotError, match=r"32 hexadecimal characters: 'abc' has 3"):
        bank.missing(["abc"])
    with pytest.raises(AnnotError, match=r"32 hexadecimal characters: non-hexa"):
        bank.missing(["z" * 32])
    bank.append(digests, block_of(range(2)))
    with pytest.raises(AnnotError, match=r"have 3 values, those in .* have 5"):
        bank.append(digests, block_of(range(2), dim=3))
    (bank.folder / "bank.json").write_text("{}")
    with pytest.raises(AnnotError, match=r"no header of a feature bank"):
        FeatureBank.open(tmp_path, KEY)


# Ready-made features


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_load_features(tmp_path: Path, dtype: type[np.float16] | type[np.float32]) -> None:
    features: NDArray[Any] = block_of(range(7)).astype(dtype)
    np.save(tmp_path / "f.npy", features)
    loaded = load_features(tmp_path / "f.npy")
    assert isinstance(loaded, np.memmap)
    assert loaded.dtype == dtype
    assert np.array_equal(loaded, features)


def test_load_features_names_bad_rows_beyond_the_first_chunk(tmp_path: Path) -> None:
    features: NDArray[np.float16] = np.zeros((20_000, 2), np.float16)
    features[[5, 9000, 19_999], 1] = [np.nan, np.inf, -np.inf]
    np.save(tmp_path / "f.npy", features)
    with pytest.raises(AnnotError, match=r"NaN or inf in 3 of 20000 rows \(5, 9000, 19999\)"):
        load_features(tmp_path / "f.npy")


def test_load_features_errors(tmp_path: Path) -> None:
    path = tmp_path / "f.npy"
    with pytest.raises(AnnotError, match="cannot be read"):
        load_features(path)
    for array, message in ((np.zeros((2, 2)), "float64"), (np.zeros(3, np.float32), r"shape \(3,\)")):
        np.save(path, array)
        with pytest.raises(AnnotError, match=message):
            load_features(path)
    np.save(path, np.zeros((100, 4), np.float32))
    os.truncate(path, 500)
    with pytest.raises(AnnotError, match="cannot be read"):
        load_features(path)
    np.save(path, np.array([{}], dtype=object))
    with pytest.raises(AnnotError, match="without pickled objects"):
        load_features(path)
