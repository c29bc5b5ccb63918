"""All of it in one command: what a newcomer runs first."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import orjson
import pytest

from consumers import build, datasets, topics
from consumers.kafka import Outgoing, Sink
from consumers.settings import load
from consumers.up import watched
from stream.errors import CounterflowError

try:
    datasets.ml_100k_folder()
    absent = ""
except CounterflowError as error:
    absent = f"MovieLens-100K is not installed: {error.remedy}"


def up(folder, *more):
    return [
        sys.executable, "-m", "consumers", "up", "--json",
        f"--set=snapshots.dir={folder}", "--set=service.port=0", "--set=trainer.metrics_port=0",
        *more,
    ]  # fmt: skip


@contextmanager
def running(folder, *more):
    """Yield the process, the URL of its greeting and what it said before; it has ended after."""
    process = subprocess.Popen(
        up(folder, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            said = []
            for line in process.stderr:
                said.append(line)
                if "counterflow answers at" in line:
                    break
            yield process, said[-1].split()[-1], said
        finally:
            if process.poll() is None:
                process.terminate()


def summary(process, number=signal.SIGTERM):
    """End it by this signal and return its last line."""
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return orjson.loads(out.splitlines()[-1])


def descendants(pid):
    """Return the processes below this one, the youngest last."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


@pytest.mark.skipif(bool(absent), reason=absent)
def test_once_learns_movielens_through_kafka_within_the_promised_error(tmp_path):
    said = subprocess.run(
        up(tmp_path, "--dataset", "ml-100k", "--once"),
        stdout=subprocess.PIPE, timeout=300, check=True,
        env=os.environ | {"COUNTERFLOW_TRAINER__BATCH_MAX": "64"},
    )  # fmt: skip
    result = orjson.loads(said.stdout.splitlines()[-1])
    assert (result["events"], result["bad_events"]) == (100_000, 0)
    assert (result["users"], result["items"]) == (943, 1_682)
    assert result["mae"] <= 0.745
    assert result["rmse"] <= 0.946
    assert result["mae"] < result["mae_served"] <= 0.75
    assert result["rmse"] < result["rmse_served"] <= 0.95
    assert result["redis_keys"] >= 943 + 1_682
    assert 0 < result["freshness_p50_s"] <= result["freshness_p99_s"]


def test_a_replay_has_ended_when_its_trainer_has_passed_every_record_bad_and_foreign_ones_too(
    broker, prefix
):
    topics.create(broker, prefix, partitions=2)
    chosen = {"bootstrap_servers": broker, "topic_prefix": prefix, "group_id": prefix}
    settings = load({f"kafka.{name}": value for name, value in chosen.items()})
    rating = topics.name(prefix, "rating")
    with Sink(bootstrap_servers=broker) as sink, build.source(settings) as trainers:
        sink.produce([Outgoing(rating, b"no JSON", partition=at % 2) for at in range(10)])
        trainers.start()
        with watched(settings) as done:
            assert not done()
            trainers.commit({(rating, 0): 5, (rating, 1): 4})
            assert not done()
            trainers.commit({(rating, 1): 5})
            assert done()
            sink.produce([Outgoing(rating, b"no JSON", partition=0)])  # afterwards: not waited for
            assert done()
        with watched(settings) as done:
            assert not done()


def test_kill_9_of_the_first_ends_all_and_a_second_start_says_that_it_begins_afresh(tmp_path):
    wait = Event()
    with running(tmp_path) as (first, _, _):
        children = descendants(first.pid)
        assert len(children) == 4  # broker, Redis, trainer, service
        first.kill()
    for _ in range(200):
        if not any(Path(f"/proc/{child}").exists() for child in children):
            break
        wait.wait(0.05)
    assert not [c for c in children if Path(f"/proc/{c}").exists()]
    with running(tmp_path) as (second, _, said):
        assert any("starting afresh" in line for line in said)
        assert summary(second, signal.SIGINT)["events"] == 0


def post(url, path, body):
    request = urllib.request.Request(
        url + path, orjson.dumps(body), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return orjson.loads(answer.read())


def test_a_posted_rating_is_in_the_next_answer_as_soon_as_it_is_learned(tmp_path):
    wait = Event()
    with running(tmp_path) as (process, url, _):

        def rate(name, user, item, value):
            rating = {
                "type": "rating", "event_id": name, "ts_ms": time.time_ns() // 10**6,
                "user_id": user, "item_id": item, "value": value,
            }  # fmt: skip
            assert post(url, "/v1/events", rating) == {"accepted": 1}

        def listed(user):
            answer = post(url, "/v1/recommend", {"user_id": user, "k": 10})
            return answer["user"]["known"], [item["item_id"] for item in answer["items"]]

        def until(right):
            for _ in range(200):
                if right():
                    return
                wait.wait(0.05)
            raise AssertionError(listed("u"))

        for n in range(5):
            rate(f"other-{n}", "other", f"i{n}", 1.0 + n)
        until(lambda: len(listed("u")[1]) == 5)
        assert listed("u")[0] is False
        rate("mine", "u", "i4", 5.0)
        until(lambda: listed("u") == (True, ["i3", "i2", "i1", "i0"]))
        assert summary(process)["events"] == 6


def test_what_is_compiled_once_is_loaded_at_the_next_start():
    subprocess.run([sys.executable, "-m", "consumers", "compile"], check=True)
    code = (
        "from stream.engine import Engine;"
        "from stream.model.config import ModelConfig; engine = Engine(ModelConfig());"
        "engine.warm_up(); stats = engine.learner.driver.compiled.stats;"
        "print(len(stats.cache_hits), len(stats.cache_misses))"
    )
    told = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert told.stdout.split() == [b"1", b"0"]


def test_a_second_one_leaves_the_snapshots_of_the_first_alone(tmp_path):
    with running(tmp_path) as (first, *_):
        (mine,) = tmp_path.glob("up-*")
        with running(tmp_path) as (second, *_):
            assert len([*tmp_path.glob("up-*")]) == 2
            summary(second)
        assert mine.exists()
        said = summary(first)
        assert (mine / said["snapshot"]).is_dir()
    with running(tmp_path) as (third, _, words):
        assert any("older runs" in line for line in words)
        assert not mine.exists()
        summary(third)
