"""Logging recommendations as impressions to Kafka in the background; answers never wait for it.

answer ──► bounded queue ──► thread ──► Sink ──► {prefix}.impression.v1

If the queue is full, impressions are dropped and counted. If Kafka is unavailable, the thread
reconnects. Impressions count as logged when the broker acknowledges them.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
from prometheus_client import CollectorRegistry, Counter

from consumers import clients, topics
from consumers.kafka import Outgoing, Sink
from consumers.service.exploration import Slate
from consumers.settings import Settings
from stream.errors import CounterflowError
from stream.schemas import Impression

log = logging.getLogger("counterflow.service")

LINGER_MS = 20  # the producer collects records for this long, as nobody waits for them
RETRY_S = 1.0  # time between two attempts to connect
CLOSE_S = 15.0  # must exceed the client's longest attempt to connect


@dataclass(frozen=True, slots=True)
class Shown:
    """One answer: its slate, and the ids of the slate's items in the same order."""

    impression_id: str
    user_id: str
    ts_ms: int
    item_ids: Sequence[str]
    slate: Slate

    def __len__(self) -> int:
        return len(self.item_ids)

    def events(self) -> Iterator[Impression]:
        """Yield one event per item, shown or withheld, its event_id derived from the slate's."""
        slate = self.slate
        for number, (item_id, position, propensity, show_probability, shown) in enumerate(
            zip(
                self.item_ids,
                slate.position.tolist(),
                slate.propensity.tolist(),
                slate.show_probability.tolist(),
                slate.shown.tolist(),
                strict=True,
            )
        ):
            yield Impression(
                event_id=f"{self.impression_id}-{number}",
                ts_ms=self.ts_ms,
                user_id=self.user_id,
                item_id=item_id,
                impression_id=self.impression_id,
                position=position,
                propensity=propensity,
                shown=shown,
                show_probability=show_probability,
            )


class ImpressionLog:
    """Sends impressions in a thread; at most `exploration.queue_max` are unacknowledged."""

    def __init__(self, settings: Settings, registry: CollectorRegistry) -> None:
        self._kafka = settings.kafka
        self._topic = topics.name(settings.kafka.topic_prefix, "impression")
        self._most = settings.exploration.queue_max
        self._waiting: deque[Shown] = deque()
        self._open = 0  # impressions neither acknowledged nor dropped yet
        self._closing = False
        self._broken = False  # the current client has failed to send a record
        self._troubled = False  # the failure has been logged
        self._changed = threading.Condition()
        self._logged = Counter(
            "counterflow_impressions_logged", "Impressions acknowledged by Kafka",
            registry=registry,
        )  # fmt: skip
        self._dropped = Counter(
            "counterflow_impressions_dropped", "Impressions that could not be logged",
            registry=registry,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._run, name="impressions", daemon=True)
        self._thread.start()

    def put(self, answer: Shown) -> None:
        """Enqueue an answer's impressions, or drop and count them; never blocks or raises."""
        with self._changed:
            if self._closing or self._open + len(answer) > self._most:
                self._dropped.inc(len(answer))
                return
            self._open += len(answer)
            self._waiting.append(answer)
            self._changed.notify()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Wait for acknowledgements, count the rest as dropped, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        with self._changed:
            self._waiting.clear()
        self._collect_acknowledgements(self._dropped, self._most)

    def _run(self) -> None:
        while (sink := self._connected()) is not None:
            try:
                self._pump(sink)
            finally:
                sink.close()
            self._rest()

    def _rest(self) -> bool:
        """Wait for RETRY_S; return at once, and true, if the log is closing."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closing, RETRY_S)

    def _connected(self) -> Sink | None:
        """Return a sink once there is something to send; None when closing without success."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting)
        patience_ms = 2 * self._kafka.request_timeout_ms  # must exceed the request's timeout
        while self._waiting:
            try:
                return Sink(
                    bootstrap_servers=self._kafka.bootstrap_servers,
                    client={"delivery_timeout_ms": patience_ms, **clients.options(self._kafka)},
                    linger_ms=LINGER_MS,
                )
            except CounterflowError as error:
                self._trouble(error)
            if self._rest():
                break
        return None

    def _pump(self, sink: Sink) -> None:
        """Send waiting impressions until closed or until a record fails.

        After a failure the client is replaced, because an idempotent producer that the broker no
        longer knows fails every further record.
        """
        self._broken = False
        while not self._broken and (answer := self._next()) is not None:
            for event in answer.events():
                record = Outgoing(self._topic, msgspec.json.encode(event), event.user_id.encode())
                try:
                    future = sink.send(record)
                except CounterflowError as error:
                    self._failed(error)
                    continue
                future.add_callback(self._succeeded)
                future.add_errback(self._failed)

    def _next(self) -> Shown | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting or self._broken)
            return self._waiting.popleft() if self._waiting and not self._broken else None

    def _succeeded(self, _: object) -> None:
        self._troubled = False
        self._collect_acknowledgements(self._logged, 1)

    def _failed(self, error: Exception) -> None:
        self._trouble(error)
        self._collect_acknowledgements(self._dropped, 1)
        with self._changed:
            self._broken = True
            self._changed.notify()

    def _collect_acknowledgements(self, counter: Counter, most: int) -> None:
        """Count up to `most` open impressions as logged or dropped."""
        with self._changed:
            settled = min(most, self._open)
            self._open -= settled
        counter.inc(settled)

    def _trouble(self, error: Exception) -> None:
        """Log a failure, and the next one only after a success."""
        if not self._troubled:
            log.warning("impressions could not be logged: %s", error)
        self._troubled = True
