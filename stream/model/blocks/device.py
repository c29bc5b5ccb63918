"""The driver that learns blocks on a GPU, and its data transfers.

Tables and links are on the GPU, where they grow by doubling. Columns are sent at each step;
predictions and global terms return in one transfer, which is the step's only synchronisation.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream.model.blocks import gpu
from stream.model.blocks.device_order import device_order, moved
from stream.model.blocks.names import TILE, Order, Room, Size
from stream.model.blocks.order import faded, update_points
from stream.model.blocks.room import Sizes, shapes
from stream.model.drivers import ModelTables as RowsAndLinks
from stream.model.links import LinkTable
from stream.model.step import account
from stream.model.step.names import (
    TERMS,
    Given,
    GlobalTerms,
    InteractionColumns,
    Layouts,
    OutcomeLinks,
    Predictions,
    TableArrays,
)
from stream.model.tables import RowTable

_TYPES: dict[Any, torch.dtype] = {
    np.float32: torch.float32, np.float64: torch.float64, np.int32: torch.int32,
}  # fmt: skip
WORDS = 3 + len(TERMS)  # floats per interaction that come back: predictions and score terms


def _floats(n: int) -> int:
    """Return how many floats n interactions send back; the doubles behind them are aligned."""
    return WORDS * n + WORDS * n % 2


class Bits:
    """The memory of a tensor under another element type, as numba takes it."""

    def __init__(self, tensor: Tensor, kind: str) -> None:
        self.tensor = tensor
        self.__cuda_array_interface__ = tensor.__cuda_array_interface__ | {"typestr": kind}


def wrapped(tensor: Tensor, kind: str = "") -> Any:
    """Return the tensor's memory as a numba array, without a copy."""
    return gpu.cuda.as_cuda_array(Bits(tensor, kind) if kind else tensor, sync=False)


def wrap_all(tensors: Any) -> Any:
    """Return a named tuple of tensors, or of such tuples, as numba arrays."""
    if isinstance(tensors, Tensor):
        return wrapped(tensors)
    return type(tensors)(*map(wrap_all, tensors))


class DeviceLinks:
    """A copy of one kind's links on the GPU; only changed rows are sent."""

    def __init__(self, links: LinkTable, device: torch.device) -> None:
        """Start with an empty copy."""
        most = links.rows.shape[1]
        self._links, self._device = links, device
        self.rows = torch.zeros((0, most), dtype=torch.int32, device=device)
        self.values = torch.zeros((0, most), device=device)

    def follow(self, used: int) -> None:
        """Bring the first `used` rows on the GPU up to date with the host."""
        links, held = self._links, len(self.rows)
        if links.changed is None or used > held:
            size = min(len(links.rows), max(used, 2 * held, 1024))
            self.rows = moved(np.array(links.rows[:size]), self._device)
            self.values = moved(np.array(links.values[:size]), self._device)
        elif links.changed:
            rows = np.fromiter(links.changed, np.int64)
            rows = rows[rows < held]
            at = moved(rows, self._device)
            self.rows[at] = moved(links.rows[rows], self._device)
            self.values[at] = moved(links.values[rows], self._device)
        links.changed = set()


