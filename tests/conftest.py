"""The broker and the Redis server that the tests run against.

COUNTERFLOW_TEST_KAFKA=host:port and COUNTERFLOW_TEST_REDIS=url choose servers that run already;
else both are embedded ones.
"""

import os
import uuid
from collections.abc import Iterator

import pytest

from consumers import playground


def pytest_configure(config: pytest.Config) -> None:
    """Let the client's refused connections go: it leaves their sockets to the collector."""
    for ignored in (
        "ignore:unclosed <socket.socket:ResourceWarning",
        "ignore:unclosed <ssl.SSLSocket:ResourceWarning",
        "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning",
        "ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning",
    ):
        config.addinivalue_line("filterwarnings", ignored)


@pytest.fixture(scope="session")
def apache() -> bool:
    """Tell whether the broker is Apache Kafka: the embedded one lacks some of its laws."""
    return "COUNTERFLOW_TEST_KAFKA" in os.environ


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """Yield the `host:port` of a broker; tests keep apart by `prefix`."""
    given = os.environ.get("COUNTERFLOW_TEST_KAFKA")
    if given:
        yield given
        return
    with playground.broker() as started:
        yield started


@pytest.fixture
def prefix() -> str:
    """Return a topic prefix that no other test has."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def redis_url() -> Iterator[str]:
    """Yield the URL of a Redis server: an empty one of the test's own, unless one was given."""
    given = os.environ.get("COUNTERFLOW_TEST_REDIS")
    if given:
        yield given
        return
    with playground.redis_server() as started:
        yield started
