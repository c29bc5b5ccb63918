"""What a newcomer and an operator meet at a start: README's lines, ports, disks, wrong settings."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import orjson
import pytest

from consumers import datasets, ports
from stream.errors import CounterflowError
from stream.model import gpu
from tests.test_up import running

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
try:
    datasets.ml_100k_folder()
    absent = ""
except CounterflowError as error:
    absent = f"MovieLens-100K is not installed: {error.remedy}"


def lines(word: str, text: str = README) -> list[str]:
    """Return the commands of code blocks indented by four that begin with this word, each whole."""
    found = re.findall(rf"^ {{4}}({word} (?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert found, word
    return found


def command(*words: str, **named: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "consumers", *words],
        env=os.environ | named, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def refused(*words: str, **named: str) -> str:
    """Return the reason and the remedy, two lines, of a command that failed for them."""
    done = command(*words, **named)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    said = done.stderr.splitlines()
    assert said[-2].startswith("counterflow: ") and said[-1].startswith("  ")
    return "\n".join(said[-2:])


@pytest.mark.skipif(bool(absent), reason=absent)
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_curl_line_of_the_readme_answers_while_the_demo_runs(tmp_path):
    with running(tmp_path, "--dataset", "ml-100k") as (process, url, _):
        greeted = []
        for line in process.stderr:
            greeted += [line.strip()] if "curl" in line else []
            if "100 %" in line:
                break
        at = url.removeprefix("http://")
        written = [line.replace("localhost:8080", at) for line in lines("curl")]
        assert all(at in line for line in written)
        wait = Event()

        def run(line: str):
            told = subprocess.run(["sh", "-c", line], capture_output=True, timeout=30, check=True)
            return orjson.loads(told.stdout)

        for _ in range(400):  # the last events are sent: they are learned within a moment
            if all("code" not in run(line) for line in written):
                break
            wait.wait(0.05)
        recommended, effect = (run(line) for line in written)
        assert len(recommended["items"]) == 10 and recommended["user"]["known"]
        assert effect["support"]["ok"] and effect["effect"] is not None
        assert len(greeted) == 3
        assert [next(iter(run(line))) for line in greeted] == ["user", "accepted", "user"]


@contextmanager
def taken():
    """Yield a port on which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        yield str(held.getsockname()[1])


def test_a_port_that_is_taken_is_named_with_its_setting_and_the_remedy(tmp_path):
    with taken() as port:
        where = ["--set", f"snapshots.dir={tmp_path}"]
        for words, what in (
            (["train"], "trainer.metrics_port"),
            (["serve"], "service.port"),
            (["up"], "trainer.metrics_port"),
            (["up"], "service.port"),
        ):
            said = refused(*words, *where, "--set", f"{what}={port}")
            assert port in said and said.count(what) == 2 and "0 takes a free one" in said
        for name, what in (
            ("SERVICE__PORT", "service.port"),
            ("TRAINER__METRICS_PORT", "trainer.metrics_port"),
        ):
            assert what in refused("up", *where, **{f"COUNTERFLOW_{name}": port})
        file = tmp_path / "settings.toml"
        file.write_text(f"[service]\nport = {port}\n")
        assert "service.port" in refused("up", *where, "--config", str(file))


