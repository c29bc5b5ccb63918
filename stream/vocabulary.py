"""Maps ids to rows: every id has one row, and no two ids share one.

It is an open-addressing hash table of rows, beside an arena with the bytes of the ids, which are
compared to resolve collisions. Rows are numbered by first appearance, so the same events give the
same rows.

Growth never copies everything at once. The arena, hashes and start positions are reserved at full
size. The table holds row + 1 (0: free) and is at most half full. While it grows from a quarter to a
half, each new id also places two rows into the next table of twice the size, which is therefore
complete when it is needed (Redis's dict spreads its rehash over calls in the same way).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.compiled import compiled
from stream.hashing import NO_KEY, hash_bytes
from stream.memory import reserve
from stream.schemas import ID_MAX_BYTES

_SEED = np.uint64(0x6A09E667F3BCC908)
_TURN = -3
_SMALLEST = 1_024  # slots of the first table


@compiled
def _slot(table, hashes, arena, starts, data, at, length, h):  # type: ignore[no-untyped-def]
    """Return the slot that holds the id, or the free slot where it belongs."""
    mask = len(table) - 1
    slot = np.int64(h & np.uint64(mask))
    while True:
        row = table[slot] - 1
        if row < 0:
            return slot
        start = starts[row]
        if hashes[row] == h and starts[row + 1] - start == length:
            same = True
            for i in range(length):
                if arena[start + i] != data[at + i]:
                    same = False
                    break
            if same:
                return slot
        slot = (slot + 1) & mask


@compiled
def _insert_rows(table, hashes, begin, stop):  # type: ignore[no-untyped-def]
    """Put the rows begin to stop - 1, none of which is in the table, into it."""
    mask = len(table) - 1
    for row in range(begin, stop):
        slot = np.int64(hashes[row] & np.uint64(mask))
        while table[slot] > 0:
            slot = (slot + 1) & mask
        table[slot] = row + 1


@compiled
def _inserted(table, size):  # type: ignore[no-untyped-def]
    """Return how many rows the next table holds when this one holds `size`."""
    return max(0, 2 * size - len(table) // 2)


@compiled
def _rows(  # type: ignore[no-untyped-def]
    table, following, hashes, arena, starts, size, limit, key, data, at, length, begin, out, known
):
    """Fill `out` and `known` from event `begin` on; return (next event, size, status).

    The status is 0 when done, or _TURN when the next table must take over first.
    """
    for n in range(begin, len(at)):
        if length[n] == 0:
            out[n] = -1
            known[n] = size
            continue
        h = hash_bytes(data, at[n], length[n], _SEED, key)
        slot = _slot(table, hashes, arena, starts, data, at[n], length[n], h)
        row = table[slot] - 1
        if row < 0:
            if size >= limit:
                out[n] = -1
                known[n] = size
                continue
            if 2 * size >= len(table):
                return n, size, _TURN
            row = size
            start = starts[row]
            for i in range(length[n]):
                arena[start + i] = data[at[n] + i]
            hashes[row] = h
            starts[row + 1] = start + length[n]
            table[slot] = row + 1
            size += 1
            if len(following) > 0:
                _insert_rows(following, hashes, _inserted(table, row), _inserted(table, size))
        out[n] = row
        known[n] = size
    return len(at), size, 0


@compiled
def _find(table, hashes, arena, starts, key, data, at, length):  # type: ignore[no-untyped-def]
    """Return the row of an id, -1 if it has none."""
    h = hash_bytes(data, at, length, _SEED, key)
    return table[_slot(table, hashes, arena, starts, data, at, length, h)] - 1


def _flat(size: int, dtype: type[np.generic]) -> NDArray[Any]:
    return reserve(size, 1, dtype).reshape(-1)


class Vocabulary:
    """The rows of the ids of one kind, at most `limit` of them; `key` (2,) keys the hash."""

    def __init__(self, kind: str, limit: int, key: NDArray[np.uint64] = NO_KEY) -> None:
        self.kind = kind
        self.limit = limit
        self.key = key
        self._reserve(limit)

    def _reserve(self, rows: int) -> None:
        self._size = 0
        self._hashes = _flat(rows, np.uint64)
        self._starts = _flat(rows + 1, np.int64)
        self._arena = _flat(rows * ID_MAX_BYTES, np.uint8)
        self._table = _flat(_SMALLEST, np.int32)
        self._following = self._next()

    def _next(self) -> NDArray[np.int32]:
        """Return an empty table of twice the size, or an empty array if this table suffices."""
        enough = len(self._table) >= 2 * self.limit
        return np.empty(0, np.int32) if enough else _flat(2 * len(self._table), np.int32)

    def __len__(self) -> int:
        return self._size

    def ensure_rows(
        self, data: NDArray[np.uint8], at: NDArray[np.int64], length: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Give a row to every id for which there is room; return the rows.

        Parameters
        ----------
        data, at, length
            Id n is data[at[n] : at[n] + length[n]]; an empty id means that there is none.

        Returns
        -------
        rows, known
            The row of each id (N,), -1 for an empty id and for a new id if the vocabulary is full;
            and how many ids were known just after each (N,).

        Raises
        ------
        ValueError
            An id has more than 256 bytes, which the validation of events rules out.
        """
        if len(length) and length.max() > ID_MAX_BYTES:
            raise ValueError(f"an id has {length.max()} bytes; at most {ID_MAX_BYTES} are allowed")
        out = np.empty(len(at), np.int32)
        known = np.empty(len(at), np.int32)
        begin = 0
        while True:
            begin, self._size, need = _rows(
                self._table, self._following, self._hashes, self._arena, self._starts,
                self._size, self.limit, self.key, data, at, length, begin, out, known,
            )  # fmt: skip
            if need == 0:
                return out, known
            self._table = self._following
            self._following = self._next()

    def add(self, id_: bytes) -> int:
        """Give the id a row and return it; -1 if the vocabulary is full."""
        data = np.frombuffer(id_, np.uint8)
        out, _ = self.ensure_rows(data, np.zeros(1, np.int64), np.array([len(id_)], np.int32))
        return int(out[0])

    def find(self, id_: bytes) -> int | None:
        """Return the id's row, or None if it has none; create nothing."""
        data = np.frombuffer(id_, np.uint8)
        row = int(
            _find(self._table, self._hashes, self._arena, self._starts, self.key, data, 0, len(id_))
            if id_
            else -1
        )
        return None if row < 0 else row

    def ids(self, rows: NDArray[np.int32]) -> list[bytes]:
        """Return the ids of rows, in the order given."""
        arena = self._arena
        first, last = self._starts[rows].tolist(), self._starts[rows + 1].tolist()
        return [arena[a:b].tobytes() for a, b in zip(first, last, strict=True)]

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays that `load` needs."""
        n = self._size
        return {
            "ids": self._arena[: self._starts[n]].copy(),
            "starts": self._starts[: n + 1].copy(),
            "hashes": self._hashes[:n].copy(),
        }

    def load(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore a saved vocabulary; `key` must be the key under which it was saved."""
        n = len(state["hashes"])
        self._reserve(max(n, self.limit))
        self._size = n
        self._hashes[:n] = state["hashes"]
        self._starts[: n + 1] = state["starts"]
        self._arena[: len(state["ids"])] = state["ids"]
        while 2 * n > len(self._table):
            self._table = _flat(2 * len(self._table), np.int32)
        _insert_rows(self._table, self._hashes, 0, n)
        self._following = self._next()
        if len(self._following):
            _insert_rows(self._following, self._hashes, 0, _inserted(self._table, n))
