"""A record that raises when it is learned is buried alone; every other one is learned once."""

import random
from collections import Counter

import numpy as np
import pytest

import consumers.trainer
from consumers import topics
from consumers.isolation import halve
from consumers.kafka import KafkaSource
from model_store.snapshots import Snapshots
from stream.engine import Engine
from stream.errors import Inconsistent, Unservable
from stream.framing import frame, unframe
from stream.model.learner import Learner
from stream.pieces import joined, parted, pieces
from stream.records import RecordBatch
from tests.test_learnable import counted, described
from tests.test_trainer import Crash, Place, crash_at, expected, rating, ratings

T0 = 1_700_000_000_000


@pytest.fixture
def place(broker, prefix, redis_url, tmp_path):
    return Place(broker, prefix, redis_url, tmp_path / "snapshots")


@pytest.fixture
def cursed(monkeypatch):
    """Whatever names the user "cursed" raises, after half of the engine has changed."""
    collate = Engine._collate

    def raising(self, joined, place, known):
        row = self.users.find(b"cursed")
        if row is not None and (joined.user == row).any():
            raise ZeroDivisionError("cursed\nuser")
        return collate(self, joined, place, known)

    monkeypatch.setattr(Engine, "_collate", raising)


def poison(monkeypatch, where):
    """What a text of an item makes of the model has no form in which it could be served."""
    real = getattr(Learner, where)

    def spoiled(self, *args):
        rows = real(self, *args)
        if "item\x1fplot\x1f=poison" in self.features.row and len(rows.bias):
            rows.bias[0] = np.nan
        return rows

    monkeypatch.setattr(Learner, where, spoiled)


def letters(place):
    """Return (value, reason, stage, place) of each dead letter, in their order."""
    topic, told = topics.name(place.prefix, topics.DEAD_LETTERS), []
    with KafkaSource(
        bootstrap_servers=place.broker, topics={topic: "rating"}, whole=False
    ) as source:
        source.start()
        ends = source.ends()
        while any(source.positions()[p] < end for p, end in ends.items()):
            for piece in pieces(source.poll()):
                _, value, headers = unframe(memoryview(piece.batch.data), piece.begin)
                h = dict(headers)
                where = h["dlq.topic"], h["dlq.partition"], h["dlq.offset"]
                told.append((value, h["dlq.reason"], h["dlq.stage"], where))
    return told


def mixed(good, bad, seed=0):
    records = list(good)
    r = random.Random(seed)
    for record in bad:
        records.insert(r.randrange(len(records) + 1), record)
    return records


def test_a_fault_of_our_own_is_not_blamed_on_records(place, monkeypatch):
    """What is published of the model cannot be written: all but the first records raise."""
    place.send(ratings(20))
    place.learn_all()
    real = Engine.model
    monkeypatch.setattr(Engine, "model", lambda self: real(self) | {
        "ours": object() if self.progressive.figures("rating")["count"] > 20 else None
    })  # fmt: skip
    place.send(ratings(400, start=1_000))
    with pytest.raises(Inconsistent, match="64 rating records raised while 0 were learned"):
        place.learn_all()
    monkeypatch.undo()
    assert letters(place) == []
    assert place.learn_all().learned == 400
    assert place.counts() == expected([*ratings(20), *ratings(400, start=1_000)])


def test_records_of_other_kinds_do_not_prove_that_a_kind_can_be_learned(place, monkeypatch):
    """Every rating raises, but that of the small engine; hundreds of items are learned beside."""
    real = Engine._collate

    def raising(self, joined, where, known):
        if len(joined.user) and self.users.find(b"u") is None:
            raise FloatingPointError("no scale")
        return real(self, joined, where, known)

    monkeypatch.setattr(Engine, "_collate", raising)
    items = [described(str(n), {"genre": "War"}, n) for n in range(300)]
    place.send(mixed(items, ratings(300)))
    with pytest.raises(Inconsistent, match="64 rating records raised while 0") as stopped:
        place.learn_all()
    assert "[model]" in stopped.value.remedy
    assert letters(place) == [] and not Snapshots(place.settings.snapshots.dir).list()
    monkeypatch.undo()
    assert place.learn_all().learned == 300
    assert place.counts() == expected(ratings(300))


