"""The trainer's HTTP port: /metrics, /livez and /readyz."""

import socket
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from consumers.health import Health

QUIET_S = 10.0  # connections whose client sends nothing for this long are closed


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, handler: Any) -> None:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family = found[0][0]
        super().__init__((host, port), handler)


class _Handler(BaseHTTPRequestHandler):
    timeout = QUIET_S

    def __init__(self, registry: CollectorRegistry, health: Health, *given: Any) -> None:
        self._registry = registry
        self._health = health
        super().__init__(*given)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, kind = choose_encoder(self.headers.get("Accept", ""))
            self._say(200, encode(self._registry), kind)
        elif path == "/livez":
            alive = self._health.alive()
            told = {"status": "alive" if alive else "stuck", "reasons": self._health.reasons()}
            self._say(200 if alive else 503, orjson.dumps(told))
        elif path == "/readyz":
            reasons = self._health.reasons()
            told = {"status": "holding" if reasons else "learning", "reasons": reasons}
            self._say(503 if reasons else 200, orjson.dumps(told))
        else:
            self._say(404, orjson.dumps({"status": "not found"}))

    def _say(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: scrapes would fill the log."""


def serve(host: str, port: int, registry: CollectorRegistry, health: Health) -> ThreadingHTTPServer:
    """Return a server that answers in threads of its own until it is shut down."""
    server = _Server(host, port, partial(_Handler, registry, health))
    threading.Thread(target=server.serve_forever, name="endpoint", daemon=True).start()
    return server
