"""The first phase of a block: each user's interactions are learned in order on the exact row."""

import numpy as np

from stream.compiled import embedded
from stream.interaction_type import InteractionType
from stream.model.blocks import sums
from stream.model.blocks.folded import fold, move
from stream.model.blocks.names import (
    CLICKS,
    CLOSES,
    CONTROLS,
    COUNTS,
    HEAD,
    OUTCOME,
    REMEMBERS,
    TREATED,
    BlockBounds,
    Work,
)
from stream.model.step import account
from stream.model.step.compose import add_links, link_count, link_weight, own_parts, width
from stream.model.step.control import first_score, tell_control
from stream.model.step.interaction import Observation, closes, interaction, observe
from stream.model.step.lanes import as_index, ends, meet, padded, product, square
from stream.model.step.link import sigmoid
from stream.model.step.names import Interaction
from stream.model.step.rows import step_bias
from stream.model.step.score import Score, expect, shown
from stream.model.step.update import follow, push_of, step_user, user_gradient

_PREDICT, _CLOSED, _CONTROL = (
    int(InteractionType.PREDICT),
    int(InteractionType.CLOSED),
    int(InteractionType.CONTROL),
)
_ONE, _ZERO = np.float32(1), np.float32(0)


@embedded
def compose(w: Work, b: BlockBounds, segment: int) -> None:
    """Write the composed row of a segment's item."""
    t, i = w.m.tables, as_index(w.order.segments.row[segment])
    to = w.room.composed[segment - b.segment]
    n = link_count(t.item_links, i)
    own_parts(to, t.items, i, width(w.m.at.item), w.m.lane)
    add_links(to, w.m, t.item_links, t.item_values, i, n, link_weight(n))


@embedded
def fetch(w: Work, b: BlockBounds, j: int, p: int, i: int) -> None:
    """Write the composed row of item i, the target (p = 0) or a uniform item, to scratch."""
    m, s = w.m, w.s
    if w.room.composed.shape[0] > 0:
        at = as_index(w.order.segment[j * (1 + m.at.pairs) + p] - b.segment)
        own_parts(s.items[p], w.room.composed, at, width(m.at.item), m.lane)
    else:
        own_parts(s.items[p], m.tables.items, i, width(m.at.item), m.lane)
    if p == 0 and m.at.item.mean >= 0:
        s.links[0] = link_count(m.tables.item_links, i)
        s.weight[0] = link_weight(s.links[0])


@embedded
def fetch_user(w: Work, u: int, n: int) -> None:
    """Write the user's composed row to scratch: its exact row plus its attribute values' part."""
    m, s = w.m, w.s
    own_parts(s.user, m.tables.users, u, width(m.at.user), m.lane)
    if n > 0:
        for d in range(m.lane.own, ends(0, padded(width(m.at.user), m.lane), m.lane), m.lane.all):
            s.user[d] += w.hands.folded[d]


@embedded
def kind_of(w: Work, e: Interaction) -> int:
    """Return how the interaction affects its item, as flags."""
    kind = OUTCOME * e.o + HEAD * e.head
    if closes(w.m, w.c, e):
        kind += CLOSES
    if e.role == _PREDICT or e.role == _CLOSED:
        return kind
    if e.logit:
        kind += CLICKS
    if e.treated:
        kind += TREATED
    if w.m.on.live and w.c.counts[e.j]:
        kind += COUNTS
    if w.m.on.live and e.treated and (e.position == 0 or not e.logit):
        kind += REMEMBERS
    if e.role == _CONTROL and w.m.on.control:
        kind += CONTROLS
    return kind


@embedded
def count(w: Work, e: Interaction, kind: int) -> None:
    """Count the interaction in its user; only one lane calls it."""
    m, au = w.m, w.m.at.user
    bits = m.tables.user_bits
    if kind & CLOSES:
        bits[e.u, au.exposures] += np.uint32(1)
    if kind & COUNTS:
        w.s.told[e.at, account.NEW_USER] = 1.0 if bits[e.u, au.events] == 0 else 0.0
        bits[e.u, au.events] += np.uint32(1)
    if kind & CONTROLS and m.on.live:
        bits[e.u, au.controls] += np.uint32(1)


