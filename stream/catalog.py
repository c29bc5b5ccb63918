"""What is known of items beside what is learned: title and attributes, for the service to show."""

from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray


class Catalog:
    """JSON by item row, so that it can be published again when the cache has lost it."""

    def __init__(self) -> None:
        # a list, since a dict of a million rows stops for 50 ms when it grows
        self._json: list[bytes | None] = []

    def put(self, row: int, title: str | None, attributes: dict[str, Any] | None) -> None:
        """The row's entry is this one after the call; without attributes there is none."""
        if row >= len(self._json):
            self._json += [None] * (row + 1 - len(self._json))
        said = {"title": title, "attributes": attributes}
        self._json[row] = None if attributes is None else orjson.dumps(said)

    def of(self, rows: NDArray[np.int32]) -> tuple[NDArray[np.int32], list[bytes]]:
        """Return those of the rows that have an entry, and the entries."""
        held = self._json
        found = [
            (row, entry)
            for row in rows.tolist()
            if row < len(held) and (entry := held[row]) is not None
        ]
        return np.array([row for row, _ in found], np.int32), [entry for _, entry in found]

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of what is needed to load it again."""
        rows, entries = self.of(np.arange(len(self._json), dtype=np.int32))
        return {
            "rows": rows,
            "lengths": np.array([len(e) for e in entries], np.int64),
            "bytes": np.frombuffer(b"".join(entries), np.uint8).copy(),
        }

    def load(self, state: dict[str, NDArray[Any]]) -> None:
        """The entries are the saved ones after the call."""
        rows, lengths, data = state["rows"].tolist(), state["lengths"], state["bytes"].tobytes()
        self._json = [None] * (max(rows, default=-1) + 1)
        ends = np.cumsum(lengths)
        for row, begin, end in zip(rows, (ends - lengths).tolist(), ends.tolist(), strict=True):
            self._json[row] = data[begin:end]
