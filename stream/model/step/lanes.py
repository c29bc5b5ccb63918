"""One row is worked on by one lane on a CPU and by 32 on a GPU: the sums over lanes.

A driver supplies what its lanes do together; the functions of the step know nothing else of it. A
function that loops over the components of a row takes those of its lane; what another lane wrote is
seen after `meet`. With one lane the compiler sees plain loops.
"""

from typing import Any

import numpy as np

from stream.compiled import embedded, on_cpu
from stream.model.step.names import Array, Lane


def meet(lane: Lane) -> None:
    """What every lane wrote before is seen by every lane afterwards."""
    raise NotImplementedError("only compiled code calls it")


def product(x: Array, y: Array, first: int, size: int, lane: Lane) -> np.float32:
    """Return the inner product of one part of two rows, the same in every lane."""
    raise NotImplementedError("only compiled code calls it")


def padded(size: int, lane: Lane) -> int:
    """Return the size up to which a row may be read, and a scratch row written: whole strides."""
    raise NotImplementedError("only compiled code calls it")


@on_cpu(padded)
def _padded(size: Any, lane: Any) -> Any:
    def itself(size: Any, lane: Any) -> Any:
        return size

    return itself


def ends(first: int, size: int, lane: Lane) -> int:
    """Return where the components of this lane end, of `size` from `first` on."""
    raise NotImplementedError("only compiled code calls it")


@on_cpu(ends)
def _ends(first: Any, size: Any, lane: Any) -> Any:
    def behind(first: Any, size: Any, lane: Any) -> Any:
        return first + size

    return behind


def strides(size: int, lane: Lane) -> int:
    """Return how many strides a part of any size has: d = stride * lane.all + lane.own < size."""
    raise NotImplementedError("only compiled code calls it")


@on_cpu(strides)
def _strides(size: Any, lane: Any) -> Any:
    def single(size: Any, lane: Any) -> Any:
        return size

    return single


def inside(d: int, size: int, lane: Lane) -> bool:
    """Return whether a component that a stride came to is one of the part."""
    raise NotImplementedError("only compiled code calls it")


@on_cpu(inside)
def _inside(d: Any, size: Any, lane: Any) -> Any:
    def always(d: Any, size: Any, lane: Any) -> Any:
        return True  # known to the compiler, which then vectorises the loop

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
        for d in range(first, first + tail, 4):  # four sums that do not wait for each other
            a += x[d] * y[d]
            b += x[d + 1] * y[d + 1]
            c += x[d + 2] * y[d + 2]
            e += x[d + 3] * y[d + 3]
        for d in range(first + tail, first + size):
            a += x[d] * y[d]
        return (a + b) + (c + e)

    return sums


@embedded
def place(x: int) -> int:
    """Return an index that is not below 0 as one that the compiler knows not to be."""
    return np.int64(np.uint32(x))  # type: ignore[return-value]


@embedded
def square(x: Array, first: int, size: int, lane: Lane) -> np.float32:
    """Return the mean of squares of one part of a row."""
    return product(x, x, first, size, lane) / np.float32(size)
