"""All of it in one command: what a newcomer runs first."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from threading import Event

import orjson
import pytest

from consumers import datasets
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
    assert result["redis_keys"] >= 943 + 1_682
    assert 0 < result["freshness_p50_s"] <= result["freshness_p99_s"]


def test_kill_9_of_the_first_ends_all_and_a_second_start_says_that_it_begins_afresh(tmp_path):
    wait = Event()
    with subprocess.Popen(
        up(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as first:
        assert first.stderr is not None
        assert any("counterflow answers at" in line for line in first.stderr)
        children = descendants(first.pid)
        assert len(children) == 4  # broker, Redis, trainer, service
        first.kill()
        first.stderr.close()
    for _ in range(200):
        if not any(Path(f"/proc/{child}").exists() for child in children):
            break
        wait.wait(0.05)
    assert not [c for c in children if Path(f"/proc/{c}").exists()]
    with subprocess.Popen(
        up(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as second:
        assert second.stderr is not None
        lines = []
        for line in second.stderr:
            lines.append(line)
            if "counterflow answers at" in line:
                break
        second.send_signal(signal.SIGINT)
        out, _ = second.communicate(timeout=60)
    assert any("beginning afresh" in line for line in lines)
    assert second.returncode == 0
    assert orjson.loads(out.splitlines()[-1])["events"] == 0


def post(url, path, body):
    request = urllib.request.Request(
        url + path, orjson.dumps(body), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return orjson.loads(answer.read())


def test_a_posted_rating_is_in_the_next_answer_as_soon_as_it_is_learned(tmp_path):
    wait = Event()
    with subprocess.Popen(
        up(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        url = next(line.split()[-1] for line in process.stderr if "counterflow answers at" in line)

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
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert orjson.loads(out.splitlines()[-1])["events"] == 6
