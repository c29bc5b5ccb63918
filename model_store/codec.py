"""One packed row of the vector cache: the bytes that Redis holds, and nothing else.

A row is a header of 28 bytes (big-endian), then the biases (float32) and the vector (float16), both
little-endian. Epoch and sequence stand first, so that a script compares them without knowing the
rest. docs/redis.md draws the layout; tests/golden/row-v3.json holds golden bytes.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

import numpy as np
import numpy.typing as npt

from stream.errors import Inconsistent

Kind = Literal["user", "item"]

LAYOUT: Final = 3  # rises with every change of the bytes below; also the generation of the keys
KINDS: Final[tuple[Kind, ...]] = ("user", "item")  # code 1 and 2 in the row
HEADER: Final = struct.Struct(">IQBBBxHHII")
LARGEST: Final = 65504.0  # the largest finite float16

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was written: (epoch, sequence) orders the writers of one key."""

    kind: Kind
    epoch: int
    sequence: int
    events: int
    exposures: int
    bias: FloatArray  # (O,)
    vector: FloatArray  # (D,), widened from float16


@dataclass(frozen=True, slots=True)
class Columns:
    """Many rows side by side; where `present` is false the other columns are zero."""

    present: npt.NDArray[np.bool_]  # (n,)
    epoch: npt.NDArray[np.uint32]  # (n,)
    sequence: npt.NDArray[np.uint64]  # (n,)
    events: npt.NDArray[np.uint32]  # (n,)
    exposures: npt.NDArray[np.uint32]  # (n,)
    bias: FloatArray  # (n, O)
    vector: FloatArray  # (n, D)


def layout(outcomes: int, factors: int) -> np.dtype[np.void]:
    """The structured dtype of a row with so many outcomes and factors; no padding."""
    return np.dtype(
        [
            ("epoch", ">u4"),
            ("sequence", ">u8"),
            ("layout", "u1"),
            ("kind", "u1"),
            ("outcomes", "u1"),
            ("reserved", "u1"),
            ("factors", ">u2"),
            ("reserved2", ">u2"),
            ("events", ">u4"),
            ("exposures", ">u4"),
            ("bias", "<f4", (outcomes,)),
            ("vector", "<f2", (factors,)),
        ]
    )


def pack(
    kind: Kind,
    epoch: int,
    sequence: int,
    events: npt.ArrayLike,  # (n,)
    exposures: npt.ArrayLike,  # (n,)
    bias: npt.NDArray[np.floating],  # (n, O)
    vector: npt.NDArray[np.floating],  # (n, D)
) -> list[bytes]:
    """Each row is one bytes object of equal length, ready to be written.

    Vector components beyond float16 are cut to its largest; counts beyond 32 bits likewise. A value
    that is not finite raises Inconsistent: a diverged model must not reach the servers.
    """
    if not (0 <= epoch < 2**32 and 0 <= sequence < 2**64):
        raise Inconsistent(f"epoch {epoch} or sequence {sequence} is out of range")
    if not (np.isfinite(bias).all() and np.isfinite(vector).all()):
        raise Inconsistent(
            f"a {kind} row to be written is not finite: the model has diverged",
            "start from an older snapshot with a lower learning rate",
        )
    count, outcomes = bias.shape
    factors = vector.shape[1]
    if outcomes > 255 or factors > 65535 or vector.shape[0] != count:
        raise Inconsistent(f"bias {bias.shape} and vector {vector.shape} do not make a row")
    rows = np.zeros(count, layout(outcomes, factors))
    rows["epoch"] = epoch
    rows["sequence"] = sequence
    rows["layout"] = LAYOUT
    rows["kind"] = KINDS.index(kind) + 1
    rows["outcomes"] = outcomes
    rows["factors"] = factors
    rows["events"] = np.minimum(np.asarray(events, np.int64), 2**32 - 1)
    rows["exposures"] = np.minimum(np.asarray(exposures, np.int64), 2**32 - 1)
    rows["bias"] = bias
    rows["vector"] = np.clip(vector, -LARGEST, LARGEST)
    data, width = rows.tobytes(), rows.dtype.itemsize
    return [data[at : at + width] for at in range(0, len(data), width)]


def unpack(payload: bytes) -> Row:
    """The row is decoded and its length proved; other bytes raise Inconsistent."""
    if len(payload) < HEADER.size:
        raise Inconsistent(f"a row of {len(payload)} bytes is cut short", _REMEDY)
    epoch, sequence, version, kind, outcomes, factors, _, events, exposures = HEADER.unpack_from(
        payload
    )
    if version != LAYOUT or not 1 <= kind <= len(KINDS):
        raise Inconsistent(f"a row of layout {version}, kind {kind} is not ours", _REMEDY)
    if len(payload) != HEADER.size + 4 * outcomes + 2 * factors:
        raise Inconsistent(
            f"a row of {len(payload)} bytes does not hold {outcomes} outcomes, {factors} factors",
            _REMEDY,
        )
    bias = np.frombuffer(payload, "<f4", outcomes, HEADER.size)
    vector = np.frombuffer(payload, "<f2", factors, HEADER.size + 4 * outcomes)
    return Row(
        kind=KINDS[kind - 1],
        epoch=epoch,
        sequence=sequence,
        events=events,
        exposures=exposures,
        bias=bias.astype(np.float32),
        vector=vector.astype(np.float32),
    )


def unpack_many(payloads: Sequence[bytes | None], outcomes: int, factors: int) -> Columns:
    """The rows stand as columns; a missing row, or one of another layout or shape, is not present.

    Shapes change when a model is configured anew, so such a row counts as absent until the trainer
    has rewritten it.
    """
    dtype = layout(outcomes, factors)
    width = dtype.itemsize
    blank = bytes(width)
    data = b"".join(
        [p if p is not None and len(p) == width else blank for p in payloads],
    )
    rows = np.frombuffer(data, dtype)
    present = (
        (rows["layout"] == LAYOUT) & (rows["outcomes"] == outcomes) & (rows["factors"] == factors)
    )
    kept = np.where(present, rows, np.zeros(1, dtype)) if not present.all() else rows
    return Columns(
        present=present,
        epoch=kept["epoch"].astype(np.uint32),
        sequence=kept["sequence"].astype(np.uint64),
        events=kept["events"].astype(np.uint32),
        exposures=kept["exposures"].astype(np.uint32),
        bias=kept["bias"].astype(np.float32),
        vector=kept["vector"].astype(np.float32),
    )


def pack_ids(ids: Sequence[bytes]) -> bytes:
    """The ids stand one after another, each behind its length in two bytes, big-endian."""
    return b"".join([len(i).to_bytes(2, "big") + i for i in ids])


def unpack_ids(data: bytes) -> list[bytes]:
    """What `pack_ids` was given; a cut list raises Inconsistent."""
    ids, at, end = [], 0, len(data)
    while at < end:
        stop = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if at + 2 > end or stop > end:
            raise Inconsistent("a list of ids in the change log is cut short")
        ids.append(data[at + 2 : stop])
        at = stop
    return ids


def order(payload: bytes) -> tuple[int, int]:
    """(epoch, sequence) of a row, without decoding the rest."""
    return cast("tuple[int, int]", struct.unpack_from(">IQ", payload))


_REMEDY: Final = "another version wrote it: let the old generation lapse, or delete its keys"
