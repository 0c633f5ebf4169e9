"""Build the canonical QDQ graph: Q → integer Clip → DQ on activations, integers → DQ on parameters.

ONNX Runtime fuses this form into integer kernels at every width, because all containers are 8 bits wide and a
narrower range is only an integer Clip between Q and DQ.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from eqdeploy.exporters.float_graph import all_values, clip_bounds, input_at, reads_quantized, to_ir
from eqdeploy.exporters.metadata import DroppedClip
from eqdeploy.exporters.model_checks import check_model
from eqdeploy.exporters.opset import convert_opset
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedModel, QuantizedParameter, QuantizedTensor

#: Endings of the names of the nodes around a tensor ``t``: ``t/quantize``, ``t/clip``, ``t/dequantize``.
QUANTIZE, CLIP, DEQUANTIZE = "/quantize", "/clip", "/dequantize"


@dataclass(frozen=True, eq=False)
class QdqGraph:
    """A QDQ graph and the float Clip nodes that its integer Clips replace, by tensor name."""

    model: ir.Model
    dropped_clips: dict[str, DroppedClip]


@dataclass(frozen=True, eq=False)
class _Builder:
    """The graph under construction and the value names that are taken."""

    graph: ir.Graph
    taken: set[str] = field(default_factory=set)

    def name(self, wanted: str) -> str:
        """Reserve a value name, numbered if a network happens to use it already."""
        name, number = wanted, 1
        while name in self.taken:
            name, number = f"{wanted}_{number}", number + 1
        self.taken.add(name)
        return name

    def initializer(self, wanted: str, array: NDArray[np.generic]) -> ir.Value:
        """Add a constant, stored as raw bytes."""
        return self.constant(self.name(wanted), array)

    def constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """Add a constant under a name that is known to be free."""
        tensor = ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def node(
        self, op_type: str, inputs: list[ir.Value], name: str, output: str, like: ir.Value, axis: int | None = None
    ) -> ir.Node:
        """Make a node with one output of the shape of ``like``; ``axis`` is written only where it matters."""
        dtype = ir.DataType.FLOAT if op_type == "DequantizeLinear" else inputs[-1].dtype
        result = ir.Value(name=output, type=None if dtype is None else ir.TensorType(dtype), shape=like.shape)
        attributes = [] if axis is None else [ir.AttrInt64("axis", axis)]
        return ir.Node("", op_type, inputs, attributes, outputs=[result], name=name)


def build_qdq(model: QuantizedModel, opset: int) -> QdqGraph:
    """Build the QDQ graph of a model.

    Args:
        model: The frozen network; it is left unchanged.
        opset: ONNX opset, 13 or higher.

    Raises:
        ValidationError: If the model contradicts itself.
        ProfileError: If an operation does not exist in that opset.
    """
    graph_model = float_ir(model, opset)
    graph = graph_model.graph
    builder = _Builder(graph, set(all_values(graph)))
    values = all_values(graph)
    for parameter in model.parameters.values():
        _dequantize_parameter(builder, parameter)
    on_codes = frozenset(name for name in model.activations if _is_computed_from_codes(model, values[name]))
    dropped: dict[str, DroppedClip] = {}
    for tensor in model.activations.values():
        clip = _quantize_activation(builder, tensor, values[tensor.name], on_codes=tensor.name in on_codes)
        if clip is not None:
            dropped[tensor.name] = clip
    RemoveUnusedNodesPass()(graph_model)
    graph.sort()
    return QdqGraph(graph_model, dropped)


def float_ir(model: QuantizedModel, opset: int) -> ir.Model:
    """The checked float graph of a model in the wanted opset, its weights as they are.

    Raises:
        ValidationError: If the model contradicts itself.
        ProfileError: If an operation does not exist in that opset.
    """
    graph_model = to_ir(model.graph)
    check_model(model, graph_model.graph)
    return convert_opset(graph_model, opset)


def _dequantize_parameter(builder: _Builder, parameter: QuantizedParameter) -> None:
    """Store a parameter's integers under its own name and let every reader read their DQ."""
    name, encoding = parameter.name, parameter.encoding
    old = builder.graph.initializers.pop(name)
    codes = builder.constant(name, parameter.codes.astype(encoding.container))
    dequantize = builder.node(
        "DequantizeLinear",
        [codes, *_grid(builder, name, encoding)],
        name + DEQUANTIZE,
        builder.name(f"{name}_dequantized"),
        codes,
        encoding.axis,
    )
    _insert_first(builder.graph, [dequantize])
    old.replace_all_uses_with(dequantize.outputs[0])


