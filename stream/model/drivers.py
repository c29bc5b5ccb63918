"""The drivers of the learning step; all of them use the same functions of `stream.model.step`."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stream.model.blocks.names import Size
from stream.model.choice import DriverChoice
from stream.model.config import ModelConfig
from stream.model.kernels import ensure
from stream.model.links import LinkTable
from stream.model.served import Side, serve
from stream.model.step.arguments import scratch, tables_of
from stream.model.step.names import Given, Layouts, Predictions
from stream.model.step.names import TableArrays as Arrays
from stream.model.step.sequential import sequential
from stream.model.tables import RowTable

Floats = NDArray[np.float32]


class ModelTables:
    """The rows of users, items and attribute values, and the links of users and items."""

    def __init__(
        self,
        user: RowTable,
        item: RowTable,
        feature: RowTable,
        user_links: LinkTable,
        item_links: LinkTable,
    ) -> None:
        self.rows = (user, item, feature)
        self.links = (user_links, item_links)


class Driver(Protocol):
    """Learns batches on the memory where the tables are (CPU or GPU)."""

    compiled: Any  # the function that numba compiled

    def arrays(self) -> Arrays:
        """Return the tables and links as arguments of the compiled step."""

    def learn(self, given: Given, out: Predictions, sum_half_life: float, linked: bool) -> None:
        """Learn the columns in order, and write each one's prediction before it is learned.

        `sum_half_life` is `ModelConfig.sum_half_life`; `linked` says whether any row has attribute
        values.
        """

    def ensure(
        self, table: RowTable, rows: NDArray[np.int32], salt: int, seed: np.uint64, start: Floats
    ) -> None:
        """Create those of the rows that do not exist yet."""

    def serve(self, side: int, rows: NDArray[np.int32], share: np.float32) -> tuple[Floats, Floats]:
        """Return rows of users (side 0) or items (side 1), packed and as they are served."""


class Host:
    """Shared parts of the drivers on the CPU."""

    def __init__(self, tables: ModelTables) -> None:
        """Keep the tables."""
        self._tables = tables

    def arrays(self) -> Arrays:
        """Return the tables and links as arguments of the compiled step."""
        user, item, feature = self._tables.rows
        return tables_of(user.array, item.array, feature.array, *self._tables.links)

    def ensure(
        self, table: RowTable, rows: NDArray[np.int32], salt: int, seed: np.uint64, start: Floats
    ) -> None:
        """Create those of the rows that do not exist yet."""
        ensure(table.array, rows, table.layout, salt, seed, start)

    def serve(self, side: int, rows: NDArray[np.int32], share: np.float32) -> tuple[Floats, Floats]:
        """Return rows of users (side 0) or items (side 1), packed and as they are served."""
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
    """Learns one interaction after the other on one core."""

    def __init__(self, at: Layouts, tables: ModelTables) -> None:
        """Compile the driver, and allocate scratch memory for one interaction."""
        super().__init__(tables)
        self.compiled = sequential(at)
        self._scratch = scratch(at, 1)

    def learn(self, given: Given, out: Predictions, sum_half_life: float, linked: bool) -> None:
        """Learn the columns in order, and write each one's prediction before it is learned."""
        self.compiled(given, self._scratch, out, sum_half_life)


def driver(choice: DriverChoice, at: Layouts, config: ModelConfig, tables: ModelTables) -> Driver:
    """Return the chosen driver for rows of these layouts; other drivers are not imported."""
    if choice.driver == "sequential":
        return Sequential(at, tables)
    if choice.driver == "blocks":
        from stream.model.blocks.cpu import Threaded

        return Threaded(at, tables, Size(config.block, config.block_share), choice.threads)
    from stream.model.blocks.device import Device

    return Device(at, tables, Size(config.block, config.block_share))
