"""All items in memory, as requests see them: rows to score, titles, and filters on attributes.

Only the follower changes the item index, on the event loop; requests never add items. Work in a
thread uses a view, which does not change.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from consumers.service.attribute_index import AttributeIndex, Read
from consumers.service.requests import Condition, Filter
from model_store.codec import Shapes, shapes, unpack_many
from model_store.reader import Catalogue, Changes
from stream.inference.model import Floats, PublishedOutcome, parse
from stream.inference.rows import ServedFeatures, ServedItems, ServedPairs, ServedUser

FILTERS_MAX = 256  # results of filters that are cached until an attribute changes
MATCHED_MAX = 1_000_000  # items in all cached results together

Rows = NDArray[np.intp]


class ItemIndex:
    """The items in memory, the model's description, and what is derived from both.

    Parameters
    ----------
    model : mapping
        The trainer's description of the model.
    catalogue : Catalogue
        Item rows and titles, kept up to date by the reader.
    """

    def __init__(self, model: Mapping[str, Any], catalogue: Catalogue) -> None:
        self.shapes: Shapes = shapes(model)
        self.catalogue = catalogue
        self.attributes = AttributeIndex()
        self._matching = Matching()
        self._changed = 0  # items whose attributes changed since the links were last rebuilt
        self.tell(model)

    def view(self) -> "ItemIndex":
        """Return a view for another thread, which later changes do not reach."""
        twin = copy.copy(self)
        twin.catalogue = self.catalogue.view()
        return twin

    def alone(self) -> "ItemIndex":
        """Return a copy with attribute links of its own, so that it waits for no other thread."""
        twin = copy.copy(self)
        twin.attributes = AttributeIndex()
        return twin

    def tell(self, model: Mapping[str, Any]) -> None:
        """Replace the model's description; its rows must have the same shapes."""
        self.model = dict(model)
        self.parsed = parse(model)
        self.outcomes = self.parsed.outcomes

    def globals(self) -> Floats:
        """Return the newest global terms, shape (2Y,) for a causal model, else (Y,)."""
        size = len(self.outcomes) * (2 if self.parsed.causal else 1)
        newest = self.catalogue.globals_
        if len(newest) == size:
            return newest
        given = self.model.get("globals") or self.model.get("global_bias") or []
        return np.resize(np.asarray(given, np.float32), size) if given else np.zeros(size, "f4")

    def fits(self, model: Mapping[str, Any]) -> bool:
        """Return whether that model's rows have the same shapes as this one's."""
        return shapes(model) == self.shapes and len(model["outcomes"]) == len(self.outcomes)

    def user(self, payload: bytes | None) -> ServedUser | None:
        """Decode a user's row; None if there is none of this shape."""
        if payload is None:
            return None
        row = unpack_many([payload], self.shapes["user"])
        if not row.present[0]:
            return None
        counts = (int(each[0]) for each in (row.events, row.exposures, row.controls))
        return ServedUser(row.bias[0], row.vector[0], *counts)

    def pairs(
        self, outcome: PublishedOutcome, user: ServedUser | None, rows: Rows | None = None
    ) -> ServedPairs:
        """Return the user paired with the items of these rows, or with all items.

        Without a user, it is the average user, whose biases and factors are 0.
        """
        shape, held = self.shapes["user"], self.catalogue.items
        average = ServedUser(np.zeros(shape[0], np.float32), np.zeros(shape[1], np.float32))
        items = ServedItems(held.bias, held.vector, held.events, held.exposures, held.controls)
        return ServedPairs(
            self.parsed,
            outcome,
            self.globals(),
            user or average,
            items if rows is None else items.take(rows),
        )

    def features(self, names: Sequence[str], payloads: Sequence[bytes | None]) -> Read:
        """Decode the rows of attribute values, read under these names."""
        row = unpack_many(payloads, self.shapes["feature"])
        rows_by_name = {name: at for at, name in enumerate(names)}
        return Read(rows_by_name, ServedFeatures(row.bias, row.vector, row.events, row.present))

    def find_rows(self, ids: Sequence[str]) -> tuple[Rows, list[str]]:
        """Return the rows of known items and the ids of unknown ones, in order, each once."""
        row_of = self.catalogue.items.row
        found: list[int] = []
        unknown: list[str] = []
        for item in dict.fromkeys(ids):
            row = row_of.get(item.encode(), -1)
            if row >= 0:
                found.append(row)
            else:
                unknown.append(item)
        return np.array(found, np.intp), unknown

    def candidates(self, filters: Mapping[str, Filter], without: Sequence[bytes]) -> Rows | None:
        """Return the rows that satisfy every filter and are not excluded; None for all rows."""
        if not filters and not without:
            return None
        items = self.catalogue.items
        if filters:
            wanted = np.zeros(len(items), np.bool_)
            wanted[[items.row[item] for item in self._satisfy(filters) if item in items.row]] = True
        else:
            wanted = np.ones(len(items), np.bool_)
        wanted[[items.row[item] for item in without if item in items.row]] = False
        return np.flatnonzero(wanted)

    def invalidate(self, changes: Changes) -> None:
        """Drop cached filter results if any attribute changed, and links when many did."""
        if changes.reloaded or changes.meta:
            self._matching = Matching()
            self._changed += len(changes.meta)
            if changes.reloaded or self._changed > len(self.catalogue.meta):
                self.attributes, self._changed = AttributeIndex(), 0

    def remembers(self, filters: Mapping[str, Filter]) -> bool:
        """Return whether the result of these filters is cached."""
        return Matching.name(filters) in self._matching.held

    def _satisfy(self, filters: Mapping[str, Filter]) -> list[bytes]:
        """Return the ids of all items that satisfy the filters, with or without a row."""
        name, matching = Matching.name(filters), self._matching
        found = matching.held.get(name)
        if found is None:
            tests = [(name, matcher(wanted)) for name, wanted in filters.items()]
            found = [
                item
                for item, meta in self.catalogue.meta.items()
                if satisfies(tests, meta.get("attributes") or {})
            ]
            matching.put(name, found)
        return found


