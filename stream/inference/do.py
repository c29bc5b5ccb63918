"""A world that is set, against the world as it is.

Closed form of do(): the equation of what is set is replaced, all else stays (Pearl, Causality,
2009, section 3.2.1). The order of causes is attributes -> popularity -> position -> exposure ->
outcome. The model has an equation from attributes to exposure and to the outcome, and none to
popularity or position, so both are held where they are.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.inference import intervals, outcome, support
from stream.inference.attributes import Shift
from stream.inference.effect import showing
from stream.inference.model import Floats
from stream.inference.outcome import World
from stream.inference.rows import Pairs


@dataclass(frozen=True, slots=True)
class Do:
    """What is set; None leaves it as it is. Several at once hold together."""

    shown: bool | None = None
    position: int | None = None
    popularity: float | None = None
    attributes: Shift | None = None

    def world(self, cut: bool = False) -> World:
        """Return the world in which it is set."""
        return World(self.position or 1, self.popularity, self.attributes, cut)

    def closed(self, pairs: Pairs) -> list[str]:
        """Name what is set where nothing of it can change the outcome; empty where a part can."""
        names = support.closed(pairs.model, pairs.outcome, self.position, self.popularity)
        given = (self.position not in (None, 1)) + (self.popularity is not None)
        whole = self.shown is None and self.attributes is None and len(names) == given
        return names if whole else []


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two worlds compared, for n pairs; `interval` is None where no spread is known.

    None too where every path from what is set is closed: the effect is 0 because nothing else was
    learned, and how far that may be off the model cannot tell.
    """

    factual: Floats  # (n,)
    counterfactual: Floats  # (n,)
    effect: Floats  # (n,)
    interval: tuple[Floats, Floats] | None  # (n,) each, of the effect, 95 %
    own: NDArray[np.bool_]  # (n,) false: the average effect stands in


@dataclass(frozen=True, slots=True)
class Consumed:
    """Exposure times outcome, as a share of the scale: before, and by which way it changes."""

    factual: Floats  # (n,)
    direct: Floats  # (n,) change through the outcome, exposure held
    total: Floats  # (n,) change through both


def contrast(pairs: Pairs, do: Do) -> Contrast:
    """Return what `do` changes.

    With `shown` every other intervention holds in both arms, factual is the shown outcome and
    counterfactual the withheld; the effect is shown minus withheld for true, its negative for
    false. Without it factual is the outcome if shown at the first place with all else as it is, and
    the effect is counterfactual minus factual.
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


def _showing(pairs: Pairs, do: Do) -> Contrast:
    found = showing(pairs, do.world())
    variance = intervals.showing(pairs, found.treated, found.control, do.world())
    bounds = None if variance is None else intervals.around(found.value, variance)
    bounds = intervals.averaged(pairs, found.own, bounds)
    sign = 1.0 if do.shown else -1.0
    if bounds is not None and not do.shown:
        bounds = (-bounds[1], -bounds[0])
    counterfactual = found.treated.mean - found.value
    return Contrast(found.treated.mean, counterfactual, sign * found.value, bounds, found.own)


def consumed(pairs: Pairs, do: Do) -> Consumed:
    """Return what `do` changes in consumption (see `outcome.consumption`), directly and in all.

    In all: attributes also move the chance of exposure, through the biases of the exposure head.
    """
    worlds = outcome.IF_SHOWN, do.world(cut=True)
    before, after = (outcome.exposure(pairs, world) for world in worlds)
    factual, changed = (pairs.outcome.unit(outcome.shown(pairs, world).mean) for world in worlds)
    return Consumed(
        factual=before * factual,
        direct=before * (changed - factual),
        total=after * changed - before * factual,
    )
