"""Run everything with one command: embedded broker and Redis, trainer, service, and a replay.

Trainer and service are separate processes, as in production; all of them end with this one, however
it ends.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import redis

from consumers import clients, playground, ports, topics
from consumers import settings as all_settings
from consumers.kafka import KafkaSource
from consumers.model_config import model_config
from consumers.replay import replay
from consumers.service.run import check_host
from consumers.settings import Settings
from model_store.snapshots import Snapshots
from stream.errors import CounterflowError, Inconsistent

READY_S = 180.0  # the first start compiles the kernels
WATCH_S = 1.0  # snapshot interval: the commit after each snapshot shows the trainer's progress


def run(
    settings: Settings,
    given: dict[str, str],
    config: str | None,
    *,
    dataset: str | None,
    once: bool,
    json: bool,
) -> int:
    """Run everything until Ctrl-C, or until the last event is learned, and return the exit code.

    Parameters
    ----------
    settings : Settings
        The effective settings.
    given, config : dict, str
        Settings and file of the command line, passed on to the child processes.
    dataset : str, optional
        A data set to replay.
    once : bool
        End after the last event.
    json : bool
        Print the trainer's summary as JSON.
    """
    _check(settings, _flags(given, config))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    named = all_settings.named(given, os.environ, config)
    t, s = settings.trainer, settings.service
    chosen = {
        what: str(ports.free(what, host, port, what in named))
        for what, host, port in (
            ("trainer.metrics_port", t.metrics_host, t.metrics_port),
            ("service.port", s.host, s.port),
        )
    }
    with playground.playground() as servers, _folder(settings) as folder:
        topics.create(servers.bootstrap_servers, settings.kafka.topic_prefix)
        chosen |= {
            "kafka.bootstrap_servers": servers.bootstrap_servers,
            "redis.url": servers.redis_url,
            "snapshots.dir": str(folder),
            "snapshots.interval_s": str(min(settings.snapshots.interval_s, WATCH_S)),
        }
        both = given | chosen
        here = all_settings.load(both, os.environ, config)
        flags = _flags(both, config)
        with _child("train", flags, ["--json"]) as trainer, _child("serve", flags, []) as service:
            url = f"http://{settings.service.host}:{chosen['service.port']}"
            _wait("the service", lambda: _answers(f"{url}/readyz"), stop, trainer, service)
            print(_greeting(url), file=sys.stderr, flush=True)
            if dataset is not None and not stop.is_set():

                def learned(what: str) -> None:
                    with watched(here) as done:
                        _wait(what, done, stop, trainer, service)

                replay(dataset, here, lambda: learned("the backlog"))
                learned("the last event")
            if not once:
                _wait("Ctrl-C", lambda: False, stop, trainer, service, limit_s=None)
            trainer.send_signal(signal.SIGTERM)
            out, _ = trainer.communicate()
            if trainer.returncode:
                raise _ended(trainer)
            result = orjson.loads(out.splitlines()[-1])
            result["redis_keys"] = int(redis.Redis.from_url(servers.redis_url).dbsize())
            _say(result, json)
    return 0


def _flags(given: dict[str, str], config: str | None) -> list[str]:
    """Return the settings and their file as command-line arguments of `counterflow`."""
    return [f"--set={k}={v}" for k, v in given.items()] + (["--config", config] if config else [])


def _check(settings: Settings, flags: list[str]) -> None:
    """Refuse settings that the child processes would refuse.

    A required GPU is checked in a process of its own, because a CUDA context opened here would stay
    open beside the trainer's.
    """
    check_host(settings.service)
    if model_config(settings).device != "cuda":
        return
    asked = subprocess.run(
        [sys.executable, "-m", "consumers", "config", "show", *flags], stdout=subprocess.PIPE
    )
    if asked.returncode:
        raise _ended(asked)
    step = orjson.loads(asked.stdout)["learning_step"]
    if step["driver"] is None:
        raise Inconsistent(step["error"], step["remedy"])


def _say(result: dict[str, Any], json: bool) -> None:
    """Print the trainer's summary."""
    if json:
        sys.stdout.buffer.write(orjson.dumps(result) + b"\n")
    else:
        for name, value in result.items():
            print(f"{name:>16} {value}")
    sys.stdout.flush()


