"""Progressive validation: every event is predicted before it is learned.

Twice: by the factual head, which is fitted to what is observed and imputes, and by the score that
is served, the outcome if shown at the mean popularity. They differ by what is corrected for.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.compiled import compiled


@compiled
def _add(sums, fair, logit, outcome, label, predicted, served, loss):  # type: ignore[no-untyped-def]
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
            off = y - np.float64(served[i])
            fair[o, 0] += 1
            fair[o, 1] += abs(off)
            fair[o, 2] += off**2


class Progressive:
    """Running sums of the errors of each outcome, since the first event ever learned."""

    def __init__(self, outcomes: Sequence[str], logit: Sequence[bool]) -> None:
        self.outcomes = tuple(outcomes)
        self._logit = np.array(logit, np.bool_)
        self._sums = np.zeros((len(self.outcomes), 4))  # count, |e|, e², log loss
        self._served = np.zeros((len(self.outcomes), 3))  # count, |e|, e² of what is served

    def update(
        self,
        outcome: NDArray[np.int8],
        label: NDArray[np.float32],
        predicted: NDArray[np.float32],
        served: NDArray[np.float32],
    ) -> NDArray[np.float64]:
        """The sums hold the events after the call; returns each event's loss (B,).

        `predicted` is the factual head's, whose loss is returned, `served` that of the lists.
        """
        loss = np.empty(len(outcome), np.float64)
        _add(self._sums, self._served, self._logit, outcome, label, predicted, served, loss)
        return loss

    def figures(self, outcome: str) -> dict[str, float]:
        """Return count and mae, rmse (identity) or log_loss (logit); only count without events.

        mae, rmse and log_loss are of the factual head, mae_served and rmse_served of the score that
        lists by outcome rank by, within the scale.
        """
        o = self.outcomes.index(outcome)
        count, absolute, square, log_loss = self._sums[o].tolist()
        if not count:
            return {"count": 0}
        if self._logit[o]:
            return {"count": int(count), "log_loss": log_loss / count}
        found = {"count": int(count), "mae": absolute / count, "rmse": math.sqrt(square / count)}
        judged, absolute, square = self._served[o].tolist()  # fewer after an older snapshot
        if judged:
            found |= {"mae_served": absolute / judged, "rmse_served": math.sqrt(square / judged)}
        return found

    def spread(self, outcome: str) -> float | None:
        """Return the root mean square of what an outcome is off what is served; None if unknown.

        The factual head's stands in until half of the outcomes were judged by what is served.
        """
        o, found = self.outcomes.index(outcome), self.figures(outcome)
        most = 2 * self._served[o, 0] >= self._sums[o, 0]
        return found.get("rmse_served" if most else "rmse")

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of what is needed to load it again."""
        return {"sums": self._sums.copy(), "served": self._served.copy()}

    def load(self, state: dict[str, NDArray[Any]]) -> None:
        """The sums are the saved ones after the call; a state without `served` begins it."""
        self._sums[:] = state["sums"]
        self._served[:] = state.get("served", 0.0)
