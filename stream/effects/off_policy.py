"""What another policy would have earned, judged on the log of this one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.compiled import compiled
from stream.effects.clusters import Clusters, bounds, few, gather
from stream.effects.moments import Array, columns

CLIP = 50.0  # caps one event's weight: 1 / .02, the floor of the propensities
ESS_SHARE = 0.01  # below it the judged policy does what the log has hardly seen
LEAST = 100.0  # effective events before there is a figure
ONE, W, WR, OFF = range(4)  # sums: events, weight, weighted reward, what the model says beside it
TINY = 1e-10  # of the model's part: what is left where it always says the same is rounding


@compiled
def _add(at, reward, propensity, target, prediction, model, clip, counts, sums):  # type: ignore[no-untyped-def]
    """Add the events one by one; counts: used, clipped, left out."""
    x = np.empty(4)
    for n in range(len(reward)):
        r, p, q = reward[n], propensity[n], target[n]
        if not (np.isfinite(r) and 0.0 < p <= 1.0 and 0.0 <= q <= 1.0):
            counts[2] += 1
            continue
        w = q / p
        if w > clip:
            w = clip
            counts[1] += 1
        x[ONE], x[W], x[WR] = 1.0, w, w * r
        # without a model the correction is all there is: the event's own inverse propensity score
        known = np.isfinite(prediction[n]) and np.isfinite(model[n])
        x[OFF] = model[n] - w * prediction[n] if known else 0.0
        gather(x, at[n], *sums)
        counts[0] += 1


class OffPolicy:
    """IPS, SNIPS and doubly robust values of a judged policy, each with interval and sample size.

    With w = min(target / propensity, clip): IPS mean(w r) (Horvitz and Thompson 1952); SNIPS
    sum(w r) / sum(w) (Swaminathan and Joachims 2015), its variance by the delta method; DR
    mean(w r) + l mean(model - w prediction) (Dudik et al. 2011), where l within [0, 1] gives the
    least variance, so that a model that knows nothing yet cannot widen it. The effective sample
    size is (sum w)^2 / sum w^2 (Kish 1965); the alarm sounds when it falls below a share of the
    events. Clipping biases all three towards less; `clipped` counts how often it happened.

    The variance is that of the users' sums: clicks of a slate and of a user go together.
    """

    def __init__(
        self,
        clip: float = CLIP,
        ess_share: float = ESS_SHARE,
        users: int = 0,
        least: float = LEAST,
    ) -> None:
        """Nothing is known; `users` rows may come, and figures after `least` effective events."""
        self.clip = clip
        self.ess_share = ess_share
        self._least = least
        self._sums = Clusters(4, users)
        self._counts = np.zeros(3, np.int64)

    def update(
        self,
        reward: ArrayLike,
        propensity: ArrayLike,
        target: ArrayLike,
        prediction: ArrayLike,
        value: ArrayLike,
        user: NDArray[np.int32] | None = None,
    ) -> None:
        """The events are counted after the call; columns (n,).

        `propensity`: the log's probability of the action taken; `target`: the judged policy's;
        `prediction`: the model's reward of the action taken; `value`: the model's reward of the
        judged policy there; `user`: rows, -1 or none at all: events of users of their own. Events
        without reward or propensity are left out.
        """
        r, p, q, taken, judged = columns(reward, propensity, target, prediction, value)
        at = self._sums.at(user, len(r))
        _add(at, r, p, q, taken, judged, self.clip, self._counts, self._sums.arrays)

    @property
    def ess(self) -> float:
        """Return the effective sample size, 0 without events."""
        squares = float(self._sums.window[W, W])
        return float(self._sums.total[W]) ** 2 / squares if squares else 0.0

    def figures(self) -> dict[str, Any]:
        """Return ips, snips and dr (value, interval, ess, estimator), n, clipped, left_out, alarm,
        users, reason.

        Below a least ess there is no value, SNIPS none either while every weight is 0; under alarm
        or from too few users' worth no interval. `reason` tells why.
        """
        used, clipped, left_out = self._counts.tolist()
        ess = self.ess
        alarm = bool(ess < self.ess_share * used)
        found = self._values() if used else {}
        spreads = {name: self._sums.spread(g) for name, (_, g) in found.items()}
        users = self._sums.worth
        reason = None
        if not used or ess < self._least:
            reason = f"an effective sample size of {ess:.0f} events, {self._least:.0f} needed"
        elif alarm:
            reason = f"an effective sample size below {self.ess_share:.0%} of the events"
        else:
            reason = few(users)
        if reason is None and "snips" in spreads and not spreads["snips"].variance:
            reason = "every reward was the same"  # which looks certain

        def said(name: str) -> dict[str, Any]:
            value = found[name][0] if name in found and ess >= self._least else None
            spread, between = spreads.get(name), None
            if value is not None and spread is not None and spread.variance and reason is None:
                between = bounds(value, spread, [spread.skew / spread.variance])
            return {
                "estimator": name.upper(),
                "value": value,
                "interval": between,
                "ess": ess,
            }

        return {
            **{name: said(name) for name in ("ips", "snips", "dr")},
            "n": used,
            "clipped": clipped,
            "left_out": left_out,
            "alarm": alarm,
            "users": users,
            "reason": reason,
        }

    def _values(self) -> dict[str, tuple[float, Array]]:
        """Return each value with its gradient (k,) in the sums."""
        n, weight, earned, off = self._sums.total.tolist()
        within = self._sums.within()
        by = np.array([-off / n, 0.0, 0.0, 1.0]) / n
        ips = np.array([-earned / n, 0.0, 1.0, 0.0]) / n
        size = float(by @ within @ by) + TINY * within[OFF, OFF] / n**2
        share = min(max(-float(by @ within @ ips) / size, 0.0), 1.0) if size else 0.0
        found = {"ips": (earned / n, ips), "dr": ((earned + share * off) / n, ips + share * by)}
        if weight:
            ratio = earned / weight
            found["snips"] = ratio, np.array([0.0, -ratio, 1.0, 0.0]) / weight
        return found

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of what is needed to load it again."""
        return {"counts": self._counts.copy(), **self._sums.state()}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The sums are the saved ones after the call.

        In a state of before users were told apart each event counts as a user of its own.
        """
        self._counts[:] = state["counts"]
        if "square" in state:
            self._sums.load({name: part for name, part in state.items() if name != "counts"})
        elif state["counts"][0]:
            turn = np.zeros((4, 3))  # its sums were w, w r and w r + what the model says beside it
            turn[W, 0] = turn[WR, 1] = turn[OFF, 2] = 1.0
            turn[OFF, 1] = -1.0
            mean = turn @ state["mean"]
            mean[ONE] = 1.0
            n = float(state["counts"][0])
            self._sums.begin(mean, turn @ state["spread"] @ turn.T / n, n)