class Matching:
    """A cache of the items that satisfy a set of filters, valid until any attribute changes.

    Views share it; two threads may compute and store the same result.
    """

    def __init__(self) -> None:
        self.held: dict[bytes, list[bytes]] = {}
        self._size = 0

    @staticmethod
    def name(filters: Mapping[str, Filter]) -> bytes:
        """Return the cache key of the filters."""
        return msgspec.json.encode(filters, order="sorted")

    def put(self, name: bytes, found: list[bytes]) -> None:
        """Store a result; if the cache is full it is cleared first."""
        if len(self.held) >= FILTERS_MAX or self._size + len(found) > MATCHED_MAX:
            self.held.clear()
            self._size = 0
        self._size += len(found)
        self.held[name] = found


Test = Callable[[Any], bool]


def satisfies(tests: Sequence[tuple[str, Test]], attributes: Mapping[str, Any]) -> bool:
    """Return whether the attributes satisfy every filter."""
    return all(test(attributes.get(name)) for name, test in tests)


def holds(wanted: Filter, found: Any) -> bool:
    """Return whether an attribute satisfies a filter; a missing attribute satisfies none.

    >>> holds("Comedy", ["Action", "Comedy"]), holds(Condition(gte=1990), 1989), holds(1, True)
    (True, False, False)
    """
    return matcher(wanted)(found)


def matcher(wanted: Filter) -> Test:
    """Return a predicate for the filter that takes the time of one look-up."""
    one = within(wanted) if isinstance(wanted, Condition) else among(wanted)

    def test(found: Any) -> bool:
        return any(map(one, found)) if isinstance(found, list) else one(found)

    return test


def within(wanted: Condition) -> Test:
    """Return a predicate for numbers within the bounds."""

    def test(found: Any) -> bool:
        if isinstance(found, bool) or not isinstance(found, int | float):
            return False
        return (
            (wanted.gte is UNSET or found >= wanted.gte)
            and (wanted.gt is UNSET or found > wanted.gt)
            and (wanted.lte is UNSET or found <= wanted.lte)
            and (wanted.lt is UNSET or found < wanted.lt)
        )

    return test


def among(wanted: Filter) -> Test:
    """Return a predicate for membership; true does not equal 1."""
    values = wanted if isinstance(wanted, list) else [wanted]
    flags = {value for value in values if isinstance(value, bool)}
    others = {value for value in values if not isinstance(value, bool)}

    def test(found: Any) -> bool:
        if isinstance(found, bool):
            return found in flags
        return isinstance(found, int | float | str) and found in others

    return test
