"""Move a float graph from one ONNX opset to another without touching its weights."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import defs, helper, version_converter

from eqdeploy.errors import ProfileError
from eqdeploy.exporters.float_graph import constant, input_at, to_ir

#: Opsets that are written and read: 13 is the first with an axis on Q and DQ, 26 the newest that the oldest supported
#: ONNX Runtime loads (``pyproject.toml`` names it; the tests ask the installed one for all of them).
OPSETS = range(13, 27)

#: Operations whose meaning is the same in every one of these opsets: the later versions only accept more types
#: or add attributes and inputs whose absence means what it meant before (ONNX changelog, Operators-changelog.md).
_SAME_MEANING = frozenset(
    {
        *("Add", "AveragePool", "Clip", "Concat", "Conv", "ConvTranspose", "Div", "Elu", "Erf", "Exp", "Flatten"),
        *("Gemm", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "MatMul"),
        *("MaxPool", "Mul", "Neg", "PRelu", "Pad", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Softmax"),
        *("Softplus", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "DepthToSpace", "SpaceToDepth"),
    }
)


def ir_version_for(opset: int) -> int:
    """Oldest IR version that carries the opset, so that old readers are served too."""
    return int(helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))


def convert_opset(model: ir.Model, opset: int) -> ir.Model:
    """Express a float graph in another opset.

    Operations whose meaning did not change are kept node by node; only where one needs rewriting does ONNX's own
    version converter run, on the graph without its large tensors.

    Args:
        model: Float graph; may be changed in place.
        opset: Target opset.

    Raises:
        ProfileError: If an operation cannot be expressed in that opset; names it.
    """
    source = model.graph.opset_imports.get("", 0)
    if source != opset:
        obstacles = [node for node in model.graph if not _keeps(node, source, opset)]
        for node in model.graph:
            _drop_redundant_attributes(node, source, opset)
        if obstacles:
            model = _convert_with_onnx(model, opset, obstacles[0])
    model.graph.opset_imports.clear()
    model.graph.opset_imports[""] = opset
    model.ir_version = ir_version_for(opset)
    return model


def _keeps(node: ir.Node, source: int, target: int) -> bool:
    """Whether a node reads the same in both opsets."""
    if node.domain:
        return False
    try:
        old, new = defs.get_schema(node.op_type, source), defs.get_schema(node.op_type, target)
    except defs.SchemaError:
        return False
    if old.since_version == new.since_version:
        return True
    return (
        node.op_type in _SAME_MEANING
        and len(node.inputs) <= new.max_input
        and len(node.outputs) <= new.max_output
        and all(name in new.attributes or _is_redundant(node, name, old) for name in node.attributes)
    )


def _is_redundant(node: ir.Node, name: str, schema: defs.OpSchema) -> bool:
    """Whether an attribute says what its absence says."""
    attribute = node.attributes[name]
    if node.op_type == "Reshape" and name == "allowzero":
        shape = constant(input_at(node, 1))
        return attribute.as_int() == 0 or (shape is not None and 0 not in shape)
    default = schema.attributes[name].default_value if name in schema.attributes else None
    if default is None or default.type == onnx.AttributeProto.UNDEFINED:
        return False
    return bool(ir.serde.deserialize_attribute(default).value == attribute.value)


def _drop_redundant_attributes(node: ir.Node, source: int, target: int) -> None:
    """Remove attributes that the target opset does not know and that say what their absence says.

    ONNX's version converter leaves some of them behind, ``noop_with_empty_axes`` of reductions for one.
    """
    if node.domain or not (defs.has(node.op_type, source) and defs.has(node.op_type, target)):
        return
    old, known = defs.get_schema(node.op_type, source), defs.get_schema(node.op_type, target).attributes
    for name in [name for name in node.attributes if name not in known and _is_redundant(node, name, old)]:
        del node.attributes[name]


def _convert_with_onnx(model: ir.Model, opset: int, obstacle: ir.Node) -> ir.Model:
    """Run ONNX's version converter on the graph, with floating-point initializers kept out of its way."""
    held_back: dict[str, ir.TensorProtocol] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        held_back[name] = tensor
        value.dtype, value.shape, value.const_value = tensor.dtype, ir.Shape(tensor.shape.numpy()), None
        model.graph.inputs.append(model.graph.initializers.pop(name))
    try:
        converted = to_ir(version_converter.convert_version(ir.to_proto(model), opset))
    except (RuntimeError, version_converter.ConvertError) as error:
        raise ProfileError(
            f"operation {obstacle.op_type} ({obstacle.name}) cannot be expressed in opset {opset}",
            where="export.options",
            hint=f"the network itself is opset {model.graph.opset_imports.get('', 0)}",
        ) from error
    graph = converted.graph
    for value in [value for value in graph.inputs if value.name in held_back]:
        graph.inputs.remove(value)
        value.const_value = held_back[str(value.name)]
        graph.register_initializer(value)
    _name_new_nodes(graph)
    return converted


def _name_new_nodes(graph: ir.Graph) -> None:
    """Give nodes that the converter inserted the name of the tensor they help to compute."""
    taken = {node.name for node in graph}
    for node in reversed(list(graph)):
        if node.name:
            continue
        readers = [use.node.name for value in node.outputs for use in value.uses()]
        tensor = str(readers[0] or node.outputs[0].name).split("/", 1)[0] if readers else str(node.outputs[0].name)
        index = next(index for index in range(len(taken) + 1) if f"{tensor}/{index}" not in taken)
        node.name = f"{tensor}/{index}"
        taken.add(node.name)