@contextmanager
def _folder(settings: Settings) -> Iterator[Path]:
    """Yield a new snapshot folder: the embedded broker is empty, so no older snapshot fits."""
    at = Path(settings.snapshots.dir)
    try:
        at.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix="new-up-", dir=at))
    except OSError as error:
        raise CounterflowError(
            f"cannot write {at}: {error.strerror}", "choose another snapshots.dir"
        ) from error
    old = [run for run in at.glob("up-*") if not Snapshots(run).in_use()]
    if old:
        print(
            f"the embedded broker keeps no data: starting afresh, removing older runs in {at}",
            file=sys.stderr,
        )
        for run in old:
            shutil.rmtree(run, ignore_errors=True)
    yield made.rename(at / made.name.removeprefix("new-"))


@contextmanager
def _child(command: str, chosen: list[str], more: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run one of our commands as a child process that ends with this one."""
    process = subprocess.Popen(
        [
            sys.executable, "-c", playground.LAUNCHER, str(os.getpid()),
            sys.executable, "-m", "consumers", command, *more, *chosen,
        ],
        stdout=subprocess.PIPE if command == "train" else subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(
    what: str,
    done: Callable[[], bool],
    stop: threading.Event,
    *children: "subprocess.Popen[bytes]",
    limit_s: float | None = READY_S,
) -> None:
    """Wait until `done` or `stop`; raise if a child ends or the limit is exceeded."""
    until = time.monotonic() + limit_s if limit_s else None
    while not stop.is_set() and not done():
        for child in children:
            if child.poll() is not None:
                raise _ended(child)
        if until and time.monotonic() > until:
            raise CounterflowError(
                f"{what} did not come within {limit_s:.0f} s", "see the log for the cause"
            )
        stop.wait(0.05)


def _ended(
    child: "subprocess.Popen[bytes] | subprocess.CompletedProcess[bytes]",
) -> CounterflowError:
    """Return the error for a child that ended unexpectedly."""
    return CounterflowError(
        f"a child process ended with exit status {child.returncode}",
        "see the child's own message above",
    )


def _get(url: str) -> bytes | None:
    """Return the response body, None if there was no response."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bytes(answer.read())
    except OSError:
        return None


def _answers(url: str) -> bool:
    """Return whether the URL answers."""
    return _get(url) is not None


@contextmanager
def watched(settings: Settings) -> Iterator[Callable[[], bool]]:
    """Yield a predicate: has the trainer saved everything that is in Kafka now?"""
    k = settings.kafka
    with KafkaSource(
        bootstrap_servers=k.bootstrap_servers,
        topics=topics.names(k.topic_prefix),
        group_id=k.group_id,
        client=clients.options(k),
    ) as source:
        source.start()
        ends = source.ends()

        def done() -> bool:
            committed = source.committed()
            return all(committed.get(partition, 0) >= end for partition, end in ends.items())

        yield done


def _greeting(url: str) -> str:
    """Return the service's address and example curl commands."""

    def curl(path: str, body: dict[str, Any]) -> str:
        return (
            f"  curl -s {url}{path} -H 'content-type: application/json'"
            f" -d '{orjson.dumps(body).decode()}'"
        )

    rating = {
        "type": "rating", "event_id": "try-1", "ts_ms": int(time.time() * 1_000),
        "user_id": "7", "item_id": "50", "value": 1.0,
    }  # fmt: skip
    ask = curl("/v1/rank", {"user_id": "7", "item_ids": ["50", "172", "181"]})
    return "\n".join(
        [
            f"counterflow answers at {url}",
            curl("/v1/recommend", {"user_id": "7", "k": 5}),
            curl("/v1/events", rating),
            ask,
        ]
    )
