"""The popularity path: an item's decayed count, and its running means of popularity and outcome."""

import math

import numpy as np

from stream.compiled import embedded
from stream.model.step import account
from stream.model.step.names import Array, StepContext

_ONE = np.float32(1)
_LN_HALF = np.float32(-0.6931471805599453)
_FLAT = np.float32(0.01)  # least curvature p (1 - p) of a mean of clicks
_SLOW = np.float32(0.001)  # least rate of the running means


@embedded
def decayed_count(m: StepContext, i: int, now: int) -> float:
    """Return the item's decayed count of clicks and ratings at time `now` (s)."""
    ai = m.at.item
    held = np.float64(m.tables.items[i, ai.decayed_count])
    if held == 0.0:
        return 0.0
    age = now - np.int64(m.tables.item_bits[i, ai.decayed_count_s])
    gone = np.float32(age) / m.rates.half_life
    return float(held * math.exp(_LN_HALF * gone)) if age > 0 else float(held)


@embedded
def log_popularity(count: float) -> np.float32:
    """Return q = log(1 + decayed count)."""
    return np.float32(math.log1p(np.float32(count)))


@embedded
def popularity_deviation(m: StepContext, i: int, o: int, q: np.float32) -> np.float32:
    """Return q - r_i, popularity minus the item's running mean of it; 0 before its first outcome.

    Subtracting the item's own mean keeps its quality out of the popularity path.
    """
    ai = m.at.item
    if m.tables.item_bits[i, ai.outcomes + o] > 0:
        return np.float32(q - m.tables.items[i, ai.popularity_mean + o])
    return np.float32(0)


@embedded
def count_interaction(m: StepContext, i: int, count: float, now: int) -> None:
    """Count a click or rating at time `now` (s) in the item's events and its decayed count."""
    t, ai = m.tables, m.at.item
    t.item_bits[i, ai.events] += np.uint32(1)
    t.items[i, ai.decayed_count] = np.float32(count + 1.0)
    t.item_bits[i, ai.decayed_count_s] = max(t.item_bits[i, ai.decayed_count_s], np.uint32(now))


@embedded
def update_item_means(
    m: StepContext, i: int, o: int, label: np.float32, q: np.float32, told: Array
) -> None:
    """Update the item's running means, and add to the sums behind kappa (within-item regression).

    The outcome's deviation from the item's mean is regressed on the deviation of popularity from
    the item's mean, so the item's quality is in neither (Mundlak, 1978).
    """
    t, ai = m.tables, m.at.item
    count = t.item_bits[i, ai.outcomes + o]
    usual = t.items[i, ai.label_mean + o]
    away = popularity_deviation(m, i, o, q)
    told[account.SCORE] = told[account.SEEN] = told[account.NOISE] = told[account.OF] = 0.0
    if count > 0:
        gap = label - usual
        bend = max(usual * (_ONE - usual), _FLAT) if m.outcomes.logit[o] else _ONE
        told[account.SCORE] = bend * gap * away
        told[account.SEEN] = bend * bend * away * away
        told[account.NOISE] = gap * gap
        told[account.OF] = 1.0
    t.item_bits[i, ai.outcomes + o] = count + np.uint32(1)
    rate = max(_ONE / np.float32(count + np.uint32(1)), _SLOW)
    t.items[i, ai.popularity_mean + o] += rate * (q - t.items[i, ai.popularity_mean + o])
    t.items[i, ai.label_mean + o] += rate * (label - usual)
