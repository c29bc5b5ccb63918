"""How attributes enter a row, and what other attributes would change.

A row is linked to the values of its attributes. With n links, each adds its coefficients to every
bias and vector of the row with the weight value / sqrt(n), as in the learner. So another value
changes the score by the difference of two such sums, which includes the change of the weights if n
changes. This is do(attribute = v) in closed form: the intervention replaces only the structural
assignment of the attribute (Pearl, Causality, 2009, section 3.2), whose descendants are the score
and the exposure.

The learner's coefficients also contain other differences between items of different values. If the
slope of a number was estimated within items (`PublishedModel.slopes`), it replaces what the
number's links add for the mean user. What a user's match differs by, v . (g - mean g), stays as
learned.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.inference.model import Floats, PublishedModel, PublishedOutcome
from stream.inference.rows import ServedFeatures, ServedUser
from stream.model.features import FAR

PRIOR_EVENTS = 3.0  # weight of the prior of a coefficient, in events


@dataclass(frozen=True, slots=True)
class AttributeLinks:
    """The attribute values that n rows are linked to."""

    owner: NDArray[np.intp]  # (m,) index of the row
    feature: NDArray[np.intp]  # (m,) index of the attribute value in `Features`
    value: Floats  # (m,) 1, or a number as given
    count: NDArray[np.intp]  # (n,) number of links by whose square root weights are divided


@dataclass(frozen=True, slots=True)
class Shift:
    """The changes of n rows by other attributes, on the link scale of one outcome."""

    shown: Floats  # (n,) if shown, by learned coefficients
    slope: Floats  # (n,) if shown, by slopes estimated within items
    withheld: Floats  # (n,) if withheld
    exposure: Floats  # (n, H) of the exposure scores
    variance: Floats  # (n,) of the change by coefficients, in residual variances; nan: not computed
    slope_variance: Floats  # (n,) of `slope`
    within: NDArray[np.bool_]  # (n,) whether all that is set acts by slopes within items


@dataclass(frozen=True, slots=True)
class Number:
    """A numeric attribute that is set: the indices of its slope and of all values linked to it."""

    slope: int
    links: NDArray[np.intp]


def attribute_links(
    owner: NDArray[np.intp],  # (m,)
    feature: NDArray[np.intp],  # (m,)
    value: Floats,  # (m,)
    rows: int,
    features: ServedFeatures,
    fresh: NDArray[np.bool_] | None = None,  # (m,)
    most: int = 2**31,
) -> AttributeLinks:
    """Return the links as the learner has them; the m links are in the order of their rows.

    The learner did not admit a value without a row, so it is ignored; but if `fresh` marks it as
    new, it counts, with a coefficient of 0. At most `most` links are kept per row.
    """
    there = features.present[feature] if fresh is None else features.present[feature] | fresh
    owner, feature, value = owner[there], feature[there], value[there]
    first = np.searchsorted(owner, owner)  # index of the first link of the same row
    kept = np.arange(len(owner)) - first < most
    owner, feature, value = owner[kept], feature[kept], value[kept]
    return AttributeLinks(owner, feature, value, np.bincount(owner, minlength=rows))


def weights(links: AttributeLinks, features: ServedFeatures) -> Floats:
    """Return the weight of each link in its row (m,): value / sqrt(n), with numbers standardised.

    Values that are not numbers have center and scale 0.
    """
    center, scale = features.range[links.feature, 2], features.range[links.feature, 3]
    value = (links.value - center) / np.where(scale > 0.0, scale, 1.0)
    return np.asarray(np.clip(value, -FAR, FAR) / np.sqrt(links.count[links.owner]))


def fold(links: AttributeLinks, weight: Floats, coefficient: Floats) -> Floats:
    """Return the sum (n,) over each row's links of weight (m,) times coefficient (F,)."""
    parts = weight * coefficient[links.feature]
    return np.bincount(links.owner, parts, minlength=len(links.count)).astype(np.float64)


def coefficients(
    outcome: PublishedOutcome, outcomes: int, features: ServedFeatures, user: ServedUser
) -> tuple[Floats, Floats]:
    """Return what each value adds for this user, b + v . g: if shown and if withheld (F,) each."""
    match = features.vector @ user.vector[: features.vector.shape[1]]
    shown = features.bias[:, outcome.index] + match
    return shown, features.bias[:, outcomes + outcome.index] + match


