"""Grouping of a batch on a CPU, by counting and placing without sorting."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream.compiled import compiled
from stream.interaction_type import InteractionType
from stream.model.blocks.names import TILE, Groups, Order, Size
from stream.model.scalars import BLOCK
from stream.model.step.names import Array, TableArrays

Int = NDArray[np.int32]
_PREDICT, _CLOSED = int(InteractionType.PREDICT), int(InteractionType.CLOSED)


@compiled
def cut(role: Array, steps: int, size: Size, live: bool, events: Array, moves: Array) -> int:
    """Write where blocks begin, and whether the global terms move after each; return how many."""
    blocks = first = 0
    late = max(BLOCK, size.block)
    most = min(size.block, max(1, int(steps * size.share)))
    for j in range(role.size):
        moved = False
        if live and role[j] != _PREDICT and role[j] != _CLOSED:
            steps += 1
            moved = steps % late == 0 if steps >= BLOCK else steps & (steps - 1) == 0
        if moved or j + 1 - first == most or j + 1 == role.size:
            moves[blocks] = moved
            blocks += 1
            first = events[blocks] = j + 1
            most = min(size.block, max(1, int(steps * size.share)))
    return blocks


def update_points(
    role: NDArray[np.int8], steps: int, size: Size, live: bool
) -> tuple[Int, NDArray[np.bool_]]:
    """Return where blocks begin (blocks + 1,), and whether the global terms are updated after each.

    They are updated after 1, 2, 4, ... and then every 1,024th learned interaction, or every
    `block`th if that is more. A block ends at an update point, after `block` interactions, or with
    the batch.
    """
    events, moves = np.zeros(len(role) + 1, np.int32), np.zeros(len(role), np.bool_)
    blocks = cut(role, steps, size, live, events, moves)
    return events[: blocks + 1], moves[:blocks]


def faded(sum_half_life: float, block: int) -> float:
    """Return `ModelConfig.sum_half_life` scaled for blocks of more than 1,024 interactions.

    `fading` assumes 1,024 new interactions per update point. After larger blocks there are more,
    and the scaling makes running sums halve in `sum_half_life` interactions all the same.
    """
    return sum_half_life * BLOCK / max(BLOCK, block)


@compiled
def group_by_key(
    keys: Array, edges: Array, mark: Array, block: Array, start: Array, members: Array, row: Array
) -> int:
    """Group members by key within each span between edges; negative keys belong to no group.

    `mark` (rows,) is all 0 before and after. Returns the number of groups.
    """
    groups = placed = 0
    for b in range(edges.size - 1):
        block[b] = groups
        first = groups
        for j in range(edges[b], edges[b + 1]):
            if keys[j] >= 0:
                if mark[keys[j]] == 0:
                    row[groups] = keys[j]
                    start[groups] = 0
                    groups += 1
                    mark[keys[j]] = groups
                start[mark[keys[j]] - 1] += 1
        for g in range(first, groups):  # turn counts into the position of the next member
            placed += start[g]
            start[g] = placed - start[g]
        for j in range(edges[b], edges[b + 1]):
            if keys[j] >= 0:
                g = mark[keys[j]] - 1
                members[start[g]] = j
                start[g] += 1
        for g in range(first, groups):
            mark[row[g]] = 0
    block[edges.size - 1] = groups
    for g in range(groups, 0, -1):
        start[g] = start[g - 1]
    start[0] = 0
    return groups


def grouped(keys: Int, edges: Int, mark: Int) -> Groups:
    """Return the positions in `keys` grouped by key within the spans between edges."""
    n, blocks = len(keys), len(edges) - 1
    block, start = np.zeros(blocks + 1, np.int32), np.zeros(n + 1, np.int32)
    members, row = np.empty(n, np.int32), np.empty(n, np.int32)
    groups = group_by_key(keys, edges, mark, block, start, members, row)
    return tiled(block, start[: groups + 1], members, row[:groups])


def tiled(block: Int, start: Int, members: Int, row: Int) -> Groups:
    """Return the groups with the tiles of those that have more than TILE members."""
    size = np.diff(start)
    if size.max(initial=0) <= TILE:
        none = np.full(len(row), -1, np.int32)
        return Groups(block, start, members, row, none, none[:0], np.zeros_like(block))
    many = np.where(size > TILE, -(-size // TILE), 0)
    first = np.concatenate([[0], np.cumsum(many)]).astype(np.int32)
    tiles = np.where(many > 0, first[:-1], -1).astype(np.int32)
    tile = np.repeat(np.arange(len(row), dtype=np.int32), many)
    return Groups(block, start, members, row, tiles, tile, first[block])


@compiled
def inverse(segments: Groups, segment: Array) -> None:
    """Write the segment of each occurrence."""
    for g in range(segments.row.size):
        for k in range(segments.start[g], segments.start[g + 1]):
            segment[segments.members[k]] = g


@compiled
def sources(
    groups: Groups, links: Array, side: int, keys: Array, source: Array, ends: Array
) -> None:
    """Append the links of each group's row, block by block; `ends` (blocks,) are the positions."""
    most = links.shape[1]
    for b in range(groups.block.size - 1):
        for g in range(groups.block[b], groups.block[b + 1]):
            for k in range(most):
                f = links[groups.row[g], k]
                if f == 0:
                    break
                keys[ends[b]] = f - 1
                source[ends[b]] = (2 * g + side) * most + k
                ends[b] += 1


def values_of(chains: Groups, segments: Groups, tables: TableArrays, mark: Int) -> Groups:
    """Return the groups of the attribute values of the users and items of each block."""
    blocks = len(chains.block) - 1
    counts = np.zeros(blocks, np.int64)
    for groups, links in ((chains, tables.user_links), (segments, tables.item_links)):
        many = np.concatenate([[0], np.cumsum((links[groups.row] != 0).sum(1))])
        counts += np.diff(many[groups.block])
    edges = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    keys, source = np.empty(edges[-1], np.int32), np.empty(edges[-1], np.int32)
    ends = edges[:-1].copy()
    sources(chains, tables.user_links, 0, keys, source, ends)
    sources(segments, tables.item_links, 1, keys, source, ends)
    found = grouped(keys, edges, mark)
    return found._replace(members=source[found.members])


def order(
    columns: Sequence[Int],
    edges: tuple[Int, NDArray[np.bool_]],
    tables: TableArrays,
    marks: tuple[Int, Int, Int],
    linked: bool,
) -> Order:
    """Return the order of a batch's blocks.

    `columns` are users, items and uniform items (B, P). If nothing is `linked` there are no values.
    """
    user, item, pair = columns
    each = 1 + pair.shape[1]
    events, moves = edges
    chains = grouped(user, events, marks[0])
    occurrences = np.concatenate([item[:, None], pair], 1).ravel()
    segments = grouped(occurrences, (events * each).astype(np.int32), marks[1])
    segment = np.full(len(occurrences), -1, np.int32)
    inverse(segments, segment)
    if linked:
        values = values_of(chains, segments, tables, marks[2])
    else:
        nothing = np.zeros(0, np.int32)
        values = grouped(nothing, np.zeros_like(events), marks[2])
    return Order(events, chains, segments, values, segment, moves)
