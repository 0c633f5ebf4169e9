"""Float weights in and out of a run, in files that torch's own models read and write."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from eqdeploy.errors import CheckpointError, TrainingError
from eqdeploy.network import ElasticSpace
from eqdeploy.supernet.checkpoint import load_checkpoint
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.float_weights import load_float_weights, save_float_weights
from eqdeploy.training.trainer import train
from eqdeploy.zoo import build
from tests.unit.training_support import CLASSES, SmallNet, configuration, small_model, write_images


class Wide(nn.Module):
    """A network with what the supernet does not use, and with one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.again = self.stem
        self.norm = nn.BatchNorm2d(4)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.head = nn.Linear(4, CLASSES)
        self.auxiliary = nn.Linear(4, 2)
        self.register_buffer("temperature", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.again(x))).mean((2, 3))
        logits: Tensor = self.head(torch.relu(self.second(torch.relu(self.first(x)))))
        return logits


def perturb(module: nn.Module) -> None:
    """Change all parameters and statistics, as training does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(0.5 + torch.rand(tensor.shape, generator=generator))


@pytest.mark.parametrize("make", [small_model, Wide])
def test_what_is_written_makes_the_original_compute_what_the_supernet_computes(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = make()
    with torch.no_grad():
        model.get_submodule("norm" if make is Wide else "bn1").get_parameter("weight")[1] = -0.7  # made positive inside
    supernet = Supernet.from_float(model, torch.zeros(2, 1, 8, 8), ElasticSpace())
    perturb(supernet)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / "float.safetensors"
    save_float_weights(model, supernet, path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = supernet.eval()(images)
    written = load_file(path)
    assert written.keys() == model.state_dict().keys()
    by_torch, by_us = make(), make()
    by_torch.load_state_dict(written)
    load_float_weights(by_us, path)
    for loaded in (by_torch, by_us):
        torch.testing.assert_close(loaded.eval()(images), expected, rtol=1e-5, atol=1e-5)
    if make is Wide:
        assert torch.equal(written["auxiliary.weight"], before["auxiliary.weight"])
        assert torch.equal(written["temperature"], before["temperature"])
        assert not torch.equal(written["stem.weight"], before["stem.weight"])


def test_equal_weights_are_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        model = small_model()
        supernet = Supernet.from_float(model, torch.zeros(2, 1, 8, 8), ElasticSpace())
        save_float_weights(model, supernet, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_without_counters_and_in_half_precision_fits(tmp_path: Path) -> None:
    state = small_model().state_dict()
    save_file(
        {name: tensor.half() for name, tensor in state.items() if not name.endswith("num_batches_tracked")},
        tmp_path / "half.safetensors",
    )
    model = SmallNet()
    load_float_weights(model, tmp_path / "half.safetensors")
    assert torch.equal(model.conv1.weight, state["conv1.weight"].half().float())
    assert model.conv1.weight.dtype is torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv1.weight": None}, "conv1.weight is missing"),
        ({"bn1.running_var": None}, "bn1.running_var is missing"),
        ({"extra": torch.zeros(1)}, "extra is unexpected"),
        ({"fc.weight": torch.zeros(10, 24)}, "fc.weight is (10, 24) instead of (4, 24)"),
        ({"fc.bias": torch.zeros(4, dtype=torch.int32)}, "fc.bias is torch.int32 instead of torch.float32"),
        ({"fc.bias": torch.zeros(4, dtype=torch.bool)}, "fc.bias is torch.bool instead of torch.float32"),
        ({"fc.bias": torch.tensor([0.0, float("nan"), 0.0, 0.0])}, "fc.bias is not finite"),
        ({"fc.bias": torch.tensor([0.0, 1e300, 0.0, 0.0], dtype=torch.float64)}, "fc.bias is not finite"),
        (
            {"fc.bias": None, **{f"module.{index}": torch.zeros(1) for index in range(5)}},
            "fc.bias is missing; module.0 is unexpected; module.1 is unexpected, and 3 more",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_changed(
    tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    path = tmp_path / "weights.safetensors"
    tensors = {**SmallNet().state_dict(), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    model = small_model()
    with pytest.raises(CheckpointError) as caught:
        load_float_weights(model, path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: the weights do not fit the model: ")
    assert all(torch.equal(tensor, small_model().state_dict()[name]) for name, tensor in model.state_dict().items())


class Bomb:
    """Does harm when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return exec, ("raise SystemExit(99)",)


