"""Published intervals hold the truth where users return, differ, and see correlated slates.

The whole grid: python -m tests.benchmarks.coverage.
"""

import numpy as np
import pytest

from stream.effects import AverageEffect, OffPolicy, PathRegression, Slopes
from stream.effects.average import LEAST
from stream.effects.clusters import USERS, quantile
from stream.engine import Engine
from tests.benchmarks.coverage import averages, cell, market, paths, policies, shown, slopes
from tests.planted import MODEL, Planted
from tests.test_causal_service import effect, ranked, serve  # noqa: F401
from tests.test_engine import CONFIG, JOIN, batches, clock, event, impression

# windows, windows a user, k, share withheld, chance of a click if withheld
CELLS = [
    (1_100, 1, 1, 0.5, 0.02),
    (5_000, 100, 20, 0.5, 0.1),
    (5_000, 10, 5, 0.5, 0.02),
    (20_000, 100, 5, 0.05, 0.1),
    (110_000, 10, 10, 0.005, 0.02),
]


@pytest.mark.parametrize("where", CELLS, ids=str)
def test_an_average_effects_interval_holds_it_whoever_returns(where):
    seeds = 120 if where[0] > 100_000 else 600
    share, told = cell(averages, seeds, *where)["effect"]
    assert told > 0.7 * seeds
    # 600 seeds: two standard errors of a share are .018
    assert 0.93 - 0.44 / seeds**0.5 <= share <= 0.98 + 0.2 / seeds**0.5


def test_windows_taken_as_independent_would_not_cover():
    """The same streams, without whose windows they are."""
    held = []
    for seed in range(200):
        *columns, _ = shown(np.random.default_rng(seed), 20_000, 100, 5, 0.5, 0.1)
        figures = AverageEffect()
        figures.update(*columns)
        low, high = figures.figures()["interval"]
        held.append(low <= 0.05 <= high)
    assert np.mean(held) < 0.88


