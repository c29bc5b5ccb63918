"""Which attribute values each row is linked to, and what is known of the values."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.memory import reserve
from stream.model.features import number_of, renamed
from stream.model.kernels import Array, compiled

NUMBERS = 8  # numbers of items whose slopes are followed, the first that came
NARROW, WIDE = 1e-30, 1e37  # scales whose inverse is a float32 too
_MOMENTS = 6  # feature row, count, mean, sum of squared deviations, low, high


@compiled
def gather_numbers(items: Array, rows: Array, values: Array, slot: Array, x: Array) -> None:
    """Write each item's numbers (B, N), nan where it has none; `slot` (F,) is theirs + 1."""
    for j in range(items.size):
        for a in range(x.shape[1]):
            x[j, a] = np.nan
        for k in range(rows.shape[1]):
            f = rows[items[j], k] - 1
            if f < 0:
                break
            if slot[f] > 0:
                x[j, slot[f] - 1] = values[items[j], k]


class Links:
    """Feature rows + 1 (0 where none) and their values, per row."""

    def __init__(self, rows: int, most: int) -> None:
        """Reserve the memory; no row is linked."""
        self.changed: set[int] | None = None  # rows set since a copy was made; None: none is kept
        self.rows = reserve(rows, most, np.int32).view(np.int32)  # (rows, L)
        self.values = reserve(rows, most, np.float32).view(np.float32)  # (rows, L)

    def set(self, row: int, links: list[tuple[int, float]]) -> None:
        """The row is linked to these feature rows after the call, and to no others."""
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
        """Take saved links in place of the first `used` rows."""
        self.rows[:used] = 0
        self.values[:used] = 0
        self.changed = None
        self.rows[: len(state["links"])] = state["links"]
        self.values[: len(state["values"])] = state["values"]


class Features:
    """The attribute values by name, and the moments of numbers."""

    def __init__(self, most: int) -> None:
        """No value is known."""
        self.most = most
        self.row: dict[str, int] = {}
        self.refused = 0  # values beyond `most`, or beyond a row's links
        self._moments: dict[int, list[float]] = {}
        self.numbers: list[str] = []  # of items, in the order in which they came
        self.slot = reserve(most, 1, np.uint8)[:, 0]  # a slope's place in `numbers` + 1, else 0

    def __len__(self) -> int:
        return len(self.row)

    def admit(self, name: str) -> int | None:
        """Return the value's row, a new one where there is room; None where there is none."""
        at = self.row.get(name)
        if at is None and len(self.row) < self.most:
            at = self.row[name] = len(self.row)
            self._number(name, at)
        return at

    def _number(self, name: str, at: int) -> None:
        number = number_of("item", name)
        if number is not None and len(self.numbers) < NUMBERS:
            self.numbers.append(number)
            self.slot[at] = len(self.numbers)

    def observe(self, feature: int, x: float) -> tuple[float, float] | None:
        """Count an observation of a number; return (center, scale) when it is time to set them.

        That is at the 1st, 2nd, 4th, … observation (Welford 1962): seldom, and less and less.
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
        """Return the lowest and highest number observed; zeros for what is no number."""
        m = self._moments.get(feature)
        return (m[3], m[4]) if m else (0.0, 0.0)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of what `load` needs."""
        names = [name.encode(errors="surrogatepass") for name in self.row]
        moments = [[float(f), *m] for f, m in self._moments.items()]
        return {
            "names": np.frombuffer(b"".join(names), np.uint8).copy(),
            "lengths": np.array([len(n) for n in names], np.int32),
            "moments": np.array(moments, np.float64).reshape(-1, _MOMENTS),
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The values are the saved ones after the call."""
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
