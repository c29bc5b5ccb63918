"""Laws of the streaming estimators: right on average, honest in their intervals, cut anywhere."""

import json
from itertools import pairwise

import numpy as np
import orjson
import pytest

from stream.effects import AverageEffect, OffPolicy, PathRegression

SEEDS = 1_000
NONE = np.nan


def covered(intervals, truth):
    low, high = np.array(intervals).T
    return float(((low <= truth) & (truth <= high)).mean())


# -- the average effect of showing


def trial(rng, n, effect=0.1):
    """Return columns of a trial in which x drives both the outcome and who is shown."""
    x = rng.random(n)
    e = 0.2 + 0.6 * x
    shown = rng.random(n) < e
    mu0 = 0.1 + 0.5 * x
    outcome = (rng.random(n) < mu0 + effect * shown).astype(float)
    return shown, outcome, e, mu0 + effect, mu0


def average(*columns, least=100):
    estimate = AverageEffect(least=least)
    estimate.update(*columns)
    return estimate.figures()


@pytest.mark.parametrize("predictions", ["right", "wrong", "none"])
def test_the_interval_of_the_average_effect_covers_it(predictions):
    rng = np.random.default_rng(1)
    intervals, values = [], []
    for _ in range(SEEDS):
        shown, outcome, e, treated, control = trial(rng, 600)
        if predictions == "wrong":
            treated, control = 1 - treated, np.full(600, 0.9)
        if predictions == "none":
            treated, control = np.full(600, NONE), np.full(600, NONE)
        figures = average(shown, outcome, e, treated, control)
        intervals.append(figures["interval"])
        values.append(figures["value"])
    assert 0.92 <= covered(intervals, 0.1) <= 0.98
    assert np.mean(values) == pytest.approx(0.1, abs=4 * np.std(values) / SEEDS**0.5)


def test_shown_minus_withheld_is_wrong_where_the_weighted_value_is_right():
    shown, outcome, e, *_ = trial(np.random.default_rng(2), 20_000)
    none = np.full(20_000, NONE)
    assert outcome[shown].mean() - outcome[~shown].mean() > 0.2
    low, high = average(shown, outcome, e, none, none)["interval"]
    assert low < 0.1 < high < 0.15


def test_good_predictions_narrow_the_interval():
    rng = np.random.default_rng(3)
    n = 5_000
    mu = rng.normal(0, 2, n)
    shown = rng.random(n) < 0.5
    outcome = mu + 0.3 * shown + rng.normal(0, 0.5, n)
    none = np.full(n, NONE)
    width = [
        np.diff(average(shown, outcome, np.full(n, 0.5), *predicted)["interval"])[0]
        for predicted in ((mu + 0.3, mu), (none, none))
    ]
    assert width[0] < width[1] / 3


def test_a_placebo_treatment_has_no_effect():
    rng = np.random.default_rng(4)
    intervals = []
    for _ in range(SEEDS):
        _, outcome, _, treated, control = trial(rng, 600)
        label = rng.random(600) < 0.5
        intervals.append(average(label, outcome, np.full(600, 0.5), treated, control)["interval"])
    assert covered(intervals, 0.0) >= 0.93


def test_a_shuffled_outcome_has_no_effect():
    rng = np.random.default_rng(5)
    none = np.full(600, NONE)
    intervals = []
    for _ in range(SEEDS):
        shown, outcome, e, *_ = trial(rng, 600, effect=0.3)
        intervals.append(average(shown, rng.permutation(outcome), e, none, none)["interval"])
    assert covered(intervals, 0.0) >= 0.92


def test_a_random_subset_has_the_same_effect():
    rng = np.random.default_rng(6)
    columns = trial(rng, 20_000)
    whole = average(*columns)["value"]
    intervals = []
    for _ in range(200):
        subset = rng.random(20_000) < 0.1
        intervals.append(average(*(c[subset] for c in columns))["interval"])
    assert covered(intervals, whole) >= 0.92


def test_without_a_logged_probability_the_share_of_shown_is_taken_and_named():
    rng = np.random.default_rng(7)
    intervals = []
    for _ in range(SEEDS):
        n = 600
        x = rng.random(n)
        shown = rng.random(n) < 0.7
        outcome = x + 0.1 * shown + rng.normal(0, 0.2, n)
        figures = average(shown, outcome, np.ones(n), x + 0.3, x - 0.2)
        intervals.append(figures["interval"])
    assert 0.92 <= covered(intervals, 0.1) <= 0.98
    assert "share of shown" in figures["estimator"]
    assert "not logged" in figures["assumption"]


