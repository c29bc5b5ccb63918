"""The path on a real broker and a real Redis, with crashes as elements of the input."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from threading import Event

import numba
import numpy as np
import orjson
import pytest
from prometheus_client import CollectorRegistry

import consumers.trainer
from consumers import build, settings, topics
from consumers.kafka import KafkaSource, Outgoing, Sink
from model_store.codec import STAMP, shapes
from model_store.keys import keys
from model_store.reader import Reader
from model_store.seen import unpack
from model_store.vectors import RedisVectors
from stream.compiled import compiling
from stream.errors import BadEvent, Inconsistent, Unavailable
from stream.reference_parser import parse

KILLS = int(os.environ.get("COUNTERFLOW_TEST_KILLS", "4"))
T0 = 1_700_000_000_000
ARROWS = (
    "before write",
    "after write",
    "before save",
    "after save",
    "before commit",
    "after commit",
)


class Crash(Exception):
    """The process is gone."""


class Place:
    """One broker prefix, one Redis, one snapshot folder: what outlives a trainer."""

    def __init__(self, broker, prefix, redis_url, folder, partitions=2):
        self.broker, self.prefix = broker, prefix
        self.environ = {
            "COUNTERFLOW_KAFKA__BOOTSTRAP_SERVERS": broker,
            "COUNTERFLOW_KAFKA__TOPIC_PREFIX": prefix,
            "COUNTERFLOW_REDIS__URL": redis_url,
            "COUNTERFLOW_REDIS__PREFIX": prefix,
            "COUNTERFLOW_SNAPSHOTS__DIR": str(folder),
            "COUNTERFLOW_SNAPSHOTS__INTERVAL_S": "0.05",
            "COUNTERFLOW_TRAINER__METRICS_PORT": "0",
            "COUNTERFLOW_TRAINER__DUPLICATES_WINDOW": "100000",
        }
        self.settings = settings.load({}, self.environ)
        topics.create(broker, prefix, partitions=partitions)

    def send(self, records):
        with Sink(bootstrap_servers=self.broker) as sink:
            sink.produce(
                [
                    Outgoing(topics.name(self.prefix, kind), value, key)
                    for kind, key, value in records
                ]
            )

    def trainer(self):
        return build.trainer(self.settings, CollectorRegistry(), Event())

    def learn_all(self):
        trainer = self.trainer()
        try:
            trainer.start()
            trainer.run_until(trainer.source.ends())
        finally:
            trainer.close()
        return trainer

    def counts(self):
        rows = build.vectors(self.settings).export()
        found = {(row["kind"], row["id"]): row["events"] for row in rows}
        return {k: v for k, v in found.items() if v}

    def dead_letters(self):
        topic = topics.name(self.prefix, topics.DEAD_LETTERS)
        with KafkaSource(
            bootstrap_servers=self.broker, topics={topic: "rating"}, whole=False
        ) as source:
            source.start()
            ends = source.ends()
            from stream.events import decode

            letters = []
            while any(source.positions()[p] < end for p, end in ends.items()):
                polled = source.poll()
                if polled:
                    letters += decode(polled).bad
        return letters


@pytest.fixture
def place(broker, prefix, redis_url, tmp_path):
    return Place(broker, prefix, redis_url, tmp_path / "snapshots")


@pytest.fixture(params=[consumers.trainer.BACKLOG, 1], ids=["now", "behind"])
def backlog(request, monkeypatch):
    """Each poll is written before the next is learned, or while it is."""
    monkeypatch.setattr(consumers.trainer, "BACKLOG", request.param)


def seen(place, user):
    """What leaves the lists of this user."""
    (key,) = keys(place.prefix, "seen", [user.encode()])
    return unpack(build.redis_client(place.settings).get(key))


def latest(records, user, count=128):
    """The items of the user's newest ratings."""
    items = [json.loads(value)["item_id"] for _, key, value in records if key == user.encode()]
    return {item.encode() for item in items[-count:]}


def rating(n, user, item, value=4.0):
    body = {"event_id": f"r-{n}", "ts_ms": T0 + n, "user_id": user, "item_id": item, "value": value}
    return "rating", user.encode(), orjson.dumps(body)


