"""Whole runs: repeatable, resumable after SIGKILL, and harmless when they fail."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eqdeploy.errors import (
    CheckpointError,
    DataError,
    OutputError,
    ProfileError,
    TrainingError,
    UsageError,
)
from eqdeploy.supernet.checkpoint import load_checkpoint
from eqdeploy.training.run_files import RunFiles
from eqdeploy.training.state import Phase
from eqdeploy.training.trainer import train
from eqdeploy.zoo import build
from tests.unit.training_support import (
    CLASSES,
    Interrupter,
    Listener,
    configuration,
    files,
    kill_in,
    small_model,
    write_images,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def test_a_run_killed_twice_ends_like_one_that_never_was(data: Path, tmp_path: Path) -> None:
    config = configuration(data, checkpoint_interval_steps=3)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    train(config, straight, model=small_model())

    kill_in(Phase.FLOAT, 8, data.parent / "train.yaml", killed)
    left = files(killed)
    assert set(left) == {"state.safetensors", "training.jsonl"}
    assert left["training.jsonl"].count(b"\n") == 1 + 8  # two steps more than the state holds
    kill_in(Phase.SUPERNET, 5, data.parent / "train.yaml", killed)
    assert (killed / "training.jsonl").read_bytes().count(b'"phase": "supernet"') == 5
    result = train(config, killed, resume=True, model=small_model())

    assert result.resumed_at is not None
    assert (result.resumed_at.phase, result.resumed_at.step) == (Phase.SUPERNET, 3)
    assert files(killed) == files(straight)


def test_the_same_seed_gives_the_same_bytes_whatever_the_caller_did_before(data: Path, tmp_path: Path) -> None:
    config = configuration(data)
    first = train(config, tmp_path / "a", model=small_model())
    torch.rand(17)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    second = train(config, tmp_path / "b", model=small_model())
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert first.evaluation == second.evaluation
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    train(config.overridden(seed=1), tmp_path / "c", model=small_model())
    assert files(tmp_path / "a")["supernet.safetensors"] != files(tmp_path / "c")["supernet.safetensors"]


def test_threads_are_those_of_the_configuration_and_put_back(data: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    class Watching(Listener):
        def note(self, message: str) -> None:
            seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    config = configuration(data, threads=2, float_training={"epochs": 0}, supernet_training={"epochs": 0})
    train(config, tmp_path / "run", model=small_model(), progress=Watching())
    assert seen == [2]
    assert torch.get_num_threads() == before


def test_a_run_learns_its_task_in_every_form(data: Path, tmp_path: Path) -> None:
    config = configuration(data, float_training={"epochs": 6}, supernet_training={"epochs": 8})
    listener = Listener()
    result = train(config, tmp_path / "run", model=small_model(), progress=listener)
    assert result.evaluation is not None
    assert result.float_accuracy is not None
    assert result.float_accuracy > 0.9
    assert len(result.evaluation.rows) == 12
    assert all(row.accuracy > 0.8 for row in result.evaluation.rows if row.bits >= 4)
    assert all(row.accuracy > 0.5 for row in result.evaluation.rows)  # 2 bits; chance is 0.25
    assert listener.stages["training the float network"] == [36, 36]
    assert listener.stages["training the supernet network"] == [48, 48]
    assert listener.stages["evaluating all forms"] == [13, 13]


def test_the_checkpoint_holds_what_was_trained(data: Path, tmp_path: Path) -> None:
    config = configuration(data, model={"architecture": "mlp", "arguments": {"classes": 4}})
    result = train(config, tmp_path / "run")
    assert result.checkpoint is not None
    loaded = load_checkpoint(result.checkpoint, build)
    assert loaded.metadata.architecture.name == "mlp"
    assert loaded.metadata.provenance["configuration"] == config.digest
    assert loaded.preprocessing == config.preprocessing.to_preprocessing()
    assert loaded.augmentation.shift == 1
    assert not (tmp_path / "run" / "state.safetensors").exists()


def test_the_log_has_a_line_for_every_step(data: Path, tmp_path: Path) -> None:
    result = train(configuration(data), tmp_path / "run", model=small_model())
    assert result.evaluation is not None
    lines = [json.loads(line) for line in result.log.read_text().splitlines()]
    assert lines[0]["schema"] == 1
    phases = [line["phase"] for line in lines[1:]]
    assert phases == ["float"] * 12 + ["float_evaluation"] + ["supernet"] * 12 + ["evaluation"]
    step = lines[14]
    assert list(step) == ["phase", "step", "learning_rate", "highest", "random", "lowest", "skewness", "kurtosis"]
    assert (step["step"], step["learning_rate"]) == (0, 0.003)
    assert lines[-1]["rows"] == [row.to_json() for row in result.evaluation.rows]


def test_gains_stay_canonical_and_scales_positive(data: Path, tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        model.get_parameter("bn2.weight").fill_(1e-4)
    config = configuration(data, supernet_training={"scale_learning_rate_factor": 1000.0})
    result = train(config, tmp_path / "run", model=model)
    assert result.checkpoint is not None
    supernet = load_checkpoint(result.checkpoint, build, model).supernet
    assert supernet.get_parameter("graph_module.bn2.weight").min().item() >= 0
    quantizer = supernet.weight_quantizer("conv2")
    assert all(bool((quantizer.encoding(form).scale > 0).all()) for form in quantizer.forms)


class InfiniteSlope(nn.Module):
    """A network whose loss is finite and whose gradients are not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.conv2 = nn.Conv2d(2, CLASSES, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return torch.flatten(self.conv2(x + torch.sqrt(torch.relu(x) * 0)), 1)


def test_a_damaged_parameter_is_named_and_never_saved(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    config = configuration(data, float_training={"epochs": 0}, checkpoint_interval_steps=1)
    with pytest.raises(TrainingError, match=r"conv1\.weight: the parameter is not finite after step 1"):
        train(config, output, model=InfiniteSlope())
    assert not (output / "supernet.safetensors").exists()
    # What is saved is the start of the phase: it can be taken up, and fails again in the same place.
    state = (output / "state.safetensors").read_bytes()
    with pytest.raises(TrainingError, match=r"conv1\.weight: .* after step 1"):
        train(config, output, resume=True, model=InfiniteSlope())
    assert (output / "state.safetensors").read_bytes() == state


def test_a_loss_that_is_not_finite_stops_the_run(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    config = configuration(data, float_training={"epochs": 0})
    with pytest.raises(TrainingError, match=r"conv1\.weight: the \w+ subnet loss is nan at step 1"):
        train(config, output, model=InfiniteSlope())
    assert (output / "training.jsonl").read_text().count('"phase": "supernet"') == 1


class Chain(nn.Module):
    """Layers without BatchNorm, whose product overflows long before one of them does."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(*(nn.Linear(64, 64) for _ in range(6)), nn.Linear(64, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(torch.flatten(x, 1))
        return logits


def test_an_overflow_is_named_by_layer_and_the_last_good_state_stays(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    phase = {"optimizer": "sgd", "learning_rate": 1000.0, "epochs": 9, "gradient_clip": 1000.0}
    config = configuration(data, float_training=phase, checkpoint_interval_steps=1)
    message = r"^layers\.\d: the float loss is (nan|inf) at step (\d+); all parameters are finite"
    with pytest.raises(TrainingError, match=message) as caught:
        train(config, output, model=Chain())
    found = re.search(message, str(caught.value))
    assert found is not None
    left = files(output)
    assert set(left) == {"state.safetensors", "training.jsonl"}
    assert left["training.jsonl"].count(b"\n") == 1 + int(found[2])  # the header, and every step before
    assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(output / "state.safetensors").values())
    with pytest.raises(TrainingError, match=re.escape(str(caught.value))):
        train(config, output, resume=True, model=Chain())
    assert files(output) == left


def test_resuming_with_another_configuration_or_other_data_is_refused(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    config = configuration(data)
    with pytest.raises(KeyboardInterrupt):
        train(config, output, model=small_model(), progress=Interrupter(3))
    before = files(output)
    changed = configuration(data, distillation={"temperature": 2.0})
    with pytest.raises(TrainingError, match=r"distillation\.temperature was 1\.0 and is now 2\.0"):
        train(changed, output, resume=True, model=small_model())
    with pytest.raises(TrainingError, match="data was"):
        train(config.overridden(data="digits"), output, resume=True, model=build("digits-resnet", {}))
    data.rename(tmp_path / "moved")
    write_images(data, training=80)
    with pytest.raises(TrainingError, match=r"data_digests\.\w+ was"):
        train(config, output, resume=True, model=small_model())
    assert files(output) == before


def test_what_exists_is_not_overwritten_by_accident(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    config = configuration(data, float_training={"epochs": 1}, supernet_training={"epochs": 1})
    train(config, output, model=small_model())
    before = files(output)
    for resume in (False, True):
        with pytest.raises(OutputError, match=r"supernet\.safetensors: the file exists already"):
            train(config, output, resume=resume, model=small_model())
    assert files(output) == before
    train(config.overridden(seed=5), output, overwrite=True, model=small_model())
    assert files(output) != before

    RunFiles.of(output).checkpoint.unlink()
    RunFiles.of(output).state.write_bytes(b"not a state")
    with pytest.raises(OutputError, match="unfinished training"):
        train(config, output, model=small_model())
    with pytest.raises(CheckpointError, match="cannot read the training state"):
        train(config, output, resume=True, model=small_model())
    train(config, output, overwrite=True, model=small_model())
    assert files(output) == before


def test_a_folder_that_another_training_writes_to_is_refused(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with RunFiles.of(output).locked():
        for resume, overwrite in ((False, False), (True, False), (False, True)):
            with pytest.raises(OutputError, match="run: another training writes here"):
                train(configuration(data), output, model=small_model(), resume=resume, overwrite=overwrite)
        assert list(output.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_found_before_training(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    listener = Listener()
    for output in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(OutputError, match=r"file: a file is where the output folder should be"):
            train(configuration(data), output, model=small_model(), progress=listener, overwrite=True)
    assert not listener.stages


def test_a_network_for_other_classes_is_refused(data: Path, tmp_path: Path) -> None:
    config = configuration(data, model={"architecture": "mlp", "arguments": {"classes": 7}})
    with pytest.raises(ProfileError, match=r"returns \(7,\) for an image, the data have 4 classes"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Outputs(nn.Module):
    """Returns its scores in some container."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.network, self.kind = small_model(), kind

    def forward(self, x: Tensor) -> object:
        scores = self.network(x)
        return {"tuple": (scores, scores), "list": [scores], "dict": {"scores": scores}}[self.kind]


@pytest.mark.parametrize("kind", ["tuple", "list", "dict"])
def test_a_network_that_returns_no_single_tensor_is_refused(data: Path, tmp_path: Path, kind: str) -> None:
    with pytest.raises(
        ProfileError, match=rf"model: Outputs: the network returns a \w*{kind}\w*, not one.* --loss module:function"
    ):
        train(configuration(data), tmp_path / "run", model=Outputs(kind))
    assert not (tmp_path / "run").exists()


def test_a_frozen_network_is_refused_where_it_is_to_be_trained(data: Path, tmp_path: Path) -> None:
    model = small_model().requires_grad_(False)
    with pytest.raises(UsageError, match=r"every parameter is frozen .*float_training\.epochs"):
        train(configuration(data), tmp_path / "run", model=model)
    assert not (tmp_path / "run").exists()
    config = configuration(data, float_training={"epochs": 0}, supernet_training={"epochs": 1})
    result = train(config, tmp_path / "run", model=model)
    assert result.float_weights is not None
    before, after = small_model().state_dict(), load_file(result.float_weights)
    assert torch.equal(before["conv1.weight"], after["conv1.weight"])


def test_a_network_that_is_damaged_from_the_start_is_refused(data: Path, tmp_path: Path) -> None:
    model = small_model()
    model.get_parameter("conv3.bias").data[1] = float("nan")
    with pytest.raises(UsageError, match=r"conv3\.bias is not finite before training"):
        train(configuration(data), tmp_path / "run", model=model)
    assert not (tmp_path / "run").exists()


def test_restarts_that_leave_no_cycle_are_refused(data: Path, tmp_path: Path) -> None:
    config = configuration(data, supernet_training={"restarts": 12})
    with pytest.raises(UsageError, match=r"supernet_training\.restarts: 12 restarts"):
        train(config, tmp_path / "run", model=small_model())
    assert not (tmp_path / "run").exists()


def test_a_model_is_needed(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.architecture"):
        train(configuration(data), tmp_path / "run")


def test_missing_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent"):
        train(configuration(tmp_path / "absent"), tmp_path / "run", model=small_model())


def test_training_and_held_out_images_need_the_same_classes(data: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        with np.load(data / f"{split}.npz", allow_pickle=False) as archive:
            arrays = dict(archive)
        np.savez(
            data / f"{split}.npz", allow_pickle=False, **arrays, classes=np.array([f"{split}{i}" for i in range(4)])
        )
    with pytest.raises(DataError, match="different classes"):
        train(configuration(data), tmp_path / "run", model=small_model())


def test_training_on_the_held_out_images_is_said(data: Path, tmp_path: Path) -> None:
    listener = Listener()
    config = configuration(data / "train.npz", float_training={"epochs": 0}, supernet_training={"epochs": 0})
    train(config, tmp_path / "run", model=small_model(), progress=listener)
    assert "the held-out images are the training images" in listener.notes[0]
