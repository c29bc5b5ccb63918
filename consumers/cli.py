"""The command line: parse the arguments, load the settings and run one command.

Exit codes: 0 the command succeeded; 1 it failed, and stderr has the reason on one line and the
remedy on the next; 2 the command line or a setting is wrong.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from consumers import commands, evaluate, settings
from stream.errors import CounterflowError
from stream.memory import SMALLER


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments without the program's name; `sys.argv[1:]` if omitted.

    Returns
    -------
    int
        0 success, 1 failure, 2 wrong usage.
    """
    args = parser().parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if args.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    # kafka-python logs every failed attempt; its last error is in the message we print anyway.
    logging.getLogger("kafka").setLevel(logging.WARNING)
    logging.getLogger("kafka").propagate = args.verbose
    try:
        chosen = dict(pair.split("=", 1) for pair in args.set)
    except ValueError:
        print("counterflow: --set takes section.key=value", file=sys.stderr)
        return 2
    try:
        loaded = settings.load(chosen, os.environ, args.config)
        return int(args.run(args, loaded) or 0)
    except settings.WrongSetting as error:
        return said(error, 2)
    except CounterflowError as error:
        return said(error, 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # raised for a file or folder that an argument or setting names
        return said(CounterflowError(f"{error}", "check the path, its permissions and its disk"), 1)
    except MemoryError as error:
        return said(CounterflowError(f"out of memory: {error}", SMALLER), 1)
    except KeyboardInterrupt:
        return said(CounterflowError("interrupted", "run it again: repeated events count once"), 1)


def said(error: CounterflowError, code: int) -> int:
    """Print the error's message on one line of stderr and its remedy on the next; return `code`."""
    print(f"counterflow: {' '.join(error.message.split())}", file=sys.stderr)
    if error.remedy:
        print(f"  {' '.join(error.remedy.split())}", file=sys.stderr)
    return code


def _version() -> str:
    try:
        return metadata.version("counterflow")
    except metadata.PackageNotFoundError:
        return "unknown"


def parser() -> argparse.ArgumentParser:
    """Return the argument parser with all commands."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", metavar="FILE", help="a TOML file of settings")
    common.add_argument(
        "--set", metavar="SECTION.KEY=VALUE", action="append", default=[], help="set one setting"
    )
    common.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    common.add_argument("--verbose", action="store_true", help="log more")
    top = argparse.ArgumentParser(
        "counterflow", description="Streaming online learning for causal recommendation."
    )
    top.add_argument("--version", action="version", version=f"counterflow {_version()}")
    sub = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, help_: str) -> argparse.ArgumentParser:
        made = sub.add_parser(name, parents=[common], help=help_, description=help_)
        made.set_defaults(run=run)
        return made

    up = command("up", commands.up, "broker, Redis, trainer and service in one command")
    up.add_argument("--dataset", choices=["ml-100k"], help="replay this data set through Kafka")
    up.add_argument("--once", action="store_true", help="end after the last event")
    train = command("train", commands.train, "learn from Kafka, write vectors to Redis")
    _train(train)
    command("serve", commands.serve, "answer over HTTP from the vectors in Redis")
    replay = command("replay", commands.replay, "send a data set to Kafka in time order")
    replay.add_argument("dataset", choices=["ml-100k"])
    simulate = command(
        "simulate", commands.simulate, "simulate the events of a world whose true effects are known"
    )
    _simulate(simulate)
    topics = command("topics", commands.topics, "create the topics, or check them")
    topics.add_argument("action", choices=["create", "check"])
    topics.add_argument("--partitions", type=int, default=4)
    topics.add_argument("--replication", type=int, default=1)
    events = command("events", commands.events, "print the JSON Schemas of the events")
    events.add_argument("action", choices=["schema"])
    vectors = command(
        "vectors", commands.vectors, "print the rows in Redis, one JSON object a line"
    )
    vectors.add_argument("action", choices=["export"])
    snapshots = command(
        "snapshots", commands.snapshots, "list the snapshots, or verify their checksums"
    )
    snapshots.add_argument("action", choices=["list", "verify"])
    config = command(
        "config", commands.config, "print the effective settings and the driver that would learn"
    )
    config.add_argument("action", choices=["show"])
    measured = sub.add_parser("evaluate", help="evaluate the model on data with known answers")
    measured.set_defaults(run=commands.evaluate)
    evaluate.arguments(measured, common)
    command("compile", commands.compile_kernels, "compile the kernels now, not at the first start")
    command(
        "doctor", commands.doctor, "check Kafka, the topics, Redis, the snapshot folder, the GPU"
    )
    return top


def _train(train: argparse.ArgumentParser) -> None:
    train.add_argument(
        "--until-end", action="store_true", help="end at the high watermarks as of the start"
    )
    train.add_argument(
        "--close-windows", action="store_true", help="close and learn the open exposures at the end"
    )
    where = train.add_mutually_exclusive_group()
    where.add_argument(
        "--from-earliest", action="store_true",
        help="learn a new model from the earliest offsets; existing snapshots are set aside",
    )  # fmt: skip
    where.add_argument(
        "--skip-gap", action="store_true",
        help="where the snapshot's offsets are gone, keep the model and go to the earliest record",
    )  # fmt: skip


def _simulate(simulate: argparse.ArgumentParser) -> None:
    simulate.formatter_class = argparse.RawDescriptionHelpFormatter
    simulate.epilog = "worlds:\n" + "\n".join(
        f"  {name:<14} {about}" for name, about in commands.WORLDS.items()
    )
    simulate.add_argument("world", choices=[*commands.WORLDS], metavar="WORLD", help="see below")
    simulate.add_argument(
        "--events",
        type=evaluate.count,
        default=20_000,
        metavar="N",
        help="number of events (20,000)",
    )
    simulate.add_argument(
        "--seed", type=int, default=0, metavar="S", help="random seed of the world"
    )
    to = simulate.add_mutually_exclusive_group()
    to.add_argument("--to-kafka", action="store_true", help="send the events, as replay does")
    to.add_argument(
        "--out",
        metavar="FILE",
        help="write the events, one JSON object a line; without --to-kafka and --out they go to "
        "stdout, and the true effects to stderr instead of stdout",
    )
