"""Which driver learns: the rules, what they say of themselves, and the settings behind them."""

import logging
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import orjson
import pytest
import torch

from consumers.commands import healthy
from consumers.gpu import Advice, check, shown
from consumers.model_config import model_config
from consumers.settings import WrongSetting, describe, load
from stream.errors import Inconsistent
from stream.model.choice import DriverChoice, choose, cores, needed
from stream.model.config import BLOCK_MAX, FORMER, ModelConfig, Step
from stream.model.gpu import Gpu, asked, gpu, seen, torch_build
from stream.model.layout import STRIDE
from stream.model.learner import Learner
from tests.test_trainer import Place

GIB = 1 << 30
NONE = Gpu("", 0, 0, ("torch is built without CUDA: install another", "no device is seen"))
LACKING = Gpu("NVIDIA H100", 0, 0, ("numba-cuda is not installed: install it",))
FREE = Gpu("NVIDIA H100", 80 * GIB, 78 * GIB, ())
FULL = replace(FREE, free=GIB)
SMALL = ModelConfig(max_users=64, max_items=64, max_features=64)


def never() -> Gpu:
    raise AssertionError("the GPU was asked for")


def chosen(found: Gpu, **named: Any) -> DriverChoice:
    return choose(ModelConfig(threads=3, **named), lambda: found)


RULES = [
    # step, device, the GPU: driver, device, threads, a word of the reason
    ("auto", "auto", NONE, "sequential", "cpu", 1, "no GPU"),
    ("auto", "auto", LACKING, "sequential", "cpu", 1, "numba-cuda"),
    ("auto", "auto", FULL, "sequential", "cpu", 1, "too small"),
    ("auto", "auto", FREE, "blocks on a GPU", "cuda", 1, "78.0 of 80.0 GiB"),
    ("blocks", "auto", NONE, "blocks", "cpu", 3, "no GPU"),
    ("blocks", "auto", LACKING, "blocks", "cpu", 3, "numba-cuda"),
    ("blocks", "auto", FULL, "blocks", "cpu", 3, "too small"),
    ("blocks", "auto", FREE, "blocks on a GPU", "cuda", 1, "GPU is there"),
    ("auto", "cuda", FREE, "blocks on a GPU", "cuda", 1, "model.device is cuda"),
    ("blocks", "cuda", FREE, "blocks on a GPU", "cuda", 1, "model.device is cuda"),
    ("auto", "cuda", FULL, "blocks on a GPU", "cuda", 1, "1.0 of 80.0 GiB are free"),
]


@pytest.mark.parametrize(("step", "device", "found", "driver", "where", "threads", "why"), RULES)
def test_the_rules(
    step: str, device: str, found: Gpu, driver: str, where: str, threads: int, why: str
) -> None:
    got = chosen(found, step=step, device=device)
    assert (got.driver, got.device, got.threads) == (driver, where, threads)
    assert why in got.why and "\n" not in got.why


def test_the_gpu_is_not_asked_for_where_it_cannot_be_chosen() -> None:
    for named, driver in (
        ({"step": "sequential"}, "sequential"),
        ({"step": "sequential", "device": "cpu"}, "sequential"),
        ({"device": "cpu"}, "sequential"),
        ({"step": "blocks", "device": "cpu"}, "blocks"),
    ):
        got = choose(ModelConfig(**named), never)  # type: ignore[arg-type]
        assert (got.driver, got.device) == (driver, "cpu")


@pytest.mark.parametrize("found", [NONE, LACKING])
def test_cuda_that_cannot_be_had_is_inconsistent_and_names_all_that_lacks(found: Gpu) -> None:
    with pytest.raises(Inconsistent) as refused:
        chosen(found, device="cuda")
    assert all(lack in refused.value.message for lack in found.lacks)
    assert "COUNTERFLOW_MODEL__DEVICE=auto" in refused.value.remedy


def test_auto_takes_the_gpu_up_to_the_last_byte_that_full_tables_need() -> None:
    config = ModelConfig()
    need = needed(config)
    assert choose(config, lambda: replace(FREE, free=need)).device == "cuda"
    short = replace(FREE, free=need - 1)
    assert choose(config, lambda: short).device == "cpu"
    assert choose(replace(config, device="cuda"), lambda: short).device == "cuda"


