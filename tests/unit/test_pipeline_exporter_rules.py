"""What an exporter refuses is refused before anything is loaded, or at least before images are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from eqdeploy.errors import CheckpointError, DataError, ProfileError
from eqdeploy.pipeline.export import export_profiles
from eqdeploy.progress import SilentProgress
from eqdeploy.requests import ExportRequest

#: Reading them fails: an error about anything else comes before.
NO_IMAGES = "nowhere.npz"
NO_CHECKPOINT = "nowhere.safetensors"


def export(folder: Path, text: str, supernet: str = "digits") -> None:
    path = folder / "mine.yaml"
    path.write_text(f"schema: 1\nname: mine\ndescription: Broken on purpose.\n{text}\n")
    request = ExportRequest(profiles=(str(path),), supernet=supernet, data=NO_IMAGES, output=folder / "out")
    export_profiles(request, SilentProgress())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inherits: tensorrt\nexport: {options: {calibration_cash: true}}", "did you mean 'calibration_cache'"),
        ("inherits: snpe-dsp\nexport: {options: {float_opset: 5}}", "mine: export.options.float_opset"),
        ("inherits: onnxruntime-x86\nruntime: {opset: 40}", "runtime.opset or export.options.opset"),
    ],
)
def test_options_are_refused_before_the_checkpoint_is_loaded(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        export(tmp_path, text, supernet=NO_CHECKPOINT)
    with pytest.raises(CheckpointError):
        export(tmp_path, text.partition("\n")[0], supernet=NO_CHECKPOINT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inherits: tensorrt\nbias: int32", r"mine: bias: TensorRT does not quantize biases \(set bias: float\)"),
        ("inherits: tensorrt\nweights: {storage: unsigned, symmetry: asymmetric}", "TensorRT integers are signed"),
        ("inherits: tensorrt\nactivations: {signed: {symmetry: asymmetric}}", "an asymmetric grid has a zero-point"),
        ("inherits: snpe-dsp\nweights: {bits: 3, boundary_bits: 3}", "specified from 4 bits on"),
        ("inherits: snpe-dsp\nactivations: {boundary_bits: 2}", "mine: activations.bits: "),
    ],
)
def test_plans_are_refused_before_images_are_read(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        export(tmp_path, text)
    with pytest.raises(DataError, match=NO_IMAGES):
        export(tmp_path, text.partition("\n")[0])
