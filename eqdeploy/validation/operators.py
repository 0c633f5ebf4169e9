"""What the runtime fused into integer kernels, what stayed float, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from eqdeploy.validation.qdq_file import CLIP, DEQUANTIZE, QUANTIZE
from eqdeploy.validation.reference.graph import Graph, Operation
from eqdeploy.validation.runtime import NEUTRAL, OptimizedGraph, RuntimeNode

#: Operations that ONNX Runtime's CPU provider has integer kernels for, or runs on integers as they are.
_FUSABLE = frozenset(
    {
        *("Conv", "Gemm", "MatMul", "Add", "Mul", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"),
        *("Softmax", "Concat", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice"),
        *("Resize", "Gather", "Split", "Expand", "Tile", "DepthToSpace"),
    }
)

#: Layers for which signed activations are fused only on ARM or on request (``session.qdqisint8allowed``).
_UNSIGNED_ONLY = frozenset({"Conv", "MatMul"})

#: Operations whose parameters are no data.
_DATA_INPUTS = {"Reshape": 1, "Squeeze": 1, "Unsqueeze": 1, "Slice": 1, "Resize": 1, "Split": 1, "Expand": 1}


@dataclass(frozen=True)
class FloatOperator:
    """An operation that the runtime computes in float.

    Attributes:
        name: Node name.
        op_type: Operator as the runtime runs it.
        reason: Why.
    """

    name: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class OperatorSummary:
    """The operators of an optimized graph.

    Attributes:
        fused: Integer operators and how often each occurs.
        float_operators: Operations that stayed float.
        quantize: Number of Q nodes that are left.
        dequantize: Number of DQ nodes that are left.
    """

    fused: dict[str, int]
    float_operators: tuple[FloatOperator, ...]
    quantize: int
    dequantize: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "fused": self.fused,
            "float": [
                {"name": item.name, "operator": item.op_type, "reason": item.reason} for item in self.float_operators
            ],
            "quantize": self.quantize,
            "dequantize": self.dequantize,
        }


def summarize(optimized: OptimizedGraph, graph: Graph) -> OperatorSummary:
    """Sort the operators of an optimized graph.

    Args:
        optimized: The graph as the runtime optimized it.
        graph: The network that it was made from.
    """
    operations = {operation.name: operation for operation in graph.operations}
    integers = set(optimized.integer_constants)
    fused: Counter[str] = Counter()
    float_operators = []
    for node in optimized.nodes:
        if _is_integer(node, integers):
            integers.update(node.outputs)
            fused[node.op_type] += 1
        elif node.op_type not in NEUTRAL:
            # Merged nodes have a name of their own, but still compute the value of one of their parts.
            operation = operations.get(node.name) or graph.producers.get(node.outputs[0])
            name, reason = (
                (node.name, "inserted by the runtime")
                if operation is None
                else (operation.name, _reason(operation, graph))
            )
            float_operators.append(FloatOperator(name, node.op_type, reason))
        elif node.op_type == QUANTIZE:
            integers.update(node.outputs)
    counts = Counter(node.op_type for node in optimized.nodes)
    return OperatorSummary(
        fused=dict(sorted(fused.items())),
        float_operators=tuple(float_operators),
        quantize=counts[QUANTIZE],
        dequantize=counts[DEQUANTIZE],
    )


def _is_integer(node: RuntimeNode, integers: set[str]) -> bool:
    """Whether a node computes on integers."""
    if node.op_type in (QUANTIZE, DEQUANTIZE):
        return False
    return node.op_type.startswith(("QLinear", "QGemm", "MatMulInteger", "ConvInteger")) or (
        bool(node.inputs) and node.inputs[0] in integers
    )


def _reason(operation: Operation, graph: Graph) -> str:
    """Why the runtime does not fuse an operation, from the conditions of its QDQ selectors."""
    if operation.op_type in ("Relu", "Clip"):
        absorbing = operation.outputs[0] in graph.encodings
        return "the quantizer behind it does not absorb it" if absorbing else "its result is not quantized"
    if operation.op_type not in _FUSABLE:
        return f"ONNX Runtime has no integer kernel for {operation.op_type}"
    data = [name for name in operation.inputs[: _DATA_INPUTS.get(operation.op_type)] if name]
    bias = operation.inputs[2] if operation.op_type in ("Conv", "Gemm") and len(operation.inputs) > 2 else None
    parameters = graph.model.parameters
    for name in data:
        if name in parameters or name == bias or graph.reads_codes(operation, name):
            continue
        if name in graph.encodings:
            return f"reads {name} before it is quantized, as the plan says"
        return f"its input {name} carries no encoding"
    end = _quantized_as(operation, graph)
    if end is None and operation.op_type not in ("Gemm", "MatMul"):
        return "its result is not quantized before it is read"
    if end is None and bias is not None and bias not in parameters:
        return "its result is not quantized and its bias is float"
    return _type_reason(operation, graph, data, end)


def _type_reason(operation: Operation, graph: Graph, data: list[str], end: str | None) -> str:
    """Why types keep an operation from being fused although everything around it is quantized."""
    encodings = graph.encodings
    containers = {encodings[name].container for name in [*data, end or ""] if name in encodings}
    if len(containers) > 1:
        return "its input and its result are stored in different types"
    if operation.op_type in _UNSIGNED_ONLY and any(encodings[name].signed for name in data if name in encodings):
        return "its activations are signed; on x86 the runtime fuses unsigned ones only"
    if end is not None and end not in operation.outputs:
        encoding = encodings[end]
        if encoding.zero_point != encoding.q_min:
            return f"the zero-point of {end} is not its smallest code, so the function in between is not absorbed"
    if any(encodings[name].signed for name in data if name in encodings):
        return "the runtime stores some signed tensors as unsigned ones, and this operation mixes both"
    return "this version of ONNX Runtime does not fuse it here"


def _quantized_as(operation: Operation, graph: Graph) -> str | None:
    """The encoded tensor that an operation's result becomes, directly or after Relu or Clip; None if none."""
    name = operation.outputs[0]
    while name not in graph.encodings:
        readers = [reader for reader in graph.operations if name in reader.inputs]
        if len(readers) != 1 or readers[0].op_type not in ("Relu", CLIP) or name in graph.output_names:
            return None
        name = readers[0].outputs[0]
    return name
