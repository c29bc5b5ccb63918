"""Row-wise Adagrad and the Polyak averages of served rows.

Each vector and each bias has one accumulator (Duchi et al., 2011; row-wise: Mudigere et al., 2022).
"""

import math
from typing import NamedTuple

import numpy as np

from stream.compiled import embedded
from stream.model.layout import Layout
from stream.model.step.lanes import ends, inside, meet, strides
from stream.model.step.names import Array, Lane

_ONE = np.float32(1)


class VectorPart(NamedTuple):
    """One vector of a row: its columns, its accumulator, its learning rate and its L2 penalty."""

    first: int  # its first column in the row
    at: int  # its first column in the gradient
    size: int
    total: int  # column of the accumulator
    lr: np.float32
    shrink: np.float32


class Step(NamedTuple):
    """How far a part moves: its rate, the gradient's factor, and its accumulator afterwards."""

    rate: np.float32
    x: np.float32
    total: np.float32


@embedded
def rate_of(lr: np.float32, total: np.float32) -> np.float32:
    """Return the rate of a step whose accumulator is `total`."""
    return lr / np.float32(math.sqrt(total))


@embedded
def move_vector(table: Array, row: int, part: VectorPart, g: Array, step: Step, lane: Lane) -> None:
    """Move a vector against the gradient x g, and pull it to 0."""
    far, keep = step.rate * step.x, _ONE - step.rate * part.shrink
    meet(lane)
    if lane.own == 0:
        table[row, part.total] = step.total
    for stride in range(strides(part.size, lane)):
        d = stride * lane.all + lane.own
        if inside(d, part.size, lane):
            at = part.first + d
            table[row, at] = keep * table[row, at] - far * g[part.at + d]


@embedded
def step_vector(
    table: Array, row: int, part: VectorPart, g: Array, x: np.float32, size: np.float32, lane: Lane
) -> None:
    """Take one Adagrad step against the gradient x g; `size` is the mean square of g."""
    total = table[row, part.total] + x * x * size
    move_vector(table, row, part, g, Step(rate_of(part.lr, total), x, total), lane)


@embedded
def move_bias(
    table: Array, row: int, at: Layout, c: int, g: np.float32, step: Step, shrink: np.float32
) -> None:
    """Move one bias against the gradient x g, and pull it to 0; one lane does."""
    table[row, at.bias_sum + c] = step.total
    value = table[row, at.bias + c]
    table[row, at.bias + c] = value - step.rate * (step.x * g + shrink * value)


@embedded
def step_bias(
    table: Array, row: int, at: Layout, c: int, g: np.float32, lr: np.float32, shrink: np.float32
) -> None:
    """Take one Adagrad step on bias c of a row; only one lane calls it."""
    total = table[row, at.bias_sum + c] + g * g
    move_bias(table, row, at, c, g, Step(rate_of(lr, total), _ONE, total), shrink)


@embedded
def average(table: Array, bits: Array, row: int, at: Layout, keep: np.float32, lane: Lane) -> None:
    """Move the served means towards the row; at first they are plain means (Polyak, 1992)."""
    count = np.float32(bits[row, at.events] + np.uint32(1))
    rate = max(_ONE - keep, _ONE / count)
    for d in range(lane.own, ends(0, at.D, lane), lane.all):
        table[row, at.mean + d] += rate * (table[row, at.vector + d] - table[row, at.mean + d])
    for o in range(lane.own, ends(0, at.Y, lane), lane.all):
        table[row, at.mean_bias + o] += rate * (
            table[row, at.bias + o] - table[row, at.mean_bias + o]
        )


@embedded
def vector_part(at: Layout, lr: np.float32, shrink: np.float32) -> VectorPart:
    """Return the part of the factors (g or h)."""
    return VectorPart(at.vector, at.vector, at.D, at.vector_sum, lr, shrink)


@embedded
def exposure_part(at: Layout, lr: np.float32, shrink: np.float32) -> VectorPart:
    """Return the part of the long-term exposure factors (s or t)."""
    return VectorPart(at.exposure, at.exposure, at.E, at.exposure_sum, lr, shrink)


@embedded
def session_part(at: Layout, lr: np.float32, shrink: np.float32) -> VectorPart:
    """Return the part of the session factors (s' or t')."""
    return VectorPart(at.session, at.session, at.S, at.session_sum, lr, shrink)
