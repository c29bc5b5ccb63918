"""One interaction up to its errors: what every driver computes before any row is updated."""

from typing import NamedTuple

import numpy as np

from stream.compiled import embedded
from stream.interaction_type import SYNTHETIC, InteractionType
from stream.model.step import exposure
from stream.model.step.lanes import as_index
from stream.model.step.names import (
    Interaction,
    InteractionColumns,
    Predictions,
    Scratch,
    StepContext,
)
from stream.model.step.outcome import learn_outcome
from stream.model.step.score import Score, expect

_FACTUAL, _EXPOSED, _CONTROL = (
    int(InteractionType.FACTUAL),
    int(InteractionType.EXPOSED),
    int(InteractionType.CONTROL),
)
_CONSUMED, _CORRECTION = int(InteractionType.CONSUMED), int(InteractionType.CORRECTION)
_PREDICT, _CLOSED = int(InteractionType.PREDICT), int(InteractionType.CLOSED)
_ZERO = np.float32(0)


@embedded
def interaction(m: StepContext, c: InteractionColumns, j: int, at: int, step: int) -> Interaction:
    """Return interaction j; `at` is its row of `Scratch.told`."""
    role, o = int(c.role[j]), as_index(c.outcome[j])
    treated = role == _FACTUAL or role == _EXPOSED or role == _CORRECTION or role == SYNTHETIC
    head = 0 if role == _FACTUAL or role == _CONSUMED else 1
    position = as_index(min(max(int(c.position[j]), 1), m.terms.position.shape[0]) - 1)
    return Interaction(
        j,
        at,
        step,
        as_index(c.user[j]),
        as_index(c.item[j]),
        o,
        role,
        c.label[j],
        m.outcomes.logit[o],
        position,
        head,
        treated,
    )


@embedded
def learns(role: int) -> bool:
    """Return whether an interaction of that role changes more than counts of exposures."""
    return role != _PREDICT and role != _CLOSED


@embedded
def closes(m: StepContext, c: InteractionColumns, e: Interaction) -> bool:
    """Return whether the interaction closes the window of an exposure."""
    unanswered = e.role == _EXPOSED and e.logit and e.label == 0 and not c.counts[e.j]
    return bool(m.on.live and (e.role == _CLOSED or unanswered))


class Observation(NamedTuple):
    """What an interaction teaches, besides the errors in scratch."""

    exposing: bool  # whether it teaches the long-term exposure factors
    session: bool  # whether it teaches the session factors
    miss: np.float32  # derivative of the loss of the factual head
    lin0: np.float32  # score of a control outcome


@embedded
def observe(
    m: StepContext, c: InteractionColumns, s: Scratch, e: Interaction, f: Score, out: Predictions
) -> Observation:
    """Write the errors of an interaction to scratch, where its composed rows are."""
    lin0 = expect(m, s, e, f, out) if e.role == _CONTROL else _ZERO
    exposing = exposure.exposes(m, c, e)
    session = exposing and m.on.live and m.at.user.S > 0  # a replay has no session
    exposure.contrasts(m, s, e, f.z, exposing)
    if session:
        exposure.add_moment(m, s, e.u)
    if exposing and m.on.live:
        exposure.moment(m, s, e, session)
    for p in range(1 + m.at.pairs):
        s.error[p] = _ZERO
    miss = learn_outcome(m, c, s, e, f, out) if e.treated else _ZERO
    return Observation(exposing, session, miss, lin0)
