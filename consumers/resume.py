"""Going on from a snapshot: what it says, and what it must fit, before anything is learned.

A snapshot belongs to one stream and to one share of it: taken up elsewhere, events would be learned
twice or not at all, and nobody would see it. So what does not fit stops the trainer.
"""

from typing import Any

import msgspec

from consumers.checkpoint import Positions, unpack_positions
from model_store.snapshots import ELSE_AFRESH, Whole
from stream.engine import Engine
from stream.errors import Inconsistent


class Meta(msgspec.Struct, frozen=True):
    """What a snapshot's manifest says beside the state: where in which stream it stands."""

    identity: dict[str, str]
    positions: list[tuple[str, int, int]]
    epoch: int
    learned: int

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
