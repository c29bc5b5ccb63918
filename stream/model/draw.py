"""The uniform pairs of a batch, the rows that it touches, and what its users have seen."""

import numpy as np

from stream.model.kernels import Array, compiled, mix
from stream.model.living import LISTED, LIVING, enlist, revive
from stream.roles import Role

PREDICT, CLOSED = int(Role.PREDICT), int(Role.CLOSED)


@compiled
def draw(
    user: Array, item: Array, known: Array, key: Array, role: Array, counts: Array,
    history: Array, living: Array, place: Array, size: Array, pair: Array, mark_user: Array,
    mark_item: Array, users: Array, items: Array,
) -> tuple[int, int]:  # fmt: skip
    """Write the uniform pairs (-1 where none), remember what was seen, name the rows touched.

    Rows touched are those of the interactions, not of their pairs. Returns how many users and items
    were written; the marks are 0 again. `living, place, size` are those of `Living`: an item that
    was removed is in no pair until an interaction of its own, which revives it.
    """
    nu = ni = 0
    for j in range(user.size):
        u, i = user[j], item[j]
        if counts[j]:
            ring = history[u]
            ring[1 + ring[0] % (ring.size - 1)] = i
            ring[0] += 1
            if ring[0] == 2 * (ring.size - 1):  # only the place and "full" matter
                ring[0] = ring.size - 1
        counter = key[j]
        if size[LISTED] > 0:
            enlist(living, place, size, known[j])
            revive(living, place, size, i)
        for p in range(pair.shape[1]):
            if known[j] > 0 and role[j] != PREDICT and role[j] != CLOSED:
                counter = mix(counter)
                if size[LISTED] > 0:
                    pair[j, p] = living[counter % np.uint64(size[LIVING])]
                else:
                    pair[j, p] = np.int32(counter % np.uint64(known[j]))
            else:
                pair[j, p] = -1
        if mark_user[u] == 0:
            mark_user[u] = 1
            users[nu] = u
            nu += 1
        if mark_item[i] == 0:
            mark_item[i] = 1
            items[ni] = i
            ni += 1
    for j in range(nu):
        mark_user[users[j]] = 0
    for j in range(ni):
        mark_item[items[j]] = 0
    return nu, ni
