"""What showing, a path and a policy are worth, with intervals: streaming, in bounded memory.

Each estimator adds its events one by one in compiled loops, so how a stream is cut into calls
cannot change a bit. `state()` and `load()` are flat arrays.
"""

from stream.effects.average import AverageEffect
from stream.effects.off_policy import OffPolicy
from stream.effects.regression import PathRegression

__all__ = ["AverageEffect", "OffPolicy", "PathRegression"]
