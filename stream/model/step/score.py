"""The scores of an interaction: if shown, as observed (the factual head), and if withheld.

    lin  = base + a_u + c_i + g_u . h_i + kappa (q_i - r_i) + alpha (s_u . t_i)      (eta_1)
    lin0 = base0 + a0_u + c0_i + g_u . h0_i                                          (eta_0)

lin0 here is without alpha0 (s_u . t_i) + level0, which `control.tell_control` fits on top of it.
"""

from typing import NamedTuple

import numpy as np

from stream.compiled import embedded
from stream.model import scalars as sc
from stream.model.step import popularity
from stream.model.step.lanes import product
from stream.model.step.link import sigmoid
from stream.model.step.names import (
    Interaction,
    InteractionColumns,
    Predictions,
    Scratch,
    StepContext,
)

_ONE, _ZERO = np.float32(1), np.float32(0)


class Score(NamedTuple):
    """The score of the outcome if shown and its terms; `plain` is without the confounder term."""

    lin: np.float32
    plain: np.float32
    match: np.float32
    slope: np.float32  # kappa
    popularity_deviation: np.float32  # q_i - r_i
    q: np.float32  # log(1 + decayed count)
    decayed_count: float  # decayed count of clicks and ratings
    confounder_slope: np.float32
    z: np.float32  # s_u . t_i
    gate: bool  # whether the confounder path is open
    theta: np.float32  # examination probability of the position


@embedded
def within(m: StepContext, o: int, x: np.float32) -> np.float32:
    """Return x clipped to the bounds of the outcome's labels."""
    inside: np.float32 = min(max(x, m.outcomes.low[o]), m.outcomes.high[o])
    return inside


@embedded
def mean(m: StepContext, o: int, x: np.float32) -> np.float32:
    """Return the inverse link of a score; with the identity link it is clipped to the bounds."""
    return sigmoid(x) if m.outcomes.logit[o] else within(m, o, x)


@embedded
def shown(m: StepContext, c: InteractionColumns, s: Scratch, e: Interaction) -> Score:
    """Return the score of the outcome if shown, from the composed rows in scratch (eta_1)."""
    at, so = m.at.user, m.terms.outcome
    count = popularity.decayed_count(m, e.i, c.ts_s[e.j])
    q = popularity.log_popularity(count)
    popularity_deviation = popularity.popularity_deviation(m, e.i, e.o, q)
    z = product(s.user, s.items[0], at.exposure, at.E, m.lane)
    slope = np.float32(so[e.o, sc.SLOPE]) if m.on.popularity else _ZERO
    gate = m.on.confounder and so[e.o, sc.GATE] > 0
    confounder_slope = np.float32(so[e.o, sc.SLOPE + 1])
    match = product(s.user, s.items[0], at.vector, at.D, m.lane)
    base = np.float32(so[e.o, sc.BASE])
    plain = (
        base
        + s.user[at.bias + e.o]
        + s.items[0, at.bias + e.o]
        + match
        + slope * popularity_deviation
    )
    lin = plain + confounder_slope * z if gate else plain
    theta = (
        np.float32(m.terms.position[e.position, sc.THETA]) if m.on.position and e.logit else _ONE
    )
    return Score(
        lin, plain, match, slope, popularity_deviation, q, count, confounder_slope, z, gate, theta
    )


@embedded
def factual(m: StepContext, s: Scratch, e: Interaction, f: Score) -> np.float32:
    """Return the factual head's score (eta_f), which predicts, imputes and shapes the vectors."""
    bias = m.at.user.bias + 2 * m.at.user.Y + e.o
    base = np.float32(m.terms.outcome[e.o, sc.BASE + 2])
    lin = base + s.user[bias] + s.items[0, bias] + f.match + f.slope * f.popularity_deviation
    return lin + f.confounder_slope * f.z if f.gate else lin


@embedded
def with_trait(m: StepContext, e: Interaction, f: Score, lin0: np.float32) -> np.float32:
    """Return lin0 with the control arm's confounder path: + alpha0 (s . t) + level0."""
    w = m.terms.withheld[e.o]
    slope = f.confounder_slope + np.float32(w[sc.CARRIED])
    return lin0 + slope * f.z + np.float32(w[sc.LEVEL])


@embedded
def withheld(m: StepContext, s: Scratch, e: Interaction, f: Score) -> np.float32:
    """Return the score if withheld that the control row is learned by: without the confounder path.

    Before the item's first control outcome it is the treated score with base0 in place of base.
    """
    so, ai, items = m.terms.outcome, m.at.item, m.tables.items
    base, base0 = np.float32(so[e.o, sc.BASE]), np.float32(so[e.o, sc.BASE + 1])
    if items[e.i, ai.control_sum] > 0:
        bias = ai.bias + ai.Y + e.o
        lin = base0 + s.user[bias] + s.items[0, bias]
        own = product(s.user, items[e.i], ai.vector, ai.D, m.lane)
        return lin + (f.match - own) + product(s.user, items[e.i, ai.control :], 0, ai.D, m.lane)
    return f.plain - base + base0


@embedded
def expect(m: StepContext, s: Scratch, e: Interaction, f: Score, out: Predictions) -> np.float32:
    """Write the predictions of both arms for an interaction not learned as shown; return lin0."""
    mu = f.theta * sigmoid(f.lin) if e.logit else within(m, e.o, f.lin)
    lin0 = withheld(m, s, e, f)
    mu0 = mean(m, e.o, with_trait(m, e, f, lin0) if f.gate else lin0)
    if m.lane.own == 0:
        out.prediction[e.j] = mu
        out.control[e.j] = mu0 if m.terms.counters[sc.SETTLED] > 0 else np.float32(np.nan)
    return lin0
