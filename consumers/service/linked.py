"""Which attribute values each item is linked to, as the learner links them."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.inference.attributes import Links, linked, weights
from stream.inference.explain import Part
from stream.inference.rows import Features, Pairs
from stream.model.features import attribute_of, label, links_of

Integers = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Read:
    """Feature rows that were read, and the place of each name in them."""

    names: Mapping[str, int]
    features: Features


class Linked:
    """The links of described items, made when first asked for; names are numbered as they come.

    Links lie one item after the other; an item that changes leaves its old ones behind. Threads
    share it: what is there stays where it is, an item is asked for anew where its description is
    another one than that of its links.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._place: dict[bytes, tuple[object, int]] = {}  # of an item in begin and size
        self._learning = threading.Lock()
        self._begin, self._size = Grown(np.intp), Grown(np.intp)
        self._number, self._value = Grown(np.intp), Grown(np.float64)

    def of(
        self, items: Sequence[bytes], meta: Mapping[bytes, Mapping[str, Any]]
    ) -> tuple[Integers, Integers, NDArray[np.float64]]:
        """Return the links of the items: owner, number of the name, value, (m,) each."""
        with self._learning:
            places = [self._found(item, meta) for item in items]
        begin, size = self._begin.array[places], self._size.array[places]
        owner = np.repeat(np.arange(len(places)), size)
        at = np.arange(len(owner)) + np.repeat(begin - (np.cumsum(size) - size), size)
        return owner, self._number.array[at], self._value.array[at]

    def called(self, numbers: Integers) -> list[str]:
        """Return the names of these numbers, each once."""
        named = np.zeros(len(self.names), np.bool_)
        named[numbers] = True
        return [self.names[number] for number in np.flatnonzero(named).tolist()]

    def replace(
        self,
        items: Sequence[bytes],
        meta: Mapping[bytes, Mapping[str, Any]],
        attributes: Mapping[str, Any],
        read: Read,
        most: int,
    ) -> tuple[Links, Links]:
        """Return the items' links as they are, and with these attributes in place of their own.

        What is set comes first, so that it is never the value which a full row leaves out. Digits
        of a number that no item has yet are new values, as they would be to the learner.
        """
        owner, number, value = self.of(items, meta)
        set_ = set(map(label, attributes))
        place = np.full(len(self.names), -1)
        kept = np.ones(len(self.names), np.bool_)
        for name, at in read.names.items():
            called = self._numbers.get(name, len(place))
            if called < len(place):  # a name that another thread has just added is not of these
                place[called] = at
                kept[called] = attribute_of(name) not in set_
        known = place[number] >= 0
        owner, number, value = owner[known], number[known], value[known]
        old = linked(owner, place[number], value, len(items), read.features, most=most)
        stays = kept[number]
        owner, feature, value = owner[stays], place[number[stays]], value[stays]
        given = list(links_of("item", attributes))[:most]  # further ones find no room in a row
        width, rows = len(given), np.arange(len(items))
        # each row: the given links, then those that stay
        first = width * rows + np.searchsorted(owner, rows)
        fresh = (first[:, None] + np.arange(width)).ravel()
        rest = np.arange(len(owner)) + width * (owner + 1)
        owners, features = np.empty((2, len(fresh) + len(rest)), np.intp)
        values, new = np.empty(len(owners)), np.zeros(len(owners), np.bool_)
        owners[fresh], owners[rest] = np.repeat(rows, width), owner
        features[fresh] = np.tile([read.names[name] for name, _ in given], len(items))
        features[rest] = feature
        values[fresh], values[rest] = np.tile([x for _, x in given], len(items)), value
        new[fresh] = True
        return old, linked(owners, features, values, len(items), read.features, new, most)

    def parts(
        self, item: bytes, meta: Mapping[bytes, Mapping[str, Any]], read: Read, pairs: Pairs
    ) -> dict[str, Part]:
        """Return what each attribute of the one item adds for this user, by name."""
        old, _ = self.replace([item], meta, {}, read, pairs.model.max_links)
        weight = weights(old, read.features)
        bias = weight * read.features.bias[old.feature, pairs.treated]
        match = weight * (read.features.vector[old.feature] @ pairs.g)
        names = list(read.names)
        found: dict[str, Part] = {}
        for at, one, other in zip(old.feature.tolist(), bias.tolist(), match.tolist(), strict=True):
            name = attribute_of(names[at])
            held = found.get(name, Part(0.0, 0.0))
            found[name] = Part(held.bias + one, held.match + other)
        return found

    def _found(self, item: bytes, meta: Mapping[bytes, Mapping[str, Any]]) -> int:
        """Return the place of an item as it is described now."""
        said, (known, place) = meta.get(item), self._place.get(item, (self, 0))
        if known is said:
            return place
        given = list(links_of("item", (said or {}).get("attributes") or {}))
        self._begin.add([len(self._number.array)])
        self._size.add([len(given)])
        self._number.add([self._named(name) for name, _ in given])
        self._value.add([value for _, value in given])
        place = len(self._begin.array) - 1
        self._place[item] = said, place
        return place

    def _named(self, name: str) -> int:
        number = self._numbers.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        return number


class Grown:
    """An array that grows at its end; doubling keeps copies rare."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._held = np.zeros(64, dtype)
        self.array: NDArray[Any] = self._held[:0]

    def add(self, values: Sequence[float]) -> None:
        """The values stand at the end after the call."""
        size = len(self.array) + len(values)
        if size > len(self._held):
            self._held = np.pad(self._held, (0, max(size, 2 * len(self._held)) - len(self._held)))
        self._held[len(self.array) : size] = values
        self.array = self._held[:size]
