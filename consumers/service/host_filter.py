"""Access checks: the Host and Origin of a request, its content type, and CORS.

The service has no authentication yet, so web pages that are open in a browser must not reach it. A
page can post to any address (text/plain needs no CORS preflight), and with DNS rebinding under a
Host of its own. So requests under another Host than the service's own, or from another origin, are
refused unless the settings allow them.
"""

from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from consumers.service.problems import Problem
from consumers.settings import ServiceSettings

JSON = b"application/json"
ANY = "*"
PREFLIGHT_S = 600  # how long a browser may cache the answer to a preflight


class HostFilter:
    """An ASGI middleware that passes on only requests with an allowed Host and Origin."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        self._app = app
        self._host, self._port = settings.host, settings.port
        self._hosts = frozenset(listed(settings.allowed_hosts))
        self._origins = frozenset(listed(settings.allowed_origins))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, answer a preflight, or refuse."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        welcome = bool(origin) and self._from_here(scope, origin)
        preflight = scope["method"] == "OPTIONS" and b"access-control-request-method" in headers
        refusal = self._refused(scope, headers, origin, welcome, preflight)

        async def open_(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *cors(origin)]
            await send(message)

        answered = open_ if welcome and self._origins else send
        if refusal is not None:
            await refusal.response()(scope, receive, answered)
        elif preflight:
            await answered({"type": "http.response.start", "status": 204, "headers": []})
            await answered({"type": "http.response.body", "body": b""})
        else:
            await self._app(scope, receive, answered)

    def _refused(
        self,
        scope: Scope,
        headers: dict[bytes, bytes],
        origin: str,
        welcome: bool,
        preflight: bool,
    ) -> Problem | None:
        """Return the problem with which the request is refused, None if it is not."""
        changes = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if (changes or scope["path"].startswith("/v1/")) and not self._known(
            scope, headers.get(b"host", b"").decode("latin-1")
        ):
            return Problem(
                403, "foreign_host", "the Host of the request is not the service's own",
                field="Host", remedy="use the service's own address, or add the host to"
                " service.allowed_hosts",
            )  # fmt: skip
        if (changes or preflight) and origin and not welcome:
            return Problem(
                403, "foreign_origin", "the request comes from a page of another origin",
                field="Origin", remedy="add the origin to service.allowed_origins",
            )  # fmt: skip
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind != JSON:
            return Problem(
                415, "not_json", "the body must be application/json", field="Content-Type",
                remedy="send content-type: application/json",
            )  # fmt: skip
        return None

    def _known(self, scope: Scope, host: str) -> bool:
        """Return whether the host is the service's own or one of the settings.

        The address at which a connection arrived is the service's own; DNS rebinding needs a name.
        """
        name, port = split(host)
        if not name:
            return False
        if not self._hosts.isdisjoint((name, f"{name}:{port}", ANY)):
            return True
        address, own_port = scope.get("server") or (self._host, self._port)
        own = {bare(str(address)), bare(self._host), "localhost", "127.0.0.1", "::1"}
        return name in own and port == str(own_port or "")

    def _from_here(self, scope: Scope, origin: str) -> bool:
        """Return whether the origin is the service's own or an allowed one."""
        if not self._origins.isdisjoint((origin.lower().rstrip("/"), ANY)):
            return True
        scheme, separator, host = origin.lower().partition("://")
        return bool(separator) and scheme in ("http", "https") and self._known(scope, host)


def listed(text: str) -> list[str]:
    """Return the names of a comma-separated setting.

    >>> listed("Shop.example, 10.0.0.5:8080,") ['shop.example', '10.0.0.5:8080']
    """
    names = (bare(name.strip().lower().rstrip("/")) for name in text.split(","))
    return [name for name in names if name]


def split(host: str) -> tuple[str, str]:
    """Return name and port of a Host header, without the brackets of an IPv6 address.

    >>> split("[::1]:8080"), split("LOCALHOST:80"), split("shop.example") (('::1', '8080'),
    ('localhost', '80'), ('shop.example', '80'))
    """
    host = host.strip().lower()
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        return name, rest.removeprefix(":") or "80"
    name, _, port = host.partition(":")
    return name, port or "80"


def bare(host: str) -> str:
    """Return a host in lower case, or an IPv6 address without its brackets."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host.lower()


def cors(origin: str) -> Iterable[tuple[bytes, bytes]]:
    """Return the headers with which a browser lets a page of this origin read the answer."""
    return (
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-methods", b"GET, POST"),
        (b"access-control-allow-headers", b"content-type, authorization"),
        (b"access-control-max-age", str(PREFLIGHT_S).encode()),
        (b"vary", b"origin"),
    )
