"""Which items each user has clicked or rated, newest last, so that lists can leave them out.

One string a user, `cf:3:s:7`: item ids behind their lengths, as `pack_ids` writes them. A script
appends, sets the TTL, and cuts whole ids from the front when the string is twice too long. An id
may stand twice; readers make a set of them. Marking again changes nothing that a reader sees.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import redis

from model_store.codec import pack_ids
from model_store.vectors import GENERATION, mapped

BYTES_AN_ITEM: Final = 16  # two of length, and ids of up to 14 bytes on average
CHUNK: Final = 512  # users a script call

MARK: Final = """
local most = tonumber(ARGV[2])
for i, key in ipairs(KEYS) do
  local size = redis.call('APPEND', key, ARGV[i + 2])
  if size > 2 * most then
    local all, at = redis.call('GET', key), 1
    while size - at + 1 > most do
      at = at + 2 + 256 * all:byte(at) + all:byte(at + 1)
    end
    redis.call('SET', key, all:sub(at))
  end
  redis.call('EXPIRE', key, ARGV[1])
end
return #KEYS
"""


def key(prefix: str, user_id: bytes) -> bytes:
    """Return the key of a user's seen items."""
    return b"%s:%s:s:%s" % (prefix.encode(), GENERATION.encode(), user_id)


def arguments(
    prefix: str, ttl_s: int, most: int, packed: Mapping[bytes, bytes]
) -> tuple[list[bytes], list[bytes]]:
    """Return the script's keys and arguments; `packed` maps users to packed ids."""
    keys = [key(prefix, user_id) for user_id in packed]
    return keys, [b"%d" % ttl_s, b"%d" % (most * BYTES_AN_ITEM), *packed.values()]


class Seen:
    """The trainer's side; servers mark what is posted to them by the same script."""

    def __init__(
        self, client: redis.Redis, prefix: str = "cf", ttl_s: int = 86_400, most: int = 2_000
    ) -> None:
        self._client: Any = client
        self._script: Any = self._client.register_script(MARK)
        self._prefix, self._ttl_s, self._most = prefix, ttl_s, most

    def mark(self, packed: Mapping[bytes, bytes]) -> None:
        """These users have seen these packed items after the call; Unavailable: mark again."""
        users = list(packed)
        for begin in range(0, len(users), CHUNK):
            some = {user: packed[user] for user in users[begin : begin + CHUNK]}
            keys, args = arguments(self._prefix, self._ttl_s, self._most, some)
            with mapped():
                self._script(keys=keys, args=args)


def group(
    user: npt.NDArray[np.int32],  # (n,)
    item: npt.NDArray[np.int32],  # (n,)
    packed_items: Sequence[bytes],  # by item row: pack_ids([id])
) -> tuple[npt.NDArray[np.int32], list[bytes]]:
    """Return the user rows, sorted and unique, and the packed items of each, in order."""
    if not len(user):
        return user, []
    order = np.argsort(user, kind="stable")
    rows, begins = np.unique(user[order], return_index=True)
    parts = [packed_items[row] for row in item[order].tolist()]
    ends = [*begins[1:].tolist(), len(parts)]
    joined = [b"".join(parts[begin:end]) for begin, end in zip(begins.tolist(), ends, strict=True)]
    return rows.astype(np.int32), joined


def pack(items: Sequence[bytes]) -> bytes:
    """Return item ids as they stand in the string."""
    return pack_ids(items)
