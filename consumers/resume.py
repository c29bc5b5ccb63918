"""Checks before resuming from a snapshot: its manifest must fit this trainer's share of the stream.

A snapshot belongs to one stream and to one share of its partitions. Resumed elsewhere, events would
silently be learned twice or never, so the trainer stops where anything does not fit.
"""

from typing import Any

import msgspec

from consumers.checkpoint import Positions, unpack_positions
from consumers.kafka import KafkaSource
from model_store.snapshots import ELSE_AFRESH, Whole
from stream.engine import Engine
from stream.errors import Inconsistent

A_FOLDER = "a snapshots.dir and a redis.prefix of its own"


class Meta(msgspec.Struct, frozen=True):
    """The trainer's part of a manifest: the position in the stream, and counters."""

    identity: dict[str, str]
    positions: list[tuple[str, int, int]]
    epoch: int
    learned: int
    bad_events: int = 0
    duplicates: int = 0
    rank: int | None = None  # rank and world are missing in snapshots of earlier versions
    world: int | None = None

    def offsets(self) -> Positions:
        """Return the next offset of each partition."""
        return unpack_positions(self.positions)


def meta(found: Whole) -> Meta:
    """Return the snapshot's position in the stream; raise Inconsistent if it is incomplete."""
    try:
        return msgspec.convert(found.meta, Meta)
    except msgspec.ValidationError as error:
        raise Inconsistent(
            f"the manifest of snapshot {found.path} lacks its position in the stream: {error}",
            f"move it away to go on from the one before; {ELSE_AFRESH}",
        ) from error


def verify(said: Meta, source: KafkaSource) -> None:
    """Raise Inconsistent unless the snapshot belongs to this source's stream and share."""
    source.verify(said.identity)
    if strange := {topic for topic, _, _ in said.positions} - source.topics.keys():
        raise Inconsistent(
            f"the snapshot belongs to other topics ({', '.join(sorted(strange))})",
            f"go back to its kafka.topic_prefix, or give this stream {A_FOLDER}; {ELSE_AFRESH}",
        )
    if said.rank is None or said.world is None:
        same, of = _may_be(said, source), "another share of the partitions"
    else:
        same = (said.rank, said.world) == (source.rank, source.world)
        of = f"trainer.rank {said.rank} of trainer.world {said.world}"
    if not same:
        raise Inconsistent(
            f"the snapshot belongs to {of}, but this trainer is rank {source.rank} of"
            f" {source.world}: some events would be learned twice, others never",
            f"go back to its trainer.rank and trainer.world, or give this share {A_FOLDER};"
            f" {ELSE_AFRESH}",
        )


def _may_be(said: Meta, source: KafkaSource) -> bool:
    """Return whether a snapshot without rank and world has just this share's partitions."""
    own = {number for topic, number, _ in said.positions if source.topics[topic] != "item"}
    share = range(source.rank, max(own, default=-1) + 1, source.world)
    return own == set(share)


def load(engine: Engine, found: Whole) -> None:
    """Load the snapshot's state into the engine; raise Inconsistent if it does not fit."""
    try:
        engine.load(found.state)
    except Inconsistent as error:
        remedy = f"{error.remedy}; {ELSE_AFRESH}" if error.remedy else ELSE_AFRESH
        raise Inconsistent(f"the snapshot {found.path}: {error.message}", remedy) from error
    except (LookupError, ValueError, TypeError, OverflowError) as error:
        raise Inconsistent(
            f"the state in snapshot {found.path} has another version or is incomplete:"
            f" {_said(error)}",
            "start the version that wrote it, or move it away to go on from the one before;"
            f" {ELSE_AFRESH}",
        ) from error


def _said(error: Any) -> str:
    """Return the error's text; of a KeyError, which array is missing."""
    return f"it has no {error}" if isinstance(error, KeyError) else f"{error}"
