"""Latency of the service over HTTP, one client: recommend 10 of all items; one effect."""

import subprocess
import sys
import time
import urllib.request
from typing import Any

import httpx
import numpy as np

from consumers.playground import free_port
from tests.benchmarks.world import fill, world

REQUESTS, WARM_UP = 2_000, 200


def run() -> None:
    """Print the quantiles of 2,000 requests after 200 to warm up, for each of the routes."""
    with world() as w:
        fill(w, 50_000)
        w.train_until_end(0)
        port = free_port()
        with subprocess.Popen(
            [sys.executable, "-m", "consumers", "serve"],
            env=w.environ(COUNTERFLOW_SERVICE__PORT=str(port)), stderr=subprocess.DEVNULL,
        ) as server:  # fmt: skip
            try:
                url = f"http://127.0.0.1:{port}"
                ready(f"{url}/readyz")
                with httpx.Client(base_url=url) as client:
                    tell("recommend 10 of 1,682 items", client, "/v1/recommend", {"k": 10})
                    asked = {"item_id": "7", "outcome": "rating", "do": {"popularity": 30}}
                    tell("effect of a popularity", client, "/v1/effect", asked)
            finally:
                server.terminate()


def tell(what: str, client: httpx.Client, path: str, asked: dict[str, Any]) -> None:
    """Print the quantiles of one route, asked for one user after the other."""
    took = []
    for n in range(REQUESTS + WARM_UP):
        body = {"user_id": str(n % 943), **asked}
        start = time.perf_counter()
        answer = client.post(path, json=body)
        took.append(time.perf_counter() - start)
        answer.raise_for_status()
    ms = np.array(took[WARM_UP:]) * 1e3
    p50, p99, most = np.quantile(ms, [0.5, 0.99, 1])
    print(f"{what}, {REQUESTS:,} requests, one client:")
    print(f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, most {most:.2f} ms")


def ready(url: str) -> None:
    """Return when the service says that it is ready."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(url)
