"""The order of blocks is a plain grouping's, whether counted on a CPU or sorted on a device."""

from itertools import groupby
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.interaction_type import InteractionType
from stream.model.blocks.device_order import device_order
from stream.model.blocks.names import TILE, Size
from stream.model.blocks.order import order, update_points

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
WAYS = ["counted", *DEVICES]
MOST = 3  # links of a row


class Linked(NamedTuple):
    """The tables, as far as the order reads them."""

    user_links: np.ndarray
    item_links: np.ndarray


class Batch(NamedTuple):
    user: np.ndarray
    item: np.ndarray
    pair: np.ndarray
    events: np.ndarray
    update_point: np.ndarray
    links: Linked
    rows: tuple[int, int, int]


def batch_of(seed, n, p, rows, blocks):
    """Return interactions in about so many blocks; half of the pairs are missing."""
    r = np.random.default_rng(seed)
    users, items, features = rows
    cuts = np.unique(r.integers(1, n, blocks - 1)) if n > 1 else np.zeros(0, int)
    events = np.r_[0, cuts, n].astype(np.int32) if n else np.zeros(1, np.int32)
    pair = np.where(r.random((n, p)) < 0.5, r.integers(0, items, (n, p)), -1)
    links = []
    for count in (users, items):
        values = r.integers(1, features + 1, (count, MOST))
        kept = np.arange(MOST) < r.integers(0, MOST + 1, count)[:, None]
        links.append((values * kept).astype(np.int32))
    return Batch(
        r.integers(0, users, n).astype(np.int32), r.integers(0, items, n).astype(np.int32),
        pair.astype(np.int32), events, r.random(len(events) - 1) < 0.5, Linked(*links), rows,
    )  # fmt: skip


def ordered(batch, way, linked=True):
    """Return the batch's order as arrays, counted on the CPU or sorted on a device."""
    if way == "counted":
        marks = tuple(np.zeros(n, np.int32) for n in batch.rows)
        found = order(batch[:3], (batch.events, batch.update_point), batch.links, marks, linked)
        assert not any(mark.any() for mark in marks)
        return found
    columns = [torch.from_numpy(column).to(way) for column in batch[:3]]
    links = tuple(torch.from_numpy(links).to(way) for links in batch.links)
    found = device_order(
        *columns, batch.events, batch.update_point, links if linked else None, batch.rows
    )
    return found._make(
        part.cpu().numpy() if isinstance(part, torch.Tensor)
        else part._make(array.cpu().numpy() for array in part)
        for part in found
    )  # fmt: skip


def gathered(pairs, by_row):
    """Return (row, members) of each row: by its first appearance, or by row."""
    found = {}
    for row, member in pairs:
        if row >= 0:
            found.setdefault(int(row), []).append(member)
    return sorted(found.items()) if by_row else list(found.items())


def plainly(batch, by_row, linked=True):
    """Return each block's (row, members): chains, segments, values with (side, row, link)."""
    each = 1 + batch.pair.shape[1]
    shown = np.concatenate([batch.item[:, None], batch.pair], 1).ravel()
    found = []
    for b in range(len(batch.events) - 1):
        js = range(batch.events[b], batch.events[b + 1])
        chains = gathered(((batch.user[j], j) for j in js), by_row)
        places = range(js.start * each, js.stop * each)
        segments = gathered(((shown[o], o) for o in places), by_row)
        behind = [
            (f - 1, (side, row, k))
            for side, groups in enumerate((chains, segments))
            for row, _ in groups
            for k, f in enumerate(batch.links[side][row])
            if f
        ]
        found.append((chains, segments, gathered(behind if linked else [], by_row)))
    return found


def blocks_of(groups):
    """Return each block's (row, members)."""
    return [
        [
            (int(groups.row[g]), groups.members[groups.start[g] : groups.start[g + 1]].tolist())
            for g in range(first, last)
        ]
        for first, last in zip(groups.block[:-1], groups.block[1:], strict=True)
    ]


