"""The pieces of the compiled loop: randomness, composed rows, Adagrad.

No fast-math: the bits are promised. The kernels hold no Python object and release the GIL.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

import stream.compiled
from stream.model.features import FAR
from stream.model.layout import Layout

Array = NDArray[Any]
F = TypeVar("F", bound=Callable[..., Any])
_FAR = np.float32(FAR)


def compiled(law: F, inline: stream.compiled.Inline = "never") -> F:
    """Return the law compiled without checks for division by zero.

    None can happen here: the accumulators start above 0. With them the loop takes twice the time.
    """
    return cast(F, stream.compiled.compiled(law, inline, error_model="numpy"))


def inlined(law: F) -> F:
    """Return the law compiled into its callers: a call would count references of its arrays."""
    return compiled(law, "always")


@compiled
def mix(key: np.uint64) -> np.uint64:
    """Return 64 well-mixed bits of a counter (splitmix64, Steele et al. 2014)."""
    z = key + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@inlined
def normal(bits: np.uint64) -> np.float32:
    """Return four uniforms of 16 bits, summed: near enough to a standard normal."""
    total = np.uint64(0)
    for k in range(4):
        total += (bits >> np.uint64(16 * k)) & np.uint64(0xFFFF)
    unit = np.float32(total) / np.float32(65535.0) - np.float32(2.0)
    return unit * np.float32(1.7320508)


@compiled
def create(table: Array, row: int, at: Layout, salt: int, seed: np.uint64, start: Array) -> None:
    """Make the row exist: small vectors drawn from (seed, salt, row), accumulators at start.

    `start` is bias accumulator, vector accumulator, exposure accumulator, spread of the vector,
    spread of the exposure vector.
    """
    base = mix(mix(seed + np.uint64(salt)) ^ np.uint64(row))
    for d in range(at.D):
        table[row, at.vector + d] = normal(mix(base + np.uint64(d))) * start[3]
        if at.mean >= 0:
            table[row, at.mean + d] = table[row, at.vector + d]
    for d in range(at.E):
        table[row, at.expo + d] = normal(mix(base + np.uint64(at.D + d))) * start[4]
    for d in range(at.S):
        table[row, at.session + d] = normal(mix(base + np.uint64(at.D + at.E + d))) * start[4]
    for c in range(3 * at.Y):
        table[row, at.bias_sum + c] = start[0]
    for c in range(3 * at.Y, at.C):
        table[row, at.bias_sum + c] = start[2]
    table[row, at.vector_sum] = start[1]
    table[row, at.expo_sum] = start[2]
    table[row, at.session_sum] = start[2]
    if at.inverse >= 0 and table[row, at.inverse] == 0:
        table[row, at.inverse] = np.float32(1)


@compiled
def ensure(table: Array, rows: Array, at: Layout, salt: int, seed: np.uint64, start: Array) -> None:
    """Make every named row exist."""
    for j in range(rows.size):
        if table[rows[j], at.vector_sum] == 0:
            create(table, rows[j], at, salt, seed, start)


@inlined
def linked(links: Array, row: int) -> int:
    """Return how many attribute values the row is linked to."""
    n = 0
    while n < links.shape[1] and links[row, n] != 0:
        n += 1
    return n


@inlined
def share(features: Array, f: int, af: Layout, value: np.float32, weight: np.float32) -> np.float32:
    """Return how strongly a link of that value enters its row; numbers are standardised."""
    x: np.float32 = weight * (value - features[f, af.center]) * features[f, af.inverse]
    far = weight * _FAR
    if x > far:
        x = far
    elif x < -far:
        x = -far
    return x


@inlined
def gather(
    vector: Array,
    expo: Array,
    session: Array,
    bias: Array,
    table: Array,
    row: int,
    at: Layout,
    features: Array,
    af: Layout,
    links: Array,
    values: Array,
    n: int,
    weight: np.float32,
) -> None:
    """Write the row as it enters the score: its own parts plus its attributes'."""
    for d in range(at.D):
        vector[d] = table[row, at.vector + d]
    for d in range(at.E):
        expo[d] = table[row, at.expo + d]
    for d in range(at.S):
        session[d] = table[row, at.session + d]
    for c in range(at.C):
        bias[c] = table[row, at.bias + c]
    for k in range(n):
        f = links[row, k] - 1
        x = share(features, f, af, values[row, k], weight)
        for d in range(at.D):
            vector[d] += x * features[f, af.vector + d]
        for d in range(at.E):
            expo[d] += x * features[f, af.expo + d]
        for d in range(at.S):
            session[d] += x * features[f, af.session + d]
        for c in range(at.C):
            bias[c] += x * features[f, af.bias + c]


