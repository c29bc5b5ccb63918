"""The exposure model: noise-contrastive estimation against uniform items, and the propensity.

(Gutmann and Hyvarinen, 2010.) eta_e = m_i + s_u . t_i, by the long-term exposure factors, is what
propensities and the confounder path use. The session factors are fitted on top of it and only serve
the ranking by consumption.
"""

import math

import numpy as np

from stream.compiled import embedded
from stream.interaction_type import InteractionType
from stream.model import scalars as sc
from stream.model.layout import HEADS
from stream.model.step import account
from stream.model.step.compose import compose_item
from stream.model.step.lanes import as_index, ends, inside, meet, product, strides
from stream.model.step.link import sigmoid
from stream.model.step.names import Interaction, InteractionColumns, Scratch, StepContext

_CORRECTION = int(InteractionType.CORRECTION)
_ONE, _ZERO = np.float32(1), np.float32(0)
_MOST = np.float32(40.0)  # caps the argument of an exponential


@embedded
def compose_pairs(m: StepContext, c: InteractionColumns, s: Scratch, j: int) -> None:
    """Write the composed rows of the interaction's uniform items to scratch."""
    for p in range(m.at.pairs):
        if c.pair[j, p] >= 0:
            compose_item(m, s, 1 + p, as_index(c.pair[j, p]))


@embedded
def exposes(m: StepContext, c: InteractionColumns, e: Interaction) -> bool:
    """Return whether the interaction teaches exposure; it needs uniform items to contrast with."""
    P = m.at.pairs
    return bool(m.on.exposure and e.role != _CORRECTION and P > 0 and c.pair[e.j, 0] >= 0)


@embedded
def add_moment(m: StepContext, s: Scratch, u: int) -> None:
    """Add session_share * r_u, the mean of the latest items, to the user's session factors."""
    au = m.at.user
    for stride in range(strides(au.S, m.lane)):
        d = stride * m.lane.all + m.lane.own
        if inside(d, au.S, m.lane):
            s.user[au.session + d] += m.rates.session_share * m.tables.users[u, au.recent + d]
    meet(m.lane)


@embedded
def contrasts(m: StepContext, s: Scratch, e: Interaction, z: np.float32, exposing: bool) -> None:
    """Write the exposure scores' derivatives for target and uniform items; 0 if not `exposing`."""
    at = m.at.item
    ce = at.bias + 3 * at.Y + e.head
    s.eta[0] = s.items[0, ce] + z
    for p in range(1 + m.at.pairs):
        s.contrast[p] = s.session[p] = _ZERO
    if exposing:
        s.contrast[0] = sigmoid(s.eta[0]) - _ONE
        for p in range(1, 1 + m.at.pairs):
            s.eta[p] = s.items[p, ce] + product(s.user, s.items[p], at.exposure, at.E, m.lane)
            s.contrast[p] = sigmoid(s.eta[p])


@embedded
def moment(m: StepContext, s: Scratch, e: Interaction, session: bool) -> None:
    """Write the derivatives with the session; sometimes add to the sums behind A and B."""
    at, told = m.at.item, s.told[e.at]
    calibrates = e.step < sc.BLOCK or e.step % sc.CALIBRATES == 0
    for p in range(1 + m.at.pairs):
        whole = s.eta[p]
        if session:
            whole += product(s.user, s.items[p], at.session, at.S, m.lane)
            s.session[p] = sigmoid(whole) - (_ONE if p == 0 else _ZERO)
        if m.lane.own == 0:
            s.raised[2 * p], s.raised[2 * p + 1] = s.eta[p], whole
    if calibrates:
        meet(m.lane)
        for q in range(m.lane.own, ends(0, 2 * (1 + m.at.pairs), m.lane), m.lane.all):
            head = m.terms.head[e.head + (HEADS if q & 1 else 0)]
            account.tell_calibration(told, q, head, s.raised[q])
    if m.lane.own == 0:
        told[account.KIND] += account.EXPOSING + (account.CALIBRATES if calibrates else 0)


@embedded
def propensity(m: StepContext, c: InteractionColumns, s: Scratch, e: Interaction) -> np.float32:
    """Return the clipped propensity: logged, else pi = 1 - exp(-rho n exp(A eta_e + B))."""
    head = m.terms.head[e.head]
    pi = c.propensity[e.j]
    if not pi >= 0:  # nan, or negative on a GPU, where fast-math excludes nan
        pi = _ONE
        if m.on.exposure and m.at.pairs > 0:
            size = np.float32(head[sc.SCALE]) * s.eta[0] + np.float32(head[sc.SHIFT])
            uniform = np.float32(head[sc.SHARE]) * np.float32(m.at.pairs)
            pi = -np.float32(math.expm1(-uniform * np.float32(math.exp(min(size, _MOST)))))
    clipped: np.float32 = min(max(pi, m.rates.clip), _ONE)
    return clipped