def test_before_500_controls_there_is_no_interval_and_the_reason_says_so():
    """At the documented withholding .995 is shown: here 5 controls in 1,000 windows."""
    effect = AverageEffect(2_000)
    columns = [np.arange(200_000) % 200 > 0, np.zeros(200_000), np.full(200_000, 0.995)]
    columns[1][::7] = 1.0
    none, user = np.full(200_000, np.nan), (np.arange(200_000) // 200).astype(np.int32)
    columns += [none, none, user]
    effect.update(*(c[:1_000] for c in columns))
    figures = effect.figures()
    assert (figures["interval"], figures["reason"]) == (None, "5 controls observed, 500 needed")
    assert figures["value"] is not None
    effect.update(*(c[1_000:99_801] for c in columns))
    figures = effect.figures()
    assert (figures["withheld"], figures["reason"]) == (LEAST, None)
    assert figures["interval"][0] < figures["value"] < figures["interval"][1]


def test_few_users_say_nothing_of_all_users():
    columns = shown(np.random.default_rng(1), 4_000, 400, 5, 0.5, 0.1)  # 10 users of 400
    effect = AverageEffect(10)
    effect.update(*columns)
    figures = effect.figures()
    assert figures["interval"] is None
    assert figures["reason"] == f"the outcomes are worth 10 users of equal size, {USERS} needed"


@pytest.mark.parametrize("chance", [1e-45, 1e-6, 1 - 1e-6])
def test_one_window_that_was_all_but_certain_does_not_outweigh_all(chance):
    *columns, user = shown(np.random.default_rng(1), 4_000, 10, 5, 0.5, 0.1)
    effect = AverageEffect(400)
    effect.update(*columns, user)
    before = effect.figures()
    none = np.full(1, np.nan)
    for arm in (True, False):
        effect.update([arm], [1.0], [np.float32(chance)], none, none, np.zeros(1, np.int32))
    assert effect.figures() == before
    assert before["interval"] is not None


def test_where_no_control_clicked_the_interval_still_reaches_far_enough():
    """500 controls without a click: their chance may be .0075 (the rule of three: .006)."""
    n = 100_000
    arm = np.arange(n) % 200 > 0
    click = (arm & (np.arange(n) % 333 == 1)).astype(float)
    effect = AverageEffect()
    effect.update(arm, click, np.full(n, 0.995), *np.full((2, n), np.nan))
    low, high = effect.figures()["interval"]
    assert -0.012 < low - click[arm].mean() < -0.006
    assert click[arm].mean() < high < 0.008


def test_an_outcome_that_never_varies_has_no_interval():
    n = 2_000
    effect = AverageEffect()
    effect.update(np.arange(n) % 2 > 0, np.ones(n), np.full(n, 0.5), *np.full((2, n), np.nan))
    figures = effect.figures()
    assert (figures["interval"], figures["reason"]) == (None, "every outcome was the same")


def test_what_was_shown_before_anything_was_withheld_is_not_compared():
    """No probability is logged; the stream begins to withhold after 1,000 windows of clicks."""
    rng = np.random.default_rng(8)
    arm = np.r_[np.ones(1_000, bool), False, rng.random(2_000) < 0.5]
    click = np.r_[np.ones(1_000), 0.0, rng.random(2_000) < 0.2]
    columns = click, np.ones(3_001), *np.full((2, 3_001), np.nan)
    effect, later = AverageEffect(waits=True), AverageEffect()
    effect.update(arm, *columns)
    later.update(arm[1_000:], *(c[1_000:] for c in columns))
    for name in ("value", "interval", "withheld"):
        assert effect.figures()[name] == later.figures()[name]


def test_students_quantiles():
    for freedom, wanted in ((4, 2.776), (9, 2.262), (19, 2.093), (60, 2.000), (1e9, 1.960)):
        assert quantile(freedom) == pytest.approx(wanted, abs=0.008)


def test_sums_of_before_users_were_told_apart_go_on():
    """As the state was: psi's mean and spread; each window counts as a user of its own."""
    rng = np.random.default_rng(2)
    n = 4_000
    arm, y = rng.random(n) < 0.5, rng.normal(size=n) > 0.8
    means = np.array([y[~arm].mean(), y[arm].mean()])
    psi = np.where(arm, 2 * (y - means[1]), -2 * (y - means[0])) + means[1] - means[0]
    old = {
        "arms": np.stack([[(~arm).sum(), arm.sum()], means], 1).astype(float),
        "counts": np.array([[(~arm).sum(), arm.sum()], [0, 0]]),
        "logged.weight": np.array([n, n], float),
        "logged.mean": psi.mean(keepdims=True),
        "logged.spread": np.array([[((psi - psi.mean()) ** 2).sum()]]),
        "share.weight": np.zeros(2),
        "share.mean": np.zeros(4),
        "share.spread": np.zeros((4, 4)),
    }
    effect = AverageEffect(100)
    effect.load(old)
    figures = effect.figures()
    assert figures["value"] == pytest.approx(psi.mean())
    half = 1.96 * psi.std() / n**0.5
    assert np.diff(figures["interval"])[0] == pytest.approx(2 * half, rel=0.02)
    assert (figures["shown"], figures["withheld"]) == (arm.sum(), (~arm).sum())
    before = shown(rng, n, 40, 1, 0.5, 0.1)
    effect.update(*before)
    assert effect.figures()["withheld"] > figures["withheld"] + 1_900
    again = AverageEffect(100)
    again.load(effect.state())
    assert again.figures() == effect.figures()


# -- another policy's value


@pytest.mark.parametrize(
    "where", [(5_000, 100, 20, 0.5, 0.1), (20_000, 100, 20, 0.05, 0.02)], ids=str
)
def test_a_policys_intervals_hold_its_value_though_slates_click_together(where):
    for name, (share, told) in cell(policies, 400, *where).items():
        assert told > 300, name
        assert 0.91 <= share <= 0.985, name


def test_below_a_least_effective_sample_size_a_policy_has_no_value():
    judge = OffPolicy(users=100)
    user = np.arange(80, dtype=np.int32)
    columns = [np.arange(80) % 2.0, np.full(80, 0.5), np.ones(80), *np.zeros((2, 80))]
    judge.update(*columns, user)
    figures = judge.figures()
    assert [figures[k]["value"] for k in ("ips", "snips", "dr")] == [None] * 3
    assert figures["reason"] == "an effective sample size of 80 events, 100 needed"
    judge.update(*columns, user)
    figures = judge.figures()
    assert figures["reason"] is None
    assert figures["snips"]["value"] == pytest.approx(0.5)
    assert figures["snips"]["interval"] is not None


def test_rewards_that_never_vary_give_no_interval_but_the_reason():
    judge = OffPolicy()
    judge.update(np.zeros(500), np.full(500, 0.5), np.arange(500) % 2, *np.zeros((2, 500)))
    figures = judge.figures()
    assert [figures[k]["interval"] for k in ("ips", "snips", "dr")] == [None] * 3
    assert figures["reason"] == "every reward was the same"


def test_a_policys_sums_of_before_users_were_told_apart_go_on():
    rng = np.random.default_rng(3)
    w, r = rng.choice([0.0, 2.0], 1_000), rng.random(1_000)
    x = np.stack([w, w * r, w * r + 0.5 * (1 - w)], 1)
    off = x - x.mean(0)
    judge = OffPolicy(users=100)
    judge.load(
        {
            "counts": np.array([1_000, 0, 0]),
            "weight": np.full(2, 1_000.0),
            "mean": x.mean(0),
            "spread": off.T @ off,
        }
    )
    figures, plain = judge.figures(), x.std(0) / 1_000**0.5
    assert figures["ips"]["value"] == pytest.approx(x[:, 1].mean())
    assert np.diff(figures["ips"]["interval"])[0] == pytest.approx(3.92 * plain[1], rel=0.02)
    assert figures["ips"]["ess"] == pytest.approx(w.sum() ** 2 / (w**2).sum())


# -- slopes and paths


@pytest.mark.parametrize("make", [slopes, paths])
@pytest.mark.parametrize("where", [(6_000, 100), (5_000, 10), (5_000, 1)], ids=str)
def test_coefficients_hold_theirs_though_users_and_items_differ(make, where):
    ((share, told),) = cell(make, 400, *where).values()
    assert told == 400
    assert 0.91 <= share <= 0.985


def test_a_slope_of_outcomes_taken_as_independent_would_not_cover():
    held = []
    for seed in range(200):
        item, label, bias, price, _ = market(np.random.default_rng(seed), 5_000, 100)
        fit = PathRegression(("user", "price"))
        fit.update(np.column_stack([bias, price]), label - np.bincount(item, label)[item] / 125)
        beta, covariance = fit.fit()
        held.append(abs(beta[1] + 0.1) < 1.96 * covariance[1, 1] ** 0.5)
    assert np.mean(held) < 0.8


def test_a_slope_of_few_users_or_items_says_why_it_has_no_interval():
    item, label, bias, price, user = market(np.random.default_rng(5), 3_000, 300)
    few = Slopes(False, 40, 1, 10)
    few.update(item, label, bias, price, user)
    said = few.figures(("price",))
    assert (said["open"], said["interval"]) == (False, None)
    assert said["reason"] == f"the outcomes are worth 10 users of equal size, {USERS} needed"
    alone = Slopes(False, 40, 1)
    alone.update(item % 4, label, bias, price)
    assert "worth 4 items of equal size, 8 needed" in alone.figures(("price",))["reason"]


def test_slopes_and_paths_of_before_users_were_told_apart_go_on():
    columns = market(np.random.default_rng(6), 3_000, 100)
    fit = Slopes(False, 40, 1, 30)
    fit.update(*columns[:4])  # without whose they are: -1
    state = {k: v for k, v in fit.state().items() if ".user." not in k and ".item." not in k}
    again = Slopes(False, 40, 1, 30)
    again.load(state)
    said = again.figures(("price",))
    assert said["beta"] == fit.figures(("price",))["beta"]
    assert (said["open"], said["reason"]) == (True, None)
    again.update(*columns)
    other = Slopes(False, 40, 1, 30)
    other.load(again.state())
    assert other.figures(("price",)) == again.figures(("price",))


# -- whole


def test_the_model_says_how_many_controls_are_missing_and_whose_windows_count():
    engine = Engine(CONFIG, window=10_000, join=JOIN)
    r = np.random.default_rng(4)

    def windows(begin, count):
        events = []
        for n in range(begin, begin + count):
            arm = bool(r.random() < 0.5)
            user, item = str(n % 40), str(n % 30)
            events.append(impression(n, f"s{n}", user, item, shown=arm, show_probability=0.5))
            if r.random() < 0.3:
                ids = {"user_id": user, "item_id": item, "impression_id": f"s{n}"}
                events.append(event("click", n + 0.5, **ids))
        return events

    engine.learn(batches(windows(0, 200)))
    told = engine.model()["effects"]["click"]
    assert told["interval"] is None
    assert told["reason"] == f"{told['withheld']} controls observed, 500 needed"
    engine.learn(batches([*windows(200, 1_400), *clock(1_700)]))
    told = engine.model()["effects"]["click"]
    assert told["withheld"] >= 500
    assert told["reason"] is None
    assert told["interval"][0] < told["value"] < told["interval"][1]
    assert told["users"] == pytest.approx(40, abs=1)
    other = Engine(CONFIG, window=10_000, join=JOIN)
    other.load(engine.state())
    assert other.model()["effects"] == engine.model()["effects"]
    assert other.model()["off_policy"] == engine.model()["off_policy"]


def test_a_missing_interval_of_the_average_has_its_reason_where_it_stands_in(serve):  # noqa: F811
    few = {"value": 0.07, "interval": None, "shown": 900, "withheld": 100}
    few["reason"] = "100 controls observed, 500 needed"
    planted = Planted(model={**MODEL, "effects": {"click": few, "rating": few}})
    planted.own_bias[1, -1] = 0.0  # item b has no control of its own
    http = serve(planted)
    said = effect(http, "b", "click", shown=True)
    assert (said.effect, said.interval, said.interval_kind) == (pytest.approx(0.07), None, None)
    assert said.support.reason.endswith("without an interval: 100 controls observed, 500 needed")
    listed = ranked(http, outcome="click", objective="effect")["b"]
    assert listed["interval"] is None
    assert listed["support"]["reason"] == said.support.reason
