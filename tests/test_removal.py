"""A null value removes its key: every one acts, and only events of its own bring the key back."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers import build
from model_store.reader import Reader
from stream import testing
from stream.engine import Engine
from stream.framing import frame, unframe
from stream.records import RecordBatch
from tests.test_engine import CONFIG, ROOMY, T0, batches, event, world
from tests.test_trainer import Crash, Place, crash_at, expected, item, rating, ratings, seen


@pytest.fixture
def place(broker, prefix, redis_url, tmp_path):
    return Place(broker, prefix, redis_url, tmp_path / "snapshots")


def served(place):
    """The users and items whose rows stand in Redis."""
    return {(row["kind"], row["id"]) for row in build.vectors(place.settings).export()}


def removals(kind, ids):
    return [(kind, id_.encode(), None) for id_ in ids]


def gone(kind, id_, at=0):
    """The record that removes the id, as a batch of its own."""
    data = frame(0, 0, id_.encode(), None)
    return [RecordBatch(f"t.{kind}.v1", kind, 0, at, at, at + 1, T0, T0, True, 1, data)]


TEN = [str(n) for n in range(10)]
GONE = {(kind, id_) for kind in ("user", "item") for id_ in TEN}


def test_every_removal_of_a_poll_acts(place):
    place.send(ratings(400))
    place.learn_all()
    assert served(place) == set(expected(ratings(400)))
    place.send([*removals("user", TEN), *removals("item", TEN)])
    trainer = place.learn_all()
    assert trainer.duplicates == 0
    assert served(place) == set(expected(ratings(400))) - GONE


def test_a_removal_that_is_repeated_acts_again(place):
    for n in range(3):
        place.send([rating(n, "7", "3")])
        place.learn_all()
        assert served(place) == {("user", "7"), ("item", "3")}
        place.send([*removals("user", ["7", "7"]), *removals("item", ["3"])])
        assert place.learn_all().duplicates == 0
        assert served(place) == set()


def shown(n, user, item_):
    body = {"event_id": f"i-{n}", "ts_ms": T0 + n, "impression_id": f"s-{n}", "user_id": user,
            "item_id": item_}  # fmt: skip
    return "impression", user.encode(), orjson.dumps(body)


def follow(place, *polls, close=False):
    """Learn the polls one after the other, write everything anew, and end."""
    trainer = place.trainer()
    try:
        trainer.start()
        for poll in polls:
            place.send(poll)
            trainer.run_until(trainer.source.ends(), close)
            trainer.publisher.refresh(1e9)
        return trainer
    finally:
        trainer.close()


def test_20_removed_ids_are_served_again_by_events_of_their_own_alone(place):
    described = [item(id_, "Old") for id_ in TEN]
    windows = [shown(n, str(n % 20), str(n % 30)) for n in range(200)]
    others = [
        rating(1_000 + n, str(10 + n % 10), str(10 + n % 20), 1.0 + n % 5) for n in range(2_000)
    ]
    follow(place, [*ratings(400), *described, *windows])
    follow(place, [*removals("user", TEN), *removals("item", TEN), *others[:1_000]])
    there = served(place)
    assert not there & GONE and len(there) == 30
    follow(place, others[1_000:], close=True)  # many pairs, and all windows are closed
    follow(place)
    assert served(place) == there
    reader = Reader(build.redis_client(place.settings), place.prefix)
    assert reader.meta([id_.encode() for id_ in TEN]) == [None] * 10
    assert not any(seen(place, user) for user in TEN)
    follow(place, [rating(9_000, "1", "2"), shown(9_001, "3", "4"), item("5", "New")])
    back = {("user", "1"), ("item", "2"), ("user", "3"), ("item", "4"), ("item", "5")}
    assert served(place) == there | back
    assert seen(place, "1") == [b"2"]
    rows = {(row["kind"], row["id"]): row for row in build.vectors(place.settings).export()}
    assert [rows["user", "1"][c] for c in ("events", "exposures", "controls")] == [1, 0, 0]
    assert rows["item", "5"]["events"] == 0
    follow(place, others[:5], close=True)
    assert served(place) == there | back


def test_a_trainer_that_starts_from_before_a_removal_does_not_undo_it(place):
    place.send([*ratings(400), *[item(id_, "Old") for id_ in TEN]])
    place.learn_all()
    trainer = place.trainer()
    try:
        trainer.start()
        crash_at(trainer, "before save")
        place.send([*removals("user", TEN), *removals("item", TEN)])
        with pytest.raises(Crash):
            trainer.run_until(trainer.source.ends())
    finally:
        trainer.close()
    there = served(place)
    assert not there & GONE
    trainer = place.trainer()
    reader = Reader(build.redis_client(place.settings), place.prefix)
    try:
        trainer.start()
        trainer.publisher.refresh(1e9)
        trainer.publisher.drain()
        for user in TEN:
            assert seen(place, user) == []
        assert reader.meta([id_.encode() for id_ in TEN]) == [None] * 10
        assert served(place) == there
        trainer.run_until(trainer.source.ends())
        assert served(place) == there
    finally:
        trainer.close()


def test_a_users_list_that_is_written_again_has_no_removed_items(place):
    place.send([rating(n, "7", str(n)) for n in range(5)])
    place.learn_all()
    place.send(removals("item", ["1", "3"]))
    place.learn_all()
    build.redis_client(place.settings).flushall()
    place.learn_all()
    assert seen(place, "7") == [b"0", b"2", b"4"]


def test_a_removal_of_what_is_not_known_makes_nothing():
    engine = Engine(CONFIG, **ROOMY)
    polled = [*batches([event("rating", 1, user_id="7", item_id="3", value=4.0)])]
    learned = engine.learn([*polled, *gone("user", "8"), *gone("item", "8")])
    assert (len(engine.users), len(engine.items)) == (1, 1)
    assert learned.duplicates == 0 and len(learned.attributes) == 2
    learned = engine.learn(
        [*gone("item", "9"), *batches([event("click", 2, user_id="9", item_id="9")])]
    )
    assert engine.learner.served_rows("item", learned.items).events.tolist() == [1]


def said(batch):
    """The event of a batch of one, or nothing."""
    try:
        return orjson.loads(unframe(memoryview(batch.data), 0)[1] or b"")
    except orjson.JSONDecodeError:
        return None


def with_removals(seed, count=300):
    """The world of the engine's laws, in which users and items are removed and come back."""
    r = np.random.default_rng(seed)
    made = []
    for batch in world(seed, count):
        made.append(batch)
        while r.random() < 0.15:
            kind = str(r.choice(["user", "item"]))
            made += gone(kind, str(r.integers(20 if kind == "user" else 30)))
    return made


