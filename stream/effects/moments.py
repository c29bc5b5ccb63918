"""Running mean and covariance of a vector, decayed where asked."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.compiled import compiled

Array = NDArray[np.float64]
Z95 = 1.959963984540054  # the normal's .975 quantile


@compiled
def absorb(weight, mean, spread, x, decay):  # type: ignore[no-untyped-def]
    """Mean (k,) and spread (k, k), the sum of weighted products of deviations, hold x as well.

    Welford (1962), with weights decay^age: W' = decay W + 1, spread' = decay spread +
    (x - mean)(x - mean)^T (1 - 1/W'). `weight` is (sum of weights, sum of their squares).
    """
    weight[0] = decay * weight[0] + 1.0
    weight[1] = decay * decay * weight[1] + 1.0
    share = 1.0 / weight[0]
    k = len(mean)
    for a in range(k):
        for b in range(k):
            spread[a, b] = decay * spread[a, b] + (x[a] - mean[a]) * (x[b] - mean[b]) * (1 - share)
    for a in range(k):
        mean[a] += (x[a] - mean[a]) * share


class Moments:
    """The mean of k numbers and the covariance of that mean; kernels write into the arrays."""

    def __init__(self, k: int, decay: float = 1.0) -> None:
        if not 0 < decay <= 1:
            raise ValueError(f"decay must be in (0, 1], not {decay}")
        self.decay = decay
        self.weight = np.zeros(2)
        self.mean = np.zeros(k)
        self.spread = np.zeros((k, k))

    def covariance(self) -> Array | None:
        """Return the covariance (k, k) of the mean; None below two events."""
        total, squares = self.weight.tolist()
        if total * total <= squares:
            return None
        each: Array = self.spread / (total - squares / total)
        return each * (squares / (total * total))

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of what is needed to load it again."""
        return {
            "weight": self.weight.copy(),
            "mean": self.mean.copy(),
            "spread": self.spread.copy(),
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The moments are the saved ones after the call."""
        self.weight[:], self.mean[:] = state["weight"], state["mean"]
        self.spread[:] = state["spread"]


def interval(value: float, variance: float | None) -> list[float] | None:
    """Return the normal 95 % interval [low, high]; None without a variance."""
    if variance is None:
        return None
    half = Z95 * math.sqrt(max(variance, 0.0))
    return [value - half, value + half]


def columns(*values: ArrayLike) -> list[Array]:
    """Return the values as the kernels take them; ValueError unless they are equally long.

    The kernels do not look where a column ends.
    """
    made = [np.ascontiguousarray(v, np.float64) for v in values]
    if len({len(v) for v in made}) > 1:
        raise ValueError(f"columns of different lengths: {[len(v) for v in made]}")
    return made