@pytest.mark.parametrize("many", [99, 100])
@pytest.mark.usefixtures("cursed")
def test_a_hundred_of_one_kind_in_a_row_stop_it_and_fewer_are_buried(
    broker, prefix, redis_url, tmp_path, many
):
    place = Place(broker, prefix, redis_url, tmp_path, partitions=1)
    run = [rating(n, "cursed", "3") for n in range(1_000, 1_000 + many)]
    run.insert(50, described("9", {"genre": "War"}, 1))  # of another kind: it ends no row
    place.send([*ratings(200), *run, *ratings(20, start=500)])
    if many < 100:
        assert place.learn_all().learned == 220 and len(letters(place)) == many
        return
    with pytest.raises(
        Inconsistent, match=r"100 rating .* 200 were learned, the last 100 in a row"
    ):
        place.learn_all()
    assert letters(place) == []


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.usefixtures("cursed")
def test_a_stop_while_a_poll_is_learned_apart_keeps_what_was_and_repeats_nothing(
    place, monkeypatch, first
):
    """The signal comes after so many steps of the halving; the first poll is learned again."""
    bad = [rating(n, "cursed", "3") for n in range(1_000, 1_030)]
    undecodable = [("rating", b"k", b"{%d" % n) for n in range(10)]
    rest = mixed(ratings(300, start=100), [*bad, *undecodable])
    place.send(ratings(100))
    learned, stopped = [], 0
    for steps in (first, 3, 20, 60, 100_000):
        trainer = place.trainer()
        trainer._interval_s = 1e9

        def stopping(*args, after=steps, of=trainer):
            *others, going = args
            left = iter(range(after))

            def still():
                if next(left, None) is None:
                    of.stop.set()
                return going()

            return halve(*others, still)

        monkeypatch.setattr(consumers.trainer, "halve", stopping)
        try:
            trainer.start()
            if not learned:
                trainer.run_until(trainer.source.ends())
                trainer.snapshots.set_aside()
                trainer.snapshot = ""
                place.send(rest)
            trainer.run_until(trainer.source.ends())
        finally:
            trainer.close()
        learned.append(trainer.learned)
        stopped += trainer.stop.is_set()
    assert stopped == 4 and sum(learned) == 400
    assert place.counts() == expected([*ratings(100), *ratings(300, start=100)])
    told = [(value, reason) for value, reason, _, _ in letters(place)]
    assert sorted(told) == sorted(
        [*((value, b"not_learnable") for _, _, value in bad),
         *((value, b"not_json") for _, _, value in undecodable)]
    )  # fmt: skip


@pytest.mark.parametrize("snapshot_first", [False, True])
@pytest.mark.usefixtures("cursed")
def test_what_raises_is_buried_alone_and_all_others_are_learned_once(place, snapshot_first, caplog):
    good, bad = ratings(500), [rating(n, "cursed", "3") for n in range(1_000, 1_003)]
    sent = [*ratings(50, start=2_000)] if snapshot_first else []
    if snapshot_first:
        place.send(sent)
        place.learn_all()
    undecodable = ("rating", b"k", b"{")
    place.send(mixed([*good, undecodable], bad))
    trainer = place.learn_all()
    assert place.counts() == expected(good + sent)
    assert trainer.learned == 500 and trainer.bad_events == 4
    assert counted(trainer, "events_total", type="rating") == 500
    assert counted(trainer, "bad_events_total", reason="not_learnable") == 3
    assert counted(trainer, "bad_events_total", reason="not_json") == 1
    told = {(value, reason, stage) for value, reason, stage, _ in letters(place)}
    assert told == {
        (b"{", b"not_json", b"decode"),
        *((value, b"not_learnable", b"learn") for _, _, value in bad),
    }
    for _, reason, _, (topic, partition, offset) in letters(place):
        if reason == b"not_learnable":
            assert f"{topic.decode()}[{partition.decode()}]@{offset.decode()}" in caplog.text
    assert "ZeroDivisionError: cursed user" in caplog.text
    again = place.learn_all()
    assert (again.learned, again.bad_events) == (0, 0)
    place.send(ratings(30, start=5_000))
    assert place.learn_all().learned == 30
    assert place.counts() == expected([*good, *sent, *ratings(30, start=5_000)])


@pytest.fixture(params=[consumers.trainer.BACKLOG, 1], ids=["now", "behind"])
def backlog(request, monkeypatch):
    monkeypatch.setattr(consumers.trainer, "BACKLOG", request.param)


@pytest.mark.parametrize("where", ["served_rows", "feature_rows"])
@pytest.mark.usefixtures("backlog")
def test_what_cannot_be_served_is_buried_alone(place, monkeypatch, where):
    poison(monkeypatch, where)
    good = [*ratings(200), *(described(str(n), {"plot": f"{n}"}, n) for n in range(10))]
    bad = [described("3", {"plot": "poison"}, 50)]
    place.send(mixed(good, bad))
    trainer = place.learn_all()
    assert place.counts() == expected(ratings(200)) and trainer.learned == 200
    assert counted(trainer, "events_total", type="rating") == 200
    assert [told[:3] for told in letters(place)] == [(bad[0][2], b"not_learnable", b"learn")]
    assert place.learn_all().learned == 0
    titles = [trainer.engine.catalog._json[trainer.engine.items.find(b"3")]]
    assert titles == [b'{"title":null,"attributes":{"plot":"3"}}']


