"""Run the named benchmarks, all of them by default; each prints its conditions and its ratio."""

import os
import platform
import sys

from tests.benchmarks import attributes, end_to_end, freshness, growth, join, learner, service

ALL = {
    "learner": learner.run,
    "growth": growth.run,
    "attributes": attributes.run,
    "join": join.run,
    "end_to_end": end_to_end.run,
    "freshness": freshness.run,
    "service": service.run,
}

if __name__ == "__main__":
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    for name in sys.argv[1:] or ALL:
        print(f"== {name}", flush=True)
        ALL[name]()
