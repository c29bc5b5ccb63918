"""Removals: everything open, remembered or waiting of a user or an item is discarded.

The removals of one call are numbered; the number is called the era. Exposures and waiting outcomes
store the era in which they came, above their flag bits (`marks`). Those that came before the latest
removal of their user or item are discarded: they are not joined, do not censor a control outcome
and are not reported when their window closes. At the end of the call all of them are erased in one
pass, however many removals there were, and the eras start again at 0.

A discarded entry leaves a blank in its ring, so which entries the rings overwrite does not depend
on when the pass runs.
"""

import numpy as np

from stream.compiled import compiled, inlined
from stream.join.columns import REMOVES_USER
from stream.join.memory import (
    BLANK,
    BURIED,
    ERA,
    ERA_AT,
    ERA_MAX,
    HELD,
    OPEN,
    TAKEN,
    UNSWEPT,
    USED,
    WAITED,
    free,
    pair_bucket,
    sink,
    unlink,
)

_MARKS = (1 << ERA_AT) - 1


@inlined
def stale(m, marks, user, item):  # type: ignore[no-untyped-def]
    """Return whether an entry with these marks came before the removal of its user or item."""
    era = marks >> ERA_AT
    if user < len(m.gone_user) and m.gone_user[user] > era:
        return True
    return item < len(m.gone_item) and m.gone_item[item] > era


@inlined
def gone(m, slot):  # type: ignore[no-untyped-def]
    """Return whether the exposure is discarded."""
    e = m.slots[slot]
    return e.marks & BLANK != 0 or stale(m, e.marks, e.user, e.item)


@compiled
def remove(m, kind, row):  # type: ignore[no-untyped-def]
    """Discard what came of the user or item so far."""
    if row < 0:
        return
    if m.counts[ERA] == ERA_MAX:
        purge(m)
    m.counts[ERA] += 1
    m.counts[UNSWEPT] = 1
    if kind == REMOVES_USER:
        m.gone_user[row] = m.counts[ERA]
    else:
        m.gone_item[row] = m.counts[ERA]


@compiled
def bury(m, slot):  # type: ignore[no-untyped-def]
    """Remove the exposure from the indexes and blank its slot."""
    e = m.slots[slot]
    if e.marks & BLANK:
        return
    unlink(m, slot)
    if e.marks & OPEN:
        m.counts[BURIED] += 1
    e.slate = 0
    e.ts_ms = 0
    e.user = e.item = e.newer = e.older = e.predicted_by = -1
    e.position = 0
    e.propensity = e.show_probability = e.rating = np.float32(0)
    e.marks = BLANK
    m.first_ms[slot] = 0


@compiled
def evict_pair(m, user, item):  # type: ignore[no-untyped-def]
    """Remove the pair's discarded exposures from the indexes."""
    slot = m.by_pair[pair_bucket(m, user, item)] - 1
    while slot >= 0:
        older = m.slots[slot].older
        if gone(m, slot):
            bury(m, slot)
        slot = older


@compiled
def sweep(m, ends):  # type: ignore[no-untyped-def]
    """Blank all discarded exposures; at the end of a call (`ends`) also reset the eras.

    Slots are read in the order of memory; the heap is rebuilt only if a blank is in it.
    """
    n = m.counts
    blank = np.zeros(n[USED], np.uint8)
    for slot in range(n[USED]):
        if gone(m, slot):
            bury(m, slot)
            blank[slot] = 1
        elif ends and m.slots[slot].marks > _MARKS:
            m.slots[slot].marks &= _MARKS
    n[UNSWEPT] = 0
    if n[BURIED] == 0:
        return
    kept = 0
    for at in range(n[HELD]):
        slot = m.heap[at].slot
        if blank[slot]:
            free(m, slot)
        else:
            m.heap[kept] = m.heap[at]
            kept += 1
    n[HELD] = kept
    for at in range(kept // 2 - 1, -1, -1):
        sink(m, at, kept, m.heap[at].ts_ms, m.heap[at].arrival, m.heap[at].slot)
    n[BURIED] = 0


@compiled
def purge(m):  # type: ignore[no-untyped-def]
    """Erase everything discarded, and reset all eras."""
    n = m.counts
    sweep(m, True)
    size = len(m.waiting)
    for at in range(max(0, n[WAITED] - size), n[WAITED]):
        w = m.waiting[at % size]
        if stale(m, w.marks, w.user, w.item):
            w.slate = 0
            w.value = np.float32(0)
            w.marks = TAKEN
        else:
            w.marks &= _MARKS
    m.gone_user[:] = 0
    m.gone_item[:] = 0
    n[ERA] = 0
