"""How attributes enter a row, and what other attributes would change.

A row's links are the values of its attributes. With n links, each enters every bias and vector of
the row with the weight value / sqrt(n), as the learner folds them in; so another value changes the
score by the difference of two such sums, plus the weights' own change where n changes. This is
do(attribute = v) in closed form: the intervention replaces the structural assignment of the
attribute alone (Pearl, Causality, 2009, section 3.2), its descendants being the score and exposure.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.inference.model import Floats, Model, Outcome
from stream.inference.rows import Features, User

PRIOR_EVENTS = 3.0  # what is known of a coefficient before its first event, in events


@dataclass(frozen=True, slots=True)
class Links:
    """Which values n rows are linked to; `count` holds the links that weights divide by."""

    owner: NDArray[np.intp]  # (m,) place of the row
    feature: NDArray[np.intp]  # (m,) row of the feature
    value: Floats  # (m,) 1, or a number as it is given
    count: NDArray[np.intp]  # (n,)


@dataclass(frozen=True, slots=True)
class Shift:
    """What other attributes would change in n rows, on the link scale of one outcome."""

    shown: Floats  # (n,)
    withheld: Floats  # (n,)
    exposure: Floats  # (n, H)
    variance: Floats  # (n,) of the change in either arm, in residual variances; nan: not asked for


def linked(
    owner: NDArray[np.intp],  # (m,)
    feature: NDArray[np.intp],  # (m,)
    value: Floats,  # (m,)
    rows: int,
    features: Features,
    fresh: NDArray[np.bool_] | None = None,  # (m,)
    most: int = 2**31,
) -> Links:
    """Return the links as the learner has them; m are in the order of their rows.

    A value without a row was refused by the learner, so it does not count, but where `fresh` says
    that it would be new: it counts then, with a coefficient of 0. At most `most` stay per row.
    """
    there = features.present[feature] if fresh is None else features.present[feature] | fresh
    owner, feature, value = owner[there], feature[there], value[there]
    first = np.searchsorted(owner, owner)  # where each link's row begins
    kept = np.arange(len(owner)) - first < most
    owner, feature, value = owner[kept], feature[kept], value[kept]
    return Links(owner, feature, value, np.bincount(owner, minlength=rows))


def weights(links: Links, features: Features) -> Floats:
    """Return how strongly each link enters its row (m,): value / sqrt(n), numbers standardised.

    What is no number has center and scale 0.
    """
    center, scale = features.range[links.feature, 2], features.range[links.feature, 3]
    value = (links.value - center) / np.where(scale > 0.0, scale, 1.0)
    return np.asarray(value / np.sqrt(links.count[links.owner]))


def fold(links: Links, weight: Floats, coefficient: Floats) -> Floats:
    """Return the sum over each row's links (n,) of weight (m,) times coefficient (F,)."""
    parts = weight * coefficient[links.feature]
    return np.bincount(links.owner, parts, minlength=len(links.count)).astype(np.float64)


def coefficients(
    outcome: Outcome, outcomes: int, features: Features, user: User
) -> tuple[Floats, Floats]:
    """Return what each value adds for this user, shown and withheld (F,) each: b + v . g."""
    match = features.vector @ user.vector[: features.vector.shape[1]]
    shown = features.bias[:, outcome.index] + match
    return shown, features.bias[:, outcomes + outcome.index] + match


def shift(
    outcome: Outcome,
    model: Model,
    features: Features,
    user: User,
    old: Links,
    new: Links,
    spread: bool = True,
) -> Shift:
    """Return what changes for this user when the links `old` of each row become `new`.

    `spread` false leaves out the variance, which needs a sort.
    """
    before, after = weights(old, features), weights(new, features)
    shown, withheld = coefficients(outcome, len(model.outcomes), features, user)
    begin = 2 * len(model.outcomes)
    exposure = np.zeros((len(old.count), model.heads))

    def change(coefficient: Floats) -> Floats:
        return fold(new, after, coefficient) - fold(old, before, coefficient)

    for head in range(model.heads):
        exposure[:, head] = change(features.bias[:, begin + head])
    unknown = np.full(len(exposure), np.nan)
    variance = _variance(features, old, before, new, after) if spread else unknown
    return Shift(change(shown), change(withheld), exposure, variance)


def _variance(features: Features, old: Links, before: Floats, new: Links, after: Floats) -> Floats:
    """Return the variance of the change (n,), in residual variances.

    That of ridge regression on one value: N events with weight w leave sigma^2 / (N w^2 + 3) of its
    coefficient (Bishop, Pattern Recognition and Machine Learning, 2006, equation 3.51). What keeps
    its weight cancels.
    """
    size = max(len(features.present), 1)
    cells, places = np.unique(
        np.concatenate([old.owner * size + old.feature, new.owner * size + new.feature]),
        return_inverse=True,
    )
    step = np.bincount(places, np.concatenate([-before, after]), minlength=len(cells))
    owner, feature = np.divmod(cells, size)
    informed = features.events[feature] / np.maximum(old.count[owner], 1)
    variance = np.where(np.abs(step) < 1e-9, 0.0, step * step) / (informed + PRIOR_EVENTS)
    return np.bincount(owner, variance, minlength=len(old.count)).astype(np.float64)
