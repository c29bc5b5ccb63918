"""Whether the trainer is alive and learning: written by its threads, read by its HTTP port.

A store counts as held while anyone reports it unavailable: the loop, whose call failed, or the
probe that checks it beside the loop (probes.py). The log has one line when the first of them
reports it and one when the last withdraws.
"""

import logging
import threading
from collections.abc import Callable
from math import nan

log = logging.getLogger("counterflow.trainer")

STORES = ("kafka", "redis", "snapshots")
SILENT_S = 4.0  # a store whose probe has had no answer for this long is reported as down
STUCK_S = 60.0  # a loop that has neither turned nor waited for a store for this long is stuck

Offsets = dict[tuple[str, int], int]


class Health:
    """State of the stores and of the trainer's progress.

    Parameters
    ----------
    clock, monotonic : callable
        Wall clock for timestamps and monotonic clock for intervals, in seconds.
    """

    def __init__(self, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._held: dict[str, dict[str, str]] = {store: {} for store in STORES}
        self._answered_s: dict[str, float] = {}
        self._turned_s: float | None = None  # None until the trainer has started
        self.progress_s = clock()  # Unix time of the last turn without an unavailable store
        self.readable: Offsets = {}  # rows of records below these offsets are readable in Redis
        self.ends: Offsets = {}  # the partitions' ends, as the Kafka probe last saw them

    def hold(self, store: str, who: str, why: str) -> None:
        """Report that `store` is unavailable to `who`."""
        with self._lock:
            held = self._held[store]
            if not held:
                log.warning("%s is unavailable, waiting: %s", store, why)
            held[who] = why

    def release(self, store: str, who: str) -> None:
        """Report that `store` is available to `who` again."""
        with self._lock:
            held = self._held[store]
            if held.pop(who, None) is not None and not held:
                log.warning("%s is available again", store)

    def answered(self, store: str) -> None:
        """Record that the store answered its probe."""
        self._answered_s[store] = self._monotonic()

    def turned(self) -> None:
        """Record a turn of the loop; it counts as progress if no store is unavailable."""
        self._turned_s = self._monotonic()
        if not self.reasons():
            self.progress_s = self._clock()

    def why(self, store: str) -> str:
        """Return why the store is unavailable; an empty string if it is available."""
        with self._lock:
            said = next(iter(self._held[store].values()), "")
        if said:
            return said
        since_s = self._monotonic() - self._answered_s.get(store, self._monotonic())
        return f"no answer for {since_s:.0f} s" if since_s > SILENT_S else ""

    def up(self, store: str) -> bool:
        """Return whether the store is available, as far as is known."""
        return not self.why(store)

    def held(self, store: str) -> bool:
        """Return whether the trainer waits for the store."""
        return not self.up(store)

    def reasons(self) -> list[str]:
        """Return why the trainer does not learn; an empty list while it learns."""
        if self._turned_s is None:
            return ["starting"]
        return [f"{store}: {why}" for store in STORES if (why := self.why(store))]

    def alive(self) -> bool:
        """Return whether the loop turned recently, is starting, or waits for a store."""
        turned_s = self._turned_s
        if turned_s is None or self._monotonic() - turned_s < STUCK_S:
            return True
        return bool(self.reasons())

    def lag(self, partition: tuple[str, int]) -> float:
        """Return how many records of the partition are not readable in Redis; NaN if unknown."""
        end, readable = self.ends.get(partition), self.readable.get(partition)
        return nan if end is None or readable is None else max(0, end - readable)
