"""Composed rows: a row's own part plus the parts of its attribute values (g_u, h_i, the biases)."""

import math

import numpy as np

from stream.compiled import embedded
from stream.model.features import FAR
from stream.model.layout import Layout
from stream.model.step.lanes import as_index, ends, padded
from stream.model.step.names import Array, Lane, Scratch, StepContext

_FAR = np.float32(FAR)
_ONE = np.float32(1)


@embedded
def link_count(links: Array, row: int) -> int:
    """Return how many attribute values the row is linked to."""
    n = 0
    while n < links.shape[1] and links[row, n] != 0:
        n += 1
    return n


@embedded
def link_weight(n: int) -> np.float32:
    """Return the weight of each of n links, 1 / sqrt(n)."""
    return _ONE / np.float32(math.sqrt(np.float32(max(n, 1))))


@embedded
def share(features: Array, f: int, af: Layout, value: np.float32, weight: np.float32) -> np.float32:
    """Return x, the strength with which a link enters its row; numbers are standardised."""
    x: np.float32 = weight * (value - features[f, af.center]) * features[f, af.inverse]
    far = weight * _FAR
    if x > far:
        x = far
    elif x < -far:
        x = -far
    return x


@embedded
def own_parts(to: Array, table: Array, row: int, width: int, lane: Lane) -> None:
    """Write the row's own vectors and biases (W,), which are its first columns."""
    for d in range(lane.own, ends(0, padded(width, lane), lane), lane.all):
        to[d] = table[row, d]


@embedded
def add_links(
    to: Array, m: StepContext, links: Array, values: Array, row: int, n: int, weight: np.float32
) -> None:
    """Add the parts of the row's n attribute values, each with its strength x."""
    features, af = m.tables.features, m.at.feature
    for k in range(n):
        f = as_index(links[row, k] - 1)
        x = share(features, f, af, values[row, k], weight)
        for d in range(m.lane.own, ends(0, padded(width(af), m.lane), m.lane), m.lane.all):
            to[d] += x * features[f, d]


@embedded
def width(at: Layout) -> int:
    """Return W, the size of vector, exposure, session and biases, with which every row begins."""
    return at.D + at.E + at.S + at.C


@embedded
def compose_user(m: StepContext, s: Scratch, u: int) -> int:
    """Write the user's composed row to scratch; return how many attribute values it has."""
    t = m.tables
    n = link_count(t.user_links, u)
    own_parts(s.user, t.users, u, width(m.at.user), m.lane)
    add_links(s.user, m, t.user_links, t.user_values, u, n, link_weight(n))
    return n


@embedded
def compose_item(m: StepContext, s: Scratch, p: int, i: int) -> None:
    """Write the composed row of the target (p = 0) or of a uniform item to scratch."""
    t = m.tables
    n = link_count(t.item_links, i)
    s.links[p], s.weight[p] = n, link_weight(n)
    own_parts(s.items[p], t.items, i, width(m.at.item), m.lane)
    add_links(s.items[p], m, t.item_links, t.item_values, i, n, s.weight[p])
