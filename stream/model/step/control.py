"""The control arm: the outcome of an item that is withheld.

    lin0 = base0 + a0_u + c0_i + g_u . (h_i - own part of h_i + control row)

The control row starts as a copy of the treated row, and is shrunk towards it until control outcomes
outweigh this prior.
"""

import numpy as np

from stream.compiled import embedded
from stream.model import scalars as sc
from stream.model.step import account
from stream.model.step.lanes import ends
from stream.model.step.link import sigmoid
from stream.model.step.names import Array, Interaction, Scratch, StepContext
from stream.model.step.rows import step_bias
from stream.model.step.score import Score, with_trait

_ONE, _ZERO = np.float32(1), np.float32(0)


@embedded
def first_score(m: StepContext, s: Scratch, e: Interaction, f: Score) -> np.float32:
    """Return lin0 of an item's first control outcome: its control row is then the treated one."""
    at, base0 = m.at.user, np.float32(m.terms.outcome[e.o, sc.BASE + 1])
    return base0 + s.user[at.bias + at.Y + e.o] + s.items[0, m.at.item.bias + e.o] + f.match


@embedded
def start(m: StepContext, s: Scratch, e: Interaction, f: Score, lin0: np.float32) -> np.float32:
    """Copy the treated row into the item's control row if it has none; return lin0 after that."""
    t, ai, Y = m.tables, m.at.item, m.at.item.Y
    items, own = t.items, ai.bias + Y
    if items[e.i, ai.control_sum] > 0:
        return lin0
    for d in range(m.lane.own, ends(0, ai.D, m.lane), m.lane.all):
        items[e.i, ai.control + d] = items[e.i, ai.vector + d]
    shown = s.items[0, ai.bias + e.o]
    if m.lane.own == 0:
        items[e.i, ai.control_sum] = m.rates.start
        for c in range(Y):
            folded = s.items[0, own + c] - items[e.i, own + c]
            items[e.i, own + c] = s.items[0, ai.bias + c] - folded
        s.items[0, own + e.o] = shown
    return first_score(m, s, e, f)


@embedded
def tell_control(m: StepContext, told: Array, e: Interaction, f: Score, lin0: np.float32) -> None:
    """Add a control outcome to the sums behind base0, delta and level0."""
    lin = with_trait(m, e, f, lin0)
    mu = sigmoid(lin) if e.logit else lin
    bend = mu * (_ONE - mu) if e.logit else _ONE
    told[account.TOTAL] = e.label
    told[account.W_A] = (mu - e.label) * f.z
    told[account.W_B] = mu - e.label
    told[account.W_AA] = bend * f.z * f.z
    told[account.W_AB] = bend * f.z
    told[account.W_BB] = bend
    told[account.KIND] += account.CONTROL


@embedded
def control_shrinkage(m: StepContext, i: int) -> np.float32:
    """Return the strength of the shrinkage after n control outcomes: tie / (1 + tie n)."""
    shrinkage = m.rates.control_shrinkage
    n = np.float32(m.tables.item_bits[i, m.at.item.controls])
    strength: np.float32 = shrinkage / (_ONE + shrinkage * n)
    return strength


@embedded
def step_control_bias(m: StepContext, i: int, c: int, off: np.float32, treated: np.float32) -> None:
    """Take one step on the item's control bias c, shrunk towards the treated bias (own parts)."""
    own = m.tables.items[i, m.at.item.bias + c]
    g = off + control_shrinkage(m, i) * (own - treated)
    step_bias(m.tables.items, i, m.at.item, c, g, m.rates.item_bias, _ZERO)
