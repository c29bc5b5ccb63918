"""The compiled rules of the join, applied record by record; the package's docstring states them.

Nothing here looks beyond the current record, so the division of a stream into polls cannot matter.
"""

import numpy as np

from stream.bare import bare
from stream.compiled import compiled, inlined
from stream.event_time import event_time
from stream.interaction_type import InteractionType
from stream.join.columns import REMOVES_ITEM, REMOVES_USER
from stream.join.memory import (
    AHEAD,
    BLANK,
    CLICK,
    CLICKED,
    CLOSED_ROWS,
    CONTRADICTED,
    CONTRADICTS,
    CORRECTED,
    ERA,
    ERA_AT,
    EVICTED,
    HELD,
    HOLDER,
    IDLE,
    LATE,
    LATEST,
    LEARNED,
    NAMED,
    NEVER,
    OPEN,
    OPEN_MAX,
    REMEMBERED,
    ROWS,
    SEEN,
    SHOWN,
    TAKEN,
    UNSWEPT,
    USED,
    WAITED,
    WATERMARK,
    WINDOW,
    ZERO,
    evict,
    name_bucket,
    pair,
    pair_bucket,
    pop,
    push,
    remember,
    take_slot,
    wait,
)
from stream.join.removal import evict_pair, gone, purge, remove, stale, sweep
from stream.schemas import KINDS

_RATING, _CLICK, _IMPRESSION = map(KINDS.index, ("rating", "click", "impression"))
_FACTUAL, _EXPOSED, _CONTROL = (
    int(InteractionType.FACTUAL),
    int(InteractionType.EXPOSED),
    int(InteractionType.CONTROL),
)
_CONSUMED, _CORRECTION = int(InteractionType.CONSUMED), int(InteractionType.CORRECTION)
_PREDICT, _CLOSED = int(InteractionType.PREDICT), int(InteractionType.CLOSED)
LOOK = 256  # most waiting outcomes examined per impression, since a user may click endlessly
_NAN = np.float32(np.nan)
ROOM = 2  # most output rows of one record (PREDICT, EXPOSED), without those of closing windows


@inlined
def _emit(m, j, source, user, item, is_click, label, role, propensity, position, ts, counts, slot):  # type: ignore[no-untyped-def]
    """Append one interaction to the output rows."""
    row = m.counts[ROWS]
    m.counts[ROWS] += 1
    j.source[row] = source
    j.user[row] = user
    j.item[row] = item
    j.outcome_is_click[row] = is_click
    j.label[row] = label
    j.role[row] = role
    j.propensity[row] = propensity
    j.position[row] = position
    j.ts_ms[row] = ts
    j.counts[row] = counts
    j.slot[row] = slot


@inlined
def _idle(m, p, i):  # type: ignore[no-untyped-def]
    """Return whether the watermark ignores the partition: long silent, with no record to come."""
    return m.counts[LATEST] - m.last[p] > m.counts[IDLE] and i >= m.until[p]


@inlined
def _bound(m, a, i):  # type: ignore[no-untyped-def]
    """Cap the time of record i; without a Kafka timestamp, by its partition's latest one."""
    kafka_ts = a.kafka_ts_ms[i]
    if kafka_ts < 0:
        kafka_ts = m.last[a.partition[i]]
    opens = a.kind[i] == _IMPRESSION
    a.ts_ms[i] = event_time(a.ts_ms[i], kafka_ts, m.counts[AHEAD], opens)


@inlined
def _advance(m, i, partition, ts, kafka_ts):  # type: ignore[no-untyped-def]
    """Update the watermark by record i.

    It can change only if the partition with the lowest time (the holder) advanced or became idle:
    the minimum of the others is not below the holder's time, and a partition that resumes at a
    lower time does not lower the watermark.
    """
    n = m.counts
    raised = ts > m.high[partition]
    if raised:
        m.high[partition] = ts
    m.last[partition] = max(m.last[partition], kafka_ts)
    n[LATEST] = max(n[LATEST], kafka_ts)
    holder = n[HOLDER]
    if holder >= 0 and not _idle(m, holder, i):
        if holder != partition or not raised:
            return
    lowest = np.int64(0)
    holder = -1
    for p in range(len(m.high)):
        if m.last[p] == NEVER:
            if i < m.until[p]:  # the partition's first record is still to come
                n[HOLDER] = -1
                return
            continue
        if _idle(m, p, i):
            continue
        if holder < 0 or m.high[p] < lowest:
            lowest = m.high[p]
            holder = p
    n[HOLDER] = holder
    n[WATERMARK] = max(n[WATERMARK], lowest)


@inlined
def _near(m, one, other):  # type: ignore[no-untyped-def]
    """Return whether two times lie within one window of each other, or in one clock window."""
    window = m.counts[WINDOW]
    clock = max(window, 1)
    return abs(one - other) <= window or one // clock == other // clock


