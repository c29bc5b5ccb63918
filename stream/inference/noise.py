"""The variance of a pair's score: what is not yet known, and the noise of the learner's steps.

level   A bias that is shrunk towards 0 with a prior worth N0 events has, after N events, the
        variance sigma^2 / (N + N0) (Gelman et al., Bayesian Data Analysis, 2013, equation 2.12).
        Ratings: sigma is the standard deviation of the progressive residual, N the events.
        Clicks: N closed windows with the Fisher information p (1 - p) each, and a prior variance
        of 1 on the logit scale. Withheld: N control windows.
steps   Stochastic gradient steps of rate r leave, around the optimum, the variance r s / (2 c),
        where s is the gradient's variance and c the curvature (Mandt, Hoffman and Blei, JMLR 2017,
        section 3.2, one dimension, small r). Under Adagrad r = rate / sqrt(start + N s), so it
        decreases only with sqrt(N) and eventually exceeds the level. It applies to the biases of
        user and item, and to the factors of either as they enter g . h, whose gradient is that of
        the score times the other's factors (row-wise: the mean over D).
trait   The variance of alpha (s_u . t_i), 0 while that path is closed. s_u . t_i is a score on the
        logit scale of exposure with E coordinates, about which N exposures tell as much as N / E
        events about a click's bias, with a prior variance of 1 and the information 1/4. This is
        wide: if a trait keeps items away from a user, the data say little about them.
"""

from dataclasses import dataclass

import numpy as np

from stream.inference.model import Floats
from stream.inference.outcome import Arm
from stream.inference.rows import ServedPairs

# Residual over prior variance of the additive model's biases on MovieLens-100K, fitted by
# empirical Bayes: .838 / .169 for users and .838 / .317 for items.
USER_EVENTS, ITEM_EVENTS = 5.0, 3.0
TOLD = 0.25  # largest Fisher information of one exposure about its score

Counted = Floats | float


def level(pairs: ServedPairs, arm: Arm) -> Floats | None:
    """Return the variance (n,) on the link scale of the biases of user and item: level and steps.

    Their sum is an upper bound: the level dominates while little is known, the steps later. Returns
    None if no residual spread is published.
    """
    mine, theirs = _counts(pairs, arm)
    known = known_of(pairs, arm)
    if known is None:
        return None
    rates = pairs.model.rates
    total: Floats
    if pairs.outcome.link == "logit":
        total = 1.0 / (mine * known.gradient + 1.0) + 1.0 / (theirs * known.gradient + 1.0)
    else:
        total = known.ratio / (mine + USER_EVENTS) + known.ratio / (theirs + ITEM_EVENTS)
    if rates is None:
        return np.asarray(total)
    of_user = known.steps(rates.user_bias, rates.start_bias, mine, 1.0)
    of_items = known.steps(rates.item_bias, rates.start_bias, theirs, 1.0)
    return np.asarray(total + of_user + of_items)


@dataclass(frozen=True, slots=True)
class Noise:
    """The variance s of the gradient of a score, and s over the curvature c (n,)."""

    gradient: Floats
    ratio: Floats

    def steps(self, rate: float, start: float, count: Counted, size: Counted) -> Floats:
        """Return r s / (2 c) of a part whose gradient is the score's times sqrt(size)."""
        held = start + count * self.gradient * size
        return np.asarray(rate * self.ratio / (2.0 * np.sqrt(held)))


def known_of(pairs: ServedPairs, arm: Arm) -> Noise | None:
    """Return the noise of a score.

    Clicks: s = c = p (1 - p). Ratings: s is the residual variance and c = 1. Returns None for
    ratings without a published residual spread.
    """
    if pairs.outcome.link == "logit":
        return Noise(arm.slope / arm.theta, np.ones(len(pairs)))
    if pairs.outcome.residual_sd is None:
        return None
    variance = np.full(len(pairs), pairs.outcome.residual_sd**2)
    return Noise(variance, variance)


def _counts(pairs: ServedPairs, arm: Arm) -> tuple[int, Floats]:
    """Return how often the arm was observed for the user and for the items (n,)."""
    click = pairs.outcome.link == "logit"
    name = "controls" if arm.paths is None else "exposures" if click else "events"
    return int(getattr(pairs.user, name)), np.asarray(getattr(pairs.items, name), float)


def match(pairs: ServedPairs, *arms: tuple[Arm, Floats]) -> Floats:
    """Return the variance (n,) from g and h of a weighted sum of arms, given as (arm, weight (n,)).

    The user's factors are the same in both arms, so their errors partly cancel; the item's factors
    are separate in each arm. The user's factors learn from shown outcomes.
    """
    rates, total = pairs.model.rates, np.zeros(len(pairs))
    shown = known_of(pairs, arms[0][0])
    if rates is None or shown is None:
        return total
    g, h, width = pairs.g @ pairs.g, _squares(pairs.h), max(pairs.model.factors, 1)
    through = np.zeros_like(pairs.h)
    for arm, weight in arms:
        known = known_of(pairs, arm) or shown
        _, theirs = _counts(pairs, arm)
        steps = known.steps(rates.item_factor, rates.start_factor, theirs, g / width)
        total = total + weight**2 * steps * g
        through = through + weight[:, None] * (pairs.h0 if arm.paths is None else pairs.h)
    mine, _ = _counts(pairs, arms[0][0])
    steps = shown.steps(rates.user_factor, rates.start_factor, mine, h / width)
    return np.asarray(total + steps * _squares(through))


def trait(pairs: ServedPairs, *arms: tuple[Arm, Floats]) -> Floats:
    """Return the variance (n,) from s_u . t_i of a weighted sum of arms, given as in `match`.

    Errors of the trait are in both arms, each with its coefficient, so they partly cancel.
    """
    model, column, width = pairs.model, pairs.treated, pairs.lasting_width
    through = np.zeros(len(pairs))
    for arm, weight in arms:
        carried = model.confounder_slope0 if arm.paths is None else model.confounder_slope
        through = through + weight * float(carried[column])
    mine = max(pairs.user.events, pairs.user.exposures)
    theirs = np.maximum(pairs.items.events, pairs.items.exposures)
    told = TOLD / width
    return np.asarray(through**2 * (1.0 / (told * mine + 1.0) + 1.0 / (told * theirs + 1.0)))


def _squares(rows: Floats) -> Floats:
    """Return each row's squared length (n,)."""
    return np.asarray(np.einsum("nd,nd->n", rows, rows))
