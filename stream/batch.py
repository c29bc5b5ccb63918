"""The columns of one learning step."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Batch:
    """Events in poll order, as columns of length B.

    `outcome` indexes the configured outcomes; `known_items` is how many items the vocabulary held
    when the event came; `key` seeds the event's own sampler, so that what is drawn does not depend
    on how polls are cut into batches.
    """

    user: NDArray[np.int32]  # (B,)
    item: NDArray[np.int32]  # (B,)
    outcome: NDArray[np.int8]  # (B,)
    label: NDArray[np.float32]  # (B,)
    known_items: NDArray[np.int32]  # (B,)
    key: NDArray[np.uint64]  # (B,)

    def __len__(self) -> int:
        return len(self.user)

    def cut(self, start: int, stop: int) -> "Batch":
        """Return the events start..stop as views."""
        parts: dict[str, Any] = {
            name: getattr(self, name)[start:stop]
            for name in ("user", "item", "outcome", "label", "known_items", "key")
        }
        return Batch(**parts)
