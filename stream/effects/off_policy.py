"""Off-policy evaluation: what another policy would have earned, estimated from this one's log."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.compiled import compiled
from stream.effects.clusters import Clusters, bounds, few, gather
from stream.effects.moments import Array, columns

CLIP = 50.0  # caps one event's weight: 1 / .02, the floor of the propensities
ESS_SHARE = 0.01  # alarm below it: the log hardly contains the judged policy's actions
LEAST = 100.0  # effective events needed for a value
ONE, W, WR, OFF = range(4)  # sums: events, weight, weighted reward, the model's correction
TINY = 1e-10  # relative size below which the variance of the model's correction is rounding


@compiled
def _add(at, reward, propensity, target, prediction, model, clip, counts, sums):  # type: ignore[no-untyped-def]
    """Add the events one by one; `counts` holds how many were used, clipped and left out."""
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
        # without a prediction DR reduces to the event's inverse propensity score
        known = np.isfinite(prediction[n]) and np.isfinite(model[n])
        x[OFF] = model[n] - w * prediction[n] if known else 0.0
        gather(x, at[n], *sums)
        counts[0] += 1


class OffPolicy:
    """IPS, SNIPS and doubly robust (DR) values of a judged policy, with intervals and sample size.

    With w = min(target / propensity, clip):

    - IPS is mean(w r) (Horvitz and Thompson, 1952).
    - SNIPS is sum(w r) / sum(w) (Swaminathan and Joachims, 2015), its variance by the delta method.
    - DR is mean(w r) + l mean(model - w prediction) (Dudik et al., 2011), where l in [0, 1]
      minimises the variance, so that an untrained reward model cannot widen the interval.

    The effective sample size is (sum w)^2 / sum w^2 (Kish, 1965); `alarm` is true when it falls
    below a share of the events. Clipping biases all three values downwards for rewards of at least
    0; `clipped` counts the clipped events. The variance is that of the users' sums, because the
    clicks of one slate and of one user are dependent.

    Parameters
    ----------
    clip
        The largest weight of an event.
    ess_share
        The share of the events below which the effective sample size raises the alarm.
    users
        The most user rows; address space for them is reserved.
    least
        The effective sample size needed for a value.
    """

    def __init__(
        self,
        clip: float = CLIP,
        ess_share: float = ESS_SHARE,
        users: int = 0,
        least: float = LEAST,
    ) -> None:
        """Start without any events."""
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
        """Add events; columns have shape (n,), events without reward or propensity are left out.

        Parameters
        ----------
        reward
            The observed reward.
        propensity
            The logging policy's probability of the action taken.
        target
            The judged policy's probability of the action taken.
        prediction
            The model's expected reward of the action taken.
        value
            The model's expected reward under the judged policy.
        user
            User rows; -1, or None for all, makes each event a user of its own.
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
        """Return ips, snips and dr, n, clipped, left_out, alarm, users and reason.

        Each of ips, snips and dr has value, interval, ess and estimator. There is no value below
        the least ess, and none for SNIPS while every weight is 0. There is no interval under alarm
        or from too few users; `reason` says why.
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
            reason = "every reward was the same"  # the variance of 0 would look like certainty

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
        """Return copies of the arrays that `load` needs."""
        return {"counts": self._counts.copy(), **self._sums.state()}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore saved sums.

        In an old state, which did not distinguish users, each event counts as a user of its own.
        """
        self._counts[:] = state["counts"]
        if "square" in state:
            self._sums.load({name: part for name, part in state.items() if name != "counts"})
        elif state["counts"][0]:
            turn = np.zeros((4, 3))  # old sums: w, w r, and w r plus the model's correction
            turn[W, 0] = turn[WR, 1] = turn[OFF, 2] = 1.0
            turn[OFF, 1] = -1.0
            mean = turn @ state["mean"]
            mean[ONE] = 1.0
            n = float(state["counts"][0])
            self._sums.begin(mean, turn @ state["spread"] @ turn.T / n, n)
