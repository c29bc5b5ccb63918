"""Delays outcomes until changes of their items' numbers that happened earlier have arrived.

Items and outcomes come from different topics, and a backlog interleaves them by whole batches. So
an outcome is used with the numbers that held at its event time, and only after WAITS more outcomes
have come.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.compiled import compiled
from stream.memory import reserve
from stream.removals import Removals

WAITS = 8_192  # outcomes that must follow before one is used
KINDS: dict[str, type[np.generic]] = {
    "item": np.int32, "outcome": np.int8, "label": np.float32, "user": np.float32,
    "ts_ms": np.int64, "who": np.int32,
}  # fmt: skip
Columns = Mapping[str, NDArray[Any]]
CHANGES = 262_144  # superseded numbers that are remembered, over all items


@compiled
def _as_of(item, ts_ms, head, until, before, held, count, x):  # type: ignore[no-untyped-def]
    """Replace in x (n, N) the current numbers by those that held at `ts_ms`; nan if unknown.

    An item's superseded numbers form a chain from the latest to the oldest; those written before
    count - size are overwritten.
    """
    size = len(until)
    for j in range(len(item)):
        at, chosen = head[item[j]], np.int64(0)
        while at > 0 and at > count - size and until[(at - 1) % size] > ts_ms[j]:
            chosen = at
            at = before[(at - 1) % size]
        if chosen > 0 and at > 0 and at <= count - size:
            chosen = np.int64(-1)  # the start of the chosen numbers was overwritten
        for a in range(x.shape[1]):
            if chosen < 0:
                x[j, a] = np.nan
            elif chosen > 0:
                x[j, a] = held[(chosen - 1) % size, a]


class Waiting:
    """The queued outcomes in order, and the superseded numbers of items.

    Parameters
    ----------
    items
        The most item rows; address space for them is reserved.
    numbers
        How many numeric attributes items have.
    changes
        How many superseded numbers are remembered.
    """

    def __init__(self, items: int, numbers: int, changes: int = CHANGES) -> None:
        """Start with an empty queue and no superseded numbers."""
        self._numbers = numbers
        self._head = reserve(items, 1, np.int64)[:, 0]  # latest superseded number + 1; 0: none
        self._used = 0
        self._until = np.zeros(changes, np.int64)  # event time (ms) of the next numbers
        self._before = np.zeros(changes, np.int64)
        self._held = np.zeros((changes, numbers), np.float32)
        self._count = 0
        self._chunks: deque[Columns] = deque()  # as added, none of them empty
        self._size = 0
        self._added = 0
        self._removals = Removals()

    def supersede(self, item: int, until_ms: int, numbers: NDArray[np.float32]) -> None:
        """Remember that these numbers (N,) were the item's until that time (ms)."""
        at = self._count % len(self._until)
        self._until[at], self._before[at] = until_ms, self._head[item]
        self._held[at] = numbers
        self._count += 1
        self._head[item] = self._count
        self._used = max(self._used, item + 1)

    def discard(self, item: int) -> None:
        """Forget the item's numbers and its queued outcomes."""
        self._head[item] = 0
        self._removals.add(item, self._added)

    def add(self, columns: Columns) -> Columns:
        """Queue the outcomes; return those that are now due, in order.

        The columns, each (n,), are item, outcome, label, user (the user's bias), ts_ms and who (the
        user's row).
        """
        if len(columns["item"]):
            self._chunks.append(columns)
            self._size += len(columns["item"])
            self._added += len(columns["item"])
        return self._take(max(0, self._size - WAITS))

    def all(self) -> Columns:
        """Return all queued outcomes and empty the queue."""
        return self._take(self._size)

    def _take(self, count: int) -> Columns:
        """Remove the first `count` outcomes from the queue; return those that are not forgotten."""
        first = self._added - self._size
        self._size -= count
        taken = []
        while count:
            chunk = self._chunks.popleft()
            size = min(count, len(chunk["item"]))
            taken.append({k: v[:size] for k, v in chunk.items()})
            if size < len(chunk["item"]):
                self._chunks.appendleft({k: v[size:] for k, v in chunk.items()})
            count -= size
        due = self._blanked(_joined(taken), first)
        self._removals.drop(self._added - self._size)
        stays = due["item"] >= 0
        return due if stays.all() else {k: v[stays] for k, v in due.items()}

    def _blanked(self, columns: dict[str, NDArray[Any]], first: int) -> dict[str, NDArray[Any]]:
        """Set the item of forgotten outcomes to -1; the first has the sequence number `first`."""
        if len(self._removals):
            numbers = first + np.arange(len(columns["item"]))
            gone = self._removals.of(columns["item"], numbers)
            for k, v in columns.items():
                v[gone] = -1 if k == "item" else 0
        return columns

    def as_of(self, due: Columns, now: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the numbers (n, N) of each outcome's time; `now` holds the current ones."""
        _as_of(
            due["item"], due["ts_ms"], self._head, self._until, self._before, self._held,
            self._count, now,
        )  # fmt: skip
        return now

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays that `load` needs."""
        size = min(self._count, len(self._until))
        waiting = self._blanked(_joined(self._chunks), self._added - self._size)
        return {
            "head": np.array(self._head[: self._used]),
            "until": self._until[:size].copy(),
            "before": self._before[:size].copy(),
            "held": self._held[:size].copy(),
            "count": np.array([self._count], np.int64),
            **{f"waiting.{k}": v for k, v in waiting.items()},
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore a saved queue; states from before users' rows were kept get -1 for them."""
        self._head[: self._used] = 0
        self._used = len(state["head"])
        self._head[: self._used] = state["head"]
        size = len(state["until"])
        self._until[:size], self._before[:size] = state["until"], state["before"]
        self._held[:size] = state["held"]
        self._count = int(state["count"][0])
        self._chunks.clear()
        self._size = self._added = 0
        self._removals.clear()
        unknown = np.full(len(state["waiting.item"]), -1, np.int32)
        self.add({k: state.get(f"waiting.{k}", unknown).copy() for k in KINDS})


def _joined(chunks: Iterable[Columns]) -> dict[str, NDArray[Any]]:
    """Return the chunks concatenated, as copies."""
    every = list(chunks)
    return {
        k: np.concatenate([np.zeros(0, kind), *(chunk[k] for chunk in every)])
        for k, kind in KINDS.items()
    }
