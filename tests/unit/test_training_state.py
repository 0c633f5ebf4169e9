"""State files and the log: complete, atomic, and safe to read."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eqdeploy.errors import CheckpointError, OutputError, TrainingError
from eqdeploy.files import write_atomically
from eqdeploy.training.average import ParameterAverage
from eqdeploy.training.log import TrainingLog
from eqdeploy.training.state import Phase, Position, load_state, restore_state, save_state

CONFIGURATION = {"seed": 3, "supernet_training": {"learning_rate": 0.001}}
POSITION = Position(Phase.SUPERNET, step=5, log_lines=9, float_accuracy=0.75)


class Companions:
    """A model that has taken some steps, with its optimizer, the average of its parameters and its generators."""

    def __init__(self, *, steps: int, seed: int = 0, optimizer: type[torch.optim.Optimizer] = torch.optim.Adam) -> None:
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.optimizer: torch.optim.Optimizer
        if optimizer is torch.optim.Adam:
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        else:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        self.average = ParameterAverage(self.model, 0.9)
        self.steps = 0
        self.generators = {"data": generator, "subnets": torch.Generator().manual_seed(seed + 1)}
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        x = torch.randn(8, 3, generator=self.generators["data"])
        # The last layer's bias takes no part: like a form that was never drawn, it has no optimizer state.
        torch.autograd.backward(self.model(x).square().mean())
        self.model.get_parameter("2.bias").grad = None
        self.optimizer.step()
        self.average.update(self.steps)
        self.steps += 1

    def save(self, path: Path) -> None:
        save_state(
            path,
            position=POSITION,
            model=self.model,
            optimizer=self.optimizer,
            average=self.average,
            generators=self.generators,
            configuration=CONFIGURATION,
        )

    def restore(self, path: Path) -> Position:
        state = load_state(path, configuration=CONFIGURATION)
        restore_state(
            state, model=self.model, optimizer=self.optimizer, average=self.average, generators=self.generators
        )
        self.steps = state.position.step
        return state.position


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "state.safetensors"


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Let no file grow beyond ``size`` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_a_restored_run_goes_on_as_if_nothing_had_happened(path: Path, optimizer: type[torch.optim.Optimizer]) -> None:
    straight = Companions(steps=POSITION.step, optimizer=optimizer)
    straight.save(path)
    resumed = Companions(steps=0, seed=99, optimizer=optimizer)
    assert resumed.restore(path) == POSITION
    for run in (straight, resumed):
        run.step()
        run.step()
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    for name, tensor in straight.average.values.items():
        assert torch.equal(resumed.average.values[name], tensor), name
    assert not torch.equal(straight.average.values["2.weight"], straight.model.get_parameter("2.weight"))
    draws = [torch.rand(3, generator=run.generators["subnets"]) for run in (straight, resumed)]
    assert torch.equal(*draws)
    assert len(resumed.optimizer.state) == len(straight.optimizer.state) == 5


def test_equal_states_are_equal_bytes(path: Path) -> None:
    Companions(steps=2).save(path)
    first = path.read_bytes()
    Companions(steps=2).save(path)
    assert path.read_bytes() == first


def test_tied_weights_are_saved(path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    optimizer = torch.optim.Adam(tied.parameters())
    average = ParameterAverage(tied, 0.9)
    save_state(
        path,
        position=POSITION,
        model=tied,
        optimizer=optimizer,
        average=average,
        generators={},
        configuration={},
    )
    restore_state(load_state(path, configuration={}), model=tied, optimizer=optimizer, average=average, generators={})


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 4}, "seed was 3 and is now 4"),
        ({"supernet_training": {"learning_rate": 0.002}}, "supernet_training.learning_rate was 0.001 and is now 0.002"),
        ({"threads": 2}, "threads was not set and is now 2"),
    ],
)
def test_another_configuration_is_refused_by_key(path: Path, change: dict[str, Any], key: str) -> None:
    Companions(steps=1).save(path)
    with pytest.raises(TrainingError, match=key) as caught:
        load_state(path, configuration={**CONFIGURATION, **change})
    assert caught.value.where == str(path)


def test_a_missing_or_damaged_file_is_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read"):
        load_state(path, configuration=CONFIGURATION)
    Companions(steps=1).save(path)
    content = path.read_bytes()
    for damaged in (b"", content[:4], content[:100], content[:-1], b"\xff" * len(content)):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"state\.safetensors"):
            load_state(path, configuration=CONFIGURATION)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"other": "{}"},
        {"eqdeploy.training_state": "[]"},
        {"eqdeploy.training_state": '{"schema": 99}'},
        {"eqdeploy.training_state": '{"schema": 1, "position": {}, "configuration": {}}'},
        *(
            {"eqdeploy.training_state": json.dumps({"schema": 1, "position": position, "configuration": CONFIGURATION})}
            for position in (
                {"phase": "supernet", "step": -1, "log_lines": 0, "float_accuracy": 0.5},
                {"phase": "supernet", "step": 1.5, "log_lines": 0, "float_accuracy": 0.5},
                {"phase": "supernet", "step": 1, "log_lines": 0, "float_accuracy": "0.5"},
                {"phase": "other", "step": 1, "log_lines": 0, "float_accuracy": 0.5},
                {"phase": "float", "step": 1, "log_lines": True, "float_accuracy": None},
            )
        ),
    ],
)
def test_other_safetensors_files_are_no_state(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata)
    with pytest.raises(CheckpointError, match="no training state of schema 1"):
        load_state(path, configuration=CONFIGURATION)


def test_a_state_whose_document_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"eqdeploy.training_state": "not json"})
    with pytest.raises(CheckpointError, match=r"other\.safetensors: not valid JSON"):
        load_state(path, configuration=CONFIGURATION)


def test_everything_that_does_not_fit_is_reported_together(path: Path) -> None:
    Companions(steps=1).save(path)
    tensors = load_file(path)
    document = {"eqdeploy.training_state": _metadata(path)}
    del tensors["model.0.bias"]
    del tensors["optimizer.exp_avg.0.bias"]
    del tensors["average.0.bias"]
    tensors["optimizer.momentum_buffer.0.bias"] = torch.zeros(4)
    tensors["model.extra"] = torch.zeros(1)
    tensors["model.2.weight"] = torch.zeros(2, 5)
    tensors["model.0.weight"][0, 0] = float("nan")
    tensors["optimizer.step.0.weight"] = torch.zeros(3)
    tensors["generator.data"] = torch.zeros(2, dtype=torch.uint8)
    save_file(tensors, path, document)
    victim = Companions(steps=0)
    before = {name: tensor.clone() for name, tensor in victim.model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        victim.restore(path)
    for problem in (
        "model.0.bias is missing",
        "optimizer.exp_avg.0.bias is missing",
        "average.0.bias is missing",
        "optimizer.momentum_buffer.0.bias is unexpected",
        "model.extra is unexpected",
        "model.2.weight is torch.float32 (2, 5) instead of torch.float32 (2, 4)",
        "model.0.weight is not finite",
        "optimizer.step.0.weight",
        "generator.data",
    ):
        assert problem in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in victim.model.state_dict().items())


def test_a_damaged_generator_state_is_refused(path: Path) -> None:
    Companions(steps=1).save(path)
    tensors = load_file(path)
    tensors["generator.data"] = torch.zeros_like(tensors["generator.data"])
    save_file(tensors, path, {"eqdeploy.training_state": _metadata(path)})
    with pytest.raises(CheckpointError, match=r"generator\.data"):
        Companions(steps=0).restore(path)


@pytest.mark.parametrize("name", ["model.0.weight", "optimizer.exp_avg.0.weight", "average.1.bias", "generator.data"])
def test_a_single_flipped_bit_is_found(path: Path, name: str) -> None:
    Companions(steps=1).save(path)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    offset = start + json.loads(content[8:start])[name]["data_offsets"][0]
    path.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
    with pytest.raises(CheckpointError, match=rf"does not fit: {re.escape(name)} is damaged$"):
        Companions(steps=0).restore(path)


def test_a_state_without_checksums_is_taken(path: Path) -> None:
    run = Companions(steps=2)
    run.save(path)
    document = json.loads(_metadata(path))
    assert len(document.pop("checksums")) == len(load_file(path))
    save_file(load_file(path), path, {"eqdeploy.training_state": json.dumps(document)})
    restored = Companions(steps=0)
    assert restored.restore(path) == POSITION
    assert torch.equal(restored.model.get_parameter("0.weight"), run.model.get_parameter("0.weight"))


def test_a_full_disk_leaves_the_previous_state_whole(path: Path) -> None:
    run = Companions(steps=1)
    run.save(path)
    before = path.read_bytes()
    run.step()
    with disk_of(len(before) // 2), pytest.raises(OutputError, match=r"state\.safetensors: cannot write"):
        run.save(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_atomically(tmp_path / "file" / "state", b"")


def test_the_log_keeps_the_lines_that_the_state_had_seen(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with TrainingLog(path) as log:
        for step in range(4):
            log.write({"step": step})
        assert log.lines == 4
    with TrainingLog(path, keep=2) as log:
        log.write({"step": "resumed"})
        assert log.lines == 3
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, "resumed"]
    with TrainingLog(path):
        pass
    assert path.read_bytes() == b""


def test_a_line_cut_short_by_a_kill_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"st')
    with TrainingLog(path, keep=2) as log:
        log.write({"step": 2})
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n{"step": 2}\n'
    path.write_text('{"step": 0}\n{"st')
    with pytest.raises(CheckpointError, match="1 lines, the training to resume had written 2"):
        TrainingLog(path, keep=2)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot read the log"):
        TrainingLog(path, keep=2)


def test_a_log_on_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    full = pytest.raises(OutputError, match=r"log\.jsonl: cannot write")
    with TrainingLog(tmp_path / "log.jsonl") as log, disk_of(10), full:
        log.write({"text": "longer than ten bytes"})


def test_the_log_takes_finite_numbers_only(tmp_path: Path) -> None:
    with TrainingLog(tmp_path / "log.jsonl") as log, pytest.raises(ValueError, match="JSON"):
        log.write({"loss": float("nan")})


def _metadata(path: Path) -> str:
    """The state's own document."""
    content = path.read_bytes()
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text = header["__metadata__"]["eqdeploy.training_state"]
    assert isinstance(text, str)
    return text


