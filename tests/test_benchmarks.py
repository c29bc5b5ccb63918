"""The command line of the benchmarks; they themselves are never timed tests."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.benchmarks.__main__ import ALL, chosen


def bench(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", *words],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("words", [["--help"], ["learner", "--help"]])
def test_help_lists_every_benchmark_in_a_line_and_runs_none(words: list[str]) -> None:
    done = bench(*words)
    assert done.returncode == 0 and not done.stderr and "==" not in done.stdout
    for name, about in ALL.items():
        assert f"  {name:<12} {about}" in done.stdout.splitlines()


def test_an_unknown_name_is_wrong_use_and_lists_those_that_there_are() -> None:
    done = bench("join", "lerner")
    assert done.returncode == 2 and not done.stdout and "Traceback" not in done.stderr
    assert "lerner" in done.stderr and all(name in done.stderr for name in ALL)


def test_every_listed_benchmark_is_a_module() -> None:
    assert all(find_spec(f"tests.benchmarks.{name}") for name in ALL)


def test_quick_is_of_the_learner_alone() -> None:
    assert chosen(["learner", "--quick"]).quick and not chosen(["learner"]).quick
    for words in (["--quick"], ["join", "--quick"]):
        with pytest.raises(SystemExit) as ended:
            chosen(words)
        assert ended.value.code == 2
