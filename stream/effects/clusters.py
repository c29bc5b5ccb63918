"""Running sums of vectors that come in clusters, such as a user's windows, which are dependent."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.compiled import compiled
from stream.effects.moments import Z95, Array
from stream.memory import reserve

USERS = 40  # effective users needed for an interval: with fewer their variance is unknown
TAILS_MAX = 65_536  # most clusters whose tails are computed (10 ms); among more, few do not matter


@compiled
def gather(x, at, rows, total, square, window, cube, tally, held):  # type: ignore[no-untyped-def]
    """Add the vector x (k,), x[0] = 1, to the sums of cluster `at`; -1: a cluster of its own.

    `square` and `cube` are the second and third moments over clusters of the clusters' sums,
    `window` is the second moment of the vectors. When a cluster's sum moves from s to t, `square`
    moves by t t' - s s', which is exact in any order. `tally` holds the number of clusters and the
    sum of the fourth powers of their sizes. `held` (2, k) is room for s and t.
    """
    k = len(x)
    s, t = held[0], held[1]
    for a in range(k):
        s[a], t[a] = 0.0, x[a]
        if at >= 0:
            s[a] = rows[at, a]
            rows[at, a] = s[a] + x[a]
            t[a] = rows[at, a]  # as rounded to float32
        total[a] += x[a]
    tally[0] += s[0] == 0.0
    tally[1] += t[0] ** 4 - s[0] ** 4
    place = 0
    for a in range(k):
        for b in range(a, k):
            old, new = s[a] * s[b], t[a] * t[b]
            square[a, b] += new - old
            window[a, b] += x[a] * x[b]
            if new != 0.0 or old != 0.0:  # saves time: most products are 0
                for c in range(b, k):
                    cube[place + c - b] += new * t[c] - old * s[c]
            place += k - b


class Spread(NamedTuple):
    """The uncertainty of an estimate g . total: variance, third moment and degrees of freedom.

    `freedom` follows from the sizes of the clusters, `tails` from the fourth powers of their sums;
    `tails` is small where few clusters with rare or large outcomes determine the variance.
    """

    variance: float
    skew: float
    freedom: float
    tails: float = math.inf


class Clusters:
    """Sums of vectors (k,), their products summed over clusters, and each cluster's own sum.

    x[0] is 1, so the first sum is the count. A smooth function of the sums with gradient g, where g
    . total = 0, has the variance of g . S over the clusters' sums S (Liang and Zeger, 1986). The
    products of S are kept, so one pass suffices and g may be chosen afterwards.

    Parameters
    ----------
    width
        The length k of the vectors.
    clusters
        The most clusters; address space for them is reserved.
    """

    def __init__(self, width: int, clusters: int = 0) -> None:
        """Start without any vectors."""
        self.rows: NDArray[Any] = (
            reserve(clusters, width, np.float32) if clusters else np.zeros((0, width), np.float32)
        )
        self.total = np.zeros(width)
        self.square = np.zeros((width, width))  # upper triangle, as in window
        self.window = np.zeros((width, width))
        self.cube = np.zeros(width * (width + 1) * (width + 2) // 6)  # a <= b <= c, in that order
        self.tally = np.zeros(2)
        self._held = np.zeros((2, width))
        self._used = 0  # rows from here on were never written
        self._products = _product_indices(width)

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Return the arrays that `gather` writes into."""
        return (
            self.rows, self.total, self.square, self.window, self.cube, self.tally, self._held,
        )  # fmt: skip

    def at(self, cluster: NDArray[np.int32] | None, size: int) -> NDArray[np.int32]:
        """Return the clusters (size,) for `gather`; without clusters all are -1."""
        if cluster is None:
            return np.full(size, -1, np.int32)
        if len(cluster) != size:
            raise ValueError(f"columns have different lengths: {[len(cluster), size]}")
        most = int(np.max(cluster)) + 1 if size else 0
        if most > len(self.rows):
            raise ValueError(f"cluster {most - 1} is not below {len(self.rows)}")
        self._used = max(self._used, most)
        return np.ascontiguousarray(cluster, np.int32)

    @property
    def worth(self) -> float:
        """Return the effective number of clusters, n^2 / sum n_c^2; it does not depend on outcomes.

        A rule that looked at outcomes would give intervals just where the variance happens to look
        well known, which are those that are too narrow.
        """
        squares = float(self.square[0, 0])
        return float(self.total[0]) ** 2 / squares if squares else 0.0

    def within(self) -> Array:
        """Return the second moments (k, k) of the vectors."""
        return _full(self.window)

    def spread(self, g: Array) -> Spread:
        """Return the uncertainty of the estimate with gradient g (k,), where g . total = 0.

        The plain sum of squares is too small if clusters are few, because g was estimated from
        them, and it is uncertain itself. Both are corrected from the clusters' sizes n, assuming
        that a cluster's sum has the variance a n + b n^2, with a from the differences within and b
        from those between clusters (Satterthwaite, 1946; Bell and McCaffrey, 2002). With equal
        sizes this gives the factor G / (G - 1) and G - 1 degrees of freedom for G clusters.
        """
        count, fourth = self.total[0], self.tally[1]
        two, three = self.square[0, 0], self.cube[0]
        raw = float(g @ _full(self.square) @ g)
        plain = float(g @ self.within() @ g)
        between = max(0.0, (raw - plain) / (two - count)) if two > count else 0.0
        alone = max(0.0, (raw - between * two) / count)
        if alone + between <= 0:
            return Spread(0.0, 0.0, max(float(self.tally[0]) - 1, 0.0))
        first = alone * count + between * two
        second = alone**2 * two + 2 * alone * between * three + between**2 * fourth
        kept = 1 + two / count**2 - 2 * (alone * two + between * three) / (count * first)
        skew = float(self.cube @ (self._products[0] * np.prod(g[self._products[1]], axis=0)))
        freedom = first**2 / second - 1
        return Spread(raw / max(float(kept), 1e-9), skew, float(freedom), self._tails(g, raw))

    def _tails(self, g: Array, raw: float) -> float:
        """Return 2 V^2 / var(V) for the sum of squares V, with its variance from the fourth powers.

        For normally distributed sums this is the number of clusters. It is infinite, that is, not
        computed, for more than TAILS_MAX clusters and if some clusters' sums are not stored.
        """
        clusters = int(self.tally[0])
        if not 0 < clusters <= TAILS_MAX or not self._used:
            return math.inf
        sums = self.rows[: self._used]
        sums = sums[sums[:, 0] > 0].astype(np.float64)
        if len(sums) < clusters:
            return math.inf
        share = float(((sums @ g) ** 4).sum()) / raw**2 - 1.0 / clusters
        return 2.0 / share if share > 0 else math.inf

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays that `load` needs, without clusters that have no vectors."""
        used = np.flatnonzero(self.rows[: self._used, 0]).astype(np.int32)
        return {
            "cluster": used,
            "sums": np.array(self.rows[used]),
            "total": self.total.copy(),
            "square": self.square.copy(),
            "window": self.window.copy(),
            "cube": self.cube.copy(),
            "tally": self.tally.copy(),
        }

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore saved sums."""
        self.rows[: self._used] = 0
        self._used = int(state["cluster"][-1]) + 1 if len(state["cluster"]) else 0
        self.rows[state["cluster"]] = state["sums"]
        for name in ("total", "square", "window", "cube", "tally"):
            getattr(self, name)[:] = state[name]

    def begin(self, mean: Array, covariance: Array, count: float) -> None:
        """Start as after `count` vectors of mean (k,) and covariance (k, k), each its own cluster.

        This loads old states, which did not distinguish clusters; third central moments are taken
        as 0.
        """
        second = covariance + np.outer(mean, mean)
        self.total[:] = count * mean
        self.square[:] = self.window[:] = np.triu(count * second)
        _, (a, b, c) = self._products
        self.cube[:] = count * (
            mean[a] * covariance[b, c] + mean[b] * covariance[a, c] + mean[c] * covariance[a, b]
            + mean[a] * mean[b] * mean[c]
        )  # fmt: skip
        self.tally[:] = count, count


