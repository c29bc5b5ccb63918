"""Laws of inference: each closed form against the same thing worked out one by one, or drawn."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

from consumers.service.attribute_index import AttributeIndex, Read, attribute_of
from consumers.service.request_validation import number
from stream.inference import abduction, attributes, intervals, noise, support
from stream.inference.do import Do, consumed, contrast
from stream.inference.effect import showing
from stream.inference.explain import AttributeTerm, explain
from stream.inference.model import parse
from stream.inference.outcome import (
    AS_IT_IS,
    IF_SHOWN,
    Scenario,
    consumption,
    exposure,
    head,
    shown,
    withheld,
)
from stream.inference.rows import ServedFeatures, ServedItems, ServedPairs, ServedUser
from stream.model.features import links_of
from tests.planted import ITEMS, MODEL, D, E, H, Planted, Y

SIGMOID = {"identity": lambda x: min(max(x, 1.0), 5.0), "logit": lambda x: 1 / (1 + math.exp(-x))}


def one_by_one(planted, pairs, at, *, popularity=True, q=None, position=1):
    """Return what is expected of one item if shown, in scalars."""
    o, model = pairs.outcome.index, planted.model
    bias, vector = pairs.items.bias[at], pairs.items.vector[at]
    eta = model["globals"][o] + float(planted.user_bias[o]) + bias[o]
    eta += sum(float(g) * h for g, h in zip(planted.user_vector[:D], vector[:D], strict=True))
    if popularity or q is not None:
        q = bias[2 * Y + H] if q is None else q
        eta += model["kappa"][o] * (q - model["popularity_mean"][o])
    eta += model["alpha"][o] * lasting(planted, vector)
    theta = model["theta"][position - 1] if pairs.outcome.link == "logit" else 1.0
    return theta * SIGMOID[pairs.outcome.link](eta)


def lasting(planted, vector):
    """Return s . t of the user and one item, in scalars."""
    pair = zip(planted.user_vector[D:], vector[2 * D :], strict=True)
    return sum(float(s) * t for s, t in pair)


def control_one_by_one(planted, pairs, at):
    """Return what is expected of one item if withheld, in scalars."""
    o = Y + pairs.outcome.index
    bias, vector = pairs.items.bias[at], pairs.items.vector[at]
    match = zip(planted.user_vector[:D], vector[D : 2 * D], strict=True)
    eta = planted.model["globals"][o] + float(planted.user_bias[o]) + bias[o]
    eta += planted.model["alpha0"][o - Y] * lasting(planted, vector)
    eta += planted.model["level0"][o - Y]
    return SIGMOID[pairs.outcome.link](eta + sum(float(g) * h for g, h in match))


both = pytest.mark.parametrize("outcome", ["rating", "click"])
every = range(len(ITEMS))


def shift_to(planted, pairs, change, item=None):
    """Return the shift of all items, or one, to other attributes, by the service's links."""
    linked, meta = (
        AttributeIndex(),
        {i.encode(): {"attributes": a} for i, a in planted.attributes.items()},
    )
    names = list(dict.fromkeys([*planted.names, *(n for n, _ in links_of("item", change))]))
    absent = len(names) - len(planted.names)
    held = planted.features()
    features = ServedFeatures(
        np.vstack([held.bias, np.zeros((absent, held.bias.shape[1]))]),
        np.vstack([held.vector, np.zeros((absent, D))]),
        np.append(held.events, np.zeros(absent, int)),
        np.append(held.present, np.zeros(absent, bool)),
    )
    read = Read({name: at for at, name in enumerate(names)}, features)
    ids = [i.encode() for i in ([item] if item else planted.ids)]
    old, new = linked.replace(ids, meta, change, read, 99)
    numbers = {name: number(name, read) for name in change}
    return attributes.shift(
        pairs.outcome, pairs.model, features, pairs.user, old, new, numbers=numbers
    )


# outcome


