"""Probes in a checkpoint: whatever changes what the float network makes of an image is found when it is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from eqdeploy.data import DIGITS_PREPROCESSING, Preprocessing, load_data
from eqdeploy.errors import CheckpointError
from eqdeploy.pipeline.sources import (
    NO_PROBES,
    check_probes,
    load_supernet,
    shipped_predictor,
    shipped_supernets,
    supernet_path,
)
from eqdeploy.supernet.checkpoint import Checkpoint, checkpoint_digest, load_checkpoint, save_checkpoint
from eqdeploy.supernet.probes import PROBES, Probes
from eqdeploy.training.trainer import train
from eqdeploy.zoo import build
from tests.unit.training_support import Listener, configuration, write_images

TINY: dict[str, Any] = {
    "model": {"architecture": "mlp", "arguments": {"classes": 4, "width": 8}},
    "space": {"bits": [8], "symmetries": ["symmetric"]},
    "float_training": {"epochs": 1},
    "supernet_training": {"epochs": 1},
}


@pytest.fixture
def checkpoint() -> Checkpoint:
    return load_checkpoint(supernet_path("digits"), build)


def test_shipped_supernets_are_proved() -> None:
    for name in shipped_supernets():
        assert load_supernet(name, None).probes == f"{PROBES} probes give the outputs that training saw"


def test_probes_of_digits_are_held_out_images(checkpoint: Checkpoint) -> None:
    assert checkpoint.probes is not None
    images = load_data("digits", split="test", preprocessing=DIGITS_PREPROCESSING).spread(PROBES).images
    assert np.array_equal(checkpoint.probes.inputs.numpy(), images)


def without_mean(values: Preprocessing, images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) * np.float32(values.scale) / np.float32(values.std[0])


def without_scale(values: Preprocessing, images: np.ndarray) -> np.ndarray:
    return (images.astype(np.float32) - np.float32(values.mean[0])) / np.float32(values.std[0])


def std_one_per_mille_off(values: Preprocessing, images: np.ndarray) -> np.ndarray:
    scaled = images.astype(np.float32) * np.float32(values.scale)
    return (scaled - np.float32(values.mean[0])) / np.float32(1.001 * values.std[0])


def mirrored(values: Preprocessing, images: np.ndarray) -> np.ndarray:
    scaled = images[..., ::-1].astype(np.float32) * np.float32(values.scale)
    return (scaled - np.float32(values.mean[0])) / np.float32(values.std[0])


@pytest.mark.parametrize("wrong", [without_mean, without_scale, std_one_per_mille_off, mirrored])
def test_preprocessing_that_is_wrong_everywhere_is_found_first(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Preprocessing, np.ndarray], np.ndarray]
) -> None:
    monkeypatch.setattr(Preprocessing, "apply", wrong)
    with pytest.raises(CheckpointError, match="preprocessing or network are not what training saw: outputs for 4"):
        load_supernet("digits", None)


def test_a_changed_network_is_found(checkpoint: Checkpoint) -> None:
    norm = next(module for module in checkpoint.supernet.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert check_probes(checkpoint, where="x").startswith("4 probes")
    norm.eps = 1e-3
    with pytest.raises(CheckpointError, match="not what training saw"):
        check_probes(checkpoint, where="x")


def test_without_probes_nothing_is_proved_and_the_report_can_say_so(checkpoint: Checkpoint) -> None:
    old = dataclasses.replace(checkpoint, probes=None)
    assert check_probes(old, where="x") == NO_PROBES
    assert "skipped" in NO_PROBES


def test_probes_can_be_taken_out_of_a_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "passed-on.safetensors"
    save_checkpoint(checkpoint.supernet, checkpoint.metadata, path)
    assert checkpoint_digest(path) == checkpoint_digest(supernet_path("digits"))
    listener = Listener()
    assert load_supernet(str(path), None, listener).probes == NO_PROBES
    assert listener.notes == [f"{path}: {NO_PROBES}"]


def train_probes(folder: Path, name: str, **changes: Any) -> Path:
    """Checkpoint of a tiny training."""
    data = folder / "images"
    config = configuration(data if data.exists() else write_images(data), **TINY, **changes)
    return train(config, folder / name).checkpoint or folder


@pytest.mark.parametrize("count", [0, 1, 5, 64])
def test_training_stores_as_many_probes_as_it_is_told(tmp_path: Path, count: int) -> None:
    path = train_probes(tmp_path, "run", probes=count)
    found, held_out = load_checkpoint(path, build), np.load(tmp_path / "images" / "test.npz")["images"]
    listener = Listener()
    if count:
        assert found.probes is not None
        stored = {image.tobytes() for image in found.probes.inputs.numpy()}
        assert len(stored) == min(count, len(held_out))
        assert stored <= {image.tobytes() for image in held_out}
        said = f"{len(stored)} probes give the outputs that training saw"
        assert load_supernet(str(path), None, listener).probes == said
        assert listener.notes == []
    else:
        assert found.probes is None
        assert load_supernet(str(path), None, listener).probes == NO_PROBES
        assert listener.notes == [f"{path}: {NO_PROBES}"]


def test_no_image_is_left_in_a_checkpoint_without_probes(tmp_path: Path) -> None:
    bare, usual = train_probes(tmp_path, "bare", probes=0), train_probes(tmp_path, "usual")
    images = [image for split in ("train", "test") for image in np.load(tmp_path / "images" / f"{split}.npz")["images"]]

    def occurrences(content: bytes) -> int:
        kinds = (np.uint8, np.float32)
        return sum(image.astype(kind).tobytes() in content for image in images for kind in kinds)

    assert {name: occurrences(path.read_bytes()) for name, path in (("bare", bare), ("usual", usual))} == {
        "bare": 0,
        "usual": PROBES,
    }
    # Neither the training nor what is known of the supernet depends on them.
    assert checkpoint_digest(bare) == checkpoint_digest(usual)
    assert (bare.parent / "training.jsonl").read_bytes() == (usual.parent / "training.jsonl").read_bytes()


def test_neither_probes_nor_statistics_change_the_digest(checkpoint: Checkpoint, tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    metadata = checkpoint.metadata.model_copy(update={"training_data": None})
    save_checkpoint(checkpoint.supernet, metadata, bare)
    assert "training_data" not in bare.read_bytes()[:200_000].decode(errors="replace")
    assert not any("probes" in name for name in load_file(bare))
    assert checkpoint_digest(bare) == checkpoint_digest(supernet_path("digits"))
    assert load_checkpoint(bare, build).probes is None
    for name in shipped_supernets():
        assert shipped_predictor(checkpoint_digest(supernet_path(name))) is not None


@pytest.mark.parametrize(
    "damage",
    [
        lambda probes: {"inputs": probes.inputs[:2]},
        lambda probes: {"inputs": probes.inputs.double()},
        lambda probes: {"outputs": torch.full_like(probes.outputs, float("nan"))},
        lambda probes: {"inputs": probes.inputs[:, :, :4]},
        lambda probes: {"outputs": probes.outputs[:, :3]},
        lambda probes: {"inputs": probes.inputs.expand(4, 1, 8, 8)[:0], "outputs": probes.outputs[:0]},
    ],
)
def test_damaged_probes_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, damage: Callable[[Probes], dict[str, torch.Tensor]]
) -> None:
    assert checkpoint.probes is not None
    probes = dataclasses.replace(checkpoint.probes, **damage(checkpoint.probes))
    path = tmp_path / "damaged.safetensors"
    save_checkpoint(checkpoint.supernet, checkpoint.metadata, path, probes)
    with pytest.raises(CheckpointError, match="the probes"):
        load_supernet(str(path), None)
