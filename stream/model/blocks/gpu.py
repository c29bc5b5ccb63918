"""Blocks on a GPU: what its lanes and workers do together, and the kernel of a batch.

A worker is a warp, a lane one of its 32 threads. Workers wait for each other at a grid barrier, so
all of them have to be resident: the launch is cooperative.
"""

import functools
from typing import Any

from numba import cuda, float32, int32, int64
from numba.extending import overload

from stream.model import scalars as sc
from stream.model.blocks.names import TILE, Hands, Order, Room, Work, Worker
from stream.model.blocks.phases import barrier, blocks, totals
from stream.model.blocks.room import sum_size
from stream.model.step import account
from stream.model.step.lanes import meet, product
from stream.model.step.names import Given, Lane, Layouts, Model, Predictions, Scratch

LANES = 32
WARPS = 8  # of a thread block
THREADS = LANES * WARPS
REGISTERS = 128  # a thread: two thread blocks fit a multiprocessor
_ALL = 0xFFFFFFFF


@overload(meet, target="cuda")
def _meet(lane: Any) -> Any:
    def wait(lane: Any) -> Any:
        cuda.syncwarp()

    return wait


@overload(product, target="cuda")
def _product(x: Any, y: Any, first: Any, size: Any, lane: Any) -> Any:
    def sums(x: Any, y: Any, first: Any, size: Any, lane: Any) -> Any:
        a = float32(0)
        for d in range(first + lane.own, first + size, lane.all):
            a += x[d] * y[d]
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
def _totals(w: Any, b: Any, at: Any, worker: Any, memory: Any) -> Any:
    def shared_out(w: Any, b: Any, at: Any, worker: Any, memory: Any) -> Any:
        if w.m.on.live:
            tiles = (b.stop - b.event + TILE - 1) // TILE
            for tile in range(worker.own, tiles, worker.all):
                sum_told(w, b, tile)
            cuda.cg.this_grid().sync()
            lane = w.m.lane
            for cell in range(worker.own * lane.all + lane.own, w.room.cells.shape[0],
                              worker.all * lane.all):  # fmt: skip
                add_cell(w, cell, tiles)
            if w.order.border[at]:
                cuda.cg.this_grid().sync()
                if lane.own == 0:
                    refresh_one(w, worker.own, memory)

    return shared_out


@cuda.jit(device=True)
def sum_told(w, b, tile):
    """Sum what a tile of interactions said, cell by cell, in their order."""
    lane, cells, told = w.m.lane, w.room.cells, w.s.told
    first = tile * TILE
    stop = min(first + TILE, b.stop - b.event)
    for cell in range(lane.own, cells.shape[0], lane.all):
        column, more, bit, of = cells[cell, 0], cells[cell, 1], cells[cell, 2], cells[cell, 3]
        row, total = cells[cell, 4], 0.0
        for k in range(first, stop):
            kind = int32(told[k, account.KIND])
            mine = row
            if of <= account.WITHHELD_ROW:
                mine = int32(told[k, account.ROW])
            elif of == account.HEAD_ROW:
                mine = int32(told[k, account.HEAD]) + (row & ~1)
            elif of == account.PLACE_ROW:
                mine = int32(told[k, account.PLACE])
            if mine == row and kind & bit == bit:
                if column < 0:
                    total += 1.0
                else:
                    for p in range(1 + more):
                        total += told[k, column + 10 * p]
        w.room.total_part[tile, cell] = total


@cuda.jit(device=True)
def add_cell(w, cell, tiles):
    """Add the tiles' sums of one cell to the pending sums, in their order."""
    cells, g, total = w.room.cells, w.m.terms, 0.0
    for tile in range(tiles):
        total += w.room.total_part[tile, cell]
    of, row, column = cells[cell, 3], cells[cell, 4], cells[cell, 5]
    if of == account.OUTCOME_ROW:
        g.outcome[row, column] += total
    elif of == account.WITHHELD_ROW:
        g.withheld[row, column] += total
    elif of == account.HEAD_ROW:
        g.head[row, column] += total
    elif of == account.PLACE_ROW:
        g.place[row, column] += total
    else:
        g.counters[column] += int64(total)


@cuda.jit(device=True)
def refresh_one(w, task, memory):
    """Move one row of the global terms at a border; every row is a worker's own."""
    g = w.m.terms
    n, keep, keen = g.counters, 0.0, 0.0
    Y, H, P = g.outcome.shape[0], g.head.shape[0], g.place.shape[0]
    if task < 2 * Y + H + P:
        keep, keen = sc.fading(n, memory)
    if task < Y:
        sc.refresh_means(g.outcome[task], keep, keen)
        sc.refresh_slopes(g.outcome[task], keep, keen)
        sc.refresh_gate(g.outcome[task], keep)
    elif task < 2 * Y:
        sc.fit(g.withheld[task - Y], keen, sc.PRIOR_SLOPE)
    elif task < 2 * Y + H:
        sc.refresh_head(g.head[task - 2 * Y], n, keen)
    elif task == 2 * Y + H:
        n[sc.SETTLED] = n[sc.CONTROLS]
    elif task < 2 * Y + H + P:
        sc.refresh_place(g.place[task - 2 * Y - H], keen)


@functools.cache
def kernel(at: Layouts) -> Any:
    """Return the kernel that learns a batch of blocks, for rows of these layouts."""
    i, each, G = at.item, 1 + at.pairs, sum_size(at)
    W, V = i.D + i.E + i.S + i.C, i.D + i.E + i.S

    def learn(given: Given, order: Order, room: Room, out: Predictions, memory: float) -> None:
        user = cuda.shared.array((WARPS, W), float32)
        items = cuda.shared.array((WARPS, each, W), float32)
        grad = cuda.shared.array((WARPS, V), float32)
        folded = cuda.shared.array((WARPS, W), float32)
        sums = cuda.shared.array((WARPS, G), float32)
        ts_s = cuda.shared.array((WARPS, LANES), int64)
        label = cuda.shared.array((WARPS, LANES), float32)
        kind = cuda.shared.array((WARPS, LANES), int32)
        place = cuda.shared.array((WARPS, LANES), int32)
        links, weight = cuda.local.array(each, int64), cuda.local.array(each, float32)
        error, contrast = cuda.local.array(each, float32), cuda.local.array(each, float32)
        session, eta = cuda.local.array(each, float32), cuda.local.array(each, float32)
        k = cuda.threadIdx.x // LANES
        s = Scratch(
            user[k], items[k], links, weight, grad[k], error, contrast, session, eta, room.told
        )
        hands = Hands(folded[k], sums[k], ts_s[k], label[k], kind[k], place[k])
        lane = Lane(cuda.threadIdx.x % LANES, LANES)
        worker = Worker(cuda.grid(1) // LANES, cuda.gridsize(1) // LANES)
        m = Model(at, lane, given.tables, given.terms, given.outcomes, given.rates, given.on)
        w = Work(m, given.columns, s, out, order, room, hands)
        blocks(w, worker, order.events, memory)

    return cuda.jit(learn, fastmath=True, max_registers=REGISTERS)
