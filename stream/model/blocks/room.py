"""Allocates the memory through which the phases of blocks communicate, on the host."""

import numpy as np

from stream.model.blocks.names import Hands, Order, Room
from stream.model.step import account
from stream.model.step.names import Layouts


def sum_size(at: Layouts) -> int:
    """Return G, the size of a sum of gradients."""
    i = at.item
    return i.D + i.E + i.S + 2 * i.C + 6


def room(at: Layouts, order: Order) -> Room:
    """Return memory for the largest block of the order."""

    def most(edges: np.ndarray) -> int:
        return int(np.diff(edges).max(initial=0))

    i, each, B = at.item, 1 + at.pairs, most(order.events)
    chains, segments = most(order.chains.block), most(order.segments.block)
    linked = len(order.values.row) > 0
    G = sum_size(at)

    def floats(*shape: int) -> np.ndarray:
        return np.empty(shape, np.float32)

    return Room(
        np.empty((B, account.columns(at.pairs))), np.empty(B, np.int32), floats(B, each),
        floats(B, each), floats(B, each), floats(B, each), floats(B), floats(B), floats(B),
        floats(B, i.D + i.E + i.S), floats(B, 3),
        floats(segments * linked, i.D + i.E + i.S + i.C), floats(chains * linked, G),
        floats(segments * linked, G), floats(most(order.segments.tile_block), G),
        floats(most(order.values.tile_block), G), np.empty((0, 6), np.int32), np.empty((0, 0)),
    )  # fmt: skip


def hands(at: Layouts, links: int, lanes: int = 1) -> Hands:
    """Return the memory of one worker, for rows with at most `links` links."""
    i = at.item
    return Hands(
        np.zeros(i.D + i.E + i.S + i.C, np.float32), np.zeros((4 + i.C, links), np.float32),
        np.zeros((6, links), np.float32), np.zeros(sum_size(at), np.float32),
        np.zeros(lanes, np.int64), np.zeros(lanes, np.float32), np.zeros(lanes, np.int32),
        np.zeros(lanes, np.int32),
    )  # fmt: skip
