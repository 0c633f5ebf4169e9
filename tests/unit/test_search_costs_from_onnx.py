"""Every budget recomputed from the exported ONNX file alone equals what the search counted with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.calibration.ranges import sample_tensors
from eqdeploy.errors import ProfileError
from eqdeploy.exporters.contract import get_exporter
from eqdeploy.freeze.float_graph import export_float_graph
from eqdeploy.freeze.freeze import freeze
from eqdeploy.freeze.ranges import tensors_to_calibrate
from eqdeploy.network import ElasticSpace, Residual
from eqdeploy.profile import DeviceProfile, load_profile, shipped_profiles
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.search.costs import CostModel
from eqdeploy.search.space import search_space
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.zoo import build
from tests.parity.test_structures import NETWORKS
from tests.unit.freeze_support import CASE
from tests.unit.onnx_costs import costs_of_file
from tests.unit.search_spaces import TENSORRT, with_widths
from tests.unit.supernet_parts import Net, conv, randomize


def _joined(m: Any, x: Tensor) -> Tensor:
    x = F.relu(m.norm(m.stem(x)))
    left, right = m.left(x), F.relu(m.grouped(x))
    y = F.max_pool2d(torch.cat([left, right], 1), 2)
    y = F.relu(m.last(y) + m.skip(y))
    result: Tensor = m.head(F.relu(m.hidden(y.mean((2, 3)))))
    return result


def joined() -> nn.Module:
    """Concatenation, residual addition, grouped and pointwise convolutions, two linear layers; odd sizes."""
    return Net(
        _joined,
        stem=conv(3, 6, bias=False),
        norm=nn.BatchNorm2d(6),
        left=conv(6, 5),
        grouped=conv(6, 9, groups=3, bias=False),
        last=conv(14, 7),
        skip=conv(14, 7, 1, bias=False),
        hidden=nn.Linear(7, 11),
        head=nn.Linear(11, 3),
    )


MODELS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **NETWORKS,
    "joined": (joined, (3, 9, 9)),
    "every kind of layer": (CASE.make, CASE.shape),
    "two layers": (lambda: nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2)), (5,)),
    "digits": (lambda: build("digits-resnet", {}), (1, 8, 8)),
}

PROFILES: Mapping[str, DeviceProfile] = {
    **{name: load_profile(name) for name in shipped_profiles()},
    "tensorrt, many widths": with_widths(TENSORRT, 8, 5, 3),
    "snpe, many widths": with_widths(load_profile("snpe-dsp"), 8, 4, 2, boundary=8),
    "snpe, two widths": with_widths(load_profile("snpe-dsp"), 8, 7, boundary=8),
}


CASES = [*((name, Residual.QUANTIZED) for name in MODELS), ("joined", Residual.FLOAT), ("digits", Residual.FLOAT)]


@pytest.mark.parametrize(("name", "residual"), CASES)
def test_costs_are_those_of_the_file(name: str, residual: Residual, tmp_path: Path) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model, images = randomize(make()).eval(), torch.randn(12, *shape)
    space = ElasticSpace(bits=(2, 3, 4, 7, 8), residual=residual)
    supernet = Supernet.from_float(model, images[:2], space).eval()
    calibrate_batch_norm(supernet, [images])
    supernet.initialize(images)
    graph, random = export_float_graph(supernet), np.random.default_rng(0)
    for profile in PROFILES.values():
        searched = search_space(profile, supernet.network)
        costs = CostModel(searched)
        for _ in range(2 if searched.genes else 1):
            choices = np.asarray(random.integers(searched.sizes), np.int64)
            plan = searched.plan(choices)
            supernet.activate(plan.subnet)
            calibrate_batch_norm(supernet, [images])
            frozen = freeze(supernet, plan, graph, sample_tensors(supernet, [images], tensors_to_calibrate(plan)))
            expected = {metric: float(values[0]) for metric, values in costs.costs(choices[None]).items()}
            assert costs_of_file(written(frozen, profile, tmp_path / profile.name)) == expected, profile.name


def written(model: QuantizedModel, profile: DeviceProfile, folder: Path) -> Path:
    """The model that a profile's exporter writes, or the one that is proved where it takes other networks only."""
    folder.mkdir(exist_ok=True)
    opset = {"opset": profile.runtime.opset}
    try:
        files = get_exporter(profile.export.format).export(model, folder, {**opset, **profile.export.options})
    except ProfileError:
        files = ()
    if "model.onnx" not in files:
        get_exporter("onnx_qdq").export(model, folder, opset)
    return folder / "model.onnx"
