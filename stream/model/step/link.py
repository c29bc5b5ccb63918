"""The inverse of the logit link."""

import math

import numpy as np

from stream.compiled import embedded

_ONE = np.float32(1)


@embedded
def sigmoid(x: np.float32) -> np.float32:
    """Return 1 / (1 + exp(-x))."""
    chance: np.float32 = _ONE / (_ONE + np.float32(math.exp(-x)))
    return chance
