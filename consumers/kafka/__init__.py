"""Kafka clients: a source of record batches, a sink, dead letters, and the mapping of errors.

The source assigns itself partitions: rank r of w takes the partitions p with p % w == r, and every
rank takes all partitions of the item topic. There is no consumer group to rebalance. The trainer
resumes from the offsets in its snapshot; offsets committed to Kafka are for lag tools only.
"""

from consumers.kafka.connection import patient
from consumers.kafka.dead_letters import DeadLetters
from consumers.kafka.ends import Ends
from consumers.kafka.sink import Outgoing, Sink, Unacknowledged
from consumers.kafka.source import KafkaSource

__all__ = [
    "DeadLetters", "Ends", "KafkaSource", "Outgoing", "Sink", "Unacknowledged", "patient",
]  # fmt: skip