def counts_since(polled):
    """The clicks and ratings of each id since its latest removal; and which are away."""
    counts, away, met = Counter(), set(), set()
    for batch in polled:
        body = said(batch)
        if body is None:
            key = unframe(memoryview(batch.data), 0)[0].decode()
            if batch.kind in ("user", "item"):
                counts.pop((batch.kind, key), None)
                away.add((batch.kind, key))
            continue
        name = batch.kind, body["event_id"]
        if name in met:
            continue
        met.add(name)
        for kind in ("user", "item"):
            if f"{kind}_id" in body:
                named = kind, body[f"{kind}_id"]
                away.discard(named)
                counts[named] += batch.kind in ("click", "rating")
    return counts, away


def rows_agree(engine, polled):
    counts, away = counts_since(polled)
    for kind, ids in (("user", engine.users), ("item", engine.items)):
        rows = np.arange(len(ids), dtype=np.int32)
        names = [id_.decode() for id_ in ids.ids(rows)]
        events = engine.learner.served_rows(kind, rows).events.tolist()
        assert dict(zip(names, events, strict=True)) == {n: counts[kind, n] for n in names}
        there = engine.learner.exist(kind, rows).tolist()
        assert not {n for n, is_ in zip(names, there, strict=True) if is_ and (kind, n) in away}


SYNTHETIC = replace(CONFIG, synthetic=0.3)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1_000), st.lists(st.integers(1, 400), max_size=6), st.booleans())
def test_nothing_but_an_event_of_its_own_makes_a_removed_row_again(seed, cuts, synthetic):
    polled = with_removals(seed)
    engine = Engine(SYNTHETIC if synthetic else CONFIG, **ROOMY)
    for a, b in pairwise([0, *sorted(cuts), len(polled)]):
        engine.learn(polled[a:b])
        rows_agree(engine, polled[:b])
        engine.learner.replay(200)
        rows_agree(engine, polled[:b])
        restored = Engine(engine.config, **ROOMY)
        restored.load(engine.state())
        engine = restored
    engine.close_windows()
    rows_agree(engine, polled)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1_000), st.lists(st.integers(0, 400), max_size=8), st.integers(1, 64))
def test_removals_do_not_depend_on_how_polls_are_cut(seed, cuts, batch_max):
    testing.cuts_do_not_matter(
        lambda: Engine(CONFIG, 3, **ROOMY),
        lambda: Engine(CONFIG, 3, batch_max, **ROOMY),
        with_removals(seed),
        cuts,
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1_000), st.lists(st.integers(1, 299), min_size=1, max_size=3))
def test_removals_survive_restarts(seed, cuts):
    polled = with_removals(seed)
    borders = [0, *sorted(cuts), len(polled)]
    testing.restarts_do_not_matter(
        lambda: Engine(CONFIG, **ROOMY), [polled[a:b] for a, b in pairwise(borders)]
    )


@pytest.mark.parametrize("step", ["sequential", "blocks"])
def test_a_row_made_again_is_a_new_one(step):
    config = replace(CONFIG, step=step, device="cpu", average=0.9)
    engine = Engine(config, 3, **ROOMY)
    engine.learn(world(1, 200))
    rows = np.arange(len(engine.items), dtype=np.int32)
    ids = [id_.decode() for id_ in engine.items.ids(rows)]
    engine.learn([batch for id_ in ids[:-1] for batch in gone("item", id_)])
    alone = [False] * (len(ids) - 1) + [True]
    assert engine.learner.exist("item", rows).tolist() == alone
    late = [event("rating", 300 + n, user_id="1", item_id=ids[-1], value=4.0) for n in range(100)]
    engine.learn(batches(late))  # many pairs, and all windows close
    assert engine.learner.exist("item", rows).tolist() == alone
    shown = event("impression", 500, impression_id="new", user_id="1", item_id=ids[4])
    other = Engine(config, 3, **ROOMY)
    other.learn(
        batches([event("item", n, item_id=id_, attributes={}) for n, id_ in enumerate(ids)])
    )
    one, two = (
        each.learner.item.read(each.learn(batches([shown])).items) for each in (engine, other)
    )
    assert one.tobytes() == two.tobytes()
