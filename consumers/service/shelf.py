"""All items in memory as requests see them: rows to score, titles, and filters on attributes.

Changed only by the follower, between two requests; nothing a request does adds an item.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from consumers.service.ranking import Floats, outcomes
from consumers.service.requests import Condition, Filter
from model_store.codec import unpack_many
from model_store.reader import Catalogue, Changes

FILTERS_MAX = 256  # filters remembered until an attribute changes

Rows = NDArray[np.intp]


class Shelf:
    """The model's shape, the items that the reader keeps fresh, and what is derived from both."""

    def __init__(self, model: Mapping[str, Any], catalogue: Catalogue) -> None:
        self.model = dict(model)
        self.catalogue = catalogue
        self.outcomes = outcomes(self.model)
        self._matching: dict[bytes, list[bytes]] = {}

    def globals(self) -> Floats:
        """Return the global terms, (O,): the newest written, else those of the model."""
        newest = self.catalogue.globals_
        if len(newest) == len(self.outcomes):
            return newest
        given = self.model.get("global_bias")
        return np.asarray(given or [0.0] * len(self.outcomes), np.float32)

    def fits(self, model: Mapping[str, Any]) -> bool:
        """Return whether rows of that model have the shape of these."""
        return shape(model) == shape(self.model)

    def user(self, payload: bytes | None) -> tuple[Floats, Floats, int] | None:
        """Return bias (O,), vector (D,) and events of a user; None without a row of this shape."""
        if payload is None:
            return None
        row = unpack_many([payload], *shape(self.model))
        if not row.present[0]:
            return None
        return row.bias[0], row.vector[0], int(row.events[0])

    def rows(self, ids: Sequence[str]) -> tuple[Rows, list[str]]:
        """Return the rows of known items, and the ids of the others, both in order and once."""
        place = self.catalogue.items.row
        found: list[int] = []
        unknown: list[str] = []
        for item in dict.fromkeys(ids):
            row = place.get(item.encode(), -1)
            if row >= 0:
                found.append(row)
            else:
                unknown.append(item)
        return np.array(found, np.intp), unknown

    def candidates(self, filters: Mapping[str, Filter], without: Sequence[bytes]) -> Rows | None:
        """Return the rows that satisfy every filter and are not left out; None for all of them."""
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

    def forget(self, changes: Changes) -> None:
        """Filters are asked anew after the call if any attribute has changed."""
        if changes.reloaded or changes.meta:
            self._matching.clear()

    def _satisfy(self, filters: Mapping[str, Filter]) -> list[bytes]:
        """Return the ids of all items that satisfy the filters, with or without a row."""
        name = msgspec.json.encode(filters, order="sorted")
        matching = self._matching.get(name)
        if matching is None:
            matching = [
                item
                for item, meta in self.catalogue.meta.items()
                if satisfies(filters, meta.get("attributes") or {})
            ]
            if len(self._matching) >= FILTERS_MAX:
                self._matching.clear()
            self._matching[name] = matching
        return matching


def shape(model: Mapping[str, Any]) -> tuple[int, int]:
    """Return (O, D) of the model's rows."""
    return len(model["outcomes"]), int(model["factors"])


def satisfies(filters: Mapping[str, Filter], attributes: Mapping[str, Any]) -> bool:
    """Return whether every filter holds."""
    return all(holds(wanted, attributes.get(name)) for name, wanted in filters.items())


def holds(wanted: Filter, found: Any) -> bool:
    """Return whether an attribute satisfies a filter; an absent one satisfies none.

    >>> holds("Comedy", ["Action", "Comedy"]), holds(Condition(gte=1990), 1989), holds(1, True)
    (True, False, False)
    """
    if found is None:
        return False
    if isinstance(found, list):
        return any(holds(wanted, each) for each in found)
    if isinstance(wanted, list):
        return any(holds(each, found) for each in wanted)
    if isinstance(wanted, Condition):
        if isinstance(found, bool) or not isinstance(found, int | float):
            return False
        return (
            (wanted.gte is UNSET or found >= wanted.gte)
            and (wanted.gt is UNSET or found > wanted.gt)
            and (wanted.lte is UNSET or found <= wanted.lte)
            and (wanted.lt is UNSET or found < wanted.lt)
        )
    return isinstance(wanted, bool) == isinstance(found, bool) and bool(wanted == found)
