"""The part of a user's row that comes from its attribute values, as it changes within a block.

Attribute values are constant within a block, like items. For the user itself they must not be:
otherwise a user with a hundred interactions in a block learns only by its own row, and half as
fast. So a chain keeps copies of the accumulators of its user's values, and moves their part of the
composed row as if the values took each step immediately. The values themselves learn from the
block's sums.
"""

import math

import numpy as np

from stream.compiled import embedded
from stream.model.blocks.names import Work
from stream.model.step.compose import link_count, link_weight, share, width
from stream.model.step.interaction import Observation
from stream.model.step.lanes import as_index, ends, meet, padded
from stream.model.step.names import Array, Interaction
from stream.model.step.update import Push

_ZERO = np.float32(0)
# rows of `held`: a link's strength, its vectors' accumulators, its biases' accumulators
STRENGTH, VECTOR, EXPOSURE, SESSION, BIASES = range(5)


@embedded
def fold(w: Work, u: int) -> int:
    """Write what the user's attribute values add to its row; return how many there are."""
    m, t, h = w.m, w.m.tables, w.hands
    n = link_count(t.user_links, u)
    if n == 0:
        return 0
    f_at, weight = m.at.feature, link_weight(n)
    meet(m.lane)
    for k in range(m.lane.own, ends(0, n, m.lane), m.lane.all):
        f = as_index(t.user_links[u, k] - 1)
        h.held[STRENGTH, k] = share(t.features, f, f_at, t.user_values[u, k], weight)
        h.held[VECTOR, k] = t.features[f, f_at.vector_sum]
        h.held[EXPOSURE, k] = t.features[f, f_at.exposure_sum]
        h.held[SESSION, k] = t.features[f, f_at.session_sum]
        for c in range(f_at.C):
            h.held[BIASES + c, k] = t.features[f, f_at.bias_sum + c]
    meet(m.lane)
    for d in range(m.lane.own, ends(0, padded(width(m.at.user), m.lane), m.lane), m.lane.all):
        h.folded[d] = _ZERO
    for k in range(n):
        f, x = as_index(t.user_links[u, k] - 1), h.held[STRENGTH, k]
        for d in range(m.lane.own, ends(0, padded(width(m.at.user), m.lane), m.lane), m.lane.all):
            h.folded[d] += x * t.features[f, d]
    return n


@embedded
def grow(held: Array, row: int, k: int, size: np.float32, lr: np.float32) -> np.float32:
    """Add a gradient to an accumulator of link k; return x squared times its learning rate."""
    x = held[STRENGTH, k]
    grown = held[row, k] + x * x * size
    held[row, k] = grown
    return x * x * (lr / np.float32(math.sqrt(grown)))


@embedded
def total(rates: Array, row: int, n: int) -> np.float32:
    """Return the sum of the links' rates."""
    summed = _ZERO
    for k in range(n):
        summed += rates[row, k]
    return summed


@embedded
def grow_links(
    w: Work, e: Interaction, seen: Observation, push: Push, off: np.float32, n: int
) -> None:
    """Write every link's rates for an interaction; each lane handles its own links."""
    m, held, rates, r = w.m, w.hands.held, w.hands.rates, w.m.rates
    Y = m.at.feature.Y
    for k in range(m.lane.own, ends(0, n, m.lane), m.lane.all):
        for row in range(6):
            rates[row, k] = _ZERO
        if e.treated:
            error, miss = push.error, seen.miss
            rates[0, k] = grow(held, VECTOR, k, push.vector, r.feature_factor)
            rates[1, k] = grow(held, BIASES + e.o, k, error * error, r.feature_bias)
            rates[2, k] = grow(held, BIASES + 2 * Y + e.o, k, miss * miss, r.feature_bias)
        if off != 0:
            rates[3, k] = grow(held, BIASES + Y + e.o, k, off * off, r.feature_bias)
        if seen.exposing:
            rates[4, k] = grow(held, EXPOSURE, k, push.exposure, r.exposure)
        if seen.session:
            rates[5, k] = grow(held, SESSION, k, push.session, r.session)


@embedded
def move(w: Work, e: Interaction, seen: Observation, push: Push, off: np.float32, n: int) -> None:
    """Move the values' part of the user's row by the interaction's gradients of the user."""
    m, s, h, at = w.m, w.s, w.hands, w.m.at.user
    grow_links(w, e, seen, push, off, n)
    meet(m.lane)
    vector, exposure, session = total(h.rates, 0, n), total(h.rates, 4, n), total(h.rates, 5, n)
    for d in range(at.vector + m.lane.own, ends(at.vector, at.D, m.lane), m.lane.all):
        h.folded[d] -= vector * s.grad[d]
    for d in range(at.exposure + m.lane.own, ends(at.exposure, at.E + at.S, m.lane), m.lane.all):
        h.folded[d] -= (exposure if d < at.session else session) * s.grad[d]
    meet(m.lane)
    if m.lane.own == 0:
        h.folded[at.bias + e.o] -= total(h.rates, 1, n) * push.error
        h.folded[at.bias + 2 * at.Y + e.o] -= total(h.rates, 2, n) * seen.miss
        h.folded[at.bias + at.Y + e.o] -= total(h.rates, 3, n) * off
    meet(m.lane)
