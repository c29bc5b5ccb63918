"""Events a second from Kafka to Redis, beside a peer on the same broker, topic and Redis."""

import os
import resource
import statistics
import subprocess
import sys

import orjson

from consumers import topics
from tests.benchmarks.world import fill, world

COUNT = int(os.environ.get("BENCH_EVENTS", "1000000"))
RUNS = 3


def run() -> None:
    """Print the median of three runs of each, taken in turn, and their ratio."""
    peer = os.environ.get("PEER")
    with world() as w:
        fill(w, COUNT)
        print(f"{COUNT:,} ratings of 943 users, 1,682 items, 4 partitions, lz4; "
              f"{'Apache Kafka' if w.apache else 'the embedded broker'}", flush=True)  # fmt: skip
        ours, theirs = [], []
        for turn in range(RUNS):
            said = w.train_until_end(turn)
            assert said["events"] == COUNT, said
            ours.append(said["events_per_s"])
            if turn == 0:  # no other child has run yet but the embedded servers
                most_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
            print(f"counterflow {ours[-1]:>12,} events/s, MAE {said['mae']:.4f}", flush=True)
            if peer:
                out = subprocess.run(
                    [sys.executable, peer, "--bootstrap", w.bootstrap, "--topic",
                     topics.name(w.prefix, "rating"), "--redis", w.redis_url,
                     "--count", str(COUNT)],
                    stdout=subprocess.PIPE, check=True,
                ).stdout  # fmt: skip
                other = orjson.loads(out.splitlines()[-1])
                theirs.append(other["events_per_s"])
                print(f"peer        {theirs[-1]:>12,} events/s, bare reading "
                      f"{other['bare_events_per_s']:,}", flush=True)  # fmt: skip
        print(f"largest process of ours: {most_mib:,} MiB resident at its peak")
        print(f"counterflow, median of {RUNS}: {statistics.median(ours):,.0f} events/s")
        if theirs:
            ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
            print(f"ratio, median of {RUNS} pairs: {statistics.median(ratios):.1f} x")
