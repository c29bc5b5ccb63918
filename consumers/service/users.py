"""What requests read of one user: the row and the seen items, in one read of Redis."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis.asyncio

from model_store import seen
from model_store.codec import pack_ids
from model_store.keys import keys
from model_store.scripts import SEEN
from model_store.wire import mapped

log = logging.getLogger("counterflow.service")


@dataclass(frozen=True, slots=True)
class Found:
    """What one read of Redis found: packed rows, None where there is none."""

    user: bytes | None
    seen: list[bytes] = field(default_factory=list)
    features: list[bytes | None] = field(default_factory=list)


class Users:
    """Reads never write; only posted events mark items as seen."""

    def __init__(self, client: redis.asyncio.Redis, prefix: str, ttl_s: int, most: int) -> None:
        self._client: Any = client
        self._prefix, self._ttl_s, self._bytes = prefix, ttl_s, most * seen.BYTES_AN_ITEM
        self._script: Any = self._client.register_script(SEEN)

    async def read(self, user_id: str, with_seen: bool, features: Sequence[str] = ()) -> Found:
        """Return the user's row, the items that the user has seen, and rows of attribute values."""
        user = user_id.encode()
        names = keys(self._prefix, "user", [user])
        if with_seen:
            names += keys(self._prefix, "seen", [user])
        begin = len(names)
        ids = [name.encode(errors="surrogatepass") for name in features]
        names += keys(self._prefix, "feature", ids)
        with mapped():
            rows = await self._client.mget(names)
        return Found(rows[0], seen.unpack(rows[1] if with_seen else None), rows[begin:])

    async def mark(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """These (user, item) leave the next lists; Unavailable when Redis is away."""
        items: dict[bytes, list[bytes]] = {}
        for user, item in pairs:
            items.setdefault(user, []).append(item)
        packed = {user: pack_ids(ids) for user, ids in items.items()}
        for named, args in seen.calls(self._prefix, self._ttl_s, self._bytes, "add", packed):
            with mapped():
                await self._script(keys=named, args=args)
