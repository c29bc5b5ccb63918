"""Users who come back: first decisions compare the arms, whatever the returns depend on."""

import numpy as np
import pytest

from stream.effects import AverageEffect
from stream.engine import Engine, JoinConfig
from stream.framing import frame
from stream.model.config import ModelConfig
from stream.records import RecordBatch
from tests.test_join import CONTROL, EXPOSED, PREDICT, Run, click, impression

WINDOW_S = 3_600
W = WINDOW_S * 1_000
T0 = 1_700_000_000_000
EFFECT = 0.1
ITEMS = 5
CONFIG = ModelConfig(
    factors=2, exposure_factors=1, session_factors=0, max_users=5_000, max_items=8,
    step="sequential",
)  # fmt: skip


class Returns:
    """Users who meet an item again and again: each decision has its own outcome.

    Users differ in how often they click. `back` (after a click, after none) are the chances of one
    more return, whose gap is up to a quarter of a window: most returns lie in the window, some
    beyond it. A sticky producer draws once for user, item and window of the clock.
    """

    def __init__(self, seed, pairs, show, back, sticky):
        r = np.random.default_rng(seed)
        self.impressions, self.clicks = [], []
        for pair in range(pairs):
            user, item = f"u{pair // ITEMS}", f"i{pair % ITEMS}"
            base = 0.05 if pair // ITEMS % 2 else 0.5
            at = T0 + int(r.integers(8 * W))
            drawn = {}
            number, clicked = 0, False
            while number == 0 or (number < 60 and r.random() < back[0 if clicked else 1]):
                window = at // W if sticky else number
                shown = drawn.setdefault(window, bool(r.random() < show))
                clicked = r.random() < base + EFFECT * shown
                self.meet(at, user, item, f"{pair}-{number}", shown, show, clicked)
                at += 5_000 + int(r.integers(W // 4))
                number += 1

    def meet(self, at, user, item, slate, shown, show, clicked):
        """Add an impression, and its click four seconds later."""
        name = f"{slate}-{item}"
        self.impressions.append((at, user, (
            f'{{"event_id":"i{name}","ts_ms":{at},"user_id":"{user}","item_id":"{item}",'
            f'"impression_id":"{slate}","position":1,"shown":{str(shown).lower()},'
            f'"show_probability":{show}}}')))  # fmt: skip
        if clicked:  # who was not shown the item knows nothing of the slate
            named = f',"impression_id":"{slate}"' if shown else ""
            self.clicks.append((at + 4_000, user, (
                f'{{"event_id":"c{name}","ts_ms":{at + 4_000},"user_id":"{user}",'
                f'"item_id":"{item}"{named}}}')))  # fmt: skip

    def batches(self, clicks_first):
        """Yield polls of half an hour each, their clicks before or after their impressions."""
        ends = [T0 + n * W // 2 for n in range(1, 200)]
        kinds = {"impression": sorted(self.impressions), "click": sorted(self.clicks)}
        begun = dict.fromkeys(kinds, 0)
        for end in ends:
            poll = []
            for kind, rows in kinds.items():
                start = begun[kind]
                stop = start
                while stop < len(rows) and rows[stop][0] < end:
                    stop += 1
                begun[kind] = stop
                if stop > start:
                    poll.append(batch(kind, start, rows[start:stop]))
            if poll:
                yield poll[::-1] if clicks_first else poll


def batch(kind, offset, rows):
    """Return the rows (time, key, value) as one record batch."""
    data = b"".join(
        frame(n, at - rows[0][0], user.encode(), value.encode())
        for n, (at, user, value) in enumerate(rows)
    )
    return RecordBatch(
        f"t.{kind}.v1", kind, 0, offset, offset, offset + len(rows), rows[0][0], rows[-1][0], False,
        len(rows), data,
    )  # fmt: skip


def learned(returns, clicks_first=False):
    """Return an engine that has learned it all."""
    room = JoinConfig(window_s=WINDOW_S, open_max=40_000, pending_max=20_000, closed_max=40_000)
    engine = Engine(CONFIG, join=room, window=100_000)
    engine.causal.effects["click"] = AverageEffect(CONFIG.max_users, least=50)
    for poll in returns.batches(clicks_first):
        engine.learn(poll)
    engine.close_windows()
    return engine


AFTER = {"whatever": (0.6, 0.6), "a click": (0.9, 0.2), "no click": (0.2, 0.8)}


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("sticky", [False, True], ids=["drawn each time", "sticky"])
@pytest.mark.parametrize(("show", "pairs"), [(0.5, 600), (0.95, 2_000)])
def test_the_effect_is_found_though_users_come_back(after, sticky, show, pairs):
    values, held, contradicted = [], 0, 0
    streams = 60
    for seed in range(streams):
        returns = Returns(100 + seed, pairs, show, AFTER[after], sticky)
        engine = learned(returns, clicks_first=seed % 2 == 0)
        told = engine.model()["effects"]["click"]
        values.append(told["value"])
        held += told["interval"][0] <= EFFECT <= told["interval"][1]
        contradicted += engine.joiner.contradicted
        assert pairs <= told["shown"] + told["withheld"] < len(returns.impressions)
    error = np.std(values) / streams**0.5
    assert abs(np.mean(values) - EFFECT) < 3 * error < 0.025
    assert held >= 53
    assert contradicted > 0


def firsts(run):
    """Return time, arm and whether it is a first decision of what has closed."""
    return [(row[8], row[2], row[9]) for row in run.shut]


def test_what_contradicts_is_counted_and_changes_no_arm():
    run = Run()
    run.poll(
        impression(2, 1, shown=False), impression(5, 2), impression(8, 3, shown=False),
        impression(13, 4), impression(21, 5), impression(33, 6, shown=False),
    )  # fmt: skip
    run.poll(click(50, user=5), click(61, user=5))
    assert firsts(run) == [
        (2, False, True), (5, True, False), (8, False, False),
        (13, True, True), (21, True, False), (33, False, True),
    ]  # fmt: skip
    assert run.joiner.contradicted == 1
    told = [row[7] for row in run.told if row[4] == CONTROL]
    assert told == [2, 33]  # at 8 the user had seen the item


def test_a_sticky_arm_is_drawn_anew_at_each_first_decision():
    run = Run()
    # 12 is more than a window behind no first decision; 19 is, but its arm was drawn for 12
    run.poll(impression(5, 1), impression(12, 2), impression(19, 3), impression(22, 4))
    run.poll(click(70, user=5))
    assert [first for _, _, first in firsts(run)] == [True, False, False, True]


def test_an_unnamed_click_joins_the_latest_exposure_though_that_comes_later():
    run = Run()
    # the click is polled before the impressions, then between them
    run.poll(click(6), impression(1, 1, shown=False), impression(5, 2, shown=False))
    run.poll(impression(1, 3, user=2, shown=False), click(6, user=2))
    run.poll(impression(5, 4, user=2, shown=False), click(50, user=5))
    assert [(row[0], row[8], row[3]) for row in run.shut] == [
        (0, 1, 0), (2, 1, 0), (0, 5, 1), (2, 5, 1),
    ]  # fmt: skip
    run.poll(impression(60, 5, user=3, shown=False), click(64, user=3))
    assert run.roles(impression(62, 6, user=3)) == [PREDICT, EXPOSED]


def test_one_that_comes_too_late_repeats_what_has_been_decided():
    run = Run()
    run.poll(impression(15, 1), click(50, user=5))
    run.poll(impression(12, 2, shown=False))
    assert firsts(run) == [(15, True, True), (12, False, False)]
    assert run.joiner.contradicted == 1


def test_a_snapshot_from_before_first_decisions_loads():
    run = Run()
    run.poll(impression(2, 1), click(13, user=5), impression(20, 2, shown=False))
    state = run.joiner.state()
    del state["closed.first_ms"], state["open.click_ms"]
    state["open.marks"] |= 16  # as it was marked then
    run.joiner.load(state)
    run.poll(impression(8, 3, shown=False), click(40, user=5))
    assert firsts(run) == [(2, True, True), (8, False, False), (20, False, True)]
