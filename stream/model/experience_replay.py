"""A bounded sample of past interactions, learned again while the queue is empty."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.batch import Batch
from stream.interaction_type import InteractionType
from stream.model.kernels import Array, compiled, splitmix64
from stream.removals import Removals

LEARNS = (
    InteractionType.FACTUAL,
    InteractionType.EXPOSED,
    InteractionType.CONTROL,
    InteractionType.CONSUMED,
)


@compiled
def reservoir_indices(keys: Array, seen: int, size: int, out: Array) -> None:
    """Write each interaction's position in the sample, -1 for none (algorithm R; Vitter, 1985).

    The random number is a hash of the interaction's own key, so it does not depend on the batches.
    """
    for j in range(keys.size):
        count = seen + j
        if count < size:
            out[j] = count
        else:
            at = np.int64(
                splitmix64(keys[j] ^ np.uint64(0xD1B54A32D192ED03)) % np.uint64(count + 1)
            )
            out[j] = at if at < size else -1


@compiled
def chosen(seed: np.uint64, round_: np.uint64, held: int, out: Array) -> None:
    """Write the positions of randomly drawn interactions, with replacement."""
    base = splitmix64(seed ^ splitmix64(round_ + np.uint64(0xA0761D6478BD642F)))
    for j in range(out.size):
        out[j] = np.int64(splitmix64(base + np.uint64(j)) % np.uint64(held))


class ExperienceReplay:
    """The columns of at most `size` interactions, a uniform sample of all that were learned."""

    def __init__(self, size: int) -> None:
        """Start with an empty sample."""
        self.size = size
        self.seen = 0
        self.rounds = 0
        self._removals = {"user": Removals(), "item": Removals()}
        self._came = np.zeros(0, np.int64)  # `seen` when each sampled one was added
        self._columns: dict[str, NDArray[Any]] = {
            f.name: np.zeros(0, dtype)
            for f, dtype in zip(
                fields(Batch),
                ("i4", "i4", "i1", "f4", "i4", "u8", "i1", "f4", "i4", "i8", "?"),
                strict=True,
            )
        }

    def add(self, batch: Batch) -> None:
        """Offer the batch's interactions that teach something to the sample."""
        keep = np.flatnonzero(np.isin(batch.role, LEARNS))
        out = np.empty(len(keep), np.int64)
        reservoir_indices(batch.key[keep], self.seen, self.size, out)
        came = self.seen
        self.seen += len(keep)
        held = min(self.seen, self.size)
        kept, at = keep[out >= 0], out[out >= 0]
        for name, column in self._columns.items():
            if len(column) < held:
                grown = np.zeros(min(self.size, max(held, 2 * len(column), 64)), column.dtype)
                grown[: len(column)] = column
                column = self._columns[name] = grown
            column[at] = getattr(batch, name)[kept]
        if len(self._came) < len(self._columns["user"]):
            grown = np.zeros(len(self._columns["user"]), np.int64)
            grown[: len(self._came)] = self._came
            self._came = grown
        self._came[at] = came

    def discard(self, kind: str, row: int) -> None:
        """Discard all sampled interactions of the row."""
        self._removals[kind].add(row, self.seen)

    def _apply_removals(self) -> None:
        """Blank forgotten interactions (user -1); the sample of the others stays the same."""
        held = min(self.seen, self.size)
        gone = np.zeros(held, np.bool_)
        for kind, removals in self._removals.items():
            gone |= removals.of(self._columns[kind][:held], self._came[:held])
            removals.clear()
        if gone.any():
            for name, column in self._columns.items():
                column[:held][gone] = -1 if name == "user" else 0

    def draw(self, count: int, seed: int) -> Batch:
        """Return `count` sampled interactions, marked as not to be counted again.

        The result is empty if the sample is, and shorter if removed interactions were drawn.
        """
        self._apply_removals()
        held = min(self.seen, self.size)
        at = np.zeros(count if held else 0, np.int64)
        if held:
            chosen(np.uint64(seed), np.uint64(self.rounds), held, at)
        self.rounds += 1
        at = at[self._columns["user"][at] >= 0]
        columns = {name: column[at] for name, column in self._columns.items()}
        columns["counts"] = np.zeros(len(at), np.bool_)
        columns["key"] = columns["key"] + np.uint64(self.rounds)
        return Batch(**columns)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays that `load` needs."""
        self._apply_removals()
        held = min(self.seen, self.size)
        state: dict[str, NDArray[Any]] = {
            f"replay.{name}": column[:held].copy() for name, column in self._columns.items()
        }
        return state | {"replay.count": np.array([self.seen, self.rounds], np.int64)}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore a saved sample."""
        self.seen, self.rounds = (int(n) for n in state["replay.count"])
        for name in self._columns:
            self._columns[name] = state[f"replay.{name}"].copy()
        self._came = np.zeros(len(self._columns["user"]), np.int64)
        for removals in self._removals.values():
            removals.clear()
