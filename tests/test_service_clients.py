"""Laws of the service towards clients: who may ask, what they may send, and how long they take."""

import contextlib
import socket
import subprocess
import sys
import time

import httpx
import pytest

from consumers import playground
from tests.test_service import RATING, World, serving, until


@pytest.fixture
def world(redis_url, prefix):
    """Return a world with a published model."""
    world = World(redis_url, prefix)
    world.publish()
    yield world
    world.client.close()


@contextlib.contextmanager
def serving_process(log, **chosen):
    """Run `counterflow serve` with its log in that file and yield a client of it."""
    port = playground.free_port()
    flags = [f"--set={name}={value}" for name, value in chosen.items()]
    with log.open("wb") as out:
        command = [sys.executable, "-m", "consumers", "serve", f"--set=service.port={port}", *flags]
        process = subprocess.Popen(command, stderr=out)
    headers = {"content-type": "application/json"}
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=url, headers=headers, trust_env=False) as http:

            def ready():
                assert process.poll() is None, log.read_text()
                try:
                    return http.get("/readyz").status_code == 200
                except httpx.TransportError:
                    return False

            until(ready, "ready")
            yield http
    finally:
        process.terminate()
        assert process.wait(20) == 0


@pytest.fixture
def started(world, redis_url, prefix, tmp_path):
    """Return a function that starts `counterflow serve` and returns its client and its log."""
    with contextlib.ExitStack() as stack:

        def start(**chosen):
            log = tmp_path / "log"
            named = {name.replace("__", "."): value for name, value in chosen.items()}
            both = {"redis.url": redis_url, "redis.prefix": prefix, **named}
            return stack.enter_context(serving_process(log, **both)), log

        yield start


def connected(http):
    """Return a bare connection to the service."""
    return socket.create_connection((http.base_url.host, http.base_url.port), timeout=20)


# who may ask


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-type": "text/plain"}, "not_json"),
        ({"content-type": ""}, "not_json"),
        ({"host": "evil.example"}, "foreign_host"),
        ({"host": "evil.example:8080"}, "foreign_host"),
        ({"host": "127.0.0.1:1"}, "foreign_host"),
        ({"origin": "http://evil.example"}, "foreign_origin"),
        ({"origin": "null"}, "foreign_origin"),
        ({"origin": "http://localhost.evil.example"}, "foreign_origin"),
        ({"origin": "http://evil.example", "content-type": "text/plain"}, "foreign_origin"),
    ],
)
def test_what_a_foreign_page_posts_is_refused_and_reaches_nothing(
    world, redis_url, prefix, headers, code
):
    taken = []
    with serving(redis_url, prefix, lambda events: taken.append(events) or [True]) as http:
        response = http.post("/v1/events", json=RATING, headers=headers)
        assert response.status_code == (415 if code == "not_json" else 403)
        assert (response.json()["code"], bool(response.json()["remedy"])) == (code, True)
        assert response.headers["content-type"] == "application/problem+json"
        assert "access-control-allow-origin" not in response.headers
        assert taken == []


def test_under_its_own_names_it_answers(world, redis_url, prefix):
    with serving(redis_url, prefix) as http:
        port = http.base_url.port
        for host in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]"):
            headers = {"host": f"{host}:{port}", "origin": f"http://{host}:{port}"}
            asked = http.post("/v1/recommend", json={"user_id": "7"}, headers=headers)
            assert asked.status_code == 200, asked.text
        kind = {"content-type": "application/json; charset=utf-8"}
        assert http.post("/v1/rank", json={"user_id": "7", "item_ids": []}, headers=kind).is_success
        for path in ("livez", "readyz", "metrics"):  # probes come by an address, or any name
            assert http.get(f"/{path}", headers={"host": "10.9.8.7"}).status_code == 200
        # a page that was rebound to this address could read what it gets
        assert http.get("/v1/users/7", headers={"host": "evil.example"}).status_code == 403


