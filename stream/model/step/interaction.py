"""One interaction up to its errors: what every driver computes before any row is updated."""

from typing import NamedTuple

import numpy as np

from stream.compiled import embedded
from stream.model.step import exposure
from stream.model.step.lanes import place
from stream.model.step.names import Columns, Event, Model, Predictions, Scratch
from stream.model.step.outcome import learn_outcome
from stream.model.step.score import Score, expect
from stream.roles import SYNTHETIC, Role

_FACTUAL, _EXPOSED, _CONTROL = int(Role.FACTUAL), int(Role.EXPOSED), int(Role.CONTROL)
_CONSUMED, _CORRECTION = int(Role.CONSUMED), int(Role.CORRECTION)
_PREDICT, _CLOSED = int(Role.PREDICT), int(Role.CLOSED)
_ZERO = np.float32(0)


@embedded
def interaction(m: Model, c: Columns, j: int, at: int, step: int) -> Event:
    """Return interaction j; `at` is its row of `Scratch.told`."""
    role, o = int(c.role[j]), place(c.outcome[j])
    treated = role == _FACTUAL or role == _EXPOSED or role == _CORRECTION or role == SYNTHETIC
    head = 0 if role == _FACTUAL or role == _CONSUMED else 1
    position = place(min(max(int(c.position[j]), 1), m.terms.place.shape[0]) - 1)
    return Event(
        j, at, step, place(c.user[j]), place(c.item[j]), o, role, c.label[j], m.outcomes.logit[o],
        position, head, treated,
    )  # fmt: skip


@embedded
def learns(role: int) -> bool:
    """Return whether an interaction of that role changes more than counts of exposures."""
    return role != _PREDICT and role != _CLOSED


@embedded
def closes(m: Model, c: Columns, e: Event) -> bool:
    """Return whether the interaction closes the window of an exposure."""
    unanswered = e.role == _EXPOSED and e.logit and e.label == 0 and not c.counts[e.j]
    return bool(m.on.live and (e.role == _CLOSED or unanswered))


class Seen(NamedTuple):
    """What an interaction teaches, besides the errors in scratch."""

    exposing: bool  # whether it teaches the long-term exposure factors
    session: bool  # whether it teaches the session factors
    miss: np.float32  # derivative of the loss of the factual head
    lin0: np.float32  # score of a control outcome


@embedded
def observe(m: Model, c: Columns, s: Scratch, e: Event, f: Score, out: Predictions) -> Seen:
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
    return Seen(exposing, session, miss, lin0)