def test_up_takes_a_free_port_where_none_was_named(tmp_path, monkeypatch):
    """The defaults may be free or not on this machine; they are taken here."""
    holding = []
    for port in (8080, 9108):
        try:
            holding.append(socket.create_server(("127.0.0.1", port)))
        except OSError:
            continue  # somebody else does
    process = subprocess.Popen(
        [sys.executable, "-m", "consumers", "up", f"--set=snapshots.dir={tmp_path}"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with process:
        try:
            url = next((line for line in process.stderr if "answers at" in line), "")
            assert url and not url.strip().endswith(":8080")
        finally:
            process.terminate()
            for held in holding:
                held.close()


WRONG = {
    "a host that is none": (["train", "--set", "trainer.metrics_host=a..b"], "metrics_host"),
    "a host that is not found": (["serve", "--set", "service.host=no.invalid"], "service.host"),
    "a label too long": (["serve", "--set", "service.host=a..b"], "service.host"),
    "brokers": (["topics", "check", "--set", "kafka.bootstrap_servers=a:b:c"], "host:port"),
    "a client's option": (["topics", "check", "--set", 'kafka.options={"api_version":"x"}'],
                          "kafka.options"),
    "Redis' port": (["serve", "--set", "redis.url=redis://a:b", "--set", "service.port=0"],
                    "redis://"),
    "a folder that is a file": (["snapshots", "list", "--set", f"snapshots.dir={__file__}"],
                                "Not a directory"),
    "a folder below a file": (["up", "--set", f"snapshots.dir={__file__}/x"], "snapshots.dir"),
    "too long a window": (["compile", "--set", "trainer.duplicates_window=100000000000"],
                          "duplicates_window"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_had_is_one_line_and_its_remedy(case):
    words, named = WRONG[case]
    assert named in refused(*words)


def test_a_trainer_names_the_free_port_that_its_metrics_took():
    done = command(
        "train", "--set", "trainer.metrics_port=0", "--set", "kafka.bootstrap_servers=127.0.0.1:1",
        "--set", 'kafka.options={"bootstrap_timeout_ms":100}',
    )  # fmt: skip
    (port,) = re.findall(r"metrics on http://127\.0\.0\.1:(\d+)/metrics\n", done.stderr)
    assert int(port) > 0 and done.returncode == 1


def test_an_address_of_ipv6_is_told_in_brackets():
    assert ports.url("::1", 9108) == "http://[::1]:9108"


CONFLICT = {"COUNTERFLOW_MODEL__DEVICE": "cuda", "COUNTERFLOW_MODEL__STEP": "sequential"}
NO_GPU = {"COUNTERFLOW_MODEL__DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""}
BEYOND_LOOPBACK = {"COUNTERFLOW_SERVICE__HOST": "0.0.0.0"}


@pytest.mark.parametrize(
    ("words", "named", "code", "said"),
    [
        ("up", CONFLICT, 2, "model.step = sequential"),
        ("up", NO_GPU, 1, "model.device is cuda"),
        ("up", BEYOND_LOOPBACK, 1, "service.allowed_hosts"),
        ("train", CONFLICT, 2, "model.step = sequential"),
        ("train", NO_GPU, 1, "model.device is cuda"),
    ],
)
def test_settings_that_cannot_run_are_refused_before_anything_starts(
    words, named, code, said, tmp_path
):
    """No broker is asked, none is started, and the snapshots of an earlier run stay."""
    (tmp_path / "up-earlier").mkdir()
    away = ("kafka.bootstrap_servers=127.0.0.1:1", f"snapshots.dir={tmp_path}")
    done = command(words, *(f"--set={pair}" for pair in away), **named)
    assert done.returncode == code
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
    assert line.startswith("counterflow: ") and said in done.stderr
    assert [at.name for at in tmp_path.iterdir()] == ["up-earlier"]


BEYOND = [
    "trainer.seed=9223372036854775808",
    "join.window_s=inf",
    "join.idle_s=1e300",
    "model.max_users=18446744073709551616",
    "model.max_users=2147483648",
    "model.max_items=4611686018427387904",
    "model.max_features=1000000000000",
    "model.half_life_s=0.5",
    "model.rating_max=inf",
    "model.rating_min=nan",
    "model.rating_max=1e19",
    "trainer.batch_max=2147483648",
]


@pytest.mark.parametrize("value", BEYOND)
def test_a_number_beyond_what_the_engine_holds_is_wrong_use(value):
    done = command("config", "show", "--set", value)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    said, remedy = done.stderr.splitlines()
    assert value.partition("=")[0] in said and remedy.strip()


def disk(folder) -> str:
    """Return what the doctor says of this folder; nothing else answers."""
    done = command(
        "doctor", "--set", f"snapshots.dir={folder}", "--set", "redis.url=redis://127.0.0.1:1",
        "--set", "kafka.bootstrap_servers=127.0.0.1:1",
        "--set", 'kafka.options={"bootstrap_timeout_ms":100}',
    )  # fmt: skip
    assert "Traceback" not in done.stderr and done.returncode == 1
    at = done.stdout.index(" disk: ")
    return done.stdout[done.stdout.rindex("\n", 0, at) + 1 :]


@contextmanager
def mounted(at: Path, *options: str):
    """A small file system of its own; skipped where that is not permitted."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(at)],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="mount is not installed")
def test_the_doctor_names_a_disk_that_is_too_small_or_read_only(tmp_path):
    with mounted(tmp_path, "size=1m"):
        said = disk(tmp_path / "snapshots")
        assert said.startswith("FAIL") and "1 MiB free" in said and "1024" in said
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        said = disk(tmp_path / "snapshots")
        assert said.startswith("FAIL") and "Read-only" in said and "snapshots.dir" in said


def test_the_doctor_wants_room_for_twice_the_largest_snapshot(tmp_path):
    if shutil.disk_usage(tmp_path).free < 1 << 30:
        pytest.skip("this disk has less than 1 GiB free itself")
    assert disk(tmp_path / "not" / "yet").startswith("ok")
    held = tmp_path / "snapshot-000000000001"
    held.mkdir()
    with (held / "state.safetensors").open("wb") as file:
        file.truncate(shutil.disk_usage(tmp_path).total)  # a sparse file: it takes nothing
    assert disk(tmp_path).startswith("FAIL")
    assert disk(tmp_path / "snapshot-000000000001" / "state.safetensors").startswith("FAIL")


def test_the_small_installation_of_the_readme_takes_no_cuda():
    """After README's first line, torch for the CPU, as here; the resolver alone is asked."""
    first, second, _ = (line for line in lines("pip") if line.startswith("pip install"))
    constrained = re.search(r"torch==\S+", first)
    assert constrained and constrained.group() in (ROOT / "constraints.txt").read_text()
    import torch

    if torch.version.cuda:
        pytest.skip("torch is a CUDA build here, not the one of README's first line")
    done = subprocess.run(
        [sys.executable, "-m", *second.split(), "--dry-run", "--quiet", "--report", "-"],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"pip cannot resolve here: {done.stderr.strip().splitlines()[-1]}")
    report = orjson.loads(done.stdout[done.stdout.index("{") :])
    taken = {entry["metadata"]["name"] for entry in report["install"]}
    assert not {name for name in taken if name.startswith(("nvidia", "torch", "triton"))}


def test_the_readme_and_the_doctor_name_extras_that_there_are():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    gpu_md = (ROOT / "docs" / "gpu.md").read_text()
    for text in (README, gpu_md, gpu.EXTRA):
        (named,) = set(re.findall(r"pip install [^\n]*\[(\w+)\]", text))
        assert named == "cuda" and named in extras
    assert "`cuda12`" in gpu_md
    for name in ("cuda", "cuda12"):  # numba-cuda asks for np.row_stack, which NumPy 2.5 lacks
        assert "numpy<2.5" in extras[name]


def test_the_version_is_told():
    done = command("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("counterflow ")