@inlined
def _decide(m, slot):  # type: ignore[no-untyped-def]
    """Return whether the closing exposure is a first decision; otherwise link it to its own.

    Older exposures of the pair closed before it, so only a record that came more than a window late
    finds a newer one closed. Within a clock window a sticky arm is drawn only once; if its second
    exposure were a first decision too, users who come back would affect which arm is counted.
    """
    e = m.slots[slot]
    of = -1
    p = e.older
    if p >= 0:
        clock = max(m.counts[WINDOW], 1)
        near = e.ts_ms - m.first_ms[p] <= m.counts[WINDOW]
        if near or e.ts_ms // clock == m.slots[p].ts_ms // clock:
            of = p
    p = e.newer
    if of < 0 and p >= 0 and m.slots[p].marks & OPEN == 0 and _near(m, m.first_ms[p], e.ts_ms):
        of = p
    if of < 0:
        m.first_ms[slot] = e.ts_ms
        return True
    m.first_ms[slot] = m.first_ms[of]
    marks = m.slots[of].marks
    if marks & (SHOWN | SEEN):
        e.marks |= SEEN
    shown_first = (marks & SHOWN != 0) != (marks & CONTRADICTS != 0)
    if shown_first != (e.marks & SHOWN != 0):
        e.marks |= CONTRADICTS
        m.counts[CONTRADICTED] += 1
    return False


@inlined
def close_oldest(m, j, c, source):  # type: ignore[no-untyped-def]
    """Close the oldest open exposure: emit its interaction, report the window, and remember it.

    A discarded exposure is only freed.
    """
    slot = pop(m)
    if m.counts[ERA] > 0 and gone(m, slot):
        evict(m, slot)
        return
    e = m.slots[slot]
    first = _decide(m, slot)
    shown = e.marks & SHOWN != 0
    clicked = e.marks & CLICKED != 0
    rated = not np.isnan(e.rating)
    click = np.float32(1) if clicked else (_NAN if rated else np.float32(0))
    if shown or e.marks & SEEN == 0:
        role = _CONTROL
        if shown:
            role = _CLOSED if rated or e.marks & LEARNED else _EXPOSED
        is_click = clicked or not rated
        _emit(
            m, j, source, e.user, e.item, is_click, click if is_click else e.rating, role,
            e.propensity, e.position, e.ts_ms, False, -1,
        )  # fmt: skip
        if role == _EXPOSED:
            e.marks |= ZERO
    row = m.counts[CLOSED_ROWS]
    m.counts[CLOSED_ROWS] += 1
    c.user[row] = e.user
    c.item[row] = e.item
    c.shown[row] = shown
    c.click[row] = click
    c.rating[row] = e.rating
    c.propensity[row] = e.propensity
    c.show_probability[row] = e.show_probability
    c.position[row] = e.position
    c.ts_ms[row] = e.ts_ms
    c.first[row] = first
    c.treated[row] = e.treated
    c.control[row] = e.control
    c.predicted_by[row] = e.predicted_by
    e.marks &= ~OPEN
    remember(m, slot)


@inlined
def _exposure_of(m, user, item, slate, ts):  # type: ignore[no-untyped-def]
    """Return the slot of the exposure that an outcome joins, -1 if there is none."""
    if m.counts[HELD] + m.counts[REMEMBERED] == 0:
        return -1
    if slate != 0:
        return m.by_name[name_bucket(m, user, item, slate)] - 1
    found = -1
    slot = m.by_pair[pair_bucket(m, user, item)] - 1
    while slot >= 0 and m.slots[slot].ts_ms > ts:
        slot = m.slots[slot].older
    while slot >= 0 and m.slots[slot].ts_ms >= ts - m.counts[WINDOW]:
        e = m.slots[slot]
        if e.marks & OPEN:
            return slot
        if found < 0:
            found = slot
        slot = e.older
    return found


@inlined
def _clicked(m, slot, slate, ts):  # type: ignore[no-untyped-def]
    """Mark the open exposure as clicked, by a click that named a slate or (0) none."""
    e = m.slots[slot]
    e.marks |= CLICKED
    if slate != 0:
        e.marks |= NAMED
    elif m.click_ms[slot] == NEVER or ts < m.click_ms[slot]:
        m.click_ms[slot] = ts


