"""The float graph of a quantized model as onnx_ir, and what its operations imply about values and channels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from eqdeploy.errors import UnsupportedOperationError, ValidationError
from eqdeploy.quant.affine import quantize
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import operation_of

#: Operations that only move values.
_MOVES = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"})
#: Operations whose output lies between the smallest and the largest value of their first or of all inputs.
_KEEPS_BOUNDS = _MOVES | {"MaxPool", "GlobalMaxPool", "GlobalAveragePool", "Concat", "Slice", "Split"}
#: Operations whose output range does not depend on their input.
_FIXED_BOUNDS = {"Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0)}

Bounds = tuple[float, float]


def to_ir(proto: onnx.ModelProto) -> ir.Model:
    """Read a model into onnx_ir without its notes for developers; tensors are shared, not copied.

    Raises:
        ValidationError: If the model cannot be represented.
        UnsupportedOperationError: If it holds subgraphs (If, Loop, Scan) or functions.
    """
    try:
        model = ir.from_proto(proto)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ValidationError(f"the ONNX graph is inconsistent: {_first_line(error)}") from error
    if next(iter(model.graph.subgraphs()), None) is not None or model.functions:
        raise UnsupportedOperationError(
            "graphs with If, Loop, Scan or functions cannot be exported",
            hint="a frozen network is one plain graph",
        )
    ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.doc_string = None
    for value in all_values(model.graph).values():
        value.metadata_props.clear()
        value.doc_string = None
    return model


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Write a model that came from a file.

    Raises:
        ValidationError: If it cannot be represented, for example because a name is not UTF-8.
    """
    try:
        return ir.to_proto(model)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValidationError(f"the ONNX graph is inconsistent: {_first_line(error)}") from error


