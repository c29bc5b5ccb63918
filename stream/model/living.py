"""The items from which uniform items are drawn: all known ones that were not removed.

Before the first removal these are all rows below the number of known items, and nothing is stored.
From then on `rows` lists them in any order, so a draw costs one look-up however many were removed.
Each interaction first adds the items that were known by then and revives its own item, so the draws
do not depend on how the stream is divided into polls.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.memory import reserve
from stream.model.kernels import Array, compiled

LIVING, LISTED = 0, 1  # in `size`: number of entries of `rows`, number of rows considered so far
GONE = -1  # in `place`: removed; otherwise the position in `rows` + 1, or 0 if not considered


@compiled
def enlist(rows: Array, list_index: Array, size: Array, known: int) -> None:
    """Add the rows below `known` that were not considered yet."""
    while size[LISTED] < known:
        row = size[LISTED]
        rows[size[LIVING]] = row
        size[LIVING] += 1
        size[LISTED] += 1
        list_index[row] = size[LIVING]


@compiled
def revive(rows: Array, list_index: Array, size: Array, row: int) -> None:
    """Add the row again if it was removed."""
    if list_index[row] == GONE:
        rows[size[LIVING]] = row
        size[LIVING] += 1
        list_index[row] = size[LIVING]


@compiled
def bury(rows: Array, list_index: Array, size: Array, row: int) -> None:
    """Remove the row; the last entry takes its position."""
    enlist(rows, list_index, size, row + 1)
    if list_index[row] == GONE:
        return
    last = rows[size[LIVING] - 1]
    rows[list_index[row] - 1] = last
    list_index[last] = list_index[row]
    list_index[row] = GONE
    size[LIVING] -= 1


class Living:
    """The set of items that can be drawn, with rows below `most`."""

    def __init__(self, most: int) -> None:
        """Start without removals."""
        self.rows = reserve(most, 1, np.int32)[:, 0]
        self.list_index = reserve(most, 1, np.int32)[:, 0]
        self.size = np.zeros(2, np.int64)

    def remove(self, row: int) -> None:
        """Remove the item until an event of its own revives it."""
        bury(self.rows, self.list_index, self.size, row)

    def revive(self, row: int) -> None:
        """Add the item again if it was removed."""
        revive(self.rows, self.list_index, self.size, row)

    def gone(self, rows: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return which of the rows are removed."""
        return np.asarray(self.list_index[rows] == GONE)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays that `load` needs; nothing if no item was ever removed."""
        living, listed = self.size.tolist()
        if not listed:
            return {}
        return {
            "living.rows": self.rows[:living].copy(),
            "living.listed": self.size[LISTED:].copy(),
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore a saved set; if nothing was saved, no item was removed."""
        self.list_index[: int(self.size[LISTED])] = 0
        rows = state.get("living.rows", np.zeros(0, np.int32))
        listed = int(state.get("living.listed", np.zeros(1, np.int64))[0])
        self.size[:] = len(rows), listed
        self.rows[: len(rows)] = rows
        self.list_index[:listed] = GONE
        self.list_index[rows] = np.arange(1, len(rows) + 1)
