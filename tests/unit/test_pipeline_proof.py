"""Faults that leave every file consistent with itself are found by what the supernet is the yardstick of.

Each is planted in the frozen numbers, as a defect of calibration, folding or writing would plant it: static checks and
parity hold, as file and reference are made from the same numbers. The images have no labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from eqdeploy.data import LabelledImages, Preprocessing
from eqdeploy.exporters.onnx_qdq import OnnxQdqExporter
from eqdeploy.freeze.float_graph import export_float_graph
from eqdeploy.network import ElasticSpace
from eqdeploy.pipeline.answers import SIMULATED, answer
from eqdeploy.pipeline.baseline import FloatNetwork
from eqdeploy.pipeline.proof import MODEL_FILE, Proof, Subject, Yardstick, prove
from eqdeploy.profile_loading import load_profile
from eqdeploy.progress import SilentProgress
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.report import LevelStatus
from eqdeploy.requests import Gates
from eqdeploy.resolve import resolve
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.validation.accuracy import torch_classifier
from tests.unit.freeze_support import refreeze

PREPROCESSING = Preprocessing(image_size=(8, 8), channels=1, mean=(0.5,), std=(0.25,))
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 1, 8, 8), dtype=np.uint8)
IMAGES = LabelledImages(PIXELS, np.full(48, -1), (), "noise")
INPUTS = torch.from_numpy(PREPROCESSING.apply(PIXELS))


class _Maps(nn.Module):
    """A segmentation network: five classes for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.norm(self.body(x))))
        return out


@cache
def sound() -> tuple[QuantizedModel, Yardstick]:
    """The frozen network without a fault, and what it is held against."""
    torch.manual_seed(0)
    supernet = Supernet.from_float(_Maps().eval(), INPUTS[:2], ElasticSpace(bits=(8,))).eval()
    supernet.initialize(INPUTS)
    plan = resolve(load_profile("onnxruntime-x86"), supernet.network)
    model = refreeze(supernet, plan, export_float_graph(supernet), INPUTS)
    simulated = answer(SIMULATED, torch_classifier(supernet), IMAGES, PREPROCESSING, SilentProgress())
    return model, Yardstick(network=FloatNetwork(supernet), simulated=simulated)


def proof_of(model: QuantizedModel, folder: Path, gates: Gates | None = None) -> Proof:
    OnnxQdqExporter().export(model, folder, {})
    assert (folder / MODEL_FILE).is_file()
    return prove(
        Subject(model, folder, PREPROCESSING),
        IMAGES,
        sound()[1],
        gates or Gates(),
        parity_images=16,
        progress=SilentProgress(),
    )


def with_parameter(model: QuantizedModel, name: str, change: Callable[[Any], Any]) -> QuantizedModel:
    """The model with other codes of one parameter, everywhere they stand."""
    parameter = replace(model.parameters[name], codes=change(model.parameters[name].codes))
    graph = onnx.ModelProto()
    graph.CopyFrom(model.graph)
    initializer = next(item for item in graph.graph.initializer if item.name == name)
    initializer.CopyFrom(numpy_helper.from_array(parameter.encoding.dequantize(parameter.codes), name))
    return replace(model, graph=graph, parameters={**model.parameters, name: parameter})


def roll_classes(model: QuantizedModel) -> QuantizedModel:
    rolled = with_parameter(model, "head.weight", lambda codes: np.roll(codes, 1, axis=0))
    names = {name for name in model.parameters if name == "head.bias"}
    for name in names:
        rolled = with_parameter(rolled, name, lambda codes: np.roll(codes, 1, axis=0))
    return rolled


FAULTS: dict[str, tuple[Callable[[QuantizedModel], QuantizedModel], set[str]]] = {
    "classes rotated": (roll_classes, {"distance", "agreement"}),
    "a kernel flipped": (
        lambda model: with_parameter(model, "body.weight", lambda codes: np.ascontiguousarray(codes[..., ::-1, ::-1])),
        {"distance"},
    ),
    "every second kernel lost": (
        lambda model: with_parameter(
            model, "body.weight", lambda codes: codes * (np.arange(8) % 2).reshape(8, 1, 1, 1).astype(np.int32)
        ),
        {"distance"},
    ),
}


def test_a_sound_export_passes_without_labels(tmp_path: Path) -> None:
    proof = proof_of(sound()[0], tmp_path)
    statuses = {name: level.status for name, level in proof.levels.items()}
    # No labels; and neither a frozen subnet nor a share of floats was given to hold it against.
    assert {name for name, status in statuses.items() if status is LevelStatus.NOT_RUN} == {
        *("origin", "accuracy", "float_share")
    }
    assert LevelStatus.FAILED not in statuses.values()
    assert proof.accuracy.summary == "accuracy not measured: the images have no labels"
    assert proof.agreement.details["decisions"] == 48 * 64


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_fault_in_the_frozen_numbers_is_found(name: str, tmp_path: Path) -> None:
    plant, levels = FAULTS[name]
    proof = proof_of(plant(sound()[0]), tmp_path)
    assert proof.static.status is proof.parity.status is LevelStatus.PASSED
    failed = {level for level, outcome in proof.levels.items() if outcome.status is LevelStatus.FAILED}
    assert levels <= failed


def test_limits_of_the_user_go_before_the_defaults(tmp_path: Path) -> None:
    proof = proof_of(roll_classes(sound()[0]), tmp_path, Gates(min_sqnr=-100.0, min_agreement=0.0))
    assert LevelStatus.FAILED not in {level.status for level in proof.levels.values()}
