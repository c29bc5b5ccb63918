"""Ids and duplicates: no two ids share a row, and a repeated event is known inside the window."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.duplicates import Duplicates
from stream.errors import Inconsistent
from stream.vocabulary import Vocabulary

ids_ = st.lists(st.binary(min_size=1, max_size=20), max_size=200)


def columns(ids):
    length = np.array([len(i) for i in ids], np.int32)
    at = np.zeros(len(ids), np.int64)
    at[1:] = np.cumsum(length[:-1])
    return np.frombuffer(b"".join(ids), np.uint8), at, length


@settings(deadline=None, max_examples=200)
@given(ids_)
def test_ids_get_rows_in_order_of_appearance_and_come_back(ids):
    vocabulary = Vocabulary("user", 10_000)
    rows, known = vocabulary.rows(*columns(ids))
    expected: dict[bytes, int] = {}
    for id_ in ids:
        expected.setdefault(id_, len(expected))
    assert rows.tolist() == [expected[i] for i in ids]
    assert known.tolist() == [len(set(ids[: n + 1])) for n in range(len(ids))]
    assert vocabulary.ids(rows) == ids
    again = Vocabulary("user", 10_000)
    again.load(vocabulary.state())
    assert [again.find(i) for i in ids] == rows.tolist()


def test_a_hundred_thousand_ids_are_free_of_collisions():
    ids = [f"user-{n}".encode() for n in range(100_000)]
    vocabulary = Vocabulary("user", 100_000)
    rows, _ = vocabulary.rows(*columns(ids))
    assert rows.tolist() == list(range(100_000))


def test_finding_never_creates():
    vocabulary = Vocabulary("item", 10)
    assert vocabulary.find(b"x") is None
    assert vocabulary.find(b"") is None
    assert len(vocabulary) == 0


def test_a_full_vocabulary_stops_and_names_the_setting():
    vocabulary = Vocabulary("item", 2)
    with pytest.raises(Inconsistent) as stopped:
        vocabulary.rows(*columns([b"a", b"b", b"a", b"c"]))
    assert "max_items" in stopped.value.remedy


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 30), max_size=300), st.integers(1, 20), st.integers(0, 300))
def test_duplicates_equal_a_plain_window_also_across_a_restart(numbers, window, cut):
    ids = [str(n).encode() for n in numbers]
    kinds = [n % 2 for n in numbers]
    expected, seen = [], []
    for pair in zip(kinds, ids, strict=True):
        fresh = pair not in seen[-window:]
        expected.append(fresh)
        if fresh:
            seen.append(pair)
    found, duplicates = [], Duplicates(window)
    for part in (slice(None, cut), slice(cut, None)):
        data, at, length = columns(ids[part])
        found += duplicates.fresh(data, np.array(kinds[part], np.int8), at, length).tolist()
        saved = duplicates.state()
        duplicates = Duplicates(window)
        duplicates.load(saved)
    assert found == expected
