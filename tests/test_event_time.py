"""One producer whose clock runs ahead: nobody else's windows, effects or popularity know of him."""

import random
import time

import numpy as np
import orjson
import pytest

from consumers import topics
from consumers.kafka import Outgoing, Sink
from stream.engine import Engine, JoinConfig
from stream.framing import frame
from stream.model.config import ModelConfig
from stream.records import RecordBatch
from tests.test_trainer import Place

AHEAD_MS = 23 * 3_600_000  # the wire format allows a day
USERS, ITEMS = 120, 8


def event(kind, n, ts_ms, user, item, **more):
    body = {"event_id": f"{kind}-{n}", "ts_ms": ts_ms, "user_id": user, "item_id": item, **more}
    return kind, user.encode(), orjson.dumps(body)


def shown(n, ts_ms, user, item, withheld=False, chance=0.5):
    return event(
        "impression", n, ts_ms, user, item, impression_id=f"s-{n}", position=1, propensity=0.5,
        shown=not withheld, show_probability=chance,
    )  # fmt: skip


@pytest.fixture
def place(broker, prefix, redis_url, tmp_path):
    return Place(broker, prefix, redis_url, tmp_path / "snapshots")


class Told:
    """A stream in three polls: who is ahead, the others' impressions, the others' clicks."""

    def __init__(self, skewed):
        now = int(time.time() * 1000)
        r = random.Random(3)
        self.polls = [[], [], []]
        for n in range(40 if skewed else 0):  # as many as reach every partition
            user, ts_ms = f"ahead-{n}", now + AHEAD_MS
            self.polls[0] += [
                shown(f"a{n}", ts_ms, user, "0", chance=1.0),
                event("click", f"a{n}", ts_ms, user, "0"),
            ]
        for n in range(USERS):
            withheld = bool(n % 2)
            user, item = f"u{n}", str(n % ITEMS)
            self.polls[1].append(shown(n, now + n, user, item, withheld))
            if r.random() < (0.2 if withheld else 0.6):
                self.polls[2].append(event("click", n, now + n + 1, user, item))
        self.clicks = len(self.polls[2])


def learn(place, told):
    """Return the trainer after the three polls, each sent once the one before was learned."""
    trainer = place.trainer()
    try:
        trainer.start()
        for poll in told.polls:
            now_ms = int(time.time() * 1000)  # of Kafka, where the topic takes the producers' word
            with Sink(bootstrap_servers=place.broker) as sink:
                sink.produce(
                    [
                        Outgoing(topics.name(place.prefix, kind), value, key, timestamp_ms=now_ms)
                        for kind, key, value in poll
                    ]
                )
            trainer.run_until(trainer.source.ends())
        trainer.run_until(trainer.source.ends(), close_windows=True)
    finally:
        trainer.close()
    return trainer


def figures(trainer):
    """Return the others' windows and outcomes as they were counted, and items' popularity."""
    engine, found = trainer.engine, {}
    for user in (f"u{n}" for n in range(USERS)):
        row = engine.learner.served_rows(
            "user", np.array([engine.users.find(user.encode())], np.int32)
        )
        found[user] = [int(x[0]) for x in (row.events, row.exposures, row.controls)]
    items = np.array([engine.items.find(str(n).encode()) for n in range(1, ITEMS)], np.int32)
    return found, engine.learner.served_rows("item", items).bias[:, -2]


def test_a_producer_whose_clock_is_ahead_closes_nobodys_windows(
    broker, prefix, redis_url, tmp_path
):
    runs = []
    for skewed in (False, True):
        at = Place(broker, f"{prefix}{skewed:d}", redis_url, tmp_path / f"{skewed}")
        trainer = learn(at, Told(skewed))
        assert trainer.bad_events == 0
        ahead = trainer.metrics.ahead_events._value.get()
        assert (ahead > 0) == skewed
        assert trainer.engine.joiner.late_outcomes == trainer.engine.joiner.corrections == 0
        average = trainer.engine.causal.figures(())["effects"]["click"]
        runs.append((*figures(trainer), average))
    (windows, popularity, effect), (with_him, popularity_with, effect_with) = runs
    assert with_him == windows
    assert popularity_with == pytest.approx(popularity, abs=1e-3)
    assert effect_with["value"] == pytest.approx(effect["value"], abs=0.05)


NOW = 1_790_000_000_000


def engine(**join):
    config = ModelConfig(
        factors=4, exposure_factors=4, max_users=400, max_items=50, max_features=64,
        step="sequential",
    )  # fmt: skip
    return Engine(config, window=1_000, join=JoinConfig(open_max=500, closed_max=500, **join))


