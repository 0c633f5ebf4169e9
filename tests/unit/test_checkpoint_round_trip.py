"""Saving and loading a supernet: everything comes back, the same bytes every time, whole or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eqdeploy.data.augmentation import Augmentation
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.errors import CheckpointError, OutputError
from eqdeploy.network import ElasticSpace
from eqdeploy.quant.form import Granularity, Symmetry
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.checkpoint import (
    ArchitectureReference,
    load_checkpoint,
    read_metadata,
    save_checkpoint,
)
from eqdeploy.supernet.shapes import tensors_in
from eqdeploy.supernet.supernet import Supernet
from tests.unit.checkpoint_support import CASE, PREPROCESSING, build, describe, trained_supernet
from tests.unit.supernet_models import CONVERTIBLE
from tests.unit.supernet_parts import SPACE, made


def test_augmentation_comes_back_and_what_is_off_is_not_written(tmp_path: Path) -> None:
    supernet, path = trained_supernet(1), tmp_path / "a.safetensors"
    augmentation = Augmentation(
        flip=True, crop_scale=(0.08, 1.0), crop_ratio=(0.5, 2.0), brightness=0.4, saturation=0.2
    )
    for varied in (augmentation, Augmentation(shift=1), Augmentation(contrast=0.1)):
        save_checkpoint(supernet, describe(supernet, augmentation=varied), path)
        assert load_checkpoint(path, build).augmentation == varied
    assert describe(supernet).model_dump()["augmentation"] == {"shift": 2, "flip": True}


def test_everything_comes_back(tmp_path: Path) -> None:
    space = ElasticSpace(bits=(3, 8), symmetries=(Symmetry.ASYMMETRIC, Symmetry.SYMMETRIC), narrow=True)
    supernet = trained_supernet(1, space)
    path = tmp_path / "deep" / "folder" / "a.safetensors"
    save_checkpoint(supernet, describe(supernet), path)
    loaded = load_checkpoint(path, build)
    assert loaded.metadata == describe(supernet) == read_metadata(path)
    assert loaded.preprocessing == PREPROCESSING
    assert loaded.augmentation == Augmentation(2, True)
    assert loaded.supernet.network == supernet.network
    assert not loaded.supernet.training
    expected = supernet.state_dict()
    assert list(loaded.supernet.state_dict()) == list(expected)
    for name, tensor in loaded.supernet.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    x = torch.randn(4, *CASE.shape)
    for bits in (3, 8):
        config = SubnetConfig.uniform(
            supernet.network,
            weight_bits=bits,
            activation_bits=bits,
            granularity=Granularity.PER_CHANNEL,
            weight_symmetry=Symmetry.SYMMETRIC,
            activation_symmetry=Symmetry.ASYMMETRIC,
        )
        supernet.activate(config)
        loaded.supernet.activate(config)
        assert torch.equal(loaded.supernet(x), supernet(x))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", CONVERTIBLE)
def test_every_convertible_model_round_trips(name: str, tmp_path: Path) -> None:
    case = CONVERTIBLE[name]
    supernet = Supernet.from_float(made(case), torch.zeros(2, *case.shape), ElasticSpace(bits=(8,))).eval()
    preprocessing = Preprocessing((8, 8), 3, (0.0,) * 3, (1.0,) * 3)
    if len(case.shape) == 3:
        preprocessing = Preprocessing(case.shape[1:], case.shape[0], (0.0,) * case.shape[0], (1.0,) * case.shape[0])
    path = tmp_path / "a.safetensors"
    own = ArchitectureReference(name=None)
    save_checkpoint(supernet, describe(supernet, preprocessing=preprocessing, architecture=own), path)
    loaded = load_checkpoint(path, build, model=case.make()).supernet
    x = torch.randn(3, *case.shape, generator=torch.Generator().manual_seed(0))
    for got, wanted in zip(tensors_in(loaded(x)), tensors_in(supernet(x)), strict=True):
        assert torch.equal(got, wanted)


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.first, self.second = nn.Linear(4, 4), nn.LayerNorm(4), nn.LayerNorm(4)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Any:
            return self.second(self.a(self.first(x)))

    supernet = Supernet.from_float(Tied(), torch.zeros(2, 4), SPACE)
    own = ArchitectureReference(name=None)
    save_checkpoint(supernet, describe(supernet, architecture=own), tmp_path / "a.safetensors")
    loaded = load_checkpoint(tmp_path / "a.safetensors", build, model=Tied()).supernet.graph_module
    first, second = (loaded.get_submodule(name).weight for name in ("first", "second"))
    assert first is second


def test_loading_draws_no_random_numbers_and_ignores_the_weights_of_a_given_model(tmp_path: Path) -> None:
    supernet = trained_supernet()
    save_checkpoint(supernet, describe(supernet), tmp_path / "a.safetensors")
    torch.manual_seed(11)
    state = torch.get_rng_state()
    load_checkpoint(tmp_path / "a.safetensors", build)
    assert torch.equal(torch.get_rng_state(), state)
    model = made(CASE, seed=99)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded = load_checkpoint(tmp_path / "a.safetensors", build, model=model).supernet
    assert torch.equal(loaded.state_dict()["graph_module.0.weight"], supernet.state_dict()["graph_module.0.weight"])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, kept[name]), "the given model is only read"


def test_a_model_of_your_own_must_be_passed(tmp_path: Path) -> None:
    supernet = trained_supernet()
    own = ArchitectureReference(name=None)
    save_checkpoint(supernet, describe(supernet, architecture=own), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors: .*--model"):
        load_checkpoint(tmp_path / "a.safetensors", build)
    load_checkpoint(tmp_path / "a.safetensors", build, model=CASE.make())


PROGRAM = """
import sys
from pathlib import Path
from tests.unit.checkpoint_support import describe, trained_supernet
from eqdeploy.supernet.checkpoint import save_checkpoint
supernet = trained_supernet()
save_checkpoint(supernet, describe(supernet), Path(sys.argv[1]))
"""


def test_the_same_supernet_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    supernet = trained_supernet()
    save_checkpoint(supernet, describe(supernet), tmp_path / "here")
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / seed)], env=environment, check=True)
    contents = {(tmp_path / name).read_bytes() for name in ("here", "1", "2")}
    assert len(contents) == 1
    save_checkpoint(load_checkpoint(tmp_path / "1", build).supernet, describe(supernet), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() in contents


def test_a_checkpoint_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("older")
    supernet = trained_supernet()
    save_checkpoint(supernet, describe(supernet), path)
    assert load_checkpoint(path, build).metadata == describe(supernet)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_nothing_half_written_is_left_behind(tmp_path: Path) -> None:
    supernet = trained_supernet()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder: cannot write"):
        save_checkpoint(supernet, describe(supernet), tmp_path / "folder")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write"):
        save_checkpoint(supernet, describe(supernet), tmp_path / "file" / "a.safetensors")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("older")
    (tmp_path / ".a.safetensors.partial").symlink_to("/dev/full")
    supernet = trained_supernet()
    with pytest.raises(OutputError, match="No space left"):
        save_checkpoint(supernet, describe(supernet), path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_text() == "older"