@inlined
def product(x: Array, y: Array) -> np.float32:
    """Return the inner product, in four sums that do not wait for each other."""
    a = b = c = e = np.float32(0)
    size = x.size
    tail = size - size % 4
    for d in range(0, tail, 4):
        a += x[d] * y[d]
        b += x[d + 1] * y[d + 1]
        c += x[d + 2] * y[d + 2]
        e += x[d + 3] * y[d + 3]
    for d in range(tail, size):
        a += x[d] * y[d]
    return (a + b) + (c + e)


@inlined
def square(x: Array) -> np.float32:
    """Return the mean of squares."""
    return product(x, x) / np.float32(x.size)


@inlined
def step_vector(
    table: Array, row: int, first: int, total: int, grad: Array, size: np.float32,
    x: np.float32, lr: np.float32, shrink: np.float32,
) -> None:  # fmt: skip
    """Take one row-wise Adagrad step on a vector that enters the score with weight x.

    `size` is the mean square of `grad`; `shrink` pulls the vector to 0 by a share of the rate.
    """
    held = table[row, total] + x * x * size
    table[row, total] = held
    rate = lr / np.sqrt(held)
    step, keep = rate * x, np.float32(1) - rate * shrink
    for d in range(grad.size):
        table[row, first + d] = keep * table[row, first + d] - step * grad[d]


@inlined
def step_bias(
    table: Array, row: int, at: Layout, c: int, g: np.float32, lr: np.float32, shrink: np.float32
) -> None:
    """Take one Adagrad step on one bias of a row."""
    held = table[row, at.bias_sum + c] + g * g
    table[row, at.bias_sum + c] = held
    rate = lr / np.sqrt(held)
    value = table[row, at.bias + c]
    table[row, at.bias + c] = value - rate * (g + shrink * value)


@compiled
def averaged_score(
    user: Array, items: Array, i: int, ai: Layout, o: int, features: Array, af: Layout,
    links: Array, values: Array, n: int, weight: np.float32,
) -> np.float32:  # fmt: skip
    """Return what the item's served means add to outcome o: its bias, and its match."""
    total = items[i, ai.mean_bias + o]
    for d in range(ai.D):
        total += user[d] * items[i, ai.mean + d]
    for k in range(n):
        f = links[i, k] - 1
        x = share(features, f, af, values[i, k], weight)
        total += x * features[f, af.mean_bias + o]
        for d in range(ai.D):
            total += x * user[d] * features[f, af.mean + d]
    return np.float32(total)


@inlined
def average(table: Array, bits: Array, row: int, at: Layout, keep: np.float32) -> None:
    """Move the served means towards the row; the first ones are plain means (Polyak 1992)."""
    count = np.float32(bits[row, at.events] + np.uint32(1))
    rate = max(np.float32(1) - keep, np.float32(1) / count)
    for d in range(at.D):
        table[row, at.mean + d] += rate * (table[row, at.vector + d] - table[row, at.mean + d])
    for o in range(at.Y):
        table[row, at.mean_bias + o] += rate * (
            table[row, at.bias + o] - table[row, at.mean_bias + o]
        )
