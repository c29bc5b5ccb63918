"""What requests read of one user: the row and the seen items, in one read of Redis."""

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

CHUNK = 256  # rows a read: 1 to 2 ms of the client's time

log = logging.getLogger("counterflow.service")


@dataclass(frozen=True, slots=True)
class Found:
    """What one read of Redis found: packed rows, None where there is none."""

    user: bytes | None
    seen: list[bytes] = field(default_factory=list)
    features: list[bytes | None] = field(default_factory=list)
    away: bool = False  # Redis did not answer: nothing is known of the user

    @property
    def degraded(self) -> list[str] | UnsetType:
        """What an answer has to do without, as it says so."""
        return ["redis"] if self.away else UNSET


class Users:
    """Reads never write; only posted events mark items as seen."""

    def __init__(
        self, client: redis.asyncio.Redis, store: Store, prefix: str, ttl_s: int, most: int
    ) -> None:
        self._client: Any = client
        self._store = store
        self._prefix, self._ttl_s, self._bytes = prefix, ttl_s, most * seen.BYTES_AN_ITEM
        self._script: Any = self._client.register_script(SEEN)

    async def read(self, user_id: str, with_seen: bool, features: Sequence[str] = ()) -> Found:
        """Return the user's row, the items that the user has seen, and rows of attribute values.

        Without Redis the user is unknown; attribute values nothing stands in for: Unavailable.
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
            for start in range(0, len(names), CHUNK):  # a longer reply would hold the event loop
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
        """These (user, item) leave the next lists; Unavailable when Redis is away."""
        items: dict[bytes, list[bytes]] = {}
        for user, item in pairs:
            items.setdefault(user, []).append(item)
        packed = {user: pack_ids(ids) for user, ids in items.items()}
        for named, args in seen.calls(self._prefix, self._ttl_s, self._bytes, "add", packed):
            await self._store.ask(partial(self._add, named, args))

    async def _add(self, named: Sequence[bytes], args: Sequence[bytes]) -> None:
        with mapped():
            await self._script(keys=named, args=args)