def seen(found):
    """Return what `plainly` does, of an order."""
    named = (found.chains.row, found.segments.row)

    def link(source):
        group, k = divmod(source, MOST)
        return group % 2, int(named[group % 2][group // 2]), k

    values = [[(f, [link(m) for m in ms]) for f, ms in b] for b in blocks_of(found.values)]
    return list(zip(blocks_of(found.chains), blocks_of(found.segments), values, strict=True))


def check_tiles(groups):
    """Every group of more than TILE members has tiles that follow on each other, no other any."""
    used = groups.block[-1]
    size = np.diff(groups.start)
    expected = [g for g in range(used) for _ in range(-(-size[g] // TILE)) if size[g] > TILE]
    assert groups.tile[: groups.tile_block[-1]].tolist() == expected
    first = {g: t for t, g in reversed(list(enumerate(expected)))}
    assert groups.tiles[:used].tolist() == [first.get(g, -1) for g in range(used)]
    block = np.searchsorted(groups.block, expected, side="right") - 1
    assert groups.tile_block.tolist() == [int((block < b).sum()) for b in range(len(groups.block))]


def check_spare(groups):
    """What is behind the last group and tile is empty."""
    used = groups.block[-1]
    assert (groups.start[used:] == groups.start[used]).all()
    assert len(groups.start) == len(groups.row) + 1 == len(groups.tiles) + 1
    assert (groups.row[used:] == -1).all() and (groups.tiles[used:] == -1).all()
    assert (groups.tile[groups.tile_block[-1] :] == -1).all()


def check(batch, way, linked=True):
    found = ordered(batch, way, linked)
    assert seen(found) == plainly(batch, way != "counted", linked)
    segment = np.full(len(found.segment), -1)
    for g in range(found.segments.block[-1]):
        segment[found.segments.members[found.segments.start[g] : found.segments.start[g + 1]]] = g
    assert found.segment.tolist() == segment.tolist()
    for groups in found[1:4]:
        check_tiles(groups)
        check_spare(groups)
        assert {array.dtype for array in groups} == {np.dtype(np.int32)}
    assert found.segment.dtype == found.events.dtype == np.int32
    assert found.events.tolist() == batch.events.tolist()
    assert found.update_point.tolist() == batch.update_point.tolist()
    return found


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32), n=st.integers(0, 300), p=st.integers(0, 3),
    rows=st.tuples(*[st.integers(1, 40)] * 3), blocks=st.integers(1, 8), linked=st.booleans(),
)  # fmt: skip
def test_order_is_a_plain_grouping(way, seed, n, p, rows, blocks, linked):
    check(batch_of(seed, n, p, rows, blocks), way, linked)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(0, 300), blocks=st.integers(1, 8))
def test_a_device_has_the_groups_that_a_cpu_has(seed, n, blocks):
    batch = batch_of(seed, n, 2, (9, 30, 20), blocks)
    counted, sorted_ = ordered(batch, "counted"), ordered(batch, "cpu")
    for name in ("chains", "segments"):
        here, there = blocks_of(getattr(counted, name)), blocks_of(getattr(sorted_, name))
        assert [sorted(block) for block in here] == there
    for here, there in zip(seen(counted), seen(sorted_), strict=True):
        assert sorted((f, sorted(links)) for f, links in here[2]) == there[2]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [TILE, TILE + 1, 2 * TILE, 2 * TILE + 1, 20 * TILE])
def test_one_row_that_is_everywhere_is_cut_into_tiles(way, size):
    batch = batch_of(1, size, 0, (1, 1, 1), 1)
    found = check(batch, way)
    tiles = -(-size // TILE) if size > TILE else 0
    assert found.chains.tile_block.tolist() == found.segments.tile_block.tolist() == [0, tiles]


@pytest.mark.parametrize("way", WAYS)
def test_values_that_everybody_has_are_cut_into_tiles(way):
    found = check(batch_of(2, 400, 3, (300, 300, 2), 3), way)
    assert found.values.tile_block[-1] > 0


@pytest.mark.parametrize("way", WAYS)
def test_missing_pairs_are_of_no_segment(way):
    batch = batch_of(3, 50, 2, (5, 5, 5), 4)
    batch.pair[:] = -1
    found = check(batch, way)
    assert (found.segment.reshape(50, 3)[:, 1:] == -1).all()


@pytest.mark.parametrize("way", WAYS)
def test_blocks_of_one_interaction(way):
    batch = batch_of(4, 40, 2, (3, 4, 5), 1)
    alone = np.arange(41, dtype=np.int32)
    found = check(batch._replace(events=alone, update_point=np.ones(40, bool)), way)
    assert found.chains.block.tolist() == alone.tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_block_times_rows_may_pass_32_bits(device):
    batch = batch_of(5, 3_000, 1, (1, 1, 1), 1)
    events = np.arange(3_001, dtype=np.int32)
    wide = batch._replace(events=events, update_point=np.ones(3_000, bool), rows=(2**20,) * 3)
    r = np.random.default_rng(5)
    user, item = r.integers(2**20 - 9, 2**20, (2, 3_000)).astype(np.int32)
    links = np.zeros((2**20, MOST), np.int32)
    links[-9:, 0] = 2**20 - np.arange(9)
    check(wide._replace(user=user, item=item, links=Linked(links, links)), device)


def cut_plainly(role, steps, limits, live):
    """Return the sizes of blocks and whether the global terms move after each, one by one."""
    every = max(1024, limits.block)
    sizes, moves, size = [], [], 0
    for at in role:
        if size == 0:
            most = max(1, min(limits.block, int(limits.share * steps)))
        size += 1
        moved = False
        if live and at not in (InteractionType.PREDICT, InteractionType.CLOSED):
            steps += 1
            moved = steps % every == 0 or (steps < 1024 and steps.bit_count() == 1)
        if moved or size == most:
            sizes, moves, size = [*sizes, size], [*moves, moved], 0
    return ([*sizes, size], [*moves, False]) if size else (sizes, moves)


@settings(max_examples=300, deadline=None)
@given(
    role=st.lists(st.sampled_from([*InteractionType]), max_size=200),
    steps=st.sampled_from([0, 3, 500, 1000, 1400, 2000, 2900, 4090]),
    block=st.sampled_from([1, 2, 7, 64, 150, 1024, 1500, 2048]), live=st.booleans(),
    share=st.sampled_from([1.0, 0.25, 1 / 64]),
)  # fmt: skip
def test_blocks_end_at_borders(role, steps, block, live, share):
    limits = Size(block, share)
    events, moves = update_points(np.array(role, np.int8), steps, limits, live)
    assert events[0] == 0 and events.dtype == np.int32
    assert (np.diff(events).tolist(), moves.tolist()) == cut_plainly(role, steps, limits, live)


@pytest.mark.parametrize("block", [1, 1000, 1024, 1025, 4096])
def test_blocks_of_a_long_batch_end_at_borders(block):
    events, moves = update_points(np.zeros(9_000, np.int8), 0, Size(block, 1.0), True)
    at = [e for e, moved in zip(events[1:].tolist(), moves, strict=True) if moved]
    every = max(block, 1024)
    assert at == [2**k for k in range(10)] + list(range(every, 9_000, every))
    assert max(np.diff(events)) <= block
    assert [k for k, _ in groupby(events)] == events.tolist()


def test_blocks_that_are_not_live_have_their_full_size():
    events, moves = update_points(np.zeros(5_000, np.int8), 2048, Size(2048, 1.0), False)
    assert events.tolist() == [0, 2048, 4096, 5000] and not moves.any()


def test_blocks_grow_with_the_stream():
    events, _ = update_points(np.zeros(100_000, np.int8), 0, Size(1024, 1 / 64), True)
    sizes = np.diff(events)
    assert (sizes <= np.maximum(1, events[:-1] / 64)).all() and sizes[-1] < 1024 == sizes[-2]
