"""Networks for comparing the reference with ONNX Runtime: every operation as a branch of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from eqdeploy.exporters.onnx_qdq import OnnxQdqExporter
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.testing import ModelBuilder, SampleForms

SIZE = 9
CHANNELS = 6

#: Branches that ONNX Runtime has no integer kernel for.
UNFUSED = frozenset({"up", "up_grouped", "hard", "difference"})


@dataclass
class Branches:
    """Collects the tensors that a network of branches shall encode."""

    builder: ModelBuilder
    encodings: dict[str, Encoding]
    outputs: list[str] = field(default_factory=list)

    def end(self, name: str) -> str:
        """End a branch: its tensor is encoded, once an encoding is known, and returned."""
        self.outputs.append(name)
        return self.encode(name)

    def encode(self, name: str) -> str:
        """Encode a tensor inside a branch."""
        if name in self.encodings:
            self.builder.encode(name, encoding=self.encodings[name])
        return name


def branch_network(forms: SampleForms, encodings: dict[str, Encoding], seed: int) -> QuantizedModel:
    """A network with one branch for every operation that the reference knows a kernel of.

    Args:
        forms: Forms of weights and biases.
        encodings: Encodings of activations by name; tensors without one stay float.
        seed: Seed of the weights.
    """
    builder = ModelBuilder(forms, seed)
    b = Branches(builder, encodings)
    x = b.encode(builder.input("x", CHANNELS, SIZE, SIZE))
    _convolutions(b, x)
    _products(b, x)
    _element_wise(b, x)
    _pools_and_moves(b, x)
    return builder.build(*b.outputs)


def _convolutions(b: Branches, x: str) -> None:
    c = CHANNELS
    layers: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
        ("conv", (8, c, 3, 3), {"pads": [1, 1, 1, 1]}),
        ("depthwise", (c, 1, 3, 3), {"pads": [1, 1, 1, 1], "group": c}),
        ("pointwise", (7, c, 1, 1), {"strides": [2, 2]}),
        ("dilated", (4, c, 3, 3), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        ("grouped", (6, c // 3, 2, 3), {"group": 3, "pads": [1, 0, 0, 2], "strides": [2, 1]}),
        ("same", (5, c, 2, 2), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ]
    for name, shape, attributes in layers:
        b.builder.layer(name, "Conv", x, shape, bias=shape[0], kernel_shape=list(shape[2:]), **attributes)
        b.end(b.builder.node(f"{name}_relu", "Relu", [name]) if name in ("conv", "depthwise") else name)
    b.builder.layer("unbiased", "Conv", x, (4, c, 3, 3), kernel_shape=[3, 3])
    b.end("unbiased")
    b.end(b.builder.layer("up", "ConvTranspose", x, (c, 5, 3, 3), bias=5, strides=[2, 2], pads=[1, 1, 0, 1],
                          output_padding=[1, 0]))  # fmt: skip
    b.end(b.builder.layer("up_grouped", "ConvTranspose", x, (c, 2, 2, 2), bias=6, group=3, strides=[2, 2]))


def _products(b: Branches, x: str) -> None:
    flat = b.encode(b.builder.node("flat", "Flatten", [x]))
    b.end(b.builder.layer("gemm", "Gemm", flat, (10, CHANNELS * SIZE * SIZE), bias=10, transB=1))
    b.end(b.builder.layer("gemm_plain", "Gemm", flat, (CHANNELS * SIZE * SIZE, 3)))
    b.end(b.builder.layer("matmul", "MatMul", x, (SIZE, 4)))
    transposed = b.encode(b.builder.node("transposed", "Transpose", [x], perm=[0, 1, 3, 2]))
    b.end(b.builder.node("attention", "MatMul", [x, transposed]))


def _element_wise(b: Branches, x: str) -> None:
    node = b.builder.node
    gate = b.encode(node("gate", "Sigmoid", [x]))
    b.outputs.append(gate)
    b.end(node("sum", "Add", [x, gate]))
    b.end(node("sum_relu", "Relu", [node("sum_before", "Add", [gate, x])]))
    b.end(node("product", "Mul", [x, gate]))
    squeezed = b.encode(node("squeezed", "GlobalAveragePool", [x]))
    b.outputs.append(squeezed)
    b.end(node("excited", "Mul", [x, squeezed]))
    b.end(node("excited_first", "Mul", [squeezed, gate]))
    b.end(node("leaky", "LeakyRelu", [x], alpha=0.1))
    b.end(node("joined", "Concat", [x, gate], axis=1))
    b.end(node("difference", "Sub", [x, gate]))
    b.end(node("hard", "HardSigmoid", [x], alpha=1 / 6, beta=0.5))
    b.end(b.builder.clip("bounded", b.builder.layer("bounded_conv", "Conv", x, (3, CHANNELS, 1, 1), bias=3), 0.0, 0.75))


def _pools_and_moves(b: Branches, x: str) -> None:
    node, constant = b.builder.node, b.builder.constant
    b.end(node("mean", "AveragePool", [x], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]))
    b.end(node("mean_padded", "AveragePool", [x], kernel_shape=[2, 2], pads=[1, 1, 0, 0], count_include_pad=1))
    b.end(node("mean_all", "AveragePool", [x], kernel_shape=[SIZE, SIZE]))
    b.end(node("largest", "MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]))
    scales = constant("resized.scales", [1, 1, 2, 2])
    b.end(node("resized", "Resize", [x, "", scales], mode="nearest", nearest_mode="floor",
               coordinate_transformation_mode="asymmetric"))  # fmt: skip


def calibrated(forms: SampleForms, images: NDArray[np.float32], seed: int, *, odd: bool) -> QuantizedModel:
    """A network of branches whose encodings fit the ranges of its tensors.

    Args:
        forms: Forms.
        images: Images that the ranges are measured on.
        seed: Seed.
        odd: Whether free zero-points are odd, with which ties of some kernels go the other way.
    """
    first = branch_network(forms, {}, seed)
    encodings = {
        name: fitted(forms, values, odd=odd, fixed=name in ("largest", "resized", "flat", "transposed"))
        for name, values in float_values(first, images).items()
        if name not in ("conv", "depthwise", "sum_before", "bounded_conv")
    }
    for name in ("largest", "resized", "flat", "transposed"):
        encodings[name] = encodings["x"]
    low, high = (int(encodings["bounded"].quantize(np.asarray(bound, np.float32))) for bound in (0.0, 0.75))
    bounded = encodings["bounded"]
    encodings["bounded"] = Encoding(bounded.scale, bounded.zero_point, low, high, bounded.bits, bounded.signed)
    return branch_network(forms, encodings, seed)


def fitted(forms: SampleForms, values: NDArray[Any], *, odd: bool, fixed: bool = False) -> Encoding:
    """An encoding that covers most of the values of a tensor."""
    form = forms.activation
    low, high = min(0.0, float(np.quantile(values, 0.002))), max(1e-3, float(np.quantile(values, 0.998)))
    if form.signed:
        return Encoding.per_tensor(
            _scale(forms, max(-low, high) / max(form.q_max, 1)), 0, form.q_min, form.q_max, form.bits, signed=True
        )
    scale = _scale(forms, (high - low) / form.q_max)
    zero_point = int(np.clip(round(-low / scale), 0, form.q_max))
    if odd and low < 0 and zero_point % 2 == 0:
        zero_point = zero_point + 1 if zero_point < form.q_max else zero_point - 1
    return Encoding.per_tensor(scale, max(zero_point, 0), form.q_min, form.q_max, form.bits, signed=False)


def _scale(forms: SampleForms, scale: float) -> float:
    return float(2.0 ** np.ceil(np.log2(scale))) if forms.power_of_two else float(np.float32(scale))


def float_values(model: QuantizedModel, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Every float tensor of a network, computed by ONNX Runtime without optimization."""
    graph = onnx.ModelProto()
    graph.CopyFrom(model.graph)
    returned = {output.name for output in graph.graph.output}
    names = [name for node in graph.graph.node for name in node.output]
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in returned)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results = session.run(names, {session.get_inputs()[0].name: images})
    return {session.get_inputs()[0].name: images, **dict(zip(names, results, strict=True))}


def exported(model: QuantizedModel, folder: Path) -> Path:
    """Write a network as a QDQ file."""
    OnnxQdqExporter().export(model, folder, {})
    return folder / "model.onnx"


def noise(count: int, seed: int, *shape: int) -> NDArray[np.float32]:
    """Random images."""
    images: NDArray[np.float32] = np.random.default_rng(seed).normal(0, 1, (count, *shape)).astype(np.float32)
    return images