def shift(
    outcome: PublishedOutcome,
    model: PublishedModel,
    features: ServedFeatures,
    user: ServedUser,
    old: AttributeLinks,
    new: AttributeLinks,
    spread: bool = True,
    numbers: Mapping[str, Number | None] | None = None,
) -> Shift:
    """Return the change for this user when the links `old` of each row become `new`.

    Parameters
    ----------
    outcome, model, features, user
        The outcome, the published model, the attribute values and the user.
    old, new
        The links before and after.
    spread
        Whether to compute the variance, which needs a sort.
    numbers
        The attributes that are set; None for those that are not numbers.
    """
    before, after = weights(old, features), weights(new, features)
    shown, withheld = coefficients(outcome, len(model.outcomes), features, user)
    told = _within(outcome, model, old, new, numbers or {})
    begin = 2 * len(model.outcomes)
    exposure = np.zeros((len(old.count), model.heads))

    def change(coefficient: Floats) -> Floats:
        return fold(new, after, coefficient) - fold(old, before, coefficient)

    for head in range(model.heads):
        exposure[:, head] = change(features.bias[:, begin + head])
    learned = np.ones(len(features.present), np.bool_)
    variance = np.full(len(exposure), np.nan)
    if spread:
        variance = _variance(features, old, before, new, after, learned)
    moved = change(shown)
    if told.has.any():
        # if only numbers are set, nothing else changes: a different number of links, and so other
        # weights, is an artefact of the encoding and not a change in the world
        learned[:] = not told.all
        learned[told.links] = False
        own = features.vector @ (user.vector[: len(model.mean_user)] - model.mean_user)
        rest = np.where(learned, shown, 0.0)
        rest[told.links] = own[told.links]
        moved = np.where(told.has, change(rest), moved)
        if spread:
            doubt = _variance(features, old, before, new, after, learned)
            variance = np.where(told.has, doubt, variance)
    return Shift(
        shown=moved,
        slope=told.change,
        withheld=change(withheld),
        exposure=exposure,
        variance=variance,
        slope_variance=told.variance,
        within=told.has & told.all,
    )


@dataclass(frozen=True, slots=True)
class _Told:
    """What slopes estimated within items say about the numbers that are set."""

    change: Floats  # (n,)
    variance: Floats  # (n,)
    has: NDArray[np.bool_]  # (n,) whether the row has all of these numbers
    links: NDArray[np.intp]  # the attribute values that encode them
    all: bool  # whether nothing else is set


def _within(
    outcome: PublishedOutcome,
    model: PublishedModel,
    old: AttributeLinks,
    new: AttributeLinks,
    numbers: Mapping[str, Number | None],
) -> _Told:
    """Return the changes by slopes estimated within items, for the numbers that are set."""
    size, fit = len(old.count), model.slopes.get(outcome.name)
    names = () if fit is None else fit.names
    set_ = {name: number for name, number in numbers.items() if number and name in names}
    moved, has = np.zeros((size, len(names))), np.full(size, bool(set_))
    for name, number in set_.items():
        places = []
        for links in (old, new):
            own = links.feature == number.slope
            value = np.bincount(links.owner[own], links.value[own], minlength=size)
            has &= np.bincount(links.owner[own], minlength=size) > 0
            places.append(value)
        moved[:, names.index(name)] = places[1] - places[0]
    moved[~has] = 0.0
    beta, covariance = (np.zeros(0), np.zeros((0, 0))) if fit is None else (
        fit.beta, fit.covariance,
    )  # fmt: skip
    return _Told(
        change=moved @ beta,
        variance=np.einsum("na,ab,nb->n", moved, covariance, moved),
        has=has,
        links=np.concatenate([np.zeros(0, np.intp), *(n.links for n in set_.values())]),
        all=len(set_) == len(numbers),
    )


def _variance(
    features: ServedFeatures,
    old: AttributeLinks,
    before: Floats,
    new: AttributeLinks,
    after: Floats,
    learned: NDArray[np.bool_],  # (F,)
) -> Floats:
    """Return the variance (n,) of the change by learned coefficients, in residual variances.

    It is that of ridge regression on one value: N events with weight w leave the variance sigma^2 /
    (N w^2 + 3) of its coefficient (Bishop, Pattern Recognition and Machine Learning, 2006, equation
    3.51). Values whose weight does not change cancel.
    """
    size = max(len(features.present), 1)
    cells, places = np.unique(
        np.concatenate([old.owner * size + old.feature, new.owner * size + new.feature]),
        return_inverse=True,
    )
    step = np.bincount(places, np.concatenate([-before, after]), minlength=len(cells))
    owner, feature = np.divmod(cells, size)
    informed = features.events[feature] / np.maximum(old.count[owner], 1)
    told = (np.abs(step) >= 1e-9) & learned[feature]
    variance = np.where(told, step * step, 0.0) / (informed + PRIOR_EVENTS)
    return np.bincount(owner, variance, minlength=len(old.count)).astype(np.float64)
