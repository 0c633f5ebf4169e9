"""Runs that go on with a supernet: weights and scales are taken over, whatever the space, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from eqdeploy.errors import CheckpointError, EqDeployError, ProfileError, UsageError
from eqdeploy.supernet.checkpoint import read_metadata
from eqdeploy.training.state import Phase
from eqdeploy.training.trainer import train
from tests.unit.training_support import Interrupter, configuration, files, small_model, write_images


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def going_on(data: Path, supernet: Path, **changes: Any) -> Any:
    model = {"architecture": None, "supernet": str(supernet)}
    return configuration(data, **{"model": model, "float_training": {"epochs": 0}, **changes})


@pytest.mark.parametrize("space", [{}, {"batch_norm": "folded"}, {"scales": "power_of_two", "residual": "float"}])
def test_no_further_epoch_changes_no_weight_and_no_scale(data: Path, tmp_path: Path, space: dict[str, Any]) -> None:
    first = train(configuration(data, space=space), tmp_path / "first", model=small_model())
    assert first.checkpoint is not None
    config = going_on(data, first.checkpoint, space=space, supernet_training={"epochs": 0})
    second = train(config, tmp_path / "second", model=small_model())
    assert second.checkpoint is not None
    assert second.evaluation == first.evaluation
    before, after = load_file(first.checkpoint), load_file(second.checkpoint)
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


def test_a_further_epoch_trains_and_remembers_where_it_came_from(data: Path, tmp_path: Path) -> None:
    first = train(configuration(data), tmp_path / "first", model=small_model())
    assert first.checkpoint is not None
    second = train(going_on(data, first.checkpoint), tmp_path / "second", model=small_model())
    assert second.checkpoint is not None
    before, after = load_file(first.checkpoint), load_file(second.checkpoint)
    assert any(not before[name].equal(after[name]) for name in before if "log2_scale" in name)
    provenance = read_metadata(second.checkpoint).provenance
    assert provenance["float_accuracy"] == first.float_accuracy == second.float_accuracy
    assert isinstance(provenance["weights_digest"], str)
    assert second.float_weights is None
    assert not (tmp_path / "second" / "float.safetensors").exists()


def test_the_float_network_of_a_run_that_is_replaced_is_not_named(data: Path, tmp_path: Path) -> None:
    first = train(configuration(data), tmp_path / "run", model=small_model())
    assert first.checkpoint is not None
    supernet = tmp_path / "supernet.safetensors"
    supernet.write_bytes(first.checkpoint.read_bytes())
    second = train(going_on(data, supernet), tmp_path / "run", model=small_model(), overwrite=True)
    assert (tmp_path / "run" / "float.safetensors").exists()
    assert second.float_weights is None


def test_an_interrupted_run_ends_like_one_that_never_was(data: Path, tmp_path: Path) -> None:
    first = train(configuration(data), tmp_path / "first", model=small_model())
    assert first.checkpoint is not None
    config = going_on(data, first.checkpoint, checkpoint_interval_steps=2)
    train(config, tmp_path / "straight", model=small_model())
    stopping = Interrupter(5, f"{Phase.SUPERNET} network")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "stopped", model=small_model(), progress=stopping)
    train(config, tmp_path / "stopped", resume=True, model=small_model())
    assert files(tmp_path / "stopped") == files(tmp_path / "straight")


def test_a_run_is_not_resumed_with_another_supernet(data: Path, tmp_path: Path) -> None:
    first = train(configuration(data), tmp_path / "first", model=small_model())
    other = train(configuration(data, seed=5), tmp_path / "other", model=small_model())
    assert first.checkpoint is not None
    assert other.checkpoint is not None
    changing = tmp_path / "supernet.safetensors"
    changing.write_bytes(first.checkpoint.read_bytes())
    config = going_on(data, changing, checkpoint_interval_steps=2)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", model=small_model(), progress=Interrupter(5, f"{Phase.SUPERNET} network"))
    changing.write_bytes(other.checkpoint.read_bytes())
    with pytest.raises(EqDeployError, match="weights_digest was"):
        train(config, tmp_path / "run", resume=True, model=small_model())


def test_another_space_or_a_float_network_is_refused(data: Path, tmp_path: Path) -> None:
    first = train(configuration(data), tmp_path / "first", model=small_model())
    assert first.checkpoint is not None
    bits = list(read_metadata(first.checkpoint).space.bits)
    other = [*bits[:-1], bits[-1] - 1] if bits[-1] - 1 not in bits else bits[1:]
    listed = rf"bits was \[{', '.join(map(str, bits))}\] and is now \[{', '.join(map(str, other))}\]"
    config = going_on(data, first.checkpoint, space={"bits": other, "boundary_bits": other[-1]})
    with pytest.raises(CheckpointError, match=listed):
        train(config, tmp_path / "second", model=small_model())
    assert first.float_weights is not None
    with pytest.raises(CheckpointError, match="not a supernet"):
        train(going_on(data, first.float_weights), tmp_path / "second", model=small_model())
    assert not (tmp_path / "second").exists()


def test_what_a_supernet_to_go_on_with_excludes(data: Path, tmp_path: Path) -> None:
    supernet = tmp_path / "supernet.safetensors"
    with pytest.raises(ProfileError, match=r"float_training\.epochs: must be 0"):
        going_on(data, supernet, float_training={"epochs": 1})
    with pytest.raises(ProfileError, match=r"distillation\.guidance: there is no float network"):
        going_on(data, supernet, distillation={"guidance": "float"})
    with pytest.raises(ProfileError, match="from weights or from a supernet"):
        going_on(data, supernet, model={"architecture": None, "supernet": "a", "weights": "b"})
    changed = configuration(data).overridden(supernet="a.safetensors")
    assert changed.model.supernet == "a.safetensors"
    assert changed.float_training.epochs == 0
    first = train(configuration(data), tmp_path / "first", model=small_model())
    assert first.checkpoint is not None
    with pytest.raises(UsageError, match="no float phase"):
        train(going_on(data, first.checkpoint), tmp_path / "second", model=small_model(), float_only=True)
