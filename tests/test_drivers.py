"""Blocks on threads of the CPU and on a GPU: against the float64 reference and the sequential law.

`pytest -k cuda` runs what needs a GPU.
"""

import functools
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from stream.batch import Batch, ratings
from stream.engine import Engine
from stream.model import scalars as sc
from stream.model.blocks.names import TILE, Size
from stream.model.blocks.order import update_points
from stream.model.config import ModelConfig, PathConfig
from stream.model.gpu import gpu
from stream.model.learner import Learner, Update
from stream.testing import restarts_do_not_matter, steps_agree
from tests.reference import Reference, differences, untold
from tests.test_engine import CONFIG, ROOMY, world
from tests.test_model import (
    BLOCKS,
    RATING,
    movielens,
    open_every_path,
    same_state,
    score,
)
from tests.test_reference import AVERAGED, alone, attributed, mixed_batch, settled

needs_gpu = pytest.mark.skipif(
    bool(gpu().lacks), reason="blocks on a GPU: " + "; ".join(gpu().lacks)
)
DEFAULT = ModelConfig(step="blocks", device="cpu", threads=2)
CUDA = replace(BLOCKS, device="cuda", threads=0)
CORRECTED = {"alpha": 0.0, "mix": 1.0, "robust_share": 1.0}
CLOSED = [
    {"paths": replace(PathConfig(), **{name: False})} for name in PathConfig.__dataclass_fields__
]
TOLD = ("prediction", "control", "terms", "served")


def same_words(one: Update, two: Update) -> bool:
    """Tell whether two updates say the same, bit for bit."""
    return all(getattr(one, name).tobytes() == getattr(two, name).tobytes() for name in TOLD)


def agrees(config: ModelConfig, batches: list[Batch], made=attributed, tolerance=1e-4) -> None:
    """The learner is the reference after each of the batches, whose blocks it learns alike.

    Both begin each batch from the learner's state, before the second one with every path open.
    """
    learner = made(config)
    for k, batch in enumerate(batches):
        if k == 1:
            open_every_path(learner)
        reference = Reference(learner)
        pair = reference.draw(batch)
        update = learner.step(batch)
        told = reference.learn(batch, pair, config.block)
        found = differences(reference, learner, tolerance) + untold(told, update, tolerance)
        assert not found, (k, len(found), found[:5])


# -- the law


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("block", [1, 16, 256])
@pytest.mark.parametrize("more", [{}, AVERAGED, CORRECTED], ids=str)
def test_blocks_are_the_reference(more: dict, block: int, threads: int) -> None:
    config = replace(BLOCKS, block=block, threads=threads, **more)
    agrees(config, [mixed_batch(300, 1), mixed_batch(300, 2)])


def test_blocks_of_a_thousand_are_the_reference() -> None:
    """The first batch ends at the first whole border; the second is of one large block."""
    agrees(
        replace(BLOCKS, block=1024, **AVERAGED), [mixed_batch(900, 1), mixed_batch(1100, 2)],
        lambda config: settled(config, 300),
    )  # fmt: skip


@pytest.mark.parametrize("more", CLOSED, ids=str)
def test_blocks_with_a_path_closed_are_the_reference(more: dict) -> None:
    agrees(replace(BLOCKS, block=64, **more), [mixed_batch(200, 1), mixed_batch(200, 2)])


@pytest.mark.parametrize("share", [1 / 64, 0.2])
def test_blocks_that_grow_with_the_stream_are_the_reference(share: float) -> None:
    config = replace(BLOCKS, block=64, block_share=share)
    agrees(config, [mixed_batch(400, 1), mixed_batch(400, 2)])


def test_blocks_of_the_default_layout_are_the_reference() -> None:
    room = {"max_users": 64, "max_items": 64, "max_features": 64}
    agrees(replace(DEFAULT, **room), [mixed_batch(300, 1), mixed_batch(300, 2)])


def test_replay_and_what_nobody_observed_are_the_references() -> None:
    """They are learned in whole blocks, whatever the borders, and count nothing."""
    learner = settled(replace(BLOCKS, block=32, synthetic=0.3, **AVERAGED))
    before = learner.scalars.state()
    for batch in (learner._past.draw(150, 5), _made_up(learner)):
        reference = Reference(learner)
        pair, users, items = learner._draw(batch)
        update = Update(users, items, *learner._learn(batch, pair, False))
        told = reference.learn(batch, pair, 32, live=False)
        assert len(batch) > 90
        assert not differences(reference, learner, 1e-4) + untold(told, update, 1e-4)
    assert all(np.array_equal(x, learner.scalars.state()[name]) for name, x in before.items())


def _made_up(learner: Learner) -> Batch:
    batch = mixed_batch(200, 3)
    told = np.full(200, 2.5, np.float32)
    made = learner._imagined
    return made.make(batch, told, learner._logit, learner.links["item"], learner._living)


