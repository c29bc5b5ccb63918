"""What is expected of one interaction before it is learned, and its weight."""

from dataclasses import dataclass

import numpy as np

from stream.interaction_type import SYNTHETIC, InteractionType
from stream.model import scalars as sc
from tests.reference.rows import Composed
from tests.reference.state import Event, State


@dataclass(frozen=True)
class Scores:
    """The scores of one interaction on the link scale, and what they are made of."""

    base: tuple[float, float, float]  # shown, withheld, as observed
    match: float
    q: float
    apart: float  # q from what is usual for the item
    popularity: float  # kappa times it
    z: float  # s . t
    trait: float  # alpha times it, 0 while the gate is shut
    theta: float
    plain: float  # without the trait
    shown: float
    observed: float
    withheld: float  # as it is learned
    withheld_told: float  # as it is told: with the confounder path, and the treated score at first
    eta: float  # of the item's exposure
    weight: float
    raw: float | None  # before it is over its running mean; None of no weight


def sigmoid(x: float) -> float:
    return float(1.0 / (1.0 + np.exp(-x)))


def popularity(state: State, item: int, now_s: int) -> float:
    """Return the item's count of clicks and ratings, halved every half-life."""
    age = max(now_s - int(state.item["decayed_count_s"][item]), 0)
    share: float = 0.5 ** (age / state.config.half_life_s)
    return float(state.item["decayed_count"][item]) * share


def unusual(state: State, e: Event) -> tuple[float, float]:
    """Return q, and q from what is usual for the item: before its first outcome nothing is not."""
    q = float(np.log1p(popularity(state, e.item, e.now_s)))
    judged = state.item["outcomes"][e.item, e.outcome] > 0
    return q, q - state.item["popularity_mean"][e.item, e.outcome] if judged else 0.0


def weigh(state: State, e: Event, eta: float) -> tuple[float, float | None]:
    """Return pi ** (alpha - 1) over its running mean, and before that."""
    if not (e.treated and state.paths.weights) or e.role == SYNTHETIC:
        return 1.0, None
    pi = e.propensity
    if np.isnan(pi):
        pi = 1.0
        if state.paths.exposure and e.contrasts:
            head = state.head[e.head]
            size = min(head[sc.SCALE] * eta + head[sc.SHIFT], 40.0)
            pi = -np.expm1(-head[sc.SHARE] * e.contrasts * np.exp(size))
    raw = min(max(pi, state.config.clip), 1.0) ** (state.config.alpha - 1.0)
    row = state.outcome[e.outcome]
    return raw * (row[sc.W_COUNT] + 1.0) / (row[sc.W_SUM] + raw), raw


def score(state: State, e: Event, user: Composed, item: Composed) -> Scores:
    """Return the scores of an interaction that is learned or predicted."""
    o, Y, row, on = e.outcome, state.Y, state.outcome[e.outcome], state.paths
    base = tuple(row[sc.BASE : sc.BASE + 3].tolist())
    q, apart = unusual(state, e)
    path = row[sc.SLOPE] * apart if on.popularity else 0.0
    z = float(user.exposure @ item.exposure)
    trait = row[sc.SLOPE + 1] * z if on.confounder and row[sc.GATE] > 0 else 0.0
    match = float(user.vector @ item.vector)
    plain = base[0] + user.bias[o] + item.bias[o] + match + path
    shown = plain + trait
    withheld = base[1] + user.bias[Y + o]
    if state.item["control_sum"][e.item] > 0:
        control = state.item["control"][e.item] + item.linked_vector
        withheld += item.bias[Y + o] + float(user.vector @ control)
        told = withheld
    else:  # the control row begins as the treated one
        withheld += item.bias[o] + match
        told = plain - base[0] + base[1]
    if on.confounder and row[sc.GATE] > 0:
        carried = state.withheld[o]
        told += (row[sc.SLOPE + 1] + carried[sc.CARRIED]) * z + carried[sc.LEVEL]
    eta = item.bias[3 * Y + e.head] + z
    weight, raw = weigh(state, e, eta)
    return Scores(
        base=base, match=match, q=q, apart=apart, popularity=path, z=z, trait=trait,
        theta=state.place[e.place, sc.THETA] if on.position and state.logit[o] else 1.0,
        plain=plain, shown=shown,
        observed=base[2] + user.bias[2 * Y + o] + item.bias[2 * Y + o] + match + path + trait,
        withheld=withheld, withheld_told=told, eta=eta, weight=weight, raw=raw,
    )  # fmt: skip


def expected(state: State, e: Event, s: Scores) -> tuple[float, float]:
    """Return the predictions: of the outcome as it was shown, and if withheld where known."""
    o, click = e.outcome, state.logit[e.outcome]
    if e.role not in (InteractionType.PREDICT, InteractionType.CONTROL):
        if not e.treated:
            return np.nan, np.nan
        return s.theta * sigmoid(s.observed) if click else state.clip(o, s.observed), np.nan
    shown = s.theta * sigmoid(s.shown) if click else state.clip(o, s.shown)
    if not state.count[sc.SETTLED]:
        return shown, np.nan
    return shown, sigmoid(s.withheld_told) if click else state.clip(o, s.withheld_told)


def listed(state: State, e: Event, s: Scores, user: Composed, item: Composed) -> float:
    """Return what a list by outcome says: at the first place, at the mean popularity, of means."""
    o, row, rows = e.outcome, state.outcome[e.outcome], state.item
    fair = s.shown
    if state.paths.popularity:
        fair -= row[sc.SLOPE] * (s.q - row[sc.Q_MEAN])
    if state.config.average > 0:
        mean, bias = rows["mean"][e.item].copy(), rows["mean_bias"][e.item, o]
        for f, x in item.links:
            mean += x * state.feature["mean"][f]
            bias += x * state.feature["mean_bias"][f, o]
        fair += bias + user.vector @ mean - item.bias[o] - s.match
    return sigmoid(fair) if state.logit[o] else state.clip(o, fair)
