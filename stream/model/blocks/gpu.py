"""Blocks on a GPU: operations of lanes and workers, and the kernel that learns a batch.

A worker is a warp, a lane is one of its 32 threads. Workers wait for each other at a grid barrier,
so all of them must be resident: the launch is cooperative.
"""

import functools
import importlib
from typing import Any

from numba import float32, int32, int64
from numba.extending import overload

from stream.compiled import embedded
from stream.model import scalars as sc
from stream.model.blocks.names import TILE, BlockBounds, Hands, Order, Room, Work, Worker
from stream.model.blocks.phases import barrier, blocks, totals
from stream.model.blocks.room import sum_size
from stream.model.kernels import create
from stream.model.layout import Layout
from stream.model.served import Side, serve_row
from stream.model.step import account
from stream.model.step.lanes import as_index, ends, inside, meet, padded, product, strides
from stream.model.step.names import Array, Given, Lane, Layouts, Predictions, Scratch, StepContext

cuda: Any = importlib.import_module("numba.cuda")  # it has no type annotations
LANES = 32
WARPS = 8  # per thread block
THREADS = LANES * WARPS
REGISTERS = 128  # per thread, so that two thread blocks fit on a multiprocessor
_ALL = 0xFFFFFFFF


def whole(size: int) -> int:
    """Return the size rounded up to whole strides of all lanes."""
    return -(-size // LANES) * LANES


@overload(padded, target="cuda")
def _padded(size: Any, lane: Any) -> Any:
    def whole_strides(size: Any, lane: Any) -> Any:
        return ((size + 31) >> 5) << 5

    return whole_strides


@overload(inside, target="cuda")
def _inside(d: Any, size: Any, lane: Any) -> Any:
    def below(d: Any, size: Any, lane: Any) -> Any:
        return d < size

    return below


@overload(strides, target="cuda")
def _strides(size: Any, lane: Any) -> Any:
    def whole_and_last(size: Any, lane: Any) -> Any:
        return (size + 31) >> 5  # a constant, so that the compiler unrolls the loop

    return whole_and_last


@overload(ends, target="cuda")
def _ends(first: Any, size: Any, lane: Any) -> Any:
    def whole_strides(first: Any, size: Any, lane: Any) -> Any:
        # whole strides, so that the compiler knows that 32 components take one iteration
        return first + lane.own + (((size + 31 - lane.own) >> 5) << 5)

    return whole_strides


@overload(meet, target="cuda")
def _meet(lane: Any) -> Any:
    def wait(lane: Any) -> Any:
        cuda.syncwarp()

    return wait


@overload(product, target="cuda")
def _product(x: Any, y: Any, first: Any, size: Any, lane: Any) -> Any:
    def sums(x: Any, y: Any, first: Any, size: Any, lane: Any) -> Any:
        a = float32(0)
        for stride in range((size + 31) >> 5):
            d = (stride << 5) + lane.own
            if d < size:
                a += x[first + d] * y[first + d]
        a += cuda.shfl_xor_sync(_ALL, a, 16)
        a += cuda.shfl_xor_sync(_ALL, a, 8)
        a += cuda.shfl_xor_sync(_ALL, a, 4)
        a += cuda.shfl_xor_sync(_ALL, a, 2)
        a += cuda.shfl_xor_sync(_ALL, a, 1)
        return a

    return sums


@overload(barrier, target="cuda")
def _barrier(worker: Any, arrived: Any) -> Any:
    def wait(worker: Any, arrived: Any) -> Any:
        cuda.cg.this_grid().sync()

    return wait


@overload(totals, target="cuda")
def _totals(w: Any, b: Any, at: Any, worker: Any, sum_half_life: Any) -> Any:
    def shared_out(w: Any, b: Any, at: Any, worker: Any, sum_half_life: Any) -> Any:
        if w.m.on.live:
            tiles = (b.stop - b.event + TILE - 1) // TILE
            many = (w.room.cells.shape[0] + LANES - 1) // LANES
            for task in range(worker.own, tiles * many, worker.all):
                sum_told(w, b, task // many, task % many)
            cuda.cg.this_grid().sync()
            lane = w.m.lane
            for cell in range(worker.own, w.room.cells.shape[0], worker.all):
                add_cell(w, cell, tiles)
            if w.order.update_point[at]:
                cuda.cg.this_grid().sync()
                if lane.own == 0:
                    for task in range(worker.own, tasks(w), worker.all):
                        refresh_one(w, task, sum_half_life)

    return shared_out


@embedded
def sum_told(w: Work, b: BlockBounds, tile: int, part: int) -> None:
    """Sum the contributions of a tile of interactions, in order; each lane handles one cell.

    All lanes read the kinds of the interactions at once. Numbers are read whether needed or not, so
    that many reads are in flight.
    """
    lane, cells, told, h = w.m.lane, w.room.cells, w.s.told, w.hands
    first = tile * TILE
    many = min(TILE, b.stop - b.event - first)
    meet(lane)
    if lane.own < many:
        mine = told[first + lane.own]
        h.kind[lane.own] = int(mine[account.KIND])
        h.at[lane.own] = int(mine[account.ROW]) + 1024 * int(mine[account.HEAD])
        h.ts_s[lane.own] = int(mine[account.POSITION])
    meet(lane)
    cell = part * LANES + lane.own
    if cell < cells.shape[0]:
        w.room.total_part[tile, cell] = cell_of(w, cells[cell], first, many)


@embedded
def cell_of(w: Work, cell: Array, first: int, many: int) -> float:
    """Return the sum of one cell over the `many` interactions of the tile."""
    told, h = w.s.told, w.hands
    column, bit, of, row = as_index(cell[0]), cell[2], cell[3], cell[4]
    total = 0.0
    for k in range(TILE):
        value = told[first + min(k, many - 1), column]
        mine = h.at[k] & 1023
        if of == account.HEAD_ROW:
            mine = (h.at[k] >> 10) + (row & 2)
        elif of == account.POSITION_ROW:
            mine = h.ts_s[k]
        elif of == account.COUNTER:
            mine = row
        total += value if k < many and mine == row and h.kind[k] & bit == bit else 0.0
    return total


@embedded
def add_cell(w: Work, cell: int, tiles: int) -> None:
    """Add the tiles' sums of one cell to the pending sums, in a fixed tree order."""
    cells, g, lane = w.room.cells, w.m.terms, w.m.lane
    total = 0.0
    for part in range(cell, cell + cells[cell, 1]):
        for tile in range(lane.own, ends(0, tiles, lane), lane.all):
            total += w.room.total_part[tile, part]
    for half in (16, 8, 4, 2, 1):
        total += cuda.shfl_xor_sync(_ALL, total, half)
    if cells[cell, 1] > 0 and lane.own == 0:
        of, row, column = cells[cell, 3], cells[cell, 4], cells[cell, 5]
        if of == account.OUTCOME_ROW:
            g.outcome[row, column] += total
        elif of == account.WITHHELD_ROW:
            g.withheld[row, column] += total
        elif of == account.HEAD_ROW:
            g.head[row, column] += total
        elif of == account.POSITION_ROW:
            g.position[row, column] += total
        else:
            g.counters[column] += int(total)


@embedded
def tasks(w: Work) -> int:
    """Return how many tasks move the global terms at an update point."""
    g = w.m.terms
    return 4 * g.outcome.shape[0] + g.head.shape[0] + g.position.shape[0]


@embedded
def refresh_one(w: Work, task: int, sum_half_life: float) -> None:
    """Do one of the independent tasks that update the global terms at an update point."""
    g, n = w.m.terms, w.m.terms.counters
    Y, H = g.outcome.shape[0], g.head.shape[0]
    keep, keen = sc.fading(n, sum_half_life)
    if task < Y:
        sc.refresh_means(g.outcome[task], keep, keen)
    elif task < 2 * Y:
        sc.refresh_slopes(g.outcome[task - Y], keep, keen)
    elif task < 3 * Y:
        sc.refresh_gate(g.outcome[task - 2 * Y], keep)
    elif task < 4 * Y:
        sc.fit(g.withheld[task - 3 * Y], keen, sc.PRIOR_SLOPE)
    elif task < 4 * Y + H:
        sc.refresh_head(g.head[task - 4 * Y], n, keen)
    elif task == 4 * Y + H:
        n[sc.SETTLED] = n[sc.CONTROLS]
    else:
        sc.refresh_position(g.position[task - 4 * Y - H], keen)


@functools.cache
def creates(at: Layout) -> Any:
    """Return the kernel that creates missing rows of this layout, one thread each."""

    def ensure(table: Any, rows: Any, salt: int, seed: Any, start: Any) -> None:
        j = cuda.grid(1)
        if j < rows.size and table[rows[j], at.vector_sum] == 0:
            create(table, rows[j], at, salt, seed, start)

    return cuda.jit(ensure)


@functools.cache
def serves(at: Layout, af: Layout) -> Any:
    """Return the kernel that writes rows as they are served, one warp each."""

    def serve(rows: Any, table: Any, links: Any, values: Any, features: Any, share: Any,
              out: Any) -> None:  # fmt: skip
        lane, j = Lane(cuda.threadIdx.x & 31, LANES), cuda.grid(1) >> 5
        if j < rows.size:
            side = Side(table, links, values, features, at, af, share)
            serve_row(out[j], side, rows[j], lane)

    return cuda.jit(serve)


@functools.cache
def kernel(at: Layouts, links_most: int) -> Any:
    """Return the kernel that learns a batch of blocks, for rows of these layouts and links."""
    held_rows = 4 + at.item.C
    i, each, both, G = at.item, 1 + at.pairs, 2 + 2 * at.pairs, whole(sum_size(at))
    W, V = whole(i.D + i.E + i.S + i.C), i.D + i.E + i.S

    def learn(
        given: Given, order: Order, room: Room, out: Predictions, sum_half_life: float
    ) -> None:
        user = cuda.shared.array((WARPS, W), float32)
        items = cuda.shared.array((WARPS, each, W), float32)
        grad = cuda.shared.array((WARPS, V), float32)
        folded = cuda.shared.array((WARPS, W), float32)
        raised = cuda.shared.array((WARPS, both), float32)
        held = cuda.shared.array((WARPS, held_rows, links_most), float32)
        rates = cuda.shared.array((WARPS, 6, links_most), float32)
        sums = cuda.shared.array((WARPS, G), float32)
        ts_s = cuda.shared.array((WARPS, LANES), int64)
        label = cuda.shared.array((WARPS, LANES), float32)
        kind = cuda.shared.array((WARPS, LANES), int32)
        place = cuda.shared.array((WARPS, LANES), int32)
        links, weight = cuda.local.array(each, int64), cuda.local.array(each, float32)
        error, contrast = cuda.local.array(each, float32), cuda.local.array(each, float32)
        session, eta = cuda.local.array(each, float32), cuda.local.array(each, float32)
        k = cuda.threadIdx.x >> 5
        s = Scratch(
            user[k],
            items[k],
            links,
            weight,
            grad[k],
            error,
            contrast,
            session,
            eta,
            raised[k],
            room.told,
        )
        hands = Hands(folded[k], held[k], rates[k], sums[k], ts_s[k], label[k], kind[k], place[k])
        lane = Lane(cuda.threadIdx.x & 31, LANES)
        worker = Worker(cuda.grid(1) >> 5, cuda.gridsize(1) >> 5)
        m = StepContext(at, lane, given.tables, given.terms, given.outcomes, given.rates, given.on)
        w = Work(m, given.columns, s, out, order, room, hands)
        blocks(w, worker, order.events, sum_half_life)

    return cuda.jit(learn, fastmath=True, max_registers=REGISTERS)
