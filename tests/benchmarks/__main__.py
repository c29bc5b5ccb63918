"""Run the named benchmarks, all of them by default; each prints its conditions and its ratio."""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from importlib import import_module

ALL = {  # each a module of this package, imported when it runs
    "learner": "the learner alone, by driver, block, table size and items; error by block",
    "growth": "the vocabulary as it grows: its rate and the longest pause of one call",
    "attributes": "items and users that say something of themselves, decoded and learned",
    "join": "the joiner alone, by what it joins and the size of a poll",
    "end_to_end": "events a second from Kafka to Redis, beside a peer if PEER names one",
    "freshness": "from Kafka's timestamp to readable in Redis, at 2,000 events a second",
    "service": "latency over HTTP with one client: recommend, and one effect",
}
LISTED = "benchmarks:\n" + "\n".join(f"  {name:<12} {about}" for name, about in ALL.items())
APART = "apart: python -m tests.benchmarks.coverage --help, the coverage of the intervals"


def chosen(words: Sequence[str]) -> argparse.Namespace:
    """Return the names that were asked for, and whether quickly; wrong words exit with 2."""
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks",
        description=__doc__,
        epilog=f"{LISTED}\n{APART}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="see below; all where none is")
    parser.add_argument(
        "--quick", action="store_true",
        help="learner alone: small tables, short batches, one block, one round, no error by block",
    )  # fmt: skip
    args = parser.parse_args(words)
    if unknown := [name for name in args.names if name not in ALL]:
        parser.error(f"no benchmark {', '.join(unknown)}\n{LISTED}")
    if args.quick and set(args.names) != {"learner"}:
        parser.error("--quick is of the learner alone: learner --quick")
    return args


if __name__ == "__main__":
    args = chosen(sys.argv[1:])
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    for name in args.names or ALL:
        print(f"== {name}", flush=True)
        import_module(f"tests.benchmarks.{name}").run(**({"quick": True} if args.quick else {}))
