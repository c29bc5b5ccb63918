"""What requests read of one user: the row and the seen items, in one read of Redis."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import redis.asyncio

from model_store import seen
from model_store.codec import pack_ids, unpack_ids
from model_store.vectors import keys, mapped

log = logging.getLogger("counterflow.service")


class Users:
    """Reads never write; only posted events mark items as seen."""

    def __init__(self, client: redis.asyncio.Redis, prefix: str, ttl_s: int, most: int) -> None:
        self._client: Any = client
        self._prefix, self._ttl_s, self._most = prefix, ttl_s, most
        self._script: Any = self._client.register_script(seen.MARK)

    async def read(self, user_id: str, with_seen: bool) -> tuple[bytes | None, list[bytes]]:
        """Return the user's row, None without one, and the items that the user has seen."""
        user = user_id.encode()
        names = keys(self._prefix, "user", [user])
        if with_seen:
            names.append(seen.key(self._prefix, user))
        with mapped():
            row, *rest = await self._client.mget(names)
        packed = rest[0] if rest else None
        return row, list(dict.fromkeys(unpack_ids(packed))) if packed else []

    async def mark(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """These (user, item) leave the next lists; Unavailable when Redis is away."""
        items: dict[bytes, list[bytes]] = {}
        for user, item in pairs:
            items.setdefault(user, []).append(item)
        packed: Mapping[bytes, bytes] = {user: pack_ids(ids) for user, ids in items.items()}
        if packed:
            named, args = seen.arguments(self._prefix, self._ttl_s, self._most, packed)
            with mapped():
                await self._script(keys=named, args=args)
