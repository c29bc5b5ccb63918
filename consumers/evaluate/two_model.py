"""The two-model baseline of uplift: one regression an arm, their difference is the effect."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
RIDGE = 1.0  # of standardised columns; the intercept is free


def predict(x: Array, outcome: Array, treatment: Array, new: Array) -> tuple[Array, Array]:
    """Return the outcome if treated and if not, of new rows, learned from x (n, p) of each arm.

    Logistic where every outcome is 0 or 1, else linear; columns as `Table.design` makes them.
    """
    binary = bool(np.isin(outcome, (0, 1)).all())
    fit = logistic if binary else linear
    arms = []
    for arm in (1, 0):
        score = new @ fit(x[treatment == arm], outcome[treatment == arm])
        arms.append(1 / (1 + np.exp(-score)) if binary else score)
    return arms[0], arms[1]


def linear(x: Array, y: Array, ridge: float = RIDGE) -> NDArray[np.float64]:
    """Return the coefficients of ridge regression, the first column unpenalised."""
    penalty = ridge * np.eye(x.shape[1])
    penalty[0, 0] = 0
    return np.asarray(np.linalg.lstsq(x.T @ x + penalty, x.T @ y, rcond=None)[0])


def logistic(x: Array, y: Array, ridge: float = RIDGE, steps: int = 50) -> NDArray[np.float64]:
    """Return the coefficients of penalised logistic regression, by Newton's method."""
    penalty = ridge * np.eye(x.shape[1])
    penalty[0, 0] = 1e-6  # an arm without a responder has no finite intercept
    beta = np.zeros(x.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-(x @ beta)))
        gradient = x.T @ (y - p) - penalty @ beta
        hessian = (x * (p * (1 - p))[:, None]).T @ x + penalty
        move = np.linalg.solve(hessian, gradient)
        move *= min(1.0, 4 / max(np.abs(move).max(), 1e-12))  # far steps of Newton overshoot
        beta += move
        if np.abs(move).max() < 1e-8:
            break
    return beta
