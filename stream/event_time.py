"""The event time of a record: its producer's time, capped by Kafka's timestamp.

Without the cap, one producer whose clock runs ahead would close everybody's windows and decay
everybody's popularity counts. A record may be at most `ahead_ms` ahead of its Kafka timestamp. A
record that claims more and opens something (an impression, attributes) counts at its Kafka
timestamp; one that follows something (a click, a rating) counts `ahead_ms` after its Kafka
timestamp. So the two still match if Kafka received the click up to `ahead_ms` before the
impression.
"""

import numpy as np

from stream.compiled import inlined


@inlined
def event_time(ts_ms, kafka_ts_ms, ahead_ms, opens):  # type: ignore[no-untyped-def]
    """Return the event time (ms); a negative Kafka timestamp is missing and caps nothing."""
    if kafka_ts_ms < 0 or ts_ms <= kafka_ts_ms + ahead_ms:
        return np.int64(ts_ms)
    return np.int64(kafka_ts_ms if opens else kafka_ts_ms + ahead_ms)