USERS, ITEMS = 60, 40


def crowd(config: ModelConfig) -> Learner:
    """Return a learner of users who all have one value, as half of the items do."""
    learner = Learner(replace(config, max_features=256), 5)
    for user in range(USERS):
        learner.set_attributes("user", user, {"land": "a", "job": f"j{user % 3}"})
    for item in range(0, ITEMS, 2):
        learner.set_attributes("item", item, {"genre": ["x", f"g{item % 5}"]})
    return learner


def hot_batch(n: int, seed: int) -> Batch:
    """Return interactions of many users, every second one with item 4."""
    rng = np.random.default_rng(seed)
    batch = mixed_batch(n, seed, items=ITEMS)
    item = np.where(rng.random(n) < 0.5, 4, batch.item).astype(np.int32)
    return replace(batch, item=item, user=rng.integers(0, USERS, n).astype(np.int32))


@pytest.mark.parametrize("more", [{}, AVERAGED], ids=str)
def test_what_is_in_half_of_a_block_is_summed_in_tiles_and_is_the_references(more: dict) -> None:
    batches = [hot_batch(1100, 1), hot_batch(600, 2)]
    block = batches[1].slice(0, 256)
    assert (block.item == 4).sum() > 3 * TILE
    assert len(np.unique(block.user)) > TILE  # chains behind the value that all users have
    agrees(replace(BLOCKS, **more), batches, crowd)


def test_a_thousand_users_of_one_opinion_do_not_throw_blocks() -> None:
    n = 1500
    for block in (256, 1024, 4096):
        learner = Learner(replace(BLOCKS, block=block, max_users=2000), 0)
        learner.set_attributes("item", 0, {"genre": "x"})
        learner.step(
            ratings(
                np.arange(n, dtype=np.int32), np.zeros(n, np.int32), np.zeros(n, np.int8),
                np.full(n, 5, np.float32), np.ones(n, np.int32), np.arange(n, dtype=np.uint64),
            )
        )  # fmt: skip
        assert 1 <= score(learner, 3, 0, RATING) <= 6, block


def test_blocks_of_one_are_the_sequential_law() -> None:
    """Items, users and values come again from one interaction to the next, never within one."""
    config = replace(BLOCKS, block=1)
    pair = settled(replace(config, step="sequential")), Learner(config, 5)
    pair[1].load(pair[0].state())
    for k, batch in enumerate((mixed_batch(40, 2), mixed_batch(40, 3))):
        steps_agree(*pair, alone(pair[0], batch, k), 1e-5)


# -- threads


def lived(config: ModelConfig) -> tuple[Learner, list[Update]]:
    """Return a learner after mixed batches, replay and synthetic outcomes, and what it told."""
    learner, told = crowd(replace(config, synthetic=0.3)), []
    for seed in range(4):
        batch = hot_batch(500, seed)
        told.append(learner.step(batch))
        told.append(learner.imagine(batch, told[-1]))
        told.append(learner.replay(150))
        open_every_path(learner)
    return learner, told


@pytest.mark.parametrize("block", [32, 1024])
def test_any_number_of_threads_gives_the_same_bits(block: int) -> None:
    one, *others = (lived(replace(BLOCKS, block=block, threads=n)) for n in (1, 2, 4))
    for learner, told in others:
        assert same_state(one[0], learner)
        assert all(map(same_words, one[1], told))


# -- cuts and restarts


def in_polls(config: ModelConfig, batch: Batch, cuts: list[int]) -> Learner:
    """Return a learner that learned the batch in polls cut there."""
    learner = attributed(config)
    for begin, end in pairwise([0, *cuts, len(batch)]):
        learner.step(batch.slice(begin, end))
    return learner


def test_cuts_of_polls_are_in_the_bits_of_blocks_by_where_blocks_end_alone() -> None:
    batch, config = mixed_batch(400, 4), replace(BLOCKS, block=32)
    edges, _ = update_points(batch.role, 0, Size(32, 1.0), True)
    whole = in_polls(config, batch, [])
    assert same_state(whole, in_polls(config, batch, [*edges[9:-1:3].tolist()]))
    assert not same_state(whole, in_polls(config, batch, [100, 333]))
    assert same_state(*(in_polls(config, batch, [100, 333]) for _ in range(2)))