def all_values(graph: ir.Graph) -> dict[str, ir.Value]:
    """Every value of a graph by name: inputs, initializers and node outputs, in this order."""
    values = {str(value.name): value for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph:
        values.update((str(value.name), value) for value in node.outputs if value.name)
    return values


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The array behind an initializer or a Constant node, None if the value is computed or absent.

    Raises:
        ValidationError: If the tensor's bytes do not fit its shape and type.
    """
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        return None
    try:
        array: NDArray[np.generic] = tensor.numpy()
    except (ValueError, TypeError, OSError) as error:
        raise ValidationError(f"the tensor cannot be read: {_first_line(error)}", where=value.name) from error
    return array


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """The input at a position, None if it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def clip_bounds(node: ir.Node) -> Bounds | None:
    """The constant bounds of a Clip node, infinite where one is absent; None for other or dynamic nodes."""
    if node.op_type != "Clip" or node.domain:
        return None
    bounds = [-np.inf, np.inf]
    for index in (1, 2):
        value = input_at(node, index)
        if value is None:
            continue
        array = constant(value)
        if array is None or array.size != 1:
            return None
        bounds[index - 1] = float(array.reshape(()).astype(np.float64))
    return bounds[0], bounds[1]


def bounds_before_quantization(graph: ir.Graph, encodings: Mapping[str, Encoding]) -> dict[str, Bounds]:
    """Bounds that the operations guarantee for every value, before the value's own quantizer.

    Args:
        graph: Float graph in order of execution.
        encodings: Encoded tensors by name. Their readers see dequantized codes, which may lie half a step
            beyond the float bound, so both are taken into account.
    """
    seen_by_readers: dict[str, Bounds] = {}
    before: dict[str, Bounds] = {}

    def record(name: str, bounds: Bounds) -> None:
        before[name] = bounds
        encoding = encodings.get(name)
        if encoding is not None:
            grid = _grid_ends(encoding)
            bounds = min(bounds[0], grid[0]), max(bounds[1], grid[1])
        seen_by_readers[name] = bounds

    for value in graph.inputs:
        record(str(value.name), (-np.inf, np.inf))
    for node in graph:
        inputs = [seen_by_readers.get(str(value.name), (-np.inf, np.inf)) for value in node.inputs if value is not None]
        for output in node.outputs:
            record(str(output.name), _output_bounds(node, inputs))
    return before


def implied(encoding: Encoding, bounds: Bounds, *, widest: tuple[int, int]) -> bool:
    """Whether values inside ``bounds`` never get codes outside the encoding's range.

    Args:
        encoding: Its encoding.
        bounds: Float bounds of the tensor before quantization.
        widest: Codes to which the device saturates by itself.
    """
    if (encoding.q_min, encoding.q_max) == widest:
        return True
    scale, zero_point = encoding.scale.reshape(-1), encoding.zero_point.reshape(-1)
    low, high = (quantize(np.full_like(scale, bound), scale, zero_point, *widest) for bound in bounds)
    return bool(np.all(encoding.q_min <= low) and np.all(high <= encoding.q_max))


def weight_channel_axis(weight: ir.Value) -> int | None:
    """Axis of the output channels in a weight, from the operations that read it.

    Conv: 0, from (C_out, C_in/groups, …). ConvTranspose: 1, from (C_in, C_out/groups, …), where one entry serves
    the same position of every group. Gemm: 0 with ``transB``, else 1. MatMul: the last axis of a right-hand
    matrix. A Transpose on the way is followed. None if no reader uses the value as a weight, or two disagree.
    """
    return None if weight.shape is None else _channel_axis(weight, weight.shape.rank())


def expected_bias_scales(
    bias: ir.Value, encodings: Mapping[str, Encoding], parameters: Mapping[str, Encoding]
) -> list[NDArray[np.float32]]:
    """The scale ``s_x · s_w`` of an integer bias, once for each layer that adds it.

    Args:
        bias: The bias initializer in the float graph.
        encodings: Activation encodings by name.
        parameters: Parameter encodings by initializer name.

    Returns:
        float32 scales, shape () or one per output channel. Layers whose encoded input or integer weight cannot
        be identified are left out.
    """
    scales: list[NDArray[np.float32]] = []
    for use in bias.uses():
        layer = _layer_of_bias(use.node, use.idx)
        data, weight = (None, None) if layer is None else (input_at(layer, 0), input_at(layer, 1))
        if layer is None or data is None or weight is None:
            continue
        data_encoding = encodings.get(_origin(data, encodings))
        weight_encoding = parameters.get(str(weight.name))
        if weight_encoding is None or data_encoding is None or data_encoding.axis is not None:
            continue
        with np.errstate(over="ignore", under="ignore"):
            scale = np.asarray(data_encoding.scale * weight_encoding.scale, np.float32)
        group = layer.attributes.get("group")
        if layer.op_type == "ConvTranspose" and scale.ndim == 1 and group is not None:
            scale = np.tile(scale, group.as_int())  # one entry serves the same position of every group
        scales.append(scale)
    return scales


def reads_quantized(node: ir.Node, float_readers: frozenset[str]) -> bool:
    """Whether a reader of an encoded tensor gets the quantized value."""
    return operation_of(str(node.name)) not in float_readers


def _output_bounds(node: ir.Node, inputs: list[Bounds]) -> Bounds:
    """Bounds of a node's outputs from those of its inputs."""
    first = inputs[0] if inputs else (-np.inf, np.inf)
    if node.domain:
        return -np.inf, np.inf
    if node.op_type in _FIXED_BOUNDS:
        return _FIXED_BOUNDS[node.op_type]
    if node.op_type == "Relu":
        return max(0.0, first[0]), max(0.0, first[1])
    clip = clip_bounds(node)
    if clip is not None:
        return min(max(first[0], clip[0]), clip[1]), min(max(first[1], clip[0]), clip[1])
    if node.op_type == "Concat":
        return min(low for low, _ in inputs), max(high for _, high in inputs)
    if node.op_type == "AveragePool":  # padding may count as zeros
        return min(0.0, first[0]), max(0.0, first[1])
    return first if node.op_type in _KEEPS_BOUNDS else (-np.inf, np.inf)


def _grid_ends(encoding: Encoding) -> Bounds:
    """Smallest and largest real value of an encoding, over all its channels."""
    codes = np.array([[encoding.q_min], [encoding.q_max]])
    values = (codes - encoding.zero_point.reshape(-1)) * encoding.scale.reshape(-1)
    return float(values.min()), float(values.max())


def _channel_axis(value: ir.Value, rank: int) -> int | None:
    """Channel axis on which all readers of a weight agree; the rank is that of the initializer it comes from."""
    axes = {_channel_axis_of_use(use.node, use.idx, rank) for use in value.uses()}
    return axes.pop() if len(axes) == 1 else None


def _channel_axis_of_use(node: ir.Node, position: int, rank: int) -> int | None:
    """Channel axis of a weight as one of its readers sees it."""
    if node.domain:
        return None
    if node.op_type == "Transpose":
        inner = _channel_axis(node.outputs[0], rank)
        permutation = node.attributes.get("perm")
        order = tuple(reversed(range(rank))) if permutation is None else permutation.as_ints()
        return None if inner is None else order[inner]
    if position != 1:
        return None
    if node.op_type == "Gemm":
        attribute = node.attributes.get("transB")
        return 0 if attribute is not None and attribute.as_int() else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": rank - 1}.get(node.op_type)


def _layer_of_bias(node: ir.Node, position: int) -> ir.Node | None:
    """The node that multiplies by the weight, given the one that reads the bias."""
    if node.domain:
        return None
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        return node if position == 2 else None
    if node.op_type == "Add":
        other = node.inputs[1 - position]
        producer = other.producer() if other is not None else None
        return producer if producer is not None and producer.op_type == "MatMul" else None
    return None


def _origin(value: ir.Value, encodings: Mapping[str, Encoding]) -> str:
    """Name of the nearest encoded tensor of which the value is a rearrangement."""
    producer = value.producer()
    while str(value.name) not in encodings and producer is not None and producer.op_type in _MOVES | {"Pad"}:
        source = producer.inputs[0]
        if source is None:
            break
        value, producer = source, source.producer()
    return str(value.name)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
