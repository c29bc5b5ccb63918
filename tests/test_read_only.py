"""A careful container: code that cannot be written, and no home."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("stream", "model_store", "consumers")
CAPBSET_DROP, DAC_OVERRIDE = 24, 1  # prctl(2), capabilities(7)

RUN = """
import importlib, os, pkgutil, sys
for package in sys.argv[1:]:
    for found in pkgutil.walk_packages([package], package + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
import numpy as np
from stream import hashing
data = np.frombuffer(b"user", np.uint8)
at, length = np.zeros(1, np.int64), np.full(1, 4, np.int32)
assert hashing.__file__.startswith(os.getcwd()), hashing.__file__
print(int(hashing.hash_many(data, at, length, np.uint64(1))[0]))
"""


@pytest.fixture
def installed():
    """Yield a folder with the packages, which nobody but root can write."""
    folder = Path(tempfile.mkdtemp(prefix="counterflow-read-only-"))
    try:
        for package in PACKAGES:
            shutil.copytree(
                ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
            )
        folder.chmod(0o755)
        for path in folder.rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield folder
    finally:
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(folder)


def obey_modes():
    """Root heeds the modes of files from the next exec on; others always do."""
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(CAPBSET_DROP, DAC_OVERRIDE, 0, 0, 0):
        raise OSError("capabilities cannot be dropped")


def test_read_only_code_without_a_home_runs_and_says_once_that_nothing_is_kept(installed):
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_"))}
    environ |= {"HOME": "/proc/none", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *PACKAGES],
        cwd=installed, env=environ, capture_output=True, text=True, timeout=300, check=False,
        preexec_fn=obey_modes,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    assert done.stderr.count("compiled code cannot be cached") == 1, done.stderr


def test_nothing_is_compiled_past_the_decorator_that_runs_without_a_cache():
    bare = re.compile(r"(@|\b(?:numba\.))(njit|jit|vectorize|guvectorize|cfunc)\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if bare.search(line) and path != ROOT / "stream" / "compiled.py"
    ]
    assert found == []
