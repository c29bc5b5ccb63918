"""Ids and duplicates: no two ids share a row, and a repeated event is known inside the window.

And what is shown of an item is what was said of it last.
"""

import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.catalog import Catalog
from stream.duplicates import Duplicates
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
    rows, known = vocabulary.ensure_rows(*columns(ids))
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
    rows, _ = vocabulary.ensure_rows(*columns(ids))
    assert rows.tolist() == list(range(100_000))


def test_finding_never_creates():
    vocabulary = Vocabulary("item", 10)
    assert vocabulary.find(b"x") is None
    assert vocabulary.find(b"") is None
    assert len(vocabulary) == 0


@pytest.mark.parametrize("kind", ["user", "item"])
def test_a_full_vocabulary_refuses_new_ids_and_knows_the_others(kind):
    vocabulary = Vocabulary(kind, 2)
    rows, known = vocabulary.ensure_rows(*columns([b"a", b"b", b"c", b"a", b"d", b"b"]))
    assert rows.tolist() == [0, 1, -1, 0, -1, 1] and known.tolist() == [1, 2, 2, 2, 2, 2]
    assert vocabulary.find(b"b") == 1 and vocabulary.find(b"c") is None


@pytest.mark.parametrize("limit", [511, 512, 513, 5_000])
def test_growing_and_restarting_at_every_size_find_all_ids(limit):
    ids = [str(n).encode() for n in range(limit)]
    never, stopped = Vocabulary("user", limit), Vocabulary("user", limit)
    for n, id_ in enumerate(ids):
        assert never.add(id_) == stopped.add(id_) == n
        if n % 97 == 0 or n in (255, 256, 511, 512, 1023, 1024):
            saved = stopped.state()
            stopped = Vocabulary("user", limit)
            stopped.load(saved)
    for vocabulary in (never, stopped):
        assert [vocabulary.find(i) for i in ids] == list(range(limit))
        assert vocabulary.find(b"x") is None
        assert vocabulary.add(b"x") == -1
    assert all(np.array_equal(a, stopped.state()[name]) for name, a in never.state().items())


def test_a_saved_vocabulary_above_the_limit_is_loaded_whole():
    vocabulary, smaller = Vocabulary("user", 3_000), Vocabulary("user", 10)
    ids = [str(n).encode() for n in range(3_000)]
    vocabulary.ensure_rows(*columns(ids))
    smaller.load(vocabulary.state())
    assert [smaller.find(i) for i in ids] == list(range(3_000))
    assert smaller.add(b"x") == -1


def test_the_longest_ids_fill_it_and_a_longer_one_is_refused():
    ids = [bytes([n]) * 256 for n in range(20)]
    vocabulary = Vocabulary("user", 20)
    rows, _ = vocabulary.ensure_rows(*columns(ids))
    assert vocabulary.ids(rows) == ids
    with pytest.raises(ValueError, match="257 bytes"):
        vocabulary.add(b"x" * 257)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
def test_a_small_stream_in_a_large_vocabulary_takes_little_memory():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    ids = [f"user-{n}".encode() for n in range(1_700)]
    Vocabulary("user", 4_000_000).ensure_rows(*columns(ids))  # compiled from here on
    arguments = columns(ids)
    before = resident()
    vocabulary = Vocabulary("user", 4_000_000)
    vocabulary.ensure_rows(*arguments)
    assert resident() - before < 500_000  # of the gigabyte reserved
    assert len(vocabulary) == 1_700


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 30), max_size=300), st.integers(0, 20), st.integers(0, 300))
def test_duplicates_equal_a_plain_window_also_across_a_restart(numbers, window, cut):
    ids = [str(n).encode() for n in numbers]
    kinds = [n % 2 for n in numbers]
    expected, seen = [], []
    for pair in zip(kinds, ids, strict=True):
        fresh = pair not in seen[-window:] or window == 0
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


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 40), st.none() | st.integers(0, 9)), max_size=80))
def test_a_catalog_equals_a_plain_dict_also_across_a_restart(said):
    catalog, expected = Catalog(), {}
    for row, year in said:
        catalog.put(row, "t", None if year is None else {"year": year})
        expected[row] = b'{"title":"t","attributes":{"year":%d}}' % (year or 0)
        if year is None:
            del expected[row]
        again = Catalog()
        again.load(catalog.state())
        catalog = again
    rows, entries = catalog.of(np.arange(60, dtype=np.int32))
    assert dict(zip(rows.tolist(), entries, strict=True)) == expected
