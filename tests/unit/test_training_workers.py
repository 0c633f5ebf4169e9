"""Training with several processes: real ones, two of them, that talk through gloo."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from eqdeploy.errors import DataError, UsageError
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.settings import Device
from eqdeploy.training.trainer import train
from eqdeploy.training.workers import ALONE, Workers, join_workers
from tests.unit.training_support import configuration, write_images
from tests.unit.workers_program import grid_counts, plain_model, sandwich_steps

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PLAIN, SMALL = "tests.unit.workers_program:plain_model", "tests.unit.training_support:small_model"

#: Seconds after which processes that wait for each other are given up.
PATIENCE = 120


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(module: str, *arguments: str | Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a module in several processes, or in one without a launcher."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else ()), "-m", module, *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=PATIENCE)


def start_pair(*arguments: str | Path) -> list[subprocess.Popen[str]]:
    """Two processes of the command line as another launcher starts them: their exit codes are theirs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "eqdeploy", "train", *map(str, arguments)],
            env={**environment(), **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and messages of each process."""
    try:
        messages = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, message) for process, message in zip(processes, messages, strict=True)]


def config_file(data: Path, **changes: object) -> Path:
    configuration(data, **changes)
    return data.parent / "train.yaml"


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Tensor]]]:
    """The data, and what each of two processes found."""
    folder = tmp_path_factory.mktemp("together")
    data = write_images(folder / "images")
    finished = run("tests.unit.workers_program", "library", data, folder)
    assert finished.returncode == 0, finished.stderr
    return data, [load_file(folder / f"{rank}.safetensors") for rank in range(2)]


def test_two_processes_step_like_one_on_the_whole_batch(together: tuple[Path, list[dict[str, Tensor]]]) -> None:
    data, (first, second) = together
    alone = sandwich_steps(ALONE, data, 3)
    assert any(name.startswith("gradient.graph_module.activation_quantizers") for name in alone)
    assert {name for name in first if name.startswith("gradient")} == {
        name for name in alone if name.startswith("gradient")
    }
    for name, expected in alone.items():
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=name)
        # Sums in another order: a few units in the last place of the largest element.
        tolerance = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(first[name], expected, rtol=1e-5, atol=tolerance, msg=name)


def test_two_processes_count_what_one_counts(together: tuple[Path, list[dict[str, Tensor]]]) -> None:
    data, found = together
    expected = grid_counts(ALONE, data)
    assert len(expected) == 13
    for counts in found:
        assert counts["counts"].tolist() == expected.tolist()


def test_what_processes_share(together: tuple[Path, list[dict[str, Tensor]]]) -> None:
    for found in together[1]:
        assert found["everywhere"].tolist() == [1.5, 1.5]
        assert found["somewhere"].tolist() == [0.5, 0.5], "what a process lacks is zero"
        assert found["nowhere"], "what all lack stays away"
        assert found["mean"] == 15.0
        assert found["sum"].tolist() == [1, 10]
        assert found["from_main"] == 1.0
        assert found["broadcast.weight"].tolist() == [1.0] * 3
        assert found["broadcast.running_var"].tolist() == [1.0] * 3
        assert found["broadcast.num_batches_tracked"] == 1
        assert found["broadcast.flag"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs a system that lists threads in /proc")
def test_no_thread_outlives_the_group(tmp_path: Path) -> None:
    finished = run("tests.unit.workers_program", "threads", tmp_path)
    assert finished.returncode == 0, finished.stderr
    for rank in range(2):
        inside, after = json.loads((tmp_path / f"{rank}.json").read_text())
        assert any("gloo" in name for name in inside)
        assert not any("gloo" in name for name in after), "such a thread can abort a process that ends"


@dataclass(frozen=True)
class Straight:
    """Runs from the start to the end, and what went into them."""

    config: Path
    data: Path
    pair: Path
    pair_report: Path
    messages: str
    answer: str
    alone: Path


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """Two processes that train the small network, with dropout, and one that trains the plain one."""
    folder = tmp_path_factory.mktemp("straight")
    data = write_images(folder / "images")
    config, pair, report, alone = config_file(data), folder / "pair", folder / "report.json", folder / "alone"
    finished = run("eqdeploy", "train", config, "--model", SMALL, "-o", pair, "--json", report)
    assert finished.returncode == 0, finished.stderr
    train(TrainingConfig.load(config), alone, model=plain_model())
    return Straight(config, data, pair, report, finished.stderr, finished.stdout, alone)


def stop_and_resume(straight: Straight, output: Path, model: str, *, before: int, after: int) -> str:
    """Stop a run at a step that was not saved, resume it, and return its log."""
    name = {SMALL: "small", PLAIN: "plain"}[model]
    stopped = run(
        "tests.unit.workers_program", "stop", straight.config, output, name, "supernet", "7", processes=before
    )
    assert stopped.returncode != 0
    assert (output / "state.safetensors").exists()
    assert not (output / "supernet.safetensors").exists()
    resume = ("train", straight.config, "--model", model, "-o", output, "--resume")
    resumed = run("eqdeploy", *resume, processes=after)
    assert resumed.returncode == 0, resumed.stderr
    return (output / "training.jsonl").read_text()


def test_one_checkpoint_comes_out_and_can_be_evaluated(straight: Straight) -> None:
    names = sorted(path.name for path in straight.pair.iterdir())
    assert names == ["float.safetensors", "supernet.safetensors", "training.jsonl"]
    assert straight.pair_report.exists()
    assert straight.answer.count("training.jsonl") == 1, "one process answers"
    assert straight.messages.count("initializing scales") == 1, "one process shows progress"
    log = (straight.pair / "training.jsonl").read_text().splitlines()
    assert sum('"phase": "float", ' in line for line in log) == 12, "steps are global"
    assert sum('"phase": "supernet", ' in line for line in log) == 12
    checkpoint = straight.pair / "supernet.safetensors"
    found = run("eqdeploy", "eval", "--supernet", checkpoint, "--model", SMALL, "--data", straight.data, processes=1)
    assert found.returncode == 0, found.stderr


def test_the_same_number_of_processes_resumes_exactly(straight: Straight, tmp_path: Path) -> None:
    output = tmp_path / "run"
    log = stop_and_resume(straight, output, SMALL, before=2, after=2)
    assert log == (straight.pair / "training.jsonl").read_text()
    for name in ("supernet.safetensors", "float.safetensors"):
        assert (output / name).read_bytes() == (straight.pair / name).read_bytes()


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_resumes(straight: Straight, tmp_path: Path, before: int, after: int) -> None:
    log = stop_and_resume(straight, tmp_path / "run", PLAIN, before=before, after=after)
    pattern = re.compile(r'"(?:loss|highest|random|lowest)": ([^,}]+)')
    found, expected = (
        np.array(pattern.findall(text), float) for text in (log, (straight.alone / "training.jsonl").read_text())
    )
    assert len(expected) == 12 + 3 * 12
    # The same steps but for rounding, which training amplifies.
    np.testing.assert_allclose(found, expected, rtol=0.02)
    assert (tmp_path / "run" / "supernet.safetensors").exists()


def test_a_loss_that_is_not_finite_in_one_process_ends_all(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for split in ("train", "test"):
        images = np.random.default_rng(0).random((32, 1, 8, 8)).astype(np.float32)
        images[5] = 3e38  # overflows when it is divided by 0.02; one process meets it, the other does not
        np.savez(folder / f"{split}.npz", allow_pickle=False, images=images, labels=np.arange(32) % 4)
    config = config_file(folder, preprocessing={"scale": 1.0, "std": [0.02]})
    first, second = ends(start_pair(config, "--model", PLAIN, "-o", tmp_path / "run", "--quiet"))
    assert first[0] == second[0] == 50, (first, second)
    assert re.fullmatch(r"error: .*the float loss is (nan|inf) at step \d+.*\n", first[1])
    assert second[1] == ""


def test_data_that_no_process_can_load_are_one_message(tmp_path: Path) -> None:
    config = config_file(tmp_path / "missing")
    first, second = ends(start_pair(config, "--model", PLAIN, "-o", tmp_path / "run"))
    assert first[0] == second[0] == DataError.exit_code
    assert first[1].count("\n") == 1
    assert first[1].startswith(f"error: {tmp_path / 'missing'}: no such file or folder")
    assert second[1] == ""


def test_a_batch_that_cannot_be_divided_is_refused(data: Path, tmp_path: Path) -> None:
    config = config_file(data, supernet_training={"batch_size": 15})
    refused = run("eqdeploy", "train", config, "--model", SMALL, "-o", tmp_path / "run")
    assert refused.returncode != 0
    errors = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: batch_size: a batch of 15 images cannot be divided equally among 2 processes (14 can)"]
    assert re.findall(r"exitcode\s*: (\d+)", refused.stderr)[0] == str(UsageError.exit_code)
    assert not (tmp_path / "run").exists(), "nothing was trained before"


def test_a_killed_process_ends_the_others(data: Path, tmp_path: Path) -> None:
    config = config_file(data, float_training={"epochs": 100_000})
    processes = start_pair(config, "--model", SMALL, "-o", tmp_path / "run", "--quiet")
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "run" / "state.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    processes[1].kill()
    first, second = ends(processes)
    assert second[0] == -signal.SIGKILL
    assert first[0] == 50
    assert first[1].count("\n") == 1
    assert first[1].startswith("error: another process of this run has ended")
    assert (tmp_path / "run" / "state.safetensors").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_an_error_only_where_one_is_demanded() -> None:
    assert Workers().device(Device.AUTO) == torch.device("cpu")
    assert Workers().device(Device.CPU) == torch.device("cpu")
    with pytest.raises(UsageError, match="no GPU"):
        Workers().device(Device.CUDA)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK"])
def test_a_wrong_launcher_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for variable in LAUNCHER:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, "two")
    with pytest.raises(UsageError, match=f"{name}: must be a whole number, not 'two'"), join_workers():
        pass


def test_without_a_launcher_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in LAUNCHER:
        monkeypatch.delenv(variable, raising=False)
    with join_workers() as workers:
        assert workers == Workers(rank=0, world_size=1, local_rank=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="cannot join the other processes"), join_workers():
        pass
