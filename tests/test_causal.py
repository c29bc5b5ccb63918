"""The engine in worlds whose answers are known: from events as bytes to what it would recommend."""

from dataclasses import fields, replace
from functools import partial
from itertools import islice

import numpy as np
import orjson
import pytest

from stream.engine import Engine
from stream.inference import intervals
from stream.inference.do import Do, contrast
from stream.inference.model import parse
from stream.inference.outcome import AS_IT_IS, shown
from stream.inference.rows import ServedItems, ServedPairs, ServedUser
from stream.model.config import ModelConfig, PathConfig
from stream.testing import cuts_do_not_matter, restarts_do_not_matter
from stream.worlds import (
    Adversarial,
    ChangePoint,
    Confounded,
    Heterogeneous,
    PopularityLoop,
    PositionBias,
    PriceEffects,
    Wire,
    record_batches,
)

CONFIG = ModelConfig(
    factors=8,
    exposure_factors=8,
    session_factors=8,
    half_life_s=1e12,  # the worlds' popularity does not decay
    max_users=1_000,
    max_items=1_000,
    max_features=1_000,
    step="sequential",
)
ADDITIVE = {"factors": 1, "spread_factor": 0.0, "spread_feature": 0.0}  # vectors stay 0
RATING, CLICK = CONFIG.outcome("rating"), CONFIG.outcome("click")
POLL = 500  # record batches


def learned(events, config=CONFIG):
    """Return an engine that learned the events in polls."""
    engine = Engine(config, seed=1)
    batches = record_batches(events)
    while poll := list(islice(batches, POLL)):
        engine.learn(poll)
    return engine


def rows(engine, kind, ids):
    vocabulary = engine.users if kind == "user" else engine.items
    found = [vocabulary.find(id_.encode()) for id_ in ids]
    assert None not in found, [id_ for id_, row in zip(ids, found, strict=True) if row is None]
    return engine.learner.served_rows(kind, np.array(found, np.int32))


def score(engine, users, items, outcome, shown=True):
    """Return the link-scale scores (users, items) as the served rows give them.

    Biases hold the outcomes if shown, then if withheld; an item's vector is [h | h0 | exposure].
    What lasts of the exposure stays in, as far as the arm carries it.
    """
    user, item = rows(engine, "user", users), rows(engine, "item", items)
    d, y = engine.config.factors, len(engine.config.outcomes)
    said, e = engine.learner.describe(), engine.config.exposure_factors
    trait = user.vector[:, d : d + e] @ item.vector[:, 2 * d : 2 * d + e].T
    lasting = said["alpha" if shown else "alpha0"][outcome] * trait
    lasting += 0.0 if shown else said["level0"][outcome]
    at, part = (outcome, slice(0, d)) if shown else (y + outcome, slice(d, 2 * d))
    base = engine.learner.globals()[at]
    return (
        base
        + user.bias[:, at, None]
        + item.bias[:, at]
        + user.vector[:, :d] @ item.vector[:, part].T
        + lasting
    )


def clicks(engine, users, items, shown=True):
    return 1 / (1 + np.exp(-score(engine, users, items, CLICK, shown)))


def ids(world, kind, most=10_000):
    count = world.users if kind == "user" else world.items
    return [f"{kind[0]}{n}" for n in range(min(count, most))]


def correlation(a, b):
    return np.corrcoef(a, b)[0, 1]


# -- the worked example: four ratings, additive model

FOUR = [("1", "1", 4.0), ("1", "2", 5.0), ("2", "1", 3.0), ("2", "3", 1.0)]


def four(times):
    """Yield the four ratings, each `times` times."""
    for n in range(times * len(FOUR)):
        user, item, value = FOUR[n % len(FOUR)]
        event = {
            "event_id": f"r{n}", "ts_ms": 1_700_000_000_000 + n,
            "user_id": user, "item_id": item, "value": value,
        }  # fmt: skip
        yield Wire("rating", user.encode(), orjson.dumps(event), event["ts_ms"])


