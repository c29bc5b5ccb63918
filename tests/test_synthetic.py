"""Outcomes that nobody observed: how they are made, and what they may touch."""

from dataclasses import replace

import numpy as np
import orjson
import pytest

from stream.batch import Batch, ratings
from stream.engine import Engine
from stream.framing import frame
from stream.interaction_type import SYNTHETIC, InteractionType
from stream.model.config import ModelConfig
from stream.model.learner import Learner, Update
from stream.model.links import LinkTable
from stream.model.living import Living
from stream.model.synthetic import Imagined, between
from stream.records import RecordBatch
from stream.testing import differing, restarts_do_not_matter

RATING, CLICK = 0, 1
T0 = 1_790_000_000_000
WEEK_MS = 604_800_000
USERS, ITEMS = 12, 40
LOGIT = np.array([False, True])
OFF = ModelConfig(
    factors=8, exposure_factors=4, session_factors=4, max_users=64, max_items=64,
    max_features=64, history=8, max_links=8, step="sequential",
)  # fmt: skip
ON = replace(OFF, synthetic=0.3)
# the layout of rows for which other tests have compiled blocks too
BLOCKS = replace(OFF, average=0.9, step="blocks", device="cpu", threads=2)
BOTH = pytest.mark.parametrize("config", [OFF, BLOCKS], ids=["sequential", "blocks"])


def outcomes(n: int, seed: int = 0) -> Batch:
    """Return ratings, clicks at several places, and interactions that are neither."""
    rng = np.random.default_rng(seed)
    role = rng.choice(
        np.array(
            [
                InteractionType.FACTUAL,
                InteractionType.EXPOSED,
                InteractionType.EXPOSED,
                InteractionType.CONTROL,
                InteractionType.PREDICT,
            ],
            np.int8,
        ),
        n,
    )
    outcome = np.where(role == InteractionType.FACTUAL, RATING, rng.integers(0, 2, n)).astype(
        np.int8
    )
    label = np.where(outcome == RATING, rng.integers(1, 6, n), rng.integers(0, 2, n))
    made = ratings(
        rng.integers(0, USERS, n).astype(np.int32), rng.integers(0, ITEMS, n).astype(np.int32),
        outcome, label.astype(np.float32), np.full(n, ITEMS, np.int32),
        rng.integers(0, 2**63, n).astype(np.uint64), T0 + np.arange(n) * 60_000,
    )  # fmt: skip
    return replace(
        made,
        role=role,
        position=np.where(role == InteractionType.FACTUAL, 0, rng.integers(0, 3, n)).astype(
            np.int32
        ),
        counts=(role == InteractionType.FACTUAL)
        | ((role == InteractionType.EXPOSED) & (label > 0)),
    )


def attributes(item: int) -> dict[str, object]:
    """Return a colour shared by a fifth of the items, a size by a third, and a price of its own."""
    return {"colour": f"c{item % 5}", "size": f"s{item % 3}", "price": 10.0 + 1.5 * item}


def learner(config: ModelConfig) -> Learner:
    """Return a learner with described items that has learned a little."""
    made = Learner(config, 3)
    for item in range(ITEMS - 5):  # the last five are not described
        made.set_attributes("item", item, attributes(item))
    for user in range(0, USERS, 2):
        made.set_attributes("user", user, {"age": 20 + user})
    made.step(outcomes(200, 1))
    return made


def made_of(batch: Batch, prediction: np.ndarray, links: LinkTable) -> Batch:
    """Return what is made of a batch when nothing is remembered."""
    return Imagined(64, 2, 604_800.0).make(batch, prediction, LOGIT, links, Living(64))


