"""Whether a QDQ file is the network it was made from, with quantization nodes added and nothing else changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from eqdeploy.exporters.float_graph import to_ir
from eqdeploy.exporters.opset import convert_opset
from eqdeploy.validation.qdq_file import CLIP, DEQUANTIZE, QUANTIZE, ActivationChain, QdqFile, attributes_of
from eqdeploy.validation.reference.graph import Graph, Operation
from eqdeploy.validation.reference.kernels import bounds_of

#: What an input of a node is, told without value names: the codes of a tensor, a parameter, a constant, a result.
Source = tuple[str, ...]


class StructureComparison:
    """Compares the nodes of a file with those of the float graph.

    Args:
        graph: The network.
        file: The file.
        chains: Quantization nodes by tensor name.
    """

    def __init__(self, graph: Graph, file: QdqFile, chains: dict[str, tuple[ActivationChain, ...]]) -> None:
        self._graph, self._file, self._chains = _in_opset(graph, _opset(file.proto)), file, chains
        self._nodes = {node.name: node for node in file.proto.graph.node}
        self._chain_of = {
            name: tensor
            for tensor, found in chains.items()
            for chain in found
            for node in chain.dequantize
            for name in node.output
        }

    def faults(self) -> Iterator[tuple[str, str]]:
        """Names and descriptions of nodes that differ."""
        for operation in self._graph.operations:
            node = self._nodes.get(operation.name)
            if node is not None:
                yield from self._node_faults(operation, node)
            elif not self._is_replaced_clip(operation):
                yield operation.name, f"the {operation.op_type} node is missing"
        yield from self._chain_faults()
        yield from self._surplus()

    def _node_faults(self, operation: Operation, node: onnx.NodeProto) -> Iterator[tuple[str, str]]:
        """Compare one node."""
        if node.op_type != operation.op_type or node.domain not in ("", "ai.onnx"):
            yield operation.name, f"is {node.domain or 'a standard'} {node.op_type} instead of {operation.op_type}"
            return
        expected = [self._expected(operation, name) for name in operation.inputs]
        found = [self._found(name) for name in node.input]
        if expected != found:
            place = next((i for i, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), 0)
            text = " ".join(found[place][:2]) if place < len(found) else "nothing"
            wanted = " ".join(expected[place][:2]) if place < len(expected) else "nothing"
            yield operation.name, f"input {place} is {text} instead of {wanted}"
        if dict(attributes_of(node)) != dict(operation.attributes):
            yield operation.name, "its attributes differ"

    def _chain_faults(self) -> Iterator[tuple[str, str]]:
        """Every Q must quantize the result of the right operation; outputs must return what they should."""
        for tensor, found in self._chains.items():
            if tensor not in self._graph.encodings:
                continue
            for chain in found:
                source = self._found(chain.quantize.input[0])
                if source not in self._quantized_sources(tensor):
                    yield tensor, f"its Q reads {' '.join(source[:2])}"
        for name in self._graph.output_names:
            if name not in self._file.output_names:
                yield name, "is not returned any more"
            elif (name in self._graph.encodings) != (name in self._chain_of):
                yield name, "is returned without its encoding" if name in self._graph.encodings else "is quantized"

    def _surplus(self) -> Iterator[tuple[str, str]]:
        """Nodes that have no counterpart in the network."""
        known = {operation.name for operation in self._graph.operations}
        clips = {chain.clip.name for found in self._chains.values() for chain in found if chain.clip is not None}
        for node in self._file.proto.graph.node:
            if node.op_type in (QUANTIZE, DEQUANTIZE, "Constant") or node.name in known | clips:
                continue
            yield node.name or node.output[0], f"a {node.op_type} node that the network does not have"

    def _quantized_sources(self, tensor: str) -> list[Source]:
        """What the Q of a tensor may read: the tensor, or what is before a Clip that its range replaces."""
        operation = self._graph.producers.get(tensor)
        if operation is None:
            return [("the input", tensor)]
        if operation.name in self._nodes:
            return [("the result of", operation.name, str(operation.outputs.index(tensor)))]
        return [self._expected(operation, operation.inputs[0])] if self._is_replaced_clip(operation) else []

    def _is_replaced_clip(self, operation: Operation) -> bool:
        """Whether a Clip may be missing because the integer range of its result does the same."""
        encoding = self._graph.encodings.get(operation.outputs[0])
        if operation.op_type != CLIP or encoding is None:
            return False
        low, high = bounds_of(operation, [self._graph.constants.get(name) for name in operation.inputs[1:]])
        codes = [int(encoding.quantize(np.asarray(bound))) for bound in (low, high)]
        return codes == [encoding.q_min, encoding.q_max]

    def _expected(self, operation: Operation, name: str) -> Source:
        """What an operation of the network reads at an input."""
        graph = self._graph
        if not name:
            return ("nothing",)
        if graph.reads_codes(operation, name):
            return ("the codes of", name)
        if name in graph.model.parameters:
            return ("the parameter", name)
        if name in graph.constants:
            return _constant(name, graph.constants[name])
        producer = graph.producers.get(name)
        if producer is None:
            return ("the input", name)
        return ("the result of", producer.name, str(producer.outputs.index(name)))

    def _found(self, name: str) -> Source:
        """What a value of the file is."""
        if not name:
            return ("nothing",)
        if name in self._chain_of:
            return ("the codes of", self._chain_of[name])
        producer = self._file.producers.get(name)
        if producer is not None and producer.op_type == DEQUANTIZE and producer.input[0] in self._file.constants:
            return ("the parameter", producer.input[0])
        if name in self._file.constants:
            return _constant(name, self._file.constants[name])
        if producer is None:
            return ("the input", name)
        return ("the result of", producer.name, str(list(producer.output).index(name)))


def _opset(model: onnx.ModelProto) -> int:
    """Version of the default operator set."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _in_opset(graph: Graph, opset: int) -> Graph:
    """The network as it reads in the opset of a file.

    Raises:
        ProfileError: If it cannot be expressed there.
    """
    if opset == _opset(graph.model.graph):
        return graph
    copy = onnx.ModelProto()
    copy.CopyFrom(graph.model.graph)
    converted = ir.to_proto(convert_opset(to_ir(copy), opset))
    return Graph.of(replace(graph.model, graph=converted))


def _constant(name: str, array: NDArray[Any]) -> Source:
    """A constant by its content; the name comes last but for messages and is the same in both."""
    digest = hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()
    return ("the constant", name, str(array.dtype), str(array.shape), digest)
