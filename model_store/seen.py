"""Lists of the items that each user has clicked or rated, newest last, to exclude them later.

Each user has one string, `cf:4:s:7`: item ids behind their lengths, as `pack_ids` encodes them. An
id may occur twice, and an empty id at the front marks a complete list (scripts.py). Readers use the
set of ids, so adding or restoring items again changes nothing for them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import redis

from model_store.codec import unpack_ids
from model_store.keys import keys
from model_store.scripts import SEEN, sha
from model_store.wire import command, send

How = Literal["add", "restore", "drop"]

BYTES_AN_ITEM: Final = 16  # two for the length, and an id of 14 bytes on average
CHUNK: Final = 256  # users per script call, which blocks Redis for 1 to 3 ms
_SHA: Final = sha(SEEN)


class SeenItems:
    """Writes lists of seen items, for the trainer and for events posted to the service.

    Parameters
    ----------
    ttl_s : int
        Lifetime of a list in seconds, counted from its last change.
    most : int
        Items kept when a list is trimmed, at `BYTES_AN_ITEM` bytes each.
    """

    def __init__(
        self, client: redis.Redis, prefix: str = "cf", ttl_s: int = 86_400, most: int = 2_000
    ) -> None:
        self._client: Any = client
        self._prefix, self._ttl_s = prefix, ttl_s
        self.bytes = most * BYTES_AN_ITEM  # bytes kept when a list is trimmed

    def mark(self, packed: Mapping[bytes, bytes]) -> None:
        """Append packed items to the users' lists; may be repeated after Unavailable."""
        send(self._client, self.commands("add", packed), [SEEN])

    def commands(self, how: How, packed: Mapping[bytes, bytes], stamp: bytes = b"") -> list[bytes]:
        """Return the commands for `RedisVectors.write`.

        With a stamp, lists of users whose row is newer than the stamp are not changed.
        """
        return [
            command(b"EVALSHA", _SHA, b"%d" % len(names), *names, *args)
            for names, args in calls(self._prefix, self._ttl_s, self.bytes, how, packed, stamp)
        ]


def calls(
    prefix: str, ttl_s: int, most: int, how: How, packed: Mapping[bytes, bytes], stamp: bytes = b""
) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Yield keys and arguments for each script call; `packed` maps users to packed ids."""
    users = list(packed)
    for begin in range(0, len(users), CHUNK):
        some = users[begin : begin + CHUNK]
        names = keys(prefix, "seen", some)
        if stamp:
            names += keys(prefix, "user", some)
        args = [b"%d" % ttl_s, b"%d" % most, stamp, how.encode()]
        yield names, [*args, *(packed[user] for user in some)]


def unpack(data: bytes | None) -> list[bytes]:
    """Return the items of a list, each once, in the order in which they were first seen."""
    found = dict.fromkeys(unpack_ids(data or b""))
    found.pop(b"", None)
    return list(found)


def group(
    user: npt.NDArray[np.int32],
    item: npt.NDArray[np.int32],
    packed_items: Sequence[bytes],
) -> tuple[npt.NDArray[np.int32], list[bytes]]:
    """Group items by user.

    Parameters
    ----------
    user, item : array of int32, shape (n,)
        Row of the user and of the item of each outcome.
    packed_items : sequence of bytes
        `pack_ids([id])` by item row.

    Returns
    -------
    tuple
        The user rows, sorted and unique, and each user's packed items in order.
    """
    if not len(user):
        return user, []
    order = np.argsort(user, kind="stable")
    rows, begins = np.unique(user[order], return_index=True)
    parts = [packed_items[row] for row in item[order].tolist()]
    ends = [*begins[1:].tolist(), len(parts)]
    joined = [b"".join(parts[begin:end]) for begin, end in zip(begins.tolist(), ends, strict=True)]
    return rows.astype(np.int32), joined


def latest(
    history: npt.NDArray[np.int32],
    packed_items: Sequence[bytes],
    most: int,
) -> list[bytes]:
    """Return each user's newest packed items, oldest first, that fit into `most` bytes.

    Parameters
    ----------
    history : array of int32, shape (n, 1 + H)
        How many items were ever written, then a ring buffer of H item rows; -1 for a removed item.
    packed_items : sequence of bytes
        `pack_ids([id])` by item row.
    most : int
        Limit of bytes for each user.
    """
    size = history.shape[1] - 1
    written = history[:, 0]
    begin = np.where(written > size, written, 0)  # a full ring's oldest item is written next
    at = (begin[:, None] + np.arange(size)) % size  # (n, H)
    items = np.take_along_axis(history[:, 1:], at, 1)  # (n, H)
    counts = np.minimum(written, size)
    held = items[np.arange(size) < counts[:, None]]
    parts = [packed_items[item] if item >= 0 else b"" for item in held.tolist()]
    packed, stop = [], 0
    for count in counts.tolist():
        start, stop = stop, stop + count
        room = most - sum(map(len, parts[start:stop]))
        while room < 0:
            room += len(parts[start])
            start += 1
        packed.append(b"".join(parts[start:stop]))
    return packed