def bounds(value: float, spread: Spread, events: Sequence[float] = ()) -> list[float]:
    """Return the 95 % interval [low, high] of an estimate.

    The interval contains every effect that lies d off the value with d^2 <= t^2 (V + d K / V),
    where V is the variance, K the third moment and t the quantile of Student's t. The term d K / V
    is the first-order change of the variance with the value, which matters where clicks are rare:
    few clicks have a small variance, many a large one. For a proportion this is the score interval
    of Wilson (1927).

    Parameters
    ----------
    value
        The estimate.
    spread
        Its uncertainty.
    events
        By how much one more outcome of each arm would move the value. It supplies K / V while no
        outcome has come; half an outcome of each arm is added to V, as in Jeffreys' interval for a
        proportion (Brown, Cai and DasGupta, 2001).
    """
    t = quantile(min(spread.freedom, spread.tails))
    size = np.array(events)
    below = spread.variance + float((size**2).sum())
    bend = (spread.skew + float((size**3).sum())) / below if below else 0.0
    middle = t * t * bend / 2
    variance = spread.variance + float((size**2).sum()) / 2
    reach = math.sqrt(middle * middle + t * t * variance)
    return [float(value + middle - reach), float(value + middle + reach)]


def few(worth: float, of: str = "users", needed: int = USERS) -> str | None:
    """Return why outcomes worth so many clusters give no interval; None if they are enough."""
    if worth >= needed - 0.5:
        return None
    return f"the outcomes are worth {worth:.0f} {of} of equal size, {needed} needed"


def quantile(freedom: float) -> float:
    """Return the .975 quantile of Student's t, accurate to .003 from 4 degrees on (Hill, 1970)."""
    z, n = Z95, max(freedom, 1.0)
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def _full(upper: Array) -> Array:
    """Return the symmetric matrix of an upper triangle."""
    return upper + np.triu(upper, 1).T


def _product_indices(width: int) -> tuple[Array, NDArray[np.int64]]:
    """Return the multiplicity of each product a <= b <= c in a cube, and its indices (3, n)."""
    found = [
        (a, b, c) for a in range(width) for b in range(a, width) for c in range(b, width)
    ]  # fmt: skip
    times = [(1.0, 3.0, 6.0)[len(set(place)) - 1] for place in found]
    return np.array(times), np.array(found, np.int64).T
