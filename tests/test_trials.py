"""Trials and logs from files: wrong predictions widen nothing, rows of one user go together."""

import subprocess
import sys

import numpy as np
import orjson
import pytest

from consumers.evaluate import policy, uplift
from stream.effects import AverageEffect, OffPolicy
from stream.errors import Inconsistent
from stream.model.config import ModelConfig
from tests.test_evaluate import write

CONFIG = ModelConfig(factors=8, exposure_factors=4, session_factors=4, step="sequential")


def spend(seed, n):
    """Return treatment, spend (mostly 0, else up to 499) and a feature, as Hillstrom's trial."""
    r = np.random.default_rng(seed)
    t = (r.random(n) < 0.5).astype(int)
    old = r.choice(["new", "regular"], n)
    buys = r.random(n) < (0.006 + 0.006 * t) * np.where(old == "new", 0.5, 1.5)
    amount = np.minimum(29.99 + r.lognormal(3.8, 1.0, n), 499.0)
    return t, np.where(buys, amount, 0.0).round(2), old


def means(t, y):
    """Return the difference in means and half its 95 % interval."""
    arms = y[t == 1], y[t == 0]
    half = 1.96 * np.sqrt(sum(a.var() / len(a) for a in arms))
    return arms[0].mean() - arms[1].mean(), half


def test_a_spend_that_starts_at_the_middle_of_its_scale_keeps_its_interval(tmp_path):
    """The command, as its user runs it: the first 256 rows are predicted at about 249.5."""
    t, y, old = spend(1, 12_000)
    path = write(tmp_path / "spend.csv", {"t": t, "y": y, "customer": old})
    said = subprocess.run(
        [
            sys.executable, "-m", "consumers", "evaluate", "uplift", "--data", str(path),
            "--treatment", "t", "--outcome", "y", "--features", "customer", "--json",
        ],
        capture_output=True,
        check=True,
    )  # fmt: skip
    found = orjson.loads(said.stdout)
    value, half = means(t, y)
    for name in ("counterflow", "two_model"):
        low, high = found[name]["interval"]
        assert low < found[name]["ate"] < high
        assert (high - low) / 2 < 1.1 * half, name
        assert abs(found[name]["ate"] - value) < 0.3 * half, name
        assert found[name]["reason"] is None


def test_wrong_predictions_at_the_start_widen_no_average():
    """Directly, over seeds: no wider than the means' difference, and right as often as it says."""
    n, held = 20_000, []
    amount = np.minimum(29.99 + np.random.default_rng(0).lognormal(3.8, 1.0, 10**6), 499.0)
    start, chance = np.arange(n) < 256, np.full(n, 0.5)
    for seed in range(300):
        t, y, old = spend(seed, n)
        mu0 = np.where(start, 249.5, np.where(old == "new", 0.3, 0.9))
        effect = AverageEffect()
        effect.update(t == 1, y, chance, np.where(start, 249.5, 2 * mu0), mu0)
        low, high = effect.figures()["interval"]
        value, half = means(t, y)
        assert (high - low) / 2 < 1.1 * half
        assert low < value < high
        held.append(low <= 0.006 * amount.mean() <= high)
    assert 0.92 <= np.mean(held) <= 0.985


def test_wrong_predictions_widen_no_doubly_robust_value():
    r = np.random.default_rng(2)
    w, reward = r.choice([0.0, 2.0], 4_000), 100.0 * (r.random(4_000) < 0.05)
    columns = reward, np.full(4_000, 0.5), w / 2
    judge, plain = OffPolicy(), OffPolicy()
    judge.update(*columns, *np.where(np.arange(4_000) < 128, 50.0, 5.0) * np.ones((2, 1)))
    plain.update(*columns, *np.full((2, 4_000), np.nan))
    width = [np.diff(x.figures()["dr"]["interval"])[0] for x in (judge, plain)]
    assert width[0] < 1.02 * width[1]


def together(seed, users=150, each=40):
    """Return a log in which the rows of one user are rewarded alike, for both actions."""
    r = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), each)
    taste = np.where(r.random(users) < 0.5, 0.1, 0.7)[user]
    action = r.integers(0, 2, users * each)
    reward = (r.random(users * each) < taste).astype(int)
    return {
        "action": np.array(["a", "b"])[action], "reward": reward,
        "propensity": np.full(len(user), 0.5), "judged": np.where(action == 1, 0.9, 0.1),
        "user": [f"u{n}" for n in user],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["user", "slate"])
def test_a_logs_rows_of_one_user_or_slate_go_together(tmp_path, name):
    columns = together(3)
    told = {**columns, name: columns["user"]} if name == "user" else dict(columns)
    if name == "slate":
        told["slate"] = told.pop("user")
    alone = {k: v for k, v in columns.items() if k != "user"}
    found, wrong = (
        policy.run(write(tmp_path / f"{n}.csv", c), "judged", config=CONFIG)
        for n, c in (("told", told), ("alone", alone))
    )
    assert found["snips"]["value"] == pytest.approx(wrong["snips"]["value"])
    width = [np.diff(each["snips"]["interval"])[0] for each in (found, wrong)]
    assert width[0] > 2 * width[1]
    assert found["users"] == pytest.approx(150, rel=0.05)


def test_a_trials_rows_of_one_user_go_together(tmp_path):
    from consumers.evaluate import uplift

    r = np.random.default_rng(4)
    user = np.repeat(np.arange(60), 50)
    t = r.integers(0, 2, 3_000)
    lift = r.choice([-0.2, 0.5], 60)[user]
    y = (r.random(3_000) < 0.3 + lift * t).astype(int)
    path = write(tmp_path / "t.csv", {"t": t, "y": y, "x": r.random(3_000), "who": user})
    alone, told = (
        uplift.run(path, "t", "y", ["x"], None, who, config=CONFIG)["counterflow"]
        for who in (None, "who")
    )
    assert told["ate"] == pytest.approx(alone["ate"])
    assert np.diff(told["interval"])[0] > 1.3 * np.diff(alone["interval"])[0]


def test_a_number_beyond_all_bounds_is_named_by_its_line(tmp_path):
    r = np.random.default_rng(1)
    y = r.random(400).astype(object)
    y[100] = "1e300"
    columns = {"t": r.integers(0, 2, 400), "y": y, "x": r.random(400)}
    with pytest.raises(Inconsistent, match=r"line 102.*1e[+]30"):
        uplift.run(write(tmp_path / "t.csv", columns), "t", "y", ["x"], config=CONFIG)


def test_an_outcome_that_is_too_large_to_learn_is_named_with_the_remedy(tmp_path):
    r = np.random.default_rng(1)
    columns = {"t": r.integers(0, 2, 400), "y": 1e10 * r.random(400), "x": r.random(400)}
    with pytest.raises(Inconsistent, match=r"beyond 1e[+]09") as refused:
        uplift.run(write(tmp_path / "t.csv", columns), "t", "y", ["x"], config=CONFIG)
    assert "unit" in refused.value.remedy
