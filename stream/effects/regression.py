"""Regression of outcomes on the terms of the model's paths, with a sandwich covariance, online."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.compiled import compiled
from stream.effects.clusters import few, quantile
from stream.effects.moments import Z95, Array, columns
from stream.memory import reserve

WIDTH_MAX = 16
ITEMS = 8  # effective items needed for an interval
TINY = 1e-9  # relative to a row's norm: below it a feature explained by others is rounding


@compiled
def _together(at, z, left, rows, meat, squares):  # type: ignore[no-untyped-def]
    """Add the score left * z (p,) to cluster `at` and its square to `meat`; -1: its own cluster.

    A row of `rows` holds the number of scores and their sum; `squares` (1,) is the sum over
    clusters of that number squared.
    """
    p = len(z)
    old = np.zeros(p + 1)
    new = np.empty(p + 1)
    for a in range(p + 1):
        new[a] = left * z[a - 1] if a else 1.0
        if at >= 0:
            old[a] = rows[at, a]
            rows[at, a] = old[a] + new[a]
            new[a] = rows[at, a]  # as rounded to float32
    squares[0] += new[0] * new[0] - old[0] * old[0]
    for a in range(p):
        for b in range(p):
            meat[a, b] += new[1 + a] * new[1 + b] - old[1 + a] * old[1 + b]


@compiled
def _add(z, y, user, item, root, aim, meat, sums, decay, users, items):  # type: ignore[no-untyped-def]
    """Rotate each row [z y] into [root aim] by Givens rotations; root^T root = sum of z z^T.

    What remains of y is e / sqrt(1 + z^T (Z^T Z)^-1 z), where e is the error of the coefficients
    before the event: the recursive residual of Brown, Durbin and Evans (1975), whose variance is
    that of the noise from the first event on. `sums` holds the events, their weight, the sum of
    squared weights, the squared residuals, and the rows left out.
    """
    p = z.shape[1]
    row = np.empty(p)
    fade = np.sqrt(decay)
    for n in range(len(y)):
        norm = 0.0
        for a in range(p):
            row[a] = z[n, a]
            norm += row[a] * row[a]
        left = y[n]
        if not np.isfinite(norm + left):
            sums[4] += 1
            continue
        if decay < 1.0:
            for a in range(p):
                aim[a] *= fade
                for b in range(p):
                    root[a, b] *= fade
                    meat[a, b] *= decay * decay
        least = TINY * np.sqrt(norm)
        for a in range(p):
            if abs(row[a]) <= least:
                continue
            length = np.sqrt(root[a, a] * root[a, a] + row[a] * row[a])
            c, s = root[a, a] / length, row[a] / length
            for b in range(a, p):
                old = root[a, b]
                root[a, b] = c * old + s * row[b]
                row[b] = c * row[b] - s * old
            old = aim[a]
            aim[a] = c * old + s * left
            left = c * left - s * old
        square = left * left
        for a in range(p):
            for b in range(p):
                meat[a, b] += square * z[n, a] * z[n, b]
        _together(user[n], z[n], left, *users)
        _together(item[n], z[n], left, *items)
        sums[0] += 1
        sums[1] = decay * sums[1] + 1
        sums[2] = decay * decay * sums[2] + 1
        sums[3] = decay * sums[3] + square


class Scores:
    """Sums of the scores of each user's, or each item's, events, which are not independent."""

    def __init__(self, width: int, count: int) -> None:
        """Start without any events; address space for `count` rows is reserved."""
        self.rows: NDArray[Any] = (
            reserve(count, width + 1, np.float32) if count else np.zeros((0, width + 1), np.float32)
        )
        self.meat = np.zeros((width, width))
        self.squares = np.zeros(1)
        self._used = 0  # rows from here on were never written

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Return the arrays that the kernel writes into."""
        return self.rows, self.meat, self.squares

    def at(self, row: NDArray[np.int32] | None, size: int) -> NDArray[np.int32]:
        """Return the rows (size,) for the kernel; without rows all are -1, each event a cluster."""
        if row is None:
            return np.full(size, -1, np.int32)
        if len(row) != size or (size and int(np.max(row)) >= len(self.rows)):
            raise ValueError(f"{size} rows below {len(self.rows)} are needed, not {row}")
        self._used = max(self._used, int(np.max(row)) + 1 if size else 0)
        return np.ascontiguousarray(row, np.int32)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays that `load` needs, with only the rows that have events."""
        row = np.flatnonzero(self.rows[: self._used, 0]).astype(np.int32)
        sums = np.array(self.rows[row])
        return {
            "row": row, "sums": sums, "meat": self.meat.copy(), "squares": self.squares.copy(),
        }  # fmt: skip

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore saved sums."""
        self.rows[: self._used] = 0
        row = state["row"]
        self._used = int(row[-1]) + 1 if len(row) else 0
        self.rows[row] = state["sums"]
        self.meat[:], self.squares[:] = state["meat"], state["squares"]