def polls(n: int = 12, size: int = 20) -> list[list[RecordBatch]]:
    """Return polls of item attributes, then of ratings."""

    def batch(kind: str, first: int, values: list[dict[str, object]]) -> RecordBatch:
        data = b"".join(frame(k, 0, b"k", orjson.dumps(v)) for k, v in enumerate(values))
        end = first + len(values)
        return RecordBatch("t", kind, 0, first, first, end, T0, T0, False, len(values), data)

    rng = np.random.default_rng(4)
    items = [
        {"event_id": f"i{i}", "ts_ms": T0, "item_id": str(i), "attributes": attributes(i)}
        for i in range(ITEMS)
    ]
    out = [[batch("item", 0, items)]]
    for k in range(n):
        values: list[dict[str, object]] = [
            {
                "event_id": f"r{k}-{j}", "ts_ms": T0 + k * 1000 + j,
                "user_id": f"u{rng.integers(6)}",
                "item_id": str(rng.integers(ITEMS)), "value": int(rng.integers(1, 6)),
            }
            for j in range(size)
        ]  # fmt: skip
        out.append([batch("rating", ITEMS + k * size, values)])
    return out


def test_an_item_between_shares_with_both_and_a_number_lies_between() -> None:
    links = LinkTable(4, 4)
    links.set(0, [(0, 1.0), (1, 1.0), (5, 10.0)])
    links.set(1, [(2, 1.0), (1, 1.0), (5, 20.0)])
    for of_k, expected in (
        ([(0, 1.0), (2, 1.0)], 1),  # one value of each
        ([(0, 1.0), (1, 1.0)], 1),  # two of the one, one of the other
        ([(1, 1.0), (5, 15.0)], 2),
        ([(5, 20.0)], 1),
        ([(5, 20.5)], 0),
        ([(0, 1.0)], 0),  # nothing of the other
        ([(7, 1.0)], 0),
        ([], 0),
    ):
        links.set(2, of_k)
        assert between(links.rows, links.values, 0, 1, 2) == expected, of_k
        assert between(links.rows, links.values, 1, 0, 2) == expected, of_k


def test_what_is_made_follows_from_two_outcomes_of_one_user() -> None:
    links = learner(OFF).links["item"]
    batch = outcomes(400, 2)
    prediction = np.random.default_rng(0).uniform(0, 1, 400).astype(np.float32)
    made = made_of(batch, prediction, links)
    told = np.isin(batch.role, (InteractionType.FACTUAL, InteractionType.EXPOSED))
    told &= (batch.outcome == RATING) | (batch.position <= 1)
    residual = batch.label - prediction
    latest: dict[tuple[int, int], tuple[int, np.float32]] = {}
    at = interpolated = 0
    for s in np.flatnonzero(told):
        u, i, o = int(batch.user[s]), int(batch.item[s]), int(batch.outcome[s])
        j, before = latest.get((u, o), (i, np.float32(0)))
        if made.item[at] != i:
            k = int(made.item[at])
            assert j not in (i, k)
            assert between(links.rows, links.values, i, j, k) > 0
            assert k < ITEMS - 5  # a real, described item
            assert made.label[at] == (residual[s] + before) / np.float32(2)
            assert made.ts_ms[at] == batch.ts_ms[s]
            assert (made.user[at], made.outcome[at]) == (u, o)
            at, interpolated = at + 1, interpolated + 1
        assert (made.user[at], made.item[at], made.outcome[at]) == (u, i, o)
        assert made.label[at] == residual[s]
        assert abs(made.ts_ms[at] - batch.ts_ms[s]) <= WEEK_MS / 2
        at += 1
        latest[u, o] = i, residual[s]
    assert at == len(made)
    assert interpolated > 50
    shift = made.ts_ms - T0
    assert shift.min() < -WEEK_MS / 4
    assert shift.max() > WEEK_MS / 4
    assert (made.role == SYNTHETIC).all()
    assert not made.counts.any()
    assert SYNTHETIC not in set(map(int, InteractionType))  # no event is marked as one


def test_it_is_reproducible_however_the_outcomes_are_cut() -> None:
    links, batch = learner(OFF).links["item"], outcomes(300, 5)
    prediction = np.random.default_rng(1).uniform(0, 1, 300).astype(np.float32)
    whole, again = (made_of(batch, prediction, links) for _ in range(2))
    imagined = Imagined(64, 2, 604_800.0)
    parts = [
        imagined.make(batch.slice(a, a + 7), prediction[a : a + 7], LOGIT, links, Living(64))
        for a in range(0, 300, 7)
    ]
    for name in ("user", "item", "outcome", "label", "ts_ms", "key"):
        assert np.array_equal(getattr(whole, name), getattr(again, name))
        assert np.array_equal(
            getattr(whole, name), np.concatenate([getattr(p, name) for p in parts])
        )