@embedded
def withhold(w: Work, e: Interaction, f: Score, lin0: np.float32) -> np.float32:
    """Handle the user's part of a control outcome: return its error, store the rest of its score.

    Before the item's first control outcome, its control row and bias are the treated ones.
    """
    m, s, room = w.m, w.s, w.room
    ai, items = m.at.item, m.tables.items
    c = ai.bias + ai.Y + e.o
    own = items[e.i, c]
    held = product(s.user, items[e.i, ai.control :], 0, ai.D, m.lane)
    if items[e.i, ai.control_sum] == 0:
        lin0 = first_score(m, s, e, f)
        own = s.items[0, ai.bias + e.o] - (s.items[0, c] - own)
        held = product(s.user, items[e.i], ai.vector, ai.D, m.lane)
    if m.lane.own == 0:
        room.rest[e.at] = lin0 - own - held
        if m.on.live:
            tell_control(m, s.told[e.at], e, f, lin0)
    return (sigmoid(lin0) if e.logit else lin0) - e.label


@embedded
def leave(w: Work, e: Interaction, seen: Observation, off: np.float32) -> None:
    """Store what the interaction contributes to its target, its uniform items and their values."""
    m, s, room, at = w.m, w.s, w.room, w.m.at.user
    for d in range(m.lane.own, ends(0, at.D + at.E + at.S, m.lane), m.lane.all):
        room.moment[e.at, d] = s.user[d]
    vector = square(s.user, at.vector, at.D, m.lane)
    exposure = square(s.user, at.exposure, at.E, m.lane)
    session = square(s.user, at.session, at.S, m.lane)
    if m.lane.own == 0:
        room.norm[e.at, 0], room.norm[e.at, 1], room.norm[e.at, 2] = vector, exposure, session
        room.miss[e.at], room.off[e.at] = seen.miss, off
        for p in range(1 + m.at.pairs):
            room.push[e.at, p] = push_of(m, s, seen, p)
            room.error[e.at, p] = s.error[p]
            room.contrast[e.at, p] = s.contrast[p]
            room.session[e.at, p] = s.session[p] if seen.session else _ZERO


@embedded
def learn(w: Work, b: BlockBounds, e: Interaction, kind: int, n: int) -> None:
    """Learn one interaction on the user's side: predict, store the errors, update the user."""
    m, c, s = w.m, w.c, w.s
    fetch_user(w, e.u, n)
    fetch(w, b, e.j, 0, e.i)
    for p in range(1, 1 + m.at.pairs):  # early, to hide the memory latency
        if c.pair[e.j, p - 1] >= 0:
            fetch(w, b, e.j, p, as_index(c.pair[e.j, p - 1]))
    meet(m.lane)
    f = shown(m, c, s, e)
    if e.role == _PREDICT:
        expect(m, s, e, f, w.out)
        return
    if m.lane.own == 0:
        account.begin(s.told[e.at], e, True)
        count(w, e, kind)
    meet(m.lane)
    seen = observe(m, c, s, e, f, w.out)
    off = withhold(w, e, f, seen.lin0) if kind & CONTROLS else _ZERO
    leave(w, e, seen, off)
    push = user_gradient(m, s, seen)
    step_user(m, s, e, seen, push)
    if kind & CONTROLS and m.lane.own == 0:
        c0 = m.at.user.Y + e.o
        step_bias(m.tables.users, e.u, m.at.user, c0, off, m.rates.user_bias, _ZERO)
    if n > 0:
        sums.add_user(w, e, seen, push, off)
        move(w, e, seen, push, off, n)
    if m.on.live and c.counts[e.j]:
        follow(m, s, e.u)


@embedded
def walk(w: Work, b: BlockBounds, chain: int) -> None:
    """Learn a user's interactions of the block in order."""
    m, chains = w.m, w.order.chains
    u = as_index(chains.row[chain])
    n = fold(w, u)
    if n > 0:
        sums.clear(w)
    for k in range(as_index(chains.start[chain]), chains.start[chain + 1]):
        j = as_index(chains.members[k])
        e = interaction(m, w.c, j, as_index(j - b.event), w.c.step[j])
        kind = kind_of(w, e)
        if m.lane.own == 0:
            w.room.kind[e.at] = kind
        if e.role == _CLOSED or e.role == _PREDICT:
            sums.nothing(w, e)
        if e.role == _CLOSED:
            if m.lane.own == 0:
                count(w, e, kind)
        else:
            learn(w, b, e, kind, n)
        meet(m.lane)
    if n > 0:
        sums.keep(w, w.room.chain_sum, chain - b.chain, n)
