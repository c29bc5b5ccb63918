"""Running sums of a vector whose rows come in clusters: a user's windows are not independent."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream.compiled import compiled
from stream.effects.moments import Z95, Array
from stream.memory import reserve

USERS = 40  # users' worth of windows, before any interval: below, users' differences are unknown
TAILS_MAX = 65_536  # clusters whose sums are looked at: 10 ms; of more, few do not decide


@compiled
def gather(x, at, rows, total, square, window, cube, tally, held):  # type: ignore[no-untyped-def]
    """The vector x (k,), x[0] = 1, is in the sums of cluster `at` after the call; -1: its own.

    square and cube are the second and third moments over clusters of the clusters' sums, window
    the second moment of the vectors. A cluster's sum moves from s to t, so square moves by
    t t' - s s': exact, whatever the order. tally: clusters, sum of their sizes to the fourth. held
    (2, k): room for s and t.
    """
    k = len(x)
    s, t = held[0], held[1]
    for a in range(k):
        s[a], t[a] = 0.0, x[a]
        if at >= 0:
            s[a] = rows[at, a]
            rows[at, a] = s[a] + x[a]
            t[a] = rows[at, a]  # as it is kept, in float32
        total[a] += x[a]
    tally[0] += s[0] == 0.0
    tally[1] += t[0] ** 4 - s[0] ** 4
    place = 0
    for a in range(k):
        for b in range(a, k):
            old, new = s[a] * s[b], t[a] * t[b]
            square[a, b] += new - old
            window[a, b] += x[a] * x[b]
            if new != 0.0 or old != 0.0:  # few users have both arms yet
                for c in range(b, k):
                    cube[place + c - b] += new * t[c] - old * s[c]
            place += k - b


class Spread(NamedTuple):
    """How far an estimate g . total may be off: variance, third moment, degrees of freedom.

    `tails` are the degrees of freedom that the clusters' sums leave the variance: few where few
    clusters decide it, by rare outcomes or large ones.
    """

    variance: float
    skew: float
    freedom: float
    tails: float = math.inf


class Clusters:
    """The sums of vectors (k,), of their products over clusters, and each cluster's own sum.

    x[0] is 1, so the first sum counts. A smooth function of the sums has the gradient g; with
    g . total = 0, its variance is that of the clusters' sums g . S (Liang and Zeger 1986). Exact
    in one pass: the products of S are kept over clusters, so g may be chosen afterwards.
    """

    def __init__(self, width: int, clusters: int = 0) -> None:
        """Nothing is known; address space for so many clusters is reserved."""
        self.rows: NDArray[Any] = (
            reserve(clusters, width, np.float32) if clusters else np.zeros((0, width), np.float32)
        )
        self.total = np.zeros(width)
        self.square = np.zeros((width, width))  # the upper triangles
        self.window = np.zeros((width, width))
        self.cube = np.zeros(width * (width + 1) * (width + 2) // 6)  # a <= b <= c, in that order
        self.tally = np.zeros(2)
        self._held = np.zeros((2, width))
        self._used = 0  # rows beyond were never touched
        self._places = _places(width)

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Return what `gather` writes into."""
        return (
            self.rows, self.total, self.square, self.window, self.cube, self.tally, self._held,
        )  # fmt: skip

    def at(self, cluster: NDArray[np.int32] | None, size: int) -> NDArray[np.int32]:
        """Return the clusters (size,) as `gather` takes them: -1 where a vector is its own."""
        if cluster is None:
            return np.full(size, -1, np.int32)
        if len(cluster) != size:
            raise ValueError(f"columns of different lengths: {[len(cluster), size]}")
        most = int(np.max(cluster)) + 1 if size else 0
        if most > len(self.rows):
            raise ValueError(f"cluster {most - 1} of {len(self.rows)}")
        self._used = max(self._used, most)
        return np.ascontiguousarray(cluster, np.int32)

    @property
    def worth(self) -> float:
        """Return how many clusters of equal size say as much; it does not look at outcomes.

        Who asked for an interval where the variance looks well known would be told those that
        are too narrow.
        """
        squares = float(self.square[0, 0])
        return float(self.total[0]) ** 2 / squares if squares else 0.0

    def within(self) -> Array:
        """Return the second moments (k, k) of the vectors."""
        return _full(self.window)

    def spread(self, g: Array) -> Spread:
        """Return the spread of the estimate with the gradient g (k,), g . total = 0.

        The plain sum of squares is too small where clusters are few, since g was found from them,
        and it is uncertain itself. Both follow from the clusters' sizes n, if the variance of a
        cluster's sum is a n + b n^2, a from what its vectors differ by, b from what clusters differ
        by (Satterthwaite 1946; Bell and McCaffrey 2002): equal sizes give G / (G - 1) and G - 1.
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
        skew = float(self.cube @ (self._places[0] * np.prod(g[self._places[1]], axis=0)))
        freedom = first**2 / second - 1
        return Spread(raw / max(float(kept), 1e-9), skew, float(freedom), self._tails(g, raw))

    def _tails(self, g: Array, raw: float) -> float:
        """Return 2 V^2 / var(V) of the sum of squares V, its variance from the fourth powers.

        Of normal sums that is their number. Not looked for among very many, nor where the sums of
        some are not kept.
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
        """Return copies of what is needed to load it again; clusters that have vectors alone."""
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
        """The sums are the saved ones after the call."""
        self.rows[: self._used] = 0
        self._used = int(state["cluster"][-1]) + 1 if len(state["cluster"]) else 0
        self.rows[state["cluster"]] = state["sums"]
        for name in ("total", "square", "window", "cube", "tally"):
            getattr(self, name)[:] = state[name]

    def begin(self, mean: Array, covariance: Array, count: float) -> None:
        """As after `count` vectors of this mean (k,) and covariance (k, k), each a cluster.

        For sums of before clusters were told apart. Their third central moments are taken as 0.
        """
        second = covariance + np.outer(mean, mean)
        self.total[:] = count * mean
        self.square[:] = self.window[:] = np.triu(count * second)
        _, (a, b, c) = self._places
        self.cube[:] = count * (
            mean[a] * covariance[b, c] + mean[b] * covariance[a, c] + mean[c] * covariance[a, b]
            + mean[a] * mean[b] * mean[c]
        )  # fmt: skip
        self.tally[:] = count, count


