"""Rows that were removed, told apart from what came of them later by numbers that only grow.

Whatever is remembered bears the number at which it came; a removal bears the number at which it
came too. What came of a row before its latest removal is forgotten: it is found out when it is
looked at, all of it in one pass, so that a removal costs nothing by itself.
"""

import numpy as np
from numpy.typing import NDArray


class Forgotten:
    """The numbers at which rows were removed."""

    def __init__(self) -> None:
        """Nothing was removed."""
        self._at: dict[int, int] = {}  # in the order of their numbers

    def __len__(self) -> int:
        return len(self._at)

    def add(self, row: int, number: int) -> None:
        """What came of the row below this number is forgotten."""
        self._at.pop(row, None)
        self._at[row] = number

    def drop(self, below: int) -> None:
        """No removal up to that number matters any more: all that came before it is gone."""
        while self._at:
            row, number = next(iter(self._at.items()))
            if number > below:
                return
            del self._at[row]

    def clear(self) -> None:
        """Nothing was removed."""
        self._at.clear()

    def of(self, rows: NDArray[np.int32], numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of what is remembered is forgotten (n,); it came at `numbers` (n,)."""
        if not self._at:
            return np.zeros(len(rows), np.bool_)
        removed = np.array(sorted(self._at), np.int64)
        since = np.array([self._at[row] for row in removed.tolist()], np.int64)
        at = np.minimum(np.searchsorted(removed, rows), len(removed) - 1)
        return np.asarray((removed[at] == rows) & (numbers < since[at]))
