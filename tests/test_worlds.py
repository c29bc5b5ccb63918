"""Laws of the worlds: what they plant is what a large sample of their events shows."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import orjson
import pytest

from consumers import cli, commands, topics
from consumers.kafka import KafkaSource
from stream.effects import AverageEffect, PathRegression
from stream.events import KINDS, decode
from stream.worlds import (
    WORLDS,
    Adversarial,
    ChangePoint,
    Confounded,
    Heterogeneous,
    PopularityLoop,
    PositionBias,
    PriceEffects,
    record_batches,
)
from stream.worlds.base import logistic
from stream.worlds.heterogeneous import SEGMENTS, SORTS

LARGE = 200_000


def by_item(named):
    """Return the values in the order of the items' numbers."""
    return np.array([named[f"i{n}"] for n in range(len(named))])


def means(group, values, groups):
    """Return mean and standard error of the values by group."""
    n = np.bincount(group, minlength=groups)
    mean = np.bincount(group, values, groups) / n
    square = np.bincount(group, values**2, groups) / n
    return mean, np.sqrt((square - mean**2) / n)


def close(group, values, truth, errors=4.5):
    """The group means are within 4.5 standard errors of the truth."""
    mean, error = means(group, values, len(truth))
    np.testing.assert_array_less(abs(mean - truth), errors * error + 1e-12)


def effect_of_windows(rows):
    effect = AverageEffect()
    window = rows.slate >= 0
    nothing = np.full(len(rows), np.nan)
    effect.update(
        *(c[window] for c in (rows.shown, rows.click, rows.show_probability, nothing, nothing))
    )
    return effect.figures()


# -- what holds of every world


@pytest.fixture(params=WORLDS)
def world(request):
    return WORLDS[request.param](seed=3)


def test_every_event_is_one_that_the_decoder_takes(world):
    events = list(world.events(5_000))
    decoded = decode(list(record_batches(events)))
    assert decoded.bad == []
    assert [KINDS[k] for k in decoded.kind] == [e.kind for e in events]
    assert len({(e.kind, orjson.loads(e.value)["event_id"]) for e in events}) == 5_000
    for event in events[::50]:
        value = orjson.loads(event.value)
        assert event.key.decode() == value["item_id" if event.kind == "item" else "user_id"]
        assert (event.kind, event.ts_ms) == (value["type"], value["ts_ms"])


def test_time_never_goes_back(world):
    times = [event.ts_ms for event in world.events(5_000)]
    assert times == sorted(times)


def test_fewer_events_are_a_prefix_of_more_and_a_seed_is_a_world(world):
    assert list(world.events(1_700)) == list(type(world)(seed=3).events(3_000))[:1_700]
    assert list(world.events(100)) != list(type(world)(seed=4).events(100))
    assert world.truth == type(world)(seed=3).truth


def test_the_events_tell_what_the_columns_hold(world):
    events = Counter()
    rows = world.columns(1_000)
    last_ms = rows.ts_ms[-1]
    for event in world.events(4_000):
        value = orjson.loads(event.value)
        if event.kind in ("impression", "rating") and event.ts_ms <= last_ms:
            shown = "" if value.get("shown", True) else " withheld"
            events[event.kind + shown] += 1
        if event.kind == "click" and int(value["event_id"].rsplit("-", 1)[1]) < 1_000:
            events["click"] += 1
    window = rows.slate >= 0
    expected = {
        "impression": (window & rows.shown).sum(),
        "impression withheld": (window & ~rows.shown).sum(),
        "rating": (~window).sum(),
        "click": rows.click.sum(),
    }
    assert events == {kind: n for kind, n in expected.items() if n}


def test_the_truth_is_json(world):
    assert json.loads(json.dumps(world.truth)) == world.truth


