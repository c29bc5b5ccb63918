"""Joins impressions with their outcomes in event time, so that every exposure is learned once.

An exposure is a pair (impression_id, item_id) of a user. Withheld items (`shown` false) are
exposures too. Records are processed one by one, so the result does not depend on how they are
divided into polls.

Matching. A click or rating joins:

- if it names an impression: that exposure, whenever it happened; the producer's name is trusted. If
  the exposure is not known, the outcome joins no other one, because its impression may still
  arrive.
- otherwise: the latest open exposure of the same user and item whose window contains it
  (exposure.ts <= outcome.ts <= exposure.ts + window); if none is open, the latest closed one that
  is still remembered. If an impression arrives later whose time lies between that exposure and its
  earliest such click, the click moves to the new exposure.

Roles (`stream.interaction_type.InteractionType`) of a click or rating that joins:

- an open shown exposure: the first one is EXPOSED. Later ones are stored with the exposure but
  learned as if there were no exposure: clicks as CONSUMED, ratings as FACTUAL.
- an open withheld exposure: CONSUMED. It is stored for the control outcome, since it says nothing
  about the outcome if shown.
- a closed exposure: the outcome is late. A click on an exposure learned as 0 is a CORRECTION; other
  clicks are CONSUMED and ratings FACTUAL (CONSUMED if withheld).
- nothing: CONSUMED or FACTUAL immediately. It also waits for its impression until the watermark
  passes ts + window. A named outcome that comes after that counts as late too.

If several outcomes wait for one impression, it takes the first click and the last rating to arrive,
among the last 256 waiting outcomes in the hash bucket of that user and item.

Repetitions. An impression is a repetition, and ignored, if its impression_id, user and item are
those of an open or remembered exposure. It still advances the watermark. Impressions without an
impression_id are never repetitions.

First decisions. Only first decisions enter the comparison of shown with withheld windows. A first
decision is an exposure that does not belong to an earlier one. When an exposure closes, it belongs
to the same first decision as the previous exposure of its user and item if it lies within one
window of that first decision, or in the same clock window, [n, n + 1) * window, as the previous
exposure. So whether the arm is drawn at each impression or kept for a clock window, a new draw is
made at each first decision, and the reason why a user came back cannot affect the comparison. An
exposure whose arm differs from that of its first decision is counted (`contradicted`) and otherwise
ignored in the comparison. A withheld exposure yields no control outcome if the item was shown since
the first decision. An exposure that arrives more than a window late may belong to a first decision
that closed before it, older or newer.

Closing. A window closes when watermark > ts + window. This is checked after each record, the oldest
(ts, arrival) first. If more than `open_max` exposures are open, the oldest closes early. Of the
remembered closed exposures, the one that closed first is forgotten first.

Time. Times are event times (stream/event_time.py): a record counts at most `ahead_ms` after its
Kafka timestamp. A record without a timestamp is bounded by the latest timestamp of its partition so
far; if the partition never had one, the record's own time is used unchanged.

The watermark is the minimum, over partitions, of the highest event time in each; it never
decreases. A partition whose last Kafka timestamp lies more than `idle_ms` behind the latest of all
is ignored, unless it is known to have more records (later in this call, or `pending`). A partition
without a record so far is ignored too, unless its first record is known to come: then the watermark
waits. Records of other kinds are skipped; those without a user or an item row (duplicates, and ids
for which there is no room) only advance the watermark.

Removals (REMOVES_USER, REMOVES_ITEM) discard everything open, remembered or waiting of a user or
item: it is not joined, reported or counted any more. They do not advance the watermark.
"""

from stream.join.columns import REMOVES_ITEM, REMOVES_USER, Arrivals, Closed, Joined
from stream.join.joiner import Joiner

__all__ = ["REMOVES_ITEM", "REMOVES_USER", "Arrivals", "Closed", "Joined", "Joiner"]
