"""Refuses what was never observed, with a reason; None means that it is supported."""

from collections.abc import Mapping, Sequence

import numpy as np

from stream.inference.model import Floats, PublishedModel, PublishedOutcome
from stream.inference.rows import ServedFeatures


def position(model: PublishedModel, outcome: PublishedOutcome, position: int) -> str | None:
    """Return why clicks at that position cannot be predicted; ratings do not depend on position."""
    known = len(model.theta)
    if outcome.link != "logit" or position <= known:
        return None
    return f"no position beyond {known} has been observed"


def closed(
    model: PublishedModel, outcome: PublishedOutcome, position: int | None, count: float | None
) -> list[str]:
    """Return the set variables without a path to the outcome, whose effect is 0 by assumption.

    Ratings have no path from the position, and popularity has none where it was not learned.
    """
    names = []
    if position not in (None, 1) and outcome.link != "logit":
        names.append("position")
    if count is not None and model.kappa[outcome.index] == 0.0:
        names.append("popularity")
    return names


def popularity(q: Floats, count: float) -> str | None:
    """Return why that popularity is outside the range of the items' q = log(1 + count) (n,)."""
    if not len(q):
        return "no item has a popularity yet"
    low, high = np.expm1(float(q.min())), np.expm1(float(q.max()))
    slack = 1e-6 * (1.0 + high)  # q is rounded to float32
    if low - slack <= count <= high + slack:
        return None
    return f"popularity is between {low:.6g} and {high:.6g} in the observed data"


def attribute(
    name: str,
    links: Sequence[tuple[str, float]],
    rows: Mapping[str, int],
    features: ServedFeatures,
) -> str | None:
    """Return why that value of an attribute is not supported; None if it is.

    `links` are the value's own, `rows` maps their names to indices in the features. A text or
    boolean must have been observed, and a number must lie within the observed range.
    """
    for feature, value in links:
        said = feature.rpartition("\x1f")[2]
        at = rows.get(feature)
        seen = at is not None and bool(features.present[at])
        if said.startswith("=") and not seen:
            return f"{name} {said[1:]} has never been observed"
        if said == "#":
            if at is None or not seen:
                return f"{name} has never been observed as a number"
            low, high = features.range[at, 0], features.range[at, 1]
            slack = 1e-6 * max(1.0, abs(low), abs(high))  # bounds are rounded to float32
            if not low - slack <= value <= high + slack:
                return f"{name} is between {low:.6g} and {high:.6g} in the observed data"
    return None
