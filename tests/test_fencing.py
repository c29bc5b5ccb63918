"""Two trainers under one Redis prefix: one survives, the other hears of it and stops."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from threading import Event

import pytest
import redis

from consumers import build
from model_store.codec import stamp
from model_store.reader import Reader
from model_store.vectors import RedisVectors
from stream.errors import Inconsistent
from tests.test_store import put
from tests.test_trainer import Place, backlog, expected, place, ratings

__all__ = ["backlog", "place"]  # the fixtures


def until(right, what):
    wait = Event()
    for _ in range(600):
        if right():
            return
        wait.wait(0.05)
    raise AssertionError(what)


@contextmanager
def training(place, folder, **chosen):
    """Yield a running trainer with a snapshot folder of its own; it has ended after."""
    named = {f"COUNTERFLOW_{name.upper()}": value for name, value in chosen.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "consumers", "train"],
        env=os.environ | place.environ | {"COUNTERFLOW_SNAPSHOTS__DIR": str(folder)} | named,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def epochs(place):
    return {row["epoch"] for row in build.vectors(place.settings).export()}


def claimed(place):
    """The epoch that stands in Redis."""
    return int(build.redis_client(place.settings).get(f"{place.prefix}:epoch") or 0)


def refused(process):
    """Return what it said last, the reason and the remedy, of a trainer that stopped by itself."""
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    reason, remedy = said.splitlines()[-2:]
    assert "redis.prefix" in remedy
    return reason


def test_of_two_trainers_the_later_survives_and_the_rows_are_its_own(place, tmp_path):
    place.send(ratings(100))
    with training(place, tmp_path / "a") as first:
        until(lambda: place.counts() == expected(ratings(100)), "the first learned")
        with training(place, tmp_path / "b") as second:
            reason = refused(first)
            assert "taken over" in reason and "epoch 2" in reason
            more = ratings(50, seed=1, start=100)
            place.send(more)
            both = expected([*ratings(100), *more])
            until(lambda: place.counts() == both, "the second learned")
            assert epochs(place) == {2} and second.poll() is None


def test_after_a_flush_exactly_one_survives_and_writes_all_again(place, tmp_path):
    """The first sleeps through the claim of the second and the loss of all that told of it."""
    place.send(ratings(100))
    whole = expected(ratings(100))
    with training(place, tmp_path / "a") as first:
        until(lambda: place.counts() == whole, "the first learned")
        first.send_signal(signal.SIGSTOP)
        with training(place, tmp_path / "b") as second:
            until(lambda: epochs(place) == {2} and place.counts() == whole, "the second learned")
            second.send_signal(signal.SIGSTOP)
            build.redis_client(place.settings).flushall()
            for process in (first, second):
                process.send_signal(signal.SIGCONT)
            until(lambda: None in (first.poll(), second.poll()) and
                  (first.poll(), second.poll()) != (None, None), "one of them stopped")  # fmt: skip
            lost, kept = (first, second) if second.poll() is None else (second, first)
            assert "taken over" in refused(lost)
            until(lambda: place.counts() == whole, "all is written again")
            until(lambda: epochs(place) == {claimed(place)}, "under one epoch")
            more = ratings(50, seed=1, start=100)
            place.send(more)
            both = expected([*ratings(100), *more])
            until(lambda: place.counts() == both, "it goes on")
            assert kept.poll() is None


def test_a_rank_under_anothers_prefix_is_refused_and_disturbs_nobody(place, tmp_path):
    place.send(ratings(100))
    chosen = {"trainer__world": "2"}
    with training(place, tmp_path / "a", trainer__rank="0", **chosen) as first:
        until(lambda: epochs(place) == {1}, "the first learned")
        before = place.counts()
        with training(place, tmp_path / "b", trainer__rank="1", **chosen) as second:
            reason = refused(second)
            assert "rank 0 of 2" in reason and place.prefix in reason
        assert place.counts() == before and epochs(place) == {1}
        assert first.poll() is None
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 0


@pytest.mark.usefixtures("backlog")
@pytest.mark.parametrize("how", ["learning", "idle", "at the end"])
def test_whoever_is_overtaken_stops_and_reports_no_freshness(place, tmp_path, how):
    place.send(ratings(40))
    old = place.trainer()
    try:
        old.start()
        old.run_until(old.source.ends())
        written = len(old.freshness_s)
        newer = Place(place.broker, place.prefix, place.environ["COUNTERFLOW_REDIS__URL"], tmp_path)
        epoch = newer.learn_all().epoch
        rows = list(build.vectors(place.settings).export())
        if how != "idle":
            place.send(ratings(40, seed=1, start=40))
        wait = Event()
        with pytest.raises(Inconsistent, match="taken over"):
            if how == "at the end":
                old.run_until(old.source.ends())
            for _ in range(100):
                old.turn()
                wait.wait(0.05)
        assert len(old.freshness_s) == written
        assert epoch == old.epoch + 1
        assert list(build.vectors(place.settings).export()) == rows
    finally:
        old.close()


def test_two_claims_of_one_epoch_are_told_apart(redis_url):
    """Redis forgot the first claim, so the second is of the same epoch."""
    client = redis.Redis.from_url(redis_url)
    first, second = RedisVectors(client), RedisVectors(client)
    assert first.claim_epoch(0) == 1
    put(first, 1, 5, {b"a": 1.0, b"b": 1.0})
    client.flushall()
    assert second.claim_epoch(0) == 1
    put(second, 1, 1, {b"a": 2.0})
    with pytest.raises(Inconsistent, match="epoch 1"):
        put(first, 1, 6, {b"a": 3.0})
    for write in (
        lambda: first.write(stamp(1, 7), globals_=bytes(8)),
        lambda: first.write(stamp(1, 7), meta={b"a": b"{}"}),
        lambda: first.publish_model({"epoch": 1}),
        lambda: first.write(stamp(1, 7)),
    ):
        with pytest.raises(Inconsistent, match="taken over"):
            write()
    assert Reader(client).item(b"a").events == 2
    assert client.xlen("cf:4:log") == 1
    assert put(second, 1, 2, {b"a": 4.0}) == 1


def test_a_claim_that_redis_forgot_stands_again_and_all_is_written_again(redis_url):
    client = redis.Redis.from_url(redis_url)
    writer, other = RedisVectors(client), RedisVectors(client)
    writer.claim_epoch(6)
    writer.set_live()
    put(writer, 7, 1, {b"a": 1.0})
    assert not writer.lost
    client.flushall()
    assert other.claim_epoch(0) == 1
    other.set_live()
    put(writer, 7, 2, {b"a": 2.0})  # a claim of a lower epoch is no match for it
    assert writer.lost
    with pytest.raises(Inconsistent, match="epoch 7"):
        put(other, 1, 1, {b"a": 3.0})
    assert writer.claim_epoch(7) == 8


def test_rows_of_a_higher_epoch_that_no_claim_told_of_stop_the_writer_once(redis_url):
    """As a trainer of an earlier version writes them, or after an eviction of the epoch."""
    client = redis.Redis.from_url(redis_url)
    put(RedisVectors(client), 9, 1, {b"a": 9.0})
    writer = RedisVectors(client)
    assert writer.claim_epoch(0) == 1
    with pytest.raises(Inconsistent, match=r"newer \(epoch 9\)"):
        put(writer, 1, 1, {b"a": 1.0, b"b": 1.0})
    again = RedisVectors(client)
    assert again.claim_epoch(1) == 10
    assert put(again, 10, 1, {b"a": 1.0, b"b": 1.0}) == 2


def test_a_trainers_own_earlier_rows_and_repeated_writes_are_no_alarm(redis_url):
    client = redis.Redis.from_url(redis_url)
    writer = RedisVectors(client)
    for epoch in (1, 2, 3):
        assert writer.claim_epoch(epoch - 1) == epoch
        for sequence in (1, 2, 2, 3):
            assert put(writer, epoch, sequence, {b"a": 1.0, b"b": 2.0}) == 2
            assert writer.write(
                stamp(epoch, sequence), {"item": ([b"a"], [stamp(epoch, sequence)])}
            )
