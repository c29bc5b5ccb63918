"""What another policy would have earned, judged on the log of this one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.compiled import compiled
from stream.effects.moments import Moments, absorb, columns, interval

CLIP = 50.0  # caps one event's weight: 1 / .02, the floor of the propensities
ESS_SHARE = 0.01  # below it the judged policy does what the log has hardly seen


@compiled
def _add(  # type: ignore[no-untyped-def]
    reward, propensity, target, prediction, model, clip, counts, weight, mean, spread, decay,
):  # fmt: skip
    """Add the events one by one; counts: used, clipped, left out."""
    x = np.empty(3)
    for n in range(len(reward)):
        r, p, q = reward[n], propensity[n], target[n]
        if not (np.isfinite(r) and 0.0 < p <= 1.0 and 0.0 <= q <= 1.0):
            counts[2] += 1
            continue
        w = q / p
        if w > clip:
            w = clip
            counts[1] += 1
        known = np.isfinite(prediction[n]) and np.isfinite(model[n])
        x[0] = w
        x[1] = w * r
        # without a model the correction is all there is: the event's own inverse propensity score
        x[2] = model[n] + w * (r - prediction[n]) if known else w * r
        absorb(weight, mean, spread, x, decay)
        counts[0] += 1


class OffPolicy:
    """IPS, SNIPS and doubly robust values of a judged policy, each with interval and sample size.

    With w = min(target / propensity, clip): IPS mean(w r) (Horvitz and Thompson 1952); SNIPS
    sum(w r) / sum(w) (Swaminathan and Joachims 2015), its variance by the delta method; DR
    mean(model + w (r - prediction)) (Dudik et al. 2011). The effective sample size is
    (sum w)^2 / sum w^2 (Kish 1965); the alarm sounds when it falls below a share of the events.
    Clipping biases all three towards less; `clipped` counts how often it happened.
    """

    def __init__(
        self, clip: float = CLIP, ess_share: float = ESS_SHARE, decay: float = 1.0
    ) -> None:
        self.clip = clip
        self.ess_share = ess_share
        self._moments = Moments(3, decay)  # w, w r, doubly robust
        self._counts = np.zeros(3, np.int64)

    def update(
        self,
        reward: ArrayLike,
        propensity: ArrayLike,
        target: ArrayLike,
        prediction: ArrayLike,
        value: ArrayLike,
    ) -> None:
        """The events are counted after the call; columns (n,).

        `propensity`: the log's probability of the action taken; `target`: the judged policy's;
        `prediction`: the model's reward of the action taken; `value`: the model's reward of the
        judged policy there. Events without reward or propensity are left out.
        """
        m = self._moments
        r, p, q, taken, judged = columns(reward, propensity, target, prediction, value)
        _add(
            r, p, q, taken, judged, self.clip, self._counts,
            m.weight, m.mean, m.spread, m.decay,
        )  # fmt: skip

    @property
    def ess(self) -> float:
        """Return the effective sample size, 0 without events."""
        total = float(self._moments.weight[0])
        squares = float(self._moments.spread[0, 0]) + total * float(self._moments.mean[0]) ** 2
        return (total * float(self._moments.mean[0])) ** 2 / squares if squares else 0.0

    def figures(self) -> dict[str, Any]:
        """Return ips, snips and dr (value, interval, ess, estimator), n, clipped, left_out, alarm.

        A value is None without events, SNIPS also while every weight is 0; an interval under alarm.
        """
        used, clipped, left_out = self._counts.tolist()
        weight, earned, robust = self._moments.mean.tolist()
        covariance = self._moments.covariance()
        ess = self.ess
        alarm = bool(ess < self.ess_share * self._moments.weight[0])

        def said(estimator: str, value: float | None, slope: list[float]) -> dict[str, Any]:
            g = np.array(slope)
            variance = None if covariance is None else float(g @ covariance @ g)
            return {
                "estimator": estimator,
                "value": value,
                # few weights that all agree look certain
                "interval": None if value is None or alarm else interval(value, variance),
                "ess": ess,
            }

        ratio = earned / weight if weight else None
        return {
            "ips": said("IPS", earned if used else None, [0, 1, 0]),
            "snips": said(
                "SNIPS", ratio, [0, 0, 0] if ratio is None else [-ratio / weight, 1 / weight, 0]
            ),
            "dr": said("DR", robust if used else None, [0, 0, 1]),
            "n": used,
            "clipped": clipped,
            "left_out": left_out,
            "alarm": alarm,
        }

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of what is needed to load it again."""
        return {"counts": self._counts.copy(), **self._moments.state()}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The sums are the saved ones after the call."""
        self._counts[:] = state["counts"]
        self._moments.load(state)
