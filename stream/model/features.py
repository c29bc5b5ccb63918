"""Attributes as named values: what an attribute stands for, and with which weight."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

Kind = Literal["user", "item"]
DIGITS = (1, 2, 3)  # a number is learned at these significant digits: coarse ones generalise


def links_of(
    kind: Kind, attributes: Mapping[str, Any], linear: bool = True
) -> Iterator[tuple[str, float]]:
    """Name the values that an entity's attributes stand for, each once, with its value.

    Texts and booleans have the value 1; a number has 1 at each of its rounded digits, and its own
    value under the name of its slope.
    """
    found: dict[str, float] = {}
    for name, value in attributes.items():
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, bool) or isinstance(one, str):
                found[f"{kind}\x1f{name}\x1f={one}"] = 1.0
            elif one is not None:
                for digits in DIGITS:
                    found[f"{kind}\x1f{name}\x1f~{float(one):.{digits}g}"] = 1.0
                if linear:
                    found[slope_name(kind, name)] = float(one)
    yield from found.items()


def slope_name(kind: Kind, name: str) -> str:
    """Return the name of a number's slope."""
    return f"{kind}\x1f{name}\x1f#"


def number_of(kind: Kind, name: str) -> str | None:
    """Return the attribute whose slope is so named, None if it is no slope of that kind."""
    if not (is_slope(name) and name.startswith(f"{kind}\x1f")):
        return None
    return name.split("\x1f")[1]


def is_slope(name: str) -> bool:
    """Return whether the name is that of a number's slope."""
    return name.endswith("\x1f#")