def imagined(learner: Learner, user: int, item: int, outcome: int, residual: float) -> np.ndarray:
    """Return the size of the gradients of a synthetic outcome at its user's biases (2,)."""
    one = np.ones(1, np.int32)
    batch = replace(
        ratings(
            one * user, one * item, np.array([outcome], np.int8), np.array([residual], "f4"),
            one * 0, np.ones(1, np.uint64), np.array([T0]),
        ),
        role=np.array([SYNTHETIC], np.int8), counts=np.zeros(1, bool),
    )  # fmt: skip
    at = learner.user.layout
    learner._draw(batch)
    before = learner.user.array[user].copy()
    learner._learn(batch, np.full((1, learner.config.pairs), -1, np.int32), False)
    after = learner.user.array[user]
    sums = (after - before)[[at.bias_sum + outcome, at.bias_sum + 2 * at.Y + outcome]]
    return np.sqrt(np.maximum(sums, 0))  # an accumulator grows by the gradient's square


@BOTH
@pytest.mark.parametrize("outcome", [RATING, CLICK])
def test_the_gradient_is_the_capped_residual(config: ModelConfig, outcome: int) -> None:
    for cap in (0.1, 0.5, 1.0):
        config = replace(config, synthetic=cap)
        moved = imagined(learner(config), 1, 3, outcome, 0.2)
        np.testing.assert_allclose(moved, cap * 0.2, rtol=0.01)
        # an outcome beyond the scale is the scale's end: less moves than the residual says
        assert (imagined(learner(config), 1, 3, outcome, 50.0) < cap * 4).all()
        assert (imagined(learner(config), 1, 3, outcome, 0.0) == 0).all()


@BOTH
def test_nothing_is_counted_evaluated_or_remembered(config: ModelConfig) -> None:
    it = learner(replace(config, synthetic=0.3))
    batch = outcomes(150, 6)
    update = it.step(batch)
    before = it.state()
    told = it.imagine(batch, update)
    after = it.state()
    assert len(told.prediction) > 100
    assert not told.terms.any()
    moved = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert moved <= {
        "user.rows", "item.rows", "feature.rows", "synthetic.item", "synthetic.residual",
    }  # fmt: skip
    assert {"user.rows", "item.rows", "feature.rows"} <= moved
    for kind, table in (("user", it.user), ("item", it.item), ("feature", it.feature)):
        at, one, two = table.layout, before[f"{kind}.rows"], after[f"{kind}.rows"]
        names = ["events", "exposures", "controls"]
        names += ["decayed_count", "decayed_count_s", "control_sum"] if kind == "item" else []
        for name in names:
            column = getattr(at, name)
            assert one[:, column].tobytes() == two[:, column].tobytes(), (kind, name)
        if kind == "item":
            for first in (at.popularity_mean, at.label_mean, at.outcomes):
                assert one[:, first : first + 2].tobytes() == two[:, first : first + 2].tobytes()
        for first, size in (
            (at.exposure, at.E),
            (at.bias + 3 * at.Y, 2),
        ):  # who is shown what: unseen
            created = one[:, at.vector_sum] == 0
            held = slice(first, first + size)
            assert np.array_equal(one[~created, held], two[~created, held]), kind


def test_the_engine_evaluates_observed_outcomes_alone() -> None:
    on, off = Engine(ON), Engine(OFF)
    ratings_sent = 0
    for poll in polls():
        on.learn(poll)
        off.learn(poll)
        ratings_sent += poll[0].count * (poll[0].kind == "rating")
    assert on.progressive.figures("rating")["count"] == ratings_sent
    assert differing(on, off)  # it did learn
    one, two = on.causal.state(), off.causal.state()
    for name in one:
        if name.endswith(("count", ".n")):
            assert np.array_equal(one[name], two[name]), name
    assert on.learner._past.seen == off.learner._past.seen
    assert np.array_equal(on.learner.scalars.count, off.learner.scalars.count)


