"""Tables of packed rows, with memory reserved once."""

import numpy as np
import torch
from numpy.typing import NDArray

from stream.memory import reserve
from stream.model.layout import Layout


class RowTable:
    """Rows of one kind; `used` is one past the highest row ever touched.

    On the CPU, `array` and `packed` share memory and are never reallocated. On a GPU, `array` has
    no rows and `packed` grows by doubling.
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

    def part(self, name: str, size: int) -> torch.Tensor:
        """Return one field of every row as a view (rows, size)."""
        first = getattr(self.layout, name)
        return self.packed[:, first : first + size]

    @property
    def bits(self) -> torch.Tensor:
        """Return the rows as an int32 view (rows, width) of the same bits, for the counts."""
        return self.packed.view(torch.int32)

    def read(self, rows: NDArray[np.int32] | slice) -> NDArray[np.float32]:
        """Return a copy of packed rows on the host."""
        if isinstance(rows, slice):
            return np.array(self.packed[rows].cpu().numpy(), copy=True)
        return self.packed[torch.from_numpy(rows).long().to(self.device)].cpu().numpy()

    def state(self) -> NDArray[np.float32]:
        """Return a copy of the used rows without their padding (used, n)."""
        return self.read(slice(0, self.used))[:, : self.layout.size].copy()

    def load(self, saved: NDArray[np.float32]) -> None:
        """Replace all used rows by the saved ones."""
        n = len(saved)
        packed = np.zeros((max(n, self.used), self.layout.width), np.float32)
        packed[:n, : self.layout.size] = saved
        self.touch(len(packed))
        self.packed[: len(packed)] = torch.from_numpy(packed).to(self.device)
        self.used = n