@inlined
def _outcome(m, a, i, j):  # type: ignore[no-untyped-def]
    """Emit a click or rating, and store it with its exposure or let it wait for one."""
    user, item, slate, ts = a.user[i], a.item[i], a.slate[i], a.ts_ms[i]
    is_click = a.kind[i] == _CLICK
    label = np.float32(1) if is_click else a.value[i]
    role = _CONSUMED if is_click else _FACTUAL
    propensity, position = _NAN, np.int32(0)
    slot = _exposure_of(m, user, item, slate, ts)
    if slot < 0:
        if m.counts[WATERMARK] <= ts + m.counts[WINDOW]:
            marks = (CLICK if is_click else 0) | m.counts[ERA] << ERA_AT
            wait(m, user, item, slate, ts, label, marks)
        elif slate != 0:
            m.counts[LATE] += 1
    else:
        e = m.slots[slot]
        if e.marks & OPEN == 0:
            m.counts[LATE] += 1
            if is_click and e.marks & ZERO:
                e.marks &= ~ZERO
                m.counts[CORRECTED] += 1
                role = _CORRECTION
        else:
            if e.marks & SHOWN and not e.marks & LEARNED:
                e.marks |= LEARNED
                role = _EXPOSED
            if is_click:
                _clicked(m, slot, slate, ts)
            else:
                e.rating = label
        if e.marks & SHOWN == 0:
            role = _CONSUMED  # the item was withheld: this is no outcome of showing it
        if role == _EXPOSED or role == _CORRECTION:
            propensity, position = e.propensity, e.position
    _emit(m, j, i, user, item, is_click, label, role, propensity, position, ts, True, -1)


@inlined
def link(m, slot):  # type: ignore[no-untyped-def]
    """Insert the exposure into its pair's list by (ts, arrival), and into the indexes."""
    e = m.slots[slot]
    bucket = pair_bucket(m, e.user, e.item)
    newer, older = -1, m.by_pair[bucket] - 1
    while older >= 0 and m.slots[older].ts_ms > e.ts_ms:
        newer, older = older, m.slots[older].older
    e.newer, e.older = newer, older
    if older >= 0:
        m.slots[older].newer = slot
    if newer >= 0:
        m.slots[newer].older = slot
    else:
        m.by_pair[bucket] = slot + 1
    if e.slate != 0:
        m.by_name[name_bucket(m, e.user, e.item, e.slate)] = slot + 1


@inlined
def _gather(m, slot):  # type: ignore[no-untyped-def]
    """Attach the waiting outcomes to the new exposure; return its first click's time, or -1."""
    e = m.slots[slot]
    click_ts = np.int64(-1)
    size = len(m.waiting)
    at = m.buckets[np.int64(pair(e.user, e.item) & np.uint64(len(m.buckets) - 1))]
    for _ in range(LOOK):
        if at <= max(0, m.counts[WAITED] - size):
            break
        w = m.waiting[(at - 1) % size]
        at = w.before
        if w.user != e.user or w.item != e.item or w.marks & TAKEN:
            continue
        if m.counts[ERA] > 0 and stale(m, w.marks, w.user, w.item):
            continue
        if m.counts[WATERMARK] > w.ts_ms + m.counts[WINDOW]:
            continue
        if w.slate != 0:
            if w.slate != e.slate:
                continue
        elif w.ts_ms < e.ts_ms or w.ts_ms > e.ts_ms + m.counts[WINDOW]:
            continue
        w.marks |= TAKEN
        if w.marks & CLICK:
            _clicked(m, slot, w.slate, w.ts_ms)
            click_ts = w.ts_ms
        elif np.isnan(e.rating):
            e.rating = w.value
    return click_ts


@inlined
def _take_over(m, slot):  # type: ignore[no-untyped-def]
    """Move a click from the next older exposure to this one; return its time, or -1.

    The click named no impression and came before this impression's record, which would otherwise
    have been the latest exposure for it.
    """
    e = m.slots[slot]
    if e.older < 0:
        return np.int64(-1)
    o = m.slots[e.older]
    click_ts = m.click_ms[e.older]
    if o.marks & OPEN == 0 or click_ts == NEVER or click_ts < e.ts_ms:
        return np.int64(-1)
    m.click_ms[e.older] = NEVER
    _clicked(m, slot, np.uint64(0), click_ts)
    if o.marks & NAMED == 0:
        o.marks &= ~CLICKED
        if o.marks & LEARNED and np.isnan(o.rating) and e.marks & SHOWN:
            e.marks |= LEARNED  # the click was already learned with the older one
    return click_ts


