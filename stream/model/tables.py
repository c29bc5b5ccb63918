"""The model's memory: packed rows, reserved once, named views on them.

A row of a table is one piece of 64-byte-aligned memory, so that an event touches few cache lines:

    vector (D) | bias (Y) | bias_sum (Y) | vector_sum (1) | events (1, bits of a uint32) | padding

`*_sum` are the accumulators of row-wise Adagrad. A row with `vector_sum` 0 does not exist yet.
"""

import mmap
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

PARTS = ("vector", "bias", "bias_sum", "vector_sum", "events")
LINE = 16  # float32 values in a cache line of 64 bytes

NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def reserve(rows: int, width: int, dtype: type[np.generic]) -> NDArray[np.generic]:
    """Return zeros (rows, width) whose pages the system commits as they are touched."""
    size = rows * width * np.dtype(dtype).itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    return np.frombuffer(mmap.mmap(-1, size, flags=flags), dtype).reshape(rows, width)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a packed row stand."""

    factors: int
    outcomes: int

    @property
    def bias(self) -> int:
        """Return the column of the first bias."""
        return self.factors

    @property
    def bias_sum(self) -> int:
        """Return the column of the first bias accumulator."""
        return self.factors + self.outcomes

    @property
    def vector_sum(self) -> int:
        """Return the column of the vector's accumulator."""
        return self.factors + 2 * self.outcomes

    @property
    def events(self) -> int:
        """Return the column whose bits count events."""
        return self.vector_sum + 1

    @property
    def width(self) -> int:
        """Return the floats of a row, padded to whole cache lines."""
        return -(-(self.events + 1) // LINE) * LINE


class Table:
    """Rows of one kind; `used` is one past the highest row ever touched.

    On the CPU `array` and `packed` are the same memory, and neither is ever reseated. On a GPU
    `array` has no rows and `packed` grows by doubling.
    """

    def __init__(self, rows: int, layout: Layout, device: torch.device) -> None:
        """Reserve `rows` rows on the device; none is used yet."""
        self.rows = rows
        self.layout = layout
        self.device = device
        self.used = 0
        on_host = device.type == "cpu"
        self.array: NDArray[np.float32] = (
            reserve(rows, layout.width, np.float32).view(np.float32)
            if on_host
            else np.zeros((0, layout.width), np.float32)
        )
        self.packed = (
            torch.from_numpy(self.array)
            if on_host
            else torch.zeros((min(rows, 1 << 16), layout.width), device=device)
        )

    def touch(self, rows: int) -> None:
        """Make the first `rows` rows usable."""
        self.used = max(self.used, rows)
        held = len(self.packed)
        if rows > held:
            grown = torch.zeros(
                (min(self.rows, max(rows, 2 * held)), self.layout.width), device=self.device
            )
            grown[:held] = self.packed
            self.packed = grown

    @property
    def vector(self) -> torch.Tensor:
        """Return the own vectors (rows, D), a view."""
        return self.packed[:, : self.layout.factors]

    @property
    def bias(self) -> torch.Tensor:
        """Return the own biases (rows, Y), a view."""
        return self.packed[:, self.layout.bias : self.layout.bias_sum]

    @property
    def bias_sum(self) -> torch.Tensor:
        """Return the biases' accumulators (rows, Y), a view."""
        return self.packed[:, self.layout.bias_sum : self.layout.vector_sum]

    @property
    def vector_sum(self) -> torch.Tensor:
        """Return the vectors' accumulators (rows,), a view."""
        return self.packed[:, self.layout.vector_sum]

    @property
    def events(self) -> torch.Tensor:
        """Return the counts (rows,) int32, a view on the same bits."""
        return self.packed.view(torch.int32)[:, self.layout.events]

    def read(self, rows: NDArray[np.int32] | slice) -> NDArray[np.float32]:
        """Return a copy of packed rows on the host."""
        if isinstance(rows, slice):
            return np.array(self.packed[rows].cpu().numpy(), copy=True)
        return self.packed[torch.from_numpy(rows).long().to(self.device)].cpu().numpy()

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the used rows, part by part."""
        packed, at = self.read(slice(0, self.used)), self.layout
        return {
            "vector": packed[:, : at.bias].copy(),
            "bias": packed[:, at.bias : at.bias_sum].copy(),
            "bias_sum": packed[:, at.bias_sum : at.vector_sum].copy(),
            "vector_sum": packed[:, at.vector_sum].copy(),
            "events": packed.view(np.uint32)[:, at.events].copy(),
        }

    def load(self, parts: Mapping[str, NDArray[Any]]) -> None:
        """Take saved rows in place of all that were used."""
        n, at = len(parts["vector"]), self.layout
        packed = np.zeros((max(n, self.used), at.width), np.float32)
        packed[:n, : at.bias] = parts["vector"]
        packed[:n, at.bias : at.bias_sum] = parts["bias"]
        packed[:n, at.bias_sum : at.vector_sum] = parts["bias_sum"]
        packed[:n, at.vector_sum] = parts["vector_sum"]
        packed.view(np.uint32)[:n, at.events] = parts["events"]
        self.touch(len(packed))
        self.packed[: len(packed)] = torch.from_numpy(packed).to(self.device)
        self.used = n
