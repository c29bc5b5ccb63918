"""Attributes as named values: what an attribute stands for, and with which weight.

A value is named `{kind}␟{attribute}␟{sign}{text}`, ␟ being 0x1F. Whatever a producer's text holds,
no two values share a name, and a name has at most 256 bytes: 0x1F and 0x1B are escaped in the
parts, and a part that is too long is cut and ends in a hash of all of it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

Kind = Literal["user", "item"]
FAR = 16.0  # deviations from its center, beyond which a number acts as one that far
DIGITS = (1, 2, 3)  # a number is learned at these significant digits: coarse ones generalise
NAME_MAX = 256  # bytes, as an id has at most
_ATTRIBUTE_MAX = 120  # of which an attribute's own name
_SEPARATOR, _ESCAPE = "\x1f", "\x1b"
_HASHED = f"{_ESCAPE}h"  # ends a part that was cut, before its hash


def links_of(
    kind: Kind, attributes: Mapping[str, Any], linear: bool = True
) -> Iterator[tuple[str, float]]:
    """Name the values that an entity's attributes stand for, each once, with its value.

    Texts and booleans have the value 1; a number has 1 at each of its rounded digits, and its own
    value under the name of its slope.
    """
    found: dict[str, float] = {}
    for name, value in attributes.items():
        head = _head(kind, name)
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, bool) or isinstance(one, str):
                found[_named(head, f"={one}")] = 1.0
            elif one is not None:
                number = float(one) + 0.0  # the sum of -0 and 0 is 0
                for digits in DIGITS:
                    found[f"{head}~{number:.{digits}g}"] = 1.0
                if linear:
                    found[f"{head}#"] = number
    yield from found.items()


def slope_name(kind: Kind, name: str) -> str:
    """Return the name of a number's slope."""
    return f"{_head(kind, name)}#"


def number_of(kind: Kind, name: str) -> str | None:
    """Return the attribute whose slope is so named, None if it is no slope of that kind."""
    if not (is_slope(name) and name.startswith(f"{kind}{_SEPARATOR}")):
        return None
    return attribute_of(name)


def is_slope(name: str) -> bool:
    """Return whether the name is that of a number's slope."""
    return name.endswith("\x1f#")


def attribute_of(name: str) -> str:
    """Return the attribute that a feature is a value of, as `label` writes it."""
    held = name.split(_SEPARATOR, 2)[1]
    return held.replace(f"{_ESCAPE}f", _SEPARATOR).replace(f"{_ESCAPE}e", _ESCAPE)


def label(attribute: str) -> str:
    """Return how figures name an attribute: as it is, but where it is too long."""
    return attribute_of(f"{_SEPARATOR}{_part(attribute, _ATTRIBUTE_MAX)}")


def renamed(name: str) -> str:
    """Return the name that a value has now, which may have another in an older state.

    There it could be of any length, and its text hold separators of its own.
    """
    if len(_bytes(name)) <= NAME_MAX and name.count(_SEPARATOR) == 2:
        return name
    kind, attribute, said = name.split(_SEPARATOR, 2)
    return _named(_head(kind, attribute), said)


def _head(kind: str, attribute: str) -> str:
    return f"{kind}{_SEPARATOR}{_part(attribute, _ATTRIBUTE_MAX)}{_SEPARATOR}"


def _named(head: str, said: str) -> str:
    return head + _part(said, NAME_MAX - len(head if head.isascii() else _bytes(head)))


def _part(text: str, most: int) -> str:
    """Return the text without separators, in at most so many bytes."""
    part = text
    if _ESCAPE in text or _SEPARATOR in text:
        part = text.replace(_ESCAPE, f"{_ESCAPE}e").replace(_SEPARATOR, f"{_ESCAPE}f")
    if 4 * len(part) <= most:
        return part
    held = _bytes(part)
    if len(held) <= most:
        return part
    seal = _HASHED + hashlib.blake2b(held, digest_size=16).hexdigest()
    begin = held[: most - len(seal)].decode(errors="ignore").rstrip(_ESCAPE)
    return begin + seal


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
