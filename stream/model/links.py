"""The attribute values that each row is linked to, and the statistics of numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.memory import reserve
from stream.model.features import number_of, renamed
from stream.model.kernels import Array, compiled

NUMBERS = 8  # most numeric attributes of items whose slopes are estimated; the first ones seen
NARROW, WIDE = 1e-30, 1e37  # bounds of a scale, so that its inverse is a finite float32
_MOMENTS = 6  # feature row, count, mean, sum of squared deviations, low, high


@compiled
def gather_numbers(items: Array, rows: Array, values: Array, slot: Array, x: Array) -> None:
    """Write each item's numbers (B, N), nan where it has none; `slot` (F,) is the column + 1."""
    for j in range(items.size):
        for a in range(x.shape[1]):
            x[j, a] = np.nan
        for k in range(rows.shape[1]):
            f = rows[items[j], k] - 1
            if f < 0:
                break
            if slot[f] > 0:
                x[j, slot[f] - 1] = values[items[j], k]


class LinkTable:
    """Per row, the rows of its attribute values + 1 (0: none) and their values."""

    def __init__(self, rows: int, most: int) -> None:
        """Reserve the memory; no row is linked."""
        self.changed: set[int] | None = None  # rows set since a copy was made; None: no copy
        self.rows = reserve(rows, most, np.int32).view(np.int32)  # (rows, L)
        self.values = reserve(rows, most, np.float32).view(np.float32)  # (rows, L)

    def set(self, row: int, links: list[tuple[int, float]]) -> None:
        """Replace the row's links by these."""
        if self.changed is not None:
            self.changed.add(row)
        self.rows[row] = 0
        self.values[row] = 0
        for k, (feature, value) in enumerate(links):
            self.rows[row, k] = feature + 1
            self.values[row, k] = value

    def state(self, used: int) -> dict[str, NDArray[Any]]:
        """Return copies of the used rows."""
        return {"links": np.array(self.rows[:used]), "values": np.array(self.values[:used])}

    def load(self, state: Mapping[str, NDArray[Any]], used: int) -> None:
        """Replace the first `used` rows by saved links."""
        self.rows[:used] = 0
        self.values[:used] = 0
        self.changed = None
        self.rows[: len(state["links"])] = state["links"]
        self.values[: len(state["values"])] = state["values"]


class FeatureVocabulary:
    """The rows of attribute values by name, and the statistics of numbers."""

    def __init__(self, most: int) -> None:
        """Start without any attribute values."""
        self.most = most
        self.row: dict[str, int] = {}
        self.refused = 0  # values not admitted: beyond `most`, or beyond a row's links
        self._moments: dict[int, list[float]] = {}
        self.numbers: list[str] = []  # numeric attributes of items, in order of appearance
        self.slot = reserve(most, 1, np.uint8)[:, 0]  # a slope's index in `numbers` + 1, else 0

    def __len__(self) -> int:
        return len(self.row)

    def admit(self, name: str) -> int | None:
        """Return the value's row, a new one if there is room; None if the table is full."""
        at = self.row.get(name)
        if at is None and len(self.row) < self.most:
            at = self.row[name] = len(self.row)
            self._number(name, at)
        return at

    def _number(self, name: str, at: int) -> None:
        """Register the attribute if the name is that of an item's slope and there is room."""
        number = number_of("item", name)
        if number is not None and len(self.numbers) < NUMBERS:
            self.numbers.append(number)
            self.slot[at] = len(self.numbers)

    def observe(self, feature: int, x: float) -> tuple[float, float] | None:
        """Add an observation of a number; return (center, scale) when they should be set again.

        That is at the 1st, 2nd, 4th, 8th, … observation. The moments are updated as in Welford
        (1962).
        """
        m = self._moments.setdefault(feature, [0.0, 0.0, 0.0, x, x])
        m[0] += 1
        step = x - m[1]
        m[1] += step / m[0]
        m[2] += step * (x - m[1])
        m[3], m[4] = min(m[3], x), max(m[4], x)
        count = int(m[0])
        if count & (count - 1):
            return None
        deviation = (m[2] / m[0]) ** 0.5
        spread = deviation > max(1e-9 * abs(m[1]), NARROW)
        return m[1], min(deviation, WIDE) if spread else 1.0

    def range(self, feature: int) -> tuple[float, float]:
        """Return the lowest and the highest number observed; zeros for values without numbers."""
        m = self._moments.get(feature)
        return (m[3], m[4]) if m else (0.0, 0.0)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays that `load` needs."""
        names = [name.encode(errors="surrogatepass") for name in self.row]
        moments = [[float(f), *m] for f, m in self._moments.items()]
        return {
            "names": np.frombuffer(b"".join(names), np.uint8).copy(),
            "lengths": np.array([len(n) for n in names], np.int32),
            "moments": np.array(moments, np.float64).reshape(-1, _MOMENTS),
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore saved attribute values."""
        arena = state["names"].tobytes()
        ends = np.cumsum(state["lengths"])
        self.row = {
            renamed(arena[a:b].decode(errors="surrogatepass")): k
            for k, (a, b) in enumerate(zip(ends - state["lengths"], ends, strict=True))
        }
        self._moments = {int(m[0]): m[1:] for m in state["moments"].tolist()}
        self.slot[:] = 0
        self.numbers = []
        for name, at in self.row.items():
            self._number(name, at)
