"""Grouping of a batch on any device, by stable sorts on block * rows + row.

The number of groups is known only on the device, and nothing waits for it: arrays have room for the
largest possible number of groups and tiles, and those after the last block's are spare. A spare
group is empty with row -1, a spare tile has group -1. Only attribute values make the host wait,
once, for the number of links.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream.model.blocks.names import TILE, Groups, Order

INT = torch.int32
Tensors = Any  # `Groups` of tensors instead of arrays


def counting(n: int, like: Tensor) -> Tensor:
    """Return 0, 1, ..., n - 1 on the device of `like`."""
    return torch.arange(n, dtype=like.dtype, device=like.device)


def spans(edges: Tensor, n: int) -> Tensor:
    """Return the span between edges in which each of n positions lies.

    A position after the last edge gets the number of spans.
    """
    return torch.searchsorted(edges[1:], counting(n, edges), right=True, out_int32=True)


def wide(span: Tensor, blocks: int, rows: int) -> Tensor:
    """Return the spans in an integer type that can hold block * rows + row."""
    return span if blocks * rows < 2**31 else span.long()


def tiled(block: Tensor, start: Tensor, members: Tensor, row: Tensor) -> Tensors:
    """Return the groups with the tiles of those that have more than TILE members."""
    size = start[1:] - start[:-1]
    many = torch.where(size > TILE, (size + TILE - 1) // TILE, 0)
    first = torch.zeros_like(start)
    torch.cumsum(many, 0, dtype=INT, out=first[1:])
    tiles = torch.where(many > 0, first[:-1], -1)
    most = 2 * len(members) // (TILE + 1)  # most tiles per member: two for TILE + 1
    tile = spans(first, most)
    tile = torch.where(tile < len(row), tile, -1)
    made: tuple[Any, ...] = (block, start, members, row, tiles, tile, first[block])
    return Groups(*made)


def grouped(keys: Tensor, blocks: int, rows: int) -> tuple[Tensors, Tensor]:
    """Group positions by key, block * rows + row; the key blocks * rows means no group.

    Also returns the members' positions in `keys` as integers that torch can index with.
    """
    n, none = len(keys), blocks * rows
    keys, at = torch.sort(keys, stable=True)
    most = min(n, none)
    before = torch.zeros(n + 1, dtype=INT, device=keys.device)  # groups before a position
    new = torch.ones(n, dtype=torch.bool, device=keys.device)
    torch.ne(keys[1:], keys[:-1], out=new[1:])
    torch.cumsum(new, 0, dtype=INT, out=before[1:])
    ends = torch.searchsorted(keys, counting(blocks + 1, keys) * rows, out_int32=True)
    start = torch.minimum(spans(before, most + 1), ends[-1])  # keys without a group are last
    begin = start[:-1]
    row = torch.where(begin < ends[-1], keys[begin.clamp(max=n - 1)] % max(rows, 1), -1).to(INT)
    return tiled(before[ends], start, at.to(INT), row), at


def inverse(groups: Tensors, at: Tensor) -> Tensor:
    """Return the group of each position, -1 if it has none."""
    own = spans(groups.start, len(at))
    own = torch.where(own < len(groups.row), own, -1)
    return torch.empty_like(own).scatter_(0, at, own)


def filled(links: Tensor, row: Tensor) -> Tensor:
    """Return how many links each row has; 0 for negative rows."""
    known, short = row.clamp(min=0), len(links) < len(row)
    many = (links if short else links[known]).ne(0).sum(1, dtype=INT)
    return torch.where(row < 0, 0, many[known] if short else many)


def values_of(
    chains: Tensors, segments: Tensors, links: tuple[Tensor, Tensor], features: int
) -> Tensors:
    """Return the attribute values of the users and items of each block; the host waits once."""
    blocks, most = len(chains.block) - 1, links[0].shape[1]
    many = [filled(*of) for of in zip(links, (chains.row, segments.row), strict=True)]
    keys, sources = [], []
    sizes = torch.stack([counts.sum() for counts in many]).tolist()
    for side, groups in enumerate((chains, segments)):
        # links of chains come before those of segments; the stable sort keeps this in each block
        first = torch.cumsum(many[side], 0, dtype=INT) - many[side]
        own = torch.repeat_interleave(many[side], output_size=sizes[side])
        k = counting(sizes[side], first) - first[own]
        row = groups.row[own]
        block = wide(spans(groups.block, len(groups.row)), blocks, features)[own]
        keys.append(block * features + (links[side][row, k] - 1))
        sources.append((2 * own.to(INT) + side) * most + k)
    groups, at = grouped(torch.cat(keys), blocks, features)
    return groups._replace(members=torch.cat(sources)[at])


def moved(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return the array on the device, without waiting for the device."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def device_order(
    user: Tensor,
    item: Tensor,
    pair: Tensor,
    events: NDArray[np.int32],
    update_point: NDArray[np.bool_],
    tables_links: tuple[Tensor, Tensor] | None,
    rows: tuple[int, int, int],
) -> Order:
    """Return the order of a batch's blocks on the device of its columns; `pair` is (B, P).

    `tables_links` are the links of users and items, None if there are no values; `rows` are the
    numbers of users, items and attribute values. The groups of a block are sorted by row.
    """
    users, items, features = rows
    blocks = len(events) - 1
    edges = moved(events, user.device)
    span = spans(edges, len(user))
    chains, _ = grouped(wide(span, blocks, users) * users + user, blocks, users)
    occurrences = torch.cat([item[:, None], pair], 1)
    keys = wide(span, blocks, items)[:, None] * items + occurrences
    keys = torch.where(occurrences < 0, blocks * items, keys).view(-1)
    segments, at = grouped(keys, blocks, items)
    if tables_links is None:
        values, _ = grouped(user[:0], blocks, features)
    else:
        values = values_of(chains, segments, tables_links, features)
    made: tuple[Any, ...] = (
        edges,
        chains,
        segments,
        values,
        inverse(segments, at),
        moved(update_point, user.device),
    )
    return Order(*made)
