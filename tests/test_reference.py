"""The float64 reference against the compiled loop, one interaction after the other.

What is drawn here repeats no item and no attribute value within an interaction, where asked for: a
uniform item that is the interaction's own, or shares a value with it, takes two steps in the loop,
and one from their sum in a block.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from stream.batch import Batch
from stream.interaction_type import SYNTHETIC, InteractionType
from stream.model import scalars as sc
from stream.model.config import ModelConfig, PathConfig
from stream.model.learner import Learner, Update
from tests.reference import Reference, differences, untold
from tests.reference.rows import Floats, Rate, rate_of
from tests.test_model import CLICK, CLOSED_PATHS, RATING, SMALL, draw_batch, open_every_path

CONFIG = replace(SMALL, block_share=1.0, step="sequential")
AVERAGED = {"average": 0.97, "shrink": 0.05, "mix": 0.5}
VARIANTS = [
    {},
    AVERAGED,
    {"alpha": 0.0, "mix": 1.0, "robust_share": 1.0},
    {"session_factors": 0, "pairs": 3},
    {"pairs": 0},
    {"paths": CLOSED_PATHS},
    *(
        {"paths": replace(PathConfig(), **{name: False})}
        for name in PathConfig.__dataclass_fields__
    ),
]
# corrections seldom: with many the click's base is at its end, where float32 knows no 1 - mu
MIXED = (*InteractionType, *[InteractionType.EXPOSED] * 6, *[InteractionType.CONTROL] * 2)


def mixed_batch(n: int, seed: int, items: int = 23) -> Batch:
    """Return interactions of all roles, whose clicks are rare enough for their base to be mild."""
    batch = draw_batch(n, seed, items=items, roles=MIXED)
    early = (batch.role == InteractionType.CORRECTION) & (np.arange(n) < n // 4)
    role = np.where(early, InteractionType.EXPOSED, batch.role).astype(np.int8)
    batch = replace(batch, role=role)
    seldom = (batch.outcome == CLICK) & (batch.role != InteractionType.CORRECTION)
    kept = np.random.default_rng(seed).random(n) < 0.5
    label = np.where(seldom & ~kept, 0, batch.label).astype(np.float32)
    counts = batch.counts & ((label > 0) | (batch.role != InteractionType.EXPOSED))
    return replace(batch, label=label, counts=counts)


def attributed(config: ModelConfig, users: int = 7, items: int = 23) -> Learner:
    """Return a learner of rows with texts and numbers, some of which many share."""
    learner = Learner(config, 5)
    for row in range(users):
        learner.set_attributes("user", row, {"age": 20 + row, "job": ["a", "b"][row % 2]})
    for row in range(0, items, 2):
        told = {"genre": ["x", f"g{row % 5}"], "new": row > 9}
        learner.set_attributes("item", row, told | ({"price": 1.5 * row} if row % 4 == 0 else {}))
    return learner


def alone(learner: Learner, batch: Batch, seed: int = 0) -> Batch:
    """Return the batch with keys by which no item or value comes twice in an interaction."""
    rng = np.random.default_rng(seed)
    reference, links = Reference(learner), learner.links["item"].rows
    keys = batch.key.copy()
    for j in range(len(batch)):
        while True:
            one = replace(batch.slice(j, j + 1), key=keys[j : j + 1])
            pair = reference.draw(one)[0]
            items = np.array([batch.item[j], *pair[pair >= 0]])
            values = links[items]
            values = values[values > 0]
            if len(np.unique(items)) == len(items) and len(np.unique(values)) == len(values):
                break
            keys[j] = rng.integers(0, 2**63)
    return replace(batch, key=keys)


def each(batch: Batch) -> Iterator[Batch]:
    """Yield the interactions one by one."""
    for j in range(len(batch)):
        yield batch.slice(j, j + 1)


def settled(config: ModelConfig, n: int = 900) -> Learner:
    """Return a learner that has learned, with every path open and the last early border ahead."""
    learner = attributed(config)
    learner.step(mixed_batch(n, 1))
    learner.scalars.count[sc.STEPS] = sc.BLOCK - 60
    open_every_path(learner)
    return learner


@pytest.mark.parametrize("more", VARIANTS, ids=str)
@pytest.mark.parametrize("old", [False, True])
def test_one_interaction_is_the_sequential_law(more: dict, old: bool) -> None:
    config = replace(CONFIG, **more)
    learner = settled(config) if old else attributed(config)
    for k, one in enumerate(each(alone(learner, mixed_batch(200, 2)))):
        if old:  # a border shuts what the data do not bear out
            open_every_path(learner)
        reference = Reference(learner)
        update = learner.step(one)
        told = reference.learn(one, reference.draw(one), 1)
        assert not differences(reference, learner, 1e-5) + untold(told, update, 1e-5), (k, one)
    assert abs(learner.scalars.outcome[:, sc.BASE : sc.BASE + 3]).max() < 6


@pytest.mark.parametrize("more", [{}, AVERAGED], ids=str)
def test_a_replay_and_what_nobody_observed_are_the_sequential_law(more: dict) -> None:
    learner = settled(replace(CONFIG, synthetic=0.3, **more))
    batch = alone(learner, mixed_batch(200, 3))
    drawn = np.random.default_rng(3).random(200) < 0.5
    residual = np.random.default_rng(4).normal(0, 1, 200)
    batch = replace(
        batch,
        role=np.where(drawn, SYNTHETIC, batch.role).astype(np.int8),
        label=np.where(drawn, residual, batch.label).astype(np.float32),
        known_items=np.where(drawn, 0, batch.known_items).astype(np.int32),
        counts=np.zeros(200, np.bool_),
    )
    before = learner.scalars.state()
    for one in each(batch):
        reference = Reference(learner)
        pair, users, items = learner._draw(one)
        update = Update(users, items, *learner._learn(one, pair, False))
        told = reference.learn(one, pair, 1, live=False)
        assert not differences(reference, learner, 1e-5) + untold(told, update, 1e-5), one
    after = learner.scalars.state()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "shown, observed, more", [(7.0, 3.0, {}), (7.0, 3.0, AVERAGED), (3.0, 7.0, {})], ids=str
)
def test_an_error_of_nothing_moves_no_item(shown: float, observed: float, more: dict) -> None:
    """Beyond the scale a made-up outcome has no error for one head, and may have for the other."""
    learner = settled(replace(CONFIG, synthetic=0.3, **more))
    learner.scalars.outcome[RATING, [sc.BASE, sc.BASE + 2]] = shown, observed
    one = replace(
        mixed_batch(1, 0), role=np.array([SYNTHETIC], np.int8), known_items=np.zeros(1, np.int32),
        outcome=np.array([RATING], np.int8), label=np.ones(1, np.float32),
        counts=np.zeros(1, np.bool_),
    )  # fmt: skip
    reference, before = Reference(learner), Reference(learner)
    pair, _, _ = learner._draw(one)
    learner._learn(one, pair, False)
    reference.learn(one, pair, 1, live=False)
    assert not differences(reference, learner, 1e-5)
    moved = not np.array_equal(reference.item["vector"], before.item["vector"])
    assert moved == (shown < observed)
    assert not np.array_equal(reference.user["vector"], before.user["vector"])


@pytest.mark.parametrize("more", [{}, AVERAGED], ids=str)
def test_two_hundred_interactions_later_they_are_still_together(more: dict) -> None:
    learner = settled(replace(CONFIG, **more))
    batch = alone(learner, mixed_batch(200, 5))
    reference = Reference(learner)
    update = learner.step(batch)
    told = reference.learn(batch, reference.draw(batch), 1)
    assert not differences(reference, learner, 1e-4) + untold(told, update, 1e-4)


def test_the_uniform_items_and_new_rows_are_the_learners() -> None:
    learner = attributed(CONFIG)
    batch = mixed_batch(100, 6, items=50)
    reference = Reference(learner)
    pair = reference.draw(batch)
    theirs, _, _ = learner._draw(batch)
    assert np.array_equal(pair, theirs)
    reference.learn(batch.slice(0, 0), pair, 1)
    reference.exist("item", pair[pair >= 0])
    reference.exist("item", batch.item)
    reference.exist("user", batch.user)
    assert not differences(reference, learner, 0.0)


# -- blocks


def apart_batch(n: int, seed: int, items: int) -> Batch:
    """Return a batch in which no item comes twice, uniform ones included; users do."""
    rng = np.random.default_rng(seed)
    batch = replace(mixed_batch(n, seed), known_items=np.full(n, items, np.int32))
    item = rng.choice(items, n, replace=False).astype(np.int32)
    used, keys = set(item.tolist()), np.zeros(n, np.uint64)
    reference = Reference(Learner(CONFIG, 5))
    for j in range(n):
        while True:
            keys[j] = rng.integers(0, 2**63)
            drawn = reference.draw(replace(batch, key=keys).slice(j, j + 1))[0]
            pair = set(drawn[drawn >= 0].tolist())
            if len(pair) == (drawn >= 0).sum() and not pair & used:
                used |= pair
                break
    return replace(batch, item=item, key=keys)


@pytest.mark.parametrize("more", [{}, AVERAGED], ids=str)
def test_a_block_in_which_only_users_repeat_is_the_sequential_law(more: dict) -> None:
    items = 2_000
    learner = Learner(replace(CONFIG, max_items=items, **more), 5)
    learner.step(apart_batch(80, 1, items))
    for _ in range(3):
        learner.step(replace(mixed_batch(300, 2), item=apart_batch(300, 3, items).item))
    open_every_path(learner)
    batch = apart_batch(80, 3, items)  # items that were judged
    reference = Reference(learner)
    update = learner.step(batch)
    told = reference.learn(batch, reference.draw(batch), 32)
    assert not differences(reference, learner, 1e-4) + untold(told, update, 1e-4)


@pytest.mark.parametrize("more", [{}, AVERAGED], ids=str)
@pytest.mark.parametrize("kind", ["item", "feature"])
def test_an_item_and_its_attribute_value_step_once_a_block_from_the_sum(
    more: dict, kind: str
) -> None:
    """What each interaction would do alone tells its gradients; a block adds them up."""
    config = replace(CONFIG, **more)
    learner = settled(config)
    batch = replace(
        mixed_batch(4, 7), user=np.array([0, 1, 2, 3], np.int32), item=np.full(4, 4, np.int32),
        role=np.full(4, InteractionType.FACTUAL, np.int8), outcome=np.zeros(4, np.int8),
        label=np.array([1, 5, 2, 4], np.float32), counts=np.ones(4, np.bool_),
    )  # fmt: skip
    batch = alone(learner, batch)
    whole, before = Reference(learner), Reference(learner)
    whole.learn(batch, whole.draw(batch), 4)
    singles = [Reference(single) for single in _loops(learner, batch)]
    at = 4 if kind == "item" else learner.features.row["item\x1fgenre\x1f=x"]
    imputed, exposed = 2 * whole.Y + RATING, 3 * whole.Y
    for key in ("vector", "exposure", "session", RATING, imputed, exposed):
        rate = rate_of(config, kind, key)
        start, held = _part(before, kind, at, key)
        total, squares = np.zeros_like(start), 0.0
        for one in singles:
            value, grown = _part(one, kind, at, key)
            taken = rate.lr / np.sqrt(grown)
            total += ((1 - taken * rate.shrink) * start - value) / taken
            squares += grown - held
        taken = rate.lr / np.sqrt(held + np.mean(total**2))
        value, grown = _part(whole, kind, at, key)
        expected = (1 - taken * rate.shrink) * start - taken * total
        assert value == pytest.approx(expected, abs=2e-6), key
        assert grown == pytest.approx(held + squares, rel=1e-5), key
    rows, was = whole.rows[kind], before.rows[kind]
    assert rows["events"][at] == was["events"][at] + 4
    if config.average:
        mean = was["mean"][at]
        part = max(1 - config.average**4, 1 / (rows["events"][at] + 1))
        assert rows["mean"][at] == pytest.approx(mean + part * (rows["vector"][at] - mean))


def _part(reference: Reference, kind: str, at: int, key: str | int) -> tuple[Floats, float]:
    rows = reference.rows[kind]
    if isinstance(key, int):
        return rows["bias"][at, key : key + 1].copy(), float(rows["bias_sum"][at, key])
    return rows[key][at].copy(), float(rows[f"{key}_sum"][at])


def _loops(learner: Learner, batch: Batch) -> Iterator[Learner]:
    """Yield what the loop makes of each interaction alone."""
    held = learner.state()
    for one in each(batch):
        single = Learner(learner.config, 5)
        single.load(held)
        single.step(one)
        yield single


def test_the_value_that_two_users_share_steps_once_a_block_from_the_sum() -> None:
    learner = settled(CONFIG)
    batch = replace(
        mixed_batch(2, 7), user=np.array([0, 2], np.int32), item=np.array([1, 3], np.int32),
        role=np.full(2, InteractionType.FACTUAL, np.int8), outcome=np.zeros(2, np.int8),
        label=np.array([1, 5], np.float32), counts=np.ones(2, np.bool_),
    )  # fmt: skip
    batch = alone(learner, batch)
    job = learner.features.row["user\x1fjob\x1f=a"]
    before, whole = Reference(learner), Reference(learner)
    whole.learn(batch, whole.draw(batch), 2)
    start, held = before.feature["vector"][job].copy(), before.feature["vector_sum"][job]
    total, squares, lr = np.zeros_like(start), 0.0, CONFIG.lr_feature_factor
    for single in _loops(learner, batch):
        rows = Reference(single).feature
        grown = rows["vector_sum"][job]
        total += (start - rows["vector"][job]) * np.sqrt(grown) / lr
        squares += grown - held
    step = lr / np.sqrt(held + np.mean(total**2)) * total
    assert whole.feature["vector"][job] == pytest.approx(start - step, abs=1e-6)
    assert whole.feature["vector_sum"][job] == pytest.approx(held + squares, abs=1e-6)
    assert whole.feature["events"][job] == before.feature["events"][job] + 2


def test_counts_and_what_is_usual_of_an_item_advance_in_order_within_a_block() -> None:
    learner = settled(CONFIG)
    reference, batch = Reference(learner), mixed_batch(300, 8)
    learner.scalars.count[sc.STEPS] = reference.count[sc.STEPS] = sc.BLOCK  # no border is near
    learner.step(batch)
    reference.learn(batch, reference.draw(batch), 256)
    apart = differences(reference, learner, 1e-5)
    names = {name.split("[")[0] for name in apart}
    same = (
        "events",
        "exposures",
        "controls",
        "decayed_count",
        "decayed_count_s",
        "popularity_mean",
        "label_mean",
        "outcomes",
    )
    assert not names & {f"{kind}.{part}" for kind in ("user", "item") for part in same}
    assert not names & {"global count STEPS", "global count ITEMS", "global count CONTROLS"}
    of = reference.outcome, learner.scalars.outcome
    for column in (sc.SCORE, sc.SEEN, sc.NOISE_NEW, sc.OF_NEW):
        assert of[0][:, column] == pytest.approx(of[1][:, column], rel=1e-4)
    assert "item.vector" in names  # which steps once a block


def test_control_outcomes_of_an_item_know_of_each_other_within_a_block() -> None:
    """Nothing else of the item's score moves by them, so the loop's control row is the block's."""
    learner = Learner(CONFIG, 5)
    learner.step(mixed_batch(200, 9))
    open_every_path(learner)
    new = int(np.flatnonzero(learner.item.array[:23, learner.item.layout.control_sum] == 0)[0])
    old = int(np.flatnonzero(learner.item.array[:23, learner.item.layout.control_sum] > 0)[0])
    n = 12
    batch = replace(
        mixed_batch(n, 9),
        role=np.full(n, InteractionType.CONTROL, np.int8),
        counts=np.zeros(n, np.bool_),
        user=np.arange(n, dtype=np.int32),
        item=np.resize([new, old], n).astype(np.int32),
        outcome=np.resize([0, 0, 1, 1], n).astype(np.int8),
        label=np.resize([1, 5, 1, 0, 4, 2, 0, 1], n).astype(np.float32),
    )
    reference = Reference(learner)
    learner.scalars.count[sc.STEPS] = reference.count[sc.STEPS] = sc.BLOCK
    learner.step(batch)
    reference.learn(batch, reference.draw(batch), n)
    loop, Y = Reference(learner), len(CONFIG.outcomes)
    for name in ("control", "control_sum", "controls", "bias", "bias_sum"):
        mine, theirs = (r.item[name][[new, old]] for r in (reference, loop))
        if name.startswith("bias"):
            mine, theirs = mine[:, Y : 2 * Y], theirs[:, Y : 2 * Y]
        assert mine == pytest.approx(theirs, abs=1e-5), name
    assert loop.item["controls"][[new, old]].min() >= 6


