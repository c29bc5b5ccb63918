"""The paths of a score, and the expected outcome in a world.

    eta = base + a_u + c_i + g_u . h_i + kappa (q_i - mean q) + alpha (s_u . t_i)
    shown at place k:   theta_k link^-1(eta)
    withheld:           link^-1(base0 + a0_u + c0_i + g_u . h0_i + alpha0 (s_u . t_i) + level0)

theta is the examination of the position-based model (Craswell et al., WSDM 2008, "An experimental
comparison of click position-bias models", section 3): it acts on clicks, and theta_1 = 1.
s_u . t_i, who is shown what, stands in for a trait that also moves the outcome. A trait lasts:
do(shown) sets the exposure and leaves the user as it is (Pearl, Causality, 2009, section 3.2.1), so
the term stays in either arm, as far as that arm was found to carry it.
"""

from dataclasses import dataclass, replace

import numpy as np

from stream.inference.attributes import Shift
from stream.inference.model import Floats
from stream.inference.rows import Pairs

SELF_SELECTION, POLICY = 0, 1  # the exposure heads: what users choose, what rankings show


@dataclass(frozen=True, slots=True)
class World:
    """Where items are shown, and what of them is set.

    `cut` leaves popularity out of the score: what an item is worth to this user if shown. A
    popularity that is set counts all the same.
    """

    position: int = 1
    popularity: float | None = None  # a count of clicks and ratings; None: as it is
    shift: Shift | None = None  # what other attributes would change
    cut: bool = False


AS_IT_IS = World()
IF_SHOWN = World(cut=True)


@dataclass(frozen=True, slots=True)
class Paths:
    """The terms of the score on the link scale; they add up."""

    base: float
    user: float
    item: Floats  # (n,)
    match: Floats  # (n,)
    popularity: Floats  # (n,)
    confounder: Floats  # (n,)
    slope: Floats  # (n,) of numbers that are set, by slopes found within items

    @property
    def eta(self) -> Floats:
        """Return their sum (n,)."""
        varying = self.item + self.match + self.popularity + self.confounder + self.slope
        return varying + (self.base + self.user)


@dataclass(frozen=True, slots=True)
class Arm:
    """n pairs in one world: the link-scale score, and what is expected of it."""

    eta: Floats  # (n,)
    theta: float
    mean: Floats  # (n,) theta link^-1(eta)
    slope: Floats  # (n,) d mean / d eta
    paths: Paths | None  # of eta; None: withheld


def paths(pairs: Pairs, world: World = AS_IT_IS) -> Paths:
    """Return the terms of the score if shown in this world."""
    model, column = pairs.model, pairs.treated
    nothing = np.zeros(len(pairs), pairs.items.bias.dtype)
    confounded = model.alpha[column] != 0.0
    item = pairs.items.bias[:, column]
    return Paths(
        base=float(pairs.globals_[column]),
        user=float(pairs.user.bias[column]),
        item=item if world.shift is None else item + world.shift.shown,
        match=pairs.h @ pairs.g,
        popularity=_popularity(pairs, world, nothing),
        confounder=float(model.alpha[column]) * pairs.lasting if confounded else nothing,
        slope=nothing if world.shift is None else world.shift.slope,
    )


def _popularity(pairs: Pairs, world: World, nothing: Floats) -> Floats:
    model, column = pairs.model, pairs.treated
    if not model.causal or model.kappa[column] == 0.0:
        return nothing
    if world.popularity is not None:
        q: Floats = nothing + np.log1p(world.popularity).astype(nothing.dtype)
    elif world.cut:
        return nothing
    else:
        q = pairs.q
    return np.asarray(model.kappa[column] * (q - model.popularity_mean[column]), nothing.dtype)


def theta(pairs: Pairs, position: int) -> float:
    """Return how likely that place is looked at, against the first; ratings have no such path."""
    known = pairs.model.theta
    if pairs.outcome.link != "logit" or position == 1:
        return 1.0
    return float(known[min(position, len(known)) - 1])


def shown(pairs: Pairs, world: World = AS_IT_IS) -> Arm:
    """Return what is expected of the items if shown in this world."""
    terms, examined = paths(pairs, world), theta(pairs, world.position)
    eta = terms.eta
    mean = pairs.outcome.inverse(eta)
    return Arm(eta, examined, examined * mean, examined * pairs.outcome.slope(mean), terms)


def withheld(pairs: Pairs, world: World = AS_IT_IS) -> Arm:
    """Return what is expected of the items if withheld; position and popularity do not enter.

    The control arm has no popularity path of its own: what popularity does to an item that is not
    shown is part of c0_i.
    """
    column = pairs.control
    common = float(pairs.globals_[column]) + float(pairs.user.bias[column])
    eta = pairs.items.bias[:, column] + pairs.h0 @ pairs.g + common
    alpha0, level0 = (
        float(terms[pairs.treated]) for terms in (pairs.model.alpha0, pairs.model.level0)
    )
    if alpha0 != 0.0 or level0 != 0.0:
        eta = eta + (alpha0 * pairs.lasting + level0)
    if world.shift is not None:
        eta = eta + world.shift.withheld
    mean = pairs.outcome.inverse(eta)
    return Arm(eta, 1.0, mean, pairs.outcome.slope(mean), None)


def head(pairs: Pairs) -> int:
    """Return the exposure head that answers for this outcome.

    Self-selection for ratings and the policy for clicks; the other one where that head has learned
    nothing. ValueError when none has.
    """
    learned = pairs.model.learned_heads.tolist()
    if not learned:
        raise ValueError("no exposure head has learned anything")
    wanted = POLICY if pairs.outcome.link == "logit" else SELF_SELECTION
    return wanted if wanted in learned else int(learned[0])


def exposure(pairs: Pairs, world: World = AS_IT_IS) -> Floats:
    """Return the chance of exposure (n,): pi = 1 - exp(-exp(A eta + B)), eta = m_i + s_u . t_i."""
    at = head(pairs)
    eta = pairs.m[:, at] + pairs.t @ pairs.s
    if world.shift is not None:
        eta = eta + world.shift.exposure[:, at]
    scaled = pairs.model.scale[at] * eta + pairs.model.shift[at]
    return np.asarray(-np.expm1(-np.exp(np.minimum(scaled, 40.0))))


def consumption(pairs: Pairs, world: World = AS_IT_IS) -> Floats:
    """Return exposure times the expected outcome (n,), as an ordinary recommender learns it.

    A rating counts as its share of the scale, (value - low) / (high - low), so that both factors
    are within [0, 1]. Exposure holds what is popular now, so the outcome is taken without it.
    """
    return exposure(pairs, world) * pairs.outcome.unit(shown(pairs, replace(world, cut=True)).mean)