def _quantize_activation(
    builder: _Builder, tensor: QuantizedTensor, value: ir.Value, *, on_codes: bool
) -> DroppedClip | None:
    """Put Q, integer Clip and DQ behind a tensor; return the float Clip that this makes needless."""
    graph, name, encoding = builder.graph, tensor.name, tensor.encoding
    readers = [use for use in value.uses() if reads_quantized(use.node, tensor.float_readers)]
    # Without the Clip, a DQ would meet the Q: a pair that ONNX Runtime merges into one of another scale.
    is_needed = on_codes or len(readers) < len(value.uses())
    clip = None if is_needed else _needless_clip(value, encoding)
    producer = value.producer()
    source = value
    if clip is not None and producer is not None:
        source = producer.inputs[0] or value
    scale, zero_point = _grid(builder, name, encoding)
    chain = [
        builder.node(
            "QuantizeLinear",
            [source, scale, zero_point],
            name + QUANTIZE,
            builder.name(f"{name}_quantized"),
            value,
            encoding.axis,
        )
    ]
    if not encoding.fills_container:
        limits = [
            builder.initializer(f"{name}_{key}", np.array(code, encoding.container))
            for key, code in (("q_min", encoding.q_min), ("q_max", encoding.q_max))
        ]
        clipped = builder.name(f"{name}_clipped")
        chain.append(builder.node("Clip", [chain[-1].outputs[0], *limits], name + CLIP, clipped, value))
    is_output = value.is_graph_output()
    if is_output:  # the network still returns its result under its own name
        value.name = builder.name(f"{name}_float")
    result = name if is_output else builder.name(f"{name}_dequantized")
    inputs = [chain[-1].outputs[0], scale, zero_point]
    chain.append(builder.node("DequantizeLinear", inputs, name + DEQUANTIZE, result, value, encoding.axis))
    if producer is None:
        _insert_first(graph, chain)
    else:
        graph.insert_after(producer, chain)
    for node, index in readers:
        node.replace_input_with(index, chain[-1].outputs[0])
    if is_output:
        outputs = [chain[-1].outputs[0] if output is value else output for output in graph.outputs]
        graph.outputs.clear()
        graph.outputs.extend(outputs)
    return clip


def _is_computed_from_codes(model: QuantizedModel, value: ir.Value) -> bool:
    """Whether the operation that computes a tensor reads the quantized value of its first input."""
    producer = value.producer()
    source = None if producer is None else input_at(producer, 0)
    if producer is None or source is None or source.name not in model.activations:
        return False
    return reads_quantized(producer, model.activations[source.name].float_readers)


def _needless_clip(value: ir.Value, encoding: Encoding) -> DroppedClip | None:
    """The float Clip that computes a tensor, if the encoding's range reproduces it exactly.

    Rounding is monotonic, so clipping before or after it is the same as long as the bounds themselves get the
    first and the last code. ONNX Runtime fuses a layer with the Q behind it only without the float Clip.
    """
    producer = value.producer()
    bounds = None if producer is None else clip_bounds(producer)
    if bounds is None or encoding.axis is not None:
        return None
    if encoding.quantize(np.array(bounds, np.float32)).tolist() != [encoding.q_min, encoding.q_max]:
        return None
    return DroppedClip(
        low=bounds[0] if np.isfinite(bounds[0]) else None, high=bounds[1] if np.isfinite(bounds[1]) else None
    )


def _grid(builder: _Builder, name: str, encoding: Encoding) -> tuple[ir.Value, ir.Value]:
    """Scale and zero-point of an encoding as constants of the graph."""
    return (
        builder.initializer(f"{name}_scale", encoding.scale),
        builder.initializer(f"{name}_zero_point", encoding.zero_point.astype(encoding.container)),
    )


def _insert_first(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    """Insert nodes that depend on nothing but inputs and constants."""
    graph.insert_before(graph[0], nodes)