def test_four_ratings_and_the_additive_model():
    """y_ui = g_u + h_i fits all four: 4 5 (2) for the first user, 3 (4) 1 for the second.

    So both are recommended item 2: it is the first user's best, and unseen by the second, whose
    item 3 is the worst.
    """
    engine = learned(four(500), replace(CONFIG, **ADDITIVE))
    predicted = score(engine, "12", "123", 0)
    np.testing.assert_allclose(predicted, [[4, 5, 2], [3, 4, 1]], atol=0.1)
    assert predicted.argmax(1).tolist() == [1, 1]
    assert predicted[1].argmin() == 2


def test_four_ratings_once_give_the_same_answer():
    """Without correction: four events settle no weights, and no imputed outcome."""
    plain = replace(CONFIG, paths=PathConfig(weights=False, robust=False))
    predicted = score(learned(four(1), plain), "12", "123", 0)
    assert predicted.argmax(1).tolist() == [1, 1]
    assert predicted[1].argmin() == 2


# -- change


def test_after_a_change_the_ranking_turns_and_drift_is_told():
    world = ChangePoint(seed=1)
    truth = world.truth
    items, users = ids(world, "item"), ids(world, "user", 50)
    before = np.array([truth["mean_rating_before"][i] for i in items])

    engine = learned(world.events(truth["change_at"]))
    assert correlation(score(engine, users, items, RATING).mean(0), before) > 0.9
    quiet = dict(engine.drift.detections)
    engine = learned(world.events(3 * truth["change_at"]))
    assert correlation(score(engine, users, items, RATING).mean(0), before) < -0.9
    assert sum(engine.drift.detections.values()) > sum(quiet.values())


# -- the effect of showing


def test_the_best_by_effect_are_right_where_the_best_by_outcome_are_exactly_wrong():
    """Sleepers are shown to 600 users each, so .35 and .5 are seven standard errors apart."""
    world = Adversarial(seed=1, sleeper=(0.05, 0.3))
    truth = world.truth
    engine = learned(world.events(60_000))
    items, users = ids(world, "item"), ids(world, "user", 50)
    treated, control = clicks(engine, users, items), clicks(engine, users, items, shown=False)
    half = world.items // 2

    def best(value):
        return {items[n] for n in np.argsort(-value.mean(0))[:half]}

    assert best(treated - control) == set(truth["best_by_effect"])
    assert best(treated) == set(truth["best_by_outcome"])
    planted = np.array([truth["effect"][i] for i in items])
    assert abs((treated - control).mean(0) - planted).mean() < 0.06


@pytest.mark.parametrize("world", [Adversarial(seed=2), Confounded(seed=2), Heterogeneous(seed=2)])
def test_the_interval_of_the_average_effect_holds_the_planted_one(world):
    figures = learned(world.events(40_000)).model()["effects"]["click"]
    low, high = figures["interval"]
    assert low < world.truth["average_effect_of_windows"] < high
    assert high - low < 0.06
    assert min(figures["shown"], figures["withheld"]) > 5_000


@pytest.mark.parametrize("count", [20_000, 150_000])
@pytest.mark.parametrize("factors", [8, 32])
def test_the_intervals_of_single_pairs_hold_the_planted_effects(factors, count):
    """Early on for what is not yet known, later for what the learner's steps leave."""
    world = Heterogeneous(seed=1)
    engine = learned(world.events(count), replace(CONFIG, factors=factors))
    effect = np.array(world.effect)[:, world.sort]  # (segments, items)
    users = ids(world, "user", 60)
    held, of_outcome, widths = [], [], []
    for k, pairs in enumerate(pairs_of(engine, users, ids(world, "item"), "click")):
        planted = effect[world.segment[k]]
        low, high = contrast(pairs, Do(shown=True)).interval
        held.append((low <= planted) & (planted <= high))
        widths.append(high - low)
        low, high = intervals.expected(pairs, shown(pairs), AS_IT_IS)
        planted = planted + world.control
        of_outcome.append((low <= planted) & (planted <= high))
    assert np.mean(held) >= 0.9
    assert np.mean(of_outcome) >= 0.9
    assert np.mean(widths) < (0.7 if count == 20_000 else 0.4)