@both
def test_all_items_at_once_are_what_one_by_one_gives(outcome):
    planted = Planted()
    pairs = planted.pairs(outcome)
    for world, options in (
        (AS_IT_IS, {}),
        (IF_SHOWN, {"popularity": False}),
        (Scenario(position=3), {"position": 3}),
        (Scenario(popularity=7.0), {"q": math.log(8)}),
        (Scenario(position=2, popularity=7.0, clipped=True), {"q": math.log(8), "position": 2}),
    ):
        wanted = [one_by_one(planted, pairs, at, **options) for at in every]
        assert shown(pairs, world).mean == pytest.approx(wanted, abs=1e-6)
    wanted = [control_one_by_one(planted, pairs, at) for at in every]
    assert withheld(pairs).mean == pytest.approx(wanted, abs=1e-6)


@both
def test_a_part_of_the_items_gets_the_same_answers(outcome):
    pairs = Planted().pairs(outcome)
    places = np.array([3, 1])
    for law in (lambda p: shown(p).mean, lambda p: showing(p).value, consumption):
        assert law(pairs.take(places)) == pytest.approx(law(pairs)[places], abs=1e-12)


def test_popularity_and_position_bias_leave_the_ranking_and_come_back_when_asked_for():
    planted = Planted()
    model = {**MODEL, "kappa": [0.0, 5.0], "alpha": [0.0, 0.0]}
    planted.model = model
    pairs = planted.pairs("click")
    fair = shown(pairs, IF_SHOWN).eta
    biased = shown(pairs, AS_IT_IS).eta
    assert np.argsort(-biased).tolist() == np.argsort(-(fair + 5.0 * (pairs.q - 2.0))).tolist()
    same = shown(pairs, Scenario(popularity=100.0, clipped=True)).eta
    assert np.argsort(-same).tolist() == np.argsort(-fair).tolist()


# effect


@both
def test_the_effect_is_shown_minus_withheld(outcome):
    planted = Planted()
    pairs = planted.pairs(outcome)
    wanted = [
        one_by_one(planted, pairs, at) - control_one_by_one(planted, pairs, at) for at in every
    ]
    assert showing(pairs).value == pytest.approx(wanted, abs=1e-6)


