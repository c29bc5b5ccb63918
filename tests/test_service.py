"""Laws of the service, against a real Redis: what it answers, names, refuses, and never creates."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import msgspec
import numpy as np
import orjson
import pytest
import redis
import redis.asyncio
from prometheus_client import CollectorRegistry

from consumers import datasets, playground, replay, topics
from consumers.kafka import KafkaSource, Outgoing, Sink
from consumers.service import answers, item_index, ranking, requests
from consumers.service.app import create_app
from consumers.service.posted import Posted
from consumers.service.run import KafkaProduce, Server, configured, listen
from consumers.settings import load
from model_store.codec import pack, pack_ids, stamp
from model_store.seen import SeenItems, group
from model_store.vectors import RedisVectors
from stream.errors import CounterflowError, Unavailable

MODEL = {
    "epoch": 1,
    "factors": 2,
    "rows": {"user": [2, 2], "item": [2, 2], "feature": [2, 2]},
    "outcomes": [
        {"name": "rating", "link": "identity", "low": 1.0, "high": 5.0},
        {"name": "click", "link": "logit", "low": 0.0, "high": 1.0},
    ],
    "residual_sd": {"rating": 0.5},
}
GLOBALS = np.array([3.0, 0.0], "<f4").tobytes()
# bias for rating, bias for click, vector
ITEMS = {
    "a": (0.5, 0.0, (1.0, 0.0)),
    "b": (0.25, 1.0, (0.0, 1.0)),
    "c": (-0.5, 2.0, (-1.0, 0.0)),
    "d": (0.0, -1.0, (0.0, 0.0)),
}
META = {
    "a": {"title": "A", "attributes": {"genre": ["Comedy", "Drama"], "year": 1990}},
    "b": {"title": "B", "attributes": {"genre": ["Drama"], "year": 1980}},
    "c": {"title": "C", "attributes": {"genre": ["Comedy"], "year": 2000, "new": True}},
}


def until(condition, what):
    """Return once the condition holds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.005)


class World:
    """A trainer's hand on Redis."""

    def __init__(self, url, prefix):
        self.client = redis.Redis.from_url(url)
        self.vectors = RedisVectors(self.client, prefix=prefix, ttl_s=60)
        self.seen = SeenItems(self.client, prefix, 60)
        self.sequence = 0

    def write(self, kind, rows, globals_=GLOBALS, events=5):
        """These rows stand."""
        self.sequence += 1
        ids = [name.encode() for name in rows]
        bias = np.array([[r[0], r[1]] for r in rows.values()], np.float32)
        vector = np.array([r[2] for r in rows.values()], np.float32)
        counts = np.full(len(ids), events)
        payloads = pack(kind, 1, self.sequence, counts, 0 * counts, 0 * counts, bias, vector)
        mark = stamp(1, self.sequence)
        self.vectors.write(mark, {kind: (ids, payloads)}, globals_=globals_)

    def put_meta(self, meta):
        """These titles and attributes stand."""
        self.sequence += 1
        said = {item.encode(): orjson.dumps(value) for item, value in meta.items()}
        self.vectors.write(stamp(1, self.sequence), meta=said)

    def erase(self, item):
        """The item is gone."""
        self.sequence += 1
        mark, id_ = stamp(1, self.sequence), item.encode()
        self.vectors.write(mark, {"item": ([id_], [mark])}, meta={id_: b""})

    def publish(self):
        """A small model with items, titles and one user stands."""
        self.vectors.publish_model(MODEL)
        self.vectors.set_live()
        self.write("item", ITEMS)
        self.put_meta(META)
        self.write("user", {"7": (0.0, 0.0, (1.0, 0.5))})


@pytest.fixture(scope="module")
def redis_url():
    """Yield the URL of one server for all tests here; they keep apart by prefix."""
    given = os.environ.get("COUNTERFLOW_TEST_REDIS")
    with contextlib.nullcontext(given) if given else playground.redis_server() as url:
        yield url