def poll(*records):
    """Return one batch a record: (kind, key, value) and Kafka's time, all in one partition."""
    return [
        RecordBatch(kind, kind, 0, n, n, n + 1, ts, ts, True, 1, frame(0, 0, key, value))
        for n, ((kind, key, value), ts) in enumerate(records)
    ]


def arms(model):
    """Return windows closed of item "i", and how many of them were clicked."""
    model.close_windows()
    effect = model.causal.figures(())["effects"]["click"]
    return effect["shown"], int(model.causal.figures(())["calibration"]["click"]["observed"])


@pytest.mark.parametrize(
    ("whose", "apart_ms"),
    [("both", -900), ("both", -1)]  # Kafka may take the click first
    + [(whose, ms) for whose in ("both", "impression", "click") for ms in (0, 400, 30_000)],
)
def test_an_exposure_and_its_click_meet_whichever_clock_is_wrong(whose, apart_ms):
    clicked = NOW + apart_ms
    wrong = {"impression": NOW + AHEAD_MS, "click": clicked + AHEAD_MS}
    at = {"impression": NOW, "click": clicked}
    at |= wrong if whose == "both" else {whose: wrong[whose]}
    records = [
        (shown("i", at["impression"], "u", "i"), NOW),
        (event("click", "c", at["click"], "u", "i"), clicked),
    ]
    for order in (records, records[::-1]):
        model = engine()
        model.learn(poll(*order))
        assert arms(model) == (1, 1)
        assert model.joiner.late_outcomes == 0


def test_the_watermark_stays_within_ahead_s_of_kafkas_time_and_of_the_partitions_without_one():
    model = engine(ahead_s=2.0)
    model.learn(poll((event("click", 1, NOW + AHEAD_MS, "a", "i"), NOW)))
    assert model.joiner.watermark_ms == NOW + 2_000
    model.learn(poll((event("click", 2, NOW + AHEAD_MS, "b", "i"), -1)))
    assert model.joiner.watermark_ms == NOW + 2_000
    model.learn(poll((event("click", 3, NOW + 1_500, "c", "i"), NOW)))
    assert model.joiner.watermark_ms == NOW + 2_000
    alone = engine()
    alone.learn(poll((event("click", 1, NOW + AHEAD_MS, "a", "i"), -1)))
    assert alone.joiner.watermark_ms == NOW + AHEAD_MS  # nothing else tells its time


def test_what_is_liked_does_not_age_by_a_clock_that_is_ahead():
    def popularity(*more):
        model = engine()
        model.learn(poll(*((event("click", n, NOW, f"u{n}", "i"), NOW) for n in range(9)), *more))
        row = np.array([model.items.find(b"i")], np.int32)
        return float(model.learner.served_rows("item", row).bias[0, -2])

    ahead = (event("click", "x", NOW + AHEAD_MS, "x", "j"), NOW)
    assert popularity(ahead) == pytest.approx(popularity(), abs=1e-4)


def test_an_outcome_is_told_with_the_price_of_its_time_though_the_price_came_from_ahead():
    def priced(price, n, ts_ms):
        body = {"event_id": f"m{n}", "ts_ms": ts_ms, "item_id": "i", "attributes": {"price": price}}
        return "item", b"i", orjson.dumps(body)

    def told(ahead_ms):
        model, prices = engine(), []
        regress = model.causal.waiting.supersede
        model.causal.waiting.supersede = lambda row, ts, x: (prices.append(ts), regress(row, ts, x))
        model.learn(poll((priced(1.0, 0, NOW), NOW), (shown("i", NOW, "u", "i"), NOW)))
        model.learn(poll((priced(2.0, 1, NOW + 5_000 + ahead_ms), NOW + 5_000)))
        return prices

    assert told(AHEAD_MS) == told(0) == [NOW + 5_000]


@pytest.mark.parametrize("size", [1, 7])
def test_how_polls_are_cut_does_not_matter_to_clocks_that_are_ahead(size):
    r, records = random.Random(size), []
    for n in range(300):
        kafka = NOW + 40 * n
        ts_ms = kafka + r.choice([-3_000, -20, 0, 999, 1_001, 60_000, AHEAD_MS])
        user, item = f"u{r.randrange(9)}", f"i{r.randrange(3)}"
        made = shown(n, ts_ms, user, item) if n % 2 else event("click", n, ts_ms, user, item)
        records.append((made, r.choice([kafka, kafka, kafka, -1])))
    batches = poll(*records)
    whole, cut = engine(window_s=2.0), engine(window_s=2.0)
    whole.learn(batches)
    moves = {("click", 0), ("impression", 0)}
    for at in range(0, len(batches), size):
        rest = {(b.topic, b.partition) for b in batches[at + size :]}
        cut.learn(batches[at : at + size], moves & rest)
    left, right = whole.state(), cut.state()
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert array.tobytes() == right[name].tobytes(), name
