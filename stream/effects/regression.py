"""The coefficients of the model's paths, with a sandwich covariance, one event after the other."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream.compiled import compiled
from stream.effects.moments import Array, columns

WIDTH_MAX = 16
TINY = 1e-9  # of a row's norm: what is left of a feature that others explain is rounding


@compiled
def _add(z, y, root, aim, meat, sums, decay):  # type: ignore[no-untyped-def]
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
        sums[0] += 1
        sums[1] = decay * sums[1] + 1
        sums[2] = decay * decay * sums[2] + 1
        sums[3] = decay * sums[3] + square


class PathRegression:
    """Recursive least squares of an outcome on at most 16 path features, O(p^2) an event.

    Square-root information form (Gentleman 1974): the triangular root of the normal equations is
    updated, never their inverse, so that rounding does not add up however long the stream is.
    Covariance: sandwich with HC1's n / (n - p) (White 1980; MacKinnon and White 1985), its meat
    from recursive residuals. Features should be of like scale; the first is usually constant 1.
    The tiny ridge acts when figures are read: it makes what no event told about wide, not wrong.
    """

    def __init__(self, names: Sequence[str], decay: float = 1.0, ridge: float = 1e-6) -> None:
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

    def update(self, z: ArrayLike, y: ArrayLike) -> None:
        """The events are in the fit after the call; z (n, p), y (n,); not finite: left out."""
        rows, aims = columns(z, y)
        if rows.ndim != 2 or rows.shape[1] != len(self.names):
            raise ValueError(f"features (n, {len(self.names)}), not {rows.shape}")
        _add(rows, aims, self._root, self._aim, self._meat, self._sums, self.decay)

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
        meat = (axes @ self._meat @ axes.T) * np.outer(told, told)
        # the ridge is p events with outcome 0 that never were: their noise widens what they decide
        noise = self.ridge * (errors / weight) * np.eye(p)
        half = axes.T / curvature  # (p, p)
        return beta, half @ ((meat + noise) * (n / (n - p))) @ half.T

    @property
    def n(self) -> int:
        """How many events are in the fit."""
        return int(self._sums[0])

    @property
    def told(self) -> NDArray[np.bool_]:
        """Return which features were ever other than 0 (p,)."""
        return np.asarray((self._root != 0).any(0))

    def figures(self) -> dict[str, Any]:
        """Return names, beta, covariance (None: too few events), n, left_out, ready for JSON."""
        beta, covariance = self.fit()
        return {
            "names": list(self.names),
            "beta": beta.tolist(),
            "covariance": None if covariance is None else covariance.tolist(),
            "n": self.n,
            "left_out": int(self._sums[4]),
        }

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of what is needed to load it again."""
        return {name: part.copy() for name, part in self._parts().items()}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The regression is the saved one after the call."""
        for name, part in self._parts().items():
            part[:] = state[name]

    def _parts(self) -> dict[str, Array]:
        return {"root": self._root, "aim": self._aim, "meat": self._meat, "sums": self._sums}
