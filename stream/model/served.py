"""Computes rows as they are served: a row's own part plus the parts of its attribute values."""

from typing import NamedTuple

import numpy as np

from stream.compiled import compiled, embedded
from stream.model.layout import Layout
from stream.model.step.compose import link_count, link_weight, share, width
from stream.model.step.lanes import as_index, ends
from stream.model.step.names import Array, Lane


class Side(NamedTuple):
    """The rows of one kind, their links, and the attribute values that these point to."""

    table: Array
    links: Array
    values: Array
    features: Array
    at: Layout
    af: Layout
    share: np.float32  # weight of r_u, the mean of the user's latest items, in s'


@embedded
def own_row(to: Array, side: Side, row: int, lane: Lane) -> None:
    """Write the row's own part (W,): served means if there are any, and s' + 3 r of a user."""
    table, at = side.table, side.at
    for d in range(lane.own, ends(0, width(at), lane), lane.all):
        to[d] = table[row, d]
        if at.mean >= 0 and d < at.D:
            to[d] = table[row, at.mean + d]
        elif at.mean >= 0 and at.bias <= d and d < at.bias + at.Y:
            to[d] = table[row, at.mean_bias + d - at.bias]
        elif at.recent >= 0 and at.session <= d and d < at.bias:
            to[d] += side.share * table[row, at.recent + d - at.session]


@embedded
def serve_row(to: Array, side: Side, row: int, lane: Lane) -> None:
    """Write the row as it is served (W,): vector, exposure, session, biases."""
    features, at, af = side.features, side.at, side.af
    n = link_count(side.links, row)
    weight = link_weight(n)
    own_row(to, side, row, lane)
    for k in range(n):
        f = as_index(side.links[row, k] - 1)
        x = share(features, f, af, side.values[row, k], weight)
        for d in range(lane.own, ends(0, width(at), lane), lane.all):
            column = d
            if at.mean >= 0 and d < at.D:
                column = af.mean + d
            elif at.mean >= 0 and at.bias <= d and d < at.bias + at.Y:
                column = af.mean_bias + d - at.bias
            to[d] += x * features[f, column]


@compiled
def serve(rows: Array, side: Side, out: Array) -> None:
    """Write the rows as they are served (n, W)."""
    for j in range(rows.size):
        serve_row(out[j], side, rows[j], Lane(0, 1))