def test_hosts_and_origins_of_the_settings_may_ask_and_browsers_are_told(world, redis_url, prefix):
    chosen = {
        "service__allowed_hosts": "api.example, [fd00::1]",
        "service__allowed_origins": "https://shop.example",
    }
    with serving(redis_url, prefix, **chosen) as http:
        asked = {"user_id": "7"}
        for host in ("api.example", "api.example:9", "[fd00::1]:8080"):
            assert http.post("/v1/recommend", json=asked, headers={"host": host}).is_success
        page = {"origin": "https://shop.example"}
        answer = http.post("/v1/recommend", json=asked, headers=page)
        assert answer.headers["access-control-allow-origin"] == page["origin"]
        assert "origin" in answer.headers["vary"]
        wanted = {"access-control-request-method": "POST"}
        preflight = http.options("/v1/recommend", headers={**page, **wanted})
        assert preflight.status_code == 204
        assert "content-type" in preflight.headers["access-control-allow-headers"]
        foreign = http.options("/v1/events", headers={"origin": "https://evil.example", **wanted})
        assert foreign.status_code == 403
        assert "access-control-allow-origin" not in foreign.headers


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_it_listens_to_others_only_when_told(host):
    command = [
        sys.executable, "-m", "consumers", "serve", f"--set=service.host={host}",
        "--set=service.port=0",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2, done.stderr
    assert "service.host" in done.stderr and "service.allowed_hosts" in done.stderr


def test_told_so_it_listens_to_all(started):
    http, _ = started(service__host="0.0.0.0", service__allowed_hosts="api.example")
    asked = {"user_id": "7"}
    assert http.post("/v1/recommend", json=asked).is_success  # the address it came in by
    assert http.post("/v1/recommend", json=asked, headers={"host": "api.example"}).is_success
    assert http.post("/v1/recommend", json=asked, headers={"host": "x.example"}).status_code == 403


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
def test_a_number_beyond_what_rows_hold_is_a_422(world, redis_url, prefix, path, body):
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


# clients that take their time


HEAD = b"POST /v1/recommend HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n"


def closed_after(client, dribble, most_s=10):
    """Return how long the service bore a client that sends a byte now and then, and its word."""
    begin, said = time.monotonic(), b""
    client.settimeout(0.1)
    while time.monotonic() < begin + most_s:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(dribble)
        try:
            more = client.recv(65_536)
        except TimeoutError:
            continue
        except ConnectionResetError:
            more = b""
        if not more:
            return time.monotonic() - begin, said
        said += more
    raise AssertionError("it is open still")


@pytest.mark.parametrize(
    ("begun", "dribble", "status"),
    [
        (b"", b"", b""),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"x", b"408"),
        (HEAD + b"Content-Length: 1000\r\n\r\n", b" ", b"408"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", b"408"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nX: ", b"x", b"408"),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", b" ", b"200"),
    ],
)
def test_what_dribbles_is_closed_in_time(started, begun, dribble, status):
    http, log = started(service__head_timeout_s=1, service__body_timeout_s=1)
    with connected(http) as client:
        client.sendall(begun % http.base_url.netloc if b"%s" in begun else begun)
        took, said = closed_after(client, dribble)
        assert 0.8 < took < 3
        assert status in said
    assert http.post("/v1/recommend", json={"user_id": "7"}).status_code == 200
    assert b"Traceback" not in log.read_bytes()


def test_a_client_that_does_not_read_is_closed_in_time(started):
    http, _ = started(service__head_timeout_s=1, service__body_timeout_s=1)
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
        client.connect((http.base_url.host, http.base_url.port))
        client.settimeout(0.1)
        begin = time.monotonic()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while time.monotonic() < begin + 10:
                with contextlib.suppress(TimeoutError):
                    client.sendall(ask)
    assert http.get("/livez").status_code == 200


def test_beyond_the_bound_of_connections_the_health_is_told_and_no_more(started):
    http, _ = started(service__connections_max=20)
    asked = {"user_id": "7"}
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connected(http))
        with httpx.Client(base_url=http.base_url, headers=http.headers, trust_env=False) as other:
            assert other.get("/livez").status_code == 200
            refused = other.post("/v1/recommend", json=asked)
            assert (refused.status_code, refused.json()["code"]) == (503, "busy")
            assert refused.headers["retry-after"]
    until(lambda: http.post("/v1/recommend", json=asked).status_code == 200, "there is room")
