"""The effect of showing: E[outcome | shown] - E[outcome | withheld].

Both arms are in the world as it is (position 1, current popularity); they differ only in showing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.inference.model import Floats
from stream.inference.outcome import AS_IT_IS, Arm, Scenario, shown, withheld
from stream.inference.rows import ServedPairs


@dataclass(frozen=True, slots=True)
class Showing:
    """The effect of showing n items; where `own` is false it is the average effect."""

    treated: Arm
    control: Arm
    value: Floats  # (n,)
    own: NDArray[np.bool_]  # (n,)


def showing(pairs: ServedPairs, world: Scenario = AS_IT_IS) -> Showing:
    """Return the effect of showing each item.

    For an item without control outcomes of its own, the data contain no effect. It gets the average
    effect, so that it ranks neither by its outcome nor last; `own` is false for it.
    """
    treated, control = shown(pairs, world), withheld(pairs, world)
    value, own = treated.mean - control.mean, pairs.has_control
    return Showing(treated, control, np.where(own, value, _average(pairs, value, own)), own)


def _average(pairs: ServedPairs, value: Floats, own: NDArray[np.bool_]) -> float:
    """Return the published average effect, or else this user's mean over items with controls."""
    said = pairs.model.averages.get(pairs.outcome.name)
    if said is not None and np.isfinite(said.value):
        return said.value
    return float(value[own].mean()) if own.any() else 0.0
