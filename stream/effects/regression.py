"""The coefficients of the model's paths, with a sandwich covariance, one event after the other."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.compiled import compiled
from stream.effects.clusters import few, quantile
from stream.effects.moments import Z95, Array, columns
from stream.memory import reserve

WIDTH_MAX = 16
ITEMS = 8  # items' worth of events, before any interval
TINY = 1e-9  # of a row's norm: what is left of a feature that others explain is rounding


@compiled
def _together(at, z, left, rows, meat, squares):  # type: ignore[no-untyped-def]
    """The score left z (p,) is in that of cluster `at`, and its square in meat; -1: its own.

    A row of rows is how many scores, then their sum; squares (1,): of how many, over clusters.
    """
    p = len(z)
    old = np.zeros(p + 1)
    new = np.empty(p + 1)
    for a in range(p + 1):
        new[a] = left * z[a - 1] if a else 1.0
        if at >= 0:
            old[a] = rows[at, a]
            rows[at, a] = old[a] + new[a]
            new[a] = rows[at, a]  # as it is kept, in float32
    squares[0] += new[0] * new[0] - old[0] * old[0]
    for a in range(p):
        for b in range(p):
            meat[a, b] += new[1 + a] * new[1 + b] - old[1 + a] * old[1 + b]


@compiled
def _add(z, y, user, item, root, aim, meat, sums, decay, users, items):  # type: ignore[no-untyped-def]
    """Rotate each row [z y] into [root aim] by Givens rotations; root^T root = sum of z z^T.

    What is left of y is e / sqrt(1 + z^T (Z^T Z)^-1 z), e the error of the coefficients before
    the event: the recursive residual of Brown, Durbin and Evans (1975), whose variance is that of
    the noise from the first event on. sums: events, weight, weight of squares, squared residuals,
    rows left out.
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
    """The scores of the events of one user, or of one item, added up: they are not independent."""

    def __init__(self, width: int, count: int) -> None:
        """Nothing is known; address space for so many rows is reserved."""
        self.rows: NDArray[Any] = (
            reserve(count, width + 1, np.float32) if count else np.zeros((0, width + 1), np.float32)
        )
        self.meat = np.zeros((width, width))
        self.squares = np.zeros(1)
        self._used = 0  # rows beyond were never touched

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Return what the kernel writes into."""
        return self.rows, self.meat, self.squares

    def at(self, row: NDArray[np.int32] | None, size: int) -> NDArray[np.int32]:
        """Return the rows (size,) as the kernel takes them: -1 where an event is its own."""
        if row is None:
            return np.full(size, -1, np.int32)
        if len(row) != size or (size and int(np.max(row)) >= len(self.rows)):
            raise ValueError(f"rows of {size} events, below {len(self.rows)}, not {row}")
        self._used = max(self._used, int(np.max(row)) + 1 if size else 0)
        return np.ascontiguousarray(row, np.int32)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of what is needed to load it again; rows that have events alone."""
        row = np.flatnonzero(self.rows[: self._used, 0]).astype(np.int32)
        sums = np.array(self.rows[row])
        return {
            "row": row, "sums": sums, "meat": self.meat.copy(), "squares": self.squares.copy(),
        }  # fmt: skip

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The sums are the saved ones after the call."""
        self.rows[: self._used] = 0
        row = state["row"]
        self._used = int(row[-1]) + 1 if len(row) else 0
        self.rows[row] = state["sums"]
        self.meat[:], self.squares[:] = state["meat"], state["squares"]


class PathRegression:
    """Recursive least squares of an outcome on at most 16 path features, O(p^2) an event.

    Square-root information form (Gentleman 1974): the triangular root of the normal equations is
    updated, never their inverse, so that rounding does not add up however long the stream is.
    Covariance: sandwich with HC1's n / (n - p) (White 1980; MacKinnon and White 1985), its meat
    from recursive residuals, added up by user and by item (Cameron, Gelbach and Miller 2011: by
    user plus by item minus by event), and as wide as Student's t of the fewer of them asks for
    where the normal's quantile is used. Features should be of like scale; the first is usually
    constant 1. The tiny ridge acts when figures are read: it makes what no event told about wide,
    not wrong.
    """

    def __init__(
        self,
        names: Sequence[str],
        decay: float = 1.0,
        ridge: float = 1e-6,
        users: int = 0,
        items: int = 0,
    ) -> None:
        """Nothing is known; so many rows of users and items may come."""
        if not 1 <= len(names) <= WIDTH_MAX:
            raise ValueError(f"1 to {WIDTH_MAX} features, not {len(names)}")
        if not 0 < decay <= 1 or ridge <= 0:
            raise ValueError("decay must be in (0, 1], ridge above 0")
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
        """The events are in the fit after the call; z (n, p), y (n,); not finite: left out.

        user, item (n,): rows; -1, or none at all: events of users, of items, of their own.
        """
        rows, aims = columns(z, y)
        if rows.ndim != 2 or rows.shape[1] != len(self.names):
            raise ValueError(f"features (n, {len(self.names)}), not {rows.shape}")
        _add(
            rows, aims, self._users.at(user, len(aims)), self._items.at(item, len(aims)),
            self._root, self._aim, self._meat, self._sums, self.decay,
            self._users.arrays, self._items.arrays,
        )  # fmt: skip

    def fit(self) -> tuple[Array, Array | None]:
        """Return beta (p,) and its covariance (p, p), None up to p events."""
        p = len(self.names)
        turn, size, axes = np.linalg.svd(self._root)
        curvature = size**2 + self.ridge  # (p,) of the squared error, along each axis
        beta = axes.T @ (size / curvature * (turn.T @ self._aim))
        _, weight, squares, errors, _ = self._sums.tolist()
        n = weight * weight / squares if squares else 0.0  # effective
        if n <= p:
            return beta, None
        told = size > TINY * size[0]  # along the others the meat is rounding
        meat = (axes @ self._scores() @ axes.T) * np.outer(told, told)
        # the ridge is p events with outcome 0 that never were: their noise widens what they decide
        noise = self.ridge * (errors / weight) * np.eye(p)
        half = axes.T / curvature  # (p, p)
        return beta, half @ ((meat + noise) * (n / (n - p))) @ half.T

    def _scores(self) -> Array:
        """Return the meat (p, p) by user and item; with decay by event alone."""
        if self.decay < 1.0:
            return self._meat
        users, items = self.worth(self._users), self.worth(self._items)
        both = -self._meat
        for part, worth in ((self._users, users), (self._items, items)):
            both = both + part.meat * (worth / max(worth - 1, 1e-9))
        # what is not positive is noise: no direction is surer than with independent events
        size, axes = np.linalg.eigh((both + both.T) / 2)
        kept = (axes * np.maximum(size, 0.0)) @ axes.T
        return np.asarray(kept * (quantile(min(users, items) - 1) / Z95) ** 2)

    def worth(self, part: Scores) -> float:
        """Return how many equal users, or items, the events are worth: n^2 / sum n_u^2."""
        return float(self._sums[0] ** 2 / part.squares[0]) if part.squares[0] else 0.0

    @property
    def reason(self) -> str | None:
        """Tell why its intervals would not hold; None where they do."""
        users, items = self.worth(self._users), self.worth(self._items)
        return few(users) or few(items, "items", ITEMS)

    @property
    def n(self) -> int:
        """How many events are in the fit."""
        return int(self._sums[0])

    @property
    def told(self) -> NDArray[np.bool_]:
        """Return which features were ever other than 0 (p,)."""
        return np.asarray((self._root != 0).any(0))

    def figures(self) -> dict[str, Any]:
        """Return names, beta, covariance (None: too few events), n, left_out, reason, for JSON.

        `reason`: why intervals from the covariance would not hold; None where they do.
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
        """Return copies of what is needed to load it again."""
        state = {name: part.copy() for name, part in self._parts().items()}
        for prefix, part in (("user", self._users), ("item", self._items)):
            state |= {f"{prefix}.{name}": array for name, array in part.state().items()}
        return state

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The regression is the saved one after the call.

        In a state of before users and items were told apart each event counts as one of its own.
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
