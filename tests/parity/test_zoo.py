"""Every built-in architecture, with random weights, under every shipped profile: proved in ONNX Runtime.

Where the runtime has integer kernels for everything that a profile encodes, nothing but these is left, and they compute
exactly what the integer reference computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.calibration.ranges import sample_tensors
from eqdeploy.exporters.contract import export_checked, get_exporter
from eqdeploy.freeze.float_graph import export_float_graph
from eqdeploy.freeze.freeze import freeze
from eqdeploy.freeze.ranges import tensors_to_calibrate
from eqdeploy.network import ElasticSpace
from eqdeploy.profile import load_profile, shipped_profiles
from eqdeploy.resolve import resolve
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.validation.parity import LevelParity, ParityVerdict, check_parity
from eqdeploy.validation.runtime import Level
from eqdeploy.validation.static import check_static
from eqdeploy.zoo import build

#: Image shape and arguments that keep each architecture quick; the structure stays that of the full size.
NETWORKS: Mapping[str, tuple[tuple[int, int, int], Mapping[str, object]]] = {
    "cifar-resnet20": ((3, 32, 32), {}),
    "decoder": ((3, 16, 16), {}),
    "densenet-small": ((3, 16, 16), {}),
    "digits-resnet": ((1, 8, 8), {}),
    "efficientnet_b0": ((3, 32, 32), {}),
    "mlp": ((1, 8, 8), {}),
    "mobilenet_v2": ((3, 32, 32), {}),
    "resnet18": ((3, 32, 32), {}),
}

#: Profiles of a runtime whose integer kernels are exact; TensorRT's signed activations stay float on x86.
FUSED_PROFILES = frozenset({"onnxruntime-x86", "onnxruntime-w4a4", "onnxruntime-w2a4", "snpe-dsp"})


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_profile_is_proved(name: str, tmp_path: Path) -> None:
    shape, arguments = NETWORKS[name]
    torch.manual_seed(0)
    images = torch.randn(8, *shape)
    supernet = Supernet.from_float(build(name, arguments), images[:2], ElasticSpace(bits=(2, 4, 7, 8)))
    supernet.eval()
    calibrate_batch_norm(supernet, [images])
    supernet.initialize(images)
    graph = export_float_graph(supernet)
    for profile_name in shipped_profiles():
        profile = load_profile(profile_name)
        plan = resolve(profile, supernet.network)
        supernet.activate(plan.subnet)
        calibrate_batch_norm(supernet, [images])
        samples = sample_tensors(supernet, [images], tensors_to_calibrate(plan))
        model = freeze(supernet, plan, graph, samples)
        folder = tmp_path / profile_name
        folder.mkdir()
        options = {"opset": profile.runtime.opset, **profile.export.options}
        export_checked(get_exporter(profile.export.format), model, folder, options)

        static = check_static(model, folder / "model.onnx")
        assert static.passed, f"{profile_name}: {static.summary}"
        parity = check_parity(model, folder / "model.onnx", images[:2].numpy(), levels=(Level.DISABLED, Level.ALL))
        assert parity.verdict is not ParityVerdict.FAILED, f"{profile_name}: {parity.summary}"
        if profile_name in FUSED_PROFILES:
            assert_fused(parity.level(Level.ALL), profile_name, has_transposed="decoder" in name)


def assert_fused(level: LevelParity, profile_name: str, *, has_transposed: bool) -> None:
    operators = level.operators
    assert operators is not None
    left_float = {item.op_type for item in operators.float_operators}
    if has_transposed:  # ONNX Runtime has no integer kernel for it; the float output layer reads its result
        assert left_float <= {"ConvTranspose", "Conv"}, profile_name
        return
    assert not left_float, f"{profile_name}: {operators.float_operators}"
    assert level.total.differing == 0, profile_name