def test_a_pickle_is_refused_and_never_executed(tmp_path: Path) -> None:
    for name in ("weights.pth", "weights.bin", "weights.safetensors"):
        torch.save(small_model().state_dict(), tmp_path / name)
        with pytest.raises(CheckpointError, match=r"cannot read the weights: .* \(pickles are not read; write "):
            load_float_weights(small_model(), tmp_path / name)
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(CheckpointError, match="cannot read the weights") as caught:
            load_float_weights(small_model(), tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"\x10", b"\xff" * 64, "folder"])
def test_what_is_no_file_of_tensors_is_refused_in_one_line(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "weights.safetensors"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: cannot read the weights: .") as caught:
        load_float_weights(small_model(), path)
    assert "\n" not in str(caught.value)


def test_a_run_starts_from_the_weights_of_another(tmp_path: Path) -> None:
    data = write_images(tmp_path / "images")
    first = train(configuration(data), tmp_path / "first", float_only=True, model=small_model())
    assert first.float_weights == tmp_path / "first" / "float.safetensors"
    weights = str(first.float_weights)
    untrained = {"epochs": 0}
    second = train(
        configuration(data, float_training=untrained, supernet_training=untrained, model={"weights": weights}),
        tmp_path / "second",
        model=SmallNet(),
    )
    chance = train(configuration(data, float_training=untrained), tmp_path / "third", float_only=True, model=SmallNet())
    assert first.float_accuracy is not None
    assert chance.float_accuracy is not None
    assert second.float_accuracy == first.float_accuracy > chance.float_accuracy
    assert second.checkpoint is not None
    trained = load_file(first.float_weights)
    for name, tensor in load_file(second.checkpoint).items():
        plain = name.removeprefix("graph_module.")
        if plain in trained and "running" not in plain and "num_batches" not in plain:
            assert torch.equal(tensor, trained[plain]), name


def test_weights_count_in_the_configuration(tmp_path: Path) -> None:
    plain = configuration(tmp_path / "images")
    assert plain.overridden(weights="a.safetensors").model.weights == "a.safetensors"
    assert plain.overridden(weights="a.safetensors").digest != plain.digest
    assert configuration(tmp_path / "images", model={"weights": None}).digest == plain.digest
    assert "weights" not in plain.canonical()["model"]


def test_missing_weights_stop_a_run_before_it_writes(tmp_path: Path) -> None:
    data = write_images(tmp_path / "images")
    config = configuration(data).overridden(weights=str(tmp_path / "absent.safetensors"))
    with pytest.raises(CheckpointError, match=r"absent\.safetensors: cannot read the weights"):
        train(config, tmp_path / "run", model=small_model())
    assert not (tmp_path / "run").exists()


def test_the_content_of_the_weights_is_part_of_a_run(tmp_path: Path) -> None:
    data, weights = write_images(tmp_path / "images"), tmp_path / "float.safetensors"
    save_file(small_model().state_dict(), weights)
    config = configuration(data, model={"weights": str(weights)}, supernet_training={"epochs": 0})
    done = train(config, tmp_path / "run", model=small_model())
    assert done.checkpoint is not None
    checkpoint = load_checkpoint(done.checkpoint, build, small_model())
    assert checkpoint.metadata.provenance["weights_digest"] == sha256(weights.read_bytes()).hexdigest()
    train(config, tmp_path / "other", float_only=True, model=small_model())
    save_file({name: tensor + 1 for name, tensor in small_model().state_dict().items()}, weights)
    with pytest.raises(TrainingError, match="another configuration: weights_digest was"):
        train(config, tmp_path / "other", resume=True, model=small_model())
