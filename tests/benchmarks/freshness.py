"""From Kafka's timestamp to readable in Redis, at a steady 2,000 events a second."""

import signal
import subprocess
import sys
import time

import orjson

from consumers import topics
from consumers.kafka import Outgoing, Sink
from tests.benchmarks.world import ratings, world

PER_S = 2_000
SECONDS = 15


def run() -> None:
    """Print the quantiles over the newest 2,000 events of a steady stream of 15 s."""
    with world() as w:
        with subprocess.Popen(
            [sys.executable, "-m", "consumers", "train", "--json"],
            env=w.environ(COUNTERFLOW_SNAPSHOTS__INTERVAL_S="2"),
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        ) as trainer:  # fmt: skip
            topic = topics.name(w.prefix, "rating")
            with Sink(bootstrap_servers=w.bootstrap) as sink:
                start = time.monotonic()
                for n, (key, value) in enumerate(ratings(PER_S * SECONDS)):
                    early_s = start + n / PER_S - time.monotonic()
                    if early_s > 0:
                        time.sleep(early_s)  # the pace itself
                    sink.send(Outgoing(topic, value, key))
                sink.flush()
            time.sleep(0.5)  # the stream is steady to its last event; then the trainer may end
            trainer.send_signal(signal.SIGTERM)
            out, _ = trainer.communicate(timeout=60)
        said = orjson.loads(out.splitlines()[-1])
        print(f"{PER_S:,} events/s for {SECONDS} s, {said['events']:,} learned: "
              f"p50 {said['freshness_p50_s'] * 1e3:.1f} ms, "
              f"p99 {said['freshness_p99_s'] * 1e3:.1f} ms of the newest 2,000")  # fmt: skip