@contextlib.contextmanager
def serving(redis_url, prefix, produce=None, ready=True, **cli):
    """Run the service in a thread and yield a client of it."""
    named = {key.replace("__", "."): value for key, value in cli.items()}
    patient = {"redis.read_timeout_s": "5"}  # a busy machine is no Redis that hangs
    settings = load({"redis.url": redis_url, "redis.prefix": prefix, **patient, **named})
    client = redis.asyncio.Redis.from_url(redis_url, socket_timeout=5)
    app = create_app(settings, client, produce, CollectorRegistry())
    held = listen("127.0.0.1", 0)
    server = Server(configured(app, settings.service))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [held]})
    thread.start()
    url = f"http://127.0.0.1:{held.getsockname()[1]}"
    try:
        headers = {"content-type": "application/json"}
        with httpx.Client(base_url=url, headers=headers, trust_env=False) as http:
            if ready:
                until(lambda: http.get("/readyz").status_code == 200, "ready")
            yield http
    finally:
        server.should_exit = True
        thread.join()
        held.close()


@pytest.fixture
def world(redis_url, prefix):
    """Return a world with a published model, for tests that change it."""
    world = World(redis_url, prefix)
    world.publish()
    yield world
    world.client.close()


@pytest.fixture
def serve(redis_url, prefix):
    """Return a function that starts the service on this test's world."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **cli: stack.enter_context(serving(redis_url, prefix, *args, **cli))


@pytest.fixture(scope="module")
def http(redis_url):
    """Return a client of one service over a world that no test changes."""
    world = World(redis_url, "unchanged")
    world.publish()
    with serving(redis_url, "unchanged") as http:
        yield http
    world.client.close()


def names(response):
    """Return the item ids of a list in order."""
    assert response.status_code == 200, response.text
    return [item["item_id"] for item in response.json()["items"]]


# lists


def test_scores_are_the_models_and_the_best_come_first(http):
    response = http.post("/v1/recommend", json={"user_id": "7", "k": 3})
    assert names(response) == ["a", "b", "d"]
    body = msgspec.convert(response.json(), answers.Recommendation)
    assert [round(i.score, 3) for i in body.items] == [4.5, 3.75, 3.0]
    assert body.items[0].interval == pytest.approx([3.52, 5.0], abs=0.01)
    assert body.user == answers.Known(known=True, events=5)
    assert body.model.outcome == "rating"
    assert body.items[0].title == "A"


def test_another_outcome_has_its_own_link(http):
    response = http.post("/v1/rank", json={"user_id": "7", "item_ids": ["d"], "outcome": "click"})
    assert response.json()["items"][0]["score"] == pytest.approx(1 / (1 + np.exp(1)), abs=1e-4)


def test_an_unknown_user_gets_global_and_item_bias(http):
    response = http.post("/v1/recommend", json={"user_id": "new"})
    assert response.json()["user"] == {"known": False, "events": 0}
    assert names(response) == ["a", "b", "d", "c"]
    assert [i["score"] for i in response.json()["items"]] == [3.5, 3.25, 3.0, 2.5]


def test_rank_orders_what_is_asked_and_names_unknown_items(http):
    response = http.post("/v1/rank", json={"user_id": "7", "item_ids": ["c", "x", "a", "y", "a"]})
    assert names(response) == ["a", "c"]
    assert response.json()["unknown_items"] == ["x", "y"]
    nothing = http.post("/v1/rank", json={"user_id": "7", "item_ids": []})
    assert names(nothing) == []


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"genre": "Comedy"}, {"a", "c"}),
        ({"genre": ["Drama", "Comedy"]}, {"a", "b", "c"}),
        ({"genre": "Comedy", "year": {"gte": 1991}}, {"c"}),
        ({"year": {"gt": 1980, "lt": 2000}}, {"a"}),
        ({"year": 1980}, {"b"}),
        ({"new": True}, {"c"}),
        ({"new": 1}, set()),
        ({"colour": "red"}, set()),
    ],
)
def test_filters_keep_what_satisfies_all_of_them(http, filters, found):
    response = http.post("/v1/recommend", json={"user_id": "7", "filters": filters})
    assert set(names(response)) == found


def test_excluded_items_leave_the_list(http):
    response = http.post("/v1/recommend", json={"user_id": "7", "exclude": ["a", "zzz"]})
    assert names(response) == ["b", "d", "c"]


def test_seen_items_leave_the_list_only_if_so_configured(world, serve):
    world.seen.mark({b"7": pack_ids([b"a", b"b", b"a"])})
    asked = {"user_id": "7"}
    assert names(serve().post("/v1/recommend", json=asked)) == ["d", "c"]
    kept = serve(service__exclude_seen="false").post("/v1/recommend", json=asked)
    assert names(kept) == ["a", "b", "d", "c"]


def test_seen_items_are_bounded_and_the_newest_stay(redis_url, prefix):
    client = redis.Redis.from_url(redis_url)
    seen = SeenItems(client, prefix, 60, most=4)
    for number in range(50):
        seen.mark({b"7": pack_ids([b"item-%03d" % number])})
    held = client.get(f"{prefix}:4:s:7")
    assert len(held) <= 2 * 4 * 16
    assert held.endswith(pack_ids([b"item-048", b"item-049"]))
    assert held.startswith(b"\x00\x08item-")
    assert client.ttl(f"{prefix}:4:s:7") > 0
    client.close()


def test_pairs_are_grouped_by_user_in_order():
    packed = [pack_ids([name]) for name in (b"a", b"bb", b"c")]
    rows, joined = group(np.array([2, 0, 2], np.int32), np.array([1, 2, 0], np.int32), packed)
    assert rows.tolist() == [0, 2]
    assert joined == [pack_ids([b"c"]), pack_ids([b"bb", b"a"])]


def test_changes_are_followed(world, serve):
    http = serve()
    asked = {"user_id": "7"}
    world.write("item", {"e": (1.5, 0.0, (0.0, 0.0))})
    until(lambda: "e" in names(http.post("/v1/recommend", json=asked)), "the new item")
    world.erase("a")
    until(lambda: "a" not in names(http.post("/v1/recommend", json=asked)), "the erased item")
    world.put_meta({"d": {"title": "D", "attributes": {"genre": ["New"]}}})
    filtered = {"user_id": "7", "filters": {"genre": "New"}}
    until(lambda: names(http.post("/v1/recommend", json=filtered)) == ["d"], "the new genre")
    world.write("user", {"7": (-1.0, 0.0, (0.0, 0.0))})
    score = http.post("/v1/rank", json={"user_id": "7", "item_ids": ["d"]}).json()
    assert score["items"][0]["score"] == 2.0


def test_another_shape_is_loaded_anew(world, serve):
    http = serve()
    narrow = {kind: [1, 2] for kind in MODEL["rows"]}
    world.vectors.publish_model({**MODEL, "outcomes": MODEL["outcomes"][:1], "rows": narrow})
    until(lambda: http.get("/v1/model").json()["items"] == 0, "the old rows left")
    response = http.post("/v1/recommend", json={"user_id": "7"})
    assert response.json()["user"]["known"] is False
    assert names(response) == []


# refusals


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("recommend", {}, "user_id"),
        ("recommend", {"user_id": 7}, "user_id"),
        ("recommend", {"user_id": ""}, "user_id"),
        ("recommend", {"user_id": "ü" * 200}, "user_id"),
        ("recommend", {"user_id": "7", "k": 0}, "k"),
        ("recommend", {"user_id": "7", "k": 1001}, "k"),
        ("recommend", {"user_id": "7", "k": 1.5}, "k"),
        ("recommend", {"user_id": "7", "exclude": [1]}, "exclude[0]"),
        ("recommend", {"user_id": "7", "filters": {"year": {"above": 1}}}, "filters[...].above"),
        ("recommend", {"user_id": "7", "outcome": "sale"}, "outcome"),
        ("recommend", {"user_id": "7", "objective": "best"}, "objective"),
        ("recommend", {"user_id": "7", "kk": 1}, "kk"),
        ("rank", {"user_id": "7"}, "item_ids"),
        ("rank", {"user_id": "7", "item_ids": ["x"] * 10_001}, "item_ids"),
    ],
)
def test_a_wrong_field_is_named(http, path, body, field):
    response = http.post(f"/v1/{path}", json=body)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    problem = msgspec.convert(response.json(), answers.ProblemBody)
    assert problem.field == field
    assert problem.code == "invalid"


@pytest.mark.parametrize("path", ["recommend", "rank"])
def test_an_effect_without_control_outcomes_is_refused(http, path):
    body = {"user_id": "7", "objective": "effect"}
    if path == "rank":
        body["item_ids"] = ["a"]
    response = http.post(f"/v1/{path}", json=body)
    assert (response.status_code, response.json()["code"]) == (422, "no_control")
    assert http.post("/v1/recommend", json={**body, "objective": "consumption"}).status_code in (
        200, 422,
    )  # fmt: skip


def test_interventions_are_refused_by_name(http):
    response = http.post("/v1/recommend", json={"user_id": "7", "do": {"position": 1}})
    assert response.status_code == 422
    assert (response.json()["code"], response.json()["field"]) == ("not_available", "do")
    assert http.post("/v1/recommend", json={"user_id": "7", "do": None}).status_code == 200


def test_what_is_no_json_no_route_no_method_or_too_large_is_a_problem(world, serve):
    http = serve(service__body_max_bytes="100")
    for response, status in (
        (http.post("/v1/recommend", content=b"{"), 400),
        (http.post("/v1/recommend", content=b'{"user_id":"\xff"}'), 400),
        (http.post("/v1/recommend", content=b"[" * 101), 413),
        (http.get("/v1/nothing"), 404),
        (http.get("/v1/recommend"), 405),
    ):
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == status


def test_an_answer_does_not_wait_for_the_clients_acknowledgement():
    held = listen("127.0.0.1", 0)
    assert held.proto == socket.IPPROTO_TCP
    held.close()


def test_a_port_that_is_taken_is_an_error_with_a_remedy():
    held = listen("127.0.0.1", 0)
    with pytest.raises(CounterflowError) as caught:
        listen("127.0.0.1", held.getsockname()[1])
    assert "service.port" in caught.value.remedy
    held.close()


# rows


def test_rows_are_told_and_unknown_ones_are_404(http):
    assert http.get("/v1/users/7").json()["events"] == 5
    item = msgspec.convert(http.get("/v1/items/a").json(), answers.ItemRow)
    assert (item.title, item.events, item.attributes["year"]) == ("A", 5, 1990)
    for path, code in (("users/8", "unknown_user"), ("items/z/z", "unknown_item")):
        response = http.get(f"/v1/{path}")
        assert (response.status_code, response.json()["code"]) == (404, code)


def test_reading_never_creates(world, serve):
    http = serve()
    before = {key: world.client.dump(key) for key in world.client.keys("*")}
    for user in ("7", "new"):
        http.post("/v1/recommend", json={"user_id": user, "exclude": ["x"]})
        http.post("/v1/rank", json={"user_id": user, "item_ids": ["a", "x"]})
        http.get(f"/v1/users/{user}")
        http.get(f"/v1/items/{user}")
    for path in ("/v1/model", "/readyz", "/metrics", "/openapi.json", "/"):
        assert http.get(path).status_code == 200
    assert {key: world.client.dump(key) for key in world.client.keys("*")} == before
    assert http.get("/v1/model").json()["items"] == len(ITEMS)


# events


RATING = {"type": "rating", "event_id": "r", "ts_ms": 1, "user_id": "7", "item_id": "a", "value": 5}


def test_posted_events_are_in_kafka_as_they_came_and_seen_at_once(world, serve, broker, prefix):
    topics.create(broker, prefix, partitions=2)
    produce = KafkaProduce(load({"kafka.bootstrap_servers": broker, "kafka.topic_prefix": prefix}))
    http = serve(produce)
    one = orjson.dumps(RATING)
    assert http.post("/v1/events", content=one).json() == {"accepted": 1}
    click = {"type": "click", "event_id": "c", "ts_ms": 1, "user_id": "7", "item_id": "b"}
    item = {"type": "item", "event_id": "m", "ts_ms": 1, "item_id": "n", "title": "Ü"}
    response = http.post("/v1/events", json=[click, item])
    assert (response.status_code, response.json()) == (202, {"accepted": 2})
    assert names(http.post("/v1/recommend", json={"user_id": "7"})) == ["d", "c"]
    with KafkaSource(
        bootstrap_servers=broker, topics=topics.names(prefix), group_id=None
    ) as source:
        source.start()
        polled = []
        until(lambda: polled.extend(source.poll(0.2)) or len(polled) == 3, "three batches")
    assert {batch.kind for batch in polled} == {"rating", "click", "item"}
    assert any(one in bytes(batch.data) for batch in polled)
    produce.close()


def test_a_broker_that_was_replaced_takes_events_again(prefix):
    port = playground.free_port()
    chosen = {
        "kafka.bootstrap_servers": f"127.0.0.1:{port}",
        "kafka.topic_prefix": prefix,
        "kafka.request_timeout_ms": "500",
        "service.produce_timeout_s": "2",
    }
    produce = KafkaProduce(load(chosen))
    event = Posted("rating", b"7", orjson.dumps(RATING), b"7", b"a")
    for _ in range(2):
        with playground.broker(port) as server:
            topics.create(server, prefix, partitions=2)
            assert [all(produce([event] * 3)) for _ in range(3)][1:] == [True, True]
    produce.close()


def test_who_waits_for_a_broker_that_is_away_does_not_wait_for_each_other():
    nowhere = f"127.0.0.1:{playground.free_port()}"
    options = '{"bootstrap_timeout_ms": 500}'
    produce = KafkaProduce(load({"kafka.bootstrap_servers": nowhere, "kafka.options": options}))
    event = Posted("rating", b"7", orjson.dumps(RATING), b"7", b"a")
    start = time.monotonic()
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(produce, [event]) for _ in range(12)]
        refused = [each.exception() for each in asked]
    assert all(isinstance(error, CounterflowError) for error in refused)
    assert time.monotonic() - start < 3  # and not twelve times half a second
    produce.close()


def test_a_sink_takes_any_request_timeout_and_linger(broker, prefix):
    topics.create(broker, prefix, partitions=1)
    for client, linger_ms in (
        ({"request_timeout_ms": 45_000}, 0),
        ({"request_timeout_ms": 30_000}, 20),
        ({"request_timeout_ms": 30_000, "linger_ms": 50}, 0),
        ({"request_timeout_ms": 2_000, "delivery_timeout_ms": 2_500}, 20),
    ):
        with Sink(bootstrap_servers=broker, client=client, linger_ms=linger_ms) as sink:
            sink.produce([Outgoing(topics.name(prefix, "rating"), b"1", b"k")])


def test_a_replayed_event_that_the_broker_refuses_is_an_error(prefix, monkeypatch):
    one = datasets.DatasetEvent("rating", b"7", orjson.dumps(RATING), 1)
    made = datasets.Dataset("these", 20, lambda: iter([one] * 20))
    monkeypatch.setitem(datasets.LOADERS, "these", lambda _: made)
    monkeypatch.setattr(replay, "STEADY", 5)
    port = playground.free_port()
    servers = {"kafka.bootstrap_servers": f"127.0.0.1:{port}", "kafka.topic_prefix": prefix}
    settings = load({**servers, "kafka.request_timeout_ms": "500"})
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:

        def start(stack):
            topics.create(stack.enter_context(playground.broker(port)), prefix, partitions=1)

        def replaced():
            first.close()
            start(second)  # it knows nothing of the producer

        start(first)
        assert replay.replay("these", settings) == 20
        with pytest.raises(Unavailable, match="of 5 events were not acknowledged") as refused:
            replay.replay("these", settings, replaced)
        assert refused.value.remedy
        assert replay.replay("these", settings) == 20


def test_one_bad_event_and_none_is_accepted(world, serve):
    taken = []
    http = serve(lambda events: taken.append(events) or [True] * len(events))
    response = http.post("/v1/events", json=[RATING, {**RATING, "value": 9}, {"type": "rating"}])
    assert response.status_code == 422
    problem = msgspec.convert(response.json(), answers.ProblemBody)
    assert [(e.index, e.reason) for e in problem.errors] == [
        (1, "out_of_range"), (2, "missing_field"),
    ]  # fmt: skip
    for body, reason in ((b"nope", "not_json"), (b"", "not_json"), (b"3", "not_object")):
        response = http.post("/v1/events", content=body)
        assert response.json()["errors"][0]["reason"] == reason
    assert http.post("/v1/events", content=b"[1,").status_code == 400
    assert taken == []


def test_a_broker_that_fails_halfway_is_a_503_with_what_it_has(world, serve):
    http = serve(lambda events: [True, False, True])
    rated = [{**RATING, "event_id": f"r{n}", "item_id": i} for n, i in enumerate("abc")]
    response = http.post("/v1/events", json=rated)
    assert (response.status_code, response.json()["acknowledged"]) == (503, [0, 2])
    assert int(response.headers["retry-after"]) >= 1
    assert names(http.post("/v1/recommend", json={"user_id": "7"})) == ["b", "d"]


def test_without_a_broker_events_are_refused(http):
    response = http.post("/v1/events", json=RATING)
    assert (response.status_code, response.json()["acknowledged"]) == (503, [])


# health


def test_without_a_model_it_lives_and_is_not_ready_and_then_is(redis_url, prefix, serve):
    http = serve(ready=False)
    until(lambda: "published" in http.get("/readyz").json()["detail"], "looked for a model")
    assert http.get("/livez").status_code == 200
    assert http.get("/readyz").status_code == 503
    assert http.post("/v1/recommend", json={"user_id": "7"}).status_code == 503
    World(redis_url, prefix).publish()
    until(lambda: http.get("/readyz").status_code == 200, "ready")


def test_without_redis_it_says_so_and_comes_back_by_itself(prefix):
    port = playground.free_port()
    with contextlib.ExitStack() as stack:
        with playground.redis_server(port) as url:
            World(url, prefix).publish()
            http = stack.enter_context(serving(url, prefix, service__ready_lag_s="0.8"))
        response = http.get("/v1/users/7", timeout=30)
        assert (response.status_code, response.json()["code"]) == (503, "unavailable")
        assert int(response.headers["retry-after"]) >= 1
        until(lambda: http.get("/readyz").status_code == 503, "not ready")
        assert http.get("/livez").status_code == 200
        with playground.redis_server(port) as url:
            until(lambda: http.get("/readyz").status_code == 200, "ready again")
            World(url, prefix).publish()
            asked = {"user_id": "7"}
            until(lambda: names(http.post("/v1/recommend", json=asked))[:1] == ["a"], "its items")
            world = World(url, prefix)
            world.sequence = 9
            world.write("item", {"e": (2.0, 0.0, (0.0, 0.0))})
            until(lambda: "e" in names(http.post("/v1/recommend", json=asked)), "the new item")


def test_requests_are_timed_by_route_without_ids(world, serve):
    http = serve()
    http.get("/v1/users/7")
    http.get("/v1/users/secret-id")
    http.get("/nowhere")
    text = http.get("/metrics").text
    name = "counterflow_http_request_duration_seconds_count"
    assert f'{name}{{method="GET",route="/v1/users/{{user_id}}",status="404"}} 1.0' in text
    assert f'{name}{{method="GET",route="none",status="404"}} 1.0' in text
    assert "secret-id" not in text
    assert "counterflow_build_info" in text
    assert 'le="0.0005"' in text


def test_the_description_names_every_route_and_type(http):
    document = http.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert {"/v1/recommend", "/v1/rank", "/v1/events", "/v1/users/{user_id}"} <= set(
        document["paths"]
    )
    text = orjson.dumps(document).decode()
    references = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert references <= set(document["components"]["schemas"])


def test_the_process_imports_neither_torch_nor_numba():
    code = (
        "import sys, consumers.service.run as r\n"
        "bad = {'torch', 'numba', 'river', 'recbole'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# parts


def test_best_is_the_head_of_the_stable_order():
    generator = np.random.default_rng(0)
    for size in (0, 1, 7, 100):
        scores = generator.integers(0, 5, size).astype(np.float32)
        order = np.argsort(-scores, kind="stable")
        for k in (1, 3, 100):
            assert ranking.best(scores, k).tolist() == order[:k].tolist()


def test_places_in_messages_become_fields():
    assert requests.where("Expected `str`, got `int` - at `$.exclude[0]`")[0] == "exclude[0]"
    assert requests.where("Expected `object`, got `array`")[0] == "body"
    assert item_index.holds(["x", 1], 1.0)
