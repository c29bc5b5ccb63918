"""What showing changes: E[outcome | shown] - E[outcome | withheld].

Both arms stand in the world as it is (position 1, present popularity): showing is all that differs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.inference.model import Floats
from stream.inference.outcome import AS_IT_IS, Arm, World, shown, withheld
from stream.inference.rows import Pairs


@dataclass(frozen=True, slots=True)
class Showing:
    """The effect of showing n items; where `own` is false it is the average effect."""

    treated: Arm
    control: Arm
    value: Floats  # (n,)
    own: NDArray[np.bool_]  # (n,)


def showing(pairs: Pairs, world: World = AS_IT_IS) -> Showing:
    """Return the effect of showing each item.

    An item without a control outcome of its own has no effect that the data speak of. It gets the
    average effect, so it ranks neither by its outcome nor last; `own` tells.
    """
    treated, control = shown(pairs, world), withheld(pairs, world)
    value, own = treated.mean - control.mean, pairs.has_control
    return Showing(treated, control, np.where(own, value, _average(pairs, value, own)), own)


def _average(pairs: Pairs, value: Floats, own: NDArray[np.bool_]) -> float:
    """Return the published average effect, else this user's mean over items with controls."""
    said = pairs.model.averages.get(pairs.outcome.name)
    if said is not None and np.isfinite(said.value):
        return said.value
    return float(value[own].mean()) if own.any() else 0.0
