"""Height and width free in the file: proved at two sizes, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from eqdeploy.calibration.ranges import sample_tensors
from eqdeploy.data import LabelledImages, Preprocessing
from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.exporters.contract import export_checked, get_exporter
from eqdeploy.freeze.float_graph import export_float_graph
from eqdeploy.freeze.free_size import free_size
from eqdeploy.freeze.freeze import freeze
from eqdeploy.freeze.ranges import tensors_to_calibrate
from eqdeploy.network import ElasticSpace
from eqdeploy.pipeline.proof import Subject, Yardstick, prove
from eqdeploy.profile import load_profile
from eqdeploy.progress import SilentProgress
from eqdeploy.requests import Gates
from eqdeploy.resolve import resolve
from eqdeploy.supernet.supernet import Supernet

PREPROCESSING = Preprocessing((8, 6), 2, (0.5, 0.5), (0.25, 0.25))


def body() -> list[nn.Module]:
    return [nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]


def classifier() -> nn.Module:
    return nn.Sequential(*body(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def decoder() -> nn.Module:
    return nn.Sequential(*body()[:3], nn.Upsample(scale_factor=2), nn.Conv2d(4, 3, 1))


def supernet_of(model: nn.Module, size: tuple[int, int] = (8, 6)) -> Supernet:
    supernet = Supernet.from_float(model.eval(), torch.zeros(2, 2, *size), ElasticSpace(bits=(8,))).eval()
    supernet.initialize(torch.randn(16, 2, *size, generator=torch.Generator().manual_seed(0)))
    return supernet


@pytest.mark.parametrize("make", [classifier, decoder])
def test_a_network_without_a_size_of_its_own_is_proved_at_two(make: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    supernet = supernet_of(make())
    plan = resolve(load_profile("onnxruntime-x86"), supernet.network, None)
    supernet.activate(plan.subnet)
    stored = np.random.default_rng(0).integers(0, 256, (32, 2, 8, 6), dtype=np.uint8)
    images = torch.from_numpy(PREPROCESSING.apply(stored))
    samples = sample_tensors(supernet, [images], tensors_to_calibrate(plan))
    graph = free_size(supernet, export_float_graph(supernet), make())
    frozen = freeze(supernet, plan, graph, samples)
    export_checked(get_exporter("onnx_qdq"), frozen, tmp_path, {})
    dims = onnx.load(tmp_path / "model.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in dims] == ["batch", 2, "height", "width"]
    data = LabelledImages(stored, np.full(32, -1), (), "set")
    subject = Subject(frozen, tmp_path, PREPROCESSING)
    proof = prove(subject, data, Yardstick(), Gates(), parity_images=32, progress=SilentProgress())
    assert proof.static.status == "passed", proof.static.summary
    assert proof.parity.status == "passed", proof.parity.summary
    assert "16 images of twice the size" in proof.parity.summary
    assert proof.parity.details is not None
    other_size = proof.parity.details["other_size"]
    assert isinstance(other_size, dict)
    assert other_size["images"] == 16


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(*body(), nn.Flatten(), nn.Linear(8, 3)), "fails at 16x12 pixels"),
        (
            nn.Sequential(*body()[:3], nn.AdaptiveAvgPool2d((2, 1)), nn.Conv2d(4, 3, 1)),
            "pools or branches depend on the size",
        ),
    ],
)
def test_a_network_of_one_size_is_refused(model: nn.Module, message: str) -> None:
    supernet = supernet_of(model)
    with pytest.raises(UnsupportedOperationError, match=f"{message}.*fixed size"):
        free_size(supernet, export_float_graph(supernet), model)
