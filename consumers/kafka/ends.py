"""The current ends of partitions, asked for on a connection of their own."""

import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from consumers.kafka.connection import broker_errors, connect
from stream.errors import Unavailable

PATIENCE_S = 0.6  # timeout of one request; then check whether any broker accepts connections
LONGEST_S = 3.0  # total timeout for a broker that accepts connections but does not answer
LISTEN_S = 0.2  # timeout of a connection attempt


class Ends:
    """Asks for the ends of partitions; connects on first use; not thread-safe.

    Under `read_committed` an end is the last stable offset.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        client: Mapping[str, Any] | None = None,
        isolation_level: str = "read_uncommitted",
    ) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._options = {
            "isolation_level": isolation_level,
            "enable_auto_commit": False,
            "allow_auto_create_topics": False,
            "bootstrap_timeout_ms": int(LONGEST_S * 1000),
            "metadata_max_age_ms": 30_000,
            "reconnect_backoff_max_ms": 500,
            "metrics_enabled": False,
            **(client or {}),
        }
        self._consumer: Any = None

    def __call__(self, partitions: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """Return the end of each partition.

        Raises Unavailable at once if no broker accepts connections, else after 3 s.
        """
        if self._consumer is None:
            self._consumer = connect(KafkaConsumer, self._bootstrap_servers, self._options)
        tps = [TopicPartition(*partition) for partition in partitions]
        until = time.monotonic() + LONGEST_S
        while True:
            try:
                with broker_errors("asking for the ends"):
                    told = self._consumer.end_offsets(tps, timeout_ms=int(PATIENCE_S * 1000))
                return {(tp.topic, tp.partition): offset for tp, offset in told.items()}
            except KeyError:  # the client does not know a new partition yet: update its metadata
                self._consumer._cluster.request_update()  # noqa: SLF001
                known = [tp for tp in tps if self._knows(tp)]
                if len(known) == len(tps) or time.monotonic() > until:
                    raise Unavailable("the broker does not know all partitions") from None
                tps = known
            except Unavailable as error:
                if time.monotonic() > until:
                    raise
                if not self._listens():
                    raise Unavailable(f"no broker listens: {error.message}") from error

    def close(self) -> None:
        """Close the connection."""
        if self._consumer is not None:
            self._consumer.close(autocommit=False, timeout_ms=500)

    def _knows(self, tp: TopicPartition) -> bool:
        numbers = self._consumer._cluster.partitions_for_topic(tp.topic)  # noqa: SLF001
        return tp.partition in (numbers or ())

    def _listens(self) -> bool:
        """Return whether any known broker accepts connections."""
        known = [(broker.host, broker.port) for broker in self._consumer._cluster.brokers()]  # noqa: SLF001
        for address in known:
            try:
                socket.create_connection(address, LISTEN_S).close()
            except OSError:
                continue
            return True
        return not known
