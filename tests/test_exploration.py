"""Laws of exploration and of the impression log: what an answer states is what chance does."""

import contextlib
import itertools
import math
import subprocess
import sys
import threading
import time
from collections import Counter

import httpx
import numpy as np
import orjson
import pytest
import redis
import redis.asyncio
import uvicorn
from prometheus_client import CollectorRegistry

from consumers import playground, topics
from consumers.kafka import KafkaSource, Outgoing, Sink
from consumers.service.app import create_app
from consumers.service.exploration import Slate, draw, reach
from consumers.service.impressions import ImpressionLog, Shown
from consumers.service.run import Server, listen
from consumers.settings import load
from model_store.codec import pack, stamp
from model_store.vectors import RedisVectors
from stream.events import decode

N_DRAWS = 6_000
LOGGED = "counterflow_impressions_logged_total"
DROPPED = "counterflow_impressions_dropped_total"


def until(condition, what):
    """Return once the condition holds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.005)


def chances(ranked, n, k, epsilon, withhold):
    """Return P(item shown at place) and P(item withheld at place), by listing all that can be."""
    shown, gone = Counter(), Counter()  # by rank and place, over all that can be withheld
    for out in itertools.product((False, True), repeat=n):
        weight = math.prod(withhold if each else 1 - withhold for each in out)
        if weight:
            stand, left = slate_of(out, k)
            shown.update({place: weight for place in stand})
            gone.update({place: weight for place in left})
    return mixed(shown, ranked, n, epsilon), mixed(gone, ranked, n, epsilon)


def slate_of(out, k):
    """Return (rank, place) of what stands and of what is withheld, `out` telling that by rank."""
    rest = list(range(min(k, len(out)), len(out)))
    stand, left = [], []
    for r in range(min(k, len(out))):
        here = len(stand) + 1
        if not out[r]:
            stand.append((r, here))
            continue
        left.append((r, here))
        while rest and out[rest[0]]:
            left.append((rest.pop(0), here))
        if rest:
            stand.append((rest.pop(0), here))
    return stand, left


def mixed(by_rank, ranked, n, epsilon):
    """Return the chances of items from those of ranks: by rank, and by a uniform permutation."""
    found = Counter()
    for (r, place), p in by_rank.items():
        found[ranked[r], place] += (1 - epsilon) * p
        for item in range(n):
            found[item, place] += epsilon * p / n
    return found


def out_by_lot(random, n, withhold):
    """Return what withholds by lot, as another key would."""
    out = random.random(n) < withhold
    return lambda item: bool(out[item])


def fits(counts, expected):
    """Return whether counts fit their expectations: chi-square within 4 of its deviations."""
    cells = [cell for cell, mean in expected.items() if mean > 0]
    assert set(counts) <= set(cells)
    square = sum((counts[cell] - expected[cell]) ** 2 / expected[cell] for cell in cells)
    return square <= len(cells) + 4 * (2 * len(cells)) ** 0.5


CASES = [
    (n, k, epsilon, withhold)
    for n, k in ((1, 3), (3, 3), (4, 3), (6, 3), (5, 1), (12, 10))
    for epsilon in (0.0, 0.25, 1.0)
    for withhold in (0.0, 0.5)
]


@pytest.mark.parametrize(("n", "k", "epsilon", "withhold"), CASES)
def test_what_is_stated_is_what_chance_does(n, k, epsilon, withhold):
    random = np.random.default_rng(n * 100 + k)
    order = random.permutation(n)
    chance, withheld = chances(order.tolist(), n, k, epsilon, withhold)
    shown, gone, stated = Counter(), Counter(), {}
    for _ in range(N_DRAWS):
        lot = out_by_lot(random, n, withhold)
        slate = draw(order[: reach(k, withhold)], n, k, epsilon, withhold, lot, random)
        assert slate.position[slate.shown].tolist() == list(range(1, slate.shown.sum() + 1))
        assert withhold or slate.shown.sum() == min(n, k)
        assert slate.show_probability.tolist() == [1 - withhold] * len(slate.candidate)
        assert len(set(slate.candidate.tolist())) == len(slate.candidate)
        for item, place, propensity, is_shown in zip(
            slate.candidate.tolist(),
            slate.position.tolist(),
            slate.propensity.tolist(),
            slate.shown.tolist(),
            strict=True,
        ):
            (shown if is_shown else gone)[item, place] += 1
            assert stated.setdefault((item, place), propensity) == pytest.approx(propensity)
    for pair, propensity in stated.items():
        assert propensity == pytest.approx(chance[pair], abs=1e-12)
        assert 0 < propensity <= 1
    assert fits(shown, {pair: N_DRAWS * p for pair, p in chance.items()})
    assert fits(gone, {pair: N_DRAWS * p for pair, p in withheld.items()})


def test_without_withholding_a_propensity_is_that_of_rank_and_chance():
    random = np.random.default_rng(3)
    ranked = np.arange(11)
    for _ in range(200):
        slate = draw(ranked, 50, 10, 0.2, 0.0, out_by_lot(random, 50, 0.0), random)
        by_rank = slate.candidate == slate.position - 1
        assert slate.propensity.tolist() == pytest.approx(0.8 * by_rank + 0.2 / 50)
        assert (slate.propensity > 0.5).tolist() == by_rank.tolist()
        assert slate.shown.all()
        assert (slate.show_probability == 1).all()


def test_nothing_to_show_is_an_empty_slate():
    for epsilon in (0.0, 1.0):
        none = np.empty(0, np.intp)
        slate = draw(none, 0, 5, epsilon, 0.5, bool, np.random.default_rng(0))
        assert isinstance(slate, Slate)
        assert len(slate.candidate) == len(slate.propensity) == 0


def test_weights_by_propensity_tell_the_value_of_policies_that_did_not_act():
    random = np.random.default_rng(11)
    n, k = 8, 3
    chance = random.uniform(0.05, 0.9, n)  # of a click, at the first place
    examined = np.array([1.0, 0.7, 0.5])
    ranked = np.argsort(chance)  # the worst first: what acts is a bad policy
    policies = {"acting": ranked[:k], "best": np.argsort(-chance)[:k], "other": np.array([3, 0, 5])}
    values = {name: [] for name in policies}
    for _ in range(N_DRAWS):
        slate = draw(ranked, n, k, 0.5, 0.4, out_by_lot(random, n, 0.4), random)
        item, place = slate.candidate[slate.shown], slate.position[slate.shown] - 1
        click = random.random(len(item)) < chance[item] * examined[place]
        for name, policy in policies.items():
            weight = (policy[place] == item) / slate.propensity[slate.shown]
            values[name].append(weight @ click)
    for name, policy in policies.items():
        value = chance[policy] @ examined
        error = np.std(values[name]) / N_DRAWS**0.5
        assert abs(np.mean(values[name]) - value) < 3 * error
        assert error < 0.1
    assert chance[policies["best"]] @ examined > 2 * (chance[policies["acting"]] @ examined)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_both_arms_of_the_withheld_have_the_stated_chance_and_tell_the_effect(k):
    random = np.random.default_rng(12)
    n, withhold = 40, 0.2
    treated, control = random.uniform(0.3, 0.9, n), random.uniform(0.1, 0.5, n)
    arms = {True: [], False: []}
    truth = []
    for _ in range(N_DRAWS):
        slate = draw(np.arange(n), n, k, 0.2, withhold, out_by_lot(random, n, withhold), random)
        for item, shown in zip(slate.candidate.tolist(), slate.shown.tolist(), strict=True):
            arms[shown].append(random.random() < (treated if shown else control)[item])
            truth.append(treated[item] - control[item])
    p, drawn = 1 - withhold, len(truth)
    # the chance is the same at each item that was reached, whatever k
    assert abs(len(arms[True]) / drawn - p) < 4 * (p * (1 - p) / drawn) ** 0.5
    effect = np.mean(arms[True]) - np.mean(arms[False])
    error = (np.var(arms[True]) / len(arms[True]) + np.var(arms[False]) / len(arms[False])) ** 0.5
    assert abs(effect - np.mean(truth)) < 3 * error


# the log


def logger(stack, servers, prefix, **cli):
    """Return a log that ends with the test, and a reader of its counters."""
    registry = CollectorRegistry()
    named = {f"exploration.{key}": str(value) for key, value in cli.items()}
    settings = load(
        {
            "kafka.bootstrap_servers": servers,
            "kafka.topic_prefix": prefix,
            "kafka.options": '{"bootstrap_timeout_ms": 300}',
            **named,
        }
    )
    impressions = ImpressionLog(settings, registry)
    stack.callback(impressions.close)
    return impressions, lambda name: int(registry.get_sample_value(name))


def shown(number, user="7", items=("a", "b", "c")):
    """Return an answer of two places, one of its items withheld."""
    for seed in range(number, 10**6):
        random = np.random.default_rng(seed)
        slate = draw(np.arange(9), 9, 2, 0.2, 0.5, out_by_lot(random, 9, 0.5), random)
        if (~slate.shown).sum() == 1:
            ids = [items[i] if i < len(items) else f"x{i}" for i in slate.candidate.tolist()]
            return Shown(f"s-{number}", user, 1_790_000_000_000 + number, ids, slate)


def poll(servers, prefix, count):
    """Return the batches of the first so many records of the impression topic."""
    with KafkaSource(
        bootstrap_servers=servers,
        topics={topics.name(prefix, "impression"): "impression"},
        group_id=None,
    ) as source:
        source.start()
        polled = []
        until(
            lambda: polled.extend(source.poll(0.2)) or sum(b.count for b in polled) >= count,
            f"{count} records",
        )
    return polled


def texts(decoded, name):
    """Return a column of ids."""
    at, length = getattr(decoded, f"{name}_at"), getattr(decoded, f"{name}_len")
    return [bytes(decoded.data[a : a + n]).decode() for a, n in zip(at, length, strict=True)]


def test_logged_impressions_are_events_keyed_by_user(broker, prefix):
    topics.create(broker, prefix, partitions=4)
    answers = [shown(number, f"user {number % 5} ü") for number in range(20)]
    with contextlib.ExitStack() as stack:
        impressions, counted = logger(stack, broker, prefix)
        for answer in answers:
            impressions.put(answer)
        impressions.close()
        assert (counted(LOGGED), counted(DROPPED)) == (60, 0)
    decoded = decode(poll(broker, prefix, 60))
    assert (len(decoded), decoded.bad) == (60, [])
    assert len(set(texts(decoded, "event"))) == 60
    found = {
        (slate, item): values
        for slate, item, *values in zip(
            texts(decoded, "impression"),
            texts(decoded, "item"),
            texts(decoded, "user"),
            decoded.ts_ms.tolist(),
            decoded.position.tolist(),
            decoded.propensity.tolist(),
            decoded.show_probability.tolist(),
            decoded.shown.tolist(),
            strict=True,
        )
    }
    for answer in answers:
        for item, *values in zip(
            answer.item_ids,
            answer.slate.position.tolist(),
            answer.slate.propensity.tolist(),
            answer.slate.show_probability.tolist(),
            answer.slate.shown.tolist(),
            strict=True,
        ):
            assert found[answer.impression_id, item] == [answer.user_id, answer.ts_ms, *values]
    assert (~decoded.shown).sum() == 20


def test_impressions_lie_where_the_users_other_events_lie(broker, prefix):
    topics.create(broker, prefix, partitions=4)
    users = [f"user {number}" for number in range(12)]
    with Sink(bootstrap_servers=broker) as sink:
        sent = [sink.send(Outgoing(f"{prefix}.click.v1", b"{}", u.encode())) for u in users]
        sink.flush()
    wanted = {user: future.value.partition for user, future in zip(users, sent, strict=True)}
    with contextlib.ExitStack() as stack:
        impressions, _ = logger(stack, broker, prefix)
        for number, user in enumerate(users):
            impressions.put(shown(number, user))
    polled = poll(broker, prefix, 36)
    decoded = decode(polled)
    where = {
        (user, polled[batch].partition)
        for user, batch in zip(texts(decoded, "user"), decoded.batch.tolist(), strict=True)
    }
    assert where == set(wanted.items())
    assert len(set(wanted.values())) > 1


def test_with_kafka_away_what_is_too_much_is_dropped_and_counted_at_once():
    with contextlib.ExitStack() as stack:
        nowhere = f"127.0.0.1:{playground.free_port()}"
        impressions, counted = logger(stack, nowhere, "t", queue_max=10)
        answers = [shown(number) for number in range(5)]
        start_s = time.perf_counter()
        for answer in answers:
            impressions.put(answer)
        assert time.perf_counter() - start_s < 0.1
        assert (counted(LOGGED), counted(DROPPED)) == (0, 6)
        impressions.close()
        assert (counted(LOGGED), counted(DROPPED)) == (0, 15)
        impressions.put(answers[0])
        assert counted(DROPPED) == 18


def test_what_waits_is_logged_when_kafka_comes_and_goes_on_when_another_takes_its_place(prefix):
    port = playground.free_port()
    numbers = itertools.count()
    with contextlib.ExitStack() as stack:
        impressions, counted = logger(stack, f"127.0.0.1:{port}", prefix)
        impressions.put(shown(next(numbers)))
        with playground.broker(port) as servers:
            topics.create(servers, prefix, partitions=2)
            until(lambda: counted(LOGGED) == 3, "what waited is logged")
        impressions.put(shown(next(numbers)))
        with playground.broker(port) as servers:  # knows nothing of the first one's clients
            topics.create(servers, prefix, partitions=2)

            def more():
                impressions.put(shown(next(numbers)))
                return counted(LOGGED) > 3

            until(more, "the log goes on")
            impressions.close()
        assert counted(LOGGED) + counted(DROPPED) == 3 * next(numbers)


# the service

MODEL = {
    "epoch": 1,
    "factors": 1,
    "exposure_factors": 1,
    "rows": {"user": [2, 2], "item": [6, 3], "feature": [8, 1]},
    "outcomes": [{"name": "rating", "link": "identity", "low": 1.0, "high": 5.0}],
    "globals": [3.0, 3.0],
    "kappa": [0.0],
    "popularity_mean": [0.0],
    "alpha": [0.0],
    "theta": [1.0, 0.5],
    "exposure": {"scale": [1.0, 1.0], "shift": [0.0, 0.0], "clip": 0.02},
}
WORTH = {"a": 1.0, "b": 0.5, "c": 0.5, "d": 0.25, "e": 0.0, "f": -0.5}  # b and c: a tie


def publish(url, prefix):
    """A causal model with six items stands; b to e are dramas."""
    with redis.Redis.from_url(url) as client:
        vectors = RedisVectors(client, prefix=prefix, ttl_s=60)
        vectors.publish_model(MODEL)
        vectors.set_live()
        zeros = np.zeros(len(WORTH), np.int64)
        bias = np.zeros((len(WORTH), 6), np.float32)
        bias[:, 0] = list(WORTH.values())
        vector = np.zeros((len(WORTH), 3), np.float32)
        ids = [name.encode() for name in WORTH]
        genre = {b"a": "war", b"f": "war"}
        meta = {
            each: orjson.dumps({"attributes": {"genre": genre.get(each, "drama")}}) for each in ids
        }
        rows = pack("item", 1, 1, zeros, zeros, zeros, bias, vector)
        told = np.array([3.0, 3.0], "<f4").tobytes()
        vectors.write(stamp(1, 1), {"item": (ids, rows)}, meta=meta, globals_=told)


@contextlib.contextmanager
def serving(app):
    """Run the application in a thread and yield a client of it."""
    held = listen("127.0.0.1", 0)
    server = Server(uvicorn.Config(app, lifespan="on", log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [held]})
    thread.start()
    try:
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with httpx.Client(base_url=url, trust_env=False) as http:
            yield http
    finally:
        server.should_exit = True
        thread.join()
        held.close()


@pytest.fixture
def serve(redis_url, prefix):
    """Return a function that starts the service, and its log where it keeps one."""
    publish(redis_url, prefix)
    with contextlib.ExitStack() as stack:

        def start(servers="127.0.0.1:1", **cli):
            settings = load(
                {
                    "redis.url": redis_url,
                    "redis.prefix": prefix,
                    "redis.read_timeout_s": "5",
                    "kafka.bootstrap_servers": servers,
                    "kafka.topic_prefix": prefix,
                    "kafka.options": '{"bootstrap_timeout_ms": 300}',
                    **{f"exploration.{key}": str(value) for key, value in cli.items()},
                }
            )
            registry = CollectorRegistry()
            client = redis.asyncio.Redis.from_url(redis_url, socket_timeout=5)
            impressions = None
            if settings.exploration.log_impressions:
                impressions = ImpressionLog(settings, registry)
                stack.callback(impressions.close)
            app = create_app(settings, client, None, registry, impressions=impressions)
            http = stack.enter_context(serving(app))
            until(lambda: http.get("/readyz").status_code == 200, "ready")
            return http, impressions

        yield start


def recommend(http, **asked):
    """Return an answer."""
    response = http.post("/v1/recommend", json={"user_id": "7", **asked})
    assert response.status_code == 200, response.text
    return response.json()


def test_lists_are_what_they_state_with_filters_exclusions_and_ties(serve):
    http, _ = serve(epsilon=0.4, withhold=0.5, seed=5)
    size = 300
    for asked, candidates, k in (
        ({"k": 2}, "abcdef", 2),  # the tie stands at the border
        ({"k": 3, "filters": {"genre": "drama"}}, "bcde", 3),
        ({"k": 2, "filters": {"genre": "drama"}, "exclude": ["c", "z"]}, "bde", 2),
        ({"k": 10, "exclude": ["a", "f"]}, "bcde", 10),
    ):
        ranked = recommend(http, **{**asked, "k": 10, "do": {"position": 1}})["items"]
        assert {item["item_id"] for item in ranked} == set(candidates)
        candidates = [item["item_id"] for item in ranked]
        n = len(candidates)
        chance, gone = chances(range(n), n, k, 0.4, 0.5)
        seen, withheld = Counter(), Counter()
        slates = set()
        for number in range(size):
            answer = recommend(http, **asked, user_id=f"user {number}")
            slates.add(answer["impression_id"])
            for at, item in enumerate(answer["items"]):
                pair = candidates.index(item["item_id"]), at + 1
                seen[pair] += 1
                assert item["propensity"] == pytest.approx(chance[pair], abs=1e-12)
                assert item["show_probability"] == 0.5
                assert item["score"] == 3 + WORTH[item["item_id"]]
            for item in answer.get("withheld", []):
                pair = candidates.index(item["item_id"]), item["position"]
                withheld[pair] += 1
                assert item["propensity"] == pytest.approx(chance[pair], abs=1e-12)
                assert item["show_probability"] == 0.5
        assert len(slates) == size
        assert fits(seen, {pair: size * p for pair, p in chance.items()})
        assert fits(withheld, {pair: size * p for pair, p in gone.items()})


def test_without_chance_a_list_is_certain_and_has_no_name(serve):
    http, _ = serve()
    answer = recommend(http)
    assert sorted(item["item_id"] for item in answer["items"]) == sorted(WORTH)
    assert [item["score"] for item in answer["items"]] == [3 + worth for worth in WORTH.values()]
    assert {item["propensity"] for item in answer["items"]} == {1.0}
    assert not {"impression_id", "withheld"} & set(answer)


def test_what_stands_before_nobody_is_not_left_to_chance(serve):
    http, _ = serve(epsilon=1, withhold=0.5)
    for path, asked in (
        ("rank", {"item_ids": list("fbacde")}),
        ("recommend", {"do": {"position": 2}}),
    ):
        for _ in range(10):
            answer = http.post(f"/v1/{path}", json={"user_id": "7", **asked}).json()
            found = [item["item_id"] for item in answer["items"]]
            assert sorted(found, key=lambda item: -WORTH[item]) == found
            assert {item["propensity"] for item in answer["items"]} == {1.0}
            assert not {"impression_id", "withheld"} & set(answer)


def test_the_same_seed_leaves_the_same_to_chance(serve):
    lists = []
    for _ in range(2):
        http, _ = serve(epsilon=0.5, withhold=0.5, seed=9)
        drawn = [recommend(http, k=3, user_id=f"user {n}") for n in range(20)]
        lists.append([[item["item_id"] for item in answer["items"]] for answer in drawn])
    assert lists[0] == lists[1]
    assert len(set(map(tuple, lists[0]))) > 5


def test_answers_are_logged_as_they_were_given(serve, broker, prefix):
    topics.create(broker, prefix, partitions=2)
    http, impressions = serve(broker, epsilon=0.5, withhold=0.5, log_impressions=True)
    given = {}
    for number in range(25):
        answer = recommend(http, user_id=f"user {number}", k=3)
        slate = answer["impression_id"]
        for place, item in enumerate(answer["items"]):
            show_probability = item.get("show_probability", 1.0)
            given[slate, item["item_id"]] = (
                f"user {number}", place + 1, item["propensity"], show_probability, True,
            )  # fmt: skip
        for item in answer.get("withheld", []):
            given[slate, item["item_id"]] = (
                f"user {number}", item["position"], item["propensity"], item["show_probability"],
                False,
            )  # fmt: skip
    impressions.close()
    decoded = decode(poll(broker, prefix, len(given)))
    assert (len(decoded), decoded.bad) == (len(given), [])
    assert given == {
        (slate, item): values
        for slate, item, values in zip(
            texts(decoded, "impression"),
            texts(decoded, "item"),
            zip(
                texts(decoded, "user"),
                decoded.position.tolist(),
                decoded.propensity.tolist(),
                decoded.show_probability.tolist(),
                decoded.shown.tolist(),
                strict=True,
            ),
            strict=True,
        )
    }
    metrics = http.get("/metrics").text
    assert f"{LOGGED} {len(given):.1f}" in metrics
    assert f"{DROPPED} 0.0" in metrics


def test_with_kafka_away_answers_go_on(serve):
    nowhere = f"127.0.0.1:{playground.free_port()}"
    http, _ = serve(nowhere, log_impressions=True, queue_max=12)
    assert len({recommend(http)["impression_id"] for _ in range(20)}) == 20
    assert f"{DROPPED} {6 * 20 - 12:.1f}" in http.get("/metrics").text


def test_a_service_that_ends_has_logged_what_it_answered(redis_url, broker, prefix):
    publish(redis_url, prefix)
    topics.create(broker, prefix, partitions=2)
    port = playground.free_port()
    chosen = {
        "redis.url": redis_url,
        "redis.prefix": prefix,
        "kafka.bootstrap_servers": broker,
        "kafka.topic_prefix": prefix,
        "service.port": port,
        "exploration.log_impressions": "true",
    }
    flags = [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "consumers", "serve", *flags]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:

                def ready():
                    with contextlib.suppress(httpx.TransportError):
                        return http.get("/readyz").status_code == 200

                until(ready, "ready")
                slates = {recommend(http)["impression_id"] for _ in range(30)}
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
    decoded = decode(poll(broker, prefix, 30 * len(WORTH)))
    assert set(texts(decoded, "impression")) == slates
