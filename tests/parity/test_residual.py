"""Networks whose additions read unquantized tensors in training, under every profile: proved in ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.calibration.ranges import sample_tensors
from eqdeploy.exporters.contract import export_checked, get_exporter
from eqdeploy.freeze.float_graph import FloatGraph, export_float_graph
from eqdeploy.freeze.freeze import freeze
from eqdeploy.freeze.ranges import tensors_to_calibrate
from eqdeploy.network import ElasticSpace, OpKind, Residual
from eqdeploy.profile import load_profile, shipped_profiles
from eqdeploy.profile_schema import DeviceProfile
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.resolve import resolve
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.validation.parity import ParityVerdict, check_parity
from eqdeploy.validation.runtime import Level
from eqdeploy.validation.static import check_static
from eqdeploy.zoo import build
from tests.unit.supernet_parts import made
from tests.unit.test_supernet_residual import CASES

#: Profiles of a runtime whose integer kernels are exact; TensorRT's signed activations stay float on x86.
FUSED_PROFILES = frozenset({"onnxruntime-x86", "onnxruntime-w4a4", "onnxruntime-w2a4", "snpe-dsp"})
BITS = (2, 4, 7, 8)


def initialized(model: nn.Module, *shape: int) -> tuple[Supernet, FloatGraph, Tensor]:
    images = torch.randn(12, *shape, generator=torch.Generator().manual_seed(0))
    space = ElasticSpace(bits=BITS, residual=Residual.FLOAT)
    supernet = Supernet.from_float(model, images[:2], space).eval()
    calibrate_batch_norm(supernet, [images])
    supernet.initialize(images)
    return supernet, export_float_graph(supernet), images


def prove(
    profile: DeviceProfile,
    subnet: SubnetConfig | None,
    parts: tuple[Supernet, FloatGraph, Tensor],
    folder: Path,
) -> QuantizedModel:
    """Export under a profile and hold every integer against ONNX Runtime at every level of optimization."""
    supernet, graph, images = parts
    plan = resolve(profile, supernet.network, subnet)
    supernet.activate(plan.subnet)
    calibrate_batch_norm(supernet, [images])
    model = freeze(supernet, plan, graph, sample_tensors(supernet, [images], tensors_to_calibrate(plan)))
    folder.mkdir()
    options = {"opset": profile.runtime.opset, **profile.export.options}
    export_checked(get_exporter(profile.export.format), model, folder, options)
    static = check_static(model, folder / "model.onnx")
    assert static.passed, f"{profile.name}: {static.summary}"
    parity = check_parity(model, folder / "model.onnx", images[:3].numpy(), levels=tuple(Level))
    assert parity.verdict is not ParityVerdict.FAILED, f"{profile.name}: {parity.summary}"
    if profile.name in FUSED_PROFILES:
        optimized = parity.level(Level.ALL)
        assert optimized.total.differing == 0, f"{profile.name}: {parity.summary}"
    return model


def test_a_resnet_is_proved_under_every_profile(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = initialized(build("cifar-resnet20", {}), 3, 16, 16)
    copies = [tensor.name for tensor in parts[0].network.tensors if tensor.op is OpKind.REQUANTIZE]
    for name in shipped_profiles():
        model = prove(load_profile(name), None, parts, tmp_path / name)
        own = [copy for copy in copies if copy in model.activations]
        assert own == (copies if name in ("onnxruntime-w4a4", "onnxruntime-w2a4") else [])


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_kind_of_shortcut_is_proved_with_few_bits(name: str, tmp_path: Path) -> None:
    """Two bits on every tensor that a layer reads, boundary included, and a mixture of all widths."""
    case, expected = CASES[name]
    parts = initialized(made(case), *case.shape)
    network, profile = parts[0].network, load_profile("onnxruntime-x86")
    plain = resolve(profile, network).subnet
    for folder, widths in (("two", (2,)), ("mixed", (2, 8, 4)), ("other", (4, 2, 8))):
        forms = {
            tensor: network.space.activation_form(
                widths[index % len(widths)], form.symmetry, non_negative=network.tensor[tensor].non_negative
            )
            for index, (tensor, form) in enumerate(plain.activations)
        }
        model = prove(profile, replace(plain, activations=tuple(forms.items())), parts, tmp_path / folder)
        own = [f"{source}_requantize" in model.activations for source in expected]
        assert all(own) or folder != "two"
        for source in expected:
            assert model.activations[source].encoding.bits == 8


class PooledStem(nn.Module):
    """Layers read both sides of a pool, and an addition what comes out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.left, self.right = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.pool, self.relu = nn.MaxPool2d(2), nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, 8, 8) to (N, 4, 4, 4)."""
        x = self.relu(self.stem(x))
        y = self.pool(x)
        z: Tensor = self.left(y) + y
        result: Tensor = self.relu(z + self.side(x)) + self.right(y)
        return result


@pytest.mark.parametrize(("before", "after"), [(4, 8), (8, 4), (2, 2), (8, 8)])
def test_copies_on_both_sides_of_a_pool_are_proved(before: int, after: int, tmp_path: Path) -> None:
    """The pool has the encoding of its input; a copy of either of them with eight bits is that encoding."""
    torch.manual_seed(0)
    parts = initialized(PooledStem().eval(), 3, 8, 8)
    network, profile = parts[0].network, load_profile("onnxruntime-x86")
    plain = resolve(profile, network).subnet
    widths = {"relu_requantize": before, "pool_requantize": after}
    forms = {
        tensor: network.space.activation_form(widths[tensor], form.symmetry, non_negative=True)
        if tensor in widths
        else form
        for tensor, form in plain.activations
    }
    assert set(widths) <= set(forms)
    model = prove(profile, replace(plain, activations=tuple(forms.items())), parts, tmp_path / "a")
    encodings = {name: tensor.encoding for name, tensor in model.activations.items()}
    assert encodings["pool"].bits == encodings["relu"].bits == 8
    assert encodings["pool"].scale == encodings["relu"].scale
    assert {name for name in widths if name in encodings} == {name for name, bits in widths.items() if bits != 8}