@inlined
def _impression(m, a, i, j):  # type: ignore[no-untyped-def]
    """Open an exposure, emit its PREDICT, and join what waited for it; ignore a repetition."""
    user, item, slate, ts = a.user[i], a.item[i], a.slate[i], a.ts_ms[i]
    if slate != 0 and m.by_name[name_bucket(m, user, item, slate)] != 0:
        return
    propensity, position = a.propensity[i], a.position[i]
    row = m.counts[ROWS]
    _emit(m, j, i, user, item, True, np.float32(0), _PREDICT, propensity, position, ts, False, -1)
    slot = take_slot(m)
    j.slot[row] = slot
    e = m.slots[slot]
    e.slate = slate
    e.ts_ms = ts
    e.user = user
    e.item = item
    e.position = position
    e.propensity = propensity
    e.show_probability = a.show_probability[i]
    e.rating = e.treated = e.control = _NAN
    e.predicted_by = row
    e.marks = (OPEN | SHOWN if a.shown[i] else OPEN) | m.counts[ERA] << ERA_AT
    m.click_ms[slot] = NEVER
    link(m, slot)
    push(m, slot)
    click_ts = _gather(m, slot) if m.counts[WAITED] > 0 else np.int64(-1)
    taken_ts = _take_over(m, slot)
    if click_ts < 0 and not e.marks & LEARNED:
        click_ts = taken_ts
    if a.shown[i] and click_ts >= 0:
        e.marks |= LEARNED
        _emit(
            m, j, i, user, item, True, np.float32(1), _EXPOSED, propensity, position, click_ts,
            False, -1,
        )  # fmt: skip


@compiled
def join(m, a, j, c, begin, handled):  # type: ignore[no-untyped-def]
    """Join the records from `begin` on; if `handled`, record `begin` only lacks its closings.

    Returns the next record and whether it is handled. It stops early when the output rows are full.
    """
    m, a, j, c = bare(m), bare(a), bare(j), bare(c)
    n = m.counts
    for i in range(begin, len(a.kind)):
        if not handled:
            if n[ROWS] + ROOM > len(j.source):
                return i, False
            kind = a.kind[i]
            if kind == REMOVES_USER or kind == REMOVES_ITEM:
                remove(m, kind, a.user[i] if kind == REMOVES_USER else a.item[i])
                continue
            if kind != _RATING and kind != _CLICK and kind != _IMPRESSION:
                continue
            _bound(m, a, i)
            if a.user[i] < 0 or a.item[i] < 0:
                pass  # a duplicate, or its ids have no row: it only advances the watermark
            else:
                if n[ERA] > 0:
                    evict_pair(m, a.user[i], a.item[i])
                if kind == _IMPRESSION:
                    _impression(m, a, i, j)
                else:
                    _outcome(m, a, i, j)
            _advance(m, i, a.partition[i], a.ts_ms[i], a.kafka_ts_ms[i])
        handled = False
        while n[HELD] > 0:
            over = n[WATERMARK] > m.heap[0].ts_ms + n[WINDOW]
            if not over and n[HELD] <= n[OPEN_MAX]:
                break
            if not over and n[UNSWEPT] > 0:
                sweep(m, False)
                continue
            if n[ROWS] == len(j.source) or n[CLOSED_ROWS] == len(c.user):
                return i, True
            if not over:
                n[EVICTED] += 1
            close_oldest(m, j, c, i)
    return len(a.kind), False


@compiled
def purge_removed(m):  # type: ignore[no-untyped-def]
    """Erase everything that the call's removals discarded."""
    purge(bare(m))


@compiled
def close_all(m, j, c):  # type: ignore[no-untyped-def]
    """Close all open exposures."""
    m, j, c = bare(m), bare(j), bare(c)
    while m.counts[HELD] > 0:
        close_oldest(m, j, c, -1)


@compiled
def note(m, slot, treated, control):  # type: ignore[no-untyped-def]
    """Store the predictions in the slots; of two for one slot, the later one stays."""
    for row in range(len(slot)):
        if slot[row] >= 0:
            m.slots[slot[row]].treated = treated[row]
            m.slots[slot[row]].control = control[row]


@compiled
def clear_prediction_rows(m, slot):  # type: ignore[no-untyped-def]
    """Clear the slots' references to output rows of the call that ends."""
    for row in range(len(slot)):
        if slot[row] >= 0:
            m.slots[slot[row]].predicted_by = -1


@compiled
def restore(m, remembered, opened, waiting):  # type: ignore[no-untyped-def]
    """Rebuild indexes, ring, heap and waiting chains after `load` has filled the arrays.

    The first slots are the remembered exposures in closing order, then the open ones. This rebuilds
    the lists in their original order: of exposures with equal times, those that have closed arrived
    before those that are open.
    """
    m = bare(m)
    m.counts[USED] = remembered + opened
    for slot in range(remembered + opened):
        e = m.slots[slot]
        e.predicted_by = -1
        if e.marks & BLANK == 0:
            link(m, slot)
        if slot < remembered:
            remember(m, slot)
        else:
            push(m, slot)
    for row in range(waiting):
        w = m.waiting[row]
        wait(m, w.user, w.item, w.slate, w.ts_ms, w.value, w.marks)
