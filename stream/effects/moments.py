"""Shared parts of the running estimators: columns for the kernels, and the normal quantile."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Z95 = 1.959963984540054  # the .975 quantile of the standard normal


def columns(*values: ArrayLike) -> list[Array]:
    """Return the values as float64 columns; raise ValueError if their lengths differ.

    The check is needed because the compiled kernels do not check bounds.
    """
    made = [np.ascontiguousarray(v, np.float64) for v in values]
    if len({len(v) for v in made}) > 1:
        raise ValueError(f"columns have different lengths: {[len(v) for v in made]}")
    return made