def test_without_predictions_the_share_of_shown_gives_the_difference_of_means():
    rng = np.random.default_rng(8)
    shown, y = rng.random(5_000) < 0.6, rng.normal(size=5_000)
    none = np.full(5_000, NONE)
    expected = y[shown].mean() - y[~shown].mean()
    found = average(shown, y, np.ones(5_000), none, none)["value"]
    assert found == pytest.approx(expected, abs=2e-3)  # the means so far stand in for predictions


def test_only_randomised_windows_count():
    shown, outcome, e, treated, control = trial(np.random.default_rng(9), 500)
    certain = np.r_[e, np.ones(500)]
    more = [np.r_[c, c] for c in (treated, control)]
    all_shown, all_clicked = np.r_[shown, np.ones(500, bool)], np.r_[outcome, np.ones(500)]
    figures = average(all_shown, all_clicked, certain, *more)
    assert figures == average(shown, outcome, e, treated, control)
    assert figures["estimator"] == "AIPW"


def test_without_a_withheld_window_there_is_no_effect():
    ones = np.ones(10)
    for e in (ones, ones / 2):
        figures = average(ones > 0, ones, e, ones, ones)
        assert (figures["value"], figures["interval"]) == (None, None)
        assert (figures["shown"], figures["withheld"]) == (10, 0)
    assert AverageEffect().figures()["value"] is None


def test_windows_without_an_outcome_are_left_out():
    columns = trial(np.random.default_rng(10), 400)
    missing = columns[1].copy()
    missing[::3] = NONE
    keep = np.isfinite(missing)
    figures = average(columns[0], missing, *columns[2:])
    assert figures == average(*(c[keep] for c in columns))
    assert figures["shown"] + figures["withheld"] == keep.sum()


# -- the paths' coefficients

BETA = np.array([3.0, -0.5, 0.8, 0.2])


def paths(rng, n, noise):
    z = np.c_[np.ones(n), rng.normal(size=(n, 3))]
    scale = np.exp(0.7 * z[:, 1]) if noise == "heteroscedastic" else 1.0
    return z, z @ BETA + scale * rng.normal(size=n)


@pytest.mark.parametrize("noise", ["even", "heteroscedastic"])
def test_the_intervals_of_planted_coefficients_cover_them(noise):
    rng = np.random.default_rng(20)
    hits = np.zeros(4)
    for _ in range(SEEDS):
        regression = PathRegression("abcd")
        regression.update(*paths(rng, 600, noise))
        beta, covariance = regression.fit()
        hits += abs(beta - BETA) < 1.96 * np.sqrt(np.diag(covariance))
    assert ((0.92 <= hits / SEEDS) & (hits / SEEDS <= 0.98)).all(), hits / SEEDS


def test_a_variance_that_assumes_even_noise_would_not_cover():
    rng = np.random.default_rng(20)
    hits = 0
    for _ in range(SEEDS):
        z, y = paths(rng, 600, "heteroscedastic")
        inverse = np.linalg.inv(z.T @ z)
        beta = inverse @ z.T @ y
        error = ((y - z @ beta) ** 2).sum() / (600 - 4)
        hits += abs(beta[1] - BETA[1]) < 1.96 * np.sqrt(error * inverse[1, 1])
    assert hits / SEEDS < 0.9


def test_the_coefficients_are_those_of_least_squares():
    z, y = paths(np.random.default_rng(21), 200, "even")
    regression = PathRegression("abcd")
    regression.update(z, y)
    beta, covariance = regression.fit()
    expected = np.linalg.lstsq(z, y, rcond=None)[0]
    np.testing.assert_allclose(beta, expected, atol=1e-6)
    inverse = np.linalg.inv(z.T @ z)
    residual = y - z @ expected
    sandwich = (
        inverse @ (z.T * residual**2) @ z @ inverse * 200 / 196
    )  # HC1, of the final residuals
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), np.sqrt(np.diag(sandwich)), rtol=0.15)


def test_the_squared_residuals_add_up_to_those_of_the_final_fit():
    z, y = paths(np.random.default_rng(22), 50, "even")
    regression = PathRegression("abcd")
    regression.update(z, y)
    residual = y - z @ np.linalg.lstsq(z, y, rcond=None)[0]
    assert regression.state()["sums"][3] == pytest.approx(residual @ residual, rel=1e-10)


def test_weights_decay_as_in_weighted_least_squares():
    z, y = paths(np.random.default_rng(23), 300, "even")
    regression = PathRegression("abcd", decay=0.98, ridge=1e-12)
    regression.update(z, y)
    root = np.sqrt(0.98 ** np.arange(299, -1, -1))
    expected = np.linalg.lstsq(z * root[:, None], y * root, rcond=None)[0]
    np.testing.assert_allclose(regression.fit()[0], expected, atol=1e-9)