def test_what_is_needed_is_every_table_full_its_links_and_the_largest_table_twice() -> None:
    config = replace(SMALL, max_users=10_000, max_items=3_000, max_features=500, device="cpu")
    learner = Learner(config)
    tables = [learner.user, learner.item, learner.feature]
    widths = [-(-t.layout.size // STRIDE) * STRIDE for t in tables]  # as rows are on a GPU
    held = [t.rows * w * t.packed.element_size() for t, w in zip(tables, widths, strict=True)]
    links = sum(link.rows.nbytes + link.values.nbytes for link in learner.links.values())
    assert needed(config) - GIB == sum(held) + max(held) + links


def test_threads_are_as_chosen_or_one_a_core_and_at_most_4() -> None:
    def threads(config: ModelConfig) -> int:
        return choose(replace(config, step="blocks", device="cpu"), never).threads

    assert threads(ModelConfig(threads=64)) == 64
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from stream.model.choice import choose; from stream.model.config import ModelConfig;"
        "print(choose(ModelConfig(step='blocks', device='cpu')).threads)"
    )
    if hasattr(os, "sched_setaffinity"):
        assert subprocess.check_output([sys.executable, "-c", code]).split() == [b"1"]
        cores = len(os.sched_getaffinity(0))
        assert threads(ModelConfig()) == min(cores, 4)


def test_a_small_model_can_be_made_to_choose_as_the_large_one_did() -> None:
    """A warm-up of eight rows would fit where the tables do not, and compile another driver."""
    short = replace(FREE, free=2 * GIB)
    large = replace(SMALL, max_users=50_000_000)
    assert choose(SMALL, lambda: short).device == "cuda"
    for config, found in (
        (large, short), (replace(large, step="blocks"), short), (SMALL, FREE), (SMALL, NONE),
        (replace(SMALL, device="cuda"), FREE),
    ):  # fmt: skip
        first = choose(config, lambda found=found: found)  # type: ignore[misc]
        again = choose(first.pinned(SMALL), lambda: FREE)
        assert (again.driver, again.device) == (first.driver, first.device)


def test_the_choice_says_what_learns_where_and_why() -> None:
    told = str(chosen(FREE))
    assert told.startswith("blocks on a GPU (NVIDIA H100, blocks of 256), because ")
    assert str(chosen(NONE)) == "sequential (the CPU), because no GPU is seen"
    blocks = str(chosen(NONE, step="blocks", block=4_096))
    assert blocks.startswith("blocks (blocks of 4,096, 3 threads), because ")
    assert str(chosen(NONE, step="blocks", device="cpu")).count(":") == 0


def test_to_choose_loads_neither_torch_nor_numba_where_torch_is_built_for_the_cpu() -> None:
    code = (
        "import sys; from stream.model.choice import choose, gpu;"
        "from stream.model.config import ModelConfig; choose(ModelConfig()); gpu();"
        "print(*{'torch', 'numba', 'numba_cuda', 'cuda'} & set(sys.modules))"
    )
    told = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert not told.strip() or torch.version.cuda is not None


def test_torch_is_known_without_its_import() -> None:
    assert torch_build() == (torch.__version__.partition("+")[0], torch.version.cuda)


def test_the_gpu_of_this_machine_is_told_as_torch_sees_it() -> None:
    found = gpu()
    assert found is gpu()  # the same answer for every model of the process
    if not torch.cuda.is_available():
        assert found.lacks and not found.memory
        return
    assert found.name == torch.cuda.get_device_name()
    assert 0 < found.free <= found.memory


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")
def test_torch_with_cuda_and_no_device_says_so_beside_what_else_lacks() -> None:
    found = asked(["numba-cuda is not installed"])
    assert found.lacks[0] == "numba-cuda is not installed"
    assert "CUDA_VISIBLE_DEVICES" in found.lacks[1] and len(found.lacks) == 2


def test_a_gpu_is_named_by_what_the_driver_lists(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert seen(tmp_path) == ""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    assert seen(tmp_path) == ""
    (tmp_path / "dev" / "nvidia0").touch()
    assert seen(tmp_path) == "NVIDIA GPU"
    told = tmp_path / "proc" / "driver" / "nvidia" / "gpus" / "0000:17:00.0" / "information"
    told.parent.mkdir(parents=True)
    told.write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 42\n")
    assert seen(tmp_path) == "NVIDIA H100 80GB HBM3"
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert seen(tmp_path) == ""


# settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"step": "compiled"}, "sequential"),
        ({"step": "torch"}, "blocks"),
        ({"step": "waves"}, "sequential, blocks"),
        ({"device": "tpu"}, "cuda"),
        ({"step": "sequential", "device": "cuda"}, "blocks"),
        ({"block": 0}, "1..1048576"),
        ({"block": BLOCK_MAX + 1}, "1..1048576"),
        ({"threads": -1}, "1..64"),
        ({"threads": 65}, "1..64"),
    ],
)
def test_a_step_that_cannot_run_is_refused_with_what_can(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"^model\.") as refused:
        ModelConfig(**wrong)
    assert said in str(refused.value)


