"""The loss of an outcome: propensity weight, errors of both heads, contributions to global terms.

    w L(mu, y) + d [ mean over uniform items L(mu', f') - w L(mu, f) ] + imputation

This is self-normalised and doubly robust (StableDR; Li et al., 2023), with f the imputed outcome of
the factual head, and L half the squared error or the log loss; at position k it is the log loss of
theta_k mu.
"""

import math
from typing import NamedTuple

import numpy as np

from stream.compiled import embedded
from stream.interaction_type import SYNTHETIC, InteractionType
from stream.model import scalars as sc
from stream.model.step import account
from stream.model.step.compose import share
from stream.model.step.exposure import propensity
from stream.model.step.lanes import as_index, product
from stream.model.step.link import sigmoid
from stream.model.step.names import (
    Array,
    Interaction,
    InteractionColumns,
    Predictions,
    Scratch,
    StepContext,
)
from stream.model.step.score import Score, factual, mean, within

SAMPLE = 8  # one in 8 interactions enters the regression on the score's terms
_CORRECTION = int(InteractionType.CORRECTION)
_ONE, _ZERO = np.float32(1), np.float32(0)
_TINY = np.float32(1e-6)


class Errors(NamedTuple):
    """The errors of both heads, as derivatives of the loss by their scores."""

    off: np.float32  # of the outcome if shown, unweighted
    miss: np.float32  # of the factual head
    mu: np.float32  # mu_1, expected outcome if shown at position 1
    filled: np.float32  # f, the imputed outcome
    curve: np.float32  # second derivative of the loss
    said: np.float32  # the prediction of the factual head at the position


@embedded
def weight(m: StepContext, c: InteractionColumns, s: Scratch, e: Interaction) -> np.float32:
    """Return the weight w = pi ** (alpha - 1) divided by its running mean (self-normalised)."""
    if not m.on.weights or e.role == SYNTHETIC:
        return _ONE
    so = m.terms.outcome[e.o]
    pi = propensity(m, c, s, e)
    raw = np.float64(math.exp((m.rates.weight_exponent - _ONE) * math.log(pi)))
    if m.on.live and m.lane.own == 0:
        s.told[e.at, account.RAW] = raw
        s.told[e.at, account.KIND] += account.WEIGHED
    return np.float32(raw * (so[sc.W_COUNT] + 1.0) / (so[sc.W_SUM] + raw))


@embedded
def clicked(m: StepContext, s: Scratch, e: Interaction, f: Score, fact: np.float32) -> Errors:
    """Return the errors of a click under the log loss of theta_k mu (position-based model)."""
    mu, filled = sigmoid(f.lin), sigmoid(fact)
    said = f.theta * filled
    miss = (said - e.label) * (_ONE - filled) / max(_ONE - said, _TINY)
    chance = f.theta * mu
    rest = max(_ONE - chance, _TINY)
    off = (chance - e.label) * (_ONE - mu) / rest
    if m.on.live and e.position > 0 and m.on.position and m.lane.own == 0:
        rest = (_ONE - f.theta) / rest
        s.told[e.at, account.T_SCORE] = (chance - e.label) * rest
        s.told[e.at, account.T_SEEN] = chance * rest * (_ONE - f.theta)
        s.told[e.at, account.KIND] += account.EXAMINES
    return Errors(off, miss, mu, filled, mu * (_ONE - mu), said)


@embedded
def rated(m: StepContext, e: Interaction, f: Score, fact: np.float32) -> Errors:
    """Return the errors of an outcome with the identity link."""
    off, miss = f.lin - e.label, fact - e.label
    return Errors(off, miss, f.lin, fact, _ONE, within(m, e.o, fact))


@embedded
def imagined(m: StepContext, e: Interaction, x: np.float32) -> np.float32:
    """Return the error of a synthetic outcome, whose label is a residual: c (clip mu' - y')."""
    near = within(m, e.o, x)
    return m.rates.synthetic * (near - within(m, e.o, near + e.label))


@embedded
def serves(m: StepContext, s: Scratch, e: Interaction, f: Score) -> np.float32:
    """Return the served score: first position, mean popularity, served means."""
    fair = f.lin - f.slope * (f.q - np.float32(m.terms.outcome[e.o, sc.Q_MEAN]))
    if m.at.item.mean >= 0:
        fair += averaged(m, s, e) - (s.items[0, m.at.item.bias + e.o] + f.match)
    return mean(m, e.o, fair)


