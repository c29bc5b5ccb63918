"""Where requests are processed: on the event loop, or in threads if they take longer.

All requests share one event loop, including /livez, so none may block it for more than a few
milliseconds. Quick requests run on the loop, few at a time. Requests that score many rows, or read
or change many attributes, run in a few threads; each kind has its own lane, so that kinds do not
wait for each other. When too many requests wait in a lane, further ones get a 503 with Retry-After.

A thread works on a view of the item index (`ItemIndex.view`), which does not change.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from msgspec import UNSET

from consumers.service.item_index import ItemIndex
from consumers.service.problems import Problem
from consumers.service.request_validation import describes
from consumers.service.requests import Filter, Intervention, ListRequest, Rank, Recommend

T = TypeVar("T")

SWITCH_S = 0.0005  # longest time for which the loop waits until another thread yields
RETRY_S = 1  # Retry-After of refused requests, in seconds

QUICK_ROWS = 8_192  # rows that may be scored on the loop: below 1 ms
QUICK_ANSWERS = 100  # items of an answer that may be built on the loop: about 1 ms
QUICK_IDS = 1_000  # ids that may be looked up on the loop
QUICK_FILTERED = 4_096  # attributes that may be compared on the loop: 1 to 2 ms
QUICK_VALUES = 64  # attribute values that may be set for one item on the loop
QUICK_EVENTS = 100
QUICK_BODY = 32 << 10  # bytes that may be decoded on the loop
LONG_ANSWERS = 1_000


class ConcurrencyLimiter:
    """Processes at most `places` requests at a time, in order of arrival.

    Parameters
    ----------
    name : str
        Name of the threads.
    places : int
        Requests processed at a time.
    waiting : int
        Requests that may wait; further ones get a 503.
    threads : bool
        Whether work runs in threads instead of on the event loop.
    """

    def __init__(self, name: str, limit: int, waiting: int, threads: bool) -> None:
        self._semaphore = asyncio.Semaphore(limit)
        self._waiting, self._most = 0, waiting
        self._threads = ThreadPoolExecutor(limit, f"service-{name}") if threads else None

    @property
    def threaded(self) -> bool:
        """Whether work runs in threads."""
        return self._threads is not None

    async def __aenter__(self) -> "ConcurrencyLimiter":
        if self._waiting >= self._most:
            raise Problem(
                503, "busy", "too many requests of this kind are waiting",
                {"retry-after": str(RETRY_S)}, remedy="retry later, or ask for less at a time",
            )  # fmt: skip
        self._waiting += 1
        try:
            await self._semaphore.acquire()
        finally:
            self._waiting -= 1
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._semaphore.release()

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """Return the result of the work; the caller must have entered the lane."""
        if self._threads is None:
            return work(*args)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def close(self) -> None:
        """Stop starting further work."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


class ConcurrencyLimiters:
    """The lanes of a service."""

    def __init__(self) -> None:
        self.quick = ConcurrencyLimiter("quick", 8, 1_024, threads=False)
        self.many = ConcurrencyLimiter("many", 2, 256, threads=True)  # many rows: some milliseconds
        self.long = ConcurrencyLimiter(
            "long", 2, 64, threads=True
        )  # many attributes: up to a second
        self.posts = ConcurrencyLimiter(
            "posts", 8, 256, threads=True
        )  # few events, waiting for the broker
        self.loads = ConcurrencyLimiter("loads", 2, 64, threads=True)  # many events
        self._all = (self.quick, self.many, self.long, self.posts, self.loads)

    def of(self, index: ItemIndex, asked: ListRequest) -> ConcurrencyLimiter:
        """Return the lane for a request for a list."""
        if describes(asked.do):
            return self.long
        if isinstance(asked, Recommend):
            if asked.filters and self._compares(index, asked.filters):
                return self.long
            many = len(index.catalogue.items) > QUICK_ROWS or len(asked.exclude) > QUICK_IDS
            return self.many if many or asked.k > QUICK_ANSWERS else self.quick
        answers = len(asked.item_ids) if isinstance(asked, Rank) else 0
        if answers > LONG_ANSWERS:
            return self.long
        return self.many if answers > QUICK_ANSWERS else self.quick

    def of_one(self, do: Intervention | None) -> ConcurrencyLimiter:
        """Return the lane for a request about one item."""
        given = do.attributes if do is not None and do.attributes is not UNSET else {}
        values = sum(len(value) if isinstance(value, list) else 1 for value in given.values())
        return self.quick if values <= QUICK_VALUES else self.long

    def of_body(self, body: bytes) -> ConcurrencyLimiter:
        """Return the lane for decoding a body."""
        return self.quick if len(body) <= QUICK_BODY else self.long

    def of_events(self, count: int) -> ConcurrencyLimiter:
        """Return the lane for sending this many events to the broker."""
        return self.posts if count <= QUICK_EVENTS else self.loads

    def _compares(self, index: ItemIndex, filters: Mapping[str, Filter]) -> bool:
        """Return whether evaluating the filters takes long."""
        values = sum(len(each) for each in filters.values() if isinstance(each, list))
        compared = len(filters) * len(index.catalogue.meta)
        if values <= QUICK_IDS:
            return compared > QUICK_FILTERED and not index.remembers(filters)
        return True

    def close(self) -> None:
        """Stop starting further work in all lanes."""
        for limiter in self._all:
            limiter.close()


def yield_often() -> None:
    """Make threads yield every half millisecond, so that the event loop is not delayed."""
    sys.setswitchinterval(SWITCH_S)
