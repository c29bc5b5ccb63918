"""Laws of the service towards clients: what they may send, and what if they go away."""

import socket
import subprocess
import sys

import httpx
import pytest

from consumers import playground
from tests.test_service import World, serving, until


@pytest.fixture
def world(redis_url, prefix):
    """Return a world with a published model."""
    world = World(redis_url, prefix)
    world.publish()
    yield world
    world.client.close()


@pytest.fixture
def started(world, redis_url, prefix, tmp_path):
    """Return a function that starts `counterflow serve` and returns its client and its log."""
    running = []

    def start(**chosen):
        port = playground.free_port()
        named = {
            "redis.url": redis_url, "redis.prefix": prefix, "service.port": port,
            **{name.replace("__", "."): value for name, value in chosen.items()},
        }  # fmt: skip
        log = tmp_path / "log"
        with log.open("wb") as out:
            flags = [f"--set={name}={value}" for name, value in named.items()]
            process = subprocess.Popen(
                [sys.executable, "-m", "consumers", "serve", *flags], stderr=out
            )
        http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"content-type": "application/json"},
            trust_env=False,
        )
        running.append((process, http))

        def ready():
            assert process.poll() is None, log.read_text()
            try:
                return http.get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        until(ready, "ready")
        return http, log

    yield start
    for process, http in running:
        http.close()
        process.terminate()
        assert process.wait(20) == 0


def connected(http):
    """Return a bare connection to the service."""
    return socket.create_connection((http.base_url.host, http.base_url.port), timeout=20)


# what they may send


BIG = "1" + 400 * "0"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("recommend", '"do":{"attributes":{"price":%s}}'),
        ("recommend", '"do":{"position":%s}'),
        ("recommend", '"do":{"popularity":%s}'),
        ("recommend", '"k":%s'),
        ("recommend", '"filters":{"year":%s}'),
        ("recommend", '"filters":{"year":[%s]}'),
        ("recommend", '"filters":{"year":{"gte":%s}}'),
        ("rank", '"item_ids":["a"],"do":{"attributes":{"price":%s}}'),
        ("effect", '"item_id":"a","do":{"attributes":{"price":%s}}'),
        ("effect", '"item_id":"a","do":{"popularity":1},"observed":%s'),
        ("explain", '"item_id":"a","do":{"position":%s}'),
    ],
)
def test_a_number_beyond_what_rows_hold_is_a_422_that_names_it(world, redis_url, prefix, path, body):
    with serving(redis_url, prefix) as http:
        for number in (BIG, "-" + BIG, "1e39", "1e999"):
            content = '{"user_id":"7",%s}' % (body % number)
            response = http.post(f"/v1/{path}", content=content)
            assert (response.status_code, response.json()["code"]) == (422, "invalid"), number
            assert response.json()["field"]


def test_a_posted_number_beyond_what_rows_hold_is_a_bad_event(world, redis_url, prefix):
    with serving(redis_url, prefix, lambda events: [True] * len(events)) as http:
        for name in ("value", "ts_ms", "position", "v"):
            event = '{"type":"rating","event_id":"r","user_id":"7","item_id":"a"'
            fields = {"ts_ms": "1", "value": "4", name: BIG}
            content = event + "".join(f',"{key}":{value}' for key, value in fields.items()) + "}"
            assert http.post("/v1/events", content=content).status_code in (202, 422), name


# clients that go away


def test_uploads_that_break_off_are_no_errors_and_leave_no_lines(started):
    http, log = started()
    for number in range(60):
        with connected(http) as client:
            client.sendall(
                b"POST /v1/recommend HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n"
                b"Content-Length: 1000\r\n\r\n{" % http.base_url.netloc
            )
            if number % 2:
                client.shutdown(socket.SHUT_WR)
    name = "counterflow_http_request_duration_seconds_count"
    wanted = f'{name}{{method="POST",route="/v1/recommend",status="499"}} 60.0'
    until(lambda: wanted in http.get("/metrics").text, "counted as gone")
    assert 'status="500"' not in http.get("/metrics").text
    assert len(log.read_text().splitlines()) == 1, "it says where it listens, and no more"
