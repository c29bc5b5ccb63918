"""The process: sockets, signals, clients."""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import redis.asyncio
import uvicorn
from prometheus_client import CollectorRegistry

from consumers import clients, topics
from consumers.kafka import Outgoing, Sink, Unacknowledged
from consumers.service.app import create_app
from consumers.service.impressions import ImpressionLog
from consumers.service.posted import Posted
from consumers.settings import Settings
from stream.errors import CounterflowError

log = logging.getLogger("counterflow.service")

SOCKET_TIMEOUT_S = 5.0  # above the follower's longest wait
SHUTDOWN_S = 10


class KafkaProduce:
    """Produces posted events; the client connects with the first of them, and again after that."""

    def __init__(self, settings: Settings) -> None:
        self._kafka = settings.kafka
        self._timeout_s = settings.service.produce_timeout_s
        self._sink: Sink | None = None
        self._lock = threading.Lock()

    def __call__(self, events: Sequence[Posted]) -> list[bool]:
        """Return for each event whether the broker has acknowledged it."""
        records = [
            Outgoing(topics.name(self._kafka.topic_prefix, event.kind), event.value, event.key)
            for event in events
        ]
        try:
            self._connected().produce(records, self._timeout_s)
        except Unacknowledged as error:
            log.warning("%s", error)
            done = set(error.acknowledged)
            return [index in done for index in range(len(events))]
        return [True] * len(events)

    def _connected(self) -> Sink:
        with self._lock:
            if self._sink is None:
                self._sink = Sink(
                    bootstrap_servers=self._kafka.bootstrap_servers,
                    client=clients.options(self._kafka),
                )
            return self._sink

    def close(self) -> None:
        """What was sent is acknowledged or given up, and the client has left, after the call."""
        with self._lock:
            if self._sink is not None:
                self._sink.close()
                self._sink = None


class Server(uvicorn.Server):
    """Ends with 0 on SIGTERM and SIGINT (uvicorn raises the signal again)."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A signal ends the serving, a second one at once, inside the with statement."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)


def listen(host: str, port: int) -> socket.socket:
    """Return the listening socket; a port that is taken is an error with a remedy."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        # TCP by name: asyncio sets TCP_NODELAY only then, and without it an answer takes 40 ms
        held = socket.socket(family, kind, socket.IPPROTO_TCP)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(address)
            held.listen(2_048)
        except OSError:
            held.close()
            raise
    except OSError as error:
        raise CounterflowError(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            "choose another service.host or service.port",
        ) from error
    return held


def run(settings: Settings, started: Callable[[str], None] | None = None) -> None:
    """Requests were answered until a signal; `started` is told the URL once it listens."""
    held = listen(settings.service.host, settings.service.port)
    host = settings.service.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{held.getsockname()[1]}"
    produce = KafkaProduce(settings)
    client = redis.asyncio.Redis.from_url(settings.redis.url, socket_timeout=SOCKET_TIMEOUT_S)
    registry = CollectorRegistry()
    impressions = (
        ImpressionLog(settings, registry) if settings.exploration.log_impressions else None
    )
    app = create_app(settings, client, produce, registry, impressions=impressions)
    config = uvicorn.Config(
        app,
        lifespan="on",
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=SHUTDOWN_S,
        server_header=False,
    )
    log.info("listening on %s", url)
    if started is not None:
        started(url)
    try:
        Server(config).run(sockets=[held])
    finally:
        held.close()
        if impressions is not None:
            impressions.close()
        produce.close()
