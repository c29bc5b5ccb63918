"""Where requests are worked on: at once between two others, or in a thread when it takes longer.

All requests share one event loop, /livez among them, so none may hold it for more than a few
milliseconds. What is quick runs on the loop, few at a time; what scores many rows, and what reads
or changes many attributes, runs in a few threads, each kind with its own, so that one kind does not
wait for another. Who finds too many waiting is refused with a 503 and told when to come back.

A thread sees a view of the shelf that nothing changes (`Shelf.view`), never the shelf itself.
"""

import asyncio
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from msgspec import UNSET

from consumers.service.choice import describes
from consumers.service.problems import Problem
from consumers.service.requests import Choice, Filter, Intervention, Rank, Recommend
from consumers.service.shelf import Shelf

T = TypeVar("T")

SWITCH_S = 0.0005  # after so long a thread lets another one run: the loop waits for few of these
RETRY_S = 1

QUICK_ROWS = 8_192  # rows that are scored on the loop: below 1 ms
QUICK_ANSWERS = 100  # items of an answer that are made on the loop: about 1 ms
QUICK_IDS = 1_000  # ids that are looked up on the loop
QUICK_FILTERED = 4_096  # attributes that are compared on the loop: 1 to 2 ms
QUICK_VALUES = 64  # values of attributes that are set for one item on the loop
QUICK_EVENTS = 100
QUICK_BODY = 32 << 10  # bytes that are decoded on the loop
LONG_ANSWERS = 1_000


class Lane:
    """Lets at most `places` requests work at a time, in the order in which they came."""

    def __init__(self, name: str, places: int, waiting: int, threads: bool) -> None:
        self._places = asyncio.Semaphore(places)
        self._waiting, self._most = 0, waiting
        self._threads = ThreadPoolExecutor(places, f"service-{name}") if threads else None

    @property
    def threaded(self) -> bool:
        """Whether its work is done beside the loop."""
        return self._threads is not None

    async def __aenter__(self) -> "Lane":
        if self._waiting >= self._most:
            raise Problem(
                503, "busy", "too many requests of this kind are waiting",
                {"retry-after": str(RETRY_S)}, remedy="come back later, or ask for less at a time",
            )  # fmt: skip
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._places.release()

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """Return what the work returns; who holds a place of the lane may ask."""
        if self._threads is None:
            return work(*args)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def close(self) -> None:
        """No work begins after the call."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


class Lanes:
    """The lanes of one service."""

    def __init__(self) -> None:
        self.quick = Lane("quick", 8, 1_024, threads=False)
        self.many = Lane("many", 2, 256, threads=True)  # many rows, some milliseconds
        self.long = Lane("long", 2, 64, threads=True)  # many attributes, up to a second
        self.posts = Lane("posts", 8, 256, threads=True)  # small ones, that wait for the broker
        self.loads = Lane("loads", 2, 64, threads=True)  # posts of many events
        self._all = (self.quick, self.many, self.long, self.posts, self.loads)

    def of(self, shelf: Shelf, asked: Choice) -> Lane:
        """Return the lane for a list."""
        if describes(asked.do):
            return self.long
        if isinstance(asked, Recommend):
            if asked.filters and self._compares(shelf, asked.filters):
                return self.long
            many = len(shelf.catalogue.items) > QUICK_ROWS or len(asked.exclude) > QUICK_IDS
            return self.many if many or asked.k > QUICK_ANSWERS else self.quick
        answers = len(asked.item_ids) if isinstance(asked, Rank) else 0
        if answers > LONG_ANSWERS:
            return self.long
        return self.many if answers > QUICK_ANSWERS else self.quick

    def of_one(self, do: Intervention | None) -> Lane:
        """Return the lane for what is asked of one item."""
        given = do.attributes if do is not None and do.attributes is not UNSET else {}
        values = sum(len(value) if isinstance(value, list) else 1 for value in given.values())
        return self.quick if values <= QUICK_VALUES else self.long

    def of_body(self, body: bytes) -> Lane:
        """Return the lane in which a body is decoded."""
        return self.quick if len(body) <= QUICK_BODY else self.long

    def of_events(self, count: int) -> Lane:
        """Return the lane in which so many events go to the broker."""
        return self.posts if count <= QUICK_EVENTS else self.loads

    def _compares(self, shelf: Shelf, filters: Mapping[str, Filter]) -> bool:
        """Return whether it takes long to find out what satisfies the filters."""
        values = sum(len(each) for each in filters.values() if isinstance(each, list))
        compared = len(filters) * len(shelf.catalogue.meta)
        if values <= QUICK_IDS:
            return compared > QUICK_FILTERED and not shelf.remembers(filters)
        return True

    def close(self) -> None:
        """No work begins after the call."""
        for lane in self._all:
            lane.close()


def yield_often() -> None:
    """The interpreter's threads take turns every half millisecond, so the loop comes to its own."""
    sys.setswitchinterval(SWITCH_S)
