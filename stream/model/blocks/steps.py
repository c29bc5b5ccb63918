"""One step of an item or attribute value from the sum of its gradients.

The accumulator grows by the sum of squares, as one interaction after the other would make it. The
step divides by what the square of the sum would give: the same for a row that comes once, and never
above the rate for a row that comes a thousand times with one opinion.
"""

import math

import numpy as np

from stream.compiled import embedded
from stream.model.blocks import sums
from stream.model.blocks.advance import advance
from stream.model.blocks.names import TILE, Block, Groups, Work
from stream.model.blocks.sums import EXPO, SESSION, TOUCHED, TREATED_SUM, VECTOR
from stream.model.layout import Layout
from stream.model.step.compose import linked, share, width
from stream.model.step.lanes import ends, inside, meet, place, square, strides
from stream.model.step.names import Array
from stream.model.step.rows import Part, expo_part, session_part, vector_part

_ONE, _ZERO = np.float32(1), np.float32(0)


@embedded
def step_part(w: Work, table: Array, row: int, part: Part, squares: np.float32) -> None:
    """Take the step of one vector; `squares` is the sum of its gradients' mean squares."""
    lane, g = w.m.lane, w.hands.sum
    if squares > 0:
        held = table[row, part.total]
        rate = part.lr / np.float32(math.sqrt(held + square(g, part.at, part.size, lane)))
        keep = _ONE - rate * part.shrink
        meet(lane)
        if lane.own == 0:
            table[row, part.total] = held + squares
        for stride in range(strides(part.size, lane)):
            d = stride * lane.all + lane.own
            if inside(d, part.size, lane):
                at = part.first + d
                table[row, at] = keep * table[row, at] - rate * g[part.at + d]


@embedded
def step_vectors(
    w: Work, table: Array, row: int, at: Layout, lr: np.float32, shrink: np.float32
) -> None:
    """Take the steps of the row's three vectors."""
    r, first = w.m.rates, sums.scalars_of(at)
    g = w.hands.sum
    step_part(w, table, row, vector_part(at, lr, shrink), g[first + VECTOR])
    step_part(w, table, row, expo_part(at, r.exposure, shrink), g[first + EXPO])
    step_part(w, table, row, session_part(at, r.session, shrink), g[first + SESSION])


@embedded
def step_bias_sum(
    w: Work, table: Array, row: int, at: Layout, c: int, lr: np.float32, shrink: np.float32
) -> None:
    """Take the step of one bias."""
    g, squares = w.hands.sum[at.bias + c], w.hands.sum[width(at) + c]
    if squares > 0:
        held = table[row, at.bias_sum + c]
        rate = lr / np.float32(math.sqrt(held + g * g))
        value = table[row, at.bias + c]
        table[row, at.bias + c] = value - rate * (g + shrink * value)
        table[row, at.bias_sum + c] = held + squares


@embedded
def average_sum(w: Work, table: Array, bits: Array, row: int, at: Layout) -> None:
    """Move the served means towards the row as often as its vector was touched."""
    lane, touched = w.m.lane, w.hands.sum[sums.scalars_of(at) + TOUCHED]
    if touched > 0:
        meet(lane)
        count = np.float32(bits[row, at.events] + np.uint32(1))
        rate = max(_ONE - np.float32(w.m.rates.keep**touched), _ONE / count)
        for d in range(lane.own, ends(0, at.D, lane), lane.all):
            table[row, at.mean + d] += rate * (table[row, at.vector + d] - table[row, at.mean + d])
        for o in range(lane.own, ends(0, at.Y, lane), lane.all):
            away = table[row, at.bias + o] - table[row, at.mean_bias + o]
            table[row, at.mean_bias + o] += rate * away


@embedded
def sum_tile(w: Work, b: Block, tile: int) -> None:
    """Leave the sum of a tile of an item's occurrences."""
    g = w.order.segments
    segment = g.tile[tile]
    first = g.start[segment] + TILE * (tile - g.tiles[segment])
    sums.clear(w)
    for k in range(first, min(first + TILE, g.start[segment + 1])):
        sums.add_occurrence(w, b, place(g.members[k]))
    sums.keep(w, w.room.segment_part, tile - b.segment_tile, 0)


