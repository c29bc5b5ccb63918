"""Sums of gradients by row: of a user's interactions, an item's occurrences, a value's links.

A sum is [gradients W | squares of the biases' C | mean squares of the three vectors' | touched |
treated | weight of a link]; see `names`.
"""

import numpy as np

from stream.compiled import embedded
from stream.model.blocks.names import CONTROLS, HEAD, OUTCOME, TREATED, BlockBounds, Work
from stream.model.layout import Layout
from stream.model.step import account
from stream.model.step.compose import link_weight, width
from stream.model.step.interaction import Observation
from stream.model.step.lanes import as_index, ends, meet
from stream.model.step.names import Array, Interaction, StepContext
from stream.model.step.update import Push

_ZERO = np.float32(0)
_ONE = np.float32(1)
VECTOR, EXPOSURE, SESSION, TOUCHED, TREATED_SUM, LINK = range(6)  # positions after W + C


@embedded
def scalars_of(at: Layout) -> int:
    """Return where the six numbers after gradients and squares begin."""
    return width(at) + at.C


@embedded
def clear(w: Work) -> None:
    """Set this worker's sum to 0."""
    for d in range(w.m.lane.own, ends(0, w.hands.sum.size, w.m.lane), w.m.lane.all):
        w.hands.sum[d] = _ZERO
    meet(w.m.lane)


@embedded
def keep(w: Work, rows: Array, at: int, links: int) -> None:
    """Store this worker's sum, of a row with `links` links, in the room."""
    if w.m.lane.own == 0:
        w.hands.sum[scalars_of(w.m.at.item) + LINK] = link_weight(links)
    meet(w.m.lane)
    for d in range(w.m.lane.own, ends(0, w.hands.sum.size, w.m.lane), w.m.lane.all):
        rows[at, d] = w.hands.sum[d]


@embedded
def nothing(w: Work, e: Interaction) -> None:
    """Mark the interaction as one without contributions."""
    if w.m.lane.own == 0:
        account.begin(w.s.told[e.at], e, False)
        for p in range(1 + w.m.at.pairs):
            w.room.error[e.at, p] = w.room.contrast[e.at, p] = w.room.session[e.at, p] = _ZERO


@embedded
def add_bias(m: StepContext, to: Array, c: int, g: np.float32) -> None:
    """Add the gradient of one bias and its square, in the lane that owns the column."""
    at = m.at.item
    first = at.D + at.E + at.S
    if c % m.lane.all == m.lane.own:
        to[first + c] += g
        to[width(at) + c] += g * g


@embedded
def add_user(w: Work, e: Interaction, seen: Observation, push: Push, off: np.float32) -> None:
    """Add an interaction's gradients of its user to the sum for the user's attribute values."""
    m, s, to, at = w.m, w.s, w.hands.sum, w.m.at.user
    first = scalars_of(at)
    if e.treated:
        for d in range(at.vector + m.lane.own, ends(at.vector, at.D, m.lane), m.lane.all):
            to[d] += s.grad[d]
        add_bias(m, to, e.o, push.error)
        add_bias(m, to, 2 * at.Y + e.o, seen.miss)
    if seen.exposing:
        for d in range(
            at.exposure + m.lane.own, ends(at.exposure, at.E + at.S, m.lane), m.lane.all
        ):
            to[d] += s.grad[d]
    add_bias(m, to, at.Y + e.o, off)
    if m.lane.own == 0:
        if e.treated:
            to[first + VECTOR] += push.vector
            to[first + TOUCHED] += _ONE
            to[first + TREATED_SUM] += _ONE
        if seen.exposing:
            to[first + EXPOSURE] += push.exposure
        if seen.session:
            to[first + SESSION] += push.session


@embedded
def add_occurrence(w: Work, b: BlockBounds, occurrence: int) -> None:
    """Add the gradients of an item, the target (p = 0) or a uniform item of an interaction."""
    m, room, to, at = w.m, w.room, w.hands.sum, w.m.at.item
    j = occurrence // (1 + m.at.pairs)
    p, k = as_index(occurrence - j * (1 + m.at.pairs)), as_index(j - b.event)
    kind = room.kind[k]
    error, contrast, session = room.error[k, p], room.contrast[k, p], room.session[k, p]
    o, first = kind // OUTCOME, scalars_of(at)
    if error != 0:
        push = room.push[k, p]
        for d in range(at.vector + m.lane.own, ends(at.vector, at.D, m.lane), m.lane.all):
            to[d] += push * room.moment[k, d]
        add_bias(m, to, o, error)
        if m.lane.own == 0:
            to[first + VECTOR] += push * push * room.norm[k, 0]
            to[first + TOUCHED] += _ONE
    if contrast != 0:
        for d in range(
            at.exposure + m.lane.own, ends(at.exposure, at.E + at.S, m.lane), m.lane.all
        ):
            to[d] += (contrast if d < at.session else session) * room.moment[k, d]
        add_bias(m, to, 3 * at.Y + (1 if kind & HEAD else 0), contrast)
        if m.lane.own == 0:
            to[first + EXPOSURE] += contrast * contrast * room.norm[k, 1]
            to[first + SESSION] += session * session * room.norm[k, 2]
    if p == 0 and kind & TREATED:
        add_bias(m, to, 2 * at.Y + o, room.miss[k])
        if m.lane.own == 0:
            to[first + TREATED_SUM] += _ONE
    if p == 0 and kind & CONTROLS:
        add_bias(m, to, at.Y + o, room.off[k])


@embedded
def add_row(w: Work, rows: Array, at: int) -> None:
    """Add a sum that another worker stored."""
    for d in range(w.m.lane.own, ends(0, w.hands.sum.size, w.m.lane), w.m.lane.all):
        w.hands.sum[d] += rows[at, d]


@embedded
def add_scaled(w: Work, rows: Array, at: int, x: np.float32) -> None:
    """Add a sum through a link of strength x: gradients times x, squares times x squared."""
    m = w.m
    W, first = width(m.at.item), scalars_of(m.at.item)
    for d in range(m.lane.own, ends(0, w.hands.sum.size, m.lane), m.lane.all):
        scale = x if d < W else (x * x if d < first + TOUCHED else _ONE)
        w.hands.sum[d] += scale * rows[at, d]
