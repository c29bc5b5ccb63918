"""Progressive validation: every event is predicted before it is learned."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.compiled import compiled


@compiled
def _add(sums, logit, outcome, label, predicted, loss):  # type: ignore[no-untyped-def]
    """Add the events one by one: a sum must not depend on where a poll was cut."""
    for i in range(len(outcome)):
        o = outcome[i]
        y = np.float64(label[i])
        p = np.float64(predicted[i])
        sums[o, 0] += 1
        sums[o, 1] += abs(y - p)
        sums[o, 2] += (y - p) ** 2
        if logit[o]:
            chance = min(max(p, 1e-6), 1 - 1e-6)
            loss[i] = -(y * np.log(chance) + (1 - y) * np.log1p(-chance))
            sums[o, 3] += loss[i]
        else:
            loss[i] = abs(y - p)


class Progressive:
    """Running sums of the errors of each outcome, since the first event ever learned."""

    def __init__(self, outcomes: Sequence[str], logit: Sequence[bool]) -> None:
        self.outcomes = tuple(outcomes)
        self._logit = np.array(logit, np.bool_)
        self._sums = np.zeros((len(self.outcomes), 4))  # count, |e|, e², log loss

    def update(
        self, outcome: NDArray[np.int8], label: NDArray[np.float32], predicted: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """The sums hold the events after the call; returns each event's loss (B,)."""
        loss = np.empty(len(outcome), np.float64)
        _add(self._sums, self._logit, outcome, label, predicted, loss)
        return loss

    def figures(self, outcome: str) -> dict[str, float]:
        """Return count and mae, rmse (identity) or log_loss (logit); only count without events."""
        o = self.outcomes.index(outcome)
        count, absolute, square, log_loss = self._sums[o].tolist()
        if not count:
            return {"count": 0}
        if self._logit[o]:
            return {"count": int(count), "log_loss": log_loss / count}
        return {"count": int(count), "mae": absolute / count, "rmse": math.sqrt(square / count)}

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of what is needed to load it again."""
        return {"sums": self._sums.copy()}

    def load(self, state: dict[str, NDArray[Any]]) -> None:
        """The sums are the saved ones after the call."""
        self._sums[:] = state["sums"]
