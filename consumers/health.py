"""Whether the trainer lives and learns, as its port tells; written by its threads, read by scrapes.

A store is held for as long as someone says so: the loop, whose call it refused, or the probe that
asks it beside the loop (probes.py). What is said once in the log is said when the first one begins
and when the last one ends.
"""

import logging
import threading
from collections.abc import Callable
from math import nan

log = logging.getLogger("counterflow.trainer")

STORES = ("kafka", "redis", "snapshots")
SILENT_S = 4.0  # a store that has not answered its probe for so long is away, though it hangs
STUCK_S = 60.0  # a loop that neither turned nor held for so long lives no more

Offsets = dict[tuple[str, int], int]


class Health:
    """What is up, what is held and why, and how far the trainer has come.

    `clock` stamps, `monotonic` measures, both in seconds.
    """

    def __init__(self, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._held: dict[str, dict[str, str]] = {store: {} for store in STORES}
        self._answered_s: dict[str, float] = {}
        self._turned_s: float | None = None  # None until it has started
        self.progress_s = clock()  # Unix time of the last turn in which nothing was held
        self.readable: Offsets = {}  # up to which offsets rows are readable in Redis
        self.ends: Offsets = {}  # the broker's, as its probe was told them last

    def hold(self, store: str, who: str, why: str) -> None:
        """The store is away for one of those who need it."""
        with self._lock:
            held = self._held[store]
            if not held:
                log.warning("%s is away, holding: %s", store, why)
            held[who] = why

    def release(self, store: str, who: str) -> None:
        """The store is there for one who held."""
        with self._lock:
            held = self._held[store]
            if held.pop(who, None) is not None and not held:
                log.warning("%s is back", store)

    def answered(self, store: str) -> None:
        """The store has answered its probe."""
        self._answered_s[store] = self._monotonic()

    def turned(self) -> None:
        """The loop has come round; it got on if nothing was held."""
        self._turned_s = self._monotonic()
        if not self.reasons():
            self.progress_s = self._clock()

    def why(self, store: str) -> str:
        """Return why the store is held; empty where it is not."""
        with self._lock:
            said = next(iter(self._held[store].values()), "")
        if said:
            return said
        since_s = self._monotonic() - self._answered_s.get(store, self._monotonic())
        return f"no answer for {since_s:.0f} s" if since_s > SILENT_S else ""

    def up(self, store: str) -> bool:
        """Tell whether the store answers, as far as is known."""
        return not self.why(store)

    def held(self, store: str) -> bool:
        """Tell whether the trainer holds its place for the store."""
        return not self.up(store)

    def reasons(self) -> list[str]:
        """Return why nothing is learned now; none while the trainer learns."""
        if self._turned_s is None:
            return ["starting"]
        return [f"{store}: {why}" for store in STORES if (why := self.why(store))]

    def alive(self) -> bool:
        """Tell whether the loop turned lately, is starting, or holds for a reason."""
        turned_s = self._turned_s
        if turned_s is None or self._monotonic() - turned_s < STUCK_S:
            return True
        return bool(self.reasons())

    def lag(self, place: tuple[str, int]) -> float:
        """Return how many records of the partition are not readable in Redis; nan: not known."""
        end, readable = self.ends.get(place), self.readable.get(place)
        return nan if end is None or readable is None else max(0, end - readable)
