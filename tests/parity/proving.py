"""From a float network to a proof in ONNX Runtime, without the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from eqdeploy.calibration.ranges import sample_tensors
from eqdeploy.exporters.contract import export_checked, get_exporter
from eqdeploy.freeze.float_graph import export_float_graph
from eqdeploy.freeze.freeze import freeze
from eqdeploy.freeze.ranges import tensors_to_calibrate
from eqdeploy.network import ElasticSpace
from eqdeploy.pipeline.baseline import FloatNetwork
from eqdeploy.plan import DevicePlan
from eqdeploy.profile import load_profile
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.resolve import resolve
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.validation.distance import DistanceMeter, DistanceReport
from eqdeploy.validation.parity import check_parity
from eqdeploy.validation.parity_report import ParityReport
from eqdeploy.validation.reference.graph import Graph
from eqdeploy.validation.runtime import Level


@dataclass(frozen=True)
class Proved:
    """A network and what was found about its file."""

    supernet: Supernet
    plan: DevicePlan
    model: QuantizedModel
    parity: ParityReport
    distance: DistanceReport


def prove(network: nn.Module, images: Tensor, folder: Path, profile: str = "onnxruntime-x86") -> Proved:
    """Convert, calibrate, freeze, export and compare a network without BatchNorm.

    Args:
        network: In evaluation mode.
        images: Calibration images, shape (N, …); the first three are compared.
        folder: Receives the files.
        profile: Name of a shipped profile.
    """
    supernet = Supernet.from_float(network.eval(), images[:2], ElasticSpace(bits=(7, 8))).eval()
    supernet.initialize(images)
    device = load_profile(profile)
    plan = resolve(device, supernet.network)
    supernet.activate(plan.subnet)
    samples = sample_tensors(supernet, [images], tensors_to_calibrate(plan))
    model = freeze(supernet, plan, export_float_graph(supernet), samples)
    options = {"opset": device.runtime.opset, **device.export.options}
    export_checked(get_exporter(device.export.format), model, folder, options)
    meter = DistanceMeter(Graph.of(model), FloatNetwork(supernet).tensors)
    with torch.no_grad():
        parity = check_parity(
            model,
            folder / "model.onnx",
            images[:3].numpy(),
            levels=(Level.DISABLED, Level.ALL),
            watch=meter.add,
        )
    return Proved(supernet, plan, model, parity, meter.report())
