"""Names as people and file systems write them."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_annot.names import KnownNames, clean, is_allowed


@pytest.mark.parametrize("name", ["anna", "anna ", "\tanna\r\n", "\u00a0anna\u202f", "\ufeffanna", "\ufeff anna \u200b"])
def test_white_space_around_a_name_does_not_count(name: str) -> None:
    assert clean(name) == "anna"


@given(st.text())
def test_cleaning_twice_changes_nothing(name: str) -> None:
    assert clean(clean(name)) == clean(name)


@pytest.mark.parametrize("name", ["Screenshot 9.41\u202fAM.png", "a\u00a0b", "👩\u200d🔬.jpg", "né.jpg", "ne\u0301.jpg", " a"])
def test_names_that_file_systems_carry_are_allowed(name: str) -> None:
    assert is_allowed(name)


@pytest.mark.parametrize("name", ["", "a\nb", "a\rb", "a\x00b", "a\x7fb", "a\x85b", "a\u2028b", "a\u2029b", "a\ud800b"])
def test_line_ends_controls_and_surrogates_are_not(name: str) -> None:
    assert not is_allowed(name)


def test_a_name_stands_for_the_only_one_alike() -> None:
    names = KnownNames(["né.jpg", "bird"])
    assert names.find("ne\u0301.jpg") == "né.jpg"
    assert names.find(" bird ") == "bird"
    assert names.find("Bird") == "Bird"
    assert KnownNames(["bird", "cat"], ignore_case=True).find("Bird") == "bird"


def test_nothing_is_guessed_where_two_are_alike() -> None:
    assert KnownNames(["bird", "Bird"], ignore_case=True).find("BIRD") == "BIRD"
    assert KnownNames(["bird", "Bird"], ignore_case=True).find("Bird") == "Bird"
    both = ["né", "ne\u0301"]
    assert KnownNames(both).find_all(both) == dict(zip(both, both, strict=True))


@given(st.lists(st.text(min_size=1), unique=True))
def test_known_names_are_themselves(known: list[str]) -> None:
    assert KnownNames(known).find_all(known) == {name: name for name in known}


@given(st.text(min_size=1))
def test_both_unicode_forms_are_found(name: str) -> None:
    composed = clean(unicodedata.normalize("NFC", name))
    assert KnownNames([composed]).find(unicodedata.normalize("NFD", composed)) == composed