@embedded
def add_tiles(w: Work, groups: Groups, group: int, parts: Array, first: int) -> None:
    """Add the sums of a group's tiles, in their order."""
    many = (groups.start[group + 1] - groups.start[group] + TILE - 1) // TILE
    for t in range(groups.tiles[group], groups.tiles[group] + many):
        sums.add_row(w, parts, t - first)


@embedded
def step_segment(w: Work, b: Block, segment: int) -> None:
    """The item of a segment advances and takes its step."""
    m, groups = w.m, w.order.segments
    i, at, r = place(groups.row[segment]), m.at.item, m.rates
    sums.clear(w)
    if groups.tiles[segment] >= 0:
        add_tiles(w, groups, segment, w.room.segment_part, b.segment_tile)
    else:
        for k in range(place(groups.start[segment]), groups.start[segment + 1]):
            sums.add_occurrence(w, b, place(groups.members[k]))
    meet(m.lane)
    advance(w, b, segment)
    meet(m.lane)
    step_vectors(w, m.tables.items, i, at, r.item_factor, r.shrink)
    for c in range(m.lane.own, ends(0, at.C, m.lane), m.lane.all):
        if c >= 3 * at.Y:
            step_bias_sum(w, m.tables.items, i, at, c, r.exposure_bias, _ZERO)
        elif c < at.Y or c >= 2 * at.Y:  # the control arm's advanced
            step_bias_sum(w, m.tables.items, i, at, c, r.item_bias, r.shrink)
    if at.mean >= 0:
        average_sum(w, m.tables.items, m.tables.item_bits, i, at)
    if w.room.composed.shape[0] > 0:
        n = linked(m.tables.item_links, i)
        if n > 0:
            sums.keep(w, w.room.segment_sum, segment - b.segment, n)
    meet(m.lane)


@embedded
def add_source(w: Work, b: Block, f: int, source: int) -> None:
    """Add what a link of attribute value f hands on: its user's or its item's sum."""
    t, most = w.m.tables, w.m.tables.item_links.shape[1]
    group, k = source // most, source % most
    chain, weight_at = group // 2, sums.scalars_of(w.m.at.item) + sums.LINK
    if group % 2 == 0:
        at, value = place(chain - b.chain), t.user_values[place(w.order.chains.row[chain]), k]
        x = share(t.features, f, w.m.at.feature, value, w.room.chain_sum[at, weight_at])
        sums.add_scaled(w, w.room.chain_sum, at, x)
    else:
        at, value = place(chain - b.segment), t.item_values[place(w.order.segments.row[chain]), k]
        x = share(t.features, f, w.m.at.feature, value, w.room.segment_sum[at, weight_at])
        sums.add_scaled(w, w.room.segment_sum, at, x)


@embedded
def sum_value_tile(w: Work, b: Block, tile: int) -> None:
    """Leave the sum of a tile of an attribute value's links."""
    g = w.order.values
    value = g.tile[tile]
    first = g.start[value] + TILE * (tile - g.tiles[value])
    sums.clear(w)
    for k in range(first, min(first + TILE, g.start[value + 1])):
        add_source(w, b, place(g.row[value]), place(g.members[k]))
    sums.keep(w, w.room.value_part, tile - b.value_tile, 0)


@embedded
def step_value(w: Work, b: Block, value: int) -> None:
    """The attribute value takes its step."""
    m, groups = w.m, w.order.values
    f, at, r = place(groups.row[value]), m.at.feature, m.rates
    sums.clear(w)
    if groups.tiles[value] >= 0:
        add_tiles(w, groups, value, w.room.value_part, b.value_tile)
    else:
        for k in range(place(groups.start[value]), groups.start[value + 1]):
            add_source(w, b, f, place(groups.members[k]))
    meet(m.lane)
    step_vectors(w, m.tables.features, f, at, r.feature_factor, _ZERO)
    for c in range(m.lane.own, ends(0, at.C, m.lane), m.lane.all):
        lr = r.exposure if c >= 3 * at.Y else r.feature_bias
        step_bias_sum(w, m.tables.features, f, at, c, lr, _ZERO)
    treated = w.hands.sum[sums.scalars_of(at) + TREATED_SUM]
    if m.on.live and m.lane.own == 0:
        m.tables.feature_bits[f, at.events] += np.uint32(treated)
    if at.mean >= 0:
        average_sum(w, m.tables.features, m.tables.feature_bits, f, at)
    meet(m.lane)
