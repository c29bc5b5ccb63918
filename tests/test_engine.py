"""The engine's laws: polls may be cut anywhere, and a restart changes nothing."""

from itertools import pairwise

import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream import testing
from stream.engine import Engine, JoinConfig
from stream.framing import frame
from stream.model.config import ModelConfig
from stream.records import RecordBatch
from stream.schemas import ATTRIBUTE_KINDS

CONFIG = ModelConfig(
    factors=8,
    exposure_factors=4,
    session_factors=4,
    max_users=1_000,
    max_items=1_000,
    max_features=1_000,
    step="sequential",
)
JOIN = JoinConfig(window_s=20, open_max=1_000, pending_max=1_000, closed_max=1_000)
ROOMY = {"window": 500, "join": JOIN}
T0 = 1_790_000_000_000


def event(kind, n, **fields):
    """Return an event of second n."""
    return kind, orjson.dumps({"event_id": f"e{n}", "ts_ms": T0 + round(1000 * n), **fields})


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


def impression(n, slate, user, item, **fields):
    named = {"impression_id": slate, "user_id": user, "item_id": item}
    return event("impression", n, **named, **fields)


def world(seed, count=300):
    """Return polls of all kinds: outcomes join their exposures, come early, late or alone."""
    r = np.random.default_rng(seed)
    events, shown = [], []
    for n in range(count):
        user, item = str(r.integers(20)), str(r.integers(30))
        draw = r.random()
        if draw < 0.3:
            slate = {"impression_id": f"s{n}", "user_id": user, "item_id": item}
            shown.append(slate)
            known = {"position": int(r.integers(1, 5)), "propensity": float(r.uniform(0.1, 1))}
            if r.random() < 0.3:
                known = {"shown": False, "show_probability": 0.7}
            events.append(event("impression", n, **slate, **(known if r.random() < 0.8 else {})))
        elif draw < 0.55 and shown:
            slate = shown[int(r.integers(max(0, len(shown) - 12), len(shown)))]
            if r.random() < 0.3:  # it does not say which exposure it follows
                slate = {k: v for k, v in slate.items() if k != "impression_id"}
            if r.random() < 0.7:
                events.append(event("click", n, **slate))
            else:
                events.append(event("rating", n, **slate, value=float(r.integers(1, 6))))
        elif draw < 0.6:  # the outcome comes before the impression, whose time is earlier
            slate = {"impression_id": f"s{n}", "user_id": user, "item_id": item}
            early = orjson.dumps({"event_id": f"c{n}", "ts_ms": T0 + 1000 * n + 500, **slate})
            events.append(("click", early))
            events.append(event("impression", n, **slate, position=2))
        elif draw < 0.75:
            value = float(r.integers(1, 6))
            events.append(event("rating", n, user_id=user, item_id=item, value=value))
        elif draw < 0.85:
            events.append(event("click", n, user_id=user, item_id=item))
        elif draw < 0.89:
            attributes = {"genre": [f"g{n % 4}"], "price": float(n % 9)}
            events.append(event("item", n, item_id=item, attributes=attributes))
        elif draw < 0.93:
            events.append(event("user", n, user_id=user, attributes={"age": int(n % 70)}))
        elif draw < 0.95:
            events.append(("rating", b"{broken"))
        else:
            events.append(events[int(r.integers(len(events)))] if events else ("rating", b""))
    return batches(events)


def test_the_world_of_these_laws_has_every_case():
    engine = Engine(CONFIG, **ROOMY)
    engine.learn(world(0, 900))
    joiner = engine.joiner
    assert min(joiner.late_outcomes, joiner.corrections, joiner.contradicted) > 0
    assert engine.model()["controls"] > 20
    users = engine.learner.served_rows("user", np.arange(len(engine.users), dtype=np.int32))
    assert users.exposures.sum() > 50
    assert joiner.open_exposures > 0


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1_000), st.lists(st.integers(0, 300), max_size=8), st.integers(1, 64))
def test_the_bits_do_not_depend_on_how_polls_are_cut(seed, cuts, batch_max):
    testing.cuts_do_not_matter(
        lambda: Engine(CONFIG, 3, **ROOMY),
        lambda: Engine(CONFIG, 3, batch_max, **ROOMY),
        world(seed),
        cuts,
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1_000), st.lists(st.integers(1, 299), min_size=1, max_size=3))
def test_stop_restore_continue_equals_never_stopped(seed, cuts):
    polled = world(seed)
    borders = [0, *sorted(cuts), len(polled)]
    testing.restarts_do_not_matter(
        lambda: Engine(CONFIG, **ROOMY), [polled[a:b] for a, b in pairwise(borders)]
    )


