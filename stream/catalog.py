"""What is known of items beside what is learned: title and attributes, for the service to show."""

from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray


class Catalog:
    """JSON by item row, so that it can be published again when the cache has lost it."""

    def __init__(self) -> None:
        self._json: dict[int, bytes] = {}

    def put(self, row: int, title: str | None, attributes: dict[str, Any] | None) -> None:
        """The row's entry is this one after the call; without attributes there is none."""
        if attributes is None:
            self._json.pop(row, None)
        else:
            self._json[row] = orjson.dumps({"title": title, "attributes": attributes})

    def of(self, rows: NDArray[np.int32]) -> tuple[NDArray[np.int32], list[bytes]]:
        """Return those of the rows that have an entry, and the entries."""
        found = [(row, self._json[row]) for row in rows.tolist() if row in self._json]
        return np.array([row for row, _ in found], np.int32), [entry for _, entry in found]

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of what is needed to load it again."""
        entries = list(self._json.values())
        return {
            "rows": np.array(list(self._json), np.int32),
            "lengths": np.array([len(e) for e in entries], np.int64),
            "bytes": np.frombuffer(b"".join(entries), np.uint8).copy(),
        }

    def load(self, state: dict[str, NDArray[Any]]) -> None:
        """The entries are the saved ones after the call."""
        ends = np.cumsum(state["lengths"]).tolist()
        data = state["bytes"].tobytes()
        self._json = (
            {
                row: data[begin:end]
                for row, begin, end in zip(
                    state["rows"].tolist(), [0, *ends[:-1]], ends, strict=True
                )
            }
            if ends
            else {}
        )
