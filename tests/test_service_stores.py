"""Laws of the service without Redis, Kafka or a trainer: it answers from memory, and says so."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
import redis

from consumers import playground, topics
from tests.planted import Planted
from tests.test_causal_service import publish
from tests.test_service import MODEL, RATING, World, names, until
from tests.test_service_clients import serving_process

ASKED = {"user_id": "7"}


@pytest.fixture
def port():
    """Return a port for a Redis that comes and goes."""
    return playground.free_port()


def process_of(argument):
    """Return the process with this argument."""
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if argument.encode() in each.read_bytes().split(b"\0"):
                return int(each.parent.name)
    raise LookupError(argument)


@contextlib.contextmanager
def hung(pid):
    """Stop a process for the length of the with statement: it takes connections, and is silent."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def served(tmp_path, port, **chosen):
    """Run Redis with the small model and the service; yield the client, and Redis to close."""
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.ExitStack())
        url = store.enter_context(playground.redis_server(port))
        world = World(url, "cf")
        world.publish()
        world.client.close()
        log = tmp_path / "log"
        http = stack.enter_context(serving_process(log, **{"redis.url": url, **chosen}))
        yield http, store


def gauge(http, name):
    """Return the value of a gauge, None where there is none."""
    lines = http.get("/metrics").text.splitlines()
    return next((float(x.rpartition(" ")[2]) for x in lines if x.startswith(f"{name} ")), None)


def up(http, dependency):
    """Return what is said of a dependency."""
    return gauge(http, f'counterflow_dependency_up{{dependency="{dependency}"}}')


def timed(http, body=ASKED, path="/v1/recommend"):
    """Return the answer and how long it took."""
    start = time.perf_counter()
    return http.post(path, json=body), time.perf_counter() - start


def test_without_redis_lists_come_from_memory_and_say_so(tmp_path, port):
    chosen = {"exploration.epsilon": 0.5, "exploration.withhold": 0.5}
    with served(tmp_path, port, **chosen) as (http, store):
        known = http.post("/v1/recommend", json=ASKED).json()
        assert known["user"]["known"] is True
        assert "degraded" not in known and "impression_id" in known
        assert up(http, "redis") == 1.0
        store.close()
        for _ in range(20):
            answer, took = timed(http)
            assert (answer.status_code, answer.json()["degraded"]) == (200, ["redis"])
            assert names(answer) == ["a", "b", "d", "c"], "by rank, and none withheld"
            assert answer.json()["user"] == {"known": False, "events": 0}
            assert not {"impression_id", "withheld"} & set(answer.json())
            assert took < 0.25 + 0.2
        ranked = http.post("/v1/rank", json={**ASKED, "item_ids": ["a", "x"]}).json()
        assert (ranked["degraded"], ranked["unknown_items"]) == (["redis"], ["x"])
        why = http.post("/v1/explain", json={**ASKED, "item_id": "a"}).json()
        assert why["degraded"] == ["redis"]
        assert sum(term["value"] for term in why["terms"]) == pytest.approx(why["sum"])
        until(lambda: up(http, "redis") == 0.0, "it is known to be away")
        ready = http.get("/readyz")
        assert (ready.status_code, "redis" in ready.json()["degraded"]) == (200, True)
        with playground.redis_server(port) as url:
            world = World(url, "cf")
            world.publish()
            world.client.close()
            until(
                lambda: "degraded" not in http.post("/v1/recommend", json=ASKED).json(),
                "it is back",
            )


def test_what_memory_cannot_say_is_a_503_and_tells_no_address(tmp_path, port):
    with served(tmp_path, port) as (http, store):
        publish(f"redis://127.0.0.1:{port}/0", "cf", Planted())
        until(lambda: http.get("/v1/model").json().get("theta"), "the causal model")
        price = {**ASKED, "item_id": "a", "do": {"attributes": {"price": 9.9}}}
        count = {**ASKED, "item_id": "a", "outcome": "click", "do": {"popularity": 3}}
        assert http.post("/v1/effect", json=price).status_code == 200
        store.close()
        effect = http.post("/v1/effect", json=count).json()
        assert (effect["degraded"], effect["user"]["known"]) == (["redis"], False)
        why = http.post("/v1/explain", json={**ASKED, "item_id": "a"}).json()
        assert sum(term["value"] for term in why["terms"]) == pytest.approx(why["sum"], abs=1e-6)
        for answer in (
            http.post("/v1/effect", json=price),
            http.get("/v1/users/7"),
            http.get("/v1/items/a"),
            http.post("/v1/events", json=RATING, timeout=30),
            http.get("/"),
        ):
            assert answer.status_code == (200 if answer.url.path == "/" else 503)
            for secret in ("127.0.0.1", str(port), "Errno", "Error", "9092"):
                assert secret not in answer.text, answer.text


