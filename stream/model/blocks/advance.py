"""What advances in order at an item: counts, popularity, running means, and its control row."""

import numpy as np

from stream.compiled import embedded
from stream.model.blocks.names import (
    CLICKS,
    CLOSES,
    CONTROLS,
    COUNTS,
    OUTCOME,
    REMEMBERS,
    BlockBounds,
    Work,
)
from stream.model.step import account, popularity
from stream.model.step.control import control_shrinkage, step_control_bias
from stream.model.step.lanes import as_index, ends, meet, product, square
from stream.model.step.link import sigmoid
from stream.model.step.rows import VectorPart, step_vector

_ONE, _ZERO = np.float32(1), np.float32(0)
_TARGETS = CLOSES | COUNTS | REMEMBERS | CONTROLS  # kinds that change the target item


@embedded
def tally(w: Work, i: int, k: int, kind: int, ts_s: int, label: np.float32) -> None:
    """Count interaction k in its item and update the running means; only one lane calls it."""
    m, ai, told = w.m, w.m.at.item, w.s.told[k]
    bits = m.tables.item_bits
    if kind & CLOSES:
        bits[i, ai.exposures] += np.uint32(1)
    if kind & CONTROLS and m.on.live:
        bits[i, ai.controls] += np.uint32(1)
    if kind & (COUNTS | REMEMBERS):
        decayed_count = popularity.decayed_count(m, i, ts_s)
        if kind & COUNTS:
            told[account.NEW_ITEM] = 1.0 if bits[i, ai.events] == 0 else 0.0
            popularity.count_interaction(m, i, decayed_count, ts_s)
        if kind & REMEMBERS:
            popularity.update_item_means(
                m, i, kind // OUTCOME, label, popularity.log_popularity(decayed_count), told
            )


@embedded
def attributes_part(w: Work, b: BlockBounds, segment: int) -> None:
    """Write what attribute values add to the item's control biases (Y,) to the worker's memory."""
    m, ai = w.m, w.m.at.item
    i = as_index(w.order.segments.row[segment])
    for c in range(m.lane.own, ends(0, ai.Y, m.lane), m.lane.all):
        own = ai.bias + ai.Y + c
        w.hands.folded[c] = _ZERO
        if w.room.composed.shape[0] > 0:
            w.hands.folded[c] = w.room.composed[segment - b.segment, own] - m.tables.items[i, own]


@embedded
def treated_bias(w: Work, b: BlockBounds, segment: int, i: int, o: int) -> np.float32:
    """Return the item's composed bias of outcome o at the block's beginning."""
    c = w.m.at.item.bias + o
    if w.room.composed.shape[0] > 0:
        return w.room.composed[segment - b.segment, c]
    return w.m.tables.items[i, c]


@embedded
def begin(w: Work, b: BlockBounds, segment: int, i: int) -> None:
    """Copy the treated row into the item's control row if it has none."""
    m, ai, items = w.m, w.m.at.item, w.m.tables.items
    if items[i, ai.control_sum] > 0:
        return
    meet(m.lane)
    for d in range(m.lane.own, ends(0, ai.D, m.lane), m.lane.all):
        items[i, ai.control + d] = items[i, ai.vector + d]
    if m.lane.own == 0:
        items[i, ai.control_sum] = m.rates.start
        for c in range(ai.Y):
            own = treated_bias(w, b, segment, i, c) - w.hands.folded[c]
            items[i, ai.bias + ai.Y + c] = own
    meet(m.lane)


@embedded
def withhold(w: Work, b: BlockBounds, segment: int, i: int, k: int) -> None:
    """Take one step of the item's control row by the control outcome at index k."""
    m, ai, room, r = w.m, w.m.at.item, w.room, w.m.rates
    items, kind = m.tables.items, room.kind[k]
    begin(w, b, segment, i)
    o = kind // OUTCOME
    c = ai.Y + o
    lin0 = room.rest[k] + items[i, ai.bias + c]
    lin0 += product(room.moment[k], items[i, ai.control :], 0, ai.D, m.lane)
    off = (sigmoid(lin0) if kind & CLICKS else lin0) - w.c.label[k + b.event]
    shrinkage = control_shrinkage(m, i)
    for d in range(m.lane.own, ends(0, ai.D, m.lane), m.lane.all):
        tied = items[i, ai.control + d] - items[i, ai.vector + d]
        w.s.grad[d] = off * room.moment[k, d] + shrinkage * tied
    size = square(w.s.grad, 0, ai.D, m.lane)
    meet(m.lane)
    if m.lane.own == 0:
        treated = treated_bias(w, b, segment, i, o) - w.hands.folded[o]
        step_control_bias(m, i, c, off, treated)
    part = VectorPart(ai.control, 0, ai.D, ai.control_sum, r.item_factor, _ZERO)
    step_vector(items, i, part, w.s.grad, _ONE, size, m.lane)
    meet(m.lane)


@embedded
def take(w: Work, b: BlockBounds, occurrence: int, lane: int) -> None:
    """Read an occurrence's effect on its item into the lane's slot."""
    each = 1 + w.m.at.pairs
    j = occurrence // each
    k, h = as_index(j - b.event), w.hands
    h.at[lane] = -1
    if occurrence == j * each and w.room.kind[k] & _TARGETS:
        h.at[lane], h.kind[lane] = k, w.room.kind[k]
        h.ts_s[lane], h.label[lane] = w.c.ts_s[j], w.c.label[j]


@embedded
def advance(w: Work, b: BlockBounds, segment: int) -> None:
    """Advance the item of a segment through the interactions of which it is the target, in order.

    As many occurrences as there are lanes are read at once, to hide the memory latency.
    """
    lane, h, segments = w.m.lane, w.hands, w.order.segments
    i, stop = as_index(segments.row[segment]), segments.start[segment + 1]
    attributes_part(w, b, segment)
    for first in range(as_index(segments.start[segment]), stop, lane.all):
        if first + lane.own < stop:
            take(w, b, as_index(segments.members[first + lane.own]), lane.own)
        meet(lane)
        for at in range(min(lane.all, stop - first)):
            if h.at[at] >= 0:
                if lane.own == 0:
                    tally(w, i, as_index(h.at[at]), h.kind[at], h.ts_s[at], h.label[at])
                if h.kind[at] & CONTROLS:
                    meet(lane)
                    withhold(w, b, segment, i, as_index(h.at[at]))
        meet(lane)
