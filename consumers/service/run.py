"""The service process: its socket, signals and clients."""

import asyncio
import contextlib
import gc
import ipaddress
import logging
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import uvicorn
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from consumers import clients, ports, topics
from consumers.kafka import Outgoing, Sink, Unacknowledged
from consumers.service.app import create_app
from consumers.service.concurrency_limits import yield_often
from consumers.service.connection_limits import patient
from consumers.service.impressions import ImpressionLog
from consumers.service.posted import Posted
from consumers.settings import ServiceSettings, Settings
from model_store.reader import connect_async
from stream.errors import CounterflowError

log = logging.getLogger("counterflow.service")

SOCKET_TIMEOUT_S = 5.0  # must exceed the follower's longest blocking read
SHUTDOWN_S = 10


class KafkaProduce:
    """Produces posted events; connects on first use, and again after each failure.

    A failed client is replaced because an idempotent producer that the broker no longer knows fails
    every further record.
    """

    def __init__(self, settings: Settings) -> None:
        self._kafka = settings.kafka
        self._timeout_s = settings.service.produce_timeout_s
        self._sink: Sink | None = None
        self._using: Counter[Sink] = Counter()  # number of requests that use each client
        self._lock = threading.Lock()
        self._refused: CounterflowError | None = None  # why the last attempt to connect failed

    def __call__(self, events: Sequence[Posted]) -> list[bool]:
        """Return for each event whether the broker acknowledged it."""
        records = [
            Outgoing(topics.name(self._kafka.topic_prefix, event.kind), event.value, event.key)
            for event in events
        ]
        sink, failed = self._take(), True
        try:
            sink.produce(records, self._timeout_s)
            failed = False
        except Unacknowledged as error:
            log.warning("%s", error)
            done = set(error.acknowledged)
            return [index in done for index in range(len(events))]
        finally:
            self._put_back(sink, failed)
        return [True] * len(events)

    def _take(self) -> Sink:
        """Return the connected client; requests that awaited a failed attempt share its error."""
        before = self._refused
        with self._lock:
            if self._sink is None:
                if self._refused is not None and self._refused is not before:
                    raise self._refused
                try:
                    self._sink = Sink(
                        bootstrap_servers=self._kafka.bootstrap_servers,
                        client=clients.options(self._kafka),
                    )
                except CounterflowError as error:
                    self._refused = error
                    raise
            self._using[self._sink] += 1
            return self._sink

    def _put_back(self, sink: Sink, failed: bool) -> None:
        """Stop using a failed client; its last user closes it."""
        with self._lock:
            self._using[sink] -= 1
            if failed and self._sink is sink:
                self._sink = None
            left = self._sink is not sink and not self._using[sink]
            if left:
                del self._using[sink]
        if left:
            sink.close(0)  # its requests have been answered; the rest was reported as failed

    def close(self) -> None:
        """Wait for outstanding records, dropping those that time out, and close the client."""
        with self._lock:
            sink, self._sink = self._sink, None
        if sink is not None:
            sink.close()


class Server(uvicorn.Server):
    """A uvicorn server that exits with 0 on SIGTERM and SIGINT; uvicorn would raise the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals: the first ends the server gracefully, a second one at once."""
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


def keep_all() -> None:
    """Exclude existing objects from garbage collection, which would take 140 ms to scan them."""
    gc.collect()
    gc.freeze()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raise an error with a remedy if the port is taken."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        # asyncio sets TCP_NODELAY only if the protocol is given; without it an answer takes 40 ms
        held = socket.socket(family, kind, socket.IPPROTO_TCP)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(address)
            held.listen(2_048)
        except OSError:
            held.close()
            raise
    except ports.TAKEN as error:
        raise ports.refused("service.port", host, port, error) from error
    return held


def check_host(settings: ServiceSettings) -> None:
    """Raise unless the service is on loopback or `service.allowed_hosts` is set.

    The service has no authentication: whoever reaches it can read every user and post events.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
    except ports.TAKEN:
        return  # `listen` reports the error
    addresses = {str(address[0]).partition("%")[0] for *_, address in found}
    if settings.allowed_hosts or all(ipaddress.ip_address(a).is_loopback for a in addresses):
        return
    raise CounterflowError(
        f"service.host {settings.host} is not loopback, and the service has no authentication",
        "set service.allowed_hosts to the names by which it may be called (*: any) and protect the"
        " service, for instance by a proxy; or leave service.host at 127.0.0.1",
    )


def configured(app: Starlette, settings: ServiceSettings) -> uvicorn.Config:
    """Return uvicorn's configuration."""
    return uvicorn.Config(
        app,
        lifespan="on",
        http=patient(settings),
        ws="none",
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=SHUTDOWN_S,
        server_header=False,
    )


def run(settings: Settings, started: Callable[[str], None] | None = None) -> None:
    """Serve until a signal; `started` is called with the URL once the socket listens."""
    check_host(settings.service)
    yield_often()
    held = listen(settings.service.host, settings.service.port)
    url = ports.url(settings.service.host, held.getsockname()[1])
    produce = KafkaProduce(settings)
    client = connect_async(settings.redis.url, SOCKET_TIMEOUT_S)
    registry = CollectorRegistry()
    impressions = (
        ImpressionLog(settings, registry) if settings.exploration.log_impressions else None
    )
    app = create_app(settings, client, produce, registry, impressions=impressions, loaded=keep_all)
    log.info("listening on %s", url)
    if started is not None:
        started(url)
    try:
        Server(configured(app, settings.service)).run(sockets=[held])
    finally:
        held.close()
        if impressions is not None:
            impressions.close()
        produce.close()