def ratings(count, seed=0, start=0):
    r = random.Random(seed)
    return [
        rating(n, str(r.randrange(20)), str(r.randrange(30)), r.randrange(1, 6))
        for n in range(start, start + count)
    ]


def expected(records):
    counts: Counter[tuple[str, str]] = Counter()
    for _, _, value in records:
        body = json.loads(value)
        counts["user", body["user_id"]] += 1
        counts["item", body["item_id"]] += 1
    return dict(counts)


def crash_at(trainer, arrow):
    """The trainer raises Crash at the next passing of an arrow."""
    when, what = arrow.split()
    owner, name = {
        "write": (trainer.vectors, "write"),
        "save": (trainer.snapshots, "save"),
        "commit": (trainer._checkpoint, "_commit"),
    }[what]
    real = getattr(owner, name)

    def through(*args, **kwargs):
        if when == "after":
            real(*args, **kwargs)
        raise Crash(arrow)

    setattr(owner, name, through)


@pytest.mark.usefixtures("backlog")
@pytest.mark.parametrize("arrow", ARROWS)
def test_a_crash_at_any_arrow_repeats_work_and_loses_none(place, arrow):
    sent = ratings(300)
    for part in (sent[:100], sent[100:200], sent[200:]):
        place.send(part)
        trainer = place.trainer()
        try:
            trainer.start()
            crash_at(trainer, arrow)
            with pytest.raises(Crash):
                trainer.run_until(trainer.source.ends())
        finally:
            trainer.close()
    last = place.learn_all()
    assert place.counts() == expected(sent)
    assert last.engine.progressive.figures("rating")["count"] == 300


@pytest.mark.usefixtures("backlog")
def test_what_redis_refuses_is_written_again_before_anything_later(place):
    place.send(ratings(60))
    trainer, stamps = place.trainer(), []
    real, refusals = trainer.vectors.write, iter([True, False, True, True])

    def write(stamp, *args, **kwargs):
        if next(refusals, False):
            raise Unavailable("Redis is away", retry_after_s=0.01)
        stamps.append(STAMP.unpack(stamp))
        return real(stamp, *args, **kwargs)

    trainer.vectors.write = write
    try:
        trainer.start()
        for batch in (ratings(60, seed=1, start=60), ratings(60, seed=2, start=120)):
            trainer.run_until(trainer.source.ends())
            assert trainer.last_write_s is not None
            place.send(batch)
        trainer.run_until(trainer.source.ends())
    finally:
        trainer.close()
    assert stamps == sorted(stamps)
    every = [*ratings(60), *ratings(60, seed=1, start=60), *ratings(60, seed=2, start=120)]
    assert place.counts() == expected(every)
    assert len(trainer.freshness_s) == trainer.learned == 180


def test_every_bad_record_is_a_dead_letter_and_every_good_one_is_learned(place):
    good = ratings(50)
    bad = [("rating", b"k", b"{"), ("rating", b"k", None), ("click", b"k", b"[]")]
    mixed = [*good[:20], *bad, *good[20:]]
    place.send(mixed)
    trainer = place.learn_all()
    assert place.counts() == expected(good)
    assert trainer.bad_events == 3
    letters = place.dead_letters()
    told = sorted(dict(letter.headers)["dlq.reason"] for letter in letters)
    assert told == [b"no_value", b"not_json", b"not_object"]
    assert {letter.value for letter in letters} == {b"{", None, b"[]"}


def mutate(r, value):
    """Return the record with a byte changed, cut or doubled, or a field gone or of another type."""
    draw = r.random()
    at = r.randrange(len(value))
    if draw < 0.3:
        return value[:at] + bytes([r.randrange(256)]) + value[at + 1 :]
    if draw < 0.5:
        return value[:at]
    if draw < 0.6:
        return value[at:] + value
    body = json.loads(value)
    name = r.choice(sorted(body))
    if draw < 0.8:
        del body[name]
    else:
        body[name] = r.choice([None, True, -1, 1e300, 99, "", "x" * 300, [], {}, 2**70, "é"])
    return json.dumps(body).encode()