@pytest.mark.parametrize("size", [16, 256, 1024])
def test_where_polls_are_cut_matters_only_to_blocks(size: int) -> None:
    learner = settled(CONFIG)
    batch = mixed_batch(2 * size, 10)
    whole, cut = Reference(learner), Reference(learner)
    pair = whole.draw(batch)
    whole.count[sc.STEPS] = cut.count[sc.STEPS] = sc.BLOCK
    whole.learn(batch, pair, size)
    for begin in range(0, 2 * size, size):
        cut.learn(batch.slice(begin, begin + size), pair[begin : begin + size], size)
    for kind in ("user", "item", "feature"):
        for name, part in whole.rows[kind].parts.items():
            assert np.array_equal(part, cut.rows[kind][name]), (kind, name)


# -- the comparison


def test_what_differs_is_named() -> None:
    learner = settled(CONFIG)
    reference = Reference(learner)
    assert not differences(reference, learner, 0.0)
    learner.item.array[3, learner.item.layout.control + 2] += 0.5
    learner.user.array.view(np.uint32)[1, learner.user.layout.events] += 1
    learner.scalars.outcome[1, sc.SLOPE + 1] += 0.5
    found = differences(reference, learner)
    begun = ["user.events[1]", "item.control[3, 2]", "global outcome SLOPE[1, 1]"]
    assert [f.startswith(b) for f, b in zip(found, begun, strict=True)] == [True] * 3


def test_the_accumulator_divides_by_the_square_of_the_sum_and_keeps_the_sum_of_squares() -> None:
    rows = Reference(settled(CONFIG)).item
    rows["vector"][2], rows["vector_sum"][2] = 1.0, 3.0
    rows.step(2, "vector", np.full(8, 1.0), 5.0, Rate(2.0, 0.1))
    assert rows["vector"][2] == pytest.approx((1 - 1.0 * 0.1) * 1.0 - 1.0)
    assert rows["vector_sum"][2] == 8.0