def test_what_no_event_tells_is_wide_and_what_events_tell_is_not():
    rng = np.random.default_rng(24)
    half = rng.random(500) < 0.5
    z = np.c_[np.ones(500), half, ~half, np.zeros(500)]  # the second and third add up to the first
    regression = PathRegression(["one", "half", "other", "never"])
    regression.update(z, 2.0 * half + rng.normal(size=500))
    beta, covariance = regression.fit()
    assert (np.sqrt(np.diag(covariance)) > 100).all()
    for told, truth in (([1, 1, 0, 0], 2.0), ([1, 0, 1, 0], 0.0)):
        error = np.sqrt(told @ covariance @ told)
        assert error == pytest.approx(1 / 250**0.5, rel=0.15)
        assert abs(told @ beta - truth) < 4 * error


def test_a_long_stream_loses_no_digits():
    rng = np.random.default_rng(25)
    regression = PathRegression("ab")
    x = 1_000 + rng.normal(size=400_000)
    for part in np.split(x, 8):
        regression.update(np.c_[np.ones(len(part)), part], 5 + 0.25 * part)
    np.testing.assert_allclose(regression.fit()[0], [5, 0.25], atol=1e-4)


def test_rows_that_are_not_finite_are_left_out_and_counted():
    z, y = paths(np.random.default_rng(26), 100, "even")
    clean, dirty = PathRegression("abcd"), PathRegression("abcd")
    clean.update(z, y)
    dirty.update(np.insert(z, 50, NONE, 0), np.insert(y, 50, 1.0))
    assert dirty.figures() == clean.figures() | {"left_out": 1}


def test_there_is_no_covariance_before_there_are_more_events_than_features():
    z, y = paths(np.random.default_rng(27), 5, "even")
    regression = PathRegression("abcd")
    assert regression.figures()["covariance"] is None
    regression.update(z[:4], y[:4])
    assert regression.figures()["covariance"] is None
    regression.update(z[4:], y[4:])
    assert regression.figures()["covariance"] is not None


def test_wrong_shapes_and_sizes_are_refused():
    with pytest.raises(ValueError, match="16"):
        PathRegression([str(n) for n in range(17)])
    with pytest.raises(ValueError, match="decay"):
        PathRegression("a", decay=0.0)
    with pytest.raises(ValueError, match="features"):
        PathRegression("ab").update(np.ones((3, 3)), np.ones(3))
    for update in (
        lambda: PathRegression("ab").update(np.ones((3, 2)), np.ones(2)),
        lambda: AverageEffect().update([True], [1.0, 0.0], [0.5, 0.5], [0.0, 0.0], [0.0, 0.0]),
        lambda: OffPolicy().update([1.0], [0.5], [0.5], [0.0], []),
    ):
        with pytest.raises(ValueError, match="lengths"):
            update()


# -- another policy's value


def logged(rng, n, exponent=1.0):
    """Return columns of a log, and the judged policy's true value."""
    actions = 5
    mean = np.linspace(0.1, 0.7, actions)
    log = np.array([4.0, 3, 2, 1, 1]) ** exponent
    log /= log.sum()
    judged = np.array([0.05, 0.05, 0.1, 0.3, 0.5])
    action = rng.choice(actions, n, p=log)
    reward = (rng.random(n) < mean[action]).astype(float)
    model = mean + 0.1  # wrong by a constant
    value = np.full(n, judged @ model)
    return (reward, log[action], judged[action], model[action], value), float(judged @ mean)


@pytest.mark.parametrize("estimator", ["ips", "snips", "dr"])
def test_the_interval_of_a_policys_value_covers_it(estimator):
    rng = np.random.default_rng(30)
    intervals, values = [], []
    for _ in range(SEEDS):
        columns, truth = logged(rng, 600)
        judge = OffPolicy()
        judge.update(*columns)
        figures = judge.figures()[estimator]
        intervals.append(figures["interval"])
        values.append(figures["value"])
    assert 0.92 <= covered(intervals, truth) <= 0.98
    # SNIPS is biased in the order of 1 / n
    assert np.mean(values) == pytest.approx(truth, abs=4 * np.std(values) / SEEDS**0.5 + 1 / 600)


def test_each_value_names_its_estimator_and_sample_size():
    columns, _ = logged(np.random.default_rng(31), 1_000)
    judge = OffPolicy()
    judge.update(*columns)
    figures = judge.figures()
    assert [figures[k]["estimator"] for k in ("ips", "snips", "dr")] == ["IPS", "SNIPS", "DR"]
    w = columns[2] / columns[1]
    assert figures["dr"]["ess"] == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-9)
    assert figures["snips"]["value"] == pytest.approx((w * columns[0]).sum() / w.sum(), rel=1e-9)
    json.dumps(figures)


