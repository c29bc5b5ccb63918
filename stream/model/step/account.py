"""The contributions of an interaction to the global terms: a row of numbers, and their summation.

An interaction writes its row (`told`) once, and a driver adds the rows to the pending sums in
order. So the sequential driver and a block whose rows are written by many threads get the same
sums.
"""

import numpy as np
from numpy.typing import NDArray

from stream.compiled import embedded
from stream.model import scalars as sc
from stream.model.layout import HEADS
from stream.model.step.link import sigmoid
from stream.model.step.names import Array, GlobalTerms, Interaction, StepContext

# columns of a row: the outcome if shown
RAW, TOTAL, WEIGHT, TOTAL_F, WEIGHT_F, POPULAR = range(6)
SCORE, SEEN, NOISE, OF = range(6, 10)  # popularity within the item
SCORE_Z, SEEN_Z, GAIN, GAIN_SQUARE = range(10, 14)  # the confounder path
T_SCORE, T_SEEN = range(14, 16)  # examination of its position
W_A, W_B, W_AA, W_AB, W_BB = range(16, 21)  # a control outcome's
KIND, HEAD, ROW, POSITION, NEW_USER, NEW_ITEM, ONE = range(21, 28)
FIRST = 28  # of 10 for each p: A, B, AA, AB, BB of the head, and of the head with the session
# flags in KIND
LEARNS, TREATED, EXPOSING, CALIBRATES = 1, 2, 4, 8
CONTROL, EXAMINES, WEIGHED, WITHIN = 16, 32, 64, 128
_CALIBRATION = 5


def columns(pairs: int) -> int:
    """Return the number of columns of an interaction's row."""
    return FIRST + 2 * _CALIBRATION * (1 + pairs)


@embedded
def tell_calibration(told: Array, q: int, head: Array, eta: np.float32) -> None:
    """Write an exposure score's contribution to the calibration of its head (Platt, 1999).

    q is 2 p, plus 1 with the session. The target (p = 0) was exposed; the uniform items count as
    not exposed.
    """
    raised = np.float64(eta)
    chance = np.float64(sigmoid(np.float32(head[sc.SCALE] * raised + head[sc.SHIFT])))
    off, v = chance - (1.0 if q < 2 else 0.0), chance * (1.0 - chance)
    first = FIRST + _CALIBRATION * q
    told[first] = off * raised
    told[first + 1] = off
    told[first + 2] = v * raised * raised
    told[first + 3] = v * raised
    told[first + 4] = v


@embedded
def begin(told: Array, e: Interaction, learns: bool) -> None:
    """Write the interaction's kind, outcome, head and position, without contributions."""
    told[KIND] = LEARNS if learns else 0
    told[NEW_USER] = told[NEW_ITEM] = 0.0
    told[ONE] = 1.0
    told[ROW], told[HEAD], told[POSITION] = e.o, e.head, e.position


@embedded
def collect_shown(o: Array, told: Array, kind: int) -> None:
    """Add the contributions of an outcome if shown to the pending sums of its outcome."""
    if kind & WEIGHED:
        o[sc.W_PENDING] += told[RAW]
        o[sc.W_FRESH] += 1.0
    o[sc.TOTAL_NEW] += told[TOTAL]
    o[sc.WEIGHT_NEW] += told[WEIGHT]
    o[sc.TOTAL_NEW + 2] += told[TOTAL_F]
    o[sc.WEIGHT_NEW + 2] += told[WEIGHT_F]
    o[sc.Q_PENDING] += told[POPULAR]
    o[sc.Q_FRESH] += 1.0
    if kind & WITHIN:
        o[sc.SCORE] += told[SCORE]
        o[sc.SEEN] += told[SEEN]
        o[sc.NOISE_NEW] += told[NOISE]
        o[sc.OF_NEW] += told[OF]
    o[sc.SCORE + 1] += told[SCORE_Z]
    o[sc.SEEN + 1] += told[SEEN_Z]
    o[sc.GAIN_NEW] += told[GAIN]
    o[sc.GAIN_SQUARE_NEW] += told[GAIN_SQUARE]
    o[sc.GAIN_COUNT_NEW] += 1.0


@embedded
def collect_control(g: GlobalTerms, o: int, told: Array) -> None:
    """Add the contributions of a control outcome to the sums behind base0, delta and level0."""
    g.counters[sc.CONTROLS] += 1
    g.outcome[o, sc.TOTAL_NEW + 1] += told[TOTAL]
    g.outcome[o, sc.WEIGHT_NEW + 1] += 1.0
    for c in range(_CALIBRATION):
        g.withheld[o, sc.C_A + c] += told[W_A + c]


