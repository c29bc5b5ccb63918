"""What a changed number does to an item's outcome: right within items, honest in its interval."""

import json
from itertools import pairwise

import numpy as np
import pytest

from stream.effects import Slopes, Waiting
from stream.effects.slopes import OPENS
from stream.effects.waiting import WAITS

SEEDS = 1_000
ITEMS, NUMBERS, BETA = 40, 2, -0.1
NONE = np.nan


def market(seed, n, logit=False, beta=BETA, shared=0.0):
    """Return item, label, user and numbers of n outcomes; dear items are good, users random.

    `shared`: how much dearer an item is for each unit of what the user is above the mean.
    """
    rng = np.random.default_rng(seed)
    quality = rng.normal(0, 0.8, ITEMS)
    item = rng.integers(ITEMS, size=n).astype(np.int32)
    drawn = rng.uniform(-2, 2, (n // 100 + 1, ITEMS))  # a new price every hundred outcomes
    user = rng.normal(0, 0.3, n)
    x = np.full((n, NUMBERS), NONE, np.float32)
    x[:, 0] = (10 + 5 * quality + drawn)[np.arange(n) // 100, item] + shared * user
    mean = quality[item] + user + beta * (x[:, 0] - 10)
    if logit:
        label = (rng.random(n) < 1 / (1 + np.exp(-mean))).astype(float)
    else:
        label = mean + rng.uniform(-0.5, 0.5, n)
    return item, label, user.astype(np.float32), x


def fitted(columns, logit=False):
    slopes = Slopes(logit, ITEMS, NUMBERS)
    slopes.update(*columns)
    return slopes.figures(("price", "weight"))


@pytest.mark.parametrize("logit", [False, True], ids=["rating", "click"])
def test_the_interval_of_a_planted_slope_covers_it(logit):
    n = 1_500
    found = [fitted(market(seed, n, logit), logit) for seed in range(SEEDS)]
    low, high = np.array([each["interval"][0] for each in found]).T
    assert 0.92 <= ((low <= BETA) & (high >= BETA)).mean() <= 0.98
    values = np.array([each["beta"][0] for each in found])
    assert values.mean() == pytest.approx(BETA, rel=0.05)
    assert found[0]["names"] == ["price"]  # no item has a weight


@pytest.mark.parametrize("logit", [False, True], ids=["rating", "click"])
def test_a_placebo_price_has_no_slope(logit):
    low, high = np.array(
        [fitted(market(s, 1_500, logit, beta=0.0), logit)["interval"][0] for s in range(SEEDS)]
    ).T
    assert ((low <= 0) & (high >= 0)).mean() >= 0.93


def test_between_items_the_slope_has_the_wrong_sign_and_within_them_the_right_one():
    item, label, user, x = market(1, 20_000)
    assert np.polyfit(x[:, 0], label, 1)[0] > 0.03
    found = fitted((item, label, user, x))
    assert found["beta"][0] == pytest.approx(BETA, rel=0.05)
    low, high = found["interval"][0]
    assert low < BETA < high


def test_who_comes_at_which_price_is_taken_out():
    """Generous users pay more: without them in the regression the price looks harmless."""
    item, label, user, x = market(2, 20_000, shared=3.0)
    assert fitted((item, label, user, x))["beta"][0] == pytest.approx(BETA, rel=0.05)
    assert fitted((item, label, 0 * user, x))["beta"][0] > BETA / 2


def test_it_is_the_within_estimator():
    """Few outcomes an item, so that nothing is forgotten; two numbers, one user effect."""
    rng = np.random.default_rng(3)
    n = 4_000
    item = rng.integers(ITEMS, size=n).astype(np.int32)
    x = (rng.normal(0, 1, (n, NUMBERS)) + item[:, None] / 10).astype(np.float32)
    user = rng.normal(0, 1, n).astype(np.float32)
    label = item / 5 + x @ [0.3, -0.2] + 0.5 * user + rng.normal(0, 1, n)
    columns = np.column_stack([user, x, label]).astype(float)
    for row in range(ITEMS):
        columns[item == row] -= columns[item == row].mean(0)
    wanted, *_ = np.linalg.lstsq(columns[:, :3], columns[:, 3], rcond=None)
    found = fitted((item, label, user, x))
    assert found["beta"] == pytest.approx(wanted[1:], abs=1e-4)
    assert found["names"] == ["price", "weight"]
    assert found["open"] and found["outcomes"] > OPENS


def test_numbers_that_never_change_tell_nothing():
    item, label, user, x = market(4, 2_000)
    x[:, 0] = item
    assert fitted((item, label, user, x)) is None
    assert fitted(market(4, 300))["open"] is False


def test_an_item_that_has_other_numbers_than_before_begins_anew():
    """The same outcomes with a weight in between: nothing is compared across the change."""
    one = np.zeros(1, np.int32)
    rows = [(4.0, 10.0, NONE), (3.0, 11.0, NONE), (1.0, 11.0, 5.0), (5.0, 12.0, 5.0)]
    slopes = Slopes(False, ITEMS, NUMBERS)
    for label, price, weight in rows:
        slopes.update(one, [label], [0.0], np.array([[price, weight]], np.float32))
    held = slopes.state()["held"][0]
    assert held.tolist() == pytest.approx([2, 3, 0, 11.5, 5])
    slopes.discard(0)
    assert not slopes.state()["held"][0].any()


def test_the_bits_do_not_depend_on_cuts_nor_on_restarts():
    columns = market(5, 400)
    whole, cut = Slopes(False, ITEMS, NUMBERS), Slopes(False, ITEMS, NUMBERS)
    whole.update(*columns)
    for begin, end in pairwise([0, 1, 1, 77, 399, 400]):
        cut.update(*(column[begin:end] for column in columns))
        restored = Slopes(False, ITEMS, NUMBERS)
        restored.load(cut.state())
        cut = restored
    left, right = whole.state(), cut.state()
    assert left.keys() == right.keys()
    assert [k for k in left if left[k].tobytes() != right[k].tobytes()] == []
    assert whole.figures(("price",)) == cut.figures(("price",))
    json.dumps(whole.figures(("price",)))


# -- what waits for its numbers


def outcomes(item, ts_ms):
    """Return the columns of outcomes; the label is their place."""
    n = len(item)
    return {
        "item": np.array(item, np.int32),
        "outcome": np.zeros(n, np.int8),
        "label": np.arange(n, dtype=np.float32),
        "user": np.zeros(n, np.float32),
        "ts_ms": np.array(ts_ms, np.int64),
        "who": np.arange(n, dtype=np.int32),
    }


def test_outcomes_have_the_numbers_of_their_time():
    """Against a list of (until, number) for each item, looked through from its beginning."""
    rng = np.random.default_rng(7)
    waiting, told, now = Waiting(5, 1), {item: [] for item in range(5)}, np.zeros((5, 1), "f4")
    for n in range(300):
        item, until = int(rng.integers(4)), 10 * n + int(rng.integers(10))  # item 4 never changes
        waiting.supersede(item, until, now[item])
        told[item].append((until, float(now[item, 0])))
        now[item] = n + 1
    item, ts_ms = rng.integers(0, 5, 2_000), rng.integers(-10, 3_100, 2_000)
    due = outcomes(item, ts_ms)
    found = waiting.as_of(due, now[item].copy())[:, 0]
    for i, ts, x in zip(item.tolist(), ts_ms.tolist(), found.tolist(), strict=True):
        assert x == next((v for until, v in told[i] if until > ts), now[i, 0])


def test_a_number_whose_beginning_is_forgotten_is_unknown():
    waiting, now = Waiting(2, 1, changes=3), np.array([[9.0]], np.float32)
    for n in range(5):
        waiting.supersede(0, 10 * (n + 1), np.array([n], np.float32))
    zero = np.zeros(1, np.int32)
    asked = {ts: waiting.as_of(outcomes(zero, [ts]), now.copy())[0, 0] for ts in (55, 45, 35, 25)}
    assert (asked[55], asked[45], asked[35]) == (9.0, 4.0, 3.0)
    assert np.isnan(asked[25])
    waiting.discard(0)
    assert waiting.as_of(outcomes(zero, [25]), now.copy())[0, 0] == 9.0


def test_an_outcome_is_due_when_enough_have_come_and_at_the_end():
    waiting, given = Waiting(2, 1), []
    for begin in range(0, WAITS + 200, 100):
        columns = outcomes(np.zeros(100, int), np.arange(begin, begin + 100))
        given += waiting.add(columns)["ts_ms"].tolist()
    total = begin + 100
    assert given == list(range(total - WAITS))
    restored = Waiting(2, 1)
    restored.load(waiting.state())
    assert restored.all()["ts_ms"].tolist() == list(range(total - WAITS, total))
    assert not len(restored.all()["item"])