def test_the_policy_of_the_log_has_its_mean_reward_and_full_sample_size():
    (reward, propensity, *_), _ = logged(np.random.default_rng(32), 500)
    judge = OffPolicy()
    judge.update(reward, propensity, propensity, np.full(500, NONE), np.full(500, NONE))
    figures = judge.figures()
    for name in ("ips", "snips", "dr"):
        assert figures[name]["value"] == pytest.approx(reward.mean())
    assert figures["ips"]["ess"] == pytest.approx(500)
    assert not figures["alarm"]


def test_the_alarm_sounds_when_the_sample_size_collapses():
    rng = np.random.default_rng(33)
    n = 5_000
    hit = rng.random(n) < 0.002
    judge = OffPolicy(clip=np.inf)
    judge.update(rng.random(n), np.where(hit, 0.002, 0.998), hit, np.zeros(n), np.zeros(n))
    assert judge.figures()["alarm"]
    assert judge.ess < 50


def test_weights_are_clipped_and_counted():
    judge = OffPolicy(clip=10, least=1)
    judge.update([1.0, 1.0], [0.01, 0.5], [1.0, 0.5], [0.0, 0.0], [0.0, 0.0])
    figures = judge.figures()
    assert figures["clipped"] == 1
    assert figures["ips"]["value"] == pytest.approx((10 + 1) / 2)


def test_events_without_a_reward_or_a_probability_are_left_out():
    judge = OffPolicy()
    judge.update(
        [1.0, NONE, 1.0, 1.0], [0.5, 0.5, NONE, 0.0], [0.5] * 4, [0.0] * 4, [0.0] * 4
    )  # fmt: skip
    figures = judge.figures()
    assert (figures["n"], figures["left_out"]) == (1, 3)


def test_without_events_every_value_is_unknown():
    figures = OffPolicy().figures()
    assert [figures[k]["value"] for k in ("ips", "snips", "dr")] == [None] * 3
    assert not figures["alarm"]


# -- what holds of all three


def whose(rng, n):
    """Return the users' rows of n windows; -1: not known."""
    return rng.integers(-1, 40, n).astype(np.int32)


def some(seed=40, n=257):
    """Return (make, columns) of each estimator."""
    rng = np.random.default_rng(seed)
    return {
        "average": (AverageEffect, trial(rng, n)),
        "average-users": (lambda: AverageEffect(40), (*trial(rng, n), whose(rng, n))),
        "regression": (lambda: PathRegression("abcd"), paths(rng, n, "even")),
        "regression-decayed": (lambda: PathRegression("abcd", 0.99), paths(rng, n, "even")),
        "off-policy": (OffPolicy, logged(rng, n)[0]),
        "off-policy-users": (lambda: OffPolicy(users=40), (*logged(rng, n)[0], whose(rng, n))),
    }


@pytest.mark.parametrize("name", some())
def test_the_bits_do_not_depend_on_cuts_nor_on_restarts(name):
    make, columns = some()[name]
    whole, cut = make(), make()
    whole.update(*columns)
    edges = [0, 1, 1, 50, 199, 257]
    for begin, end in pairwise(edges):
        cut.update(*(c[begin:end] for c in columns))
        restored = make()
        restored.load(cut.state())
        cut = restored
    left, right = whole.state(), cut.state()
    assert left.keys() == right.keys()
    for key in left:
        assert left[key].tobytes() == right[key].tobytes(), key
    assert whole.figures() == cut.figures()
    json.dumps(whole.figures())


@pytest.mark.parametrize("name", some())
def test_a_state_is_a_copy(name):
    make, columns = some()[name]
    held = make()
    state = held.state()
    held.update(*columns)
    assert not any(part.any() for part in state.values())


def test_figures_are_plain_json_from_the_first_window_on():
    effect = AverageEffect(users=4)
    policy = OffPolicy(users=4)
    for shown, outcome, user in ((1, 0, 0), (0, 0, 0), (1, 1, 1), (0, 1, 2), (1, 1, 2)):
        orjson.dumps([effect.figures(), policy.figures()])
        row = np.array([user], np.int32)
        effect.update([shown], [outcome], [0.5], [np.nan], [np.nan], row)
        policy.update([outcome], [0.5], [1.0], [np.nan], [np.nan], row)
    said = orjson.loads(orjson.dumps([effect.figures(), policy.figures()]))
    assert said[0]["users"] is not None
