"""All of it in worlds with known answers: events in Kafka, a trainer, and what the service says."""

import contextlib
import math
import os
import subprocess
import sys
import time
import uuid
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np
import orjson
import pytest
import redis.asyncio
from prometheus_client import CollectorRegistry

from consumers import clients, playground, topics
from consumers.kafka import Outgoing, Sink
from consumers.service.app import create_app
from consumers.service.impressions import ImpressionLog
from consumers.service.run import KafkaProduce
from consumers.settings import load
from stream.worlds import WORLDS
from tests.test_exploration import serving as exploring
from tests.test_service import serving, until

EVENTS = 400_000  # .50 and .45 are then more than three of their deviations apart
WINDOW_MS = 3_600_000


class Place:
    """A broker, a Redis, a prefix of both and a snapshot folder; commands run there."""

    def __init__(self, broker, redis_url, folder):
        self.prefix, self.redis_url = f"t{uuid.uuid4().hex[:12]}", redis_url
        self.chosen = {
            "kafka.bootstrap_servers": broker,
            "kafka.topic_prefix": self.prefix,
            "redis.url": redis_url,
            "redis.prefix": self.prefix,
            "snapshots.dir": str(folder),
            "trainer.metrics_port": "0",
        }
        topics.create(broker, self.prefix, partitions=2)

    def command(self, *words):
        """Return the JSON lines that the command printed."""
        flags = [part for key, value in self.chosen.items() for part in ("--set", f"{key}={value}")]
        said = subprocess.run(
            [sys.executable, "-m", "consumers", *words, *flags],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert said.returncode == 0, said.stderr[-2000:]
        return [orjson.loads(line) for line in said.stdout.splitlines() if line.startswith("{")]

    def train(self):
        """Return the summary of a trainer that has learned everything and closed the windows."""
        return self.command("train", "--until-end", "--close-windows", "--json")[-1]

    def send(self, events):
        """These are in Kafka: (kind, key, value) each."""
        settings = load(self.chosen)
        with Sink(
            bootstrap_servers=settings.kafka.bootstrap_servers,
            client=clients.options(settings.kafka),
        ) as sink:
            sink.produce(
                [Outgoing(topics.name(self.prefix, e.kind), e.value, e.key) for e in events]
            )

    def windows(self):
        """Return the closed windows of either arm by (kind, id), as rows in Redis count them."""
        rows = self.command("vectors", "export")
        return {
            arm: {
                (row["kind"], row["id"]): row[arm]
                for row in rows
                if row["kind"] in ("user", "item") and row[arm]
            }
            for arm in ("exposures", "controls")
        }


@pytest.fixture(scope="module")
def redis_url():
    """Yield the URL of one server for all tests here; they keep apart by prefix."""
    given = os.environ.get("COUNTERFLOW_TEST_REDIS")
    with contextlib.nullcontext(given) if given else playground.redis_server() as url:
        yield url


@pytest.fixture(scope="module")
def adversarial(broker, redis_url, tmp_path_factory):
    """Return the place where the adversarial world was learned, and the world's truth."""
    place = Place(broker, redis_url, tmp_path_factory.mktemp("snapshots"))
    told = place.command(
        "simulate", "adversarial", "--events", str(EVENTS), "--to-kafka", "--json"
    )[-1]
    learned = place.train()
    assert (learned["bad_events"], learned["duplicates"], learned["open_exposures"]) == (0, 0, 0)
    assert learned["events"] == sum(
        event.kind == "click" for event in WORLDS["adversarial"]().events(EVENTS)
    )
    return place, told["truth"]


@pytest.fixture(scope="module")
def http(adversarial):
    """Yield a client of the service over that model; nothing leaves its lists."""
    place, _ = adversarial
    with serving(place.redis_url, place.prefix, service__exclude_seen="false") as http:
        yield http


def ask(http, path, **body):
    """Return the answer."""
    response = http.post(f"/v1/{path}", json={"outcome": "click", **body})
    assert response.status_code == 200, response.text
    return response.json()


def best_half(http, items=20, **asked):
    """Return the better half of the items by their mean score over 20 users."""
    total = Counter()
    for user in range(20):
        found = ask(http, "recommend", user_id=f"u{user}", k=items, **asked)["items"]
        assert len(found) == items
        for item in found:
            total[item["item_id"]] += item["score"]
    return {item for item, _ in total.most_common(items // 2)}


def test_by_effect_the_sleepers_lead_and_by_outcome_the_favourites(adversarial, http):
    _, truth = adversarial
    assert best_half(http, objective="effect") == set(truth["best_by_effect"])
    assert best_half(http, objective="outcome") == set(truth["best_by_outcome"])


def test_effects_of_showing_are_supported_and_their_intervals_hold_the_truth(adversarial, http):
    _, truth = adversarial
    held = []
    for user in range(20):
        for item, planted in truth["effect"].items():
            body = {"user_id": f"u{user}", "item_id": item, "do": {"shown": True}}
            said = ask(http, "effect", **body)
            assert said["support"] == {"ok": True, "reason": None}
            assert said["interval_kind"] == "model-based"
            low, high = said["interval"]
            assert low < said["effect"] < high
            held.append(low <= planted <= high)
    assert np.mean(held) >= 0.9


def test_the_average_effect_is_the_planted_one(adversarial, http):
    _, truth = adversarial
    said = http.get("/v1/model").json()["effects"]["click"]
    low, high = said["interval"]
    assert low <= truth["average_effect_of_windows"] <= high
    assert high - low < 0.1
    assert said["estimator"] == "AIPW"


def closed_windows(events):
    """Return the windows of either arm by (kind, id), reckoned pair by pair from the events."""
    opened = defaultdict(list)
    for event in events:
        if event.kind == "impression":
            body = orjson.loads(event.value)
            pair = body["user_id"], body["item_id"]
            opened[pair].append((body["ts_ms"], body.get("shown", True)))
    counts = {"exposures": Counter(), "controls": Counter(), "first": Counter()}
    for (user, item), all_of_them in opened.items():
        first_ms = before_ms = -math.inf
        seen = False
        for ts_ms, is_shown in all_of_them:
            clock = ts_ms // WINDOW_MS == before_ms // WINDOW_MS
            if ts_ms - first_ms > WINDOW_MS and not clock:
                first_ms, seen = ts_ms, False
                counts["first"][is_shown] += 1
            before_ms, had_seen = ts_ms, seen
            seen = seen or is_shown
            if not is_shown and had_seen:
                continue  # shown to the same user since the first decision: no control
            for name in (("user", user), ("item", item)):
                counts["exposures" if is_shown else "controls"][name] += 1
    return counts


def test_rows_count_the_windows_that_closed(adversarial, http):
    place, _ = adversarial
    expected = closed_windows(WORLDS["adversarial"]().events(EVENTS))
    found = place.windows()
    assert found["exposures"] == expected["exposures"]
    assert found["controls"] == expected["controls"]
    said = http.get("/v1/model").json()["effects"]["click"]
    assert (said["shown"], said["withheld"]) == (expected["first"][True], expected["first"][False])


def test_without_controls_effects_are_refused_and_outcomes_are_not(broker, redis_url, tmp_path):
    place = Place(broker, redis_url, tmp_path)
    place.send(
        event
        for event in WORLDS["adversarial"]().events(4_000)
        if orjson.loads(event.value).get("impression_id") and b'"shown":false' not in event.value
    )
    place.train()
    with serving(redis_url, place.prefix) as http:
        for path, body in (
            ("recommend", {"objective": "effect"}),
            ("effect", {"item_id": "i1", "do": {"shown": True}}),
        ):
            asked = {"user_id": "u1", "outcome": "click", **body}
            response = http.post(f"/v1/{path}", json=asked)
            problem = response.json()
            assert (response.status_code, problem["code"]) == (422, "no_control")
            assert problem["remedy"]
        assert ask(http, "recommend", user_id="u1")["items"]
        assert http.get("/v1/model").json()["effects"]["click"]["withheld"] == 0


def test_a_price_moves_the_rating_by_the_planted_slope_within_items(broker, redis_url, tmp_path):
    """Prices and ratings come from a backlog of two topics, as fast as Kafka takes them."""
    place = Place(broker, redis_url, tmp_path)
    told = place.command("simulate", "price", "--events", "40000", "--to-kafka", "--json")[-1]
    place.train()
    beta, held = told["truth"]["beta"], []
    assert told["truth"]["naive_slope"] > 0 > beta
    with serving(redis_url, place.prefix) as http:
        low, high = http.get("/v1/model").json()["slopes"]["rating"]["interval"][0]
        assert low < beta < high < 0
        for user in range(20):
            body = {"user_id": f"u{user}", "outcome": "rating", "do": {"attributes": {"price": 10}}}
            for item in ("i0", "i1", "i2", "i3"):
                said = ask(http, "effect", item_id=item, **body)
                assert said["interval_kind"] == "within-item"
                price = http.get(f"/v1/items/{item}").json()["attributes"]["price"]
                held.append(said["effect"] / (10 - price))
    assert np.mean(held) == pytest.approx(beta, rel=0.2)  # the mean user's, over twenty


# the loop closed: what the service leaves to chance is what the trainer learns from

PLANTED = {True: 0.6, False: 0.15}  # chance of a click when shown, when withheld
USERS, K = 450, 3  # windows enough for an interval, whatever the clock withholds


class Description(NamedTuple):
    """An item event as it goes to Kafka."""

    kind: str
    key: bytes
    value: bytes


def test_what_the_service_withholds_and_explores_tells_effects_and_the_greedy_policys_value(
    broker, redis_url, tmp_path
):
    place = Place(broker, redis_url, tmp_path)
    described = {"ts_ms": 1_700_000_000_000, "attributes": {"genre": ["War"]}}
    place.send(
        Description("item", item.encode(), orjson.dumps(
            {"event_id": f"m-{item}", "item_id": item, **described}
        ))
        for item in "abcdefgh"
    )  # fmt: skip
    place.train()
    place.chosen |= {
        "exploration.epsilon": "0.2",
        "exploration.withhold": "0.3",
        "exploration.seed": "1",
        "exploration.log_impressions": "true",
        "service.port": "0",
        "redis.read_timeout_s": "5",
    }
    settings = load(place.chosen)
    random = np.random.default_rng(2)
    registry = CollectorRegistry()
    produce, impressions = KafkaProduce(settings), ImpressionLog(settings, registry)
    client = redis.asyncio.Redis.from_url(redis_url, socket_timeout=5)
    app = create_app(settings, client, produce, registry, impressions=impressions)
    shown = withheld = clicks = 0
    with exploring(app) as http:
        until(lambda: http.get("/readyz").status_code == 200, "ready")
        for user in range(USERS):
            slate = ask(http, "recommend", user_id=f"u{user}", k=K)
            now_ms = time.time_ns() // 1_000_000
            posted = []
            left_out = slate.get("withheld", [])
            for items, is_shown in ((slate["items"], True), (left_out, False)):
                for item in items:
                    if random.random() < PLANTED[is_shown]:
                        click = {
                            "type": "click",
                            "event_id": f"c-{user}-{item['item_id']}",
                            "ts_ms": now_ms + 1,
                            "user_id": f"u{user}",
                            "item_id": item["item_id"],
                        }
                        if is_shown:  # who was not shown the item knows nothing of the slate
                            click["impression_id"] = slate["impression_id"]
                        posted.append(click)
            shown, withheld = shown + len(slate["items"]), withheld + len(left_out)
            clicks += len(posted)
            if posted:
                assert http.post("/v1/events", json=posted).json() == {"accepted": len(posted)}
        impressions.close()
        produce.close()
        learned = place.train()
        assert (learned["events"], learned["bad_events"]) == (clicks, 0)
        windows = {
            arm: sum(n for (kind, _), n in found.items() if kind == "user")
            for arm, found in place.windows().items()
        }
        assert windows == {"exposures": shown, "controls": withheld}

        def said():
            return http.get("/v1/model").json()

        until(lambda: said().get("controls") == withheld, "the new model")
        model = said()
        assert model["effects"]["click"]["withheld"] == withheld > 150
        assert model["effects"]["click"]["shown"] == shown  # what stands in was randomised too
        low, high = model["effects"]["click"]["interval"]
        assert low <= PLANTED[True] - PLANTED[False] <= high
        greedy = model["off_policy"]["greedy"]
        assert greedy["n"] == shown
        for estimator in ("ips", "snips", "dr"):
            assert greedy[estimator]["ess"] > 0
        low, high = greedy["snips"]["interval"]
        assert low <= PLANTED[True] <= high  # every item is worth the same
        effects = ask(http, "recommend", user_id="u1", objective="effect")["items"]
        assert effects and all(item["support"]["ok"] for item in effects)
