"""Which items are withheld from a user, decided by a keyed hash once per clock window."""

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

# Time between checks of the shared key; after a FLUSHALL services may differ for as long.
CHECK_S = 10.0
FIRST_S = 0.5  # longest time for which a request waits for the first check
RANGE = 1 << 64  # number of hash values


@dataclass(frozen=True, slots=True)
class Lot:
    """The withholding decisions for one list."""

    withheld: Callable[[bytes], bool] | None  # says whether an item is; None: nothing is


class Withholding:
    """The keyed hash of a service; the same in all services that share the key.

    The key is derived from `exploration.seed`. If that is 0, the first service stores 32 random
    bytes in Redis, so that all workers and replicas decide alike, even after a restart. While the
    key is unknown nothing is withheld. Answers reveal neither the key nor future decisions.
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
        """Return the decisions for this user in the current clock window.

        Windows are [n, n + 1) * `join.window_s`; decisions do not change within one.
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
        """Load the key from Redis, storing ours if there is none; raise Unavailable."""
        with mapped():
            pipe: Any = self._client.pipeline(transaction=False)
            pipe.set(self._name, self._key, nx=True, ex=self._ttl_s)
            pipe.expire(self._name, self._ttl_s)
            pipe.get(self._name)
            _, _, found = await pipe.execute()
        if found:
            self._key, self._known = bytes(found), True

    async def run(self) -> None:
        """Keep the key equal to the shared one; returns at once if no key is shared."""
        said = False
        while self._shared:
            try:
                await self.look()
                said = False
            except CounterflowError as error:
                if not said:
                    log.warning("cannot confirm the withholding key: %s", error)
                said = True
            await asyncio.sleep(CHECK_S)
