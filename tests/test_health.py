"""Stores that hang or die under a running trainer: its port says so, and it goes on by itself."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from threading import Event

import orjson
import pytest
import redis
from prometheus_client import CollectorRegistry

from consumers import build, playground, probes, topics
from consumers.metrics import TrainerMetrics
from consumers.topics import Admin
from model_store.snapshots import Snapshots
from tests.test_trainer import Place, expected, ratings

PROMISED_S = 5.0


def until(done, seconds=30.0):
    """Return for how long it took to be true."""
    began, wait = time.monotonic(), Event()
    while time.monotonic() - began < seconds:
        if done():
            return time.monotonic() - began
        wait.wait(0.02)
    raise AssertionError(f"not within {seconds} s")


class Trainer:
    """`counterflow train` in a process of its own, seen through its port and its log."""

    def __init__(self, place, folder):
        self.place, self.port, self.log = place, playground.free_port(), folder / "log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "consumers", "train"],
                env=os.environ
                | place.environ
                | {"COUNTERFLOW_TRAINER__METRICS_PORT": str(self.port)},
                stderr=out, stdout=subprocess.DEVNULL,
            )  # fmt: skip

    def get(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def ready(self):
        status, body = self.get("/readyz")
        return status == 200 and orjson.loads(body)["reasons"] == []

    def figure(self, name, **labels):
        """Return the sum of a metric over what the labels leave open, None where it is absent."""
        found = None
        for line in self.get("/metrics")[1].decode().splitlines():
            told = re.match(rf"counterflow_{name}(?:{{(.*)}})? (\S+)$", line)
            if told and all(f'{k}="{v}"' in (told[1] or "") for k, v in labels.items()):
                found = (found or 0.0) + float(told[2])
        return found

    def said(self, what):
        return what in self.log.read_text()


@contextlib.contextmanager
def running(place, folder):
    trainer = Trainer(place, folder)
    try:
        until(trainer.ready, 60)
        yield trainer
    finally:
        trainer.process.kill()
        trainer.process.wait()


class Line:
    """A way to the broker that can be cut, and mended on the same port."""

    def __init__(self):
        self.port, self.to, self._open = playground.free_port(), 0, []
        self._listener = None

    def mend(self):
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self):
        listener, self._listener = self._listener, None
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open = []

    def _accept(self, listener):
        with contextlib.suppress(OSError):
            while True:
                here, _ = listener.accept()
                there = socket.create_connection(("127.0.0.1", self.to))
                self._open += [here, there]
                for a, b in ((here, there), (there, here)):
                    threading.Thread(target=self._carry, args=(a, b), daemon=True).start()

    def _carry(self, a, b):
        with contextlib.suppress(OSError):
            while data := a.recv(1 << 16):
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)


@pytest.fixture
def line():
    """Yield a way to an embedded broker that tells its clients to come by it."""
    way = Line()

    def command(at):
        return [
            playground.tansu(), "broker", f"--listener-url=tcp://127.0.0.1:{at}",
            f"--advertised-listener-url=tcp://127.0.0.1:{way.port}",
            "--storage-engine=memory://tansu/",
        ]  # fmt: skip

    with playground._running("Kafka broker", command, 0) as at:
        way.to = at
        way.mend()
        yield way
        if way._listener:
            way.cut()


@pytest.fixture
def place(broker, prefix, redis_url, tmp_path):
    return Place(broker, prefix, redis_url, tmp_path / "snapshots")


def test_the_port_answers_three_paths_and_the_snapshots_time_is_absent_before_the_first(
    place, tmp_path
):
    place.environ["COUNTERFLOW_SNAPSHOTS__INTERVAL_S"] = "0.5"
    with running(place, tmp_path) as trainer:
        assert trainer.get("/livez")[0] == trainer.get("/metrics")[0] == 200
        assert trainer.get("/nothing")[0] == 404
        assert trainer.figure("snapshot_last_success_timestamp_seconds") is None
        for store in ("kafka", "redis", "snapshots"):
            assert trainer.figure("dependency_up", dependency=store) == 1
            assert trainer.figure("holding", store=store) == 0
        place.send(ratings(50))
        until(lambda: trainer.figure("snapshot_last_success_timestamp_seconds"))
        until(lambda: trainer.figure("lag_records") == 0)
        before = trainer.figure("last_progress_timestamp_seconds")
        until(lambda: trainer.figure("last_progress_timestamp_seconds") > before)
        users = sum(kind == "user" for kind, _ in expected(ratings(50)))
        assert trainer.figure("rows", kind="user") == users
        trainer.process.terminate()
        assert trainer.process.wait(30) == 0


def test_redis_that_hangs_is_seen_within_5_s_and_what_it_lacks_is_counted(place, tmp_path, apache):
    store = redis.Redis.from_url(place.environ["COUNTERFLOW_REDIS__URL"])
    pid = store.info()["process_id"]
    with running(place, tmp_path) as trainer:
        place.send(ratings(100))
        until(lambda: place.counts() == expected(ratings(100)))
        until(lambda: trainer.figure("lag_records") == 0)
        os.kill(pid, signal.SIGSTOP)
        try:
            place.send(ratings(500, seed=1, start=100))
            least = 500 if apache else 1  # the embedded broker's ends are too low
            assert until(lambda: least <= trainer.figure("lag_records") <= 500) < PROMISED_S
            took = until(lambda: trainer.figure("dependency_up", dependency="redis") == 0)
            assert took < PROMISED_S
            assert trainer.figure("dependency_up", dependency="kafka") == 1
            assert trainer.figure("holding", store="redis") == 1
            assert trainer.figure("store_errors_total", store="redis") > 0
            status, body = trainer.get("/readyz")
            assert status == 503 and "redis" in orjson.loads(body)["reasons"][0]
            assert trainer.get("/livez")[0] == 200
            assert trainer.said("redis is unavailable, waiting")
            stood = trainer.figure("last_progress_timestamp_seconds")
            place.send(ratings(10, seed=2, start=600))
            assert until(lambda: trainer.figure("lag_records") > least) < PROMISED_S
            if apache:
                assert until(lambda: trainer.figure("lag_records") == 510) < PROMISED_S
            assert trainer.figure("last_progress_timestamp_seconds") == stood
        finally:
            os.kill(pid, signal.SIGCONT)
        until(trainer.ready)
        until(lambda: trainer.figure("lag_records") == 0)
        assert trainer.said("redis is available again")
        every = [*ratings(100), *ratings(500, seed=1, start=100), *ratings(10, seed=2, start=600)]
        assert place.counts() == expected(every)


def test_a_broker_that_is_gone_is_said_within_a_second_and_read_on_when_it_is_back(
    line, prefix, redis_url, tmp_path
):
    place = Place(f"127.0.0.1:{line.port}", prefix, redis_url, tmp_path / "snapshots")
    with running(place, tmp_path) as trainer:
        place.send(ratings(100))
        until(lambda: place.counts() == expected(ratings(100)))
        line.cut()
        assert (
            until(lambda: trainer.said("kafka is unavailable, waiting")) < 1.5
        )  # with a scrape's time
        assert until(lambda: trainer.figure("dependency_up", dependency="kafka") == 0) < PROMISED_S
        assert trainer.figure("holding", store="kafka") == 1
        assert trainer.figure("store_errors_total", store="kafka") > 0
        assert trainer.get("/readyz")[0] == 503 and trainer.get("/livez")[0] == 200
        line.mend()
        until(trainer.ready)
        assert trainer.said("kafka is available again")
        place.send(ratings(100, seed=1, start=100))
        every = [*ratings(100), *ratings(100, seed=1, start=100)]
        until(lambda: place.counts() == expected(every))
        until(lambda: trainer.figure("lag_records") == 0)
        line.cut()
        until(lambda: trainer.figure("holding", store="kafka") == 1)
        trainer.process.terminate()
        assert trainer.process.wait(40) == 0  # a snapshot needs no broker


def test_a_topic_that_is_made_anew_under_it_stops_the_trainer_and_no_snapshot_mixes_offsets(
    place, tmp_path, apache
):
    if not apache:
        pytest.skip("topics have ids: Apache Kafka only")
    topic = topics.name(place.prefix, "rating")
    with running(place, tmp_path) as trainer, Admin(place.broker) as admin:
        place.send(ratings(60))
        until(lambda: place.counts() == expected(ratings(60)))
        until(lambda: trainer.figure("lag_records") == 0)
        os.kill(trainer.process.pid, signal.SIGSTOP)  # it sees neither the end nor the beginning
        admin.delete_topics([topic])
        until(lambda: topic not in admin.list_topics())
        until(lambda: topics.create(place.broker, place.prefix, partitions=2) == [topic])
        place.send(ratings(600, seed=1, start=60))
        os.kill(trainer.process.pid, signal.SIGCONT)
        assert trainer.process.wait(60) == 1
        assert trainer.said("has the id") and trainer.said("was created again")
    for snapshot in Snapshots(place.settings.snapshots.dir).list():
        offsets = [offset for name, _, offset in snapshot.meta["positions"] if name == topic]
        assert sum(offsets) == snapshot.meta["learned"] <= 60


def test_a_topic_that_is_deleted_under_it_stops_the_trainer_with_the_remedy(
    place, tmp_path, apache
):
    if not apache:
        pytest.skip("the embedded broker goes on serving a deleted topic's partitions")
    with running(place, tmp_path) as trainer, Admin(place.broker) as admin:
        place.send(ratings(60))
        until(lambda: place.counts() == expected(ratings(60)))
        admin.delete_topics([topics.name(place.prefix, "rating")])
        until(lambda: trainer.get("/readyz")[0] == 503)
        assert trainer.process.wait(60) == 1
        assert trainer.said("was deleted while reading")


def test_a_probe_survives_what_its_client_raises_and_tells_of_it():
    """kafka-python raises a KeyError for a partition that it has not heard of yet."""
    health, metrics = build.health(), TrainerMetrics(CollectorRegistry())
    answers = iter([KeyError("partition 1"), KeyError("partition 1")])

    def ask():
        error = next(answers, None)
        if error is not None:
            raise error

    asked = probes.Probes(health, metrics, {"kafka": ask}, lambda: None)
    health.turned()
    asked.start()
    until(lambda: health.why("kafka") == "KeyError: 'partition 1'", 5)
    until(lambda: health.up("kafka"), 5)
    asked.close()


def test_partitions_that_are_added_are_followed_and_the_port_stays_ready(place, tmp_path, apache):
    if not apache:
        pytest.skip("adding partitions: Apache Kafka only")
    with running(place, tmp_path) as trainer, Admin(place.broker) as admin:
        until(trainer.ready)
        admin.create_partitions({topics.name(place.prefix, "rating"): 6})
        added = {"topic": topics.name(place.prefix, "rating"), "partition": "5"}
        until(lambda: trainer.figure("lag_records", **added) == 0, 45)
        until(trainer.ready, 10)
        assert trainer.figure("dependency_up", dependency="kafka") == 1
        assert not trainer.said("Traceback")
