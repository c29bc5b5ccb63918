"""The attribute values that each item is linked to, as in the learner."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.inference.attributes import AttributeLinks, attribute_links, weights
from stream.inference.explain import AttributeTerm
from stream.inference.rows import ServedFeatures, ServedPairs
from stream.model.features import attribute_of, label, links_of

Integers = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Read:
    """Rows of attribute values that were read, and the index of each name in them."""

    names: Mapping[str, int]
    features: ServedFeatures


class AttributeIndex:
    """A cache of items' attribute links, built on first use; names get consecutive numbers.

    All links are in flat arrays; an item whose attributes change leaves its old links behind.
    Threads share the cache: existing entries never move, and an item's links are built again if its
    description has been replaced.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._index: dict[bytes, tuple[object, int]] = {}  # item -> description, index in _begin
        self._learning = threading.Lock()
        self._begin, self._size = GrowingArray(np.intp), GrowingArray(np.intp)
        self._number, self._value = GrowingArray(np.intp), GrowingArray(np.float64)

    def of(
        self, items: Sequence[bytes], meta: Mapping[bytes, Mapping[str, Any]]
    ) -> tuple[Integers, Integers, NDArray[np.float64]]:
        """Return the items' links: index of the item, number of the name, value; (m,) each."""
        with self._learning:
            indices = [self._found(item, meta) for item in items]
        begin, size = self._begin.array[indices], self._size.array[indices]
        owner = np.repeat(np.arange(len(indices)), size)
        at = np.arange(len(owner)) + np.repeat(begin - (np.cumsum(size) - size), size)
        return owner, self._number.array[at], self._value.array[at]

    def called(self, numbers: Integers) -> list[str]:
        """Return the names with these numbers, each once."""
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
    ) -> tuple[AttributeLinks, AttributeLinks]:
        """Return the items' links as they are, and with these attributes replaced.

        New links come first, so that a full row does not drop them. Rounded values of a number that
        no item has are new values, as they are to the learner.

        Parameters
        ----------
        items : sequence of bytes
            Item ids.
        meta : mapping
            Item id -> title and attributes.
        attributes : mapping
            The attributes to set.
        read : Read
            Rows of all attribute values involved.
        most : int
            Links that a row can hold.
        """
        owner, number, value = self.of(items, meta)
        set_ = set(map(label, attributes))
        index = np.full(len(self.names), -1)
        kept = np.ones(len(self.names), np.bool_)
        for name, at in read.names.items():
            called = self._numbers.get(name, len(index))
            if called < len(index):  # else another thread has just added the name
                index[called] = at
                kept[called] = attribute_of(name) not in set_
        known = index[number] >= 0
        owner, number, value = owner[known], number[known], value[known]
        old = attribute_links(owner, index[number], value, len(items), read.features, most=most)
        stays = kept[number]
        owner, feature, value = owner[stays], index[number[stays]], value[stays]
        given = list(links_of("item", attributes))[:most]
        width, rows = len(given), np.arange(len(items))
        # each row has the new links first, then those that stay
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
        return old, attribute_links(owners, features, values, len(items), read.features, new, most)

    def parts(
        self, item: bytes, meta: Mapping[bytes, Mapping[str, Any]], read: Read, pairs: ServedPairs
    ) -> dict[str, AttributeTerm]:
        """Return what each attribute of one item adds to this user's score, by name."""
        old, _ = self.replace([item], meta, {}, read, pairs.model.max_links)
        weight = weights(old, read.features)
        bias = weight * read.features.bias[old.feature, pairs.treated]
        match = weight * (read.features.vector[old.feature] @ pairs.g)
        names = list(read.names)
        found: dict[str, AttributeTerm] = {}
        for at, one, other in zip(old.feature.tolist(), bias.tolist(), match.tolist(), strict=True):
            name = attribute_of(names[at])
            held = found.get(name, AttributeTerm(0.0, 0.0))
            found[name] = AttributeTerm(held.bias + one, held.match + other)
        return found

    def _found(self, item: bytes, meta: Mapping[bytes, Mapping[str, Any]]) -> int:
        """Return the index of the item's links for its present description."""
        said, (known, index) = meta.get(item), self._index.get(item, (self, 0))
        if known is said:
            return index
        given = list(links_of("item", (said or {}).get("attributes") or {}))
        self._begin.add([len(self._number.array)])
        self._size.add([len(given)])
        self._number.add([self._named(name) for name, _ in given])
        self._value.add([value for _, value in given])
        index = len(self._begin.array) - 1
        self._index[item] = said, index
        return index

    def _named(self, name: str) -> int:
        """Return the number of a name; a new name gets the next one."""
        number = self._numbers.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        return number


class GrowingArray:
    """An array that grows at its end, by doubling."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._held = np.zeros(64, dtype)
        self.array: NDArray[Any] = self._held[:0]

    def add(self, values: Sequence[float]) -> None:
        """Append values."""
        size = len(self.array) + len(values)
        if size > len(self._held):
            self._held = np.pad(self._held, (0, max(size, 2 * len(self._held)) - len(self._held)))
        self._held[len(self.array) : size] = values
        self.array = self._held[:size]
