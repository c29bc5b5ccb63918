"""Hostile but accepted events among good ones, with restarts: each good one is counted once."""

import os
import random
import time

import orjson
import pytest
from msgspec import UNSET

from consumers import topics
from consumers.kafka import Outgoing, Sink
from stream.reference_parser import parse
from tests.test_service import serving
from tests.test_trainer import Place, expected

COUNT = int(os.environ.get("COUNTERFLOW_TEST_HOSTILE", "1500"))  # of either sort
PARTS = 4  # three restarts
DAY_MS = 86_400_000
FLOAT32 = 3.4028234663852886e38
TEXTS = ["", "x" * 300, "é" * 500, "\x1f", "a\x1f#", "\x00", "\x1b[2J", "\u2028", "=1", "NaN", 
         "\n\t", "𝕏" * 80, "x" * 20_000, "True", "null", "../..", "{}"]  # fmt: skip
NUMBERS = [FLOAT32, -FLOAT32, 1e38, 1e-42, 2e-42, 5e-324, -5e-324, -0.0, 0, 1, -1, 2**63 - 1, 
           2**64 - 1, -(2**63), 1e-30, 1.5, 9007199254740993, 1e20]  # fmt: skip
IDS = [
    "h",
    "h\x00",
    "h\x1f",
    "h\x1b",
    "h" * 256,
    "é" * 128,
    "h\n",
    "h 1",
    "h:1",
    "h{1}",
    "h*",
    "h\u202e",
]
CHANCES = [5e-324, 1e-46, 1e-45, 1e-38, 1e-10, 0.5, 0.9999999999, 1.0, 1]
PLACES = [1, 2, 64, 65, 10_000, 2**31 - 1]


class Hostile:
    """Draws accepted events that no decent producer would send; `now_ms` is Kafka's time."""

    def __init__(self, seed, now_ms):
        self.r = random.Random(seed)
        self.now_ms = now_ms
        self.slates = []

    def record(self, n):
        """Return (kind, key, value)."""
        kind = self.r.choice(["rating", "click", "impression", "user", "item", "item", "removal"])
        if kind == "removal":
            kind, key = self.r.choice(["user", "item"]), self._id()
            return kind, key.encode(), None
        body = {"event_id": self.r.choice([f"x{n}", f"x\x1f{n}", f"{'x' * 240}{n}"]),
                "ts_ms": self._time()}  # fmt: skip
        if kind in ("user", "item"):
            # some of them about the users and items of the good events
            body[f"{kind}_id"] = self._id() if self.r.random() < 0.7 else f"g{self.r.randrange(30)}"
            body["attributes"] = self._attributes()
            if kind == "item" and self.r.random() < 0.2:
                body["title"] = self.r.choice([*TEXTS, "t" * 40_000])
        else:
            body |= {"user_id": self._id(), "item_id": self._id()} | getattr(self, f"_{kind}")()
        value = orjson.dumps(body)
        if self.r.random() < 0.1:  # of two fields of one name, the last counts
            value = b'{"event_id":"other","v":1,' + value[1:]
        parse(kind, value, self.now_ms)  # it is accepted
        return kind, self.r.choice([b"", b"k", b"\xff"]) + body["event_id"].encode(), value

    def _id(self):
        return self.r.choice(IDS) if self.r.random() < 0.5 else f"h{self.r.randrange(10**6)}"

    def _time(self):
        return self.r.choice([0, 1, self.now_ms, self.now_ms, self.now_ms + DAY_MS - 60_000, 10**9])

    def _attributes(self):
        names = [*TEXTS[:10], "price", "price", "price", "genre", "year", "n" * 200]
        count = self.r.choice([0, 1, 2, 5, 64])
        made = {}
        for k in range(count):
            name = self.r.choice(names) + (str(k) if count == 64 else "")
            made[name] = self.r.choice([
                self.r.choice(TEXTS), self.r.choice(NUMBERS), self.r.random() < 0.5,
                [self.r.choice(TEXTS[:6]) for _ in range(self.r.choice([0, 1, 4]))],
            ])  # fmt: skip
        while len(orjson.dumps(made)) > 22_000:
            made.popitem()
        return made

    def _rating(self):
        return {"value": self.r.choice([1, 5, 1.0, 4.999999999999999, 3])} | self._named()

    def _click(self):
        return self._named()

    def _named(self):
        named = self.r.choice([UNSET, *self.slates[-5:]])
        return {} if named is UNSET else {"impression_id": named}

    def _impression(self):
        self.slates.append(self.r.choice([f"s{self.r.randrange(10**6)}", "s\x00", "s" * 256]))
        return {"impression_id": self.slates[-1], "position": self.r.choice(PLACES),
                "propensity": self.r.choice(CHANCES), "show_probability": self.r.choice(CHANCES),
                "shown": self.r.random() < 0.6}  # fmt: skip


def good(n, now_ms, r):
    kind = r.choice(["rating", "click"])
    body = {"event_id": f"good-{n}", "ts_ms": now_ms - 1_000 + n % 1_000,
            "user_id": f"g{r.randrange(20)}", "item_id": f"g{r.randrange(30)}"}  # fmt: skip
    if kind == "rating":
        body["value"] = r.randrange(1, 6)
    return kind, body["user_id"].encode(), orjson.dumps(body)


@pytest.mark.parametrize("seed", [1])
def test_among_hostile_events_and_three_restarts_each_good_one_is_counted_once(
    broker, prefix, redis_url, tmp_path, seed
):
    place = Place(broker, prefix, redis_url, tmp_path / "snapshots")
    r, now_ms = random.Random(seed), time.time_ns() // 10**6
    hostile, sent, learned = Hostile(seed, now_ms), [], 0
    for part in range(PARTS):
        records = []
        for n in range(COUNT // PARTS):
            number = part * COUNT + n
            sent.append(good(number, now_ms, r))
            records += [sent[-1], hostile.record(number)]
        with Sink(bootstrap_servers=broker) as sink:
            for begin in range(0, len(records), 50):  # polls of many batches
                sink.produce(
                    [Outgoing(topics.name(prefix, k), value, key) for k, key, value in
                     records[begin : begin + 50]]
                )  # fmt: skip
        trainer = place.learn_all()
        assert trainer.bad_events == 0
        learned += trainer.learned
        counts = place.counts()
        wanted = expected(sent)
        assert {key: counts.get(key) for key in wanted} == wanted
    assert learned >= len(sent)
    assert trainer.learned_before + trainer.learned == learned
    with serving(redis_url, prefix) as http:
        for user in ("g0", "h", "nobody"):
            asked = {"user_id": user, "k": 20, "outcome": "rating"}
            answer = http.post("/v1/recommend", json=asked)
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["items"]) == 20
        assert http.get("/v1/model").status_code == 200
