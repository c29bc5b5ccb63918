"""Allocates the memory through which the phases of blocks communicate, on the host."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from stream.model.blocks.names import Hands, Order, Room
from stream.model.step import account
from stream.model.step.names import Layouts


def sum_size(at: Layouts) -> int:
    """Return G, the size of a sum of gradients."""
    i = at.item
    return i.D + i.E + i.S + 2 * i.C + 6


class Sizes(NamedTuple):
    """The most of each in one block; chains and segments only count where values are linked."""

    block: int
    chains: int
    segments: int
    segment_tiles: int
    value_tiles: int


Shapes = dict[str, tuple[type, tuple[int, ...]]]


def shapes(at: Layouts, sizes: Sizes, whole: Callable[[int], int] = int) -> Shapes:
    """Return the type and shape of each array of `Room` except `cells` and `total_part`.

    `whole` rounds the length of a row up to whole strides of all lanes.
    """
    i, each, B = at.item, 1 + at.pairs, sizes.block
    V, G = i.D + i.E + i.S, whole(sum_size(at))
    of_pairs, one = (np.float32, (B, each)), (np.float32, (B,))
    return {
        "told": (np.float64, (B, account.columns(at.pairs))),
        "kind": (np.int32, (B,)),
        "error": of_pairs,
        "push": of_pairs,
        "contrast": of_pairs,
        "session": of_pairs,
        "miss": one,
        "off": one,
        "rest": one,
        "moment": (np.float32, (B, V)),
        "norm": (np.float32, (B, 3)),
        "composed": (np.float32, (sizes.segments, whole(V + i.C))),
        "chain_sum": (np.float32, (sizes.chains, G)),
        "segment_sum": (np.float32, (sizes.segments, G)),
        "segment_part": (np.float32, (sizes.segment_tiles, G)),
        "value_part": (np.float32, (sizes.value_tiles, G)),
    }


def room(at: Layouts, order: Order) -> Room:
    """Return memory for the largest block of the order."""

    def most(edges: np.ndarray) -> int:
        return int(np.diff(edges).max(initial=0))

    linked = len(order.values.row) > 0
    sizes = Sizes(
        most(order.events), most(order.chains.block) * linked,
        most(order.segments.block) * linked, most(order.segments.tile_block),
        most(order.values.tile_block),
    )  # fmt: skip
    made: dict[str, Any] = {
        name: np.empty(shape, kind) for name, (kind, shape) in shapes(at, sizes).items()
    }
    return Room(**made, cells=np.empty((0, 6), np.int32), total_part=np.empty((0, 0)))


def hands(at: Layouts, links: int, lanes: int = 1) -> Hands:
    """Return the memory of one worker, for rows with at most `links` links."""
    i = at.item
    return Hands(
        np.zeros(i.D + i.E + i.S + i.C, np.float32), np.zeros((4 + i.C, links), np.float32),
        np.zeros((6, links), np.float32), np.zeros(sum_size(at), np.float32),
        np.zeros(lanes, np.int64), np.zeros(lanes, np.float32), np.zeros(lanes, np.int32),
        np.zeros(lanes, np.int32),
    )  # fmt: skip
