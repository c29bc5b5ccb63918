"""One step of an item or attribute value from the sum of its gradients in a block.

    value <- value - lr G / sqrt(S + m(G)),   then   S <- S + sum m(g_k)

The accumulator S grows as if the interactions came one by one. Including the square of the sum G
under the root gives the sequential step for a row that occurs once, and bounds the step by the
learning rate for a row that occurs a thousand times with similar gradients (docs/model.md, Blocks).
"""

from typing import NamedTuple

import numpy as np

from stream.compiled import embedded
from stream.model.blocks import sums
from stream.model.blocks.advance import advance
from stream.model.blocks.names import TILE, BlockBounds, Groups, Work
from stream.model.blocks.sums import EXPOSURE, SESSION, TOUCHED, TREATED_SUM, VECTOR
from stream.model.layout import Layout
from stream.model.step.compose import link_count, share, width
from stream.model.step.lanes import as_index, ends, meet, square
from stream.model.step.names import Array
from stream.model.step.rows import (
    Step,
    VectorPart,
    average,
    exposure_part,
    move_bias,
    move_vector,
    rate_of,
    session_part,
    vector_part,
)

_ONE, _ZERO = np.float32(1), np.float32(0)


class Span(NamedTuple):
    """Members of one group, of an item's or else of an attribute value's."""

    of_items: bool
    first: int
    stop: int


@embedded
def step_part(w: Work, table: Array, row: int, part: VectorPart, squares: np.float32) -> None:
    """Take the step of one vector; `squares` is the sum of its gradients' mean squares."""
    lane, g = w.m.lane, w.hands.sum
    if squares > 0:
        held = table[row, part.total]
        rate = rate_of(part.lr, held + square(g, part.at, part.size, lane))
        move_vector(table, row, part, g, Step(rate, _ONE, held + squares), lane)


@embedded
def step_vectors(
    w: Work, table: Array, row: int, at: Layout, lr: np.float32, shrink: np.float32
) -> None:
    """Take the steps of the row's three vectors."""
    r, first = w.m.rates, sums.scalars_of(at)
    g = w.hands.sum
    step_part(w, table, row, vector_part(at, lr, shrink), g[first + VECTOR])
    step_part(w, table, row, exposure_part(at, r.exposure, shrink), g[first + EXPOSURE])
    step_part(w, table, row, session_part(at, r.session, shrink), g[first + SESSION])


@embedded
def step_bias_sum(
    w: Work, table: Array, row: int, at: Layout, c: int, lr: np.float32, shrink: np.float32
) -> None:
    """Take the step of one bias."""
    g, squares = w.hands.sum[at.bias + c], w.hands.sum[width(at) + c]
    if squares > 0:
        held = table[row, at.bias_sum + c]
        step = Step(rate_of(lr, held + g * g), _ONE, held + squares)
        move_bias(table, row, at, c, g, step, shrink)


@embedded
def average_sum(w: Work, table: Array, bits: Array, row: int, at: Layout) -> None:
    """Move the served means towards the row, once for all updates of its factors in the block."""
    touched = w.hands.sum[sums.scalars_of(at) + TOUCHED]
    if touched > 0:
        meet(w.m.lane)
        average(table, bits, row, at, np.float32(w.m.rates.keep**touched), w.m.lane)


@embedded
def add_source(w: Work, b: BlockBounds, f: int, source: int) -> None:
    """Add what a link of attribute value f contributes: the sum of its user or item."""
    t, most = w.m.tables, w.m.tables.item_links.shape[1]
    group, k = source // most, source % most
    chain, weight_at = group // 2, sums.scalars_of(w.m.at.item) + sums.LINK
    if group % 2 == 0:
        at, value = as_index(chain - b.chain), t.user_values[as_index(w.order.chains.row[chain]), k]
        x = share(t.features, f, w.m.at.feature, value, w.room.chain_sum[at, weight_at])
        sums.add_scaled(w, w.room.chain_sum, at, x)
    else:
        at, value = (
            as_index(chain - b.segment),
            t.item_values[as_index(w.order.segments.row[chain]), k],
        )
        x = share(t.features, f, w.m.at.feature, value, w.room.segment_sum[at, weight_at])
        sums.add_scaled(w, w.room.segment_sum, at, x)


@embedded
def add_members(w: Work, b: BlockBounds, g: Groups, group: int, span: Span) -> None:
    """Add the gradients of a span of the group's members."""
    for k in range(span.first, span.stop):
        if span.of_items:
            sums.add_occurrence(w, b, as_index(g.members[k]))
        else:
            add_source(w, b, as_index(g.row[group]), as_index(g.members[k]))


@embedded
def sum_tile(w: Work, b: BlockBounds, g: Groups, tile: int, of_items: bool) -> None:
    """Store the sum of one tile of a group."""
    group = g.tile[tile]
    first = as_index(g.start[group] + TILE * (tile - g.tiles[group]))
    sums.clear(w)
    add_members(w, b, g, group, Span(of_items, first, min(first + TILE, g.start[group + 1])))
    if of_items:
        sums.keep(w, w.room.segment_part, tile - b.segment_tile, 0)
    else:
        sums.keep(w, w.room.value_part, tile - b.value_tile, 0)


@embedded
def sum_group(w: Work, b: BlockBounds, g: Groups, group: int, of_items: bool) -> None:
    """Sum the gradients of an item or a value in this worker's scratch, tile after tile."""
    sums.clear(w)
    first, stop, tile = as_index(g.start[group]), g.start[group + 1], g.tiles[group]
    if tile < 0:
        add_members(w, b, g, group, Span(of_items, first, stop))
    else:
        for t in range(tile, tile + (stop - first + TILE - 1) // TILE):
            if of_items:
                sums.add_row(w, w.room.segment_part, t - b.segment_tile)
            else:
                sums.add_row(w, w.room.value_part, t - b.value_tile)
    meet(w.m.lane)


@embedded
def step_segment(w: Work, b: BlockBounds, segment: int) -> None:
    """Advance and update the item of a segment."""
    m, groups = w.m, w.order.segments
    i, at, r = as_index(groups.row[segment]), m.at.item, m.rates
    sum_group(w, b, groups, segment, True)
    advance(w, b, segment)
    meet(m.lane)
    step_vectors(w, m.tables.items, i, at, r.item_factor, r.shrink)
    for c in range(m.lane.own, ends(0, at.C, m.lane), m.lane.all):
        if c >= 3 * at.Y:
            step_bias_sum(w, m.tables.items, i, at, c, r.exposure_bias, _ZERO)
        elif c < at.Y or c >= 2 * at.Y:  # control biases were updated in `advance`
            step_bias_sum(w, m.tables.items, i, at, c, r.item_bias, r.shrink)
    if at.mean >= 0:
        average_sum(w, m.tables.items, m.tables.item_bits, i, at)
    if w.room.composed.shape[0] > 0:
        n = link_count(m.tables.item_links, i)
        if n > 0:
            sums.keep(w, w.room.segment_sum, segment - b.segment, n)
    meet(m.lane)


@embedded
def step_value(w: Work, b: BlockBounds, value: int) -> None:
    """Update the attribute value."""
    m, groups = w.m, w.order.values
    f, at, r = as_index(groups.row[value]), m.at.feature, m.rates
    sum_group(w, b, groups, value, False)
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
