"""How far an answer may be off: 95 % intervals, model-based, in closed form.

Four sources of error, taken as independent, by the delta method (Casella and Berger, Statistical
Inference, 2002, section 5.5.4) on the link scale:

  level   what is not yet known of user and item, and what the learner's steps leave (noise.py)
  trait   the same of what lasts in who is shown what, where the outcome depends on it
  paths   z' C z, C the sandwich covariance of the linear regression of the outcome on its paths
          (White, Econometrica 1980, "A heteroskedasticity-consistent covariance matrix estimator",
          theorem 1), z the pair's path terms, on the outcome's scale. Where it is published and
          its names are known here.
  change  the coefficients of attribute values that come or go, and the sandwich of slopes that
          were found within items (see `attributes.shift`).

They ignore the error of theta, the weights' spread and the bias of shrinkage, so they are called
model-based, and their coverage is measured apart.
"""

import numpy as np
from numpy.typing import NDArray

from stream.inference.model import Floats
from stream.inference.noise import level, match, trait
from stream.inference.outcome import Arm, World
from stream.inference.rows import Pairs

Z = 1.959964  # the normal's 97.5 % point
PATHS = ("intercept", "user", "item", "match", "popularity", "confounder")  # names known here

Bounds = tuple[Floats, Floats]


def around(value: Floats, variance: Floats) -> Bounds:
    """Return the 95 % interval of a normal with this mean and variance (n,)."""
    reach = Z * np.sqrt(variance)
    return value - reach, value + reach


def expected(pairs: Pairs, arm: Arm, world: World) -> Bounds | None:
    """Return the interval of the expected outcome of an arm; None while no spread is published.

    Made on the link scale, so that it stays within the outcome's.
    """
    variance = _doubt(pairs, arm, world)
    if variance is None:
        return None
    low, high = around(arm.eta, variance)
    return arm.theta * pairs.outcome.inverse(low), arm.theta * pairs.outcome.inverse(high)


def predictive(pairs: Pairs, arm: Arm, world: World) -> Bounds | None:
    """Return where one rating of each pair lies, around the arm's mean; None without residuals.

    What is left to chance, and what is not known of the pair: one that is seldom rated is further
    off than those that the residuals are of.
    """
    if pairs.outcome.residual_sd is None:
        return None
    variance = np.full(len(pairs), pairs.outcome.residual_sd**2)
    doubt = _doubt(pairs, arm, world) if pairs.model.causal else None
    low, high = around(arm.mean, variance if doubt is None else variance + doubt)
    return np.maximum(low, pairs.outcome.low), np.minimum(high, pairs.outcome.high)


def _doubt(pairs: Pairs, arm: Arm, world: World) -> Floats | None:
    """Return the variance (n,) of the expected outcome on the link scale."""
    variance: Floats | None = level(pairs, arm)
    if variance is None:
        return None
    variance = variance + _shifted(pairs, arm, world)
    slope = np.maximum(arm.slope / arm.theta, 1e-6)
    alone = (arm, np.ones(len(pairs)))
    variance = variance + match(pairs, alone) + trait(pairs, alone)
    return np.asarray(variance + _paths(pairs, design(pairs, arm)) / slope**2)


def showing(pairs: Pairs, treated: Arm, control: Arm, world: World) -> Floats | None:
    """Return the variance of the effect of showing (n,); the arms' levels are independent."""
    total = _paths(pairs, design(pairs, treated)) * treated.theta**2
    for arm in (treated, control):
        variance: Floats | None = level(pairs, arm)
        if variance is None:
            return None
        total = total + arm.slope**2 * (variance + _shifted(pairs, arm, world))
    arms = (treated, treated.slope), (control, -control.slope)
    return total + match(pairs, *arms) + trait(pairs, *arms)


def change(pairs: Pairs, before: Arm, after: Arm, world: World) -> Floats | None:
    """Return the variance (n,) of what differs between two arms that are shown, one as it is.

    What both share cancels but for the links' curvature. None where the change itself has no known
    spread: ratings without residuals, and popularity without the regression on paths.
    """
    shared = level(pairs, before)
    z, moved = design(pairs, before), design(pairs, after)
    kappa = pairs.model.kappa[pairs.treated]
    if shared is None or (z is None and world.popularity is not None and kappa != 0.0):
        return None
    shared = shared + trait(pairs, (before, np.ones(len(pairs))))
    variance = (after.slope - before.slope) ** 2 * shared
    variance = variance + after.slope**2 * _shifted(pairs, after, world)
    if z is not None and moved is not None:
        variance = variance + _paths(pairs, after.theta * moved - before.theta * z)
    return variance


def averaged(pairs: Pairs, own: NDArray[np.bool_], bounds: Bounds | None) -> Bounds | None:
    """Return the bounds with the average effect's own where it stands in; nan where unknown."""
    if own.all():
        return bounds
    said = pairs.model.averages.get(pairs.outcome.name)
    unknown = np.full(len(own), np.nan)
    low, high = bounds if bounds is not None else (unknown, unknown)
    first, last = (np.nan, np.nan) if said is None or said.interval is None else said.interval
    return np.where(own, low, first), np.where(own, high, last)


def _shifted(pairs: Pairs, arm: Arm, world: World) -> Floats:
    """Return the variance (n,) on the link scale of what other attributes change in the arm."""
    if world.shift is None:
        return np.zeros(len(pairs))
    by_slopes = 0.0 if arm.paths is None else world.shift.slope_variance
    return world.shift.variance * _residual(pairs, arm) + by_slopes


def _residual(pairs: Pairs, arm: Arm) -> Floats:
    """Return the variance of one outcome on the link scale (n,): 1 / p (1 - p) for clicks."""
    if pairs.outcome.link == "logit":
        return np.asarray(arm.theta / np.maximum(arm.slope, 1e-12))
    return np.full(len(pairs), (pairs.outcome.residual_sd or 0.0) ** 2)


def fitted(pairs: Pairs) -> bool:
    """Return whether a regression on paths that are known here is published for the outcome."""
    fit = pairs.model.fits.get(pairs.outcome.name)
    return fit is not None and set(fit.names) <= set(PATHS)


def design(pairs: Pairs, arm: Arm) -> Floats | None:
    """Return the regressors z (n, p) in the fit's order; None without a fit of known names."""
    if not fitted(pairs):
        return None
    fit = pairs.model.fits[pairs.outcome.name]
    z = np.ones((len(pairs), len(fit.names)))
    for column, name in enumerate(fit.names):
        if name != "intercept":
            z[:, column] = getattr(arm.paths, name)
    return z


def _paths(pairs: Pairs, z: Floats | None) -> Floats:
    """Return z' C z of each pair (n,), 0 without a design."""
    if z is None:
        return np.zeros(len(pairs))
    covariance = pairs.model.fits[pairs.outcome.name].covariance
    return np.asarray(np.maximum(np.einsum("np,pq,nq->n", z, covariance, z), 0.0))
