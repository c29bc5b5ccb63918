"""Estimators of average effects, path coefficients, slopes and policy values, in bounded memory.

Each estimator adds its events one by one in compiled loops, so the bits do not depend on how a
stream is divided into calls. `state()` and `load()` exchange flat arrays.
"""

from stream.effects.average import AverageEffect
from stream.effects.off_policy import OffPolicy
from stream.effects.regression import PathRegression
from stream.effects.slopes import Slopes
from stream.effects.waiting import Waiting

__all__ = ["AverageEffect", "OffPolicy", "PathRegression", "Slopes", "Waiting"]