class PathRegression:
    """Recursive least squares of an outcome on at most 16 path features, O(p^2) per event.

    The triangular root of the normal equations is updated, never their inverse (square-root
    information form; Gentleman, 1974), so rounding errors do not accumulate on long streams.

    The covariance is a sandwich with HC1's factor n / (n - p) (White, 1980; MacKinnon and White,
    1985). Its meat is made of recursive residuals, clustered by user and by item (Cameron, Gelbach
    and Miller, 2011: by user plus by item minus by event). It is widened so that the normal
    quantile gives the interval of Student's t with the smaller number of clusters.

    Features should have a similar scale; the first is usually the constant 1. The small ridge is
    applied when figures are read: it makes coefficients without data uncertain rather than wrong.

    Parameters
    ----------
    names
        The names of the p features.
    decay
        The factor by which older events lose weight at each event; 1 keeps all.
    ridge
        The ridge penalty.
    users, items
        The most rows of users and items; address space for them is reserved.
    """

    def __init__(
        self,
        names: Sequence[str],
        decay: float = 1.0,
        ridge: float = 1e-6,
        users: int = 0,
        items: int = 0,
    ) -> None:
        """Start without any events."""
        if not 1 <= len(names) <= WIDTH_MAX:
            raise ValueError(f"there must be 1 to {WIDTH_MAX} features, not {len(names)}")
        if not 0 < decay <= 1 or ridge <= 0:
            raise ValueError(f"decay ({decay}) must be in (0, 1] and ridge ({ridge}) above 0")
        self.names = tuple(names)
        self.decay = decay
        self.ridge = ridge
        p = len(self.names)
        self._root, self._aim, self._meat = np.zeros((p, p)), np.zeros(p), np.zeros((p, p))
        self._sums = np.zeros(5)
        self._users, self._items = Scores(p, users), Scores(p, items)

    def update(
        self,
        z: ArrayLike,
        y: ArrayLike,
        user: NDArray[np.int32] | None = None,
        item: NDArray[np.int32] | None = None,
    ) -> None:
        """Add events: features z (n, p) and outcomes y (n,); rows that are not finite are left out.

        `user` and `item` (n,) hold rows. A row of -1, or none at all, makes each event a user or an
        item of its own.
        """
        rows, aims = columns(z, y)
        if rows.ndim != 2 or rows.shape[1] != len(self.names):
            raise ValueError(f"features must be (n, {len(self.names)}), not {rows.shape}")
        _add(
            rows, aims, self._users.at(user, len(aims)), self._items.at(item, len(aims)),
            self._root, self._aim, self._meat, self._sums, self.decay,
            self._users.arrays, self._items.arrays,
        )  # fmt: skip

    def fit(self) -> tuple[Array, Array | None]:
        """Return the coefficients (p,) and their covariance (p, p), None with at most p events."""
        p = len(self.names)
        turn, size, axes = np.linalg.svd(self._root)
        curvature = size**2 + self.ridge  # (p,) second derivative of the squared error by axis
        beta = axes.T @ (size / curvature * (turn.T @ self._aim))
        _, weight, squares, errors, _ = self._sums.tolist()
        n = weight * weight / squares if squares else 0.0  # effective
        if n <= p:
            return beta, None
        told = size > TINY * size[0]  # along the other axes the meat is only rounding
        meat = (axes @ self._scores() @ axes.T) * np.outer(told, told)
        # the ridge acts like p pseudo-events with outcome 0; add the noise that they would have
        noise = self.ridge * (errors / weight) * np.eye(p)
        half = axes.T / curvature  # (p, p)
        return beta, half @ ((meat + noise) * (n / (n - p))) @ half.T

    def _scores(self) -> Array:
        """Return the meat (p, p), clustered by user and item; with decay, by event only."""
        if self.decay < 1.0:
            return self._meat
        users, items = self.worth(self._users), self.worth(self._items)
        both = -self._meat
        for part, worth in ((self._users, users), (self._items, items)):
            both = both + part.meat * (worth / max(worth - 1, 1e-9))
        # the difference of clusterings may have negative eigenvalues, which are noise: cut at 0
        size, axes = np.linalg.eigh((both + both.T) / 2)
        kept = (axes * np.maximum(size, 0.0)) @ axes.T
        return np.asarray(kept * (quantile(min(users, items) - 1) / Z95) ** 2)

    def worth(self, part: Scores) -> float:
        """Return the effective number of users, or of items: n^2 / sum n_u^2."""
        return float(self._sums[0] ** 2 / part.squares[0]) if part.squares[0] else 0.0

    @property
    def reason(self) -> str | None:
        """Return why intervals would not be valid; None if they are."""
        users, items = self.worth(self._users), self.worth(self._items)
        return few(users) or few(items, "items", ITEMS)

    @property
    def n(self) -> int:
        """Return how many events are in the fit."""
        return int(self._sums[0])

    @property
    def told(self) -> NDArray[np.bool_]:
        """Return which features ever differed from 0 (p,)."""
        return np.asarray((self._root != 0).any(0))

    def figures(self) -> dict[str, Any]:
        """Return names, beta, covariance (None: too few events), n, left_out and reason, for JSON.

        `reason` says why intervals from the covariance would not be valid, and is None if they are.
        """
        beta, covariance = self.fit()
        return {
            "names": list(self.names),
            "beta": beta.tolist(),
            "covariance": None if covariance is None else covariance.tolist(),
            "n": self.n,
            "left_out": int(self._sums[4]),
            "reason": self.reason,
        }

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays that `load` needs."""
        state = {name: part.copy() for name, part in self._parts().items()}
        for prefix, part in (("user", self._users), ("item", self._items)):
            state |= {f"{prefix}.{name}": array for name, array in part.state().items()}
        return state

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore a saved regression.

        In an old state, which did not distinguish users and items, each event counts as one of its
        own.
        """
        for name, part in self._parts().items():
            part[:] = state[name]
        for prefix, scores in (("user.", self._users), ("item.", self._items)):
            mine = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            width = len(self.names)
            scores.load(
                mine
                or {
                    "row": np.zeros(0, np.int32),
                    "sums": np.zeros((0, width + 1), np.float32),
                    "meat": state["meat"],
                    "squares": state["sums"][:1],
                }
            )

    def _parts(self) -> dict[str, Array]:
        return {"root": self._root, "aim": self._aim, "meat": self._meat, "sums": self._sums}
