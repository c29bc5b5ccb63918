"""Latency of the service over HTTP, one client: recommend 10 of all items."""

import subprocess
import sys
import time
import urllib.request

import httpx
import numpy as np

from consumers.playground import free_port
from tests.benchmarks.world import fill, world

REQUESTS = 2_000


def run() -> None:
    """Print the quantiles of 2,000 requests after 200 to warm up."""
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
                took = []
                with httpx.Client(base_url=url) as client:
                    for n in range(REQUESTS + 200):
                        start = time.perf_counter()
                        answer = client.post(
                            "/v1/recommend", json={"user_id": str(n % 943), "k": 10}
                        )
                        took.append(time.perf_counter() - start)
                        answer.raise_for_status()
                ms = np.array(took[200:]) * 1e3
                p50, p99 = np.quantile(ms, 0.5), np.quantile(ms, 0.99)
                print(f"recommend 10 of 1,682 items, {REQUESTS:,} requests, one client:")
                print(f"p50 {p50:.2f} ms, p99 {p99:.2f} ms")
            finally:
                server.terminate()


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
