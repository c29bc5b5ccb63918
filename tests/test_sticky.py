"""What the service withholds from a user stays withheld for a window, whoever answers."""

import contextlib

import httpx
import numpy as np
import pytest
import redis
import redis.asyncio
from prometheus_client import CollectorRegistry

from consumers.service.app import create_app
from consumers.settings import load
from tests.test_exploration import publish, serving, until
from tests.test_first_decisions import EFFECT, T0, Returns, W, learned

NOW_S = T0 // W * W / 1_000 + 60  # a minute into a window of the clock


@pytest.fixture
def serve(redis_url, prefix):
    """Return a function that starts a service at a time that the test moves."""
    publish(redis_url, prefix)
    with contextlib.ExitStack() as stack:

        def start(now, **chosen):
            cli = {"redis.url": redis_url, "redis.prefix": prefix}
            cli |= {f"exploration.{key}": str(value) for key, value in chosen.items()}
            client = redis.asyncio.Redis.from_url(redis_url, socket_timeout=5)
            app = create_app(load(cli), client, None, CollectorRegistry(), clock=lambda: now[0])
            http = stack.enter_context(serving(app))
            until(lambda: http.get("/readyz").status_code == 200, "ready")
            return http

        yield start


def asked(http, user, **more):
    """Return what a list shows and what it withholds."""
    try:
        answer = http.post("/v1/recommend", json={"user_id": user, **more}).raise_for_status()
    except httpx.HTTPStatusError as error:
        raise AssertionError(error.response.text) from error
    return answer.json()


def decisions(http, users, **more):
    """Return {(user, item): shown} of one list each."""
    found = {}
    for user in users:
        answer = asked(http, user, **more)
        found |= {(user, item["item_id"]): True for item in answer["items"]}
        found |= {(user, item["item_id"]): False for item in answer.get("withheld", [])}
    return found


@pytest.mark.parametrize("seed", [0, 7])
def test_all_services_repeat_a_decision_for_a_window_and_draw_anew_after_it(
    serve, redis_url, prefix, seed
):
    now, users = [NOW_S], [f"user {n}" for n in range(60)]
    one = serve(now, withhold=0.3, seed=seed)
    first = decisions(one, users, k=10)
    assert 60 < sum(not shown for shown in first.values()) < 160  # of 360, each with chance .3
    other = serve(now, withhold=0.3, seed=seed)  # a worker, or this one after a restart
    for k in (1, 2, 10):
        for http in (one, other):
            now[0] = NOW_S + 3_400
            again = decisions(http, users, k=k)
            assert {pair: first[pair] for pair in again} == again
    now[0] = NOW_S + 3_600
    later = decisions(one, users, k=10)
    assert later.keys() == first.keys()
    assert 90 < sum(later[pair] != first[pair] for pair in first) < 220  # .42 of 360
    assert later == decisions(other, users, k=10)
    with redis.Redis.from_url(redis_url) as client:
        key = client.get(f"{prefix}:withhold")
        assert (
            (key is None) if seed else len(key) == 32 and client.ttl(f"{prefix}:withhold") > 7_000
        )


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_chance_of_a_placed_item_is_the_same_whatever_k(serve, k):
    http = serve([NOW_S], withhold=0.25, seed=3)
    found = decisions(http, [f"user {n}" for n in range(300)], k=k)
    share = sum(not shown for shown in found.values()) / len(found)
    assert abs(share - 0.25) < 3 * (0.25 * 0.75 / len(found)) ** 0.5


def test_what_the_service_withholds_tells_the_effect_though_users_come_back(serve):
    now = [NOW_S]
    http = serve(now, withhold=0.5, seed=5)
    r = np.random.default_rng(1)
    made = Returns(0, 0, 0.5, (0, 0), True)
    for n in range(500):
        user, base = f"u{n}", (0.05, 0.5)[n % 2]
        at, clicked, number = int(NOW_S * 1_000) + int(r.integers(20 * W)), False, 0
        while number == 0 or (number < 20 and r.random() < (0.9 if clicked else 0.3)):
            now[0] = at / 1_000
            answer = asked(http, user, k=2)
            slate, clicked = answer["impression_id"], False
            for items, shown in ((answer["items"], True), (answer.get("withheld", []), False)):
                for item in items:
                    click = bool(r.random() < base + EFFECT * shown)
                    made.meet(at, user, item["item_id"], slate, shown, 0.5, click)
                    clicked |= click
            at += 5_000 + int(r.integers(W // 4))
            number += 1
    told = (engine := learned(made)).model()["effects"]["click"]
    assert min(told["shown"], told["withheld"]) > 500
    low, high = told["interval"]
    assert low < EFFECT < high
    assert high - low < 0.15
    assert engine.joiner.contradicted < 0.2 * len(made.impressions)  # behind a border alone
