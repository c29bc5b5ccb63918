"""Arrays reserved at full size and committed page by page on first use: growth never copies."""

import mmap
import sys

import numpy as np
from numpy.typing import NDArray

from stream.errors import Inconsistent

NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)

SMALLER = (
    "lower the bounds: model.max_users, max_items, max_features, trainer.duplicates_window,"
    " join.open_max, closed_max, pending_max"
)


def reserve(rows: int, width: int, dtype: type[np.generic]) -> NDArray[np.generic]:
    """Return zeros (rows, width) whose memory pages are committed when they are first touched."""
    size = rows * width * np.dtype(dtype).itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    try:
        memory = mmap.mmap(-1, size, flags=flags)
    except (OSError, OverflowError) as error:
        raise Inconsistent(f"cannot reserve {size} bytes of memory: {error}", SMALLER) from error
    return np.frombuffer(memory, dtype).reshape(rows, width)
