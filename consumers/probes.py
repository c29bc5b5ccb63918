"""Threads that check the stores, beside a loop that may hang in a call to one of them."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import redis

from consumers.health import Health
from consumers.kafka import Ends, KafkaSource
from consumers.metrics import TrainerMetrics
from model_store.vectors import mapped
from stream.errors import CounterflowError, Unavailable

CACHE_S = 1.5  # timeout of one try; the client tries twice, so a hanging Redis shows within 4 s
EVERY_S = 0.25  # time between two checks: a broker that was killed shows within a second
Ask = Callable[[], None]


class Probes:
    """One thread per store; results go to `health` and `metrics`.

    Parameters
    ----------
    asks : dict
        A check for each store; it raises if the store is unavailable.
    ended : callable
        Called when all checks have ended.
    """

    def __init__(
        self, health: Health, metrics: TrainerMetrics, asks: dict[str, Ask], ended: Ask
    ) -> None:
        self._ended = ended
        self._health = health
        self._metrics = metrics
        self._asks = asks
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads."""
        for store, ask in self._asks.items():
            self._health.answered(store)
            thread = threading.Thread(
                target=self._run, args=(store, ask), name=f"probe-{store}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Stop the threads; a check that hangs is not waited for longer than a second."""
        self._stop.set()
        for thread in self._threads:
            thread.join(1.0)
        self._ended()

    def _run(self, store: str, ask: Ask) -> None:
        while not self._stop.is_set():
            try:
                ask()
            except Exception as error:  # an ended probe would leave its store's state outdated
                if not self._stop.is_set():
                    self._metrics.store_errors.labels(store=store).inc()
                    why = f"{type(error).__name__}: {error}"
                    if isinstance(error, CounterflowError):
                        why = error.message
                    self._health.hold(store, "probe", why)
            else:
                self._health.answered(store)
                self._health.release(store, "probe")
            self._stop.wait(EVERY_S)


def kafka(ends: Ends, source: KafkaSource, health: Health) -> Ask:
    """Return a check that stores the ends of the source's partitions in `health.ends`.

    The high watermarks of the source's own fetches are used where they are higher: Tansu's answers
    to ListOffsets are too low.
    """

    def ask() -> None:
        told = ends(source.assigned())
        if not source.committed_only:
            for partition, end in source.highwaters().items():
                told[partition] = max(end, told.get(partition, end))
        health.ends = told

    return ask


def cache(client: redis.Redis) -> Ask:
    """Return a check that pings Redis; the client's timeout bounds it."""

    def ask() -> None:
        with mapped():
            client.ping()

    return ask


def disk(folder: Path) -> Ask:
    """Return a check whether a snapshot could be written into the folder."""

    def ask() -> None:
        at = folder
        while not at.exists() and at != at.parent:
            at = at.parent
        try:
            free = os.statvfs(at).f_bavail
        except OSError as error:
            raise Unavailable(f"{folder}: {error.strerror}") from error
        if not free or not os.access(at, os.W_OK):
            raise Unavailable(f"{folder} is {'not writable' if free else 'full'}")

    return ask
