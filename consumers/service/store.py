"""Redis with a short deadline, one retry, and a circuit breaker.

A connection that died while idle is not a failure: the query is repeated once on a fresh one. If
Redis fails or hangs nevertheless, the request that noticed it has waited for one deadline, and
further requests fail at once until `watch` sees Redis answer again.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import redis.asyncio

from consumers.metrics import ServiceMetrics
from model_store.wire import mapped
from stream.errors import CounterflowError, Unavailable

log = logging.getLogger("counterflow.service")

T = TypeVar("T")

PING_S = 1.0  # timeout of a ping, and time between two pings
MEND_S = 0.25  # time between two pings while Redis is unavailable
FRESH_S = 4.0  # an answer counts as recent for this long: two pings with their timeouts


class Store:
    """Runs queries of Redis; while `problem` is not None, they fail at once.

    Parameters
    ----------
    deadline_s : float
        Timeout of a query, in seconds.
    clock : callable
        Monotonic clock in seconds.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        deadline_s: float,
        metrics: ServiceMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client: Any = client
        self._deadline_s = deadline_s
        self._errors = metrics.store_errors.labels(store="redis")
        self._broken = asyncio.Event()
        self.problem: CounterflowError | None = None
        self._clock = clock
        self._heard_s = float("-inf")

    def up(self) -> bool:
        """Return whether Redis answered a ping recently and has not failed since."""
        return self.problem is None and self._clock() - self._heard_s < FRESH_S

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """Return the query's result; raise CounterflowError after the deadline at the latest."""
        if self.problem is not None:
            raise Unavailable(self.problem.message, MEND_S, self.problem.remedy)
        try:
            return await self._within(self._deadline_s, question)
        except Unavailable as error:
            self._break(error)
            raise

    async def watch(self) -> None:
        """Ping Redis repeatedly and close the circuit breaker when it answers; never returns."""
        while True:
            try:
                await self._within(PING_S, self._ping)
                if self.problem is not None:
                    log.warning("Redis answers again")
                self.problem, self._heard_s = None, self._clock()
            except CounterflowError as error:
                self._break(error)
            self._broken.clear()
            try:
                pause_s = PING_S if self.problem is None else MEND_S
                async with asyncio.timeout(pause_s):
                    await self._broken.wait()  # a failed query triggers a ping at once
            except TimeoutError:
                pass

    async def _ping(self) -> None:
        with mapped():
            await self._client.ping()

    async def _within(self, deadline_s: float, question: Callable[[], Awaitable[T]]) -> T:
        """Run the query, with one retry on a fresh connection, within the deadline."""
        try:
            async with asyncio.timeout(deadline_s):
                try:
                    return await question()
                except Unavailable:
                    # other idle connections may have died with this one
                    await self._client.connection_pool.disconnect(inuse_connections=False)
                    return await question()
        except TimeoutError:
            raise Unavailable(
                f"Redis is unavailable: no answer within {deadline_s} s", 0.5
            ) from None

    def _break(self, error: CounterflowError) -> None:
        """Open the circuit breaker: queries fail at once until Redis answers a ping."""
        self._errors.inc()
        if self.problem is None:
            log.warning("answering without Redis: %s %s", error.message, error.remedy)
        self.problem = error
        self._broken.set()
