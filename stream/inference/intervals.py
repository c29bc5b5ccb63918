"""95 % intervals of answers, model-based and in closed form.

Four sources of error are taken as independent and combined by the delta method (Casella and Berger,
Statistical Inference, 2002, section 5.5.4) on the link scale:

  level   what is not yet known about user and item, and the noise of the learner's steps (noise.py)
  trait   the same for the long-term exposure factors, where the outcome depends on them
  paths   z' C z, with C the sandwich covariance of the linear regression of the outcome on the
          terms of its score (White, Econometrica 1980, "A heteroskedasticity-consistent covariance
          matrix estimator", theorem 1) and z the pair's terms, on the outcome's scale; used if it
          is published and its names are known here
  change  the coefficients of attribute values that are added or removed, and the covariance of
          slopes estimated within items (see `attributes.shift`)

They ignore the error of theta, the variance of the weights and the bias of shrinkage. They are
therefore called model-based, and their coverage is measured separately.
"""

import numpy as np
from numpy.typing import NDArray

from stream.inference.model import Floats
from stream.inference.noise import level, match, trait
from stream.inference.outcome import Arm, Scenario
from stream.inference.rows import ServedPairs
from stream.model.step.names import TERMS

Z = 1.959964  # the .975 quantile of the standard normal

Bounds = tuple[Floats, Floats]


def around(value: Floats, variance: Floats) -> Bounds:
    """Return the 95 % interval of a normal distribution with this mean and variance (n,)."""
    reach = Z * np.sqrt(variance)
    return value - reach, value + reach


def expected(pairs: ServedPairs, arm: Arm, world: Scenario) -> Bounds | None:
    """Return the interval of an arm's expected outcome; None if no residual spread is published.

    It is computed on the link scale, so it stays within the outcome's range.
    """
    variance = _doubt(pairs, arm, world)
    if variance is None:
        return None
    low, high = around(arm.eta, variance)
    return arm.theta * pairs.outcome.inverse(low), arm.theta * pairs.outcome.inverse(high)


def predictive(pairs: ServedPairs, arm: Arm, world: Scenario) -> Bounds | None:
    """Return the interval of a single rating of each pair; None without residuals.

    It includes both the residual and the uncertainty of the pair, so that rarely rated pairs have
    wider intervals.
    """
    if pairs.outcome.residual_sd is None:
        return None
    variance = np.full(len(pairs), pairs.outcome.residual_sd**2)
    doubt = _doubt(pairs, arm, world) if pairs.model.causal else None
    low, high = around(arm.mean, variance if doubt is None else variance + doubt)
    return np.maximum(low, pairs.outcome.low), np.minimum(high, pairs.outcome.high)


def _doubt(pairs: ServedPairs, arm: Arm, world: Scenario) -> Floats | None:
    """Return the variance (n,) of the expected outcome on the link scale."""
    variance: Floats | None = level(pairs, arm)
    if variance is None:
        return None
    variance = variance + _shifted(pairs, arm, world)
    slope = np.maximum(arm.slope / arm.theta, 1e-6)
    alone = (arm, np.ones(len(pairs)))
    variance = variance + match(pairs, alone) + trait(pairs, alone)
    return np.asarray(variance + _paths(pairs, design(pairs, arm)) / slope**2)


def showing(pairs: ServedPairs, treated: Arm, control: Arm, world: Scenario) -> Floats | None:
    """Return the variance (n,) of the effect of showing; the arms' levels are independent."""
    total = _paths(pairs, design(pairs, treated)) * treated.theta**2
    for arm in (treated, control):
        variance: Floats | None = level(pairs, arm)
        if variance is None:
            return None
        total = total + arm.slope**2 * (variance + _shifted(pairs, arm, world))
    arms = (treated, treated.slope), (control, -control.slope)
    return total + match(pairs, *arms) + trait(pairs, *arms)


def change(pairs: ServedPairs, before: Arm, after: Arm, world: Scenario) -> Floats | None:
    """Return the variance (n,) of the difference between two shown arms, the first of them factual.

    What both share cancels, apart from the curvature of the link. Returns None if the change itself
    has no known variance: for ratings without residuals, and for popularity without the regression
    on the score's terms.
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


def averaged(pairs: ServedPairs, own: NDArray[np.bool_], bounds: Bounds | None) -> Bounds | None:
    """Return the bounds, with those of the average effect where it is used; nan where unknown."""
    if own.all():
        return bounds
    said = pairs.model.averages.get(pairs.outcome.name)
    unknown = np.full(len(own), np.nan)
    low, high = bounds if bounds is not None else (unknown, unknown)
    first, last = (np.nan, np.nan) if said is None or said.interval is None else said.interval
    return np.where(own, low, first), np.where(own, high, last)


def _shifted(pairs: ServedPairs, arm: Arm, world: Scenario) -> Floats:
    """Return the variance (n,) on the link scale of the change made by other attributes."""
    if world.shift is None:
        return np.zeros(len(pairs))
    by_slopes = 0.0 if arm.paths is None else world.shift.slope_variance
    return world.shift.variance * _residual(pairs, arm) + by_slopes


def _residual(pairs: ServedPairs, arm: Arm) -> Floats:
    """Return the variance (n,) of one outcome on the link scale; 1 / (p (1 - p)) for clicks."""
    if pairs.outcome.link == "logit":
        return np.asarray(arm.theta / np.maximum(arm.slope, 1e-12))
    return np.full(len(pairs), (pairs.outcome.residual_sd or 0.0) ** 2)


def fitted(pairs: ServedPairs) -> bool:
    """Return whether a regression on known terms is published for the outcome."""
    fit = pairs.model.fits.get(pairs.outcome.name)
    return fit is not None and set(fit.names) <= set(TERMS)


def design(pairs: ServedPairs, arm: Arm) -> Floats | None:
    """Return the regressors z (n, p) in the fit's order; None without a fit of known names."""
    if not fitted(pairs):
        return None
    fit = pairs.model.fits[pairs.outcome.name]
    z = np.ones((len(pairs), len(fit.names)))
    for column, name in enumerate(fit.names):
        if name != "intercept":
            z[:, column] = getattr(arm.paths, name)
    return z


def _paths(pairs: ServedPairs, z: Floats | None) -> Floats:
    """Return z' C z of each pair (n,), 0 without a design."""
    if z is None:
        return np.zeros(len(pairs))
    covariance = pairs.model.fits[pairs.outcome.name].covariance
    return np.asarray(np.maximum(np.einsum("np,pq,nq->n", z, covariance, z), 0.0))
