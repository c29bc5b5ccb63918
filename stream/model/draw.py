"""Draws the uniform items of a batch, and lists the rows that it touches."""

from typing import NamedTuple

import numpy as np

from stream.bare import bare
from stream.compiled import compiled, embedded
from stream.interaction_type import InteractionType
from stream.model.kernels import Array, splitmix64
from stream.model.living import LISTED, LIVING, enlist, revive

PREDICT, CLOSED = int(InteractionType.PREDICT), int(InteractionType.CLOSED)


class Drawn(NamedTuple):
    """The columns of the batch (B,) that the draw depends on."""

    user: Array
    item: Array
    known: Array
    key: Array
    role: Array
    counts: Array


class SamplingState(NamedTuple):
    """What is kept between batches: the items that users saw, and the items that can be drawn."""

    history: Array  # (users, 1 + history) the next position, then a ring of items
    living: Array  # `Living.rows`, with its place and size
    list_index: Array
    size: Array
    mark_user: Array  # scratch, all 0 between calls
    mark_item: Array


class Touched(NamedTuple):
    """The outputs: the uniform items (B, P), and the distinct rows of the interactions."""

    pair: Array
    users: Array
    items: Array


@embedded
def remember(history: Array, user: int, item: int) -> None:
    """Add the item to the ring of items that the user saw."""
    at, size = history[user, 0], history.shape[1] - 1
    history[user, 1 + (at if at < size else at - size)] = item
    # values from `size` on mean that the ring is full; wrapping there avoids an overflow
    history[user, 0] = size if at + 1 == 2 * size else at + 1


@embedded
def draw_pairs(c: Drawn, m: SamplingState, j: int, pair: Array) -> None:
    """Write the uniform items of interaction j; -1 where it has none.

    A removed item is not drawn until an interaction of its own revives it.
    """
    counter = c.key[j]
    if m.size[LISTED] > 0:
        enlist(m.living, m.list_index, m.size, c.known[j])
        revive(m.living, m.list_index, m.size, c.item[j])
    for p in range(pair.size):
        pair[p] = -1
        if c.known[j] > 0 and c.role[j] != PREDICT and c.role[j] != CLOSED:
            counter = splitmix64(counter)
            if m.size[LISTED] > 0:
                pair[p] = m.living[counter % np.uint64(m.size[LIVING])]
            else:
                pair[p] = np.int32(counter % np.uint64(c.known[j]))


@embedded
def distinct(rows: Array, mark: Array, out: Array) -> int:
    """Write the distinct rows in order of first occurrence; return how many there are."""
    n = 0
    for j in range(rows.size):
        if mark[rows[j]] == 0:
            mark[rows[j]] = 1
            out[n] = rows[j]
            n += 1
    for j in range(n):
        mark[out[j]] = 0
    return n


@compiled
def draw(columns: Drawn, sum_half_life: SamplingState, out: Touched) -> tuple[int, int]:
    """Draw the uniform items, update the users' histories, and list the touched rows.

    Touched rows are those of the interactions, not those of the uniform items. Returns how many
    users and items were written.
    """
    c, m, o = bare(columns), bare(sum_half_life), bare(out)
    for j in range(c.user.size):
        if c.counts[j]:
            remember(m.history, c.user[j], c.item[j])
    for j in range(c.user.size):
        draw_pairs(c, m, j, o.pair[j])
    return distinct(c.user, m.mark_user, o.users), distinct(c.item, m.mark_item, o.items)
