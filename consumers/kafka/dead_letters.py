"""Bad records on a topic of their own: as they came, and why and whence in headers."""

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

OURS = "dlq."
TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
CUTS = ("", "value", "value,key,headers")  # what a letter lost that did not fit into its topic


@dataclass(slots=True)
class _Waiting:
    """A letter that is not acknowledged yet, how far it was cut, and its future once sent."""

    record: Outgoing
    cut: int = 0
    future: Any = None


class DeadLetters:
    """Keeps bad records, as they came, on a topic of their own; `clock` gives Unix seconds.

    None is given up. One that is larger than the topic takes is written without its value, and if
    need be without its key and headers; `dlq.truncated` says what is missing, and the `dlq.*`
    headers where the whole record stands.
    """

    def __init__(self, sink: Sink, topic: str, clock: Callable[[], float]) -> None:
        self._sink = sink
        self._topic = topic
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self.failed = 0  # times that a letter was not acknowledged; each is tried again

    def add(self, bad: Sequence["BadRecord"], batches: Sequence[RecordBatch]) -> None:
        """Start to produce a letter for each bad record of a poll; `flush` acknowledges them."""
        now_ms = str(int(self._clock() * 1000)).encode()
        for record in bad:
            self._waiting.append(_Waiting(letter(self._topic, record, batches, now_ms)))
        try:
            self._send(len(self._waiting))
        except Unavailable as error:
            log.warning("dead letters wait: %s", error)

    def flush(self, timeout_s: float = REQUEST_S) -> None:
        """Return when the broker has every letter; raises Unavailable, and keeps the others."""
        alone = False
        while self._waiting:
            if alone:  # the largest first: where it fits, the others will
                self._waiting.sort(key=_size, reverse=True)
            sent = self._send(1 if alone else len(self._waiting))
            self._sink.flush(timeout_s)
            error = self._settle(sent)
            if error is None:
                alone = False
                continue
            self._sink.renew()  # one refusal, and an idempotent client refuses all that it holds
            if isinstance(error, TOO_LARGE) and (len(sent) > 1 or _cut(sent[0])):
                alone = True
                continue
            raise Unavailable(
                f"{len(self._waiting)} dead letters are not acknowledged: {describe(error)}",
                remedy=lasting(error) or "is the broker up?",
            )

    def _settle(self, sent: list[_Waiting]) -> Exception | None:
        """Only what is not acknowledged waits; return why."""
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
        """Return the first letters, which are with the client; Unavailable where it takes none."""
        for waiting in self._waiting[:most]:
            while waiting.future is None:
                try:
                    waiting.future = self._sink.send(waiting.record)
                except CounterflowError as error:
                    self.failed += 1
                    if isinstance(error.__cause__, TOO_LARGE) and _cut(waiting):
                        continue
                    raise Unavailable(error.message, remedy=error.remedy) from error
        return self._waiting[:most]


def _size(waiting: _Waiting) -> int:
    record = waiting.record
    parts = [record.key, record.value, *(content for _, content in record.headers)]
    return sum(len(part or b"") for part in parts)


def _cut(waiting: _Waiting) -> bool:
    """The letter is smaller after the call; returns whether there was something to leave out."""
    if waiting.cut + 1 == len(CUTS):
        return False
    waiting.cut += 1
    told, record = CUTS[waiting.cut], waiting.record
    ours = [(name, said) for name, said in record.headers if name.startswith(OURS)]
    ours = [*(h for h in ours if h[0] != "dlq.truncated"), ("dlq.truncated", told.encode())]
    log.error("a dead letter is too large for %s and goes without its %s", record.topic, told)
    if told == "value":
        theirs = [header for header in record.headers if not header[0].startswith(OURS)]
        waiting.record = replace(record, value=None, headers=(*theirs, *ours))
    else:
        waiting.record = replace(record, value=None, key=None, headers=tuple(ours))
    return True


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
