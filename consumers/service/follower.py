"""Keeping the items in memory up to date: load all once, then follow the change log."""

import asyncio
import logging
from collections.abc import Callable

from consumers.metrics import ServiceMetrics
from consumers.service.item_index import ItemIndex
from consumers.service.problems import outside
from model_store.codec import shapes
from model_store.reader import AsyncReader
from stream.errors import CounterflowError, Inconsistent, Unavailable
from stream.inference.model import parse

log = logging.getLogger("counterflow.service")

BLOCK_MS = 500  # longest blocking read; must be below the client's socket timeout
WAIT_S = 0.1  # time between checks for a first model
MODEL_S = 1.0  # time between checks of the model's description
SLACK_S = 0.25  # by how much two computed expiry times of the same write may differ
HOLD_S = 5.0  # pause after an error that an operator must fix


class Follower:
    """A task that keeps `index` up to date; `index` is None until a model has been loaded.

    Parameters
    ----------
    clock : callable
        Monotonic clock in seconds.
    loaded : callable
        Called whenever all items have been loaded anew.
    ttl_s : float
        TTL of the model's description, to compute when it was written.
    """

    def __init__(
        self,
        reader: AsyncReader,
        metrics: ServiceMetrics,
        clock: Callable[[], float],
        loaded: Callable[[], object] = lambda: None,
        ttl_s: float = 0.0,
    ) -> None:
        self.index: ItemIndex | None = None
        self.problem = "no model has been loaded yet"  # what answers say
        self._said = ""  # the last error that was logged
        self._reader = reader
        self._metrics = metrics
        self._clock = clock
        self._loaded = loaded
        self._contact_s = float("-inf")
        self._asked_s = float("-inf")
        self._ttl_s = ttl_s
        self._lapses_s: float | None = None  # when the model's description expires
        self._confirmed_s: float | None = None

    def age_s(self) -> float | None:
        """Return the seconds since a trainer changed or confirmed the model; None without one."""
        return None if self._confirmed_s is None else self._clock() - self._confirmed_s

    def silent_s(self) -> float:
        """Return the seconds since Redis last answered the follower."""
        return self._clock() - self._contact_s

    async def run(self) -> None:
        """Follow forever; after an error of Redis, wait and try again."""
        while True:
            try:
                waiting_s = await self.turn()
                self._contact_s = self._clock()
            except CounterflowError as error:
                self._metrics.store_errors.labels(store="redis").inc()
                if self._said != error.message:
                    log.warning("waiting for Redis: %s %s", error.message, error.remedy)
                self._said, self.problem = error.message, outside(error)
                waiting_s = error.retry_after_s if isinstance(error, Unavailable) else HOLD_S
            if waiting_s:
                await asyncio.sleep(waiting_s)

    async def turn(self) -> float:
        """Apply the changes in the log; return how long to wait before the next turn."""
        if self.index is None or self._clock() - self._asked_s >= MODEL_S:
            await self._look()
        if self.index is None:
            self.problem = "no trainer has published a model yet"
            return WAIT_S
        version = self.index.catalogue.version
        changes = await self._reader.refresh(self.index.catalogue, BLOCK_MS)
        if self.index.catalogue.version != version:
            self._confirmed_s = self._clock()
        self.index.invalidate(changes)
        self._said = self.problem = ""
        self._metrics.rows.labels(kind="item").set(len(self.index.catalogue.items))
        return 0.0

    async def _look(self) -> None:
        """Load the items if the model in Redis has another shape; else update its description."""
        model = await self._reader.model()
        self._asked_s = self._clock()
        if model is None:
            return  # an expired description leaves the loaded items in use
        await self._confirm()
        try:
            found = shapes(model)
            parse(model)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Inconsistent(
                "the model's description in Redis does not have this version's format",
                "another version wrote it: start this version's trainer",
            ) from error
        if self.index is not None and self.index.fits(model):
            self.index.tell(model)
            return
        index = ItemIndex(model, await self._reader.load(found))
        self._loaded()
        self.index = index

    async def _confirm(self) -> None:
        """Find out when the model's description was last written; a trainer writes it every second.

        Each write moves its expiry to a later time.
        """
        try:
            left_ms = await self._reader.remaining_ms()
        except Inconsistent:  # this Redis user may not run PTTL
            return
        if left_ms is None:
            return
        now_s = self._clock()
        lapses_s = now_s + left_ms / 1_000
        if self._lapses_s is None:
            self._confirmed_s = min(now_s, lapses_s - self._ttl_s)
        elif lapses_s > self._lapses_s + SLACK_S:
            self._confirmed_s = now_s
        else:
            lapses_s = self._lapses_s
        self._lapses_s = lapses_s
