"""Progressive validation: every event is predicted before it is learned.

Two predictions are scored. The factual head is fitted to the observed outcomes and serves as
imputation model. The served score is the outcome if shown, at mean popularity. They differ by what
is corrected for selection and popularity.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.compiled import compiled


@compiled
def _add(sums, fair, logit, outcome, label, predicted, served, loss):  # type: ignore[no-untyped-def]
    """Add the events one by one, so that the sums do not depend on the division into polls."""
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
    """Running sums of the prediction errors of each outcome, since the first event ever learned."""

    def __init__(self, outcomes: Sequence[str], logit: Sequence[bool]) -> None:
        self.outcomes = tuple(outcomes)
        self._logit = np.array(logit, np.bool_)
        self._sums = np.zeros((len(self.outcomes), 4))  # count, sums of |e|, e² and log loss
        self._served = np.zeros((len(self.outcomes), 3))  # the same without log loss, served score

    def update(
        self,
        outcome: NDArray[np.int8],
        label: NDArray[np.float32],
        predicted: NDArray[np.float32],
        served: NDArray[np.float32],
    ) -> NDArray[np.float64]:
        """Add the events to the sums; return each event's loss (B,) under the factual head.

        Parameters
        ----------
        outcome
            Index of each event's outcome (B,).
        label
            Observed values (B,).
        predicted
            Predictions of the factual head (B,).
        served
            Predictions of the served score (B,).
        """
        loss = np.empty(len(outcome), np.float64)
        _add(self._sums, self._served, self._logit, outcome, label, predicted, served, loss)
        return loss

    def figures(self, outcome: str) -> dict[str, float]:
        """Return the count and the mean errors of an outcome; the count alone if it is 0.

        With the identity link the errors are mae and rmse of the factual head, and mae_served and
        rmse_served of the served score by which lists are ranked, clipped to the scale. With the
        logit link the error is log_loss of the factual head.
        """
        o = self.outcomes.index(outcome)
        count, absolute, square, log_loss = self._sums[o].tolist()
        if not count:
            return {"count": 0}
        if self._logit[o]:
            return {"count": int(count), "log_loss": log_loss / count}
        found = {"count": int(count), "mae": absolute / count, "rmse": math.sqrt(square / count)}
        judged, absolute, square = self._served[o].tolist()  # fewer after an old snapshot
        if judged:
            found |= {"mae_served": absolute / judged, "rmse_served": math.sqrt(square / judged)}
        return found

    def spread(self, outcome: str) -> float | None:
        """Return the root mean square error of the served score; None if unknown.

        The error of the factual head is returned until half of the outcomes have a served score.
        """
        o, found = self.outcomes.index(outcome), self.figures(outcome)
        most = 2 * self._served[o, 0] >= self._sums[o, 0]
        return found.get("rmse_served" if most else "rmse")

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays that `load` needs."""
        return {"sums": self._sums.copy(), "served": self._served.copy()}

    def load(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore saved sums; the sums of the served score start at 0 if the state has none."""
        self._sums[:] = state["sums"]
        self._served[:] = state.get("served", 0.0)
