"""Propensities of being rated, estimated from which pairs were rated; no random data is used."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def logistic(
    rated: Array, user_hot: Array, item_hot: Array, ridge: float = 1.0, steps: int = 25
) -> NDArray[np.float64]:
    """Return each pair's propensity from a logistic regression on attributes.

    The columns are all products of a user and an item attribute, and each attribute alone: logit =
    u' B v, with a 1 in front of u and v. Fitted by Newton's method on the ridge-penalised log
    likelihood.

    Parameters
    ----------
    rated : array, shape (users, items)
        1 for rated pairs, else 0.
    user_hot, item_hot : array, shape (users, a) and (items, b)
        One-hot attributes.
    ridge : float
        L2 penalty.
    steps : int
        Most Newton steps.

    References
    ----------
    Schnabel et al. (2016), section 6.1, for the covariates.
    """
    u = np.concatenate([np.ones((len(user_hot), 1)), user_hot], 1)  # (U, a)
    v = np.concatenate([np.ones((len(item_hot), 1)), item_hot], 1)  # (I, b)
    size = u.shape[1] * v.shape[1]
    y = np.asarray(rated, float)  # (U, I)
    b = np.zeros((u.shape[1], v.shape[1]))
    b[0, 0] = np.log(y.mean() / (1 - y.mean()))
    p = np.full_like(y, y.mean())
    for _ in range(steps):
        gradient = u.T @ (y - p) @ v - ridge * b
        inner = np.einsum("ui,ic,id->ucd", p * (1 - p), v, v, optimize=True)  # (U, b, b)
        hessian = np.einsum("ua,ue,ucd->aced", u, u, inner, optimize=True).reshape(size, size)
        move = np.linalg.solve(hessian + ridge * np.eye(size), gradient.ravel())
        b += move.reshape(b.shape)
        p = 1 / (1 + np.exp(-(u @ b @ v.T)))
        if np.abs(move).max() < 1e-8:
            break
    out: NDArray[np.float64] = p
    return out