def pairs_of(engine, users, items, outcome):
    """Yield each user against the items as a server has them, in double precision."""
    model = parse(engine.model())
    item, user = rows(engine, "item", items), rows(engine, "user", users)
    counts = item.events, item.exposures, item.controls
    served = ServedItems(item.bias, item.vector, *(c.astype(np.int64) for c in counts))
    for k in range(len(users)):
        counts = (int(c[k]) for c in (user.events, user.exposures, user.controls))
        one = ServedUser(user.bias[k], user.vector[k], *counts)
        globals_ = engine.learner.globals()
        yield ServedPairs(model, model.outcomes[outcome], globals_, one, served).wide()


def test_what_showing_does_not_change_has_no_effect():
    world = Adversarial(seed=3, favourite=(0.6, 0.0), sleeper=(0.1, 0.0))
    engine = learned(world.events(40_000))
    low, high = engine.model()["effects"]["click"]["interval"]
    assert low < 0 < high
    items, users = ids(world, "item"), ids(world, "user", 50)
    effect = clicks(engine, users, items) - clicks(engine, users, items, shown=False)
    assert abs(effect.mean(0)).max() < 0.1


def test_effects_follow_the_users_segment():
    world = Heterogeneous(seed=1)
    engine = learned(world.events(100_000))
    items = ids(world, "item")
    users = ids(world, "user")
    effect = clicks(engine, users, items) - clicks(engine, users, items, shown=False)
    for n, (_, best) in enumerate(world.truth["best_by_effect"].items()):
        mine = effect[world.segment == n].mean(0)
        top = {items[k] for k in np.argsort(-mine)[: len(best)]}
        assert len(top & set(best)) >= 0.8 * len(best)


def test_without_withheld_windows_there_is_no_effect():
    engine = learned(PositionBias(seed=1).events(5_000))
    assert engine.model()["controls"] == 0
    assert engine.model()["effects"]["click"]["value"] is None


# -- position, popularity, selection, price


def test_position_is_found_and_taken_out_of_the_ranking():
    world = PositionBias(seed=1)
    engine = learned(world.events(120_000))
    planted = np.array(world.truth["theta"])
    theta = np.array(engine.model()["theta"][: world.places])
    np.testing.assert_allclose(theta, planted, rtol=0.1)
    items, users = ids(world, "item"), ids(world, "user", 50)
    assert correlation(clicks(engine, users, items).mean(0), world.attraction) > 0.97


def test_popularity_is_found_and_taken_out_of_the_ranking():
    world = PopularityLoop(seed=1)
    engine = learned(world.events(200_000))  # seven in ten are windows
    assert engine.model()["kappa"][CLICK] == pytest.approx(world.truth["kappa"], rel=0.1)
    items, users = ids(world, "item"), ids(world, "user", 50)
    seen = world.columns(140_000)
    rate = np.bincount(seen.item, seen.click) / np.bincount(seen.item)
    found = correlation(score(engine, users, items, CLICK).mean(0), world.taste)
    assert found > max(0.95, correlation(rate, world.taste))


def error_of_ratings(world, **more):
    """Return how far the items' predicted mean ratings are from those of all users."""
    engine = learned(world.events(120_000), replace(CONFIG, alpha=0.0, **more))
    items, users = ids(world, "item"), ids(world, "user")
    predicted = score(engine, users, items, RATING).mean(0)
    planted = np.array([world.truth["mean_rating"][i] for i in items])
    return abs(predicted - planted).mean()


def test_ratings_of_what_was_chosen_do_not_stand_for_all():
    """All paths together leave less than a third of the error of plain means.

    Vectors alone do much of it, for they know users by taste, so the paths must also leave less
    than the same model does without them. What they add is above all the confounder path's.
    """
    world = Confounded(seed=1)
    planted, rated = (
        np.array(list(world.truth[name].values()))
        for name in ("mean_rating", "mean_rating_of_the_rated")
    )
    corrected = error_of_ratings(world)
    assert corrected < 0.33 * abs(rated - planted).mean()
    assert corrected < 0.6 * error_of_ratings(
        world, paths=PathConfig(*[False] * len(fields(PathConfig)))
    )