def test_moments_are_stored_under_the_names_of_their_parameters(path: Path) -> None:
    run = Companions(steps=3)
    run.save(path)
    tensors: dict[str, Tensor] = load_file(path)
    for name, parameter in run.model.named_parameters():
        assert (f"optimizer.exp_avg.{name}" in tensors) == (parameter in run.optimizer.state)
    assert torch.equal(
        tensors["optimizer.exp_avg.0.weight"], run.optimizer.state[run.model.get_parameter("0.weight")]["exp_avg"]
    )
    assert tensors["optimizer.step.0.weight"].item() == 3


def test_the_state_of_another_optimizer_or_without_averages_does_not_fit(path: Path) -> None:
    Companions(steps=1).save(path)
    with pytest.raises(CheckpointError, match=r"optimizer\.exp_avg\.0\.bias is unexpected"):
        Companions(steps=0, optimizer=torch.optim.SGD).restore(path)
    other = Companions(steps=0)
    state = load_state(path, configuration=CONFIGURATION)
    with pytest.raises(CheckpointError, match=r"average\.0\.bias is unexpected"):
        restore_state(state, model=other.model, optimizer=other.optimizer, average=None, generators=other.generators)
    assert not other.optimizer.state


def test_moments_come_back_in_the_layout_of_their_parameters(path: Path) -> None:
    layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    average = ParameterAverage(layer, 0.9)
    torch.autograd.backward(layer(torch.randn(2, 3, 5, 5)).square().mean())
    optimizer.step()
    average.update(0)
    moment, values = optimizer.state[layer.weight]["momentum_buffer"].clone(), average.values["weight"].clone()
    save_state(
        path, position=POSITION, model=layer, optimizer=optimizer, average=average, generators={}, configuration={}
    )
    optimizer.zero_grad()
    optimizer.step()
    restore_state(load_state(path, configuration={}), model=layer, optimizer=optimizer, average=average, generators={})
    restored = optimizer.state[layer.weight]["momentum_buffer"]
    assert torch.equal(restored, moment)
    assert torch.equal(average.values["weight"], values)
    assert restored.is_contiguous(memory_format=torch.channels_last)
    assert average.values["weight"].is_contiguous(memory_format=torch.channels_last)