def test_former_names_are_told_by_the_settings_too() -> None:
    assert not FORMER.keys() & set(get_args(Step))
    for name, remedy in FORMER.items():
        with pytest.raises(WrongSetting) as refused:
            load({}, {"COUNTERFLOW_MODEL__STEP": name})
        assert refused.value.remedy == remedy
    with pytest.raises(WrongSetting) as refused:
        load({}, {"COUNTERFLOW_MODEL__STEP": "other"})
    assert refused.value.remedy.startswith(describe("model", "step"))
    assert refused.value.remedy.endswith("One of: auto, sequential, blocks.")


@pytest.mark.parametrize("device", ["gpu", "cuda:1"])
def test_a_device_that_is_none_is_refused_with_those_that_are(device: str) -> None:
    with pytest.raises(WrongSetting, match=device) as refused:
        load({}, {"COUNTERFLOW_MODEL__DEVICE": device})
    assert refused.value.remedy.endswith("One of: auto, cpu, cuda.")


def test_block_and_threads_reach_the_model_and_have_its_bounds() -> None:
    environ = {"COUNTERFLOW_MODEL__BLOCK": "1048576", "COUNTERFLOW_MODEL__THREADS": "64"}
    config = model_config(load({}, environ))
    assert (config.block, config.threads) == (1_048_576, 64)
    default = model_config(load())
    assert (default.block, default.threads) == (ModelConfig().block, ModelConfig().threads)
    for name, value in (("block", 0), ("block", 1 << 21), ("threads", -1), ("threads", 65)):
        with pytest.raises(WrongSetting):
            load({f"model.{name}": str(value)})


def test_settings_that_exclude_each_other_are_a_wrong_setting() -> None:
    with pytest.raises(
        WrongSetting, match=r"model\.step = sequential.*set blocks or auto"
    ) as refused:
        model_config(load({"model.step": "sequential", "model.device": "cuda"}))
    assert not refused.value.remedy  # the reason says already what to choose


# what is told ------------------------------------------------------------------------------------


def test_the_doctor_says_what_the_step_runs_on() -> None:
    cpu = "the step runs sequentially on the CPU"
    assert check(SMALL, lambda: NONE) == f"no GPU; {cpu}"
    assert "78.0 of 80.0 GiB free; the step runs in blocks on it" in check(SMALL, lambda: FREE)
    blocks = replace(SMALL, step="blocks", threads=1)
    assert check(blocks, lambda: NONE).endswith("in blocks on 1 of the CPU's threads")
    large = replace(SMALL, max_users=50_000_000)
    assert "too small" in check(large, lambda: FULL) and cpu in check(large, lambda: FULL)


def test_the_doctor_advises_where_a_gpu_is_seen_that_libraries_do_not_reach(capsys) -> None:
    assert healthy("gpu", lambda: check(SMALL, lambda: LACKING))  # advice is no failure
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("warn  gpu: NVIDIA H100 is not used") and "sequentially" in first
    assert second.strip() == LACKING.lacks[0]
    for settled in ({"device": "cpu"}, {"step": "sequential"}):  # nothing to advise
        assert "is not used, because model." in check(
            replace(SMALL, **settled), lambda: LACKING  # type: ignore[arg-type]
        )  # fmt: skip
    with pytest.raises(Advice):
        check(replace(SMALL, step="blocks"), lambda: LACKING)