def test_the_best_by_effect_are_the_right_ones_and_by_outcome_exactly_the_wrong_ones():
    n = 40
    base = np.where(np.arange(n) < n // 2, 0.7, 0.2)  # liked anyway, or only when shown
    effect = np.where(np.arange(n) < n // 2, -0.1, 0.4)
    logit = lambda p: np.log(p / (1 - p))  # noqa: E731
    bias = np.zeros((n, 2 * Y + H + 2))
    bias[:, 1], bias[:, Y + 1], bias[:, -1] = logit(base + effect), logit(base), 1.0
    bias[:, 1] += np.where(np.arange(n) < n // 2, 0.2, 0.0)  # .64 against .6 if shown
    bias[:, Y + 1] += np.where(np.arange(n) < n // 2, 0.2, 0.0)
    none = np.zeros(n, int)
    model = parse({**MODEL, "kappa": None, "alpha": None})
    pairs = ServedPairs(
        model,
        model.outcomes["click"],
        np.zeros(2 * Y),
        ServedUser(np.zeros(2 * Y), np.zeros(D + E)),
        ServedItems(bias, np.zeros((n, 2 * D + E)), *[none] * 3),
    )
    by_effect = np.argsort(-showing(pairs).value, kind="stable")[: n // 2]
    by_outcome = np.argsort(-shown(pairs, IF_SHOWN).mean, kind="stable")[: n // 2]
    assert (by_effect >= n // 2).all()
    assert (by_outcome < n // 2).all()


def test_an_item_without_its_own_control_gets_the_average_effect_and_says_so():
    planted = Planted()
    planted.own_bias[1, -1] = 0.0
    pairs = planted.pairs("click")
    found = showing(pairs)
    assert found.own.tolist() == [True, False, True, True, True]
    assert found.value[1] == 0.07
    said = contrast(pairs, Do(shown=True))
    assert [side[1] for side in said.interval] == [0.05, 0.09]
    assert said.counterfactual[1] == pytest.approx(said.factual[1] - 0.07)
    planted.model = {**MODEL, "effects": {}}
    rest = np.delete(showing(pairs).value, 1)
    assert showing(planted.pairs("click")).value[1] == pytest.approx(rest.mean())


def test_no_control_is_told_by_the_model():
    click = parse(MODEL).outcomes["click"]
    none = {"click": {"value": None, "interval": None, "shown": 9, "withheld": 0}}
    assert parse(MODEL).has_control(click)
    assert not parse({**MODEL, "controls": 0}).has_control(click)
    assert not parse({**MODEL, "effects": none}).has_control(click)
    assert not parse({**MODEL, "effects": {"rating": MODEL["effects"]["rating"]}}).has_control(
        click
    )
    plain = {"user": [Y, D], "item": [Y, D], "feature": [Y, D]}
    assert not parse({"outcomes": MODEL["outcomes"], "factors": D, "rows": plain}).has_control(
        click
    )


# do


CHANGES = [
    {"price": 9.9},
    {"price": 17.0},
    {"genre": ["Horror"]},
    {"genre": ["Comedy", "Drama", "Horror"], "price": 20.0},
    {"new": False},
    {"genre": []},
]


@both
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_other_attributes_are_what_folding_them_in_anew_gives(outcome, change):
    planted = Planted()
    pairs, other = planted.pairs(outcome), planted.pairs(outcome, change)
    shift = shift_to(planted, pairs, change)
    world = Scenario(shift=shift)
    assert shown(pairs, world).mean == pytest.approx(shown(other).mean, abs=1e-6)
    assert withheld(pairs, world).mean == pytest.approx(withheld(other).mean, abs=1e-6)
    assert exposure(pairs, world) == pytest.approx(exposure(other), abs=1e-6)
    found = contrast(pairs, Do(attributes=shift))
    assert found.effect == pytest.approx(shown(other).mean - shown(pairs).mean, abs=1e-6)
    both_arms = contrast(pairs, Do(shown=True, attributes=shift, position=2))
    wanted = shown(other, Scenario(position=2)).mean - withheld(other).mean
    assert both_arms.effect == pytest.approx(wanted, abs=1e-6)


WITHIN = {"names": ["weight", "price"], "beta": [9.0, -0.05], "open": True}
WITHIN["covariance"] = [[1.0, 0.0], [0.0, 1e-4]]


def test_a_slope_found_within_items_holds_for_the_mean_user_and_others_differ_by_their_match():
    """Averaged over users the effect is the slope's, whatever the learner's coefficients say."""
    rng = np.random.default_rng(1)
    model = {**MODEL, "slopes": {"rating": WITHIN}, "mean_user": [0.1, -0.2, 0.0, 0.3]}
    change, effects = {"price": 17.0}, []
    planted = Planted(model=model)
    priced = np.array([p for a in ITEMS.values() if (p := a.get("price")) is not None])
    has = np.array(["price" in a for a in ITEMS.values()])
    moved = -0.05 * (17.0 - priced)
    for sign in (1, -1):  # a user, and its mirror image at the mean user
        off = rng.normal(0, 0.3, D) if sign > 0 else -off  # noqa: F821
        planted.user_vector[:D] = model["mean_user"] + off
        pairs = planted.pairs("rating")
        shift = shift_to(planted, pairs, change)
        effects.append((shift.shown + shift.slope)[has])
        assert shift.within.tolist() == has.tolist()
        assert shift.slope[has] == pytest.approx(moved)
        assert shift.slope_variance[has] == pytest.approx(1e-4 * (17.0 - priced) ** 2)
        assert not shift.variance[has].any()
    assert np.mean(effects, 0) == pytest.approx(moved, abs=1e-6)
    assert abs(effects[0] - moved).min() > 1e-3
    # an item without a price, and an outcome without such a slope, keep the learner's
    planted = Planted(model={**MODEL, "slopes": {"rating": WITHIN}})
    plain = Planted()
    for outcome in ("rating", "click"):
        found = shift_to(planted, planted.pairs(outcome), change)
        wanted = shift_to(plain, plain.pairs(outcome), change)
        same = ~has if outcome == "rating" else np.full(len(has), True)
        assert found.shown[same] == pytest.approx(wanted.shown[same])
        assert found.variance[same] == pytest.approx(wanted.variance[same])
        assert not found.slope[same].any() and not found.within[same].any()
    both = shift_to(planted, planted.pairs("rating"), {"price": 17.0, "genre": ["Horror"]})
    assert both.slope[has] == pytest.approx(moved) and not both.within.any()
    assert both.variance[has].min() > 0


def test_the_interval_of_a_change_of_price_is_the_slopes_own():
    planted = Planted(model={**MODEL, "slopes": {"rating": WITHIN}})
    planted.user_vector[:D] = 0.0  # the mean user: no match of its own
    pairs = planted.pairs("rating")
    one = pairs.take(np.array([2]))
    shift = shift_to(planted, pairs, {"price": 6.0}, "c")  # from 5
    found = contrast(one, Do(attributes=shift))
    assert found.effect == pytest.approx([-0.05])
    low, high = (float(side[0]) for side in found.interval)
    assert (low, high) == pytest.approx((-0.05 - 1.96 * 0.01, -0.05 + 1.96 * 0.01), abs=1e-4)


def test_attributes_that_stay_change_nothing_and_leave_no_doubt():
    planted = Planted()
    pairs = planted.pairs("rating")
    one = pairs.take(np.array([0]))
    shift = shift_to(planted, pairs, ITEMS["a"], "a")
    assert [float(x[0]) for x in (shift.shown, shift.withheld, shift.variance)] == pytest.approx(
        [0.0, 0.0, 0.0], abs=1e-6
    )
    low, high = contrast(one, Do(attributes=shift)).interval
    assert high - low == pytest.approx(0.0, abs=1e-5)


def test_a_full_row_keeps_what_is_set():
    planted = Planted()
    linked, meta = (
        AttributeIndex(),
        {i.encode(): {"attributes": a} for i, a in planted.attributes.items()},
    )
    read = Read({name: at for at, name in enumerate(planted.names)}, planted.features())
    ids = [i.encode() for i in planted.ids]
    _, new = linked.replace(ids, meta, {"genre": ["Horror"]}, read, 2)
    assert new.count.max() == 2
    horror = planted.names.index("item\x1fgenre\x1f=Horror")
    assert sorted(new.owner[new.feature == horror].tolist()) == list(every)


def test_links_follow_what_is_told_of_an_item():
    linked, meta = (
        AttributeIndex(),
        {b"a": {"attributes": {"genre": ["Comedy", "Drama"]}}, b"b": {}},
    )
    owner, number, value = linked.of([b"b", b"a", b"a", b"new"], meta)
    assert owner.tolist() == [1, 1, 2, 2]
    assert [attribute_of(name) for name in linked.called(number)] == ["genre", "genre"]
    assert value.tolist() == [1.0] * 4
    meta[b"a"] = {"attributes": {"price": 9.5}}
    assert linked.called(linked.of([b"a"], meta)[1]) == [
        name for name, _ in links_of("item", {"price": 9.5})
    ]


@both
def test_position_and_popularity_replace_their_term(outcome):
    planted = Planted()
    pairs = planted.pairs(outcome)
    found = contrast(pairs, Do(position=3, popularity=30.0))
    before = [one_by_one(planted, pairs, at) for at in every]
    after = [one_by_one(planted, pairs, at, q=math.log(31), position=3) for at in every]
    assert found.factual == pytest.approx(before, abs=1e-6)
    assert found.effect == pytest.approx(np.subtract(after, before), abs=1e-6)


def test_showing_and_withholding_are_each_others_negative():
    pairs = Planted().pairs("click")
    yes, no = contrast(pairs, Do(shown=True)), contrast(pairs, Do(shown=False))
    assert yes.effect == pytest.approx(yes.factual - yes.counterfactual)
    assert no.effect == pytest.approx(-yes.effect)
    assert no.interval[0] == pytest.approx(-yes.interval[1])


# consumption


@both
def test_consumption_is_exposure_times_outcome_and_attributes_move_both(outcome):
    planted = Planted()
    pairs = planted.pairs(outcome)
    at = 0 if outcome == "rating" else 1
    assert head(pairs) == at
    t, s = pairs.items.vector[:, 2 * D :], planted.user_vector[D:]
    eta = pairs.items.bias[:, 2 * Y + at] + t @ s
    scaled = MODEL["exposure"]["scale"][at] * eta + MODEL["exposure"]["shift"][at]
    pi = 1 - np.exp(-np.exp(scaled))
    mean = shown(pairs, IF_SHOWN).mean
    share = (mean - 1) / 4 if outcome == "rating" else mean
    assert consumption(pairs) == pytest.approx(pi * share, abs=1e-6)
    change = {"genre": ["Horror"], "price": 20.0}
    do = Do(attributes=shift_to(planted, pairs, change))
    found = consumed(pairs, do)
    other = planted.pairs(outcome, change)
    assert found.total == pytest.approx(consumption(other) - consumption(pairs), abs=1e-6)
    new = shown(other, IF_SHOWN).mean
    new = (new - 1) / 4 if outcome == "rating" else new
    assert found.direct == pytest.approx(pi * (new - share), abs=1e-6)


def test_a_head_that_learned_nothing_leaves_the_answer_to_the_other():
    planted = Planted()
    planted.model = {**MODEL, "exposure": {"scale": [1.0, 0.0], "shift": [-2.0, 0.0]}}
    assert head(planted.pairs("click")) == 0
    planted.model = {**MODEL, "exposure": None}
    with pytest.raises(ValueError, match="head"):
        consumption(planted.pairs("click"))


# support


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"price": 9.9}, None),
        ({"price": 4.0}, None),
        ({"price": 25.0}, None),
        ({"price": 25.1}, "price is between 4 and 25"),
        ({"price": 3.9}, "price is between 4 and 25"),
        ({"price": "cheap"}, "price cheap has never been observed"),
        ({"genre": ["Comedy", "Musical"]}, "genre Musical has never been observed"),
        ({"genre": 3}, "genre has never been observed as a number"),
        ({"colour": "red"}, "colour red has never been observed"),
        ({"new": True}, None),
    ],
    ids=str,
)
def test_what_was_never_observed_is_refused(change, reason):
    planted = Planted()
    rows = {name: at for at, name in enumerate(planted.names)}
    [(name, value)] = change.items()
    links = list(links_of("item", {name: value}))
    said = support.attribute(name, links, rows, planted.features())
    assert (said is None) if reason is None else said.startswith(reason)


def test_places_and_popularities_beyond_the_observed_are_refused():
    pairs = Planted().pairs("click")
    click, rating = pairs.outcome, pairs.model.outcomes["rating"]
    assert support.position(pairs.model, click, 3) is None
    assert "beyond 3" in support.position(pairs.model, click, 4)
    assert support.position(pairs.model, rating, 4) is None
    low, high = np.expm1(pairs.q.min()), np.expm1(pairs.q.max())
    for count, ok in ((low, True), (high, True), (high + 1, False), (low - 0.5, False)):
        assert (support.popularity(pairs.q, count) is None) == ok


# abduction


def test_a_ratings_residual_is_kept():
    rating = parse(MODEL).outcomes["rating"]
    found = abduction.individual(rating, np.array([5.0, 1.0]), np.full(2, 3.5), np.full(2, 3.0))
    assert found.tolist() == [4.5, 1.0]


@pytest.mark.parametrize("before", [0.3, 0.6])
@pytest.mark.parametrize("after", [0.2, 0.5, 0.9])
def test_a_clicks_counterfactual_is_that_of_one_shared_chance(before, after):
    u = np.random.default_rng(0).random(200_000)
    click = parse(MODEL).outcomes["click"]
    for observed in (0.0, 1.0):
        same = (u < before) == bool(observed)
        drawn = (u[same] < after).mean()
        found = abduction.individual(
            click, np.array([observed]), np.array([before]), np.array([after])
        )
        assert found[0] == pytest.approx(drawn, abs=0.005)


# explanation


def parts_of(planted, pairs, at):
    """Return the parts of an item's attributes, in scalars."""
    links = list(links_of("item", planted.attributes[planted.ids[at]]))
    found = {}
    for name, value in links:
        f = planted.names.index(name)
        weight = ((value - 12.0) / 6.0 if name.endswith("#") else value) / math.sqrt(len(links))
        held = found.get(attribute_of(name), AttributeTerm(0.0, 0.0))
        match = float(planted.feature_vector[f] @ planted.user_vector[:D])
        found[attribute_of(name)] = AttributeTerm(
            held.bias + weight * float(planted.feature_bias[f, pairs.treated]),
            held.match + weight * match,
        )
    return found


@both
@pytest.mark.parametrize(
    "world", [IF_SHOWN, AS_IT_IS, Scenario(position=3), Scenario(popularity=9.0)]
)
def test_the_paths_add_up_to_the_score(outcome, world):
    planted = Planted()
    pairs = planted.pairs(outcome)
    for at in every:
        one = pairs.take(np.array([at]))
        found = explain(one, world, parts_of(planted, pairs, at))
        total = math.fsum(term.value for term in found.terms)
        assert total == pytest.approx(found.sum, abs=1e-9)
        assert found.score == pytest.approx(float(shown(one, world).mean[0]), abs=1e-9)
        assert SIGMOID[pairs.outcome.link](total) == pytest.approx(found.score, abs=1e-5)


def test_terms_are_the_planted_parts_and_cut_paths_say_what_they_would_add():
    planted = Planted()
    pairs = planted.pairs("rating")
    found = explain(pairs.take(np.array([0])), IF_SHOWN, parts_of(planted, pairs, 0))
    terms = {term.name: term for term in found.terms}
    assert terms["item"].value == pytest.approx(float(planted.own_bias[0, 0]), abs=1e-6)
    own = float(planted.own_vector[0, :D] @ planted.user_vector[:D])
    assert terms["match"].value == pytest.approx(own, abs=1e-6)
    assert {"attribute:genre", "attribute:price", "attribute:new"} < set(terms)
    assert terms["popularity"].value == 0.0
    q = float(pairs.q[0])
    assert terms["popularity"].clipped == pytest.approx(0.1 * (q - 2.0), abs=1e-6)
    trait = 0.3 * lasting(planted, pairs.items.vector[0])
    assert terms["confounder"].value == pytest.approx(trait, abs=1e-6) and trait != 0.0
    assert [name for name, term in terms.items() if term.clipped] == ["popularity"]
    rare = {**MODEL, "globals": [3.0, -12.0, 2.6, -12.0]}
    planted.model = rare
    far = explain(planted.pairs("click").take(np.array([0])), Scenario(position=3), {})
    assert far.terms[-1].value == pytest.approx(math.log(0.4), abs=1e-3)


# intervals


def counted(sd, mine, theirs, n):
    """Return a model of biases alone and n items that were seen so often."""
    model = parse({**MODEL, "kappa": None, "alpha": None, "residual_sd": {"rating": sd}})
    nothing = np.zeros((n, 2 * D + E))
    items = ServedItems(np.zeros((n, 2 * Y + H + 2)), nothing, *[np.full(n, theirs)] * 3)
    user = ServedUser(np.zeros(2 * Y), np.zeros(D + E), mine, mine, mine)
    return model, user, items


@pytest.mark.parametrize(("mine", "theirs"), [(0, 3), (10, 40), (200, 5)])
def test_intervals_of_biases_that_were_shrunk_cover_the_truth(mine, theirs):
    rng, sd, trials = np.random.default_rng(1), 0.5, 4_000
    estimates = []
    for count, prior in (
        (mine, noise.USER_EVENTS),
        (theirs, noise.ITEM_EVENTS),
    ):
        truth = rng.normal(0, sd / math.sqrt(prior), trials)
        total = count * truth + rng.normal(0, sd * math.sqrt(count), trials)
        estimates.append((truth, total / (count + prior)))
    (a, a_hat), (c, c_hat) = estimates
    model, user, items = counted(sd, mine, theirs, trials)
    items.bias[:, 0] = c_hat + a_hat
    pairs = ServedPairs(model, model.outcomes["rating"], np.array([3.0, 0, 0, 0]), user, items)
    low, high = intervals.expected(pairs, shown(pairs, IF_SHOWN), IF_SHOWN)
    covered = ((low <= 3.0 + a + c) & (3.0 + a + c <= high)).mean()
    assert 0.935 <= covered <= 0.965


def test_the_spread_of_paths_is_the_regressions():
    rng = np.random.default_rng(2)
    names = ["intercept", "item", "popularity"]
    root = rng.normal(0, 0.1, (3, 3))
    fit = {"rating": {"names": names, "beta": [0, 1, 1], "covariance": (root @ root.T).tolist()}}
    planted = Planted()
    planted.model = {**MODEL, "paths": fit, "residual_sd": {"rating": 1e-9}, "alpha": None}
    pairs = planted.pairs("rating")
    low, high = intervals.expected(pairs, shown(pairs), AS_IT_IS)
    for at in every:
        popularity = 0.1 * (float(pairs.q[at]) - 2.0)
        z = np.array([1.0, pairs.items.bias[at, 0], popularity])
        wanted = 2 * intervals.Z * math.sqrt(z @ root @ root.T @ z)
        assert high[at] - low[at] == pytest.approx(wanted, rel=1e-4)
    found = contrast(pairs, Do(popularity=9.0))
    for at in every:
        step = 0.1 * (math.log(10.0) - float(pairs.q[at]))
        wanted = intervals.Z * abs(step) * math.sqrt((root @ root.T)[2, 2])
        assert found.interval[1][at] - found.effect[at] == pytest.approx(wanted, rel=1e-4)
    planted.model = {**planted.model, "paths": {"rating": {**fit["rating"], "names": ["x"] * 3}}}
    pairs = planted.pairs("rating")
    assert intervals.design(pairs, shown(pairs)) is None


@both
def test_more_events_make_narrower_intervals_and_all_stay_on_the_scale(outcome):
    widths = []
    for events in (0, 10, 1_000):
        pairs = Planted().pairs(outcome, events=events)
        low, high = intervals.expected(pairs, shown(pairs, IF_SHOWN), IF_SHOWN)
        mean = shown(pairs, IF_SHOWN).mean
        assert (low <= mean).all() and (mean <= high).all()
        assert low.min() >= pairs.outcome.low and high.max() <= pairs.outcome.high
        widths.append(high - low)
    assert all((b < a).all() for a, b in itertools.pairwise(widths))


def test_without_a_known_spread_there_is_no_interval():
    planted = Planted()
    assert contrast(planted.pairs("rating"), Do(popularity=9.0)).interval is None
    planted.model = {**MODEL, "residual_sd": {}}
    assert contrast(planted.pairs("rating"), Do(shown=True)).interval is None
    pairs = planted.pairs("rating")
    assert intervals.expected(pairs, shown(pairs), AS_IT_IS) is None


def test_a_changes_spread_is_that_of_the_coefficients_that_come_and_go():
    """Ridge coefficients of values seen 100 times, drawn again and again: the interval covers."""
    rng, sd, trials = np.random.default_rng(3), 0.9, 2_000
    planted = Planted()
    pairs = planted.pairs("rating").take(np.array([1]))
    shift = shift_to(planted, pairs, {"genre": ["Horror"]}, "b")
    links = len(list(links_of("item", ITEMS["b"])))
    w2 = 1.0 / links
    prior = attributes.PRIOR_EVENTS
    errors = []
    for _ in range(2):
        truth = rng.normal(0, sd / math.sqrt(prior), trials)
        noise = rng.normal(0, sd * math.sqrt(100 * w2), trials)
        estimate = (100 * w2 * truth + noise) / (100 * w2 + prior)
        errors.append(math.sqrt(w2) * (estimate - truth))
    spread = math.sqrt(float(shift.variance[0])) * sd
    covered = (np.abs(errors[1] - errors[0]) <= intervals.Z * spread).mean()
    assert 0.935 <= covered <= 0.965
    found = contrast(pairs, Do(attributes=shift))
    half = float(found.interval[1][0] - found.effect[0])
    assert half == pytest.approx(intervals.Z * spread, rel=1e-6)


def test_it_is_numpy_alone():
    code = (
        "import sys, stream.inference.do, stream.inference.explain, stream.inference.support\n"
        "import stream.inference.abduction\n"
        "bad = {'torch', 'numba', 'river', 'redis', 'scipy'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


RATES = {
    "user_bias": 0.38, "item_bias": 0.22, "user_factor": 0.2, "item_factor": 0.045,
    "start_bias": 4.3, "start_factor": 0.2,
}  # fmt: skip


@pytest.mark.parametrize("outcome", ["rating", "click"])
def test_what_steps_leave_of_a_bias_is_as_wide_as_the_interval_says(outcome):
    """Two thousand learners of one bias, each a step of Adagrad an outcome, at their own noise."""
    rng, n = np.random.default_rng(1), 2_000
    planted = Planted(model={**MODEL, "rates": RATES})
    pairs = planted.pairs(outcome, events=n)
    arm = shown(pairs)
    bias, held = np.zeros(2_000), np.full(2_000, RATES["start_bias"])
    if outcome == "rating":
        aim, spread = 0.0, MODEL["residual_sd"]["rating"]
    else:
        aim = float(arm.eta[0])
    for _ in range(n):
        if outcome == "rating":
            gradient = bias - rng.normal(aim, spread, len(bias))
        else:
            gradient = 1 / (1 + np.exp(-bias)) - (rng.random(len(bias)) < 1 / (1 + np.exp(-aim)))
        held += gradient**2
        bias -= RATES["user_bias"] / np.sqrt(held) * gradient
    known = noise.known_of(pairs, arm)
    said = known.steps(RATES["user_bias"], RATES["start_bias"], float(n), 1.0)[0]
    assert bias.var() == pytest.approx(said, rel=0.2)
    assert bias.mean() == pytest.approx(aim, abs=0.05)


def test_without_published_rates_the_steps_are_left_out_and_with_them_intervals_are_wider():
    plain, told = Planted(), Planted(model={**MODEL, "rates": RATES})
    for do in (Do(shown=True), Do(shown=True, position=2)):
        narrow, wide = (contrast(p.pairs("click"), do).interval for p in (plain, told))
        assert (wide[1] - wide[0] > narrow[1] - narrow[0]).all()
    pairs = told.pairs("click")
    # what the user's factors get wrong is in both arms, and cancels where the arms are the same
    both = noise.match(pairs, (shown(pairs), np.ones(5)), (shown(pairs), -np.ones(5)))
    alone = noise.match(pairs, (shown(pairs), np.ones(5)))
    of_items = 2 * (alone - noise.match(pairs, (shown(pairs), np.zeros(5))))
    assert (both < of_items).all() and (both > 0).all()
