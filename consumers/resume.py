"""Going on from a snapshot: what it says, and what it must fit, before anything is learned.

A snapshot belongs to one stream and to one share of it: taken up elsewhere, events would be learned
twice or not at all, and nobody would see it. So what does not fit stops the trainer.
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
    """What a snapshot's manifest says beside the state: where in which stream it stands."""

    identity: dict[str, str]
    positions: list[tuple[str, int, int]]
    epoch: int
    learned: int
    bad_events: int = 0
    duplicates: int = 0
    rank: int | None = None  # those saved before they were told have neither
    world: int | None = None

    def offsets(self) -> Positions:
        """Return the next offset of each partition."""
        return unpack_positions(self.positions)


def meta(found: Whole) -> Meta:
    """Return what the snapshot says of its place; Inconsistent where that is not complete."""
    try:
        return msgspec.convert(found.meta, Meta)
    except msgspec.ValidationError as error:
        raise Inconsistent(
            f"the snapshot {found.path} does not say where in the stream it stands: {error}",
            f"move it away to go on from the one before; {ELSE_AFRESH}",
        ) from error


def verify(said: Meta, source: KafkaSource) -> None:
    """Raise Inconsistent unless the snapshot is of this source's share of its stream."""
    source.verify(said.identity)
    if strange := {topic for topic, _, _ in said.positions} - source.topics.keys():
        raise Inconsistent(
            f"the snapshot is of other topics ({', '.join(sorted(strange))})",
            f"go back to its kafka.topic_prefix, or give this stream {A_FOLDER}; {ELSE_AFRESH}",
        )
    if said.rank is None or said.world is None:
        same, of = _may_be(said, source), "another share of the partitions"
    else:
        same = (said.rank, said.world) == (source.rank, source.world)
        of = f"trainer.rank {said.rank} of trainer.world {said.world}"
    if not same:
        raise Inconsistent(
            f"the snapshot is of {of}, and this is rank {source.rank} of {source.world}: some"
            " events would be learned twice, others never",
            f"go back to its trainer.rank and trainer.world, or give this share {A_FOLDER};"
            f" {ELSE_AFRESH}",
        )


def _may_be(said: Meta, source: KafkaSource) -> bool:
    """Tell whether the partitions alone, as far as they go, are those of this share."""
    own = {number for topic, number, _ in said.positions if source.topics[topic] != "item"}
    share = range(source.rank, max(own, default=-1) + 1, source.world)
    return own == set(share)


def load(engine: Engine, found: Whole) -> None:
    """The engine is the saved one after the call; Inconsistent, naming both, where it cannot be."""
    try:
        engine.load(found.state)
    except Inconsistent as error:
        remedy = f"{error.remedy}; {ELSE_AFRESH}" if error.remedy else ELSE_AFRESH
        raise Inconsistent(f"the snapshot {found.path}: {error.message}", remedy) from error
    except (LookupError, ValueError, TypeError, OverflowError) as error:
        raise Inconsistent(
            f"the state in the snapshot {found.path} is not one of this version: {_said(error)}",
            "start the version that wrote it, or move it away to go on from the one before;"
            f" {ELSE_AFRESH}",
        ) from error


def _said(error: Any) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else f"{error}"
