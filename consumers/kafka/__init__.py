"""Kafka at the border: a source of record batches, a sink, dead letters; its errors mapped once.

The source owns its partitions by `assign`: rank r of w takes the partitions p with p % w == r, and
every rank all partitions of the items. There is no group membership to lose; the offsets that count
are the snapshot's, and those committed to Kafka are for lag tools only.
"""

from consumers.kafka.connection import patient
from consumers.kafka.dead_letters import DeadLetters
from consumers.kafka.ends import Ends
from consumers.kafka.sink import Outgoing, Sink, Unacknowledged
from consumers.kafka.source import KafkaSource

__all__ = [
    "DeadLetters", "Ends", "KafkaSource", "Outgoing", "Sink", "Unacknowledged", "patient",
]  # fmt: skip
