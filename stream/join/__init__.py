"""Impressions meet their outcomes in event time: every exposure is learned once.

An exposure is (impression_id, item_id) of a user; withheld items (`shown` false) are exposures too.
What happens to one, record by record, is the same however the records are cut into polls.

A click or rating joins
    the exposure that it names, whenever it happened: the name is the producer's word. A name that
    is not known joins nothing else, since its own impression may still come;
    without a name, the latest open exposure of the same user and item whose window holds it
    (exposure.ts <= outcome.ts <= exposure.ts + window), else the latest remembered one. The first
    such click moves on when an impression comes later than it whose time lies between the two.
Joined to an open shown exposure, the first outcome is learned as EXPOSED. All later ones are kept
with the exposure but learned as if there were none: CONSUMED, FACTUAL. Joined to a withheld one it
is CONSUMED, and kept for the control outcome: it tells nothing of the outcome if shown.
Joined to a closed exposure it is late: CORRECTION for a click after the 0, else CONSUMED, FACTUAL.
Joined to nothing it is CONSUMED or FACTUAL at once, and waits for its impression until the
watermark passes ts + window. A named one that comes after that is late too.
If several wait for one impression, the first click and the last rating to arrive are taken, of the
last 256 of the user and item.

An impression is repeated when its impression_id, user and item are those of an open or remembered
one; without an impression_id it never is. Its record still moves the watermark.

A first decision is an exposure that belongs to no earlier one; these alone compare the arms. When
it closes, an exposure belongs where the one before it of its user and item belongs if it lies
within one window of that first decision, or in the same window of the clock ([n, n + 1) * window)
as the one before it. So arms that are drawn at each impression, and those that a producer keeps for
a window of the clock, are drawn anew at each first decision, whoever came back for whatever reason.
An exposure with the other arm than its first decision is counted, and changes no arm. A withheld
one teaches no control outcome when the item was shown since the first decision.
One that comes more than a window late belongs to a first decision that has closed before it, older
or newer.

A window closes when watermark > ts + window, after each record, the oldest (ts, arrival) first. The
record that opens one exposure too many closes the oldest early, and the exposure that is closed
first is forgotten first.

Times are event times (stream/event_time.py): a record counts at most `ahead_ms` after its Kafka
time, or where it has none, after the latest of its partition so far; a partition that has none at
all is believed.

The watermark is the lowest, over partitions, of the highest event time in each; it never falls. A
partition whose last Kafka time lies more than `idle_ms` behind the latest one of all is left out.
Partitions count from their first record on. Records of other kinds, or without a user or an item,
are skipped.

A removal (REMOVES_USER, REMOVES_ITEM) forgets what is open, remembered or waiting of its user or
item: none of it is joined, told or counted any more. It moves no watermark.
"""

from stream.join.columns import REMOVES_ITEM, REMOVES_USER, Arrivals, Closed, Joined
from stream.join.joiner import Joiner

__all__ = ["REMOVES_ITEM", "REMOVES_USER", "Arrivals", "Closed", "Joined", "Joiner"]