@pytest.mark.usefixtures("cursed")
def test_a_crash_before_the_next_snapshot_buries_it_again_and_counts_nothing_twice(place):
    place.send(mixed(ratings(300), [rating(1_000, "cursed", "3")]))
    first = place.trainer()
    first._interval_s = 1e9  # the first snapshot is that behind the record
    try:
        first.start()
        crash_at(first, "before save")
        with pytest.raises(Crash):
            first.run_until(first.source.ends())
    finally:
        first.close()
    assert len(letters(place)) == 1 and first.snapshot == ""
    place.learn_all()
    assert place.counts() == expected(ratings(300))
    (one, two) = letters(place)
    assert one == two and one[1] == b"not_learnable"


@pytest.mark.usefixtures("cursed")
def test_while_it_follows_the_stream_goes_on(place):
    trainer = place.trainer()
    sent = []
    try:
        trainer.start()
        for turn in range(12):
            good = ratings(40, seed=turn, start=100 * turn)
            bad = [rating(100_000 + turn, "cursed", "3")] if turn % 3 == 1 else []
            place.send(mixed(good, bad, turn))
            sent += good
            ends = trainer.source.ends()
            while any(trainer.source.positions()[p] < end for p, end in ends.items()):
                trainer.turn()
        trainer.save()
    finally:
        trainer.close()
    assert place.counts() == expected(sent)
    assert trainer.learned == counted(trainer, "events_total", type="rating") == len(sent)
    assert counted(trainer, "bad_events_total", reason="not_learnable") == 4
    assert place.learn_all().learned == 0


def test_where_nothing_can_be_learned_no_record_is_buried(place, monkeypatch):
    def broken(self, *_):
        raise ZeroDivisionError("the engine is broken")

    place.send(ratings(20))
    trainer = place.trainer()
    try:
        trainer.start()
        monkeypatch.setattr(Engine, "_collate", broken)
        with pytest.raises(ZeroDivisionError):
            trainer.run_until(trainer.source.ends())
    finally:
        trainer.close()
    monkeypatch.undo()
    assert letters(place) == []
    assert place.learn_all().learned == 20
    assert place.counts() == expected(ratings(20))


def test_what_cannot_be_served_and_is_not_of_a_record_stops_with_the_reason(place, monkeypatch):
    place.send(ratings(20))
    place.learn_all()
    trainer = place.trainer()
    try:
        trainer.start()

        def diverged(*_):
            raise Unservable("all of it is not finite")

        monkeypatch.setattr(trainer.publisher, "refresh", diverged)
        trainer._refreshed_s = 0.0
        with pytest.raises(Unservable, match="not finite"):
            for _ in range(3):
                trainer.turn()
                trainer._refreshed_s = 0.0
    finally:
        trainer.close()


def test_a_poll_taken_apart_is_the_same_poll():
    data = [
        frame(k, 10 * k, b"k%d" % k, None if k == 2 else b"v%d" % k, [("h", b"x")])
        for k in (0, 1, 2, 5, 6)
    ]
    batch = RecordBatch("t", "rating", 3, 100, 101, 110, T0, T0 + 99, False, 5, b"".join(data))
    other = RecordBatch("t", "click", 4, 7, 7, 8, T0, T0 + 99, True, 1, data[0])
    every = pieces([batch, other, batch])
    assert [p.offset for p in every] == [101, 102, 105, 106, 7, 101, 102, 105, 106]
    assert [p.ts_ms - T0 for p in every[:5]] == [10, 20, 50, 60, 99]
    for piece in every:
        (alone,) = joined([piece])
        assert (alone.fetch_offset, alone.next_offset, alone.count) == (
            piece.offset, piece.offset + 1, 1,
        )  # fmt: skip
        assert pieces([alone])[0].offset == piece.offset
        assert unframe(memoryview(alone.data), 0) == unframe(
            memoryview(batch.data), piece.begin
        ) or (piece.batch is other)
    below, above = parted([batch, other], {("t", 3): 105, ("t", 4): 8})
    assert [p.offset for p in pieces(below)] == [101, 102, 7]
    assert [p.offset for p in pieces(above)] == [105, 106]
    assert Counter(p.offset for p in pieces([*below, *above])) == Counter([101, 102, 105, 106, 7])
