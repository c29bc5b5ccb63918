"""Which items uniform pairs are drawn from once some were removed: all known ones that were not.

Before the first removal that is every row below the number of known items, and nothing is kept.
From it on `rows` lists the living ones, in any order, so that a draw costs one look-up however many
are gone. Each interaction lists the items that became known by then, and revives its own; so what
is drawn does not depend on how polls are cut.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.memory import reserve
from stream.model.kernels import Array, compiled

LIVING, LISTED = 0, 1  # how many are alive, and how many rows were looked at, from the first on
GONE = -1  # in `place`; else the place in `rows` plus 1, or 0 where it is not listed


@compiled
def enlist(rows: Array, place: Array, size: Array, known: int) -> None:
    """The first `known` rows are listed."""
    while size[LISTED] < known:
        row = size[LISTED]
        rows[size[LIVING]] = row
        size[LIVING] += 1
        size[LISTED] += 1
        place[row] = size[LIVING]


@compiled
def revive(rows: Array, place: Array, size: Array, row: int) -> None:
    """The row is alive."""
    if place[row] == GONE:
        rows[size[LIVING]] = row
        size[LIVING] += 1
        place[row] = size[LIVING]


@compiled
def bury(rows: Array, place: Array, size: Array, row: int) -> None:
    """The row is gone; the last one takes its place."""
    enlist(rows, place, size, row + 1)
    if place[row] == GONE:
        return
    last = rows[size[LIVING] - 1]
    rows[place[row] - 1] = last
    place[last] = place[row]
    place[row] = GONE
    size[LIVING] -= 1


class Living:
    """The items that are alive, of at most `most`."""

    def __init__(self, most: int) -> None:
        """None was removed."""
        self.rows = reserve(most, 1, np.int32)[:, 0]
        self.place = reserve(most, 1, np.int32)[:, 0]
        self.size = np.zeros(2, np.int64)

    def remove(self, row: int) -> None:
        """The item is gone, until an event of its own."""
        bury(self.rows, self.place, self.size, row)

    def revive(self, row: int) -> None:
        """The item is alive."""
        revive(self.rows, self.place, self.size, row)

    def gone(self, rows: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return which of the rows are gone."""
        return np.asarray(self.place[rows] == GONE)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of what `load` needs; nothing while none was removed."""
        living, listed = self.size.tolist()
        if not listed:
            return {}
        return {
            "living.rows": self.rows[:living].copy(),
            "living.listed": self.size[LISTED:].copy(),
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The living are the saved ones after the call; where none were saved, none was removed."""
        self.place[: int(self.size[LISTED])] = 0
        rows = state.get("living.rows", np.zeros(0, np.int32))
        listed = int(state.get("living.listed", np.zeros(1, np.int64))[0])
        self.size[:] = len(rows), listed
        self.rows[: len(rows)] = rows
        self.place[:listed] = GONE
        self.place[rows] = np.arange(1, len(rows) + 1)
