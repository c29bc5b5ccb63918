"""The engine's laws: polls may be cut anywhere, and a restart changes nothing."""

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream import testing
from stream.engine import Engine
from stream.framing import frame
from stream.model.config import ModelConfig
from stream.records import RecordBatch

CONFIG = ModelConfig(factors=8, max_users=1_000, max_items=1_000, max_features=1_000)
T0 = 1_790_000_000_000


def event(kind, n, **fields):
    return kind, orjson.dumps({"event_id": f"e{n}", "ts_ms": T0 + n, **fields})


def batches(events):
    """One record batch a run of equal kinds, on one partition a kind, offsets going on."""
    made, offsets = [], {}
    for kind, value in events:
        at = offsets.get(kind, 0)
        offsets[kind] = at + 1
        data = frame(0, 0, b"k", value)
        made.append(
            RecordBatch(f"t.{kind}.v1", kind, 0, at, at, at + 1, T0, T0 + 10**6, True, 1, data)
        )
    return made


def world(seed, count=300):
    r = np.random.default_rng(seed)
    events = []
    for n in range(count):
        user, item = str(r.integers(20)), str(r.integers(30))
        draw = r.random()
        if draw < 0.6:
            value = float(r.integers(1, 6))
            events.append(event("rating", n, user_id=user, item_id=item, value=value))
        elif draw < 0.85:
            events.append(event("click", n, user_id=user, item_id=item))
        elif draw < 0.9:
            events.append(event("item", n, item_id=item, attributes={"genre": [f"g{n % 4}"]}))
        elif draw < 0.95:
            events.append(event("user", n, user_id=user, attributes={"age": int(n % 70)}))
        elif draw < 0.97:
            events.append(("rating", b"{broken"))
        else:
            events.append(events[int(r.integers(len(events)))] if events else ("rating", b""))
    return batches(events)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1_000), st.lists(st.integers(0, 300), max_size=8), st.integers(1, 64))
def test_the_bits_do_not_depend_on_how_polls_are_cut(seed, cuts, batch_max):
    testing.cuts_do_not_matter(
        lambda: Engine(CONFIG, 3, window=500),
        lambda: Engine(CONFIG, 3, batch_max, window=500),
        world(seed),
        cuts,
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1_000), st.integers(1, 299))
def test_stop_restore_continue_equals_never_stopped(seed, cut):
    polled = world(seed)
    testing.restarts_do_not_matter(lambda: Engine(CONFIG, window=500), (polled[:cut], polled[cut:]))


def test_reading_never_creates():
    engine = Engine(CONFIG)
    engine.learn(world(1))
    testing.reading_never_creates(engine)


def test_a_repeated_event_is_counted_and_changes_nothing():
    rating = event("rating", 1, user_id="7", item_id="50", value=4.0)
    once, twice = Engine(CONFIG), Engine(CONFIG)
    once.learn(batches([rating]))
    twice.learn(batches([rating]))
    assert twice.learn(batches([rating])).duplicates == 1
    assert testing.differing(once, twice) == []


def test_the_same_id_under_two_types_is_two_events():
    engine = Engine(CONFIG)
    learned = engine.learn(
        batches(
            [
                event("rating", 1, user_id="7", item_id="50", value=4.0),
                event("click", 1, user_id="7", item_id="50"),
            ]
        )
    )
    assert (learned.duplicates, learned.learned) == (0, 2)


def test_another_seed_gives_other_bits():
    a, b = Engine(CONFIG, 1), Engine(CONFIG, 2)
    a.learn(world(0))
    b.learn(world(0))
    assert testing.differing(a, b)


def test_a_bad_record_stops_nothing_and_keeps_its_place():
    engine = Engine(CONFIG)
    learned = engine.learn(
        batches(
            [
                event("rating", 1, user_id="7", item_id="50", value=4.0),
                ("rating", b"{"),
                event("rating", 2, user_id="7", item_id="51", value=4.0),
            ]
        )
    )
    assert learned.learned == 2
    assert [(b.offset, b.reason) for b in learned.bad] == [(1, "not_json")]


@pytest.mark.parametrize("kind", ["user", "item"])
def test_a_null_value_removes_what_was_known_of_it(kind):
    engine = Engine(CONFIG)
    engine.learn(batches([event("rating", 1, user_id="7", item_id="7", value=4.0)]))
    removal = RecordBatch(
        f"t.{kind}.v1", kind, 0, 0, 0, 1, T0, T0, True, 1, frame(0, 0, b"7", None)
    )
    learned = engine.learn([removal])
    assert (learned.users if kind == "user" else learned.items).tolist() == [0]
    assert engine.learner.rows(kind, np.zeros(1, np.int32)).events.tolist() == [0]
