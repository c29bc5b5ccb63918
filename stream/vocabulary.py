"""id ↔ row: every id has one row, and no two ids share one.

An open-addressing table of rows beside an arena of the ids' own bytes: a hash picks the place, the
bytes decide. Rows are given in order of first appearance, so the same events give the same rows.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from stream.errors import Inconsistent
from stream.hashing import hash_bytes

_SEED = np.uint64(0x6A09E667F3BCC908)
_FULL, _GROW_TABLE, _GROW_ARENA = -2, -3, -4


@njit(nogil=True, cache=True)
def _slot(table, hashes, arena, starts, data, at, length, h):  # type: ignore[no-untyped-def]
    """Return the slot that holds the id, or the free slot where it belongs."""
    mask = len(table) - 1
    slot = np.int64(h & np.uint64(mask))
    while True:
        row = table[slot]
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


@njit(nogil=True, cache=True)
def _rows(table, hashes, arena, starts, size, limit, data, at, length, begin, out, known):  # type: ignore[no-untyped-def]
    """Fill out and known from `begin` on; return (next event, size, 0 or what must grow)."""
    for n in range(begin, len(at)):
        if length[n] == 0:
            out[n] = -1
            known[n] = size
            continue
        h = hash_bytes(data, at[n], length[n], _SEED)
        slot = _slot(table, hashes, arena, starts, data, at[n], length[n], h)
        row = table[slot]
        if row < 0:
            if size >= limit:
                return n, size, _FULL
            if 2 * (size + 1) > len(table) or size + 1 >= len(hashes):
                return n, size, _GROW_TABLE
            end = starts[size] + length[n]
            if end > len(arena):
                return n, size, _GROW_ARENA
            for i in range(length[n]):
                arena[starts[size] + i] = data[at[n] + i]
            row = size
            hashes[row] = h
            starts[row + 1] = end
            table[slot] = row
            size += 1
        out[n] = row
        known[n] = size
    return len(at), size, 0


@njit(nogil=True, cache=True)
def _find(table, hashes, arena, starts, data, at, length):  # type: ignore[no-untyped-def]
    h = hash_bytes(data, at, length, _SEED)
    return table[_slot(table, hashes, arena, starts, data, at, length, h)]


@njit(nogil=True, cache=True)
def _place(table, hashes, size):  # type: ignore[no-untyped-def]
    mask = len(table) - 1
    for row in range(size):
        slot = np.int64(hashes[row] & np.uint64(mask))
        while table[slot] >= 0:
            slot = (slot + 1) & mask
        table[slot] = row


class Vocabulary:
    """The rows of one kind of id, at most `limit` of them."""

    def __init__(self, kind: str, limit: int) -> None:
        self.kind = kind
        self.limit = limit
        self._size = 0
        self._table = np.full(1024, -1, np.int32)
        self._hashes = np.zeros(512, np.uint64)
        self._starts = np.zeros(513, np.int64)
        self._arena = np.zeros(8192, np.uint8)

    def __len__(self) -> int:
        return self._size

    def rows(
        self, data: NDArray[np.uint8], at: NDArray[np.int64], length: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Every id has a row after the call.

        Returns the rows (N,) and how many ids were known just after each one (N,); an empty id
        gets row -1. Raises Inconsistent when the vocabulary is full.
        """
        out = np.empty(len(at), np.int32)
        known = np.empty(len(at), np.int32)
        begin = 0
        while True:
            begin, self._size, need = _rows(
                self._table, self._hashes, self._arena, self._starts, self._size, self.limit,
                data, at, length, begin, out, known,
            )  # fmt: skip
            if need == 0:
                return out, known
            if need == _FULL:
                raise Inconsistent(
                    f"the vocabulary of {self.kind}s is full: {self.limit} ids",
                    f"raise model.max_{self.kind}s and start again; nothing was lost",
                )
            self._grow(need, int(length[begin]))

    def add(self, id_: bytes) -> int:
        """The id has a row after the call, which is returned."""
        data = np.frombuffer(id_, np.uint8)
        out, _ = self.rows(data, np.zeros(1, np.int64), np.array([len(id_)], np.int32))
        return int(out[0])

    def find(self, id_: bytes) -> int | None:
        """Return the id's row, or None; nothing is created."""
        data = np.frombuffer(id_, np.uint8)
        row = int(
            _find(self._table, self._hashes, self._arena, self._starts, data, 0, len(id_))
            if id_
            else -1
        )
        return None if row < 0 else row

    def ids(self, rows: NDArray[np.int32]) -> list[bytes]:
        """Return the ids of rows, in their order."""
        arena = self._arena
        first, last = self._starts[rows].tolist(), self._starts[rows + 1].tolist()
        return [arena[a:b].tobytes() for a, b in zip(first, last, strict=True)]

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of what is needed to load it again."""
        n = self._size
        return {
            "ids": self._arena[: self._starts[n]].copy(),
            "starts": self._starts[: n + 1].copy(),
            "hashes": self._hashes[:n].copy(),
        }

    def load(self, state: dict[str, NDArray[Any]]) -> None:
        """The vocabulary is the saved one after the call."""
        n = len(state["hashes"])
        size = 512
        while size <= n + 1:
            size *= 2
        self._size = n
        self._hashes = np.zeros(size, np.uint64)
        self._hashes[:n] = state["hashes"]
        self._starts = np.zeros(size + 1, np.int64)
        self._starts[: n + 1] = state["starts"]
        self._arena = np.zeros(max(8192, 2 * len(state["ids"])), np.uint8)
        self._arena[: len(state["ids"])] = state["ids"]
        self._table = np.full(2 * size, -1, np.int32)
        _place(self._table, self._hashes, n)

    def _grow(self, need: int, length: int) -> None:
        if need == _GROW_ARENA:
            arena = np.zeros(2 * len(self._arena) + length, np.uint8)
            arena[: len(self._arena)] = self._arena
            self._arena = arena
            return
        size = 2 * len(self._hashes)
        hashes, starts = np.zeros(size, np.uint64), np.zeros(size + 1, np.int64)
        hashes[: len(self._hashes)] = self._hashes
        starts[: len(self._starts)] = self._starts
        self._hashes, self._starts = hashes, starts
        self._table = np.full(2 * size, -1, np.int32)
        _place(self._table, self._hashes, self._size)