@settings(deadline=None, max_examples=10)
@example(0, [1])
@given(st.integers(0, 1_000), st.lists(st.integers(0, 300), max_size=4))
def test_closing_the_windows_at_the_end_does_not_depend_on_cuts_or_restarts(seed, cuts):
    polled = world(seed)
    whole, cut = Engine(CONFIG, 3, **ROOMY), Engine(CONFIG, 3, **ROOMY)
    whole.learn(polled)
    for a, b in pairwise([0, *sorted(cuts), len(polled)]):
        to_come = {(r.topic, r.partition) for r in polled[b:] if r.kind not in ATTRIBUTE_KINDS}
        cut.learn(polled[a:b], to_come)
    restored = Engine(CONFIG, 3, **ROOMY)
    restored.load(cut.state())
    told = [engine.close_windows() for engine in (whole, restored)]
    assert all(np.array_equal(one, two) for one, two in zip(*told, strict=True))
    assert testing.differing(whole, restored) == []
    assert whole.joiner.open_exposures == 0
    assert not len(whole.close_windows()[0])


def counts(engine, kind, id_):
    """Return (events, exposures, controls) of one row."""
    vocabulary = engine.users if kind == "user" else engine.items
    told = engine.learner.served_rows(kind, np.array([vocabulary.find(id_)], np.int32))
    return int(told.events[0]), int(told.exposures[0]), int(told.controls[0])


def clock(n):
    """Return what moves the watermark to second n: each topic has come that far."""
    other = {"user_id": "z", "item_id": "z"}
    return [
        event("impression", n, **other, impression_id=f"z{n}"),
        event("click", n + 0.001, **other, impression_id=f"z{n}"),
    ]


def test_an_exposure_without_a_click_is_learned_once_when_its_window_closes():
    engine = Engine(CONFIG, **ROOMY)
    engine.learn(batches([impression(1, "s", "7", "50", position=1)]))
    assert counts(engine, "user", b"7") == (0, 0, 0)
    engine.learn(batches(clock(10)))
    assert counts(engine, "user", b"7") == (0, 0, 0)
    learned = engine.learn(batches(clock(22)))
    assert engine.users.find(b"7") in learned.users
    for kind, id_ in (("user", b"7"), ("item", b"50")):
        assert counts(engine, kind, id_) == (0, 1, 0)
    at = np.array([engine.users.find(b"7")], np.int32)
    learned = engine.learner.served_rows("user", at).bias
    assert learned[0, 1] < 0  # it was not clicked
    engine.learn(batches(clock(60)))
    assert counts(engine, "user", b"7") == (0, 1, 0)
    assert np.array_equal(engine.learner.served_rows("user", at).bias, learned)


@pytest.mark.parametrize("early", [False, True])
def test_a_clicked_exposure_is_learned_as_clicked_and_closes_once(early):
    events = [
        impression(1, "s", "7", "50", position=1),
        event("click", 2, user_id="7", item_id="50", impression_id="s"),
    ]
    engine = Engine(CONFIG, **ROOMY)
    learned = engine.learn(batches(events[::-1] if early else events))
    assert learned.learned == 1
    assert counts(engine, "user", b"7") == (1, 0, 0)
    engine.learn(batches(clock(30)))
    assert counts(engine, "user", b"7") == (1, 1, 0)
    assert counts(engine, "item", b"50") == (1, 1, 0)


def test_a_late_click_corrects_what_was_learned_without_it():
    engine = Engine(CONFIG, **ROOMY)
    engine.learn(batches([impression(1, "s", "7", "50"), *clock(30)]))
    learned = engine.learn(
        batches([event("click", 31, user_id="7", item_id="50", impression_id="s")])
    )
    assert (engine.joiner.late_outcomes, engine.joiner.corrections) == (1, 1)
    assert learned.learned == 1
    assert counts(engine, "user", b"7") == (1, 1, 0)


def test_a_withheld_item_is_a_control_once():
    engine = Engine(CONFIG, **ROOMY)
    engine.learn(batches([impression(1, "s", "7", "50", shown=False, show_probability=0.5)]))
    assert engine.model()["controls"] == 0
    engine.learn(batches(clock(30)))
    assert counts(engine, "user", b"7") == counts(engine, "item", b"50") == (0, 0, 1)
    told = engine.model()
    assert told["controls"] == told["effects"]["click"]["withheld"] == 1


def test_closing_the_windows_learns_what_is_open_and_names_the_rows():
    engine = Engine(CONFIG, **ROOMY)
    engine.learn(
        batches(
            [
                impression(1, "s", "7", "50"),
                impression(1.5, "s", "8", "51", shown=False, show_probability=0.5),
            ]
        )
    )
    users, items = engine.close_windows()
    assert users.tolist() == items.tolist() == [0, 1]
    assert counts(engine, "user", b"7") == (0, 1, 0)
    assert counts(engine, "user", b"8") == (0, 0, 1)


def test_reading_never_creates():
    engine = Engine(CONFIG, **ROOMY)
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
    assert engine.learner.served_rows(kind, np.zeros(1, np.int32)).events.tolist() == [0]
