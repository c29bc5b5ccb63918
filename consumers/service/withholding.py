"""Which item is withheld from whom: by a keyed hash, one decision a window of the clock."""

import asyncio
import contextlib
import hashlib
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis.asyncio

from consumers.settings import Settings
from model_store.wire import mapped
from stream.errors import CounterflowError

log = logging.getLogger("counterflow.service")

CHECK_S = 10.0  # between two looks at the shared key: so long after a FLUSHALL two may differ
FIRST_S = 0.5  # longest wait of a request for the first look
RANGE = 1 << 64


@dataclass(frozen=True, slots=True)
class Lot:
    """What one list leaves to chance."""

    withheld: Callable[[bytes], bool] | None  # whether an item is; None: nothing is


class Withholding:
    """The keyed hash of one service; the same in all that share the key.

    The key comes from `exploration.seed`, else it is 32 random bytes that the first service puts
    into Redis, so that all workers and replicas decide alike, and again after a restart. While it
    is not known nothing is withheld. No answer tells the key, nor what it will withhold next.
    """

    def __init__(self, settings: Settings, client: redis.asyncio.Redis) -> None:
        chosen, self._client = settings.exploration, client
        self._below = int(chosen.withhold * RANGE)
        self._window_ms = max(int(settings.join.window_s * 1000), 1)
        self._name = f"{settings.redis.prefix}:withhold"
        self._ttl_s = int(max(settings.redis.ttl_s, 2 * settings.join.window_s)) + 1
        self._shared = chosen.withhold > 0 and not chosen.seed
        self._key = hashlib.blake2b(b"%d" % chosen.seed, digest_size=32).digest()
        self._known = chosen.withhold > 0 and not self._shared
        if self._shared:
            self._key = secrets.token_bytes(32)

    async def of(self, user_id: str, now_ms: int) -> "Lot":
        """Return what decides of an item whether it is withheld from the user now.

        The same for each moment in a window of the clock, [n, n + 1) * join.window_s.
        """
        if self._shared and not self._known:
            with contextlib.suppress(CounterflowError, TimeoutError):
                await asyncio.wait_for(self.look(), FIRST_S)
        if not self._known:
            return Lot(None)
        user = user_id.encode()
        base = hashlib.blake2b(b"%d:%d:" % (now_ms // self._window_ms, len(user)), digest_size=8,
                               key=self._key)  # fmt: skip
        base.update(user)

        def withheld(item: bytes) -> bool:
            hashed = base.copy()
            hashed.update(item)
            return int.from_bytes(hashed.digest(), "little") < self._below

        return Lot(withheld)

    async def look(self) -> None:
        """The key is the one in Redis after the call, ours if there was none; Unavailable."""
        with mapped():
            pipe: Any = self._client.pipeline(transaction=False)
            pipe.set(self._name, self._key, nx=True, ex=self._ttl_s)
            pipe.expire(self._name, self._ttl_s)
            pipe.get(self._name)
            _, _, found = await pipe.execute()
        if found:
            self._key, self._known = bytes(found), True

    async def run(self) -> None:
        """The key stays the shared one; returns at once where there is none to share."""
        said = False
        while self._shared:
            try:
                await self.look()
                said = False
            except CounterflowError as error:
                if not said:
                    log.warning("the key of withholding is not confirmed: %s", error)
                said = True
            await asyncio.sleep(CHECK_S)