def test_of_10_000_mutated_records_each_bad_one_is_buried_and_each_good_one_learned(place):
    r = random.Random(11)
    good = ratings(2_000)
    records, n = [], 10_000
    for number in range(n):
        kind, key, value = ratings(1, seed=number, start=10_000 + number)[0]
        records.append((kind, key, mutate(r, value)))
        if number % 5 == 0:
            records.append(good[number // 5])
    place.send(records)
    trainer = place.learn_all()
    letters = place.dead_letters()
    assert trainer.bad_events + trainer.learned + trainer.duplicates == n + len(good)
    assert len(letters) == trainer.bad_events > n // 2
    sent = Counter(value for _, _, value in records)
    assert not Counter(letter.value for letter in letters) - sent
    places = {
        tuple(dict(letter.headers)[f"dlq.{name}"] for name in ("topic", "partition", "offset"))
        for letter in letters
    }
    assert len(places) == len(letters)
    for letter in letters:
        with pytest.raises(BadEvent) as judged:
            parse("rating", letter.value, time.time_ns() // 10**6)
        assert judged.value.reason.encode() == dict(letter.headers)["dlq.reason"]
    counts = place.counts()
    for name, least in expected(good).items():
        assert counts[name] >= least


def test_snapshots_keep_their_interval_while_a_backlog_is_slow_to_learn(place, monkeypatch):
    """Polls become as small as the time that they take asks for, and large again behind it."""
    place.send(ratings(30_000))
    trainer, counts, wait = place.trainer(), [], Event()
    trainer._interval_s = 0.3
    learn, save, saves = trainer.engine.learn, trainer.snapshots.save, []

    def slowly(batches, *more):
        counts.append(sum(batch.count for batch in batches))
        wait.wait(counts[-1] * 2e-4 * (sum(counts) < 20_000))
        return learn(batches, *more)

    def saving(*args):
        saves.append(sum(counts))
        return save(*args)

    monkeypatch.setattr(trainer.engine, "learn", slowly)
    monkeypatch.setattr(trainer.snapshots, "save", saving)
    try:
        trainer.start()
        trainer.run_until(trainer.source.ends())
    finally:
        trainer.close()
    assert sum(counts) == 30_000 and place.counts() == expected(ratings(30_000))
    slow = [count for count, end in zip(counts, np.cumsum(counts), strict=True) if end < 20_000]
    assert max(slow[1:]) < 4_000 < max(counts[len(slow) :])
    assert sum(learned < 20_000 for learned in saves) >= 4


def test_a_repeated_event_counts_once_also_across_a_restart(place):
    place.send(ratings(20))
    place.learn_all()
    place.send(ratings(20))
    assert place.learn_all().duplicates == 20
    assert place.counts() == expected(ratings(20))


def test_rows_lost_by_redis_are_written_again_at_the_start(place):
    place.send(ratings(40))
    place.learn_all()
    store = build.redis_client(place.settings)
    for key in store.scan_iter(f"{place.prefix}:*"):
        store.delete(key)
    place.learn_all()
    assert place.counts() == expected(ratings(40))


@pytest.mark.usefixtures("backlog")
def test_rows_lost_while_it_runs_are_all_written_again_within_seconds(place):
    place.send(ratings(40))
    trainer, wait = place.trainer(), Event()
    try:
        trainer.start()
        trainer.run_until(trainer.source.ends())
        build.redis_client(place.settings).flushall()
        for _ in range(200):
            trainer.turn()
            if place.counts() == expected(ratings(40)):
                break
            wait.wait(0.05)
        assert place.counts() == expected(ratings(40))
        assert trainer.epoch > 1
        for user in {key.decode() for _, key, _ in ratings(40)}:
            assert set(seen(place, user)) == latest(ratings(40), user)
    finally:
        trainer.close()


def test_what_a_null_value_removed_does_not_come_back_at_the_next_start(place):
    described = {"event_id": "m", "ts_ms": T0, "item_id": "new", "attributes": {"a": "b"}}
    place.send([*ratings(40), ("item", b"new", orjson.dumps(described))])
    place.learn_all()
    place.send([("item", b"3", None)])
    place.learn_all()
    place.learn_all()
    items = {row["id"] for row in build.vectors(place.settings).export() if row["kind"] == "item"}
    assert items == {id_ for kind, id_ in expected(ratings(40)) if kind == "item"} - {"3"} | {"new"}


def test_seen_items_beyond_the_remembered_come_back_as_the_latest(place):
    many = [rating(n, "7", str(n), 4.0) for n in range(200)]
    place.send(many)
    place.learn_all()
    assert set(seen(place, "7")) == latest(many, "7", 200)
    build.redis_client(place.settings).flushall()
    place.learn_all()
    assert seen(place, "7") == [str(n).encode() for n in range(72, 200)]
    again = build.redis_client(place.settings).strlen(keys(place.prefix, "seen", [b"7"])[0])
    place.learn_all()
    assert build.redis_client(place.settings).strlen(keys(place.prefix, "seen", [b"7"])[0]) == again


def item(id_, title):
    body = {"event_id": f"{id_}-{title}", "ts_ms": T0, "item_id": id_, "title": title,
            "attributes": {"genre": ["War"]}}  # fmt: skip
    return "item", id_.encode(), orjson.dumps(body)


@pytest.mark.usefixtures("backlog")
def test_who_is_removed_and_returns_keeps_nothing_from_before(place):
    place.send([*ratings(40), item("3", "Old")])
    trainer = place.trainer()
    reader = Reader(build.redis_client(place.settings), place.prefix)
    try:
        trainer.start()
        trainer.run_until(trainer.source.ends())
        assert reader.meta([b"3"])[0]["title"] == "Old" and seen(place, "7")
        place.send([("user", b"7", None), ("item", b"3", None)])
        trainer.run_until(trainer.source.ends())
        assert reader.user(b"7") is None and reader.item(b"3") is None
        assert reader.meta([b"3"]) == [None] and seen(place, "7") == []
        place.send([rating(90, "7", "3")])
        trainer.run_until(trainer.source.ends())
        assert reader.user(b"7").events == reader.item(b"3").events == 1
        assert reader.meta([b"3"]) == [None] and seen(place, "7") == [b"3"]
    finally:
        trainer.close()


def test_a_removal_and_a_return_in_one_poll_leave_what_came_after(place):
    place.send([item("3", "Old"), *[rating(n, "7", "3") for n in range(3)]])
    trainer = place.trainer()
    reader = Reader(build.redis_client(place.settings), place.prefix)
    try:
        trainer.start()
        trainer.run_until(trainer.source.ends())
        place.send([("user", b"7", None), ("item", b"3", None), ("item", b"4", None)])
        place.send([rating(8, "7", "5"), item("3", "New")])
        batches, ends = [], trainer.source.ends()
        while sum(batch.count for batch in batches) < 5:
            batches += trainer.source.poll(0.05)
        trainer._learn(sorted(batches, key=lambda b: (b.kind == "rating", b.base_offset)))
        assert trainer.source.positions() == ends
        assert reader.user(b"7").events == 1 and seen(place, "7") == [b"5"]
        assert reader.meta([b"3", b"4"]) == [
            {"title": "New", "attributes": {"genre": ["War"]}}, None,
        ]  # fmt: skip
    finally:
        trainer.close()


def test_one_rating_moves_the_served_score_by_what_it_moved_the_learners(place):
    def learners(trainer):
        rows = {
            kind: trainer.engine.learner.served_rows(
                kind, np.array([vocabulary.find(id_)], np.int32)
            )
            for kind, vocabulary, id_ in (
                ("user", trainer.engine.users, b"7"),
                ("item", trainer.engine.items, b"3"),
            )
        }
        user, item = rows["user"], rows["item"]
        d = trainer.engine.config.factors
        match = user.vector[0, :d] @ item.vector[0, :d]
        return float(user.bias[0, 0] + item.bias[0, 0] + match)

    def served():
        rows = {(row["kind"], row["id"]): row for row in build.vectors(place.settings).export()}
        user, item = rows["user", "7"], rows["item", "3"]
        match = np.dot(user["vector"][:32], item["vector"][:32])
        return user["bias"][0] + item["bias"][0] + float(match)

    place.send(ratings(200))
    before, served_before = learners(place.learn_all()), served()
    place.send([rating(10_000, "7", "3", 1.0)])
    moved, served_moved = learners(place.learn_all()) - before, served() - served_before
    assert abs(moved) > 0.01
    assert served_moved / moved == pytest.approx(1.0, abs=0.2)


def test_an_old_trainer_cannot_overwrite_a_newer_row(place):
    place.send(ratings(40))
    old = place.trainer()
    old.start()
    newer: RedisVectors = build.vectors(place.settings)
    epoch = newer.claim_epoch(old.epoch)
    assert epoch > old.epoch
    old.close()
    first = {row["id"]: row["epoch"] for row in newer.export()}
    place.learn_all()
    assert all(row["epoch"] > first.get(row["id"], 0) for row in newer.export())


def test_an_old_trainer_that_wakes_brings_nothing_back(place, tmp_path):
    place.send([*ratings(40), item("3", "Old")])
    old = place.trainer()
    reader = Reader(build.redis_client(place.settings), place.prefix)
    try:
        old.start()
        old.run_until(old.source.ends())
        place.send([("user", b"7", None), ("item", b"3", None)])
        newer = Place(place.broker, place.prefix, place.environ["COUNTERFLOW_REDIS__URL"], tmp_path)
        epoch = newer.learn_all().epoch
        assert epoch > old.epoch
        with pytest.raises(Inconsistent, match="taken over"):
            old.publisher.everything(old.epoch)
        assert reader.user(b"7") is None and reader.item(b"3") is None
        assert reader.meta([b"3"]) == [None] and seen(place, "7") == []
        assert reader.model()["epoch"] == epoch
        assert shapes(reader.model()) == old.engine.learner.shapes()
        rows = build.vectors(place.settings).export()
        assert {row["epoch"] for row in rows} == {epoch}
    finally:
        old.close()


def test_another_clusters_snapshot_stops_the_trainer_with_the_remedy(place):
    place.send(ratings(10))
    place.learn_all()
    trainer = place.trainer()
    identity = trainer.source.identity()
    trainer.source.identity = lambda: identity | {"cluster": "another"}
    try:
        with pytest.raises(Exception, match="cluster") as stopped:
            trainer.start()
        assert stopped.value.remedy
    finally:
        trainer.close()


def test_sigterm_finishes_the_batch_snapshots_and_leaves_with_0(place):
    place.send(ratings(200))
    with subprocess.Popen(
        [sys.executable, "-m", "consumers", "train", "--json"],
        env=os.environ | place.environ, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        vectors = build.vectors(place.settings)
        wait = Event()
        for _ in range(600):
            if sum(row["events"] for row in vectors.export()) == 400:
                break
            wait.wait(0.05)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert orjson.loads(out.splitlines()[-1])["events"] == 200
    assert place.learn_all().learned == 0


def test_while_it_compiles_it_says_so_and_a_signal_ends_it_at_once(place, tmp_path):
    place.send(ratings(20))
    chosen = {"COUNTERFLOW_MODEL__CACHE_DIR": str(tmp_path / "empty")}
    with subprocess.Popen(
        [sys.executable, "-m", "consumers", "train", "--json"],
        env=os.environ | place.environ | chosen,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert any("compiling the learning step" in line for line in process.stderr)
        Event().wait(0.5)
        before = time.monotonic()
        process.send_signal(signal.SIGTERM)
        out, rest = process.communicate(timeout=30)
    assert time.monotonic() - before < 5 and process.returncode == 0
    assert "epoch" not in rest and "Traceback" not in rest
    assert orjson.loads(out.splitlines()[-1])["events"] == 0
    assert place.learn_all().learned == 20


def test_what_is_compiled_is_told_once_and_not_what_is_already():
    told = []
    with compiling(lambda: told.append(1)):
        one, other = (numba.njit(lambda x, y=y: x + y) for y in (1, 2))
        assert one(1) + other(1) == 5
    assert told == [1]
    with compiling(lambda: told.append(1)):
        assert one(1) == 2
    assert told == [1]


def test_kill_9_at_random_moments_counts_each_event_once(place):
    r, sent, wait = random.Random(5), [], Event()
    for kill in range(KILLS):
        part = ratings(500, seed=kill, start=500 * kill)
        sent += part
        place.send(part)
        with subprocess.Popen(
            [sys.executable, "-m", "consumers", "train"],
            env=os.environ | place.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            store = build.redis_client(place.settings)
            before = store.get(f"{place.prefix}:epoch")
            for _ in range(400):  # it has claimed its epoch: somewhere between there and the end
                if store.get(f"{place.prefix}:epoch") != before:
                    break
                wait.wait(0.05)
            wait.wait(r.random() * 0.2)
            process.kill()
    place.learn_all()
    assert place.counts() == expected(sent)
