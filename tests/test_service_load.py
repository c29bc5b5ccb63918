"""Laws of the service under load: no request holds up another one, and a view stays as it is."""

import contextlib
import os
import threading
import time

import httpx
import numpy as np
import orjson
import pytest
import redis

from consumers import playground, topics
from model_store.codec import pack, stamp
from model_store.reader import CachedItems, Catalogue
from model_store.vectors import RedisVectors
from stream.model.features import links_of
from tests import planted
from tests.test_service import RATING
from tests.test_service_clients import serving_process

ITEMS = 1_700
FACTORS, EXPOSURE = 32, 32
WORST_S = 0.1


def stock(url, prefix, count):
    """A causal model with so many described items and one user stands in Redis."""
    y, h = planted.Y, planted.H
    shapes = {
        "user": [2 * y, FACTORS + EXPOSURE],
        "item": [2 * y + h + 2, 2 * FACTORS + EXPOSURE],
        "feature": [2 * y + h + 4, FACTORS],
    }
    model = planted.MODEL | {
        "rows": shapes, "factors": FACTORS, "exposure_factors": EXPOSURE,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    described = {
        f"item-{at}": {
            "genre": [f"g{at % 20}", f"g{(at * 7 + 1) % 20}"],
            "year": 1950 + at % 70,
            "price": 4.0 + at % 20,
        }
        for at in range(count)
    }
    names = list(
        dict.fromkeys(name for each in described.values() for name, _ in links_of("item", each))
    )
    client = redis.Redis.from_url(url)
    vectors = RedisVectors(client, prefix=prefix, ttl_s=600)
    vectors.publish_model(model)

    def rows(kind, ids):
        size = [len(ids), shapes[kind][0]], [len(ids), shapes[kind][1]]
        bias, vector = (rng.normal(0, 0.2, each).astype(np.float32) for each in size)
        if kind == "item":
            bias[:, -2], bias[:, -1] = 1.0 + np.arange(len(ids)) % 5, 1.0
        if kind == "feature":
            bias[:, -4:] = [
                (0.0, 3_000.0, 10.0, 5.0) if n.endswith("#") else (0.0,) * 4 for n in ids
            ]
        counts = np.full(len(ids), 50)
        return [i.encode() for i in ids], pack(kind, 1, 1, counts, counts, counts, bias, vector)

    ids = list(described)
    for begin in range(0, count, 2_000):
        some = ids[begin : begin + 2_000]
        meta = {i.encode(): orjson.dumps({"title": i, "attributes": described[i]}) for i in some}
        vectors.write(stamp(1, 1), {"item": rows("item", some)}, meta=meta)
    vectors.write(
        stamp(1, 1),
        {"user": rows("user", ["7"]), "feature": rows("feature", names)},
        globals_=np.array(model["globals"], "<f4").tobytes(),
    )
    vectors.set_live()
    return client


def heavy(count):
    """Return allowed requests that take long, by name: path and body."""
    ids = [f"item-{at}" for at in range(count)]
    many = (ids + [f"none-{at}" for at in range(10_000)])[:10_000]
    values = [f"value-{at}" for at in range(10_000)]
    user = {"user_id": "7"}
    sets = {"attributes": {"price": 9.9, "genre": [f"g{at}" for at in range(20)]}}
    rated = {**RATING, "user_id": "8"}  # not seen by the one who asks
    events = [{**rated, "event_id": f"r{at}", "item_id": ids[at % count]} for at in range(10_000)]
    fields = {f"field-{at}": values[:600] for at in range(64)}
    return {
        "filters": ("recommend", {**user, "filters": {"genre": values, "year": values}}),
        "many filters": ("recommend", {**user, "filters": fields}),
        "long filter": ("recommend", {**user, "filters": {"genre": ["x" * 4_000] * 900}}),
        "bounds": ("recommend", {**user, "filters": {"year": {"gte": 1960.5}}, "k": 1_000}),
        "the first thousand": ("recommend", {**user, "k": 1_000, "objective": "effect"}),
        "exclude": ("recommend", {**user, "exclude": many}),
        "attributes": ("recommend", {**user, "do": sets}),
        "attributes by effect": ("recommend", {**user, "objective": "effect", "do": sets}),
        "rank": ("rank", {**user, "item_ids": many, "outcome": "click"}),
        "rank by effect": ("rank", {**user, "item_ids": many, "objective": "effect"}),
        "rank attributes": ("rank", {**user, "item_ids": many, "do": sets}),
        "effect": ("effect", {**user, "item_id": "item-3", "do": sets}),
        "explain": ("explain", {**user, "item_id": "item-3"}),
        "events": ("events", events),
        "bad events": ("events", [{**event, "value": 9} for event in events]),
        "deep": ("recommend", b'{"user_id":"7","filters":' + b'{"a":' * 500_000),
        "deep events": ("events", b"[" * 4_000_000),
        "numbers": ("recommend", b'{"user_id":"7","k":' + b"1" * 4_000_000 + b"}"),
        "texts": ("recommend", orjson.dumps({**user, "exclude": ["x" * 255] * 10_000})),
    }


class Pulse:
    """Asks for /livez all the time, on connections of its own; remembers how long it took."""

    def __init__(self, url):
        self.took, self._url, self._stop = [], url, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        while not self._stop.is_set():
            with httpx.Client(base_url=self._url, trust_env=False) as http:
                for _ in range(5):
                    start = time.perf_counter()
                    assert http.get("/livez").status_code == 200
                    self.took.append(time.perf_counter() - start)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


@pytest.fixture(scope="module")
def redis_url():
    """Yield the URL of one server for all tests here."""
    given = os.environ.get("COUNTERFLOW_TEST_REDIS")
    with contextlib.nullcontext(given) if given else playground.redis_server() as url:
        yield url


@pytest.fixture(scope="module")
def url(redis_url, broker, tmp_path_factory):
    """Yield the URL of a service over 1,700 items, a process of its own."""
    stock(redis_url, "load", ITEMS).close()
    log = tmp_path_factory.mktemp("load") / "log"
    topics.create(broker, "load", partitions=1)
    servers = {
        "redis.url": redis_url, "redis.prefix": "load",
        "kafka.bootstrap_servers": broker, "kafka.topic_prefix": "load",
    }  # fmt: skip
    with serving_process(log, **servers) as http:
        for path, body in heavy(ITEMS).values():  # what is learned of items is learned once
            post(http, path, body)
        yield str(http.base_url)


def post(http, path, body):
    """Return the status of one request."""
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    headers = {"content-type": "application/json"}
    return http.post(f"/v1/{path}", content=content, headers=headers, timeout=60).status_code


def beside(url, requests, threads, rounds):
    """Return how long /livez took beside these requests, and their statuses."""
    statuses = []

    def ask():
        with httpx.Client(base_url=url, trust_env=False) as http:
            for _ in range(rounds):
                statuses.extend(post(http, path, body) for path, body in requests)

    with Pulse(url) as pulse:
        asking = [threading.Thread(target=ask) for _ in range(threads)]
        for each in asking:
            each.start()
        for each in asking:
            each.join()
    return pulse.took, statuses


@pytest.mark.parametrize("name", heavy(1))
def test_beside_any_allowed_request_the_service_answers_at_once(url, name):
    took, statuses = beside(url, [heavy(ITEMS)[name]], threads=2, rounds=3)
    assert set(statuses) <= {200, 202, 400, 422}, statuses
    assert max(took) < WORST_S, f"{max(took):.3f} s"


def test_beside_many_of_all_kinds_the_service_answers_at_once(url):
    took, _ = beside(url, list(heavy(ITEMS).values()), threads=8, rounds=1)
    assert max(took) < 2 * WORST_S, f"{max(took):.3f} s"


def test_a_view_stays_as_it_is_while_the_items_change():
    shape, ids = (2, 3), [b"a", b"b", b"c"]
    held = Catalogue(CachedItems(shape), {"item": shape}, meta={b"a": {"title": "A"}})

    def rows(value, ids):
        counts = np.full(len(ids), 5)
        bias, vector = np.full((len(ids), 2), value, "f4"), np.full((len(ids), 3), value, "f4")
        return pack("item", 1, 1, counts, counts, counts, bias, vector)

    held.items.apply(ids, rows(1.0, ids))
    view = held.view()
    assert view is held.view(), "one view of one state"
    before = view.items
    held.part()
    held.items.apply([b"b", b"d"], [None, *rows(2.0, [b"d"])])
    held.meta[b"a"] = {"title": "B"}
    held.version += 1
    assert held.items.ids == [b"a", b"c", b"d"]
    assert (view.items is before, view.items.ids) == (True, ids)
    assert view.items.row == {b"a": 0, b"b": 1, b"c": 2}
    assert (view.items.bias == 1.0).all() and (view.items.vector == 1.0).all()
    assert view.meta == {b"a": {"title": "A"}}
    assert held.view().items.ids == held.items.ids
    del view, before
    fresh = held.view().items
    held.part()
    assert held.items is fresh, "nobody looks on: nothing is copied"


def test_lists_made_in_threads_are_whole_while_items_come_and_go(url, redis_url):
    client = redis.Redis.from_url(redis_url)
    vectors, stop = RedisVectors(client, prefix="load", ttl_s=600), threading.Event()

    def change():
        sequence, width = 10, planted.Y * 2 + planted.H + 2
        while not stop.is_set():
            sequence += 1
            some = [f"new-{at}".encode() for at in range(40)]
            counts = np.full(40, 50)
            bias = np.full((40, width), 1.0, np.float32)
            vector = np.zeros((40, 2 * FACTORS + EXPOSURE), np.float32)
            packed = pack("item", 1, sequence, counts, counts, counts, bias, vector)
            gone = sequence % 2 == 0
            mark = stamp(1, sequence)
            rows = [mark] * 40 if gone else packed
            meta = {i: b"" if gone else orjson.dumps({"title": i.decode()}) for i in some}
            vectors.write(mark, {"item": (some, rows)}, meta=meta)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        asked = heavy(ITEMS)
        named = ("attributes", "rank", "bounds", "filters", "the first thousand")
        _, statuses = beside(url, [asked[name] for name in named], threads=4, rounds=5)
        with httpx.Client(base_url=url, trust_env=False) as http:
            body = {"user_id": "7", "k": 1_000}
            for _ in range(20):
                items = http.post("/v1/recommend", json=body).json()["items"]
                found = [item["item_id"] for item in items]
                assert len(found) == len(set(found)) == 1_000
                assert all(item["title"] in (item["item_id"], None) for item in items)
    finally:
        stop.set()
        changing.join()
        client.close()
    assert set(statuses) == {200}