def test_counts_and_popularity_do_not_depend_on_cuts_and_are_the_sequential_ones() -> None:
    batch = mixed_batch(600, 4)
    sequential = in_polls(replace(BLOCKS, step="sequential"), batch, [])
    for config, cuts in (
        (BLOCKS, []), (BLOCKS, [7, 8, 300]), (replace(BLOCKS, block=16), [100, 333]),
    ):  # fmt: skip
        blocks = in_polls(config, batch, cuts)
        for kind in ("user", "item", "feature"):
            names = ["events", "exposures", "controls"]
            names += ["decayed_count", "decayed_count_s"] if kind == "item" else []
            for name in names:
                one, two = (getattr(of, kind) for of in (sequential, blocks))
                column = getattr(one.layout, name)
                left, right = (of.array[: of.used, column] for of in (one, two))
                assert left.tobytes() == right.tobytes(), (kind, name, cuts)
        assert sequential.scalars.count.tolist() == blocks.scalars.count.tolist()
        assert np.array_equal(sequential.history[:7], blocks.history[:7])


def test_restarts_between_polls_do_not_matter_to_blocks() -> None:
    config = replace(CONFIG, average=0.9, synthetic=0.3, step="blocks", device="cpu", threads=2)
    polled = world(1)
    restarts_do_not_matter(
        lambda: Engine(config, **ROOMY), [polled[k : k + 60] for k in range(0, 300, 60)]
    )


# -- MovieLens-100K in time order


@functools.cache
def error(config: ModelConfig, described: bool) -> float:
    """Return the mean absolute error of what is expected of each rating before it is learned."""
    learner = Learner(config, 0)
    batch = movielens(learner if described else Learner(config, 0), 100_000)
    return float(np.abs(learner.step(batch).prediction - batch.label).mean())


@pytest.mark.parametrize(
    "block, described, most",
    [(256, False, 0.0005), (256, True, 0.001), (1024, False, 0.001), (1024, True, 0.002)],
)
def test_blocks_are_nearly_as_good_as_the_sequential_step_on_movielens(
    block: int, described: bool, most: float
) -> None:
    """What they lose is mostly of attribute values, which all of a block's ratings share."""
    sequential = error(replace(DEFAULT, step="sequential"), described)
    assert abs(error(replace(DEFAULT, block=block), described) - sequential) < most


# -- on a GPU


def moved(learner: Learner, config: ModelConfig) -> Learner:
    """Return another learner with the same state."""
    other = Learner(config, 5)
    other.load(learner.state())
    return other


@needs_gpu
@pytest.mark.parametrize("more", [{}, AVERAGED], ids=str)
def test_cuda_learns_of_a_block_what_threads_learn(more: dict) -> None:
    config = replace(BLOCKS, max_features=256, **more)
    learner = crowd(config)
    learner.step(hot_batch(900, 1))
    open_every_path(learner)
    learner.scalars.count[sc.STEPS] = sc.BLOCK
    other = moved(learner, replace(config, device="cuda"))
    steps_agree(learner, other, hot_batch(config.block, 2), 1e-4)


@needs_gpu
@pytest.mark.parametrize("block", [16, 256])
def test_cuda_is_the_reference(block: int) -> None:
    batches = [mixed_batch(300, 1), mixed_batch(300, 2)]
    agrees(replace(CUDA, block=block), batches, tolerance=2e-4)


@needs_gpu
def test_cuda_blocks_of_one_are_the_sequential_law() -> None:
    config = replace(CUDA, block=1)
    learner = settled(replace(config, step="sequential", device="cpu"))
    steps_agree(learner, moved(learner, config), alone(learner, mixed_batch(40, 2)), 1e-4)


@needs_gpu
def test_cuda_gives_the_same_bits_twice() -> None:
    one, two = lived(CUDA), lived(CUDA)
    assert same_state(one[0], two[0])
    assert all(map(same_words, one[1], two[1]))


@needs_gpu
def test_cuda_counts_what_the_sequential_step_counts() -> None:
    batch = mixed_batch(600, 4)
    one, two = (in_polls(c, batch, []) for c in (replace(BLOCKS, step="sequential"), CUDA))
    for kind, rows in (("user", 7), ("item", 23)):
        left, right = (of.served_rows(kind, np.arange(rows, dtype=np.int32)) for of in (one, two))
        for name in ("events", "exposures", "controls"):
            assert np.array_equal(getattr(left, name), getattr(right, name)), (kind, name)
    assert one.scalars.count.tolist() == two.scalars.count.tolist()


@needs_gpu
def test_cuda_serves_the_rows_that_the_cpu_serves() -> None:
    there, _ = lived(CUDA)
    here = moved(there, replace(there.config, device="cpu"))
    rows = np.arange(63, dtype=np.int32)  # the last ones were never met
    for kind in ("user", "item"):
        left, right = (learner.served_rows(kind, rows) for learner in (here, there))
        np.testing.assert_allclose(left.vector, right.vector, atol=1e-6, rtol=1e-5)
        np.testing.assert_allclose(left.bias, right.bias, atol=1e-6, rtol=1e-5)
        assert np.array_equal(left.events, right.events)
