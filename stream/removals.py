"""Distinguishes what came before a row's removal from what came after it, by increasing numbers.

Everything remembered carries the sequence number at which it came, and so does each removal. An
entry of a row that came before the row's latest removal is forgotten. This is evaluated when
entries are read, for all of them in one pass, so a removal itself costs almost nothing.
"""

import numpy as np
from numpy.typing import NDArray


class Removals:
    """The sequence numbers at which rows were removed."""

    def __init__(self) -> None:
        """Start without removals."""
        self._at: dict[int, int] = {}  # row -> number, in increasing order of the numbers

    def __len__(self) -> int:
        return len(self._at)

    def add(self, row: int, number: int) -> None:
        """Forget the row's entries that came before this number."""
        self._at.pop(row, None)
        self._at[row] = number

    def drop(self, below: int) -> None:
        """Discard removals up to the number `below`; no entry that came before them is left."""
        while self._at:
            row, number = next(iter(self._at.items()))
            if number > below:
                return
            del self._at[row]

    def clear(self) -> None:
        """Discard all removals."""
        self._at.clear()

    def of(self, rows: NDArray[np.int32], numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which entries are forgotten (n,), given their rows and numbers (n,)."""
        if not self._at:
            return np.zeros(len(rows), np.bool_)
        removed = np.array(sorted(self._at), np.int64)
        since = np.array([self._at[row] for row in removed.tolist()], np.int64)
        at = np.minimum(np.searchsorted(removed, rows), len(removed) - 1)
        return np.asarray((removed[at] == rows) & (numbers < since[at]))
