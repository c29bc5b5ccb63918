"""Outcomes wait for the numbers their items had: a change may arrive after what it bears on.

Items and outcomes come from different topics, which a backlog interleaves by whole batches. So an
outcome is told with the number of its own event time, and only after WAITS more outcomes have come.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.compiled import compiled
from stream.forgotten import Forgotten
from stream.memory import reserve

WAITS = 8_192  # outcomes that come before one is told
KINDS: dict[str, type[np.generic]] = {
    "item": np.int32, "outcome": np.int8, "label": np.float32, "user": np.float32,
    "ts_ms": np.int64, "who": np.int32,
}  # fmt: skip
Columns = Mapping[str, NDArray[Any]]
CHANGES = 262_144  # superseded numbers that are remembered, of all items


@compiled
def _as_of(item, ts_ms, head, until, before, held, count, x):  # type: ignore[no-untyped-def]
    """Put into x (n, N), the numbers of now, those of ts_ms where they were others; nan: unknown.

    An item's superseded numbers hang together from its latest on; those of before count - size
    are forgotten.
    """
    size = len(until)
    for j in range(len(item)):
        at, chosen = head[item[j]], np.int64(0)
        while at > 0 and at > count - size and until[(at - 1) % size] > ts_ms[j]:
            chosen = at
            at = before[(at - 1) % size]
        if chosen > 0 and at > 0 and at <= count - size:
            chosen = np.int64(-1)  # when the chosen began to hold is forgotten
        for a in range(x.shape[1]):
            if chosen < 0:
                x[j, a] = np.nan
            elif chosen > 0:
                x[j, a] = held[(chosen - 1) % size, a]


class Waiting:
    """The outcomes not yet told, in their order, and the superseded numbers of items."""

    def __init__(self, items: int, numbers: int, changes: int = CHANGES) -> None:
        """Nothing waits, and nothing was superseded; address space for `items` is reserved."""
        self._numbers = numbers
        self._head = reserve(items, 1, np.int64)[:, 0]  # the latest superseded, from 1; 0: none
        self._used = 0
        self._until = np.zeros(changes, np.int64)  # event time (ms) of what superseded it
        self._before = np.zeros(changes, np.int64)
        self._held = np.zeros((changes, numbers), np.float32)
        self._count = 0
        self._chunks: deque[Columns] = deque()  # as they came, none of them empty
        self._size = 0
        self._added = 0
        self._forgotten = Forgotten()

    def supersede(self, item: int, until_ms: int, numbers: NDArray[np.float32]) -> None:
        """These numbers (N,) were the item's until then."""
        at = self._count % len(self._until)
        self._until[at], self._before[at] = until_ms, self._head[item]
        self._held[at] = numbers
        self._count += 1
        self._head[item] = self._count
        self._used = max(self._used, item + 1)

    def forget(self, item: int) -> None:
        """Nothing is remembered of the item's numbers, and none of its outcomes is told."""
        self._head[item] = 0
        self._forgotten.add(item, self._added)

    def add(self, columns: Columns) -> Columns:
        """The outcomes wait after the call; returns those that are due, in their order.

        Columns are item, outcome, label, user (its bias), ts_ms, who (its row), (n,) each.
        """
        if len(columns["item"]):
            self._chunks.append(columns)
            self._size += len(columns["item"])
            self._added += len(columns["item"])
        return self._take(max(0, self._size - WAITS))

    def all(self) -> Columns:
        """Nothing waits any more; returns what did."""
        return self._take(self._size)

    def _take(self, count: int) -> Columns:
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
        self._forgotten.drop(self._added - self._size)
        stays = due["item"] >= 0
        return due if stays.all() else {k: v[stays] for k, v in due.items()}

    def _blanked(self, columns: dict[str, NDArray[Any]], first: int) -> dict[str, NDArray[Any]]:
        """Return the outcomes, of which the first was so-manieth, with item -1 where forgotten."""
        if len(self._forgotten):
            numbers = first + np.arange(len(columns["item"]))
            gone = self._forgotten.of(columns["item"], numbers)
            for k, v in columns.items():
                v[gone] = -1 if k == "item" else 0
        return columns

    def as_of(self, due: Columns, now: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the numbers (n, N) that the items of these outcomes had; `now` are theirs."""
        _as_of(
            due["item"], due["ts_ms"], self._head, self._until, self._before, self._held,
            self._count, now,
        )  # fmt: skip
        return now

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of what is needed to load it again."""
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
        """All is as it was saved after the call; of before users' rows were kept, those are -1."""
        self._head[: self._used] = 0
        self._used = len(state["head"])
        self._head[: self._used] = state["head"]
        size = len(state["until"])
        self._until[:size], self._before[:size] = state["until"], state["before"]
        self._held[:size] = state["held"]
        self._count = int(state["count"][0])
        self._chunks.clear()
        self._size = self._added = 0
        self._forgotten.clear()
        unknown = np.full(len(state["waiting.item"]), -1, np.int32)
        self.add({k: state.get(f"waiting.{k}", unknown).copy() for k in KINDS})


def _joined(chunks: Iterable[Columns]) -> dict[str, NDArray[Any]]:
    """Return the chunks as one, in copies."""
    every = list(chunks)
    return {
        k: np.concatenate([np.zeros(0, kind), *(chunk[k] for chunk in every)])
        for k, kind in KINDS.items()
    }
