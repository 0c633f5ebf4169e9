"""Files that are written again from what was read are the same, wherever their tensors lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from eqdeploy.errors import ValidationError
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.pipeline.file_checks import check_files, write_model_files
from eqdeploy.pipeline.proof import MODEL_FILE
from eqdeploy.profile import DeviceProfile, load_profile, shipped_profiles
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.report import FileCheck
from eqdeploy.subnet import SubnetConfig
from eqdeploy.testing import sample_model
from tests.contract.networks import ASYMMETRIC, SIGNED


def with_data_beside(name: str) -> DeviceProfile:
    """A shipped profile whose files have their tensors beside them, however small they are."""
    profile = load_profile(name)
    options = {**profile.export.options, "external_data_threshold": 1}
    return profile.model_copy(update={"export": profile.export.model_copy(update={"options": options})})


def model_for(profile: DeviceProfile, folder: Path) -> QuantizedModel:
    """A network that the format of a profile can hold, its constants named as in a file."""
    is_tensorrt = profile.export.format == "tensorrt"
    model = sample_model(SIGNED, skip_only=True) if is_tensorrt else sample_model(ASYMMETRIC)
    folder.mkdir()
    write_model_files(load_profile(profile.name), model, folder)
    return read_model(folder / MODEL_FILE)


def in_another_order(model: QuantizedModel) -> QuantizedModel:
    """The same network with its constants listed from the last to the first."""
    graph = onnx.ModelProto()
    graph.CopyFrom(model.graph)
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(reversed(model.graph.graph.initializer))
    return replace(model, graph=graph)


@pytest.mark.parametrize("name", shipped_profiles())
def test_data_beside_a_model_is_laid_out_by_the_model_alone(name: str, tmp_path: Path) -> None:
    profile, folder = with_data_beside(name), tmp_path / "artifact"
    folder.mkdir()
    write_model_files(profile, in_another_order(model_for(profile, tmp_path / "first")), folder)
    beside = {path.relative_to(folder).as_posix() for path in folder.rglob("*.data")}
    assert "model.onnx.data" in beside
    rows = check_files(folder, profile, read_model(folder / MODEL_FILE), SubnetConfig((), ()))
    assert {row.file for row in rows if row.check is FileCheck.REDERIVED} >= beside


def test_other_data_beside_a_model_are_found(tmp_path: Path) -> None:
    profile, folder = with_data_beside("snpe-dsp"), tmp_path / "artifact"
    folder.mkdir()
    model = model_for(profile, tmp_path / "first")
    write_model_files(profile, model, folder)
    data = folder / "snpe" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ValidationError, match=r"model\.onnx\.data"):
        check_files(folder, profile, model, SubnetConfig((), ()))
