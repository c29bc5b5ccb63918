"""Rows by their named parts in float64: how one is composed, and how one steps."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.model.config import ModelConfig
from stream.model.layout import Layout

Floats = NDArray[np.float64]
Key = str | int  # of what steps by itself: the name of a vector, or the column of a bias

COUNTS = ("events", "exposures", "controls", "decayed_count_s", "outcomes")  # bits of a uint32
SINGLE = (
    "vector_sum", "exposure_sum", "session_sum", "events", "exposures", "controls", "control_sum",
    "decayed_count", "decayed_count_s", "center", "inverse",
)  # fmt: skip
FAR = 16.0  # deviations beyond which a number acts as one that far


def named(packed: NDArray[np.float32], at: Layout) -> dict[str, NDArray[Any]]:
    """Return packed rows by their parts: float64, and the counts as integers."""
    first = at._fields.index("vector")
    starts = {n: c for n, c in zip(at._fields, at, strict=True) if c >= 0}
    found: dict[str, NDArray[Any]] = {}
    for name, stop in pairwise(n for n in at._fields[first:-1] if n in starts):
        part = np.ascontiguousarray(packed[:, starts[name] : starts[stop]])
        part = part.view(np.uint32).astype(np.int64) if name in COUNTS else part.astype(np.float64)
        found[name] = part[:, 0] if name in SINGLE else part
    return found


class Rows:
    """The rows of one kind; `rows["vector"]` are all their vectors."""

    def __init__(self, packed: NDArray[np.float32], at: Layout) -> None:
        self.at = at
        self.parts = named(packed, at)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.parts[name]

    def __len__(self) -> int:
        return len(self.parts["vector"])

    def grow(self, rows: int) -> None:
        """There are at least so many rows, new ones of zeros."""
        more = rows - len(self)
        if more > 0:
            for name, part in self.parts.items():
                zeros = np.zeros((more, *part.shape[1:]), part.dtype)
                self.parts[name] = np.concatenate([part, zeros])

    def put(self, rows: NDArray[np.int64], packed: NDArray[np.float32]) -> None:
        """These rows are the packed ones after the call."""
        for name, part in named(packed, self.at).items():
            self.parts[name][rows] = part

    def step(self, row: int, key: Key, total: Floats, squares: float, rate: "Rate") -> None:
        """Take one step of Adagrad by a sum of gradients, whose mean squares sum to `squares`.

        The accumulator that divides has the square of the sum, and keeps the sum of the squares.
        """
        if isinstance(key, int):
            value, held = self["bias"][row, key : key + 1], self["bias_sum"][row, key : key + 1]
        else:
            value, held = self[key][row], self[f"{key}_sum"][row : row + 1]
        if value.size == 0:
            return
        taken = rate.lr / np.sqrt(held[0] + np.mean(total**2))
        value *= 1.0 - taken * rate.shrink
        value -= taken * total
        held += squares


@dataclass(frozen=True)
class Rate:
    """How fast a part learns, and the share of that by which it is pulled to 0."""

    lr: float
    shrink: float


def rate_of(config: ModelConfig, kind: str, key: Key) -> Rate:
    """Return the rate of a part of a user's, an item's or an attribute value's row."""
    Y = len(config.outcomes)
    own = 0.0 if kind == "feature" else config.shrink
    if key == "exposure":
        return Rate(config.lr_exposure, own)
    if key == "session":
        return Rate(config.lr_session, own)
    if key in ("vector", "control"):
        return Rate(getattr(config, f"lr_{kind}_factor"), own if key == "vector" else 0.0)
    assert isinstance(key, int)
    if key >= 3 * Y:  # of who is shown what
        return Rate(config.lr_exposure if kind == "feature" else config.lr_exposure_bias, 0.0)
    withheld = Y <= key < 2 * Y
    return Rate(getattr(config, f"lr_{kind}_bias"), 0.0 if withheld else own)


@dataclass(frozen=True)
class Composed:
    """A row as it enters the score, own parts plus attributes'; and the attributes' alone."""

    vector: Floats
    exposure: Floats
    session: Floats
    bias: Floats
    linked_vector: Floats
    linked_bias: Floats
    links: list[tuple[int, float]]  # attribute values, with the strength of each link


def compose(
    rows: Rows, features: Rows, row: int, links: NDArray[np.int32], values: NDArray[np.float32]
) -> Composed:
    """Return the row with what its links (feature rows + 1, 0 behind the last) add."""
    n = int(np.argmax(links == 0)) if (links == 0).any() else len(links)
    f = links[:n] - 1
    x = (values[:n].astype(np.float64) - features["center"][f]) * features["inverse"][f]
    x = np.clip(x, -FAR, FAR) / np.sqrt(max(n, 1))
    added = {name: x @ features[name][f] for name in ("vector", "exposure", "session", "bias")}
    return Composed(
        **{name: rows[name][row] + part for name, part in added.items()},
        linked_vector=added["vector"],
        linked_bias=added["bias"],
        links=list(zip(f.tolist(), x.tolist(), strict=True)),
    )


class Sums:
    """The gradients of a block's items and attribute values, by what steps by itself."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, int, Key], tuple[Floats, float]] = {}

    def add(self, kind: str, row: int, key: Key, gradient: Floats) -> None:
        """Add a gradient; one of zeros is none."""
        if not np.any(gradient):
            return
        at = kind, row, key
        total, squares = self._of.get(at, (np.zeros_like(gradient), 0.0))
        self._of[at] = total + gradient, squares + float(np.mean(gradient**2))

    def __iter__(self) -> Iterator[tuple[str, int, Key, Floats, float]]:
        for (kind, row, key), (total, squares) in self._of.items():
            yield kind, row, key, total, squares
