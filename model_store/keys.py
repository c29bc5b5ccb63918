"""The names of the keys in Redis: prefix, generation, letter, id."""

from collections.abc import Sequence
from typing import Final, Literal

from model_store.codec import LAYOUT, RowKind

Space = RowKind | Literal["meta", "seen"]  # values stored by id: rows, titles, seen items

GENERATION: Final = str(LAYOUT)
LETTER: Final[dict[Space, bytes]] = {
    "user": b"u",
    "item": b"i",
    "feature": b"f",
    "meta": b"meta",
    "seen": b"s",
}


def keys(prefix: str, space: Space, ids: Sequence[bytes]) -> list[bytes]:
    """Return the keys of these ids, such as `cf:4:u:7`."""
    head = b"%s:%s:%s:" % (prefix.encode(), GENERATION.encode(), LETTER[space])
    return [head + i for i in ids]


def named(prefix: str, name: str) -> bytes:
    """Return the key of a value that exists once per generation, such as `cf:4:log`."""
    return f"{prefix}:{GENERATION}:{name}".encode()


def escaped(text: bytes) -> bytes:
    """Escape the bytes for a glob pattern that matches only them."""
    return b"".join(b"\\" + bytes([c]) if c in b"*?[]^\\-" else bytes([c]) for c in text)
