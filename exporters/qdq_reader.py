"""Read a QDQ model back into the network and the integers that it was made from.

Nothing in the file is trusted: every Q and DQ must belong to a complete pair with constant, finite, positive
scales, every width and range that the metadata claims must agree with the nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from eqdeploy.errors import UnsupportedOperationError, ValidationError
from eqdeploy.exporters.files import load_ir
from eqdeploy.exporters.float_graph import bounds_before_quantization, constant, implied, input_at, to_proto
from eqdeploy.exporters.metadata import DroppedClip, EncodingFacts, FileFacts, read_facts
from eqdeploy.exporters.model_checks import check_model
from eqdeploy.exporters.qdq_graph import DEQUANTIZE, QUANTIZE
from eqdeploy.plan import Coverage
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import (
    QuantizedModel,
    QuantizedParameter,
    QuantizedTensor,
    constant_name,
    operation_of,
)


@dataclass(frozen=True, eq=False)
class _Chain:
    """The nodes around one encoded activation."""

    name: str
    quantize: ir.Node
    clip: ir.Node | None
    dequantize: ir.Node
    encoding: Encoding
    dropped_clip: DroppedClip | None


def read_model(path: Path) -> QuantizedModel:
    """Recover the float graph, every encoding and every integer from a QDQ file alone.

    Args:
        path: A ``model.onnx`` written by an exporter of this package.

    Returns:
        The network with Q, integer Clip and DQ taken out again, tensors and nodes under their own names, float
        Clip nodes put back, in the file's own opset. ``coverage`` lists the encoded tensors only, as the file says
        nothing about the others; ``folded`` and ``notes`` are empty.

    Raises:
        ValidationError: If the file is damaged, or its nodes and encodings contradict each other.
    """
    where = str(path)
    model = load_ir(path)
    facts = read_facts(model, where)
    try:
        return _restore(model, facts, path)
    except UnsupportedOperationError as error:
        raise ValidationError(error.message, where=where) from error
    except ValidationError as error:
        raise ValidationError(error.message, where=f"{where}: {error.where}", hint=error.hint) from error


def _restore(model: ir.Model, facts: FileFacts, path: Path) -> QuantizedModel:
    """Take the quantization nodes out of a loaded model."""
    graph = model.graph
    if next(iter(graph.subgraphs()), None) is not None or model.functions:
        raise ValidationError("holds subgraphs or functions", where="graph")
    chains = _activation_chains(graph, facts)
    parameters = _parameters(graph, facts, {chain.dequantize for chain in chains})
    activations: dict[str, QuantizedTensor] = {}
    for chain in chains:
        activations[chain.name] = _take_out(graph, chain)
    RemoveUnusedNodesPass()(model)
    graph.sort()
    _check_ranges(graph, activations, clipped={chain.name for chain in chains if chain.clip is not None})
    model.metadata_props.clear()
    restored = QuantizedModel(
        graph=to_proto(model),
        activations={name: activations[name] for name in facts.activations},
        parameters={name: parameters[name] for name in facts.parameters},
        coverage=dict.fromkeys(facts.activations, Coverage.QUANTIZED),
        reasons=dict.fromkeys(facts.activations, f"encoded in {path.name}"),
    )
    check_model(restored, graph)
    return restored


def _activation_chains(graph: ir.Graph, facts: FileFacts) -> list[_Chain]:
    """Pair every Q with its DQ."""
    chains: dict[str, _Chain] = {}
    for node in graph:
        if node.op_type != "QuantizeLinear":
            continue
        name = str(node.name).removesuffix(QUANTIZE)
        if name == node.name or name not in facts.activations or name in chains:
            raise ValidationError("this Q belongs to no known activation", where=str(node.name))
        chains[name] = _chain(name, node, facts.activations[name])
    missing = sorted(set(facts.activations) - set(chains))
    if missing:
        raise ValidationError("has an entry in the metadata but no Q in the graph", where=missing[0])
    return list(chains.values())


def _chain(name: str, quantize: ir.Node, facts: EncodingFacts) -> _Chain:
    """Follow one Q to its DQ."""
    dequantize = _only_reader(quantize, name)
    clip = dequantize if dequantize.op_type == "Clip" else None
    if clip is not None:
        dequantize = _only_reader(clip, name)
    if dequantize.op_type != "DequantizeLinear":
        raise ValidationError("its Q is not followed by a DQ", where=name)
    encoding = _encoding(name, dequantize, facts)
    if not _encoding(name, quantize, facts).equals(encoding):
        raise ValidationError("its Q and DQ have different scales or zero-points", where=name)
    if clip is not None:
        limits = [constant(input_at(clip, index)) for index in (1, 2)]
        if [None if limit is None else limit.tolist() for limit in limits] != [facts.q_min, facts.q_max]:
            raise ValidationError(f"its integer Clip is not [{facts.q_min}, {facts.q_max}]", where=name)
    if facts.dropped_clip is not None and clip is None and not encoding.fills_container:
        raise ValidationError(
            "a float Clip was dropped but neither an integer Clip nor saturation replaces it", where=name
        )
    return _Chain(name, quantize, clip, dequantize, encoding, facts.dropped_clip)


def _only_reader(node: ir.Node, name: str) -> ir.Node:
    """The one node that reads the integers."""
    value = node.outputs[0]
    uses = list(value.uses())
    if value.is_graph_output() or len(uses) != 1 or uses[0].idx != 0:
        raise ValidationError(f"the integers after its {node.op_type} are not read by exactly one DQ", where=name)
    return uses[0].node


def _encoding(name: str, node: ir.Node, facts: EncodingFacts) -> Encoding:
    """Build the encoding that a Q or DQ node applies, with width and range from the metadata."""
    scale, zero_point = constant(input_at(node, 1)), constant(input_at(node, 2))
    if scale is None or zero_point is None:
        raise ValidationError("its scale or zero-point is not a constant", where=name)
    container = np.dtype(np.int32 if facts.bits > 8 else np.int8 if facts.signed else np.uint8)
    if zero_point.dtype != container:
        raise ValidationError(f"its zero-point is {zero_point.dtype}, the metadata needs {container}", where=name)
    if scale.dtype != np.float32 or scale.ndim > 1 or scale.shape != zero_point.shape:
        raise ValidationError(
            f"scale {scale.dtype}{scale.shape} does not fit zero-point {zero_point.shape}", where=name
        )
    if not set(node.attributes) <= {"axis"}:
        raise ValidationError(f"its {node.op_type} has attributes other than axis", where=name)
    attribute = node.attributes.get("axis")
    axis = None if scale.ndim == 0 else 1 if attribute is None else attribute.as_int()
    if axis != facts.axis:
        raise ValidationError(f"axis is {axis} in the graph and {facts.axis} in the metadata", where=name)
    try:
        return Encoding(
            scale=scale.astype(np.float32),
            zero_point=zero_point.astype(np.int32),
            q_min=facts.q_min,
            q_max=facts.q_max,
            bits=facts.bits,
            signed=facts.signed,
            axis=axis,
        )
    except ValueError as error:
        raise ValidationError(str(error), where=name) from error


def _parameters(graph: ir.Graph, facts: FileFacts, paired: set[ir.Node]) -> dict[str, QuantizedParameter]:
    """Read every DQ on a constant and put real values in its place."""
    parameters: dict[str, QuantizedParameter] = {}
    for node in [node for node in graph if node.op_type == "DequantizeLinear" and node not in paired]:
        name = str(node.name).removesuffix(DEQUANTIZE)
        old = graph.initializers.get(name)
        if name not in facts.parameters or name in parameters or old is None or input_at(node, 0) is not old:
            raise ValidationError("this DQ belongs to no Q and to no known parameter", where=str(node.name))
        encoding = _encoding(name, node, facts.parameters[name])
        codes = constant(old)
        if codes is None or codes.dtype != encoding.container:
            raise ValidationError(f"its integers are not {encoding.container}", where=name)
        parameters[name] = QuantizedParameter(name, codes.astype(np.int32), encoding)
        _put_float(graph, parameters[name], node, old)
    missing = sorted(set(facts.parameters) - set(parameters))
    if missing:
        raise ValidationError("has an entry in the metadata but no DQ in the graph", where=missing[0])
    return parameters


def _put_float(graph: ir.Graph, parameter: QuantizedParameter, dequantize: ir.Node, codes: ir.Value) -> None:
    """Replace integers and DQ of a parameter by its real values."""
    name, result = parameter.name, dequantize.outputs[0]
    if len(codes.uses()) != 1 or result.is_graph_output() or codes.is_graph_input():
        raise ValidationError("its integers or real values are used in another way than by its layer", where=name)
    try:
        with np.errstate(over="ignore"):  # what is not finite is refused when the whole model is checked
            array: NDArray[np.float32] = parameter.encoding.dequantize(parameter.codes)
    except (IndexError, ValueError) as error:
        raise ValidationError(f"its scales do not fit its shape {parameter.codes.shape}", where=name) from error
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    result.replace_all_uses_with(value)
    graph.remove(dequantize, safe=True)
    del graph.initializers[name]
    graph.register_initializer(value)


def _take_out(graph: ir.Graph, chain: _Chain) -> QuantizedTensor:
    """Remove the nodes of one activation and put a dropped float Clip back."""
    name, result = chain.name, chain.dequantize.outputs[0]
    source = chain.quantize.inputs[0]  # looked up now: another chain may have been taken out from under this one
    if source is None:
        raise ValidationError("its Q has no input", where=name)
    float_readers: frozenset[str] = frozenset()
    if chain.dropped_clip is not None:
        clip = _float_clip(graph, name, chain.dropped_clip, source)
        graph.insert_before(chain.quantize, clip)
        source = clip.outputs[0]
    else:
        readers = (use.node for use in source.uses() if use.node is not chain.quantize)
        float_readers = frozenset(operation_of(str(node.name)) for node in readers)
    returned = result.is_graph_output()
    if (result.name if returned else source.name) != name or source.is_graph_output():
        raise ValidationError("its Q and DQ stand on another tensor", where=name)
    if returned and source.is_graph_input():
        raise ValidationError("is input and output of the network at once", where=name)
    result.replace_all_uses_with(source, replace_graph_outputs=True)
    for node in (chain.dequantize, chain.clip, chain.quantize):
        if node is not None:
            graph.remove(node, safe=True)
    source.name = name
    return QuantizedTensor(name, chain.encoding, float_readers)


def _float_clip(graph: ir.Graph, name: str, bounds: DroppedClip, source: ir.Value) -> ir.Node:
    """Make the float Clip node that the exporter left out.

    Its bounds get the names that constants have in an exported structure: files that are written from the model that is
    read are compared with those that were written first.
    """
    inputs: list[ir.Value | None] = [source]
    for position, bound in enumerate((bounds.low, bounds.high), start=1):
        if bound is None:
            inputs.append(None)
            continue
        wanted = constant_name(name, position)
        if wanted in graph.initializers:
            raise ValidationError(f"the name {wanted} is taken", where=name)
        tensor = ir.Tensor(np.array(bound, np.float32), name=wanted)
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(()), const_value=tensor)
        graph.register_initializer(value)
        inputs.append(value)
    result = ir.Value(name=name, type=source.type, shape=source.shape)
    return ir.Node("", "Clip", inputs, outputs=[result], name=name)


def _check_ranges(graph: ir.Graph, activations: dict[str, QuantizedTensor], clipped: set[str]) -> None:
    """A range that no integer Clip enforces must follow from the container or from the operations."""
    encodings = {name: tensor.encoding for name, tensor in activations.items()}
    bounds = bounds_before_quantization(graph, encodings)
    for name, encoding in encodings.items():
        limits = np.iinfo(encoding.container)
        widest = int(limits.min), int(limits.max)
        if name not in bounds:  # cleaning up the graph removed it
            raise ValidationError("no output depends on it, so it is not of the network", where=name)
        if name not in clipped and not implied(encoding, bounds[name], widest=widest):
            raise ValidationError("nothing in the graph keeps its codes inside their range", where=name)
