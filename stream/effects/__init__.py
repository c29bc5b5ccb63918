"""What showing, paths, numbers and policies are worth, with intervals: in bounded memory.

Each estimator adds its events one by one in compiled loops, so how a stream is cut into calls
cannot change a bit. `state()` and `load()` are flat arrays.
"""

from stream.effects.average import AverageEffect
from stream.effects.off_policy import OffPolicy
from stream.effects.regression import PathRegression
from stream.effects.slopes import Slopes
from stream.effects.waiting import Waiting

__all__ = ["AverageEffect", "OffPolicy", "PathRegression", "Slopes", "Waiting"]
