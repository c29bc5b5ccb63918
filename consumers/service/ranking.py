"""Lists from pairs: the score of an objective in a world, its interval, and the best of them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stream.inference import intervals, outcome
from stream.inference.do import Do, contrast
from stream.inference.effect import showing
from stream.inference.model import Floats, Outcome
from stream.inference.rows import Pairs

IntervalKind = Literal["predictive", "model-based", "within-item", "average"]

AVERAGE = "no control outcome of this item was observed; the average effect stands in"
USUAL = "no control outcome of this item was observed; user and attributes alone speak for it"


def standing_in(pairs: Pairs) -> str:
    """Return what an item without a control outcome is told, and why without an interval."""
    said = pairs.model.averages.get(pairs.outcome.name)
    if said is None or said.interval is not None or said.reason is None:
        return AVERAGE
    return f"{AVERAGE}, without an interval: {said.reason}"


@dataclass(frozen=True, slots=True)
class Judged:
    """What is said of a score beside it."""

    interval: list[float] | None
    kind: IntervalKind | None
    own: bool | None = None  # whether its own control speaks; None where none is needed
    reason: str | None = None  # what speaks where it does not


def scores(pairs: Pairs, objective: str, do: Do) -> Floats:
    """Return what the items are ranked by (n,), in the world that `do` sets.

    outcome: expected if shown, or if withheld where `do` says so. effect: shown minus withheld.
    consumption: chance of exposure times the outcome as a share of its scale; showing sets the
    chance to 1. Not cut at the ends of the scale (see `displayed`), where items would tie.
    """
    if objective == "effect":
        return showing(pairs, do.world()).value
    if objective == "consumption":
        share = pairs.outcome.unit(_beyond(pairs, outcome.shown(pairs, do.world(cut=True))))
        return share if do.shown else outcome.exposure(pairs, do.world()) * np.minimum(share, 1.0)
    if do.shown is False:
        return _beyond(pairs, outcome.withheld(pairs, do.world()))
    return _beyond(pairs, outcome.shown(pairs, do.world(cut=True)))


def _beyond(pairs: Pairs, arm: outcome.Arm) -> Floats:
    """Return what is expected (n,), of ratings also beyond the ends of their scale."""
    return arm.eta if pairs.outcome.link == "identity" else arm.mean


def displayed(of: Outcome, objective: str, score: Floats) -> Floats:
    """Return the scores (n,) within the scale that they are of, in the same order."""
    if objective == "effect":
        return score
    if objective == "consumption":
        return np.clip(score, 0.0, 1.0)
    return np.clip(score, of.low, of.high)


def judge(pairs: Pairs, objective: str, do: Do, score: Floats) -> list[Judged]:
    """Return interval and support of each score (n,), as it is displayed."""
    if objective == "effect":
        found = contrast(pairs, Do(True, do.position, do.popularity, do.attributes))
        bounds = _bounds(found.interval, len(pairs))
        kinds: list[IntervalKind] = [
            "model-based" if own else "average" for own in found.own.tolist()
        ]
        instead = standing_in(pairs)
        return [
            Judged(each, kind if each else None, own, None if own else instead)
            for each, kind, own in zip(bounds, kinds, found.own.tolist(), strict=True)
        ]
    if objective == "consumption":
        return [Judged(None, None)] * len(pairs)
    if do.shown is False:
        return [
            Judged(None, None, own, None if own else USUAL) for own in pairs.has_control.tolist()
        ]
    world = do.world(cut=True)
    arm = outcome.shown(pairs, world)
    if pairs.outcome.link == "identity":
        one = _bounds(intervals.predictive(pairs, arm, world), len(pairs))
        return [Judged(each, "predictive" if each else None) for each in one]
    expected = intervals.expected(pairs, arm, world) if pairs.model.causal else None
    return [Judged(each, "model-based" if each else None) for each in _bounds(expected, len(pairs))]


def _bounds(found: tuple[Floats, Floats] | None, size: int) -> list[list[float] | None]:
    if found is None:
        return [None] * size
    pairs = zip(found[0].tolist(), found[1].tolist(), strict=True)
    return [None if low != low or high != high else [low, high] for low, high in pairs]


def best(scores: Floats, k: int) -> NDArray[np.intp]:
    """Return the places of the k highest scores, best first; equal ones in the order of rows."""
    if k < len(scores):
        # all that reach the k-th score, so that ties at the border do not depend on the partition
        border = np.partition(scores, len(scores) - k)[len(scores) - k]
        places = np.flatnonzero(scores >= border)
    else:
        places = np.arange(len(scores))
    return places[np.argsort(-scores[places], kind="stable")][:k]
