"""New rows: drawn from the seed, so that a row that exists never depends on who asks for it.

No fast-math: the bits are promised. The kernels hold no Python object and release the GIL.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

import stream.compiled
from stream.model.layout import Layout

Array = NDArray[Any]
USER, ITEM, FEATURE = 0, 1, 2  # the salt of a new row's vector
F = TypeVar("F", bound=Callable[..., Any])


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
