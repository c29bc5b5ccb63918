"""One Adagrad step of every row that an interaction touches."""

from typing import NamedTuple

import numpy as np

from stream.compiled import embedded
from stream.model.step.compose import link_weight, share
from stream.model.step.interaction import Observation
from stream.model.step.lanes import as_index, ends, inside, square, strides
from stream.model.step.names import Interaction, Scratch, StepContext
from stream.model.step.rows import (
    average,
    exposure_part,
    session_part,
    step_bias,
    step_vector,
    vector_part,
)

_ONE, _ZERO = np.float32(1), np.float32(0)


class Push(NamedTuple):
    """Mean squares of the gradients of a row's vectors, and the error of its outcome bias."""

    vector: np.float32
    exposure: np.float32
    session: np.float32
    error: np.float32


@embedded
def push_of(m: StepContext, s: Scratch, seen: Observation, p: int) -> np.float32:
    """Return what pushes the vectors of the target (p 0) or a pair and of its user."""
    corrected_share = m.rates.corrected_share
    return (
        corrected_share * s.error[p] + (_ONE - corrected_share) * seen.miss
        if p == 0
        else corrected_share * s.error[p]
    )


@embedded
def user_gradient(m: StepContext, s: Scratch, seen: Observation) -> Push:
    """Write the gradient of the user's vectors to scratch."""
    at = m.at.user
    error, push = s.error[0], push_of(m, s, seen, 0)
    for d in range(at.vector + m.lane.own, ends(at.vector, at.D, m.lane), m.lane.all):
        s.grad[d] = push * s.items[0, d]
    for d in range(at.exposure + m.lane.own, ends(at.exposure, at.E + at.S, m.lane), m.lane.all):
        s.grad[d] = (s.contrast[0] if d < at.session else s.session[0]) * s.items[0, d]
    for p in range(1, 1 + m.at.pairs):
        if s.error[p] != 0:
            error += s.error[p]
            push = push_of(m, s, seen, p)
            for d in range(at.vector + m.lane.own, ends(at.vector, at.D, m.lane), m.lane.all):
                s.grad[d] += push * s.items[p, d]
        if seen.exposing:
            for d in range(
                at.exposure + m.lane.own, ends(at.exposure, at.E + at.S, m.lane), m.lane.all
            ):
                s.grad[d] += (s.contrast[p] if d < at.session else s.session[p]) * s.items[p, d]
    return Push(
        square(s.grad, at.vector, at.D, m.lane), square(s.grad, at.exposure, at.E, m.lane),
        square(s.grad, at.session, at.S, m.lane), error,
    )  # fmt: skip


@embedded
def step_user(m: StepContext, s: Scratch, e: Interaction, seen: Observation, push: Push) -> None:
    """Update the user's own row."""
    users, at, r = m.tables.users, m.at.user, m.rates
    if e.treated:
        part = vector_part(at, r.user_factor, r.shrink)
        step_vector(users, e.u, part, s.grad, _ONE, push.vector, m.lane)
        if m.lane.own == 0:
            step_bias(users, e.u, at, e.o, push.error, r.user_bias, r.shrink)
            step_bias(users, e.u, at, 2 * at.Y + e.o, seen.miss, r.user_bias, r.shrink)
    if seen.exposing:
        part = exposure_part(at, r.exposure, r.shrink)
        step_vector(users, e.u, part, s.grad, _ONE, push.exposure, m.lane)
    if seen.session:
        part = session_part(at, r.session, r.shrink)
        step_vector(users, e.u, part, s.grad, _ONE, push.session, m.lane)


@embedded
def follow(m: StepContext, s: Scratch, u: int) -> None:
    """Update r_u, the running mean of t' of the user's latest items, by the target."""
    users, at = m.tables.users, m.at.user
    for stride in range(strides(at.S, m.lane)):
        d = stride * m.lane.all + m.lane.own
        if inside(d, at.S, m.lane):
            held = users[u, at.recent + d]
            users[u, at.recent + d] = held + m.rates.recent * (s.items[0, at.session + d] - held)


@embedded
def step_user_links(
    m: StepContext, s: Scratch, e: Interaction, seen: Observation, push: Push, n: int
) -> None:
    """Update the user's n attribute values."""
    t, af, r = m.tables, m.at.feature, m.rates
    weight = link_weight(n)
    for k in range(n):
        f = as_index(t.user_links[e.u, k] - 1)
        x = share(t.features, f, af, t.user_values[e.u, k], weight)
        if e.treated:
            part = vector_part(af, r.feature_factor, _ZERO)
            step_vector(t.features, f, part, s.grad, x, push.vector, m.lane)
            step_bias(t.features, f, af, e.o, push.error * x, r.feature_bias, _ZERO)
            step_bias(t.features, f, af, 2 * af.Y + e.o, seen.miss * x, r.feature_bias, _ZERO)
        if seen.exposing:
            part = exposure_part(af, r.exposure, _ZERO)
            step_vector(t.features, f, part, s.grad, x, push.exposure, m.lane)
        if seen.session:
            part = session_part(af, r.session, _ZERO)
            step_vector(t.features, f, part, s.grad, x, push.session, m.lane)


