"""Operations shared by the lanes that work on one row: one lane on a CPU, 32 on a GPU.

A driver implements these by overloads, and the functions of the step know nothing else about lanes.
A function that loops over the components of a row handles those of its own lane; what another lane
wrote is visible after `meet`. With one lane the loops compile to plain loops.
"""

from typing import Any

import numpy as np

from stream.compiled import embedded, on_cpu
from stream.model.step.names import Array, Lane


def meet(lane: Lane) -> None:
    """Synchronise the lanes: what each wrote before is visible to all afterwards."""
    raise NotImplementedError("only compiled code calls it")


def product(x: Array, y: Array, first: int, size: int, lane: Lane) -> np.float32:
    """Return the inner product of one part of two rows; the result is the same in every lane."""
    raise NotImplementedError("only compiled code calls it")


def padded(size: int, lane: Lane) -> int:
    """Return the size rounded up to whole strides: rows and scratch are accessible up to it."""
    raise NotImplementedError("only compiled code calls it")


@on_cpu(padded)
def _padded(size: Any, lane: Any) -> Any:
    def itself(size: Any, lane: Any) -> Any:
        return size

    return itself


def ends(first: int, size: int, lane: Lane) -> int:
    """Return the end of this lane's components, of `size` components from `first` on."""
    raise NotImplementedError("only compiled code calls it")


@on_cpu(ends)
def _ends(first: Any, size: Any, lane: Any) -> Any:
    def behind(first: Any, size: Any, lane: Any) -> Any:
        return first + size

    return behind


def strides(size: int, lane: Lane) -> int:
    """Return the number of strides of a part; components are d = stride * lane.all + lane.own."""
    raise NotImplementedError("only compiled code calls it")


@on_cpu(strides)
def _strides(size: Any, lane: Any) -> Any:
    def single(size: Any, lane: Any) -> Any:
        return size

    return single


def inside(d: int, size: int, lane: Lane) -> bool:
    """Return whether component d, reached by a stride, belongs to the part."""
    raise NotImplementedError("only compiled code calls it")


@on_cpu(inside)
def _inside(d: Any, size: Any, lane: Any) -> Any:
    def always(d: Any, size: Any, lane: Any) -> Any:
        return True  # a constant, so that the compiler vectorises the loop

    return always


@on_cpu(meet)
def _meet(lane: Any) -> Any:
    def nothing(lane: Any) -> Any:
        return None

    return nothing


@on_cpu(product)
def _product(x: Any, y: Any, first: Any, size: Any, lane: Any) -> Any:
    def sums(x: Any, y: Any, first: Any, size: Any, lane: Any) -> Any:
        a, b, c, e = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        tail = size - size % 4
        for d in range(first, first + tail, 4):  # four independent sums
            a += x[d] * y[d]
            b += x[d + 1] * y[d + 1]
            c += x[d + 2] * y[d + 2]
            e += x[d + 3] * y[d + 3]
        for d in range(first + tail, first + size):
            a += x[d] * y[d]
        return (a + b) + (c + e)

    return sums


@embedded
def as_index(x: int) -> int:
    """Return a non-negative index in a form whose sign the compiler knows."""
    return np.int64(np.uint32(x))  # type: ignore[return-value]


@embedded
def square(x: Array, first: int, size: int, lane: Lane) -> np.float32:
    """Return the mean square of one part of a row."""
    return product(x, x, first, size, lane) / np.float32(size)