def test_the_columns_expected_outcomes_are_those_of_what_happened(world):
    rows = world.columns(LARGE)
    expected = np.where(rows.shown, rows.treated, rows.control)
    happened = np.where(rows.slate >= 0, rows.click, rows.rating)
    error = happened - expected
    assert abs(error.mean()) < 4.5 * error.std() / LARGE**0.5
    ratings = rows.rating[np.isfinite(rows.rating)]
    assert ((ratings > 1) & (ratings < 5)).all()  # nothing was cut off at the scale's ends


# -- each world's own answer


def test_adversarial_outcomes_by_item_and_arm():
    world = Adversarial(seed=1)
    rows, truth = world.columns(LARGE), world.truth
    arm = rows.item * 2 + rows.shown
    planted = np.c_[by_item(truth["outcome_if_withheld"]), by_item(truth["outcome_if_shown"])]
    close(arm, rows.click, planted.ravel())
    np.testing.assert_allclose(planted[:, 1] - planted[:, 0], by_item(truth["effect"]))
    favourites = [int(name[1:]) for name in truth["best_by_outcome"]]
    assert np.isin(rows.item, favourites).mean() == pytest.approx(0.8, abs=0.005)


def test_adversarial_the_best_by_click_rate_are_exactly_not_the_best_by_effect():
    world = Adversarial(seed=1)
    rows, truth = world.columns(LARGE), world.truth
    rate, _ = means(rows.item[rows.shown], rows.click[rows.shown], world.items)
    best = {f"i{n}" for n in np.argsort(-rate)[: world.items // 2]}
    assert best == set(truth["best_by_outcome"])
    assert best.isdisjoint(truth["best_by_effect"])


@pytest.mark.parametrize("made", [Adversarial, Confounded, Heterogeneous])
def test_the_average_effect_of_the_windows(made):
    world = made(seed=2)
    figures = effect_of_windows(world.columns(LARGE))
    low, high = figures["interval"]
    assert low < world.truth["average_effect_of_windows"] < high
    assert high - low < 0.03


def test_confounded_shown_minus_withheld_exaggerates_as_told():
    rows = (world := Confounded(seed=2)).columns(LARGE)
    window = rows.slate >= 0
    shown, withheld = window & rows.shown, window & ~rows.shown
    difference = rows.click[shown].mean() - rows.click[withheld].mean()
    assert difference == pytest.approx(world.truth["naive_difference"], abs=0.015)
    assert difference > 1.5 * world.truth["average_effect_of_windows"]


def test_confounded_unlogged_the_figure_names_the_assumption_that_fails():
    world = Confounded(seed=2, logged=False)
    figures = effect_of_windows(world.columns(LARGE))
    assert figures["value"] == pytest.approx(world.truth["naive_difference"], abs=0.015)
    assert "not logged" in figures["assumption"]


def test_confounded_ratings_are_of_the_liked_and_weighting_by_selection_undoes_it():
    world = Confounded(seed=2)
    rows, truth = world.columns(LARGE), world.truth
    rows = rows.take(rows.slate < 0)
    of_rated = by_item(truth["mean_rating_of_the_rated"])
    close(rows.item, rows.rating, of_rated)
    of_all = by_item(truth["mean_rating"])
    assert (of_rated > of_all + 0.15).all()
    weight = 1 / world.selection[rows.user, rows.item]
    weighted = np.bincount(rows.item, weight * rows.rating) / np.bincount(rows.item, weight)
    np.testing.assert_allclose(weighted, of_all, atol=0.05)


def test_confounded_unlogged_probabilities_are_in_no_event():
    for event in Confounded(seed=2, logged=False).events(500):
        value = orjson.loads(event.value)
        assert "propensity" not in value
        assert value.get("show_probability", 1.0) == 1.0


def test_popularity_kappa_and_taste_by_logistic_regression():
    world = PopularityLoop(seed=1)
    rows, truth = world.columns(LARGE), world.truth
    count = np.zeros(LARGE)
    for item in range(world.items):
        mine = rows.item == item
        clicks = rows.click[mine].cumsum()
        count[mine] = np.r_[0, clicks[:-1]]  # before the event
    x = np.c_[np.eye(world.items)[rows.item], np.log1p(count) - world.middle]
    beta = np.zeros(world.items + 1)
    for _ in range(8):  # Newton
        p = logistic(x @ beta)
        hessian = (x.T * (p * (1 - p))) @ x
        beta += np.linalg.solve(hessian, x.T @ (rows.click - p))
    error = np.sqrt(np.diag(np.linalg.inv(hessian)))
    planted = np.r_[world.base + by_item(truth["taste"]), truth["kappa"]]
    np.testing.assert_array_less(abs(beta - planted), 4.5 * error)
    assert error[-1] < truth["kappa"] / 10


def test_popularity_is_not_taste():
    world = PopularityLoop(seed=1)
    rows = world.columns(20_000)
    clicks = np.bincount(rows.item, rows.click, world.items)
    assert [f"i{n}" for n in np.argsort(-clicks)] != world.truth["ranking"]
    exposed = np.bincount(rows.item, minlength=world.items)
    assert exposed.max() > 5 * exposed.min()


def test_position_examination_and_attraction_by_inverse_propensity():
    world = PositionBias(seed=1)
    rows, truth = world.columns(LARGE), world.truth
    weighted = rows.click / rows.propensity
    place = rows.position - 1
    rate, error = means(place, weighted, world.places)  # sum over items of theta_k mu_i
    theta = np.array(truth["theta"])
    total = theta * by_item(truth["outcome_if_shown"]).sum()
    np.testing.assert_array_less(abs(rate - total), 4.5 * error)
    first = rows.take(place == 0)
    close(first.item, first.click, by_item(truth["outcome_if_shown"]))
    np.testing.assert_allclose(theta, np.arange(1, 6) ** -0.7)


def test_position_by_click_rate_the_worst_item_is_of_the_better_half():
    world = PositionBias(seed=1)
    rows = world.columns(LARGE)
    rate, _ = means(rows.item, rows.click, world.items)
    assert rate[world.attraction.argmin()] > np.median(rate)
    assert np.corrcoef(rate, world.attraction)[0, 1] < 0.85


def test_heterogeneous_effects_by_what_users_and_items_tell():
    world = Heterogeneous(seed=1)
    told = {}
    for event in world.events(world.users + world.items):
        told[event.key.decode()] = orjson.loads(event.value)["attributes"]
    segment = np.array([SEGMENTS.index(told[f"u{n}"]["segment"]) for n in range(world.users)])
    sort = np.array([SORTS.index(told[f"i{n}"]["sort"]) for n in range(world.items)])
    rows, truth = world.columns(LARGE), world.truth
    cell = segment[rows.user] * 3 + sort[rows.item]
    effect = np.array([[truth["effect"][s][k] for k in SORTS] for s in SEGMENTS]).ravel()
    control = truth["outcome_if_withheld"]
    close(cell[rows.shown], rows.click[rows.shown], control + effect)
    close(cell[~rows.shown], rows.click[~rows.shown], np.full(9, control))
    for name, best in truth["best_by_effect"].items():
        sorts = {told[item]["sort"] for item in best}
        assert sorts == {max(truth["effect"][name], key=truth["effect"][name].get)}


def priced(world, n):
    """Return item, price (as the item events told it) and rating of each rating event."""
    price, out = {}, []
    for event in world.events(n):
        value = orjson.loads(event.value)
        if event.kind == "item":
            price[value["item_id"]] = value["attributes"]["price"]
        else:
            out.append((int(value["item_id"][1:]), price[value["item_id"]], value["value"]))
    return (np.array(column) for column in zip(*out, strict=True))


def test_price_within_items_lowers_and_over_items_seems_to_raise_the_rating():
    world = PriceEffects(seed=1)
    item, price, rating = priced(world, 40_000)
    within_price, within_rating = (
        c - means(item, c, world.items)[0][item] for c in (price, rating)
    )
    beta = within_price @ within_rating / (within_price @ within_price)
    assert beta == pytest.approx(world.truth["beta"], rel=0.05)
    naive = np.cov(price, rating)
    assert naive[0, 1] / naive[0, 0] == pytest.approx(world.truth["naive_slope"], abs=0.01)
    assert world.truth["naive_slope"] > 0 > beta


def test_price_is_found_by_the_running_regression_on_the_paths():
    world = PriceEffects(seed=1, items=10)
    item, price, rating = priced(world, 10_000)
    regression = PathRegression([*(f"i{n}" for n in range(10)), "price"])
    regression.update(np.c_[np.eye(10)[item], price - world.centre], rating)
    beta, covariance = regression.fit()
    planted = np.r_[by_item(world.truth["mean_rating_at_centre"]), world.truth["beta"]]
    np.testing.assert_array_less(abs(beta - planted), 4 * np.sqrt(np.diag(covariance)))


def test_change_point_means_before_and_after():
    world = ChangePoint(seed=1)
    rows, truth = world.columns(40_000), world.truth
    after = rows.ts_ms >= truth["change_ts_ms"]
    assert (~after).sum() == truth["change_at"]
    close(rows.item[~after], rows.rating[~after], by_item(truth["mean_rating_before"]))
    close(rows.item[after], rows.rating[after], by_item(truth["mean_rating_after"]))
    assert abs(rows.rating[after].mean() - rows.rating[~after].mean()) < 0.05


# -- the command


def test_the_command_knows_every_world():
    assert [*commands.WORLDS] == [*WORLDS]


def test_events_go_to_a_file_and_the_truth_to_stdout(tmp_path, capfd):
    out = tmp_path / "events.ndjson"
    assert cli.main(["simulate", "price", "--events", "300", "--out", str(out), "--json"]) == 0
    told = orjson.loads(capfd.readouterr().out)
    world = PriceEffects()
    assert told == {"world": "price", "seed": 0, "events": 300, "truth": world.truth}
    assert out.read_bytes().splitlines() == [event.value for event in world.events(300)]


def test_events_go_to_stdout_and_the_truth_to_stderr():
    done = subprocess.run(
        [sys.executable, "-m", "consumers", "simulate", "adversarial", "--events", "50",
         "--seed", "9", "--json"],
        capture_output=True, check=True,
    )  # fmt: skip
    world = Adversarial(seed=9)
    assert done.stdout.splitlines() == [event.value for event in world.events(50)]
    assert orjson.loads(done.stderr)["truth"] == world.truth


def test_a_file_that_cannot_be_written_is_named(tmp_path, capfd):
    assert cli.main(["simulate", "price", "--out", str(tmp_path / "no" / "x")]) == 1
    assert "--out" in capfd.readouterr().err


def test_events_go_to_kafka_each_to_its_topic(broker, prefix, capfd, monkeypatch):
    monkeypatch.setenv("COUNTERFLOW_KAFKA__BOOTSTRAP_SERVERS", broker)
    monkeypatch.setenv("COUNTERFLOW_KAFKA__TOPIC_PREFIX", prefix)
    topics.create(broker, prefix, partitions=2)
    arguments = ["simulate", "heterogeneous", "--events", "800", "--to-kafka", "--json"]
    assert cli.main(arguments) == 0
    assert orjson.loads(capfd.readouterr().out)["events"] == 800
    values = set()
    with KafkaSource(bootstrap_servers=broker, topics=topics.names(prefix)) as source:
        source.start()
        ends = source.ends()
        while any(source.positions()[place] < end for place, end in ends.items()):
            decoded = decode(source.poll())
            text = decoded.data.tobytes()
            places = zip(decoded.event_at.tolist(), decoded.event_len.tolist(), strict=True)
            values |= {text[at : at + size].decode() for at, size in places}
    sent = [orjson.loads(event.value) for event in Heterogeneous().events(800)]
    assert values == {value["event_id"] for value in sent}
