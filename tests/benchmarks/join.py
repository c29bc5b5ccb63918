"""The joiner alone, by what it joins and the size of a poll; CPU time of its one thread."""

import time
from dataclasses import fields

import numpy as np

from stream.join import Arrivals, Joiner
from stream.schemas import KINDS

USERS, ITEMS, RECORDS, PARTITIONS = 100_000, 50_000, 2_000_000, 4
HOUR_MS = 3_600_000


def served(seed: int) -> Arrivals:
    """Return three hours of impressions, a tenth clicked, half of the clicks naming theirs."""
    r, n = np.random.default_rng(seed), RECORDS
    kind = np.where(r.random(n) < 0.9, KINDS.index("impression"), KINDS.index("click"))
    user = r.integers(USERS, size=n).astype(np.int32)
    item = r.integers(ITEMS, size=n).astype(np.int32)
    slate = r.integers(1, 1 << 62, n).astype(np.uint64)
    clicks = np.flatnonzero(kind == KINDS.index("click"))
    seen = np.maximum(0, clicks - r.integers(1, 2_000, len(clicks)))
    user[clicks], item[clicks] = user[seen], item[seen]
    slate[clicks] = np.where(r.random(len(clicks)) < 0.5, slate[seen], 0)
    ts_ms = np.sort(r.integers(3 * HOUR_MS, size=n)) + 1_790_000_000_000
    return Arrivals(
        kind=kind.astype(np.int8),
        partition=(user % PARTITIONS).astype(np.int32),
        user=user,
        item=item,
        slate=slate,
        ts_ms=ts_ms,
        kafka_ts_ms=ts_ms,
        value=r.integers(1, 6, n).astype(np.float32),
        position=r.integers(1, 11, n).astype(np.int32),
        propensity=np.full(n, 0.1, np.float32),
        show_probability=np.full(n, 0.95, np.float32),
        shown=r.random(n) < 0.95,
    )


def cut(stream: Arrivals, start: int, stop: int, **other: np.ndarray) -> Arrivals:
    """Return the records start..stop as views, with other columns where given."""
    held = {f.name: other.get(f.name, getattr(stream, f.name)) for f in fields(Arrivals)}
    return Arrivals(**{name: column[start:stop] for name, column in held.items()})


def rate(stream: Arrivals, size: int, **other: np.ndarray) -> tuple[float, Joiner]:
    """Return records a second of CPU time, and the joiner after them."""
    joiner = Joiner(window_ms=HOUR_MS, idle_ms=60_000)
    warm = joiner.join(cut(stream, 0, 0))
    joiner.note(warm, warm.label, warm.label)
    start = time.process_time()
    for at in range(0, RECORDS, size):
        joined = joiner.join(cut(stream, at, at + size, **other))
        joiner.note(joined, joined.label, joined.label)
    return RECORDS / (time.process_time() - start), joiner


def run() -> None:
    """Print records a second of served traffic and of ratings alone, and the ratio of the two."""
    stream = served(1)
    ratings = np.full(RECORDS, KINDS.index("rating"), np.int8)
    for size in (64, 8_192, 65_536):
        joined, joiner = rate(stream, size)
        alone, _ = rate(stream, size, kind=ratings)
        print(f"poll {size:>6}: impressions and clicks {joined / 1e6:.2f} M/s, ratings alone "
              f"{alone / 1e6:.1f} M/s, ratio {alone / joined:.0f} x; {RECORDS:,} records, "
              f"{joiner.open_exposures:,} windows open at the end", flush=True)  # fmt: skip