def test_weights_alone_correct_what_an_additive_model_gets_wrong():
    """Biases cannot tell users by taste, so that only weights can.

    They take out a part: selection and windows share their vectors, the windows of this world are
    uniform, and so the learned slope of selection is well below the planted one.
    """
    world = Confounded(seed=1)
    weights = error_of_ratings(world, **ADDITIVE, paths=PathConfig(robust=False, confounder=False))
    plain = error_of_ratings(
        world, **ADDITIVE, paths=PathConfig(weights=False, robust=False, confounder=False)
    )
    assert weights < 0.9 * plain


def test_a_price_changed_by_an_event_moves_the_rating_by_the_planted_slope():
    world = PriceEffects(seed=1)
    engine = learned(world.events(100_000))
    items, users = ids(world, "item"), ids(world, "user", 50)
    at = [
        score(priced(engine, world, items, by), users, items, RATING).mean(0) for by in (-1.5, 1.5)
    ]
    slope = (at[1] - at[0]).mean() / 3
    assert slope == pytest.approx(world.beta, rel=0.2)


def test_the_price_slopes_interval_is_told_and_covers_the_planted_one():
    """The learner's own slope is a prediction's; this one is of changes within items."""
    held = 0
    for seed in range(100):
        world = PriceEffects(seed=seed)
        engine = learned(world.events(3_000))
        engine.close_windows()  # outcomes do not wait any longer for what their prices were
        told = engine.model()["slopes"]["rating"]
        low, high = told["interval"][0]
        held += low <= world.beta <= high
        assert told["open"] and told["names"] == ["price"]
        assert high < 0 < world.truth["naive_slope"]
    assert held >= 88  # of 100 at 95 %, once in a thousand less
    told = learned(PriceEffects(seed=1).events(100_000)).model()["slopes"]["rating"]
    assert told["beta"][0] == pytest.approx(world.beta, rel=0.05)


def test_a_price_that_is_told_after_its_outcomes_is_the_price_they_had():
    """A backlog interleaves items and ratings by whole batches: prices come four blocks late."""
    world = PriceEffects(seed=3)
    kinds = {"item": [], "rating": []}
    for event in world.events(40_000):
        kinds[event.kind].append(event)
    late, per_block = [], 1_000
    blocks = -(-len(kinds["rating"]) // per_block)
    for n in range(blocks + 4):
        late += kinds["rating"][n * per_block : (n + 1) * per_block]
        late += kinds["item"][(n - 4) * world.items : (n - 3) * world.items] if n >= 4 else []
    engine = learned(kinds["item"][: world.items] + late)
    engine.close_windows()
    low, high = engine.model()["slopes"]["rating"]["interval"][0]
    assert low < world.beta < high
    assert high - low < 0.01


def test_slopes_do_not_depend_on_cuts_nor_on_restarts():
    batches = list(record_batches(PriceEffects(seed=2).events(12_000)))
    make = partial(Engine, CONFIG, 1)
    cuts_do_not_matter(make, make, batches, [1, 5, 6, len(batches) // 2, len(batches) - 3])
    third = len(batches) // 3
    restarts_do_not_matter(
        make, (batches[:third], batches[third : 2 * third], batches[2 * third :])
    )


def priced(engine, world, items, by):
    """Return the engine after an event that prices each item off its quality's price."""
    events = []
    for n, item in enumerate(items):
        price = round(world.centre + world.markup * float(world.quality[n]) + by, 2)
        event = {
            "event_id": f"priced-{by}-{item}", "ts_ms": 1_900_000_000_000,
            "item_id": item, "attributes": {"price": price},
        }  # fmt: skip
        events.append(Wire("item", item.encode(), orjson.dumps(event), event["ts_ms"]))
    engine.learn(list(record_batches(events)))
    return engine


def test_clicks_expected_of_closed_windows_are_the_clicks_that_come():
    told = learned(PositionBias(seed=1).events(60_000)).model()["calibration"]["click"]
    assert told["windows"] > 10_000
    assert told["ratio"] == pytest.approx(1.0, abs=0.05)
