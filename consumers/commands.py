"""The functions behind the commands of the command line.

Modules that are slow to import (torch, numba) are imported inside the commands that need them.
"""

import argparse
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson

from consumers.gpu import Advice
from consumers.settings import Settings, show
from stream.errors import CounterflowError

log = logging.getLogger("counterflow.trainer")

STOPS = (signal.SIGTERM, signal.SIGINT)
WATCH_S = 0.05
M_ARENA_MAX = -8  # parameter number of glibc's mallopt: the largest number of malloc arenas
WORLDS = {
    "adversarial": "items liked anyway are shown most: ranking by outcome is exactly wrong",
    "change-point": "from one rating on, the best items become the worst",
    "confounded": "a latent trait decides both what a user sees and how the user likes it",
    "heterogeneous": "the effect of showing depends on the user's segment and the item's kind",
    "popularity": "clicked items are shown more, and popular items are clicked more",
    "position": "lower positions are examined less, and the policy puts the worst items first",
    "price": "prices change, and good items cost more: across items the slope has the wrong sign",
}


def emit(value: Any) -> None:
    """Print one JSON object on one line of stdout."""
    sys.stdout.buffer.write(orjson.dumps(value) + b"\n")
    sys.stdout.buffer.flush()


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set from now on, whatever the main thread does.

    Python's own handlers run between two of its instructions, and a compiler takes long over one,
    so a thread listens for the signals as well.
    """
    stop = threading.Event()
    for number in STOPS:
        signal.signal(number, lambda *_: stop.set())
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)

    def hear() -> None:
        while number := os.read(heard, 1):
            if number[0] in STOPS:
                stop.set()

    threading.Thread(target=hear, name="signals", daemon=True).start()
    return stop


@contextmanager
def ended_at_once(stop: threading.Event, say: Callable[[], object]) -> Iterator[None]:
    """In this context `stop` ends the process with exit code 0, after calling `say`.

    It is for the time before anything has been read, when nothing needs to be saved.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_S):
            if stop.is_set():
                try:
                    say()
                finally:
                    os._exit(0)

    watching = threading.Thread(target=watch, name="watch", daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


def compile_kernels(args: argparse.Namespace, settings: Settings) -> int:
    """Compile every kernel into the cache, so that later starts need no compilation."""
    keep_compiled(settings)
    from consumers import build

    began = time.monotonic()
    build.engine(settings).warm_up()
    if args.json:
        emit({"seconds": round(time.monotonic() - began, 3)})
    return 0


def keep_compiled(settings: Settings) -> None:
    """Make numba cache compiled code in `model.cache_dir`, if set; call before importing numba."""
    if settings.model.cache_dir:
        os.environ["NUMBA_CACHE_DIR"] = settings.model.cache_dir


def share_one_arena() -> None:
    """Limit glibc's malloc to one arena, so that threads do not retain memory in their own arenas.

    Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)


def train(args: argparse.Namespace, settings: Settings) -> int:
    """Learn until the end or a signal, save a snapshot, and print the summary."""
    keep_compiled(settings)
    share_one_arena()
    from consumers.gpu import ready
    from consumers.model_config import model_config

    ready(model_config(settings))
    stop = stop_on_signals()
    from prometheus_client import CollectorRegistry

    from consumers import build, endpoint, ports, summary

    registry = CollectorRegistry()
    health = build.health()
    host, port = settings.trainer.metrics_host, settings.trainer.metrics_port
    try:
        server = endpoint.serve(host, port, registry, health)
    except ports.TAKEN as error:
        raise ports.refused("trainer.metrics_port", host, port, error) from error
    log.info("metrics on %s/metrics", ports.url(host, server.server_port))
    trainer = build.trainer(settings, registry, stop, health)

    def say() -> None:
        if args.json or args.until_end:
            emit(summary.of(trainer))

    try:
        with ended_at_once(stop, say):
            trainer.prepare()
        trainer.start(from_earliest=args.from_earliest, skip_gap=args.skip_gap)
        if args.until_end:
            trainer.run_until(trainer.source.ends(), args.close_windows)
        else:
            trainer.run()
        say()
    finally:
        trainer.close()
        server.shutdown()
        server.server_close()
    return 0


def serve(args: argparse.Namespace, settings: Settings) -> int:
    """Serve HTTP until a signal arrives."""
    from consumers.service.run import run

    run(settings)
    return 0


def replay(args: argparse.Namespace, settings: Settings) -> int:
    """Send every event of the data set to Kafka and wait until all are acknowledged."""
    from consumers.replay import replay as send

    count = send(args.dataset, settings)
    if args.json:
        emit({"events": count})
    return 0


def up(args: argparse.Namespace, settings: Settings) -> int:
    """Run broker, Redis, trainer and service until Ctrl-C or, with `--once`, the last event."""
    from consumers import up as everything

    return everything.run(
        settings,
        dict(pair.split("=", 1) for pair in args.set),
        args.config,
        dataset=args.dataset,
        once=args.once,
        json=args.json,
    )


def topics(args: argparse.Namespace, settings: Settings) -> int:
    """Create the missing topics, or print what is wrong with the existing ones."""
    from consumers import clients
    from consumers import topics as all_topics

    k = settings.kafka
    client = clients.options(k)
    if args.action == "create":
        made = all_topics.create(
            k.bootstrap_servers, k.topic_prefix,
            partitions=args.partitions, replication=args.replication, client=client,
        )  # fmt: skip
        emit({"created": made})
        return 0
    problems = all_topics.check(k.bootstrap_servers, k.topic_prefix, client=client)
    emit({"problems": [{"problem": str(p), "remedy": p.remedy} for p in problems]})
    return 1 if problems else 0


def events(args: argparse.Namespace, settings: Settings) -> int:
    """Print the JSON Schemas of the events."""
    from stream.schemas import schemas

    emit(schemas())
    return 0


def evaluate(args: argparse.Namespace, settings: Settings) -> int:
    """Run one evaluation and print its figures."""
    keep_compiled(settings)
    from consumers import evaluate as measurements

    figures = measurements.run(args, settings)
    if args.json:
        emit(figures)
    else:
        print("\n".join(measurements.lines(figures)))
    return 0


def simulate(args: argparse.Namespace, settings: Settings) -> int:
    """Write the events of a simulated world where asked, and print its true effects."""
    keep_compiled(settings)
    from consumers import simulate as to
    from stream.worlds import WORLDS

    world = WORLDS[args.world](seed=args.seed)
    events = world.events(args.events)
    if args.to_kafka:
        to.send(events, args.events, args.world, settings)
    else:
        to.write(events, args.out)
    told = {"world": args.world, "seed": args.seed, "events": args.events, "truth": world.truth}
    text = orjson.dumps(told, option=0 if args.json else orjson.OPT_INDENT_2).decode()
    print(text, file=sys.stdout if args.to_kafka or args.out else sys.stderr)
    return 0


def vectors(args: argparse.Namespace, settings: Settings) -> int:
    """Print every user and item row in Redis, one JSON object a line."""
    from consumers.build import vectors as store

    for row in store(settings).export():
        emit(row)
    return 0


def snapshots(args: argparse.Namespace, settings: Settings) -> int:
    """List the snapshots, or verify the checksums of each; return 1 if any is damaged."""
    from model_store.snapshots import Snapshots

    folder = Snapshots(settings.snapshots.dir, keep=settings.snapshots.keep)
    found = folder.list() if args.action == "list" else folder.verify()
    emit(
        {
            "snapshots": [
                {
                    "name": s.path.name,
                    "created_ms": s.created_ms,
                    "bytes": s.bytes,
                    "damage": s.damage,
                }
                for s in found
            ]
        }
    )
    return 1 if any(s.damage for s in found) else 0


def config(args: argparse.Namespace, settings: Settings) -> int:
    """Print the effective settings, with secrets hidden, and the driver that would learn."""
    from consumers.gpu import shown
    from consumers.model_config import model_config

    emit(show(settings) | {"learning_step": shown(model_config(settings))})
    return 0


def doctor(args: argparse.Namespace, settings: Settings) -> int:
    """Check Kafka, Redis, the snapshot folder and the GPU; return 1 if any check fails.

    Each check prints one line and, where it fails or could be improved, a remedy.
    """
    from consumers import clients
    from consumers import topics as all_topics
    from consumers.build import redis_client
    from model_store.vectors import mapped

    k = settings.kafka

    def kafka() -> str:
        problems = all_topics.check(k.bootstrap_servers, k.topic_prefix, client=clients.options(k))
        all_topics.require(problems)
        return f"{k.bootstrap_servers}, topics {k.topic_prefix}.*"

    def redis() -> str:
        with mapped():
            redis_client(settings).ping()
        return show(settings)["redis"]["url"]  # type: ignore[no-any-return]

    def disk() -> str:
        from consumers.disk import check

        return check(settings.snapshots.dir)

    def gpu() -> str:
        from consumers.gpu import check
        from consumers.model_config import model_config

        return check(model_config(settings), batch_max=settings.trainer.batch_max)

    return 0 if all([healthy(name, run) for name, run in checks(kafka, redis, disk, gpu)]) else 1


def checks(*runs: Callable[[], str]) -> list[tuple[str, Callable[[], str]]]:
    """Return (name, check) pairs; the name is the function's."""
    return [(run.__name__, run) for run in runs]


def healthy(name: str, run: Callable[[], str]) -> bool:
    """Run one check, print its result, and return whether it passed.

    A check that raises `Advice` prints a warning and still passes.
    """
    try:
        print(f"ok    {name}: {run()}")
    except CounterflowError as error:
        advice = isinstance(error, Advice)
        print(f"{'warn' if advice else 'FAIL'}  {name}: {' '.join(error.message.split())}")
        if error.remedy:
            print(f"      {error.remedy}")
        return advice
    return True
