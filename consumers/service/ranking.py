"""Ranking pairs of a user and items: scores by objective, intervals, and the best items."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stream.inference import intervals, outcome
from stream.inference.do import Do, contrast
from stream.inference.effect import showing
from stream.inference.model import Floats, PublishedOutcome
from stream.inference.rows import ServedPairs

IntervalKind = Literal["predictive", "model-based", "within-item", "average"]

AVERAGE = "no control outcome of this item was observed; the average effect is used instead"
USUAL = "no control outcome of this item was observed; user and attributes alone determine it"


def standing_in(pairs: ServedPairs) -> str:
    """Return the reason given for an item without a control outcome of its own.

    It also says why the average effect that is used instead has no interval, if it has none.
    """
    said = pairs.model.averages.get(pairs.outcome.name)
    if said is None or said.interval is not None or said.reason is None:
        return AVERAGE
    return f"{AVERAGE}, without an interval: {said.reason}"


@dataclass(frozen=True, slots=True)
class Judged:
    """Interval and support of one score."""

    interval: list[float] | None
    kind: IntervalKind | None
    own: bool | None = None  # whether the item has a control outcome; None if none is needed
    reason: str | None = None  # what is used instead, if it has none


def scores(pairs: ServedPairs, objective: str, do: Do) -> Floats:
    """Return the scores (n,) to rank by, in the world that `do` sets.

    Scores are not clipped to the outcome's scale, where items would tie; see `displayed`.

    Parameters
    ----------
    pairs : Pairs
        The user paired with n items.
    objective : str
        `outcome`: expected outcome if shown, or if withheld where `do` says so. `effect`: shown
        minus withheld. `consumption`: probability of exposure times the outcome as a share of its
        scale; with `do.shown` the probability is 1.
    do : Do
        The intervention.
    """
    if objective == "effect":
        return showing(pairs, do.world()).value
    if objective == "consumption":
        share = pairs.outcome.unit(_beyond(pairs, outcome.shown(pairs, do.world(cut=True))))
        return share if do.shown else outcome.exposure(pairs, do.world()) * np.minimum(share, 1.0)
    if do.shown is False:
        return _beyond(pairs, outcome.withheld(pairs, do.world()))
    return _beyond(pairs, outcome.shown(pairs, do.world(cut=True)))


def _beyond(pairs: ServedPairs, arm: outcome.Arm) -> Floats:
    """Return the expected outcomes (n,); ratings may lie outside their scale."""
    return arm.eta if pairs.outcome.link == "identity" else arm.mean


def displayed(of: PublishedOutcome, objective: str, score: Floats) -> Floats:
    """Return the scores (n,) clipped to their scale, in the same order."""
    if objective == "effect":
        return score
    if objective == "consumption":
        return np.clip(score, 0.0, 1.0)
    return np.clip(score, of.low, of.high)


def judge(pairs: ServedPairs, objective: str, do: Do, score: Floats) -> list[Judged]:
    """Return interval and support of each displayed score (n,)."""
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
    """Return the intervals as lists, None where a bound is NaN."""
    if found is None:
        return [None] * size
    pairs = zip(found[0].tolist(), found[1].tolist(), strict=True)
    return [None if low != low or high != high else [low, high] for low, high in pairs]


def best(scores: Floats, k: int) -> NDArray[np.intp]:
    """Return the indices of the k highest scores, best first; ties in the order of rows."""
    if k < len(scores):
        # take all items that reach the k-th score, so that ties do not depend on the partition
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        rows = np.flatnonzero(scores >= threshold)
    else:
        rows = np.arange(len(scores))
    return rows[np.argsort(-scores[rows], kind="stable")][:k]
