"""Duplicate detection: an event that a producer repeats within a bounded window is ignored.

The window keeps a 128-bit hash of each of the last `window` (type, event_id) pairs. With a million
ids the probability of any accidental collision is below 1 in 10^26. Removals have no event_id and
are never duplicates: a repeated removal acts again, because more may be known by then.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.compiled import compiled
from stream.hashing import NO_KEY, hash_pair

_LANE_A = np.uint64(0xBB67AE8584CAA73B)
_LANE_B = np.uint64(0x3C6EF372FE94F82B)


@compiled
def _insert_entries(table, ring, mask, n):  # type: ignore[no-untyped-def]
    """Put ring entry n into the hash table."""
    slot = np.int64(ring[n, 0] & np.uint64(mask))
    while table[slot] >= 0:
        slot = (slot + 1) & mask
    table[slot] = n


@compiled
def _place_all(table, ring, count):  # type: ignore[no-untyped-def]
    """Put ring entries 0 to count - 1 into the hash table."""
    for n in range(count):
        _insert_entries(table, ring, len(table) - 1, n)


@compiled
def _remove(table, ring, mask, n):  # type: ignore[no-untyped-def]
    """Remove ring entry n from the hash table and close the gap (linear probing, no tombstones)."""
    slot = np.int64(ring[n, 0] & np.uint64(mask))
    while table[slot] != n:
        slot = (slot + 1) & mask
    hole = slot
    while True:
        slot = (slot + 1) & mask
        other = table[slot]
        if other < 0:
            break
        home = np.int64(ring[other, 0] & np.uint64(mask))
        if ((slot - home) & mask) >= ((slot - hole) & mask):
            table[hole] = other
            hole = slot
    table[hole] = -1


@compiled
def _fresh(table, ring, count, key, data, kind, at, length, out):  # type: ignore[no-untyped-def]
    """Fill `out` with which events are new, and remember these; return the new total count."""
    mask = len(table) - 1
    window = len(ring)
    for n in range(len(at)):
        if length[n] == 0:
            out[n] = True
            continue
        salt = np.uint64(kind[n] + 1)
        a, b = hash_pair(data, at[n], length[n], (_LANE_A ^ salt, _LANE_B ^ salt), key)
        slot = np.int64(a & np.uint64(mask))
        seen = False
        while table[slot] >= 0:
            entry = table[slot]
            if ring[entry, 0] == a and ring[entry, 1] == b:
                seen = True
                break
            slot = (slot + 1) & mask
        out[n] = not seen
        if seen:
            continue
        entry = count % window
        if count >= window:
            _remove(table, ring, mask, entry)
        ring[entry, 0] = a
        ring[entry, 1] = b
        _insert_entries(table, ring, mask, entry)
        count += 1
    return count


class Duplicates:
    """The last `window` accepted (type, event_id) pairs; with window 0 every event is new.

    `key` (2,) keys the hash.
    """

    def __init__(self, window: int = 1_000_000, key: NDArray[np.uint64] = NO_KEY) -> None:
        self.window = window
        self.key = key
        self._count = 0
        self._ring = np.zeros((window, 2), np.uint64)
        self._table = self._empty()

    def _empty(self) -> NDArray[np.int32]:
        return np.full(1 << max(10, (2 * self.window - 1).bit_length()), -1, np.int32)

    def fresh(
        self,
        data: NDArray[np.uint8],
        kind: NDArray[np.int8],
        at: NDArray[np.int64],
        length: NDArray[np.int32],
    ) -> NDArray[np.bool_]:
        """Remember every event that has an id; return which events were not yet remembered (N,)."""
        if self.window == 0:
            return np.ones(len(at), np.bool_)
        out = np.empty(len(at), np.bool_)
        self._count = int(
            _fresh(self._table, self._ring, self._count, self.key, data, kind, at, length, out)
        )
        return out

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays that `load` needs."""
        used = min(self._count, self.window)
        return {"ring": self._ring[:used].copy(), "count": np.array([self._count], np.int64)}

    def load(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore a saved window; a smaller window keeps the newest pairs."""
        ring, count = state["ring"], int(state["count"][0])
        oldest = count % len(ring) if len(ring) and count > len(ring) else 0
        newest = np.roll(ring, -oldest, axis=0)[max(0, len(ring) - self.window) :]
        self._ring[:] = 0
        self._ring[: len(newest)] = newest
        self._count = len(newest)
        self._table = self._empty()
        _place_all(self._table, self._ring, len(newest))
