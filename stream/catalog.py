"""Titles and attributes of items, which are not learned but shown by the service."""

from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray


class Catalog:
    """JSON by item row, kept so that it can be published again if the cache loses it."""

    def __init__(self) -> None:
        # a list, because a dict of a million rows pauses for 50 ms when it grows
        self._json: list[bytes | None] = []

    def put(self, row: int, title: str | None, attributes: dict[str, Any] | None) -> None:
        """Set the row's entry; remove it if `attributes` is None."""
        if row >= len(self._json):
            self._json += [None] * (row + 1 - len(self._json))
        said = {"title": title, "attributes": attributes}
        self._json[row] = None if attributes is None else orjson.dumps(said)

    def of(self, rows: NDArray[np.int32]) -> tuple[NDArray[np.int32], list[bytes]]:
        """Return those of the rows that have an entry, and their entries."""
        held = self._json
        found = [
            (row, entry)
            for row in rows.tolist()
            if row < len(held) and (entry := held[row]) is not None
        ]
        return np.array([row for row, _ in found], np.int32), [entry for _, entry in found]

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays that `load` needs."""
        rows, entries = self.of(np.arange(len(self._json), dtype=np.int32))
        return {
            "rows": rows,
            "lengths": np.array([len(e) for e in entries], np.int64),
            "bytes": np.frombuffer(b"".join(entries), np.uint8).copy(),
        }

    def load(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore saved entries."""
        rows, lengths, data = state["rows"].tolist(), state["lengths"], state["bytes"].tobytes()
        self._json = [None] * (max(rows, default=-1) + 1)
        ends = np.cumsum(lengths)
        for row, begin, end in zip(rows, (ends - lengths).tolist(), ends.tolist(), strict=True):
            self._json[row] = data[begin:end]