@embedded
def item_gradient(m: StepContext, s: Scratch, e: Interaction, seen: Observation, p: int) -> Push:
    """Write the gradient of the vectors of the target (p = 0) or of a uniform item to scratch."""
    at, push = m.at.item, push_of(m, s, seen, p)
    for d in range(at.vector + m.lane.own, ends(at.vector, at.D, m.lane), m.lane.all):
        s.grad[d] = push * s.user[d]
    for d in range(at.exposure + m.lane.own, ends(at.exposure, at.E + at.S, m.lane), m.lane.all):
        s.grad[d] = (s.contrast[p] if d < at.session else s.session[p]) * s.user[d]
    return Push(
        square(s.grad, at.vector, at.D, m.lane), square(s.grad, at.exposure, at.E, m.lane),
        square(s.grad, at.session, at.S, m.lane), s.error[p],
    )  # fmt: skip


@embedded
def step_item(
    m: StepContext, s: Scratch, e: Interaction, seen: Observation, p: int, i: int
) -> None:
    """Update item i, the target (p = 0) or a uniform item, and its attribute values."""
    items, at, r = m.tables.items, m.at.item, m.rates
    push = item_gradient(m, s, e, seen, p)
    if s.error[p] != 0:
        part = vector_part(at, r.item_factor, r.shrink)
        step_vector(items, i, part, s.grad, _ONE, push.vector, m.lane)
        step_bias(items, i, at, e.o, s.error[p], r.item_bias, r.shrink)
    if s.contrast[p] != 0:
        part = exposure_part(at, r.exposure, r.shrink)
        step_vector(items, i, part, s.grad, _ONE, push.exposure, m.lane)
        step_bias(items, i, at, 3 * at.Y + e.head, s.contrast[p], r.exposure_bias, _ZERO)
    if seen.session:
        part = session_part(at, r.session, r.shrink)
        step_vector(items, i, part, s.grad, _ONE, push.session, m.lane)
    if p == 0 and e.treated:
        step_bias(items, i, at, 2 * at.Y + e.o, seen.miss, r.item_bias, r.shrink)
    if at.mean >= 0 and s.error[p] != 0:
        average(items, m.tables.item_bits, i, at, r.keep, m.lane)
    step_item_links(m, s, e, seen, push, p, i)


@embedded
def step_item_links(
    m: StepContext, s: Scratch, e: Interaction, seen: Observation, push: Push, p: int, i: int
) -> None:
    """Update the attribute values of item i."""
    t, af, r = m.tables, m.at.feature, m.rates
    for k in range(s.links[p]):
        f = as_index(t.item_links[i, k] - 1)
        x = share(t.features, f, af, t.item_values[i, k], s.weight[p])
        if s.error[p] != 0:
            part = vector_part(af, r.feature_factor, _ZERO)
            step_vector(t.features, f, part, s.grad, x, push.vector, m.lane)
            step_bias(t.features, f, af, e.o, s.error[p] * x, r.feature_bias, _ZERO)
        if s.contrast[p] != 0:
            part = exposure_part(af, r.exposure, _ZERO)
            step_vector(t.features, f, part, s.grad, x, push.exposure, m.lane)
            step_bias(t.features, f, af, 3 * af.Y + e.head, s.contrast[p] * x, r.exposure, _ZERO)
        if seen.session:
            part = session_part(af, r.session, _ZERO)
            step_vector(t.features, f, part, s.grad, x, push.session, m.lane)
        if p == 0 and e.treated:
            step_bias(t.features, f, af, 2 * af.Y + e.o, seen.miss * x, r.feature_bias, _ZERO)
            if m.on.live:
                t.feature_bits[f, af.events] += np.uint32(1)
        if af.mean >= 0 and s.error[p] != 0:
            average(t.features, t.feature_bits, f, af, r.keep, m.lane)


@embedded
def count_user_links(m: StepContext, u: int, n: int) -> None:
    """Count the interaction in the user's attribute values, and update their served means."""
    t, af = m.tables, m.at.feature
    for k in range(n):
        f = as_index(t.user_links[u, k] - 1)
        if m.on.live:
            t.feature_bits[f, af.events] += np.uint32(1)
        if af.mean >= 0:
            average(t.features, t.feature_bits, f, af, m.rates.keep, m.lane)
