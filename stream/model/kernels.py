"""Creation of rows: values are drawn from the seed and the row, never from the time of creation.

Fast-math is off, since results are promised bit by bit. The kernels hold no Python objects and
release the GIL.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

import stream.compiled
from stream.model.layout import Layout

Array = NDArray[Any]
USER, ITEM, FEATURE = 0, 1, 2  # salt of the random numbers of new rows, by kind
F = TypeVar("F", bound=Callable[..., Any])


def compiled(law: F, inline: stream.compiled.Inline = "never") -> F:
    """Compile a function without checks for division by zero.

    No division by zero can occur, because the accumulators start above 0; the checks would double
    the time of the loops.
    """
    return cast(F, stream.compiled.compiled(law, inline, error_model="numpy"))


def inlined(law: F) -> F:
    """Compile a function into its compiled callers; a call would count references of its arrays."""
    return compiled(law, "always")


@compiled
def splitmix64(key: np.uint64) -> np.uint64:
    """Return 64 well-mixed bits of a counter (splitmix64; Steele, Lea and Flood, 2014)."""
    z = key + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@inlined
def normal(bits: np.uint64) -> np.float32:
    """Return an approximately standard normal number: the sum of four uniforms of 16 bits."""
    total = np.uint64(0)
    for k in range(4):
        total += (bits >> np.uint64(16 * k)) & np.uint64(0xFFFF)
    unit = np.float32(total) / np.float32(65535.0) - np.float32(2.0)
    return unit * np.float32(1.7320508)


@compiled
def create(table: Array, row: int, at: Layout, salt: int, seed: np.uint64, start: Array) -> None:
    """Create the row: small random vectors from (seed, salt, row), accumulators at their start.

    `start` holds the initial accumulators of biases, vector and exposure vector, then the standard
    deviations of the vector and of the exposure vectors.
    """
    base = splitmix64(splitmix64(seed + np.uint64(salt)) ^ np.uint64(row))
    for d in range(at.D):
        table[row, at.vector + d] = normal(splitmix64(base + np.uint64(d))) * start[3]
        if at.mean >= 0:
            table[row, at.mean + d] = table[row, at.vector + d]
    for d in range(at.E):
        table[row, at.exposure + d] = normal(splitmix64(base + np.uint64(at.D + d))) * start[4]
    for d in range(at.S):
        table[row, at.session + d] = (
            normal(splitmix64(base + np.uint64(at.D + at.E + d))) * start[4]
        )
    for c in range(3 * at.Y):
        table[row, at.bias_sum + c] = start[0]
    for c in range(3 * at.Y, at.C):
        table[row, at.bias_sum + c] = start[2]
    table[row, at.vector_sum] = start[1]
    table[row, at.exposure_sum] = start[2]
    table[row, at.session_sum] = start[2]
    if at.inverse >= 0 and table[row, at.inverse] == 0:
        table[row, at.inverse] = np.float32(1)


@compiled
def ensure(table: Array, rows: Array, at: Layout, salt: int, seed: np.uint64, start: Array) -> None:
    """Create those of the rows that do not exist yet."""
    for j in range(rows.size):
        if table[rows[j], at.vector_sum] == 0:
            create(table, rows[j], at, salt, seed, start)
