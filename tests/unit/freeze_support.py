"""Freeze small supernets, and compute what a frozen graph must compute, in torch."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.calibration.ranges import sample_tensors
from eqdeploy.freeze.float_graph import FloatGraph, export_float_graph
from eqdeploy.freeze.freeze import freeze, tensors_to_calibrate
from eqdeploy.plan import DevicePlan
from eqdeploy.profile_loading import load_profile
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.resolve import resolve
from eqdeploy.supernet.shapes import tensors_in
from eqdeploy.supernet.supernet import Supernet
from tests.unit.supernet_parts import SPACE, Case, made


@dataclass(frozen=True)
class Frozen:
    """A frozen network and everything it was made of."""

    supernet: Supernet
    plan: DevicePlan
    graph: FloatGraph
    model: QuantizedModel


def images_for(case: Case, count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *case.shape, generator=torch.Generator().manual_seed(seed))


def supernet_of(case: Case, seed: int = 0) -> Supernet:
    supernet = Supernet.from_float(made(case, seed), torch.zeros(2, *case.shape), SPACE).eval()
    supernet.initialize(images_for(case, 16))
    return supernet


def refreeze(supernet: Supernet, plan: DevicePlan, graph: FloatGraph, images: Tensor) -> QuantizedModel:
    """Activate, calibrate and freeze once more."""
    supernet.activate(plan.subnet)
    calibrate_batch_norm(supernet, [images])
    return freeze(supernet, plan, graph, sample_tensors(supernet, [images], tensors_to_calibrate(plan)))


def frozen(case: Case, profile: str | DevicePlan, seed: int = 0) -> Frozen:
    supernet = supernet_of(case, seed)
    plan = resolve(load_profile(profile), supernet.network) if isinstance(profile, str) else profile
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