def test_every_row_that_moved_is_written() -> None:
    engine = Engine(ON)
    held: dict[int, bytes] = {}
    for poll in polls():
        learned = engine.learn(poll)
        rows = engine.learner.item.array[: engine.learner.item.used]
        now = {k: row.tobytes() for k, row in enumerate(rows)}
        moved = {k for k, row in now.items() if held.get(k, bytes(len(row))) != row}
        held = now
        later = set(np.flatnonzero(engine.learner._dirty).tolist())  # of pairs
        assert moved <= set(learned.items.tolist()) | later


def test_off_makes_nothing_and_changes_no_bit() -> None:
    it = learner(OFF)
    before = {name: part.tobytes() for name, part in it.state().items()}
    batch = outcomes(50, 7)
    none = np.full(50, 3.0, np.float32)
    empty = np.zeros(0, np.int32)
    told = it.imagine(batch, Update(empty, empty, none, none, none, none))
    assert not len(told.users)
    assert before == {name: part.tobytes() for name, part in it.state().items()}
    assert not any(name.startswith("synthetic") for name in before)


def test_going_on_from_a_saved_state_equals_never_having_stopped() -> None:
    restarts_do_not_matter(lambda: Engine(ON), polls())
    on, off = Engine(ON), Engine(OFF)
    for poll in polls(4):
        on.learn(poll)
        off.learn(poll)
    for config, saved in ((OFF, on), (ON, off)):  # the setting can be changed at any time
        other = Engine(config)
        other.load(saved.state())
        for poll in polls()[5:]:
            other.learn(poll)
    on.load(off.state())
    assert not on.learner._imagined._item.any()  # type: ignore[union-attr]


def test_a_forgotten_user_leaves_nothing() -> None:
    it = learner(ON)
    batch = outcomes(100, 8)
    it.imagine(batch, it.step(batch))
    assert it.state()["synthetic.item"][4].any()
    it.remove("user", 4)
    assert not it.state()["synthetic.item"][4].any()
    assert not it.state()["synthetic.residual"][4].any()


def test_blocks_of_one_are_the_sequential_law_where_nothing_repeats() -> None:
    config = replace(
        BLOCKS, synthetic=0.3, max_items=5_000, shrink=0.05, mix=0.5, average=0.97, block=1
    )
    one, two = (Learner(replace(config, step=s), 3) for s in ("sequential", "blocks"))
    rng = np.random.default_rng(0)
    n = 2 * USERS
    user = np.concatenate([rng.permutation(USERS) for _ in range(2)]).astype(np.int32)
    start = ratings(
        user, rng.choice(5_000, n, replace=False).astype(np.int32), np.full(n, RATING, np.int8),
        rng.integers(1, 6, n).astype(np.float32), np.zeros(n, np.int32),
        np.arange(n, dtype=np.uint64), T0 + np.arange(n) * 1000,
    )  # fmt: skip
    for outcome in (RATING, CLICK):
        batch = replace(start, outcome=np.full(n, outcome, np.int8))
        if outcome == CLICK:
            batch = replace(
                batch,
                role=np.full(n, InteractionType.EXPOSED, np.int8),
                label=(batch.label > 3).astype("f4"),
            )
        made = [it.imagine(batch, it.step(batch)) for it in (one, two)]
        np.testing.assert_allclose(made[0].prediction, made[1].prediction, atol=1e-5)
        for kind in ("user", "item"):
            at = one.table(kind).layout
            left, right = (it.table(kind).array[: it.table(kind).used] for it in (one, two))
            for first, size in ((at.vector, at.D), (at.bias, at.C), (at.bias_sum, at.C + 1)):
                np.testing.assert_allclose(
                    left[:, first : first + size], right[:, first : first + size], atol=2e-5
                )


def test_a_weight_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match="synthetic"):
        replace(OFF, synthetic=1.5)
