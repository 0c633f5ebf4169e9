"""Freeze small supernets, and compute what a frozen graph must compute, in torch."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.calibration.ranges import sample_tensors
from eqdeploy.freeze.float_graph import FloatGraph, export_float_graph
from eqdeploy.freeze.freeze import freeze
from eqdeploy.freeze.ranges import tensors_to_calibrate
from eqdeploy.network import ElasticSpace
from eqdeploy.plan import DevicePlan
from eqdeploy.profile_loading import load_profile
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.resolve import resolve
from eqdeploy.supernet.shapes import tensors_in
from eqdeploy.supernet.supernet import Supernet
from tests.unit.supernet_parts import SPACE, Case, Net, conv, made


def _every_kind_of_layer(m: Any, x: Tensor) -> Any:
    x = F.relu6(m.norm1(m.a(x)))
    y = F.relu(m.norm2(m.depthwise(x)))
    x = F.relu(x + m.b(y))
    x = F.relu(m.norm3(m.up(x)))
    return m.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


#: TensorRT's eight bits are seven on tensors that are never negative.
SPACE_WITH_SEVEN = ElasticSpace(bits=(4, 7, 8))

#: Convolution, depthwise and grouped transposed convolution, linear; with and without bias and BatchNorm.
CASE = Case(
    lambda: Net(
        _every_kind_of_layer,
        a=conv(3, 8, bias=False),
        norm1=nn.BatchNorm2d(8),
        depthwise=conv(8, 8, groups=8),
        norm2=nn.BatchNorm2d(8),
        b=conv(8, 8, 1),
        up=nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2, bias=False),
        norm3=nn.BatchNorm2d(6),
        head=nn.Linear(6, 4),
    )
)


@dataclass(frozen=True)
class Frozen:
    """A frozen network and everything it was made of."""

    supernet: Supernet
    plan: DevicePlan
    graph: FloatGraph
    model: QuantizedModel


def images_for(case: Case, count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *case.shape, generator=torch.Generator().manual_seed(seed))


def supernet_of(case: Case, seed: int = 0, space: ElasticSpace = SPACE) -> Supernet:
    supernet = Supernet.from_float(made(case, seed), torch.zeros(2, *case.shape), space).eval()
    supernet.initialize(images_for(case, 16))
    return supernet


def refreeze(supernet: Supernet, plan: DevicePlan, graph: FloatGraph, images: Tensor) -> QuantizedModel:
    """Activate, calibrate and freeze once more."""
    supernet.activate(plan.subnet)
    calibrate_batch_norm(supernet, [images])
    return freeze(supernet, plan, graph, sample_tensors(supernet, [images], tensors_to_calibrate(plan)))


def frozen(case: Case, profile: str, seed: int = 0, space: ElasticSpace = SPACE) -> Frozen:
    supernet = supernet_of(case, seed, space)
    plan = resolve(load_profile(profile), supernet.network)
    graph = export_float_graph(supernet)
    return Frozen(supernet, plan, graph, refreeze(supernet, plan, graph, images_for(case, 24, seed=1)))


@torch.no_grad()
def torch_outputs(supernet: Supernet, model: QuantizedModel, images: Tensor) -> list[NDArray[Any]]:
    """The float network with the device's weights and biases, BatchNorm folded, in torch."""
    reference = copy.deepcopy(supernet).eval()
    reference.deactivate()
    initializers = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.graph.initializer}
    for layer in reference.network.layers:
        module = reference.graph_module.get_submodule(layer.name)
        assert isinstance(module.weight, Tensor)
        module.weight.copy_(torch.from_numpy(np.array(initializers[f"{layer.name}.weight"])))
        bias = initializers.get(f"{layer.name}.bias")
        if layer.batch_norm is None:
            if isinstance(module.bias, Tensor):
                module.bias.copy_(torch.from_numpy(np.array(bias)))
            continue
        norm = reference.graph_module.get_submodule(layer.batch_norm)
        values = {"running_mean": 0.0, "running_var": 1.0 - float(norm.eps), "weight": 1.0}  # type: ignore[arg-type]
        for name, value in values.items():
            tensor = getattr(norm, name)
            if isinstance(tensor, Tensor):
                tensor.fill_(value)
        if isinstance(module.bias, Tensor):
            module.bias.zero_()
        target = norm.bias if isinstance(norm.bias, Tensor) else norm.running_mean
        assert isinstance(target, Tensor)
        target.copy_(torch.from_numpy(np.array(bias)) * (1.0 if isinstance(norm.bias, Tensor) else -1.0))
    return [output.numpy() for output in tensors_in(reference(images.clone()))]


def onnx_outputs(model: onnx.ModelProto, images: Tensor) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[NDArray[Any]] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return outputs


def fingerprint(model: QuantizedModel) -> list[bytes]:
    parts = [model.graph.SerializeToString(), repr((model.coverage, model.reasons, model.folded, model.notes)).encode()]
    for entries in (model.activations, model.parameters):
        for name, entry in entries.items():
            encoding = entry.encoding
            numbers = (encoding.q_min, encoding.q_max, encoding.bits, encoding.signed, encoding.axis)
            parts += [name.encode(), encoding.scale.tobytes(), encoding.zero_point.tobytes(), repr(numbers).encode()]
    return [*parts, *(parameter.codes.tobytes() for parameter in model.parameters.values())]


def fresh_fingerprint(profile: str = "snpe-dsp") -> list[bytes]:
    return fingerprint(frozen(CASE, profile, space=SPACE_WITH_SEVEN).model)
