"""The sequential driver: one interaction after the other, on one core.

Nothing here looks beyond the current interaction, so the division of a stream into batches does not
matter.
"""

import functools
from typing import Any

import numpy as np

from stream.bare import bare
from stream.compiled import compiled, embedded
from stream.interaction_type import InteractionType
from stream.model import scalars as sc
from stream.model.step import account, control, popularity
from stream.model.step.compose import compose_item, compose_user, link_weight, share
from stream.model.step.exposure import compose_pairs
from stream.model.step.interaction import Observation, closes, interaction, learns, observe
from stream.model.step.lanes import as_index, square
from stream.model.step.link import sigmoid
from stream.model.step.names import (
    Given,
    Interaction,
    InteractionColumns,
    Lane,
    Layouts,
    Predictions,
    Scratch,
    StepContext,
)
from stream.model.step.rows import VectorPart, step_bias, step_vector
from stream.model.step.score import Score, expect, shown
from stream.model.step.update import (
    count_user_links,
    follow,
    step_item,
    step_user,
    step_user_links,
    user_gradient,
)

_PREDICT, _CLOSED, _CONTROL = (
    int(InteractionType.PREDICT),
    int(InteractionType.CLOSED),
    int(InteractionType.CONTROL),
)
_ONE, _ZERO = np.float32(1), np.float32(0)


@embedded
def count(m: StepContext, c: InteractionColumns, told: Any, e: Interaction, f: Score) -> None:
    """Count an accepted click or rating in its user and its item."""
    t, au, ai = m.tables, m.at.user, m.at.item
    told[account.NEW_USER] = 1.0 if t.user_bits[e.u, au.events] == 0 else 0.0
    told[account.NEW_ITEM] = 1.0 if t.item_bits[e.i, ai.events] == 0 else 0.0
    t.user_bits[e.u, au.events] += np.uint32(1)
    popularity.count_interaction(m, e.i, f.decayed_count, c.ts_s[e.j])


@embedded
def learn_control(
    m: StepContext, s: Scratch, e: Interaction, seen: Observation, score: Score, n: int
) -> None:
    """Update the control arm by a control outcome."""
    t, au, ai, af, r = m.tables, m.at.user, m.at.item, m.at.feature, m.rates
    lin0 = control.start(m, s, e, score, seen.lin0)
    off = sigmoid(lin0) - e.label if e.logit else lin0 - e.label
    if m.on.live:
        control.tell_control(m, s.told[e.at], e, score, lin0)
        t.user_bits[e.u, au.controls] += np.uint32(1)
        t.item_bits[e.i, ai.controls] += np.uint32(1)
    c = ai.Y + e.o
    own = t.items[e.i, ai.bias + c]
    treated = s.items[0, ai.bias + e.o] - (s.items[0, ai.bias + c] - own)
    step_bias(t.users, e.u, au, c, off, r.user_bias, _ZERO)
    control.step_control_bias(m, e.i, c, off, treated)
    weight = link_weight(n)
    for k in range(n):
        f = as_index(t.user_links[e.u, k] - 1)
        x = share(t.features, f, af, t.user_values[e.u, k], weight)
        step_bias(t.features, f, af, c, off * x, r.feature_bias, _ZERO)
    for k in range(s.links[0]):
        f = as_index(t.item_links[e.i, k] - 1)
        x = share(t.features, f, af, t.item_values[e.i, k], s.weight[0])
        step_bias(t.features, f, af, c, off * x, r.feature_bias, _ZERO)
    shrinkage = control.control_shrinkage(m, e.i)
    for d in range(ai.D):
        tied = t.items[e.i, ai.control + d] - t.items[e.i, ai.vector + d]
        s.grad[d] = off * s.user[d] + shrinkage * tied
    size = square(s.grad, 0, ai.D, m.lane)
    part = VectorPart(ai.control, 0, ai.D, ai.control_sum, r.item_factor, _ZERO)
    step_vector(t.items, e.i, part, s.grad, _ONE, size, m.lane)


@embedded
def learn_one(
    m: StepContext, c: InteractionColumns, s: Scratch, out: Predictions, e: Interaction
) -> None:
    """Predict the interaction, then learn it if its role teaches anything."""
    if closes(m, c, e):
        m.tables.user_bits[e.u, m.at.user.exposures] += np.uint32(1)
        m.tables.item_bits[e.i, m.at.item.exposures] += np.uint32(1)
    if e.role == _CLOSED:
        return
    told = s.told[e.at]
    n = compose_user(m, s, e.u)
    compose_item(m, s, 0, e.i)
    f = shown(m, c, s, e)
    if e.role == _PREDICT:
        expect(m, s, e, f, out)
        return
    account.begin(told, e, True)
    counts = m.on.live and c.counts[e.j]
    if counts:
        count(m, c, told, e, f)
    compose_pairs(m, c, s, e.j)
    seen = observe(m, c, s, e, f, out)
    if m.on.live and e.treated and (e.position == 0 or not e.logit):
        popularity.update_item_means(m, e.i, e.o, e.label, f.q, told)
    if e.role == _CONTROL and m.on.control:
        learn_control(m, s, e, seen, f, n)
    push = user_gradient(m, s, seen)
    step_user(m, s, e, seen, push)
    step_user_links(m, s, e, seen, push, n)
    step_item(m, s, e, seen, 0, e.i)
    for p in range(1, 1 + m.at.pairs):
        if c.pair[e.j, p - 1] >= 0:
            step_item(m, s, e, seen, p, as_index(c.pair[e.j, p - 1]))
    if e.treated:
        count_user_links(m, e.u, n)
    if counts:
        follow(m, s, e.u)
    if m.on.live:
        account.collect(m, told)


@functools.cache
def sequential(at: Layouts) -> Any:
    """Return the driver compiled for rows of these layouts."""
    lane = Lane(0, 1)

    def learn(given: Given, scratch: Scratch, out: Predictions, sum_half_life: float) -> None:
        c, s, out = bare(given.columns), bare(scratch), bare(out)
        on = given.on
        terms, outcomes = bare(given.terms), bare(given.outcomes)
        m = StepContext(at, lane, bare(given.tables), terms, outcomes, given.rates, on)
        steps = m.terms.counters
        for j in range(c.user.size):
            e = interaction(m, c, j, 0, steps[sc.STEPS])
            learn_one(m, c, s, out, e)
            if on.live and learns(e.role):
                steps[sc.STEPS] += 1
                if sc.is_update_point(steps[sc.STEPS]):
                    sc.refresh(m.terms, sum_half_life)

    return compiled(learn, error_model="numpy")
