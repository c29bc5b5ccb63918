"""When a record counts as having happened: as its producer says, unless Kafka's clock forbids it.

One producer whose clock runs ahead would else close everybody's windows, and age what everybody
likes. A record counts at most `ahead_ms` after its Kafka time. What opens something (an impression,
attributes) and claims more counts at its Kafka time, what follows it (a click, a rating) `ahead_ms`
after its own: so the two still meet when Kafka took the click up to `ahead_ms` earlier.
"""

import numpy as np

from stream.compiled import inlined


@inlined
def event_time(ts_ms, kafka_ts_ms, ahead_ms, opens):  # type: ignore[no-untyped-def]
    """Return the event time (ms) of a record; a Kafka time below 0 is none, and bounds nothing."""
    if kafka_ts_ms < 0 or ts_ms <= kafka_ts_ms + ahead_ms:
        return np.int64(ts_ms)
    return np.int64(kafka_ts_ms if opens else kafka_ts_ms + ahead_ms)
