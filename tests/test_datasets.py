"""Laws of the data sets: the real data, as events that the decoder takes, in time order."""

import sys
from collections import Counter

import pytest

from consumers import datasets
from stream.errors import Inconsistent
from stream.events import parse


@pytest.fixture(scope="module")
def events():
    """Return all events of MovieLens-100K."""
    try:
        return list(datasets.load("ml-100k").events())
    except Inconsistent as error:
        pytest.skip(f"{error.message}; {error.remedy}")


def test_all_of_it_is_there(events):
    assert Counter(event.kind for event in events) == {
        "user": 943, "item": 1_682, "rating": 100_000,
    }  # fmt: skip


def test_time_never_goes_back_and_attributes_come_first(events):
    times = [event.ts_ms for event in events]
    assert times == sorted(times)
    assert [event.kind for event in events[: 943 + 1_682]] == ["user"] * 943 + ["item"] * 1_682


def test_every_event_is_one_and_its_key_is_its_topics(events):
    names = set()
    for kind, key, value, ts_ms in events[::7]:
        event = parse(kind, value, ts_ms)
        assert key.decode() == (event.item_id if kind == "item" else event.user_id)
        assert event.ts_ms == ts_ms
        names.add((kind, event.event_id))
    assert len(names) == len(events[::7])


def test_an_item_carries_its_title_genres_and_year(events):
    item = next(e for e in events if e.kind == "item" and e.key == b"50")
    parsed = parse("item", item.value, item.ts_ms)
    assert parsed.title == "Star Wars"
    assert parsed.attributes["year"] == 1977
    assert "Sci-Fi" in parsed.attributes["genre"]


def test_finding_the_data_imports_neither_recbole_nor_pandas(events):
    assert "recbole" not in sys.modules


def test_an_unknown_name_says_which_are_known():
    with pytest.raises(Inconsistent) as caught:
        datasets.load("ml-1b")
    assert "ml-100k" in caught.value.remedy


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "ml-100k.inter").write_text("user_id:token\titem_id:token\n1\n", encoding="utf-8")
    with pytest.raises(Inconsistent, match=r"ml-100k\.inter"):
        datasets.load("ml-100k", tmp_path)