def test_the_doctor_advises_where_blocks_cannot_be_as_they_were_set(capsys) -> None:
    blocks = replace(SMALL, step="blocks", device="cpu", threads=1, block=64)
    assert check(blocks, lambda: NONE, batch_max=64).startswith("no GPU; ")
    many = cores() + 1
    for wrong, words in (
        (replace(blocks, block=65), ("model.block 65", "trainer.batch_max 64")),
        (replace(blocks, threads=many), (f"model.threads {many}", f"the cores, {cores()}")),
    ):
        assert healthy("gpu", lambda wrong=wrong: check(wrong, lambda: NONE, batch_max=64))  # type: ignore[misc]
        first, second = capsys.readouterr().out.splitlines()
        assert first.startswith("warn  gpu: no GPU; the step runs in blocks on")
        assert all(word in second for word in words)
    on_gpu = replace(SMALL, block=65)
    with pytest.raises(Advice, match=r"78\.0 of 80\.0 GiB free"):
        check(on_gpu, lambda: FREE, batch_max=64)
    sequential = replace(SMALL, step="sequential", block=65, threads=many)
    assert check(sequential, lambda: NONE, batch_max=64).startswith("no GPU; ")


def test_the_doctor_fails_where_a_gpu_is_demanded_that_cannot_be_used(capsys) -> None:
    demanded = replace(SMALL, device="cuda")
    assert not healthy("gpu", lambda: check(demanded, lambda: NONE))
    said = capsys.readouterr().out
    assert said.startswith("FAIL  gpu: ") and "DEVICE=auto" in said.splitlines()[-1]


def told(*words: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([sys.executable, "-m", "consumers", *words], capture_output=True)


def test_the_doctor_has_the_check_and_config_show_the_driver() -> None:
    away = (
        "redis.url=redis://127.0.0.1:1", "kafka.bootstrap_servers=127.0.0.1:1",
        'kafka.options={"bootstrap_timeout_ms":100}',
    )  # fmt: skip
    done = told("doctor", *(f"--set={pair}" for pair in away))
    (line,) = (x for x in done.stdout.splitlines() if b" gpu: " in x)
    assert line.startswith((b"ok    ", b"warn  "))
    done = told("config", "show", "--set", "model.step=sequential", "--set", "model.block=7")
    shows = orjson.loads(done.stdout)
    assert shows["model"]["block"] == 7
    assert shows["learning_step"] == {
        "driver": "sequential", "device": "cpu", "threads": 1, "block": 1,
        "why": "model.step is sequential",
    }  # fmt: skip
    refused = told("config", "show", "--set", "model.step=compiled")
    assert refused.returncode == 2 and FORMER["compiled"] in refused.stderr.decode()


def test_config_show_tells_why_nothing_would_learn() -> None:
    shows = shown(replace(SMALL, device="cuda"), lambda: LACKING)
    assert shows["driver"] is None and LACKING.lacks[0] in shows["error"] and shows["remedy"]


def test_the_trainer_tells_the_driver_once_in_its_log_and_by_a_metric(
    broker, prefix, redis_url, tmp_path, caplog
) -> None:
    place = Place(broker, prefix, redis_url, tmp_path)
    with caplog.at_level(logging.INFO):
        trainer = place.trainer()
        try:
            trainer.start()
        finally:
            trainer.close()
    said = [m for m in caplog.messages if m.startswith("learning step: ")]
    choice = trainer.engine.learner.choice
    assert said == [f"learning step: {choice}"]
    (info,) = (m for m in trainer.metrics.registry.collect() if m.name.endswith("_step_info"))
    assert [(sample.name, sample.labels, sample.value) for sample in info.samples] == [
        ("counterflow_learning_step_info", {
            "driver": choice.driver, "device": choice.device,
            "threads": str(choice.threads), "block": str(choice.block),
        }, 1.0),
    ]  # fmt: skip


@pytest.mark.parametrize("step", ["sequential", "blocks"])
def test_the_learner_runs_what_was_chosen(step: Step) -> None:
    learner = Learner(replace(SMALL, step=step, device="cpu"))
    assert learner.choice == choose(learner.config, never) and learner.choice.driver == step
    learner.warm_up()
    rows = learner.served_rows("user", np.zeros(1, np.int32))
    assert rows.vector.shape[0] == 1
