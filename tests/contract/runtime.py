"""Run exported models in ONNX Runtime and compare them with the model that they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from eqdeploy.quantized_model import QuantizedModel, operation_of

LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


Arrays = dict[str, NDArray[Any]]


def simulate(model: QuantizedModel, feeds: Arrays) -> tuple[Arrays, Arrays]:
    """Run the float graph node by node and quantize by the definition; return codes and real values by tensor."""
    initializers = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.graph.initializer}
    floats: dict[str, Any] = {**initializers, "": None}
    reals: dict[str, Any] = dict(floats)
    codes: dict[str, NDArray[Any]] = {}

    def record(name: str, array: NDArray[Any]) -> None:
        floats[name] = reals[name] = array
        if name in model.activations:
            encoding = model.activations[name].encoding
            codes[name] = encoding.quantize(array)
            reals[name] = encoding.dequantize(codes[name])

    for name, array in feeds.items():
        record(name, array)
    for node in model.graph.graph.node:
        operation = operation_of(node.name)
        inputs = [
            floats[name]
            if name in model.activations and operation in model.activations[name].float_readers
            else reals[name]
            for name in node.input
        ]
        names = [f"i{index}" if name else "" for index, name in enumerate(node.input)]
        lone = onnx.NodeProto()
        lone.CopyFrom(node)
        lone.input[:] = names
        graph = helper.make_graph(
            [lone],
            "lone",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)
                for name, value in zip(names, inputs, strict=True)
                if name
            ],
            [onnx.ValueInfoProto(name=name) for name in node.output],
        )
        alone = helper.make_model(graph, opset_imports=list(model.graph.opset_import), ir_version=10)
        feed = {name: value for name, value in zip(names, inputs, strict=True) if name}
        results = session(onnx.shape_inference.infer_shapes(alone), "disabled").run(None, feed)
        for name, array in zip(node.output, results, strict=True):
            record(name, array)
    return codes, reals


def session(model: onnx.ModelProto | Path, level: str) -> ort.InferenceSession:
    """Open a session on the CPU with one thread; any remark of the runtime is an error message."""
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_codes(path: Path, names: list[str], feeds: dict[str, NDArray[Any]], level: str) -> dict[str, NDArray[Any]]:
    """Integer codes of encoded tensors, taken behind Q and integer Clip."""
    model = onnx.load(path)
    outputs = {node.name: node.output[0] for node in model.graph.node}
    wanted = {name: outputs.get(f"{name}/clip", outputs.get(f"{name}/quantize", "")) for name in names}
    for value in wanted.values():
        model.graph.output.append(onnx.ValueInfoProto(name=value))
    model = onnx.shape_inference.infer_shapes(model)
    arrays = session(model, level).run(list(wanted.values()), feeds)
    return {name: array.astype(np.int32) for name, array in zip(names, arrays, strict=True)}


def image(model: QuantizedModel, batch: int = 2, seed: int = 0) -> dict[str, NDArray[Any]]:
    """A random batch for the network's inputs."""
    random = np.random.default_rng(seed)
    feeds = {}
    for info in model.graph.graph.input:
        sizes = [dim.dim_value or batch for dim in info.type.tensor_type.shape.dim]
        feeds[info.name] = random.normal(0, 1, size=sizes).astype(np.float32)
    return feeds


def fused_operators(path: Path, directory: Path) -> list[str]:
    """Operator types of the optimized graph."""
    target = directory / "optimized.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS["extended"]
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(target).graph.node]