@embedded
def collect_exposure(m: StepContext, told: Array) -> None:
    """Add an exposure to the sums of its head, without and with the session."""
    g, h = m.terms, int(told[HEAD])
    g.head[h, sc.EXPOSED_NEW] += 1.0
    g.head[HEADS + h, sc.EXPOSED_NEW] += 1.0
    if int(told[KIND]) & CALIBRATES:
        for p in range(1 + m.at.pairs):
            for c in range(_CALIBRATION):
                at = FIRST + 2 * _CALIBRATION * p + c
                g.head[h, sc.S_A + c] += told[at]
                g.head[HEADS + h, sc.S_A + c] += told[at + _CALIBRATION]


@embedded
def collect(m: StepContext, told: Array) -> None:
    """Add an interaction's row to the pending sums of the global terms."""
    g, kind, o = m.terms, int(told[KIND]), int(told[ROW])
    g.counters[sc.USERS] += int(told[NEW_USER])
    g.counters[sc.ITEMS] += int(told[NEW_ITEM])
    if kind & EXPOSING:
        collect_exposure(m, told)
    if kind & TREATED:
        collect_shown(g.outcome[o], told, kind)
        if kind & EXAMINES:
            position = int(told[POSITION])
            g.position[position, sc.T_SCORE] += told[T_SCORE]
            g.position[position, sc.T_SEEN] += told[T_SEEN]
    if kind & CONTROL:
        collect_control(g, o, told)


OUTCOME_ROW, WITHHELD_ROW, HEAD_ROW, POSITION_ROW, COUNTER = range(5)  # the array of a cell
ALWAYS = 0  # no flag is needed


def cells(outcomes: int, pairs: int) -> NDArray[np.int32]:
    """Return the sums that `collect` makes, as a table that many workers can share (n, 6).

    The columns are: column of an interaction's row; number of consecutive rows of this table that
    are summed into one cell (0 in those after the first); flag of KIND that is needed; array of the
    cell; its row; its column.
    """
    shown = (
        (RAW, WEIGHED, sc.W_PENDING), (ONE, WEIGHED, sc.W_FRESH), (TOTAL, TREATED, sc.TOTAL_NEW),
        (WEIGHT, TREATED, sc.WEIGHT_NEW), (TOTAL_F, TREATED, sc.TOTAL_NEW + 2),
        (WEIGHT_F, TREATED, sc.WEIGHT_NEW + 2), (POPULAR, TREATED, sc.Q_PENDING),
        (ONE, TREATED, sc.Q_FRESH), (SCORE, WITHIN, sc.SCORE), (SEEN, WITHIN, sc.SEEN),
        (NOISE, WITHIN, sc.NOISE_NEW), (OF, WITHIN, sc.OF_NEW), (SCORE_Z, TREATED, sc.SCORE + 1),
        (SEEN_Z, TREATED, sc.SEEN + 1), (GAIN, TREATED, sc.GAIN_NEW),
        (GAIN_SQUARE, TREATED, sc.GAIN_SQUARE_NEW), (ONE, TREATED, sc.GAIN_COUNT_NEW),
        (TOTAL, CONTROL, sc.TOTAL_NEW + 1), (ONE, CONTROL, sc.WEIGHT_NEW + 1),
    )  # fmt: skip
    found: list[tuple[int, ...]] = [
        (column, 1, bit, OUTCOME_ROW, o, to) for column, bit, to in shown for o in range(outcomes)
    ]
    for c in range(_CALIBRATION):
        found += [(W_A + c, 1, CONTROL, WITHHELD_ROW, o, sc.C_A + c) for o in range(outcomes)]
        for h in range(2 * HEADS):
            first = FIRST + c + (_CALIBRATION if h >= HEADS else 0)
            for p in range(1 + pairs):
                many = 0 if p else 1 + pairs
                column = first + 2 * _CALIBRATION * p
                found.append((column, many, CALIBRATES, HEAD_ROW, h, sc.S_A + c))
    found += [(ONE, 1, EXPOSING, HEAD_ROW, h, sc.EXPOSED_NEW) for h in range(2 * HEADS)]
    for position in range(1, sc.POSITIONS):
        found += [(T_SCORE, 1, EXAMINES, POSITION_ROW, position, sc.T_SCORE)]
        found += [(T_SEEN, 1, EXAMINES, POSITION_ROW, position, sc.T_SEEN)]
    counters = (
        (NEW_USER, ALWAYS, sc.USERS), (NEW_ITEM, ALWAYS, sc.ITEMS), (ONE, CONTROL, sc.CONTROLS),
        (ONE, LEARNS, sc.STEPS),
    )  # fmt: skip
    found += [(column, 1, bit, COUNTER, 0, to) for column, bit, to in counters]
    return np.array(found, np.int32)
