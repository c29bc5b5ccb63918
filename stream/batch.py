"""The columns of one learning step."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Batch:
    """Interactions in poll order, as columns of length B.

    `outcome` is an index into the configured outcomes. `known_items` is the size of the item
    vocabulary when the event came. `key` seeds the interaction's own random numbers, so that they
    do not depend on how the stream is divided into batches. `role` is a
    `stream.interaction_type.InteractionType`.
    """

    user: NDArray[np.int32]  # (B,)
    item: NDArray[np.int32]  # (B,)
    outcome: NDArray[np.int8]  # (B,)
    label: NDArray[np.float32]  # (B,)
    known_items: NDArray[np.int32]  # (B,)
    key: NDArray[np.uint64]  # (B,)
    role: NDArray[np.int8]  # (B,)
    propensity: NDArray[np.float32]  # (B,) nan: not logged
    position: NDArray[np.int32]  # (B,) 0: none
    ts_ms: NDArray[np.int64]  # (B,)
    counts: NDArray[np.bool_]  # (B,) whether it is an accepted click or rating, to be counted

    def __len__(self) -> int:
        return len(self.user)

    def slice(self, start: int, stop: int) -> "Batch":
        """Return the interactions start to stop - 1, as views."""
        parts: dict[str, Any] = {f.name: getattr(self, f.name)[start:stop] for f in fields(self)}
        return Batch(**parts)


def ratings(
    user: NDArray[np.int32],
    item: NDArray[np.int32],
    outcome: NDArray[np.int8],
    label: NDArray[np.float32],
    known_items: NDArray[np.int32],
    key: NDArray[np.uint64],
    ts_ms: NDArray[np.int64] | None = None,
) -> Batch:
    """Return a batch of self-selected outcomes, that is, of outcomes without an impression."""
    n = len(user)
    return Batch(
        user, item, outcome, label, known_items, key,
        role=np.zeros(n, np.int8),
        propensity=np.full(n, np.nan, np.float32),
        position=np.zeros(n, np.int32),
        ts_ms=np.zeros(n, np.int64) if ts_ms is None else ts_ms,
        counts=np.ones(n, np.bool_),
    )  # fmt: skip
