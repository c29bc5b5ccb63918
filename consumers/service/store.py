"""Redis as requests ask it: a short deadline, one more try, and no waiting for one that is away.

A connection that died while it lay idle is no failure: what is asked is asked once more, on a fresh
one. When Redis fails or hangs all the same, the request that found out has waited for one deadline,
and the others are told at once (a circuit breaker), until `watch` finds that Redis answers again.
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

PING_S = 1.0  # longest wait for a sign of life, and between two of them
MEND_S = 0.25  # between two while Redis is away
FRESH_S = 4.0  # a sign of life counts for so long: two of them, with their longest waits


class Store:
    """Asks Redis for requests; `problem` is why it is not asked at present, None if it is."""

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
        """Return whether it gave a sign of life a moment ago, and has not failed since."""
        return self.problem is None and self._clock() - self._heard_s < FRESH_S

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """Return the answer; raises CounterflowError at the latest after the deadline."""
        if self.problem is not None:
            raise Unavailable(self.problem.message, MEND_S, self.problem.remedy)
        try:
            return await self._within(self._deadline_s, question)
        except Unavailable as error:
            self._break(error)
            raise

    async def watch(self) -> None:
        """Never returns; Redis is asked for a sign of life, and trusted again when it gives one."""
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
                    await self._broken.wait()  # who finds it broken has it looked at, at once
            except TimeoutError:
                pass

    async def _ping(self) -> None:
        with mapped():
            await self._client.ping()

    async def _within(self, deadline_s: float, question: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(deadline_s):
                try:
                    return await question()
                except Unavailable:
                    # others that lie idle may have died with it
                    await self._client.connection_pool.disconnect(inuse_connections=False)
                    return await question()
        except TimeoutError:
            raise Unavailable(f"Redis is away: no answer within {deadline_s} s", 0.5) from None

    def _break(self, error: CounterflowError) -> None:
        """Nobody waits for Redis after the call, until it gives a sign of life."""
        self._errors.inc()
        if self.problem is None:
            log.warning("answering without Redis: %s %s", error.message, error.remedy)
        self.problem = error
        self._broken.set()
