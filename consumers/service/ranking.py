"""Scores from rows, with numpy only.

score = link^-1(global + user bias + item bias + user vector . item vector). A user without a row
has neither bias nor vector, so the fallback is the global mean and what the items are worth to
everyone, with their popularity nowhere in it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One outcome of the model: its place in the rows, its link and its scale."""

    index: int
    name: str
    link: str
    low: float
    high: float
    residual_sd: float | None

    def inverse(self, eta: Floats) -> Floats:
        """Return the expected outcome: a probability, or a value within the scale."""
        if self.link == "logit":
            return np.asarray(1.0 / (1.0 + np.exp(-np.clip(eta, -60.0, 60.0))), np.float32)
        return np.clip(eta, self.low, self.high)

    def interval(self, score: float) -> list[float] | None:
        """Return where 95 % of single outcomes lie, None while the model does not say.

        Taken from the spread of the progressive residuals; a click is 0 or 1 and has no such range.
        """
        if self.residual_sd is None or self.link == "logit":
            return None
        reach = 1.959964 * self.residual_sd
        return [max(self.low, score - reach), min(self.high, score + reach)]


def outcomes(model: dict[str, Any]) -> dict[str, Outcome]:
    """Return the outcomes that the published model declares, by name."""
    spread = model.get("residual_sd") or {}
    return {
        declared["name"]: Outcome(
            index=index,
            name=declared["name"],
            link=declared.get("link", "identity"),
            low=float(declared.get("low", 0.0)),
            high=float(declared.get("high", 1.0)),
            residual_sd=spread.get(declared["name"]),
        )
        for index, declared in enumerate(model["outcomes"])
    }


def score(
    outcome: Outcome,
    globals_: Floats,  # (O,)
    user: tuple[Floats, Floats] | None,  # (O,), (D,)
    bias: Floats,  # (n, O)
    vector: Floats,  # (n, D)
) -> Floats:
    """Return the expected outcome of each item, shape (n,)."""
    eta = bias[:, outcome.index] + globals_[outcome.index]  # (n,)
    if user is not None:
        user_bias, user_vector = user
        eta = eta + user_bias[outcome.index] + vector @ user_vector  # (n,)
    return outcome.inverse(eta)


def best(scores: Floats, k: int) -> NDArray[np.intp]:
    """Return the places of the k highest scores, best first; equal ones in the order of rows."""
    if k < len(scores):
        # all that reach the k-th score, so that ties at the border do not depend on the partition
        border = np.partition(scores, len(scores) - k)[len(scores) - k]
        places = np.flatnonzero(scores >= border)
    else:
        places = np.arange(len(scores))
    return places[np.argsort(-scores[places], kind="stable")][:k]
