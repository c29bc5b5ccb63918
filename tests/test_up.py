"""All of it in one command: what a newcomer runs first."""

import os
import signal
import subprocess
import sys
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
