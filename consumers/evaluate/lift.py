"""Qini and AUUC: how well a predicted effect ranks people, normalised as in scikit-uplift 0.5.

Both are the area between a curve and its diagonal, divided by that of the perfect ranking.

References
----------
Radcliffe (2007); Devriendt, Guns and Verbeke (2020).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Curve = Callable[[Array, Array, Array, Array], Array]


def qini(outcome: Array, effect: Array, treatment: Array) -> float:
    """Return the Qini coefficient (scikit-uplift's `qini_auc_score` with negative effects).

    The perfect ranking has treated responders first and responders of the control group last.

    Parameters
    ----------
    outcome, effect, treatment : array, shape (N,)
        Observed outcome, predicted effect, and treatment (0 or 1).

    Returns
    -------
    float
        NaN if one arm is empty.
    """
    perfect = outcome * treatment - outcome * (1 - treatment)
    return _normalised(_qini_curve, outcome, effect, perfect, treatment)


def auuc(outcome: Array, effect: Array, treatment: Array) -> float:
    """Return the normalised area under the uplift curve (`uplift_auc_score`); outcome 0 or 1."""
    responders = np.sum((outcome == 1) & (treatment == 0))
    spared = np.sum((outcome == 0) & (treatment == 1))
    perfect = 2 * (outcome == treatment) + (outcome if responders > spared else treatment)
    return _normalised(_uplift_curve, outcome, effect, perfect, treatment)


def _normalised(
    curve: Curve, outcome: Array, effect: Array, perfect: Array, treatment: Array
) -> float:
    """Return the area above the diagonal, relative to that of the perfect ranking."""
    x, y = _points(curve, outcome, effect, treatment)
    ideal_x, ideal_y = _points(curve, outcome, perfect, treatment)
    line = ideal_x[-1] * ideal_y[-1] / 2
    best = np.trapezoid(ideal_y, ideal_x) - line
    return float((np.trapezoid(y, x) - line) / best) if best else float("nan")


def _points(
    curve: Curve, outcome: Array, effect: Array, treatment: Array
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the curve from (0, 0), with one point per distinct effect, in descending order."""
    order = np.argsort(effect, kind="stable")[::-1]
    y, t, e = (np.asarray(c, float)[order] for c in (outcome, treatment, effect))
    last = np.append(np.flatnonzero(np.diff(e)), len(e) - 1)
    treated, shown = np.cumsum(t)[last], np.cumsum(t * y)[last]
    control, withheld = np.cumsum(1 - t)[last], np.cumsum((1 - t) * y)[last]
    value = curve(treated, shown, control, withheld)
    return np.append(0.0, last + 1.0), np.append(0.0, value)


def _qini_curve(treated: Array, shown: Array, control: Array, withheld: Array) -> Array:
    return np.asarray(shown - withheld * _ratio(treated, control))


def _uplift_curve(treated: Array, shown: Array, control: Array, withheld: Array) -> Array:
    return np.asarray((_ratio(shown, treated) - _ratio(withheld, control)) * (treated + control))


def _ratio(above: Array, below: Array) -> Array:
    """Return the quotient, 0 where the divisor is 0."""
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)
