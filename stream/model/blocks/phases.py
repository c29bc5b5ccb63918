"""The phases of a block, and the loop over the blocks of a batch; barriers separate the phases.

    compose           the block's items with their attribute values, if there are any
    users             learn each user's interactions in order
    items             sum gradients, take one step each, update what must advance in order, average
    attribute values  sum gradients, take one step each, average
    global terms      sum all contributions, and update the terms at an update point

Results do not depend on which worker handles which user, item or value: each is handled by one
worker, and values passed between workers are summed in the order of the batch.
"""

from stream.compiled import embedded
from stream.model.blocks.names import BlockBounds, Work, Worker
from stream.model.blocks.steps import step_segment, step_value, sum_tile
from stream.model.blocks.walk import compose, walk
from stream.model.step.lanes import as_index
from stream.model.step.names import Array


def barrier(worker: Worker, arrived: Array) -> None:
    """Synchronise the workers: what each wrote before is visible to all afterwards."""
    raise NotImplementedError("only compiled code calls it")


def totals(w: Work, b: BlockBounds, at: int, worker: Worker, sum_half_life: float) -> None:
    """Add the contributions of block `at` to the global terms; update these at an update point."""
    raise NotImplementedError("only compiled code calls it")


@embedded
def block_at(w: Work, at: int) -> BlockBounds:
    """Return where block `at` begins."""
    o = w.order
    return BlockBounds(
        as_index(o.events[at]), as_index(o.events[at + 1]), as_index(o.chains.block[at]),
        as_index(o.segments.block[at]), as_index(o.segments.tile_block[at]),
        as_index(o.values.tile_block[at]),
    )  # fmt: skip


@embedded
def compose_items(w: Work, b: BlockBounds, at: int, worker: Worker, arrived: Array) -> None:
    """Compose the block's items if any row has attribute values."""
    if w.room.composed.shape[0] > 0:
        for segment in range(b.segment + worker.own, w.order.segments.block[at + 1], worker.all):
            compose(w, b, segment)
        barrier(worker, arrived)


@embedded
def step_items(w: Work, b: BlockBounds, at: int, worker: Worker, arrived: Array) -> None:
    """Update every item of the block."""
    g = w.order.segments
    if g.tile_block[at + 1] > b.segment_tile:
        for tile in range(b.segment_tile + worker.own, g.tile_block[at + 1], worker.all):
            sum_tile(w, b, g, tile, True)
        barrier(worker, arrived)
    for segment in range(b.segment + worker.own, g.block[at + 1], worker.all):
        step_segment(w, b, segment)
    barrier(worker, arrived)


@embedded
def step_values(w: Work, b: BlockBounds, at: int, worker: Worker, arrived: Array) -> None:
    """Update every attribute value of the block's users and items."""
    g = w.order.values
    if g.tile_block[at + 1] > b.value_tile:
        for tile in range(b.value_tile + worker.own, g.tile_block[at + 1], worker.all):
            sum_tile(w, b, g, tile, False)
        barrier(worker, arrived)
    for value in range(g.block[at] + worker.own, g.block[at + 1], worker.all):
        step_value(w, b, value)


@embedded
def blocks(w: Work, worker: Worker, arrived: Array, sum_half_life: float) -> None:
    """Learn the blocks of a batch, one after the other."""
    for at in range(w.order.events.size - 1):
        b = block_at(w, at)
        compose_items(w, b, at, worker, arrived)
        for chain in range(b.chain + worker.own, w.order.chains.block[at + 1], worker.all):
            walk(w, b, chain)
        barrier(worker, arrived)
        step_items(w, b, at, worker, arrived)
        step_values(w, b, at, worker, arrived)
        totals(w, b, at, worker, sum_half_life)
        barrier(worker, arrived)
