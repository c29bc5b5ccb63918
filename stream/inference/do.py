"""Compares the world under an intervention with the world as it is.

This is do() in closed form: the equation of the variable that is set is replaced, and all else
stays (Pearl, Causality, 2009, section 3.2.1). The causal order is attributes -> popularity ->
position -> exposure -> outcome. The model has equations from attributes to exposure and to the
outcome but none to popularity or position, so both are held at their values.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.inference import intervals, outcome, support
from stream.inference.attributes import Shift
from stream.inference.effect import showing
from stream.inference.model import Floats
from stream.inference.outcome import Scenario
from stream.inference.rows import ServedPairs


@dataclass(frozen=True, slots=True)
class Do:
    """An intervention; None leaves a variable as it is. Several variables may be set together."""

    shown: bool | None = None
    position: int | None = None
    popularity: float | None = None
    attributes: Shift | None = None

    def world(self, cut: bool = False) -> Scenario:
        """Return the world under the intervention."""
        return Scenario(self.position or 1, self.popularity, self.attributes, cut)

    def closed(self, pairs: ServedPairs) -> list[str]:
        """Return the set variables if none of them can change the outcome, else an empty list."""
        names = support.closed(pairs.model, pairs.outcome, self.position, self.popularity)
        given = (self.position not in (None, 1)) + (self.popularity is not None)
        whole = self.shown is None and self.attributes is None and len(names) == given
        return names if whole else []


@dataclass(frozen=True, slots=True)
class Contrast:
    """A comparison of two worlds for n pairs; `interval` is None if no variance is known.

    It is also None if every path from the set variables is closed: then the effect is 0 because
    nothing was learned about it, and the model cannot tell how large the error may be.
    """

    factual: Floats  # (n,)
    counterfactual: Floats  # (n,)
    effect: Floats  # (n,)
    interval: tuple[Floats, Floats] | None  # (n,) each, of the effect, 95 %
    own: NDArray[np.bool_]  # (n,) false: the average effect is used


@dataclass(frozen=True, slots=True)
class Consumed:
    """Exposure times outcome, as a share of the scale: its factual value and its changes."""

    factual: Floats  # (n,)
    direct: Floats  # (n,) change through the outcome, with exposure unchanged
    total: Floats  # (n,) change through exposure and outcome


def contrast(pairs: ServedPairs, do: Do) -> Contrast:
    """Return what the intervention changes.

    If `shown` is set, every other intervention holds in both arms; factual is the outcome if shown
    and counterfactual the outcome if withheld. The effect is shown minus withheld for true, and its
    negative for false. Otherwise factual is the outcome if shown at the first position with all
    else as it is, and the effect is counterfactual minus factual.
    """
    if do.shown is not None:
        return _showing(pairs, do)
    before, after = outcome.shown(pairs), outcome.shown(pairs, do.world())
    effect = after.mean - before.mean
    variance = intervals.change(pairs, before, after, do.world())
    bounds = None
    if variance is not None and not do.closed(pairs):
        bounds = intervals.around(effect, variance)
    return Contrast(before.mean, after.mean, effect, bounds, np.ones(len(pairs), np.bool_))


def _showing(pairs: ServedPairs, do: Do) -> Contrast:
    """Return the contrast of shown and withheld."""
    found = showing(pairs, do.world())
    variance = intervals.showing(pairs, found.treated, found.control, do.world())
    bounds = None if variance is None else intervals.around(found.value, variance)
    bounds = intervals.averaged(pairs, found.own, bounds)
    sign = 1.0 if do.shown else -1.0
    if bounds is not None and not do.shown:
        bounds = (-bounds[1], -bounds[0])
    counterfactual = found.treated.mean - found.value
    return Contrast(found.treated.mean, counterfactual, sign * found.value, bounds, found.own)


def consumed(pairs: ServedPairs, do: Do) -> Consumed:
    """Return what the intervention changes in consumption (see `outcome.consumption`).

    In the total change, attributes also act on the probability of exposure, through the biases of
    the exposure head.
    """
    worlds = outcome.IF_SHOWN, do.world(cut=True)
    before, after = (outcome.exposure(pairs, world) for world in worlds)
    factual, changed = (pairs.outcome.unit(outcome.shown(pairs, world).mean) for world in worlds)
    return Consumed(
        factual=before * factual,
        direct=before * (changed - factual),
        total=after * changed - before * factual,
    )
