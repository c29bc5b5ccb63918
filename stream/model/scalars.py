"""The global terms: bases, propensity weights, popularity, confounder, position and calibration.

Every interaction adds to pending sums. A term changes only at update points, which are given by the
number of learned interactions (1, 2, 4, … 1,024, then every 1,024th). Between two update points all
terms are constant, so with the sequential driver they do not depend on how a stream is divided into
batches; every driver changes them after the same interactions.

At an update point, slopes take a natural-gradient step: the summed score divided by the summed
information, which is recursive least squares for one coefficient (Ljung, 1977; Amari, 1998).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.model.config import OutcomeConfig
from stream.model.kernels import Array, compiled
from stream.model.layout import HEADS
from stream.model.step.names import GlobalTerms

BLOCK = 1024  # interactions between two update points, after the first
POSITIONS = 64  # positions with an examination probability of their own; later ones use the last
SLOPES = 2  # kappa of popularity, alpha of the confounder

# columns of an outcome's row: running and pending sums of weights and of popularity
W_SUM, W_COUNT, W_PENDING, W_FRESH = range(4)
Q_SUM, Q_COUNT, Q_PENDING, Q_FRESH, Q_MEAN = range(5, 10)
SLOPE, INFO, SCORE, SEEN = 10, 12, 14, 16  # two columns each: popularity, confounder
GAIN, GAIN_SQUARE, GAIN_COUNT, GAIN_NEW, GAIN_SQUARE_NEW, GAIN_COUNT_NEW, GATE = range(18, 25)
# three columns each: if shown, if withheld, as observed
BASE, TOTAL, WEIGHT, TOTAL_NEW, WEIGHT_NEW = range(25, 40, 3)
MIDDLE, LOGIT = 40, 41
CROSS, NOISE, NOISE_NEW, OF, OF_NEW = range(42, 47)
OUTCOME_COLUMNS = 47
# columns of an outcome's row of the control arm: delta = alpha0 - alpha, level0, and their sums
CARRIED, LEVEL, C_AA, C_AB, C_BB, C_A, C_B, C_NAA, C_NAB, C_NBB = range(10)
CONTROL_COLUMNS = 10
# columns of an exposure head's row: A, B, the sums behind them, exposures, and rho
SCALE, SHIFT, I_AA, I_AB, I_BB, S_A, S_B, N_AA, N_AB, N_BB, EXPOSED, EXPOSED_NEW, SHARE = range(13)
HEAD_COLUMNS = 13
# columns of a position's row: logit of theta, information, pending score and information, theta
PHI, T_INFO, T_SCORE, T_SEEN, THETA = range(5)
# the counters; SETTLED: controls at the last update point
STEPS, USERS, ITEMS, CONTROLS, SETTLED = range(5)

PRIOR_SLOPE = 10.0  # prior information of slopes, towards 0
PRIOR_POSITION = 5.0  # the same for a position
CLEAR = 4.0  # standard errors from 0 at which kappa is used
PRIOR_SCALE = 100.0  # prior information of A and B
CALIBRATES = 4  # after BLOCK interactions only every 4th calibrates, as that takes two exps
_LN_HALF = -0.6931471805599453
GATE_OPENS = 2_000  # outcomes needed before the confounder path may open


@compiled
def is_update_point(steps: int) -> bool:
    """Return whether this number of learned interactions is an update point of the global terms."""
    if steps >= BLOCK:
        return steps % BLOCK == 0
    return steps & (steps - 1) == 0


@compiled
def fit(row: Array, keen: float, prior: float) -> None:
    """Move the slope and level in the row's first columns by a natural-gradient step (2 x 2).

    The curvature (aa, ab, bb) decays by `keen` and gains the pending one; the pending sums become
    0. The rows of the control arm and of the exposure heads both begin with these ten columns.
    """
    row[I_AA] = keen * row[I_AA] + row[N_AA]
    row[I_AB] = keen * row[I_AB] + row[N_AB]
    row[I_BB] = keen * row[I_BB] + row[N_BB]
    aa, bb, ab = row[I_AA] + prior, row[I_BB] + prior, row[I_AB]
    size = aa * bb - ab * ab
    row[SCALE] -= (bb * row[S_A] - ab * row[S_B]) / size
    row[SHIFT] -= (aa * row[S_B] - ab * row[S_A]) / size
    for c in range(S_A, N_BB + 1):
        row[c] = 0.0


@compiled
def rebase(row: Array) -> None:
    """Set the bases of one outcome: the link of its labels' weighted mean, per arm.

    The prior is the middle of the scale; that of the withheld arm is the shown arm's mean.
    """
    shown = row[MIDDLE]
    for arm in range(3):
        prior = shown if arm == 1 else row[MIDDLE]
        mean = (row[TOTAL + arm] + prior) / (row[WEIGHT + arm] + 1.0)
        if arm == 0:
            shown = mean
        if row[LOGIT] > 0:
            mean = min(max(mean, 1e-6), 1.0 - 1e-6)
            row[BASE + arm] = math.log(mean / (1.0 - mean))
        else:
            row[BASE + arm] = mean


@compiled
def fading(n: Array, sum_half_life: float) -> tuple[float, float]:
    """Return the factors by which running sums and the slopes' sums decay at an update point.

    The slopes' sums decay faster, as early data came from rows that were hardly learned; the
    resulting gain is 3 / n (Kushner and Yin).
    """
    keep = math.exp(_LN_HALF * BLOCK / sum_half_life) if n[STEPS] >= BLOCK else 1.0
    fresh = min(BLOCK, max(n[STEPS] // 2, 1))
    return keep, min(keep, max(0.0, 1.0 - 2.0 * fresh / max(n[STEPS], 1)))


@compiled
def refresh_means(row: Array, keep: float, keen: float) -> None:
    """Add the pending sums of weights, popularity and labels of one outcome, and set its bases."""
    row[W_SUM] = keep * row[W_SUM] + row[W_PENDING]
    row[W_COUNT] = keep * row[W_COUNT] + row[W_FRESH]
    row[W_PENDING] = row[W_FRESH] = 0.0
    row[Q_SUM] = keep * row[Q_SUM] + row[Q_PENDING]
    row[Q_COUNT] = keep * row[Q_COUNT] + row[Q_FRESH]
    row[Q_PENDING] = row[Q_FRESH] = 0.0
    row[Q_MEAN] = row[Q_SUM] / row[Q_COUNT] if row[Q_COUNT] > 0 else 0.0
    for arm in range(3):
        # early labels of clicks were corrected by poor estimates of theta, so they decay
        fade = keen if row[LOGIT] > 0 and arm != 1 else 1.0
        row[TOTAL + arm] = fade * row[TOTAL + arm] + row[TOTAL_NEW + arm]
        row[WEIGHT + arm] = fade * row[WEIGHT + arm] + row[WEIGHT_NEW + arm]
        row[TOTAL_NEW + arm] = row[WEIGHT_NEW + arm] = 0.0
    rebase(row)


@compiled
def refresh_slopes(row: Array, keep: float, keen: float) -> None:
    """Update kappa and alpha of one outcome."""
    row[INFO + 1] = keen * row[INFO + 1] + row[SEEN + 1]
    row[SLOPE + 1] -= row[SCORE + 1] / (row[INFO + 1] + PRIOR_SLOPE)
    row[CROSS] = keep * row[CROSS] + row[SCORE]
    row[INFO] = keep * row[INFO] + row[SEEN]
    row[NOISE] = keep * row[NOISE] + row[NOISE_NEW]
    row[OF] = keep * row[OF] + row[OF_NEW]
    row[NOISE_NEW] = row[OF_NEW] = 0.0
    for s in range(SLOPES):
        row[SCORE + s] = row[SEEN + s] = 0.0
    row[SLOPE] = row[CROSS] / (row[INFO] + PRIOR_SLOPE)
    if row[SLOPE] * row[SLOPE] * row[INFO] * row[OF] < CLEAR * CLEAR * row[NOISE]:
        row[SLOPE] = 0.0


@compiled
def refresh_gate(row: Array, keep: float) -> None:
    """Open the confounder path if it predicts better, close it if it predicts worse."""
    row[GAIN] = keep * row[GAIN] + row[GAIN_NEW]
    row[GAIN_SQUARE] = keep * row[GAIN_SQUARE] + row[GAIN_SQUARE_NEW]
    row[GAIN_COUNT] = keep * row[GAIN_COUNT] + row[GAIN_COUNT_NEW]
    row[GAIN_NEW] = row[GAIN_SQUARE_NEW] = row[GAIN_COUNT_NEW] = 0.0
    if row[GAIN_COUNT] > 0:
        mean = row[GAIN] / row[GAIN_COUNT]
        deviation = math.sqrt(max(row[GAIN_SQUARE] / row[GAIN_COUNT] - mean * mean, 0.0))
        clear = mean * math.sqrt(row[GAIN_COUNT]) > 2.0 * deviation
        if row[GATE] == 0 and clear and row[GAIN_COUNT] >= GATE_OPENS and mean > 0:
            row[GATE] = 1.0
        elif row[GATE] == 1 and mean < 0:
            row[GATE] = 0.0


@compiled
def refresh_head(row: Array, n: Array, keen: float) -> None:
    """Update A, B and rho of one exposure head."""
    fit(row, keen, PRIOR_SCALE)
    row[EXPOSED] += row[EXPOSED_NEW]
    row[EXPOSED_NEW] = 0.0
    row[SHARE] = min(1.0, row[EXPOSED] / max(1.0, n[USERS] * n[ITEMS]))


@compiled
def refresh_position(row: Array, keen: float) -> None:
    """Update the examination probability of one position after the first."""
    if row[T_SEEN] > 0:
        row[T_INFO] = keen * row[T_INFO] + row[T_SEEN]
        row[PHI] -= row[T_SCORE] / (row[T_INFO] + PRIOR_POSITION)
        row[PHI] = min(max(row[PHI], -8.0), 8.0)
        row[THETA] = 1.0 / (1.0 + math.exp(-row[PHI]))
        row[T_SCORE] = row[T_SEEN] = 0.0


@compiled
def refresh(g: GlobalTerms, sum_half_life: float) -> None:
    """Update all global terms from the pending sums, which become 0."""
    o, h, t, w, n = g.outcome, g.head, g.position, g.withheld, g.counters
    n[SETTLED] = n[CONTROLS]
    keep, keen = fading(n, sum_half_life)
    for k in range(o.shape[0]):
        refresh_means(o[k], keep, keen)
        refresh_slopes(o[k], keep, keen)
        refresh_gate(o[k], keep)
        fit(w[k], keen, PRIOR_SLOPE)
    for k in range(h.shape[0]):
        refresh_head(h[k], n, keen)
    for k in range(1, t.shape[0]):
        refresh_position(t[k], keen)


class Scalars:
    """The arrays of the global terms, which the learner's kernels write to."""

    def __init__(self, outcomes: Sequence[OutcomeConfig]) -> None:
        """Start without interactions: weights 1, slopes 0, examination near 1 at every position."""
        self.outcome = np.zeros((len(outcomes), OUTCOME_COLUMNS))
        self.outcome[:, MIDDLE] = [o.middle for o in outcomes]
        self.outcome[:, LOGIT] = [o.link == "logit" for o in outcomes]
        for row in self.outcome:
            rebase(row)
        self.head = np.zeros((2 * HEADS, HEAD_COLUMNS))  # heads without session, then with it
        self.head[:, SCALE] = 1.0
        self.place = np.zeros((POSITIONS, 5))
        self.place[:, PHI] = 2.0
        self.place[:, THETA] = 1.0 / (1.0 + np.exp(-2.0))
        self.place[0, THETA] = 1.0
        self.withheld = np.zeros((len(outcomes), CONTROL_COLUMNS))
        self.count = np.zeros(5, np.int64)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays that `load` needs."""
        return {f"scalars.{name}": array.copy() for name, array in vars(self).items()}

    def load(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore saved global terms; delta and level0 start at 0 if the state has none."""
        for name, array in vars(self).items():
            key = f"scalars.{name}"
            array[:] = state.get(key, 0.0) if name == "withheld" else state[key]