def bounds(value: float, spread: Spread, events: Sequence[float] = ()) -> list[float]:
    """Return the 95 % interval [low, high] of an estimate.

    It holds every effect d off the value with d^2 <= t^2 (V + d K / V), V the variance and K the
    third moment: how the variance changes with the value, to first order, as it does where clicks
    are rare (few clicks have a small variance, many a large one). Of a share that is the score
    interval of Wilson (1927). `events`, by how much one more outcome of either arm would move the
    value, tell K / V where no outcome has come yet; half an outcome each is in V, as in Jeffreys'
    interval of a share (Brown, Cai and DasGupta 2001).
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
    """Tell why there is no interval of what so many users' worth of outcomes say; None: enough."""
    if worth >= needed - 0.5:
        return None
    return f"outcomes of {worth:.0f} {of}' worth observed, {needed} needed"


def quantile(freedom: float) -> float:
    """Return the .975 quantile of Student's t, to .003 from 4 degrees on (Hill 1970)."""
    z, n = Z95, max(freedom, 1.0)
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def _full(upper: Array) -> Array:
    return upper + np.triu(upper, 1).T


def _places(width: int) -> tuple[Array, NDArray[np.int64]]:
    """Return how often each product a <= b <= c stands in a cube, and the (3, n) places of it."""
    found = [
        (a, b, c) for a in range(width) for b in range(a, width) for c in range(b, width)
    ]  # fmt: skip
    times = [(1.0, 3.0, 6.0)[len(set(place)) - 1] for place in found]
    return np.array(times), np.array(found, np.int64).T
