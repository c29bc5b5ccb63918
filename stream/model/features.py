"""Encoding of attributes as named values, each with a numeric weight.

A value is named `{kind}␟{attribute}␟{sign}{text}`, where ␟ is 0x1F. Whatever text a producer sends,
no two values share a name, and a name has at most 256 bytes: 0x1F and 0x1B are escaped in the
parts, and a part that is too long is truncated and ends in a hash of the whole part.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

EntityKind = Literal["user", "item"]
FAR = 16.0  # standardised numbers are clipped to [-FAR, FAR]
DIGITS = (1, 2, 3)  # a number is encoded at each of these significant digits
NAME_MAX = 256  # bytes, the same as for an id
_ATTRIBUTE_MAX = 120  # bytes of it for the attribute's name
_SEPARATOR, _ESCAPE = "\x1f", "\x1b"
_HASHED = f"{_ESCAPE}h"  # precedes the hash at the end of a truncated part


def links_of(
    kind: EntityKind, attributes: Mapping[str, Any], linear: bool = True
) -> Iterator[tuple[str, float]]:
    """Yield the distinct values that the attributes stand for, as pairs (name, weight).

    A text or boolean has the weight 1. A number has the weight 1 at each of its roundings and, if
    `linear`, its own value under the name of its slope.
    """
    found: dict[str, float] = {}
    for name, value in attributes.items():
        head = _head(kind, name)
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, bool) or isinstance(one, str):
                found[_named(head, f"={one}")] = 1.0
            elif one is not None:
                number = float(one) + 0.0  # turns -0 into 0
                for digits in DIGITS:
                    found[f"{head}~{number:.{digits}g}"] = 1.0
                if linear:
                    found[f"{head}#"] = number
    yield from found.items()


def slope_name(kind: EntityKind, name: str) -> str:
    """Return the name of a number's slope."""
    return f"{_head(kind, name)}#"


def number_of(kind: EntityKind, name: str) -> str | None:
    """Return the attribute whose slope has this name, None if it is no slope of that kind."""
    if not (is_slope(name) and name.startswith(f"{kind}{_SEPARATOR}")):
        return None
    return attribute_of(name)


def is_slope(name: str) -> bool:
    """Return whether the name is that of a number's slope."""
    return name.endswith("\x1f#")


def attribute_of(name: str) -> str:
    """Return the attribute that a named value belongs to, in the form of `label`."""
    held = name.split(_SEPARATOR, 2)[1]
    return held.replace(f"{_ESCAPE}f", _SEPARATOR).replace(f"{_ESCAPE}e", _ESCAPE)


def label(attribute: str) -> str:
    """Return the name of an attribute for display: unchanged, or truncated if too long."""
    return attribute_of(f"{_SEPARATOR}{_part(attribute, _ATTRIBUTE_MAX)}")


def renamed(name: str) -> str:
    """Return the current name of a value that may have another name in an old state.

    Names in old states could have any length, and their text could contain separators.
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
    """Return the text with separators escaped, in at most `most` bytes."""
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