@embedded
def averaged(m: StepContext, s: Scratch, e: Interaction) -> np.float32:
    """Return what the item's served means add to its score: its bias, and its match."""
    t, ai, af, i = m.tables, m.at.item, m.at.feature, e.i
    mean = t.items[i, ai.mean :]
    total = t.items[i, ai.mean_bias + e.o] + product(s.user, mean, 0, ai.D, m.lane)
    for k in range(s.links[0]):
        f = as_index(t.item_links[i, k] - 1)
        x = share(t.features, f, af, t.item_values[i, k], s.weight[0])
        mean = t.features[f, af.mean :]
        total += x * (t.features[f, af.mean_bias + e.o] + product(s.user, mean, 0, ai.D, m.lane))
    return np.float32(total)


@embedded
def learn_outcome(
    m: StepContext, c: InteractionColumns, s: Scratch, e: Interaction, f: Score, out: Predictions
) -> np.float32:
    """Write the errors of target and uniform items to scratch; return the factual head's error."""
    fact = factual(m, s, e, f)
    w = weight(m, c, s, e)
    r = clicked(m, s, e, f, fact) if e.logit else rated(m, e, f, fact)
    off, miss = r.off, r.miss
    if m.lane.own == 0:
        out.prediction[e.j] = r.said
    served = serves(m, s, e, f)
    if m.lane.own == 0:
        out.served[e.j] = served
    if e.role == SYNTHETIC:
        off, miss = imagined(m, e, r.mu), imagined(m, e, r.filled)
    s.error[0] = w * off
    if m.on.robust and e.role != SYNTHETIC:
        s.error[0] -= m.rates.robust * w * (r.mu - r.filled)
        learn_pairs(m, c, s, e)
    if m.on.live and m.lane.own == 0:
        tell_outcome(m, s.told[e.at], e, f, w)
        tell_confounder(s.told[e.at], e, f, r)
        tell_terms(s, m, e, f, out.terms[e.j])
    return miss


@embedded
def learn_pairs(m: StepContext, c: InteractionColumns, s: Scratch, e: Interaction) -> None:
    """Write the doubly robust errors of the uniform items: predicted minus imputed outcome."""
    at, so = m.at.item, m.terms.outcome
    base, base_f = np.float32(so[e.o, sc.BASE]), np.float32(so[e.o, sc.BASE + 2])
    own, own_f = at.bias + e.o, at.bias + 2 * at.Y + e.o
    pairs = 0
    for p in range(m.at.pairs):
        pairs += c.pair[e.j, p] >= 0
    for p in range(1, 1 + m.at.pairs):
        if c.pair[e.j, p - 1] >= 0:
            reach = product(s.user, s.items[p], at.vector, at.D, m.lane)
            far = base + s.user[own] + s.items[p, own] + reach
            guess = base_f + s.user[own_f] + s.items[p, own_f] + reach
            if e.logit:
                far, guess = sigmoid(far), sigmoid(guess)
            s.error[p] = m.rates.robust * (far - guess) / np.float32(pairs)


@embedded
def tell_outcome(m: StepContext, told: Array, e: Interaction, f: Score, w: np.float32) -> None:
    """Add the outcome to the sums behind its bases and its mean popularity."""
    new = _ZERO if e.role == _CORRECTION else _ONE
    told[account.TOTAL] = w * e.label / f.theta
    told[account.WEIGHT] = new * w
    told[account.TOTAL_F] = e.label / f.theta
    told[account.WEIGHT_F] = new
    told[account.POPULAR] = f.q
    told[account.KIND] += account.TREATED
    if e.position == 0 or not e.logit:  # clicks only at position 1, where examination is certain
        told[account.KIND] += account.WITHIN


@embedded
def tell_confounder(told: Array, e: Interaction, f: Score, r: Errors) -> None:
    """Add to the sums behind alpha and its gate, which opens if the path improves predictions.

    alpha is learned whether or not the gate is open.
    """
    shadow, kept = f.plain + f.confounder_slope * f.z, f.plain
    if e.logit:
        shadow, kept = f.theta * sigmoid(shadow), f.theta * sigmoid(kept)
    gain = np.float64((kept - e.label) ** 2 - (shadow - e.label) ** 2)
    told[account.SCORE_Z] = (shadow - e.label) * f.z
    told[account.SEEN_Z] = r.curve * f.z * f.z
    told[account.GAIN] = gain
    told[account.GAIN_SQUARE] = gain * gain


@embedded
def tell_terms(s: Scratch, m: StepContext, e: Interaction, f: Score, terms: Array) -> None:
    """Write a sampled interaction's score terms after a 1; of others only the user's term."""
    bias = m.at.user.bias + e.o
    terms[1] = s.user[bias]
    if e.step % SAMPLE == 0:
        terms[0], terms[2] = _ONE, s.items[0, bias]
        terms[3], terms[4] = f.match, f.slope * f.popularity_deviation
        terms[5] = f.confounder_slope * f.z if f.gate else _ZERO
