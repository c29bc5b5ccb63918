"""The names of what lies in Redis: prefix, generation, letter, id."""

from collections.abc import Sequence
from typing import Final, Literal

from model_store.codec import LAYOUT, Kind

Space = Kind | Literal["meta", "seen"]  # what is kept by id: rows, titles, seen items

GENERATION: Final = str(LAYOUT)
LETTER: Final[dict[Space, bytes]] = {
    "user": b"u",
    "item": b"i",
    "feature": b"f",
    "meta": b"meta",
    "seen": b"s",
}


def keys(prefix: str, space: Space, ids: Sequence[bytes]) -> list[bytes]:
    """The keys of these ids: `cf:4:u:7`."""
    head = b"%s:%s:%s:" % (prefix.encode(), GENERATION.encode(), LETTER[space])
    return [head + i for i in ids]


def named(prefix: str, name: str) -> bytes:
    """The key of something that stands once in a generation: `cf:4:log`."""
    return f"{prefix}:{GENERATION}:{name}".encode()


def escaped(text: bytes) -> bytes:
    """The bytes as a glob pattern that matches only themselves."""
    return b"".join(b"\\" + bytes([c]) if c in b"*?[]^\\-" else bytes([c]) for c in text)
