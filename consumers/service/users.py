"""Reading a user's row and seen items from Redis in one round trip."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import redis.asyncio
from msgspec import UNSET, UnsetType

from consumers.service.store import Store
from model_store import seen
from model_store.codec import pack_ids
from model_store.keys import keys
from model_store.scripts import SEEN
from model_store.wire import mapped
from stream.errors import CounterflowError

CHUNK = 256  # keys per read: decoding takes 1 to 2 ms

log = logging.getLogger("counterflow.service")


@dataclass(frozen=True, slots=True)
class Found:
    """What a read of Redis found: encoded rows, None where there is none."""

    user: bytes | None
    seen: list[bytes] = field(default_factory=list)
    features: list[bytes | None] = field(default_factory=list)
    away: bool = False  # Redis did not answer, so nothing is known of the user

    @property
    def degraded(self) -> list[str] | UnsetType:
        """The unavailable dependencies, as the answer lists them."""
        return ["redis"] if self.away else UNSET


class Users:
    """Reads users' rows; writes nothing but seen items of posted events."""

    def __init__(
        self, client: redis.asyncio.Redis, store: Store, prefix: str, ttl_s: int, most: int
    ) -> None:
        self._client: Any = client
        self._store = store
        self._prefix, self._ttl_s, self._bytes = prefix, ttl_s, most * seen.BYTES_AN_ITEM
        self._script: Any = self._client.register_script(SEEN)

    async def read(self, user_id: str, with_seen: bool, features: Sequence[str] = ()) -> Found:
        """Return the user's row, the user's seen items, and the rows of attribute values.

        If Redis is unavailable the user is unknown; if attribute values are needed, raise
        Unavailable, as nothing can replace them.
        """
        user = user_id.encode()
        names = keys(self._prefix, "user", [user])
        if with_seen:
            names += keys(self._prefix, "seen", [user])
        begin = len(names)
        ids = [name.encode(errors="surrogatepass") for name in features]
        names += keys(self._prefix, "feature", ids)
        rows: list[bytes | None] = []
        try:
            for start in range(0, len(names), CHUNK):  # a longer reply would block the event loop
                rows += await self._store.ask(partial(self._get, names[start : start + CHUNK]))
        except CounterflowError:
            if features:
                raise
            return Found(None, away=True)
        return Found(rows[0], seen.unpack(rows[1] if with_seen else None), rows[begin:])

    async def _get(self, names: Sequence[bytes]) -> list[bytes | None]:
        with mapped():
            return list(await self._client.mget(names))

    async def mark(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Exclude the items of these (user, item) pairs from later lists; raise Unavailable."""
        items: dict[bytes, list[bytes]] = {}
        for user, item in pairs:
            items.setdefault(user, []).append(item)
        packed = {user: pack_ids(ids) for user, ids in items.items()}
        for named, args in seen.calls(self._prefix, self._ttl_s, self._bytes, "add", packed):
            await self._store.ask(partial(self._add, named, args))

    async def _add(self, named: Sequence[bytes], args: Sequence[bytes]) -> None:
        with mapped():
            await self._script(keys=named, args=args)
