"""The average effect of showing, from closed windows of shown and withheld items."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.compiled import compiled
from stream.effects.moments import Moments, absorb, columns, interval

LOGGED = "AIPW"
SHARE = "AIPW, share of shown as show_probability"
RANDOMISED = "each window was shown with its logged show_probability"
CONSTANT = "windows were withheld at random with one probability, which was not logged"


@compiled
def _add(  # type: ignore[no-untyped-def]
    shown, outcome, chance, treated, control, arms, counts,
    weight, mean, spread, share_weight, share_mean, share_spread, decay,
):  # fmt: skip
    """Add the windows one by one; arms (2, 2): how many and mean outcome, withheld and shown."""
    psi = np.empty(1)
    parts = np.empty(4)
    for n in range(len(outcome)):
        y = outcome[n]
        if not np.isfinite(y):
            continue
        arm = 1 if shown[n] else 0
        mu = treated[n], control[n]
        # without a prediction the mean of the arm so far: it does not know this window either
        mu1 = mu[0] if np.isfinite(mu[0]) else arms[1, 1]
        mu0 = mu[1] if np.isfinite(mu[1]) else arms[0, 1]
        e = chance[n]
        logged = 0.0 < e < 1.0
        residual = y - mu1 if arm else y - mu0
        if logged:
            psi[0] = mu1 - mu0 + (residual / e if arm else -residual / (1 - e))
            absorb(weight, mean, spread, psi, decay)
        else:
            parts[0] = arm
            parts[1] = mu1 - mu0
            parts[2] = residual if arm else 0.0
            parts[3] = 0.0 if arm else residual
            absorb(share_weight, share_mean, share_spread, parts, decay)
        counts[0 if logged else 1, arm] += 1
        arms[arm, 0] = decay * arms[arm, 0] + 1
        arms[arm, 1] += (y - arms[arm, 1]) / arms[arm, 0]


class AverageEffect:
    """Augmented inverse propensity weighting (Robins, Rotnitzky and Zhao 1994), running.

    psi = mu1 - mu0 + D (y - mu1) / e - (1 - D) (y - mu0) / (1 - e); the value is its mean, the
    variance that of its influence function. mu1 and mu0 must have been predicted before the window
    closed; then the value is unbiased however wrong they are, because e is known. It is the
    average over the windows that the policy chose, not over all users and items.

    Windows count only if they were randomised (0 < e < 1). If none was, but some were withheld,
    e was not logged: the share of shown windows takes its place, and the figures say so.
    """

    def __init__(self, decay: float = 1.0) -> None:
        self._logged = Moments(1, decay)
        self._share = Moments(4, decay)  # D, mu1 - mu0, D r, (1 - D) r
        self._arms = np.zeros((2, 2))
        self._counts = np.zeros((2, 2), np.int64)  # (logged, not logged) x (withheld, shown)

    def update(
        self,
        shown: ArrayLike,
        outcome: ArrayLike,
        show_probability: ArrayLike,
        treated: ArrayLike,
        control: ArrayLike,
    ) -> None:
        """The closed windows are counted after the call; columns (n,), nan outcomes left out."""
        a, b = self._logged, self._share
        arm, y, e, mu1, mu0 = columns(shown, outcome, show_probability, treated, control)
        _add(
            arm, y, e, mu1, mu0, self._arms, self._counts,
            a.weight, a.mean, a.spread, b.weight, b.mean, b.spread, a.decay,
        )  # fmt: skip

    def figures(self) -> dict[str, Any]:
        """Return value, 95 % interval, shown, withheld, estimator, assumption; None: unknown."""
        logged, share = self._counts.tolist()
        if min(logged) > 0:
            value, variance = self._from_logged()
            return _said(value, variance, logged, LOGGED, RANDOMISED)
        if min(share) > 0:
            value, variance = self._from_share()
            return _said(value, variance, share, SHARE, CONSTANT)
        counts = [a + b for a, b in zip(logged, share, strict=True)]
        return _said(None, None, counts, LOGGED, RANDOMISED)

    def _from_logged(self) -> tuple[float, float | None]:
        covariance = self._logged.covariance()
        return float(self._logged.mean[0]), None if covariance is None else float(covariance[0, 0])

    def _from_share(self) -> tuple[float, float | None]:
        """With e the share of shown: mean(d) + mean(r | shown) - mean(r | withheld).

        It is a ratio of means, so its influence function (delta method) is linear in the four.
        """
        e, difference, up, down = self._share.mean.tolist()
        up, down = up / e, down / (1 - e)
        slope = np.array([-up / e - down / (1 - e), 1.0, 1 / e, -1 / (1 - e)])
        covariance = self._share.covariance()
        variance = None if covariance is None else float(slope @ covariance @ slope)
        return difference + up - down, variance

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of what is needed to load it again."""
        return {
            "arms": self._arms.copy(),
            "counts": self._counts.copy(),
            **{f"logged.{name}": part for name, part in self._logged.state().items()},
            **{f"share.{name}": part for name, part in self._share.state().items()},
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The effect is the saved one after the call."""
        self._arms[:], self._counts[:] = state["arms"], state["counts"]
        for prefix, part in (("logged", self._logged), ("share", self._share)):
            part.load({name: state[f"{prefix}.{name}"] for name in ("weight", "mean", "spread")})


def _said(
    value: float | None, variance: float | None, counts: list[int], estimator: str, assumption: str
) -> dict[str, Any]:
    return {
        "value": value,
        "interval": None if value is None else interval(value, variance),
        "shown": counts[1],
        "withheld": counts[0],
        "estimator": estimator,
        "assumption": assumption,
    }
