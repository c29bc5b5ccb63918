"""Producing records, each acknowledged by all in-sync replicas or reported as unacknowledged."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import KafkaProducer, errors
from kafka.codec import has_lz4
from kafka.serializer import Serializer

from consumers.kafka.connection import REQUEST_S, broker_errors, connect, describe, lasting
from stream.errors import CounterflowError, Unavailable

log = logging.getLogger(__name__)

LARGEST_REQUEST = 4 * 1024 * 1024  # a record of the default maximum, 1 MiB, fits easily


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One record to produce.

    Without a timestamp the client's clock is used; without a key, any partition.
    """

    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    timestamp_ms: int | None = None
    partition: int | None = None


class Unacknowledged(Unavailable):
    """The broker acknowledged only the records whose indices are in `acknowledged`."""

    def __init__(self, message: str, acknowledged: Sequence[int], remedy: str = "") -> None:
        super().__init__(message, remedy=remedy or "is the broker up? Send the other records again")
        self.acknowledged = tuple(acknowledged)


class _Headers(list[tuple[str, bytes | None]]):
    """Headers that are false, so the client skips its size estimate, which fails on nulls."""

    def __bool__(self) -> bool:
        return False


class _AsItCame(Serializer):  # type: ignore[misc]
    """Produces records with null header values, or with both key and value null.

    Kafka allows such records, but the client rejects them. Its checks run before the serializer, so
    the serializer fills in the real headers and value.
    """

    def serialize(self, topic: str, headers: Any, data: Any) -> Any:
        if not isinstance(data, Outgoing):
            return data
        headers.extend(data.headers)
        return data.value


class Sink:
    """Produces records; idempotent, and acknowledged by all in-sync replicas.

    Parameters
    ----------
    client : mapping, optional
        Further options of the producer: TLS, SASL and others.
    linger_ms : int
        How long the producer waits to fill a batch.
    batch_bytes : int
        Size of a full batch.
    """

    def __init__(
        self,
        *,
        bootstrap_servers: str,
        client: Mapping[str, Any] | None = None,
        linger_ms: int = 0,
        batch_bytes: int = 256 * 1024,
    ) -> None:
        chosen = {
            "linger_ms": linger_ms,
            "request_timeout_ms": int(REQUEST_S * 1000),
            **(client or {}),
        }
        # the client requires delivery_timeout_ms >= request_timeout_ms + linger_ms
        least_ms = chosen["request_timeout_ms"] + chosen["linger_ms"]
        self._bootstrap_servers = bootstrap_servers
        self._options = {
            "acks": "all",
            "value_serializer": _AsItCame(),
            "enable_idempotence": True,
            "compression_type": "lz4" if has_lz4() else None,
            "batch_size": batch_bytes,
            "max_request_size": LARGEST_REQUEST,
            "allow_auto_create_topics": False,
            "max_block_ms": int(REQUEST_S * 1000),
            "delivery_timeout_ms": max(int(3 * REQUEST_S * 1000), least_ms),
            "bootstrap_timeout_ms": int(REQUEST_S * 1000),
            "reconnect_backoff_max_ms": 2_000,
            "metrics_enabled": False,
            **chosen,
        }
        self._producer = self._connected()

    def _connected(self) -> Any:
        return connect(KafkaProducer, self._bootstrap_servers, self._options)

    def renew(self) -> None:
        """Replace a failed producer by a new one; records waiting in the old one are lost."""
        old, self._producer = self._producer, self._connected()
        old._sender.force_close()  # noqa: SLF001 - close() alone would wait for its records
        old.close(timeout=1)

    def send(self, record: Outgoing) -> Any:
        """Hand the record to the client and return its future; it is not acknowledged yet."""
        plain = all(content is not None for _, content in record.headers)
        plain = plain and not (record.key is None and record.value is None)
        with broker_errors(f"producing to {record.topic}"):
            return self._producer.send(
                record.topic,
                value=record.value if plain else record,
                key=record.key,
                headers=list(record.headers) if plain else _Headers(),
                partition=record.partition,
                timestamp_ms=record.timestamp_ms,
            )

    def flush(self, timeout_s: float = REQUEST_S) -> None:
        """Wait until every record is acknowledged or failed; raise Unavailable on a timeout."""
        with broker_errors("waiting for acknowledgements"):
            self._producer.flush(timeout=timeout_s)

    def produce(self, records: Sequence[Outgoing], timeout_s: float = REQUEST_S) -> None:
        """Produce all records and wait until all are acknowledged, else raise Unacknowledged."""
        futures: list[Any] = []
        said = remedy = ""
        try:
            for record in records:
                futures.append(self.send(record))
        except CounterflowError as error:
            said, remedy = error.message, error.remedy
        try:
            self.flush(timeout_s)  # even after a failure: the records before it are in flight
        except CounterflowError as error:
            said = said or error.message
        done = [at for at, future in enumerate(futures) if future.succeeded()]
        if len(done) < len(records):
            failed = [future.exception for future in futures if future.failed()]
            if failed and not said:
                said, remedy = describe(failed[0]), lasting(failed[0])
            said = f"{len(done)} of {len(records)} acknowledged: {said or 'no answer in time'}"
            raise Unacknowledged(said, done, remedy)

    def close(self, timeout_s: float = REQUEST_S) -> None:
        """Send waiting records and close; records unacknowledged by then are dropped and logged."""
        try:
            self._producer.close(timeout=timeout_s)
        except errors.KafkaTimeoutError as error:
            log.warning("unacknowledged records are dropped: %s", error)
            self._producer._sender.force_close()  # noqa: SLF001 - close() stopped halfway
            self._producer.close(timeout=1)

    def __enter__(self) -> "Sink":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