def test_a_hung_redis_costs_one_deadline_and_not_one_a_request(tmp_path, port):
    with served(tmp_path, port) as (http, _):
        assert timed(http)[0].json()["user"]["known"] is True
        with redis.Redis(port=port) as client:
            pid = client.info("server")["process_id"]
        with hung(pid):
            begin, took = time.monotonic(), []
            while time.monotonic() < begin + 6:
                answer, seconds = timed(http)
                assert answer.status_code == 200
                assert "redis" in answer.json()["degraded"]
                took.append(seconds)
                if time.monotonic() > begin + 5:
                    assert up(http, "redis") == 0.0
            assert max(took) < 1.0, "a deadline, and not the client's five seconds"
            assert sum(seconds > 0.2 for seconds in took) <= 2
        until(lambda: "degraded" not in timed(http)[0].json(), "it goes on")
        until(lambda: up(http, "redis") == 1.0, "it is known to be back")


def test_connections_that_died_while_idle_cost_no_request(tmp_path, port):
    with served(tmp_path, port) as (http, store):
        client = redis.Redis.from_url(f"redis://127.0.0.1:{port}/0")
        for _ in range(20):
            client.client_kill_filter(_type="normal", skipme=True)
            answer = http.post("/v1/recommend", json=ASKED)
            assert answer.json()["user"]["known"] is True, answer.text
            assert http.get("/v1/users/7").status_code == 200
        client.close()
        store.close()
        with playground.redis_server(port) as url:
            world = World(url, "cf")
            world.publish()
            world.client.close()
            until(lambda: up(http, "redis") == 1.0, "a sign of life")
            for _ in range(5):
                assert http.post("/v1/recommend", json=ASKED).json()["user"]["known"] is True


def test_a_trainer_that_is_dead_shows_in_the_age_and_not_as_a_503(tmp_path, port):
    with served(tmp_path, port) as (http, _):
        world = World(f"redis://127.0.0.1:{port}/0", "cf")
        name = "counterflow_model_age_seconds"
        young = gauge(http, name)
        until(lambda: gauge(http, name) > young + 2, "nobody confirms the model")
        ready = http.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["model_age_seconds"] == pytest.approx(gauge(http, name), abs=1)
        world.sequence = 9
        world.write("item", {"a": (0.5, 0.0, (1.0, 0.0))})
        until(lambda: gauge(http, name) < 1, "a row has changed")
        until(lambda: gauge(http, name) > 2, "and no other one")
        world.vectors.publish_model(MODEL)
        until(lambda: gauge(http, name) < 1, "the model was confirmed")
        world.client.close()


def test_a_service_that_begins_beside_an_old_model_says_how_old_it_is(redis_url, prefix, tmp_path):
    world = World(redis_url, prefix)
    world.publish()
    world.client.pexpire(f"{prefix}:4:model", 30_000)
    chosen = {"redis.url": redis_url, "redis.prefix": prefix, "redis.ttl_s": 60}
    with serving_process(tmp_path / "log", **chosen) as http:
        assert gauge(http, "counterflow_model_age_seconds") == pytest.approx(30, abs=5)
    world.client.close()


def test_a_kafka_that_is_away_or_hangs_is_told_at_scrape_time(tmp_path, port):
    at = playground.free_port()
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(contextlib.ExitStack())
        servers = broker.enter_context(playground.broker(at))
        topics.create(servers, "counterflow", partitions=1)
        chosen = {"kafka.bootstrap_servers": f"127.0.0.1:1,{servers}"}
        http, _ = stack.enter_context(served(tmp_path, port, **chosen))
        until(lambda: up(http, "kafka") == 1.0, "one of the two answers")
        with hung(process_of(f"--listener-url=tcp://127.0.0.1:{at}")):
            begin = time.monotonic()
            until(lambda: up(http, "kafka") == 0.0, "it hangs")
            assert time.monotonic() - begin < 5
        until(lambda: up(http, "kafka") == 1.0, "it answers again")
        broker.close()
        begin = time.monotonic()
        until(lambda: up(http, "kafka") == 0.0, "it is gone")
        assert time.monotonic() - begin < 5
        assert http.post("/v1/recommend", json=ASKED).status_code == 200