class Device:
    """Learns batches in blocks on a GPU; the bits do not depend on the schedule."""

    def __init__(self, at: Layouts, tables: RowsAndLinks, size: Size) -> None:
        """Keep the tables, which are on the GPU, and the links, which are on the host."""
        self.at, self.size, self._tables = at, size, tables.rows
        self.device = self._tables[0].device
        self._links = [DeviceLinks(of, self.device) for of in tables.links]
        self.compiled = gpu.kernel(at, tables.links[0].rows.shape[1])
        cells = account.cells(at.item.Y, at.pairs)
        self._cells = moved(cells, self.device)
        self._room: tuple[tuple[int, bool], Any] = ((0, False), None)
        self._grids: dict[Any, int] = {}

    def learn(self, given: Given, out: Predictions, sum_half_life: float, linked: bool) -> None:
        """Learn the columns in order, and write each one's prediction before it is learned."""
        c, n = given.columns, len(given.columns.user)
        if not n:
            return
        edges = update_points(c.role, int(given.terms.counters[0]), self.size, given.on.live)
        columns = self._columns(c)
        rows = (self._tables[0].rows, self._tables[1].rows, self._tables[2].rows)
        links = (self._links[0].rows, self._links[1].rows) if linked else None
        order = device_order(columns.user, columns.item, columns.pair, *edges, links, rows)
        terms, sent = self._send(given.terms)
        told = torch.zeros(_floats(n), device=self.device)
        told[: 3 * n] = torch.nan
        back = Predictions(
            prediction=told[:n], control=told[n : 2 * n], served=told[2 * n : 3 * n],
            terms=told[3 * n : WORDS * n].view(n, len(TERMS)),
        )  # fmt: skip
        outcomes = OutcomeLinks(*(moved(x, self.device) for x in given.outcomes))
        on_gpu = given._replace(
            columns=wrap_all(columns), terms=wrap_all(terms),
            outcomes=wrap_all(outcomes),
        )  # fmt: skip
        between = self._between(edges[0], order)
        kept = faded(sum_half_life, self.size.block)
        args = (on_gpu, wrap_all(order), between, wrap_all(back), kept)
        self._launch(args)
        self._receive(torch.cat([told, sent.view(torch.float32)]), given.terms, out)

    def _follow(self) -> None:
        for links, table in zip(self._links, self._tables, strict=False):
            links.follow(table.used)

    def _columns(self, c: InteractionColumns) -> InteractionColumns:
        sent = InteractionColumns(*(moved(np.ascontiguousarray(x), self.device) for x in c))
        return sent._replace(propensity=torch.nan_to_num(sent.propensity, nan=-1.0))

    def arrays(self) -> TableArrays:
        """Return the tables and links as arguments of the compiled step."""
        self._follow()
        packed = [table.packed for table in self._tables]
        bits = [wrapped(p, "<u4") for p in packed]
        links = [wrapped(part) for of in self._links for part in (of.rows, of.values)]
        return TableArrays(*map(wrapped, packed), *bits, *links)

    def _send(self, terms: GlobalTerms) -> tuple[GlobalTerms, Tensor]:
        """Return the global terms on the GPU, and the single piece of memory that holds them."""
        flat = np.concatenate([x.view(np.float64).ravel() for x in terms])
        sent = moved(flat, self.device)
        parts, first = [], 0
        for x in terms:
            part = sent[first : first + x.size].view(x.shape)
            parts.append(part.view(torch.int64) if x.dtype == np.int64 else part)
            first += x.size
        return GlobalTerms(*parts), sent

    def _between(self, events: NDArray[np.int32], order: Order) -> Room:
        """Return memory for the largest block, reused between steps while it fits."""
        B = int(np.diff(events).max())
        each, linked = 1 + self.at.pairs, len(order.values.members) > 0
        held, was_linked = self._room[0]
        if B > held or linked != was_linked:
            self._room = ((B, linked), wrap_all(self._made(B, each, linked)))
        return self._room[1]

    def _made(self, B: int, each: int, linked: bool) -> Any:
        most = self._links[1].rows.shape[1]
        tiles = 2 * B * each // (TILE + 1) + 1
        value_tiles = 2 * B * (each + 1) * most // (TILE + 1) + 1 if linked else 0
        sizes = Sizes(B, B * linked, B * each * linked, tiles, value_tiles)
        made = {
            name: torch.empty(shape, dtype=_TYPES[kind], device=self.device)
            for name, (kind, shape) in shapes(self.at, sizes, gpu.whole).items()
        }
        parts = torch.empty(
            (-(-B // TILE), len(self._cells)), dtype=torch.float64, device=self.device
        )
        return Room(**made, cells=self._cells, total_part=parts)

    def _launch(self, args: Any) -> None:
        types = tuple(map(self.compiled.typeof_pyval, args))
        if types not in self._grids:
            overload = self.compiled.compile(types)
            self._grids[types] = int(overload.max_cooperative_grid_blocks(gpu.THREADS))
        self.compiled[self._grids[types], gpu.THREADS](*args)

    def _receive(self, sent: Tensor, terms: GlobalTerms, out: Predictions) -> None:
        """Copy predictions and global terms to the host, the step's only synchronisation."""
        host = torch.empty(sent.shape, pin_memory=self.device.type == "cuda").copy_(sent).numpy()
        n = len(out.prediction)
        for to, part in zip(
            (out.prediction, out.control, out.served), host[: 3 * n].reshape(3, n), strict=True
        ):
            to[:] = part
        out.terms[:] = host[3 * n : WORDS * n].reshape(n, len(TERMS))
        flat, first = host[_floats(n) :].view(np.float64), 0
        for x in terms:
            x[:] = flat[first : first + x.size].view(x.dtype).reshape(x.shape)
            first += x.size

    def ensure(
        self, table: RowTable, rows: NDArray[np.int32], salt: int, seed: np.uint64, start: Any
    ) -> None:
        """Create those of the rows that do not exist yet."""
        if len(rows):
            grid = -(-len(rows) // gpu.THREADS)
            gpu.creates(table.layout)[grid, gpu.THREADS](
                wrapped(table.packed), wrapped(moved(rows, self.device)), salt, seed,
                wrapped(moved(start, self.device)),
            )  # fmt: skip

    def serve(
        self, side: int, rows: NDArray[np.int32], share: np.float32
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return rows of users (side 0) or items (side 1), packed and as they are served."""
        self._follow()
        table, at, af = self._tables[side], self._tables[side].layout, self._tables[2].layout
        where = moved(rows, self.device)
        width = at.D + at.E + at.S + at.C
        made = torch.zeros((len(rows), width), device=self.device)
        links = self._links[side]
        grid = -(-len(rows) * gpu.LANES // gpu.THREADS)
        gpu.serves(at, af)[grid, gpu.THREADS](
            wrapped(where), wrapped(table.packed), wrapped(links.rows), wrapped(links.values),
            wrapped(self._tables[2].packed), share, wrapped(made),
        )  # fmt: skip
        both = torch.cat([table.packed[where], made], 1).cpu().numpy()
        return both[:, : at.width], both[:, at.width :]
