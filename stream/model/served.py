"""Rows as they are served, with their attributes folded in."""

import numpy as np

from stream.model.kernels import Array, compiled
from stream.model.layout import Layout
from stream.model.step.compose import linked, share


@compiled
def serve(
    rows: Array, table: Array, at: Layout, features: Array, af: Layout, links: Array,
    values: Array, averaged: bool, share_recent: np.float32, vector: Array, expo: Array,
    bias: Array,
) -> None:  # fmt: skip
    """Write the rows as they are served: own parts and attributes', means where there are any.

    `expo` (n, E + S): what lasts, then the session, to which a user's has its recent items added.
    """
    means = averaged and at.mean >= 0
    first = at.mean if means else at.vector
    first_f = af.mean if means else af.vector
    for j in range(rows.size):
        row = rows[j]
        n = linked(links, row)
        weight = np.float32(1) / np.sqrt(np.float32(max(n, 1)))
        for d in range(at.D):
            vector[j, d] = table[row, first + d]
        for d in range(at.E):
            expo[j, d] = table[row, at.expo + d]
        for d in range(at.S):
            expo[j, at.E + d] = table[row, at.session + d]
            if at.recent >= 0:
                expo[j, at.E + d] += share_recent * table[row, at.recent + d]
        for c in range(at.C):
            bias[j, c] = table[row, at.bias + c]
        if means:
            for c in range(at.Y):
                bias[j, c] = table[row, at.mean_bias + c]
        for k in range(n):
            f = links[row, k] - 1
            x = share(features, f, af, values[row, k], weight)
            for d in range(at.D):
                vector[j, d] += x * features[f, first_f + d]
            for d in range(at.E):
                expo[j, d] += x * features[f, af.expo + d]
            for d in range(at.S):
                expo[j, at.E + d] += x * features[f, af.session + d]
            for c in range(at.C):
                at_c = af.mean_bias + c if means and c < at.Y else af.bias + c
                bias[j, c] += x * features[f, at_c]
