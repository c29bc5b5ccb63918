"""The vocabulary as it grows: a pause of one call is a pause of the freshness that users see."""

import time

import numpy as np

from stream.vocabulary import Vocabulary

CALL = 1_024  # new ids a call
SIZES = (1_000_000, 2_000_000, 4_000_000)
LIMIT = 4_000_000


def run() -> None:
    """Print the rate and the longest single call, in processor time, on the way to each size."""
    digits = np.array([f"user-{n:09d}" for n in range(LIMIT)], "S14").view(np.uint8)
    data = digits.reshape(LIMIT, 14)
    at, length = 14 * np.arange(CALL), np.full(CALL, 14, np.int32)
    vocabulary = Vocabulary("user", LIMIT)
    Vocabulary("user", CALL).ensure_rows(
        data[:CALL].reshape(-1), at, length
    )  # compiled from here on
    begin = 0
    for size in SIZES:
        calls, first = [], begin
        while begin < size:
            count = min(CALL, size - begin)
            new = data[begin : begin + count].reshape(-1)
            start = time.thread_time()  # what else the machine does is no pause of ours
            vocabulary.ensure_rows(new, at[:count], length[:count])
            calls.append(time.thread_time() - start)
            begin += count
        assert len(vocabulary) == size
        print(f"{first:>9,} to {size:>9,} ids: longest call {1e3 * max(calls):.2f} ms, 99th "
              f"percentile {1e3 * np.quantile(calls, 0.99):.3f} ms, "
              f"{(size - first) / sum(calls) / 1e6:.2f} M new ids/s; {CALL:,} ids a call",
              flush=True)  # fmt: skip
