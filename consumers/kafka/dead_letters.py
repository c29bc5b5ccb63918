"""Bad records on a topic of their own: as they came, and why and whence in headers."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kafka import errors

from consumers.kafka.connection import REQUEST_S
from consumers.kafka.sink import Outgoing, Sink
from stream.errors import CounterflowError, Unavailable
from stream.records import RecordBatch

if TYPE_CHECKING:
    from stream.events import BadRecord

log = logging.getLogger(__name__)


class DeadLetters:
    """Keeps bad records, as they came, on a topic of their own; `clock` gives Unix seconds."""

    def __init__(self, sink: Sink, topic: str, clock: Callable[[], float]) -> None:
        self._sink = sink
        self._topic = topic
        self._clock = clock
        self._waiting: list[tuple[Outgoing, Any]] = []  # with its future, or None before sending
        self.failed = 0  # letters that the broker will not take: too large

    def add(self, bad: Sequence["BadRecord"], batches: Sequence[RecordBatch]) -> None:
        """Start to produce a letter for each bad record of a poll; `flush` acknowledges them."""
        now_ms = str(int(self._clock() * 1000)).encode()
        for record in bad:
            self._waiting.append((letter(self._topic, record, batches, now_ms), None))
        self._send()

    def flush(self, timeout_s: float = REQUEST_S) -> None:
        """Return when the broker has every letter; raises Unavailable, and keeps the others."""
        self._send()
        if not self._waiting:
            return
        self._sink.flush(timeout_s)
        kept: list[tuple[Outgoing, Any]] = []
        for record, future in self._waiting:
            if future is None or not future.is_done:
                kept.append((record, future))
            elif future.failed():
                if isinstance(future.exception, errors.MessageSizeTooLargeError):
                    self._give_up(record, future.exception)
                else:
                    kept.append((record, None))
        self._waiting = kept
        if kept:
            raise Unavailable(f"{len(kept)} dead letters are not acknowledged")

    def _send(self) -> None:
        for at, (record, future) in enumerate(self._waiting):
            if future is None:
                try:
                    self._waiting[at] = (record, self._sink.send(record))
                except Unavailable as error:
                    log.warning("dead letters wait: %s", error)
                    return
                except CounterflowError as error:
                    if not isinstance(error.__cause__, errors.MessageSizeTooLargeError):
                        raise
                    self._give_up(record, error.__cause__)
                    self._waiting[at] = (record, _Gone)

    def _give_up(self, record: Outgoing, error: BaseException) -> None:
        self.failed += 1
        log.error("a dead letter of %d bytes is lost: %s", len(record.value or b""), error)


class _Gone:
    """Stands for the future of a letter that was given up."""

    is_done = True

    @staticmethod
    def failed() -> bool:
        return False


def letter(
    topic: str, record: "BadRecord", batches: Sequence[RecordBatch], now_ms: bytes
) -> Outgoing:
    """Return the dead letter of a record: as it came, and why and whence in `dlq.*` headers."""
    batch = batches[record.batch]
    why = {
        "dlq.reason": record.reason.encode(),
        "dlq.detail": record.detail.encode(errors="replace"),
        "dlq.stage": record.stage.encode(),
        "dlq.topic": batch.topic.encode(),
        "dlq.partition": str(batch.partition).encode(),
        "dlq.offset": str(record.offset).encode(),
        "dlq.failed_at_ms": now_ms,
    }
    return Outgoing(
        topic=topic,
        value=record.value,
        key=record.key,
        headers=(*record.headers, *why.items()),
        timestamp_ms=record.timestamp_ms if record.timestamp_ms >= 0 else None,
    )
