"""The state of dependencies, computed when the metrics are scraped."""

import asyncio
import contextlib
import ssl
import struct
import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from consumers.settings import KafkaSettings

CHECK_S = 1.5  # timeout of a check of the broker, and time between two checks
FRESH_S = 4.0  # an answer counts as recent for this long
REPLY_MAX = 1 << 20
API_VERSIONS = 18


class AtScrape(Collector):
    """A gauge whose values are computed when it is scraped; None values are left out."""

    def __init__(
        self,
        name: str,
        about: str,
        values: Callable[[], Mapping[str, float | None]],
        registry: CollectorRegistry,
        label: str = "",
    ) -> None:
        self._name, self._about, self._label = name, about, label
        self._values = values
        registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauge with its present values."""
        labels = [self._label] if self._label else []
        gauge = GaugeMetricFamily(self._name, self._about, labels=labels)
        for named, value in self._values().items():
            if value is not None:
                gauge.add_metric([named] if labels else [], value)
        yield gauge


class Broker:
    """Whether a broker answers a request for API versions, which needs no authentication."""

    def __init__(self, kafka: KafkaSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._servers = [
            (host.strip("[]"), int(port) if port.isdigit() else 9092)
            for host, _, port in (
                server.strip().rpartition(":") if ":" in server else (server.strip(), "", "")
                for server in kafka.bootstrap_servers.split(",")
            )
        ]
        self._kafka = kafka
        self._clock = clock
        self._heard_s = float("-inf")

    def up(self) -> bool:
        """Return whether a broker answered recently."""
        return self._clock() - self._heard_s < FRESH_S

    async def watch(self) -> None:
        """Check all brokers repeatedly, each on a new connection; never returns."""
        while True:
            asked = [asyncio.create_task(self._answers(*server)) for server in self._servers]
            try:
                for first in asyncio.as_completed(asked):
                    if await first:
                        self._heard_s = self._clock()
                        break
                else:
                    self._heard_s = float("-inf")
            finally:
                for each in asked:
                    each.cancel()
            await asyncio.sleep(CHECK_S)

    async def _answers(self, host: str, port: int) -> bool:
        """Return whether the broker answers in time."""
        try:
            async with asyncio.timeout(CHECK_S):
                reader, writer = await asyncio.open_connection(host, port, ssl=self._tls())
                with contextlib.closing(writer):
                    writer.write(request(self._kafka.client_id))
                    (size,) = struct.unpack(">i", await reader.readexactly(4))
                    return 0 < size <= REPLY_MAX and bool(await reader.readexactly(size))
        except (OSError, TimeoutError, EOFError, struct.error):
            return False

    def _tls(self) -> ssl.SSLContext | None:
        """Return the TLS context; certificates are not verified, since no secret is sent."""
        if not self._kafka.security_protocol.endswith("SSL"):
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if self._kafka.ssl_certfile:
            context.load_cert_chain(
                self._kafka.ssl_certfile,
                self._kafka.ssl_keyfile or None,
                self._kafka.ssl_password or None,
            )
        return context


def request(client_id: str) -> bytes:
    """Return an ApiVersions request, version 0."""
    name = client_id.encode()
    body = struct.pack(">hhih", API_VERSIONS, 0, 1, len(name)) + name
    return struct.pack(">i", len(body)) + body
