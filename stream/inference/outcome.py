"""The terms of a score, and the expected outcome in a world.

    eta = base + a_u + c_i + g_u . h_i + kappa (q_i - mean q) + alpha (s_u . t_i)
    shown at position k:   theta_k link^-1(eta)
    withheld:              link^-1(base0 + a0_u + c0_i + g_u . h0_i + alpha0 (s_u . t_i) + level0)

theta is the examination of the position-based model (Craswell et al., WSDM 2008, "An experimental
comparison of click position-bias models", section 3); it applies to clicks, and theta_1 = 1.

s_u . t_i, the score of long-term exposure, is a proxy for a trait that also affects the outcome.
do(shown) sets the exposure and does not change the user (Pearl, Causality, 2009, section 3.2.1), so
the term is in both arms, each with its own coefficient.
"""

from dataclasses import dataclass, replace

import numpy as np

from stream.inference.attributes import Shift
from stream.inference.model import Floats
from stream.inference.rows import ServedPairs

SELF_SELECTION, POLICY = 0, 1  # exposure heads: what users choose, what rankings show


@dataclass(frozen=True, slots=True)
class Scenario:
    """Where items are shown, and which variables are set.

    `cut` leaves popularity out of the score, which is then the item's value to this user if shown.
    A popularity that is set is used all the same.
    """

    position: int = 1
    popularity: float | None = None  # count of clicks and ratings; None: the current one
    shift: Shift | None = None  # the change by other attributes
    clipped: bool = False


AS_IT_IS = Scenario()
IF_SHOWN = Scenario(clipped=True)


@dataclass(frozen=True, slots=True)
class ScoreTerms:
    """The terms of the score on the link scale, whose sum is eta."""

    base: float
    user: float
    item: Floats  # (n,)
    match: Floats  # (n,)
    popularity: Floats  # (n,)
    confounder: Floats  # (n,)
    slope: Floats  # (n,) of numbers that are set, by slopes estimated within items

    @property
    def eta(self) -> Floats:
        """Return the sum of the terms (n,)."""
        varying = self.item + self.match + self.popularity + self.confounder + self.slope
        return varying + (self.base + self.user)


@dataclass(frozen=True, slots=True)
class Arm:
    """n pairs in one world: the score on the link scale, and the expected outcome."""

    eta: Floats  # (n,)
    theta: float
    mean: Floats  # (n,) theta link^-1(eta)
    slope: Floats  # (n,) d mean / d eta
    paths: ScoreTerms | None  # the terms of eta; None: withheld


def paths(pairs: ServedPairs, world: Scenario = AS_IT_IS) -> ScoreTerms:
    """Return the terms of the score if shown in this world."""
    model, column = pairs.model, pairs.treated
    nothing = np.zeros(len(pairs), pairs.items.bias.dtype)
    confounded = model.confounder_slope[column] != 0.0
    item = pairs.items.bias[:, column]
    return ScoreTerms(
        base=float(pairs.globals_[column]),
        user=float(pairs.user.bias[column]),
        item=item if world.shift is None else item + world.shift.shown,
        match=pairs.h @ pairs.g,
        popularity=_popularity(pairs, world, nothing),
        confounder=float(model.confounder_slope[column]) * pairs.lasting if confounded else nothing,
        slope=nothing if world.shift is None else world.shift.slope,
    )


def _popularity(pairs: ServedPairs, world: Scenario, nothing: Floats) -> Floats:
    model, column = pairs.model, pairs.treated
    if not model.causal or model.kappa[column] == 0.0:
        return nothing
    if world.popularity is not None:
        q: Floats = nothing + np.log1p(world.popularity).astype(nothing.dtype)
    elif world.clipped:
        return nothing
    else:
        q = pairs.q
    return np.asarray(model.kappa[column] * (q - model.popularity_mean[column]), nothing.dtype)


def theta(pairs: ServedPairs, position: int) -> float:
    """Return the examination of that position relative to the first; 1 for ratings."""
    known = pairs.model.theta
    if pairs.outcome.link != "logit" or position == 1:
        return 1.0
    return float(known[min(position, len(known)) - 1])


def shown(pairs: ServedPairs, world: Scenario = AS_IT_IS) -> Arm:
    """Return the expected outcome of the items if shown in this world."""
    terms, examined = paths(pairs, world), theta(pairs, world.position)
    eta = terms.eta
    mean = pairs.outcome.inverse(eta)
    return Arm(eta, examined, examined * mean, examined * pairs.outcome.slope(mean), terms)


def withheld(pairs: ServedPairs, world: Scenario = AS_IT_IS) -> Arm:
    """Return the expected outcome of the items if withheld; position and popularity do not matter.

    The control arm has no popularity term of its own; the effect of popularity on an item that is
    not shown is part of c0_i.
    """
    column = pairs.control
    common = float(pairs.globals_[column]) + float(pairs.user.bias[column])
    eta = pairs.items.bias[:, column] + pairs.h0 @ pairs.g + common
    alpha0, level0 = (
        float(terms[pairs.treated]) for terms in (pairs.model.confounder_slope0, pairs.model.level0)
    )
    if alpha0 != 0.0 or level0 != 0.0:
        eta = eta + (alpha0 * pairs.lasting + level0)
    if world.shift is not None:
        eta = eta + world.shift.withheld
    mean = pairs.outcome.inverse(eta)
    return Arm(eta, 1.0, mean, pairs.outcome.slope(mean), None)


def head(pairs: ServedPairs) -> int:
    """Return the exposure head for this outcome: the policy for clicks, self-selection for ratings.

    If that head has learned nothing, the other one is returned. Raises ValueError if none has.
    """
    learned = pairs.model.learned_heads.tolist()
    if not learned:
        raise ValueError("no exposure head has learned anything")
    wanted = POLICY if pairs.outcome.link == "logit" else SELF_SELECTION
    return wanted if wanted in learned else int(learned[0])


def exposure(pairs: ServedPairs, world: Scenario = AS_IT_IS) -> Floats:
    """Return the probability of exposure (n,): 1 - exp(-exp(A eta + B)), eta = m_i + s_u . t_i."""
    at = head(pairs)
    eta = pairs.m[:, at] + pairs.t @ pairs.s
    if world.shift is not None:
        eta = eta + world.shift.exposure[:, at]
    scaled = pairs.model.scale[at] * eta + pairs.model.shift[at]
    return np.asarray(-np.expm1(-np.exp(np.minimum(scaled, 40.0))))


def consumption(pairs: ServedPairs, world: Scenario = AS_IT_IS) -> Floats:
    """Return exposure times the expected outcome (n,), as an ordinary recommender learns it.

    A rating is taken as its share of the scale, (value - low) / (high - low), so that both factors
    are in [0, 1]. Exposure already contains the current popularity, so the outcome is taken without
    it.
    """
    return exposure(pairs, world) * pairs.outcome.unit(
        shown(pairs, replace(world, clipped=True)).mean
    )
