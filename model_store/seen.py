"""Which items each user has clicked or rated, newest last, so that lists can leave them out.

One string a user, `cf:4:s:7`: item ids behind their lengths, as `pack_ids` writes them. An id may
stand twice, and an empty one at the front says that the list is whole (scripts.py); readers make a
set of the others. Marking or restoring again changes nothing that a reader sees.
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

BYTES_AN_ITEM: Final = 16  # two of length, and ids of up to 14 bytes on average
CHUNK: Final = 256  # users a script call: 1 to 3 ms in which Redis serves nobody else
_SHA: Final = sha(SEEN)


class Seen:
    """What marks items as seen; servers mark what is posted to them by the same script."""

    def __init__(
        self, client: redis.Redis, prefix: str = "cf", ttl_s: int = 86_400, most: int = 2_000
    ) -> None:
        self._client: Any = client
        self._prefix, self._ttl_s = prefix, ttl_s
        self.bytes = most * BYTES_AN_ITEM  # what a cut leaves of a list

    def mark(self, packed: Mapping[bytes, bytes]) -> None:
        """These users have seen these packed items after the call; Unavailable: mark again."""
        send(self._client, self.commands("add", packed), [SEEN])

    def commands(self, how: How, packed: Mapping[bytes, bytes], stamp: bytes = b"") -> list[bytes]:
        """Commands for `RedisVectors.write`; under a stamp, lists of newer rows are left alone."""
        return [
            command(b"EVALSHA", _SHA, b"%d" % len(names), *names, *args)
            for names, args in calls(self._prefix, self._ttl_s, self.bytes, how, packed, stamp)
        ]


def calls(
    prefix: str, ttl_s: int, most: int, how: How, packed: Mapping[bytes, bytes], stamp: bytes = b""
) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Yield the script's keys and arguments; `packed` maps users to packed ids."""
    users = list(packed)
    for begin in range(0, len(users), CHUNK):
        some = users[begin : begin + CHUNK]
        names = keys(prefix, "seen", some)
        if stamp:
            names += keys(prefix, "user", some)
        args = [b"%d" % ttl_s, b"%d" % most, stamp, how.encode()]
        yield names, [*args, *(packed[user] for user in some)]


def unpack(data: bytes | None) -> list[bytes]:
    """The items of a list, each once, in the order in which they were first seen."""
    found = dict.fromkeys(unpack_ids(data or b""))
    found.pop(b"", None)
    return list(found)


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


def latest(
    history: npt.NDArray[np.int32],  # (n, 1 + H): how many were written, then a ring of H items,
    # -1 where one was removed
    packed_items: Sequence[bytes],
    most: int,
) -> list[bytes]:
    """Return the packed items of each ring, oldest first, the newest that fit into `most` bytes."""
    size = history.shape[1] - 1
    written = history[:, 0]
    begin = np.where(written > size, written, 0)  # a full ring begins where it is written next
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
