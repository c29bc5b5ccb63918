"""The binary format of one row in the vector cache.

A row is a header of 32 bytes (big-endian), then the biases (float32) and the vector (float16), both
little-endian. Its first twelve bytes are the stamp, (epoch, sequence) of the writer, so that a
script can compare writers without decoding the rest. A stamp with nothing behind it is a tombstone.
docs/redis.md draws the layout; tests/golden/row-v4.json holds golden bytes.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from stream.errors import Inconsistent, Unservable

RowKind = Literal["user", "item", "feature"]

LAYOUT: Final = 4  # increases with every change of the bytes below; also the keys' generation
KINDS: Final[tuple[RowKind, ...]] = ("user", "item", "feature")  # codes 1, 2, 3 in the row
HEADER: Final = struct.Struct(">IQBBBxHHIII")
STAMP: Final = struct.Struct(">IQ")
LARGEST: Final = 65504.0  # the largest finite float16

FloatArray = npt.NDArray[np.float32]


class Shape(NamedTuple):
    """The number of biases and the length of the vector of a row."""

    biases: int
    length: int


Shapes = Mapping[RowKind, Shape]


@dataclass(frozen=True, slots=True)
class Row:
    """One decoded row; (epoch, sequence) orders the writers of a key."""

    kind: RowKind
    epoch: int
    sequence: int
    events: int
    exposures: int
    controls: int
    bias: FloatArray  # (B,)
    vector: FloatArray  # (L,), widened from float16


@dataclass(frozen=True, slots=True)
class RowColumns:
    """Many decoded rows as columns; where `present` is false the other columns are zero."""

    present: npt.NDArray[np.bool_]  # (n,)
    epoch: npt.NDArray[np.uint32]  # (n,)
    sequence: npt.NDArray[np.uint64]  # (n,)
    events: npt.NDArray[np.uint32]  # (n,)
    exposures: npt.NDArray[np.uint32]  # (n,)
    controls: npt.NDArray[np.uint32]  # (n,)
    bias: FloatArray  # (n, B)
    vector: FloatArray  # (n, L)


def layout(shape: Shape) -> np.dtype[np.void]:
    """Return the structured dtype of a row of this shape, without padding."""
    return np.dtype(
        [
            ("epoch", ">u4"),
            ("sequence", ">u8"),
            ("layout", "u1"),
            ("kind", "u1"),
            ("biases", "u1"),
            ("reserved", "u1"),
            ("length", ">u2"),
            ("reserved2", ">u2"),
            ("events", ">u4"),
            ("exposures", ">u4"),
            ("controls", ">u4"),
            ("bias", "<f4", (shape[0],)),
            ("vector", "<f2", (shape[1],)),
        ]
    )


def stamp(epoch: int, sequence: int) -> bytes:
    """Return the first bytes of every value of this writer; alone, they are a tombstone."""
    if not (0 <= epoch < 2**32 and 0 <= sequence < 2**64):
        raise Inconsistent(f"epoch {epoch} or sequence {sequence} is out of range")
    return STAMP.pack(epoch, sequence)


def order(value: bytes) -> tuple[int, int]:
    """Return (epoch, sequence) of a stamped value without decoding the rest."""
    epoch, sequence = STAMP.unpack_from(value)
    return epoch, sequence


def body(value: bytes | None) -> bytes | None:
    """Return the bytes behind the stamp; None for no value and for a tombstone."""
    return None if value is None or len(value) <= STAMP.size else value[STAMP.size :]


def pack(
    kind: RowKind,
    epoch: int,
    sequence: int,
    events: npt.ArrayLike,
    exposures: npt.ArrayLike,
    controls: npt.ArrayLike,
    bias: npt.NDArray[np.floating],
    vector: npt.NDArray[np.floating],
) -> list[bytes]:
    """Encode rows of one kind, all with the same stamp.

    Vector components beyond float16's range are clipped to it, and counts to 32 bits.

    Parameters
    ----------
    events, exposures, controls : array_like, shape (n,)
        Counts of each row.
    bias : array, shape (n, B) vector : array, shape (n, L)

    Returns
    -------
    list of bytes
        The rows, all of the same length.

    Raises
    ------
    Unservable
        If a value is not finite: a diverged model must not be served.
    Inconsistent
        If the arrays do not form rows, or epoch or sequence is out of range.
    """
    stamp(epoch, sequence)
    if not (np.isfinite(bias).all() and np.isfinite(vector).all()):
        raise Unservable(
            f"a {kind} row is not finite and cannot be written: the model has diverged",
            "start from an older snapshot with a lower learning rate",
        )
    shape = Shape(bias.shape[1], vector.shape[1])
    if shape.biases > 255 or shape.length > 65535 or len(vector) != len(bias):
        raise Inconsistent(f"bias {bias.shape} and vector {vector.shape} do not form a row")
    rows = np.zeros(len(bias), layout(shape))
    rows["epoch"] = epoch
    rows["sequence"] = sequence
    rows["layout"] = LAYOUT
    rows["kind"] = KINDS.index(kind) + 1
    rows["biases"], rows["length"] = shape
    for name, counts in (("events", events), ("exposures", exposures), ("controls", controls)):
        rows[name] = np.minimum(np.asarray(counts, np.int64), 2**32 - 1)
    rows["bias"] = bias
    rows["vector"] = np.clip(vector, -LARGEST, LARGEST)
    data, width = rows.tobytes(), rows.dtype.itemsize
    return [data[at : at + width] for at in range(0, len(data), width)]


def unpack(payload: bytes) -> Row:
    """Decode one row; raise Inconsistent for bytes that are not a row of this layout."""
    if len(payload) < HEADER.size:
        raise Inconsistent(f"a row of {len(payload)} bytes is shorter than its header", _REMEDY)
    epoch, sequence, version, kind, biases, length, _, events, exposures, controls = (
        HEADER.unpack_from(payload)
    )
    if version != LAYOUT or not 1 <= kind <= len(KINDS):
        raise Inconsistent(
            f"a row has layout {version} and kind {kind}, which this version cannot read", _REMEDY
        )
    if len(payload) != HEADER.size + 4 * biases + 2 * length:
        raise Inconsistent(
            f"a row of {len(payload)} bytes does not hold {biases} biases and a vector of {length}",
            _REMEDY,
        )
    bias = np.frombuffer(payload, "<f4", biases, HEADER.size)
    vector = np.frombuffer(payload, "<f2", length, HEADER.size + 4 * biases)
    return Row(
        kind=KINDS[kind - 1],
        epoch=epoch,
        sequence=sequence,
        events=events,
        exposures=exposures,
        controls=controls,
        bias=bias.astype(np.float32),
        vector=vector.astype(np.float32),
    )


def unpack_many(payloads: Sequence[bytes | None], shape: Shape) -> RowColumns:
    """Decode rows of one shape into columns.

    A missing row, a tombstone, and a row of another layout or shape are not present. Shapes change
    with the model's configuration; rows of the old shape count as absent until the trainer has
    rewritten them.
    """
    dtype = layout(shape)
    width = dtype.itemsize
    blank = bytes(width)
    data = b"".join(
        [p if p is not None and len(p) == width else blank for p in payloads],
    )
    rows = np.frombuffer(data, dtype)
    present = (
        (rows["layout"] == LAYOUT) & (rows["biases"] == shape[0]) & (rows["length"] == shape[1])
    )
    kept = np.where(present, rows, np.zeros(1, dtype)) if not present.all() else rows
    return RowColumns(
        present=present,
        epoch=kept["epoch"].astype(np.uint32),
        sequence=kept["sequence"].astype(np.uint64),
        events=kept["events"].astype(np.uint32),
        exposures=kept["exposures"].astype(np.uint32),
        controls=kept["controls"].astype(np.uint32),
        bias=kept["bias"].astype(np.float32),
        vector=kept["vector"].astype(np.float32),
    )


def shapes(model: Mapping[str, Any]) -> dict[RowKind, Shape]:
    """Return each kind's row shape from the published model; raise Inconsistent if it lacks one."""
    try:
        found = {kind: Shape(*map(int, model["rows"][kind])) for kind in KINDS}
    except (KeyError, TypeError, ValueError) as error:
        raise Inconsistent(
            "the model's description in Redis does not have this version's row shapes",
            "another version wrote it: start this version's trainer",
        ) from error
    return found


def pack_ids(ids: Sequence[bytes]) -> bytes:
    """Concatenate ids, each behind its length in two bytes, big-endian."""
    return b"".join([len(i).to_bytes(2, "big") + i for i in ids])


def unpack_ids(data: bytes) -> list[bytes]:
    """Return the ids that `pack_ids` concatenated; raise Inconsistent if the list is truncated."""
    ids, at, end = [], 0, len(data)
    while at < end:
        stop = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if at + 2 > end or stop > end:
            raise Inconsistent("a list of ids is truncated")
        ids.append(data[at + 2 : stop])
        at = stop
    return ids


_REMEDY: Final = "another version wrote it: wait until its keys expire, or delete them"
