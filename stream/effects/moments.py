"""What the running estimators share: columns for the compiled loops, and the normal's quantile."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Z95 = 1.959963984540054  # the normal's .975 quantile


def columns(*values: ArrayLike) -> list[Array]:
    """Return the values as the kernels take them; ValueError unless they are equally long.

    The kernels do not look where a column ends.
    """
    made = [np.ascontiguousarray(v, np.float64) for v in values]
    if len({len(v) for v in made}) > 1:
        raise ValueError(f"columns of different lengths: {[len(v) for v in made]}")
    return made
