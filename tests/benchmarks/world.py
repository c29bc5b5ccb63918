"""What the benchmarks share: a broker and a Redis, a trainer as a process, ratings in a topic."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from consumers import playground, topics
from consumers.kafka import Outgoing, Sink


@dataclass
class World:
    """Where a benchmark runs."""

    bootstrap: str
    redis_url: str
    prefix: str
    folder: Path
    apache: bool
    settings: dict[str, str] = field(default_factory=dict)

    def environ(self, **more: str) -> dict[str, str]:
        """Return the environment of our processes here."""
        return {
            **os.environ,
            "COUNTERFLOW_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap,
            "COUNTERFLOW_KAFKA__TOPIC_PREFIX": self.prefix,
            "COUNTERFLOW_REDIS__URL": self.redis_url,
            "COUNTERFLOW_REDIS__PREFIX": self.prefix,
            "COUNTERFLOW_SNAPSHOTS__DIR": str(self.folder / "snapshots"),
            "COUNTERFLOW_TRAINER__METRICS_PORT": "0",
            **more,
        }

    def train_until_end(self, run: int) -> dict[str, Any]:
        """Return the summary of a trainer that began afresh."""
        said = subprocess.run(
            [sys.executable, "-m", "consumers", "train", "--until-end"],
            env=self.environ(COUNTERFLOW_SNAPSHOTS__DIR=str(self.folder / f"snapshots-{run}")),
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        return dict(orjson.loads(said.stdout.splitlines()[-1]))


@contextmanager
def world() -> Iterator[World]:
    """Yield a world on COUNTERFLOW_TEST_KAFKA, else on the embedded broker."""
    given = os.environ.get("COUNTERFLOW_TEST_KAFKA")
    with ExitStack() as stack:
        bootstrap = given or stack.enter_context(playground.broker())
        redis_url = stack.enter_context(playground.redis_server())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prefix = f"bench{time.time_ns()}"
        topics.create(bootstrap, prefix, partitions=4)
        yield World(bootstrap, redis_url, prefix, folder, given is not None)


def ratings(count: int, start: int = 0, users: int = 943, items: int = 1_682) -> Iterator[Any]:
    """Yield (key, value) of ratings that a planted rank-8 model made."""
    r = np.random.default_rng(start)
    taste, trait = r.normal(0, 0.5, (users, 8)), r.normal(0, 0.5, (items, 8))
    user, item = r.integers(users, size=count), r.integers(items, size=count)
    value = np.clip(
        np.rint(3.5 + (taste[user] * trait[item]).sum(1) + r.normal(0, 0.5, count)), 1, 5
    )
    now_ms = time.time_ns() // 1_000_000
    for n, (u, i, y) in enumerate(zip(user.tolist(), item.tolist(), value.tolist(), strict=True)):
        yield str(u).encode(), orjson.dumps(
            {
                "v": 1, "type": "rating", "event_id": f"r-{start + n}", "ts_ms": now_ms,
                "user_id": str(u), "item_id": str(i), "value": y,
            }
        )  # fmt: skip


def fill(world: World, count: int) -> None:
    """The rating topic holds `count` ratings in lz4 batches after the call."""
    topic = topics.name(world.prefix, "rating")
    with Sink(bootstrap_servers=world.bootstrap, linger_ms=50, batch_bytes=1 << 20) as sink:
        for key, value in ratings(count):
            sink.send(Outgoing(topic, value, key))
        sink.flush(120)
