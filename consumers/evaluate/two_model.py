"""The two-model baseline for uplift: one regression per arm; their difference is the effect."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
RIDGE = 1.0  # penalty on standardised columns; the intercept is not penalised


def predict(x: Array, outcome: Array, treatment: Array, new: Array) -> tuple[Array, Array]:
    """Return the predicted outcomes of new rows if treated and if not.

    The regression is logistic if every outcome is 0 or 1, else linear.

    Parameters
    ----------
    x, new : array, shape (n, p) and (m, p)
        Design matrices as `Table.design` returns them.
    outcome, treatment : array, shape (n,)
        Outcome, and treatment (0 or 1).
    """
    binary = bool(np.isin(outcome, (0, 1)).all())
    fit = logistic if binary else linear
    arms = []
    for arm in (1, 0):
        score = new @ fit(x[treatment == arm], outcome[treatment == arm])
        arms.append(1 / (1 + np.exp(-score)) if binary else score)
    return arms[0], arms[1]


def linear(x: Array, y: Array, ridge: float = RIDGE) -> NDArray[np.float64]:
    """Return the coefficients of ridge regression, with the first column unpenalised."""
    penalty = ridge * np.eye(x.shape[1])
    penalty[0, 0] = 0
    return np.asarray(np.linalg.lstsq(x.T @ x + penalty, x.T @ y, rcond=None)[0])


def logistic(x: Array, y: Array, ridge: float = RIDGE, steps: int = 50) -> NDArray[np.float64]:
    """Return the coefficients of ridge-penalised logistic regression, by Newton's method."""
    penalty = ridge * np.eye(x.shape[1])
    penalty[0, 0] = 1e-6  # without responders in an arm, the intercept would be infinite
    beta = np.zeros(x.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-(x @ beta)))
        gradient = x.T @ (y - p) - penalty @ beta
        hessian = (x * (p * (1 - p))[:, None]).T @ x + penalty
        move = np.linalg.solve(hessian, gradient)
        move *= min(1.0, 4 / max(np.abs(move).max(), 1e-12))  # long Newton steps overshoot
        beta += move
        if np.abs(move).max() < 1e-8:
            break
    return beta
