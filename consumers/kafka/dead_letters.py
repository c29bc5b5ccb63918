"""The dead-letter topic: bad records unchanged, with the reason and the origin in headers."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kafka import errors

from consumers.kafka.connection import REQUEST_S, describe, lasting
from consumers.kafka.sink import Outgoing, Sink
from stream.errors import CounterflowError, Unavailable
from stream.records import RecordBatch

if TYPE_CHECKING:
    from stream.events import BadRecord

log = logging.getLogger(__name__)

OURS = "dlq."  # prefix of the headers that we add
TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
TRUNCATIONS = (
    "",
    "value",
    "value,key,headers",
)  # parts left out, step by step, of a letter too large


@dataclass(slots=True)
class _Waiting:
    """An unacknowledged letter: its record, the number of cuts, and its future once sent."""

    record: Outgoing
    truncation: int = 0
    future: Any = None


class DeadLetters:
    """Writes bad records, unchanged, to the dead-letter topic.

    No letter is dropped. One that is larger than the topic accepts is written without its value
    and, if necessary, without its key and headers; `dlq.truncated` names the missing parts, and the
    other `dlq.*` headers say where the whole record is.

    Parameters
    ----------
    sink : Sink
        Producer of the letters.
    topic : str
        The dead-letter topic.
    clock : callable
        Unix time in seconds.
    """

    def __init__(self, sink: Sink, topic: str, clock: Callable[[], float]) -> None:
        self._sink = sink
        self._topic = topic
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self.failed = 0  # failed deliveries; each is retried

    def add(self, bad: Sequence["BadRecord"], batches: Sequence[RecordBatch]) -> None:
        """Start sending a letter for each bad record of a poll; `flush` awaits acknowledgement."""
        now_ms = str(int(self._clock() * 1000)).encode()
        for record in bad:
            self._waiting.append(_Waiting(letter(self._topic, record, batches, now_ms)))
        try:
            self._send(len(self._waiting))
        except Unavailable as error:
            log.warning("dead letters have to wait: %s", error)

    def flush(self, timeout_s: float = REQUEST_S) -> None:
        """Wait until every letter is acknowledged, else raise Unavailable and keep the others."""
        alone = False
        while self._waiting:
            if alone:  # the largest first: if it fits, the others do
                self._waiting.sort(key=_size, reverse=True)
            sent = self._send(1 if alone else len(self._waiting))
            self._sink.flush(timeout_s)
            error = self._await_acknowledgements(sent)
            if error is None:
                alone = False
                continue
            self._sink.renew()  # after one rejection an idempotent producer fails all its records
            if isinstance(error, TOO_LARGE) and (len(sent) > 1 or _truncate(sent[0])):
                alone = True
                continue
            raise Unavailable(
                f"{len(self._waiting)} dead letters are not acknowledged: {describe(error)}",
                remedy=lasting(error) or "is the broker up?",
            )

    def _await_acknowledgements(self, sent: list[_Waiting]) -> Exception | None:
        """Remove acknowledged letters; return the error of one that was refused, if any."""
        refused = [waiting for waiting in sent if not waiting.future.succeeded()]
        done = {id(waiting) for waiting in sent} - {id(waiting) for waiting in refused}
        self._waiting = [waiting for waiting in self._waiting if id(waiting) not in done]
        self.failed += len(refused)
        why: Exception | None = None
        for waiting in refused:
            why = waiting.future.exception or errors.KafkaTimeoutError("no answer in time")
            waiting.future = None
        return why

    def _send(self, most: int) -> list[_Waiting]:
        """Hand the first `most` letters to the client and return them, else raise Unavailable."""
        for waiting in self._waiting[:most]:
            while waiting.future is None:
                try:
                    waiting.future = self._sink.send(waiting.record)
                except CounterflowError as error:
                    self.failed += 1
                    if isinstance(error.__cause__, TOO_LARGE) and _truncate(waiting):
                        continue
                    raise Unavailable(error.message, remedy=error.remedy) from error
        return self._waiting[:most]


def _size(waiting: _Waiting) -> int:
    """Return the bytes of a letter's key, value and headers."""
    record = waiting.record
    parts = [record.key, record.value, *(content for _, content in record.headers)]
    return sum(len(part or b"") for part in parts)


def _truncate(waiting: _Waiting) -> bool:
    """Leave the next part out of a letter; return False if nothing more can be left out."""
    if waiting.truncation + 1 == len(TRUNCATIONS):
        return False
    waiting.truncation += 1
    told, record = TRUNCATIONS[waiting.truncation], waiting.record
    ours = [(name, said) for name, said in record.headers if name.startswith(OURS)]
    ours = [*(h for h in ours if h[0] != "dlq.truncated"), ("dlq.truncated", told.encode())]
    log.error("a dead letter is too large for %s and is sent without its %s", record.topic, told)
    if told == "value":
        theirs = [header for header in record.headers if not header[0].startswith(OURS)]
        waiting.record = replace(record, value=None, headers=(*theirs, *ours))
    else:
        waiting.record = replace(record, value=None, key=None, headers=tuple(ours))
    return True


def letter(
    topic: str, record: "BadRecord", batches: Sequence[RecordBatch], now_ms: bytes
) -> Outgoing:
    """Return the dead letter: the record unchanged, reason and origin in `dlq.*` headers."""
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
