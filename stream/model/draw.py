"""The uniform pairs of a batch, the rows that it touches, and what its users have seen."""

from typing import NamedTuple

import numpy as np

from stream.bare import bare
from stream.compiled import compiled, embedded
from stream.model.kernels import Array, mix
from stream.model.living import LISTED, LIVING, enlist, revive
from stream.roles import Role

PREDICT, CLOSED = int(Role.PREDICT), int(Role.CLOSED)


class Drawn(NamedTuple):
    """The columns that pairs are drawn by (B,)."""

    user: Array
    item: Array
    known: Array
    key: Array
    role: Array
    counts: Array


class Memory(NamedTuple):
    """What is remembered between batches: what users saw, and which items are alive."""

    history: Array  # (users, 1 + history) a ring behind its position
    living: Array  # of `Living`, with place and size
    place: Array
    size: Array
    mark_user: Array  # 0 before and after
    mark_item: Array


class Touched(NamedTuple):
    """What is written: the uniform pairs (B, P), and the rows of the interactions, each once."""

    pair: Array
    users: Array
    items: Array


@embedded
def remember(history: Array, user: int, item: int) -> None:
    """Put the item in the ring of what the user saw."""
    at, size = history[user, 0], history.shape[1] - 1
    history[user, 1 + (at if at < size else at - size)] = item
    # only the place and "full" matter
    history[user, 0] = size if at + 1 == 2 * size else at + 1


@embedded
def draw_pairs(c: Drawn, m: Memory, j: int, pair: Array) -> None:
    """Write the uniform pairs of interaction j, -1 where it has none.

    An item that was removed is in no pair until an interaction of its own, which revives it.
    """
    counter = c.key[j]
    if m.size[LISTED] > 0:
        enlist(m.living, m.place, m.size, c.known[j])
        revive(m.living, m.place, m.size, c.item[j])
    for p in range(pair.size):
        pair[p] = -1
        if c.known[j] > 0 and c.role[j] != PREDICT and c.role[j] != CLOSED:
            counter = mix(counter)
            if m.size[LISTED] > 0:
                pair[p] = m.living[counter % np.uint64(m.size[LIVING])]
            else:
                pair[p] = np.int32(counter % np.uint64(c.known[j]))


@embedded
def distinct(rows: Array, mark: Array, out: Array) -> int:
    """Write the rows, each once, in the order in which they come; return how many there are."""
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
def draw(columns: Drawn, memory: Memory, out: Touched) -> tuple[int, int]:
    """Write the uniform pairs (B, P), remember what was seen, name the rows touched.

    Rows touched are those of the interactions, not of their pairs. Returns how many users and items
    were written.
    """
    c, m, o = bare(columns), bare(memory), bare(out)
    for j in range(c.user.size):
        if c.counts[j]:
            remember(m.history, c.user[j], c.item[j])
    for j in range(c.user.size):
        draw_pairs(c, m, j, o.pair[j])
    return distinct(c.user, m.mark_user, o.users), distinct(c.item, m.mark_item, o.items)
