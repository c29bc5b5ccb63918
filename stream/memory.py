"""Memory that is reserved at its full size and committed as it is touched: growing never copies."""

import mmap
import sys

import numpy as np
from numpy.typing import NDArray

NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def reserve(rows: int, width: int, dtype: type[np.generic]) -> NDArray[np.generic]:
    """Return zeros (rows, width) whose pages the system commits as they are touched."""
    size = rows * width * np.dtype(dtype).itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    return np.frombuffer(mmap.mmap(-1, size, flags=flags), dtype).reshape(rows, width)
