"""The drivers by what was chosen: each learns batches, over the same functions of the step."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stream.model.blocks.names import Size
from stream.model.choice import Choice
from stream.model.config import ModelConfig
from stream.model.kernels import ensure
from stream.model.links import Links
from stream.model.served import Side, serve
from stream.model.step.arguments import scratch, tables_of
from stream.model.step.names import Given, Layouts, Predictions
from stream.model.step.names import Tables as Arrays
from stream.model.step.sequential import sequential
from stream.model.tables import Table

Floats = NDArray[np.float32]


class Tables:
    """The rows of users, items and attribute values, and the links of users and items."""

    def __init__(
        self, user: Table, item: Table, feature: Table, user_links: Links, item_links: Links
    ) -> None:
        self.rows = (user, item, feature)
        self.links = (user_links, item_links)


class Driver(Protocol):
    """Learns batches, where the tables stand."""

    compiled: Any  # the function that numba compiled

    def arrays(self) -> Arrays:
        """Return the tables and links as the compiled step takes them."""

    def learn(self, given: Given, out: Predictions, memory: float, linked: bool) -> None:
        """Learn the columns in order, and write what was expected of each before.

        `memory` is `ModelConfig.memory`; `linked` says whether any row has attribute values.
        """

    def ensure(
        self, table: Table, rows: NDArray[np.int32], salt: int, seed: np.uint64, start: Floats
    ) -> None:
        """Make every named row exist."""

    def serve(self, side: int, rows: NDArray[np.int32], share: np.float32) -> tuple[Floats, Floats]:
        """Return rows of users (side 0) or items (1) as they are packed, and as they are served."""


class Host:
    """What drivers on the CPU have in common."""

    def __init__(self, tables: Tables) -> None:
        """Take the tables."""
        self._tables = tables

    def arrays(self) -> Arrays:
        """Return the tables and links as the compiled step takes them."""
        user, item, feature = self._tables.rows
        return tables_of(user.array, item.array, feature.array, *self._tables.links)

    def ensure(
        self, table: Table, rows: NDArray[np.int32], salt: int, seed: np.uint64, start: Floats
    ) -> None:
        """Make every named row exist."""
        ensure(table.array, rows, table.layout, salt, seed, start)

    def serve(self, side: int, rows: NDArray[np.int32], share: np.float32) -> tuple[Floats, Floats]:
        """Return rows of users (side 0) or items (1) as they are packed, and as they are served."""
        table, features, links = (
            self._tables.rows[side], self._tables.rows[2], self._tables.links[side],
        )  # fmt: skip
        at = table.layout
        out = np.empty((len(rows), at.D + at.E + at.S + at.C), np.float32)
        every = Side(
            table.array, links.rows, links.values, features.array, at, features.layout, share
        )
        serve(rows, every, out)
        return table.read(rows), out


class Sequential(Host):
    """One interaction after the other, on one core."""

    def __init__(self, at: Layouts, tables: Tables) -> None:
        """Make room for one interaction."""
        super().__init__(tables)
        self.compiled = sequential(at)
        self._scratch = scratch(at, 1)

    def learn(self, given: Given, out: Predictions, memory: float, linked: bool) -> None:
        """Learn the columns in order, and write what was expected of each before."""
        self.compiled(given, self._scratch, out, memory)


def driver(choice: Choice, at: Layouts, config: ModelConfig, tables: Tables) -> Driver:
    """Return the chosen driver for rows of these layouts; only what it compiles is imported."""
    if choice.driver == "sequential":
        return Sequential(at, tables)
    if choice.driver == "blocks":
        from stream.model.blocks.cpu import Threaded

        return Threaded(at, tables, Size(config.block, config.block_share), choice.threads)
    from stream.model.blocks.device import Device

    return Device(at, tables, Size(config.block, config.block_share))
