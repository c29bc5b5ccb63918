"""Threads that ask the stores whether they are there, beside a loop that may hang in one."""

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

CACHE_S = 1.5  # of a client that tries twice: Redis that hangs is told within 4 s
EVERY_S = 0.25  # a broker that was killed is told within a second
Ask = Callable[[], None]


class Probes:
    """One thread a store; each answer and each refusal is in `health` and `metrics`.

    `ended` is called when no store is asked any more.
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
        """The stores are asked from now on."""
        for store, ask in self._asks.items():
            self._health.answered(store)
            thread = threading.Thread(
                target=self._run, args=(store, ask), name=f"probe-{store}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """No store is asked any more; a call that hangs is left to end by itself."""
        self._stop.set()
        for thread in self._threads:
            thread.join(1.0)
        self._ended()

    def _run(self, store: str, ask: Ask) -> None:
        while not self._stop.is_set():
            try:
                ask()
            except Exception as error:  # a probe that ends would tell of its store as of then
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
    """Return what asks the broker for the ends of the source's partitions, for `health`.

    What its fetches told counts where it is more: Tansu's answers are too low.
    """

    def ask() -> None:
        told = ends(source.assigned())
        if not source.committed_only:
            for place, end in source.highwaters().items():
                told[place] = max(end, told.get(place, end))
        health.ends = told

    return ask


def cache(client: redis.Redis) -> Ask:
    """Return what asks Redis; the client's timeout bounds it."""

    def ask() -> None:
        with mapped():
            client.ping()

    return ask


def disk(folder: Path) -> Ask:
    """Return what looks whether a snapshot could be written into the folder."""

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
