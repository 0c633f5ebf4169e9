"""The float graph of a quantized model, taken apart once, and the one way to walk it.

What an operation computes is the business of a :class:`Semantics`; which tensors are encoded, who reads the codes
and who reads the unquantized value is decided here, so that every semantics evaluates the same network.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from eqdeploy.errors import DataError, UnsupportedOperationError, ValidationError
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedModel, QuantizedParameter, operation_of

ValueT = TypeVar("ValueT")
ValueT_co = TypeVar("ValueT_co", covariant=True)


@dataclass(frozen=True, eq=False)
class Operation:
    """One ONNX node.

    Attributes:
        name: Node name, ``t`` or ``t/<k>`` for a tensor ``t``.
        op_type: ONNX operator.
        inputs: Value names, empty where an optional input is absent.
        outputs: Value names.
        attributes: Attribute values by name.
        node: The node itself.
        opset: Version of the default operator set.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    node: onnx.NodeProto
    opset: int

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute's value, or what its absence means."""
        return self.attributes.get(name, default)

    def unsupported(self, reason: str) -> UnsupportedOperationError:
        """An error that names this operation."""
        return UnsupportedOperationError(f"the reference cannot evaluate {self.op_type}: {reason}", where=self.name)


class Semantics(Protocol[ValueT]):
    """What operations mean: how the values on the edges of the graph are represented and computed."""

    def image(self, images: NDArray[Any]) -> ValueT:
        """An input of the network, float32 or integers."""
        ...

    def constant(self, array: NDArray[Any]) -> ValueT:
        """An initializer without an encoding."""
        ...

    def parameter(self, parameter: QuantizedParameter) -> ValueT:
        """An integer weight or bias."""
        ...

    def encoded(self, codes: NDArray[np.int32], encoding: Encoding) -> ValueT:
        """What the readers of an encoded tensor see."""
        ...

    def apply(self, operation: Operation, inputs: Sequence[ValueT | None]) -> Sequence[ValueT]:
        """Outputs of one operation."""
        ...

    def numbers(self, value: ValueT | None) -> NDArray[Any]:
        """The numbers of a value: indices, for example."""
        ...


#: The operation that looks up entries of its first input.
_LOOK_UP = "Gather"

#: Called with the name and the unquantized value of an encoded tensor; returns the codes that its readers see.
Encode = Callable[[str, ValueT], NDArray[np.int32]]


@dataclass(frozen=True, eq=False)
class Graph:
    """A quantized model in the form in which it is evaluated.

    Attributes:
        model: The model.
        input_names: Names of the network's inputs.
        output_names: Names of the network's outputs.
        operations: Nodes in order of execution.
    """

    model: QuantizedModel
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    operations: tuple[Operation, ...]

    @staticmethod
    def of(model: QuantizedModel) -> Graph:
        """Take a model apart.

        Raises:
            ValidationError: If the graph has no input, or an encoding belongs to no tensor or
                has one scale per channel.
            UnsupportedOperationError: If a node is not of the default operator set.
        """
        graph = model.graph.graph
        constants = {initializer.name for initializer in graph.initializer}
        inputs = [value.name for value in graph.input if value.name not in constants]
        if not inputs:
            raise ValidationError("the graph has no input", where=graph.name or "graph")
        opset = next((entry.version for entry in model.graph.opset_import if entry.domain in ("", "ai.onnx")), 0)
        operations = tuple(_operation(node, opset) for node in graph.node)
        computed = {*inputs, *(name for operation in operations for name in operation.outputs)}
        for name, tensor in model.activations.items():
            if name not in computed:
                raise ValidationError("carries an encoding but is no tensor that the graph computes", where=name)
            if tensor.encoding.axis is not None:
                raise ValidationError("an activation has one scale, not one per channel", where=name)
        return Graph(model, tuple(inputs), tuple(value.name for value in graph.output), operations)

    @cached_property
    def has_free_size(self) -> bool:
        """Whether the first input is a batch of images of any height and width."""
        read = next(value for value in self.model.graph.graph.input if value.name == self.input_names[0])
        dims = read.type.tensor_type.shape.dim
        return len(dims) == 4 and not any(axis.HasField("dim_value") for axis in dims[2:])

    def columns(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """What each input gets of a batch: the batch, or a field of its records.

        Raises:
            DataError: If there are more or fewer inputs than fields.
        """
        fields = images.dtype.names
        columns = [images] if fields is None else [images[field] for field in fields]
        if len(columns) != len(self.input_names):
            raise DataError(f"{len(columns)} input(s) for a network that reads {', '.join(self.input_names)}")
        return dict(zip(self.input_names, columns, strict=True))

    @cached_property
    def encodings(self) -> dict[str, Encoding]:
        """Encodings of activations by tensor name, in order of execution."""
        order = [*self.input_names, *(name for operation in self.operations for name in operation.outputs)]
        activations = self.model.activations
        return {name: activations[name].encoding for name in order if name in activations}

    @cached_property
    def constants(self) -> dict[str, NDArray[Any]]:
        """Initializers without an encoding, by name."""
        return self.model.constants

    @cached_property
    def tables(self) -> dict[str, NDArray[Any]]:
        """Those of :attr:`constants` of which operations only look up entries."""
        others = {
            name
            for operation in self.operations
            for name in (operation.inputs[1:] if operation.op_type == _LOOK_UP else operation.inputs)
        }
        others.update(self.output_names)
        return {name: array for name, array in self.constants.items() if name not in others}

    @cached_property
    def producers(self) -> dict[str, Operation]:
        """The operation that computes each value."""
        return {name: operation for operation in self.operations for name in operation.outputs}

    def reads_codes(self, operation: Operation, name: str) -> bool:
        """Whether an operation reads the quantized value of a tensor."""
        tensor = self.model.activations.get(name)
        return tensor is not None and operation_of(operation.name) not in tensor.float_readers

    def region(self, name: str) -> tuple[Operation, ...]:
        """Operations that lie between encoded tensors and the value ``name``, in order of execution."""
        wanted: set[tuple[str, ...]] = set()
        pending = [name]
        while pending:
            operation = self.producers.get(pending.pop())
            if operation is None or operation.outputs in wanted:
                continue
            wanted.add(operation.outputs)
            pending += [value for value in operation.inputs if not self.reads_codes(operation, value)]
        return tuple(operation for operation in self.operations if operation.outputs in wanted)

    def region_inputs(self, name: str) -> tuple[str, ...]:
        """Encoded tensors whose codes the region of ``name`` reads, in order of first use."""
        return tuple(
            dict.fromkeys(
                value
                for operation in self.region(name)
                for value in operation.inputs
                if self.reads_codes(operation, value)
            )
        )


class Walk(Generic[ValueT]):
    """One evaluation of a graph.

    Args:
        graph: The graph.
        semantics: What its operations mean.
    """

    def __init__(self, graph: Graph, semantics: Semantics[ValueT]) -> None:
        self.graph = graph
        self.semantics = semantics
        self._constants = {
            name: semantics.constant(array) for name, array in graph.constants.items() if name not in graph.tables
        }
        self._constants.update({name: semantics.parameter(item) for name, item in graph.model.parameters.items()})

    def run(
        self,
        images: NDArray[Any],
        encode: Encode[ValueT],
        *,
        known: Mapping[str, NDArray[np.int32]] | None = None,
        targets: Collection[str] | None = None,
    ) -> dict[str, ValueT]:
        """Evaluate the graph for a batch of images.

        Args:
            images: Shape (N, …) of the network's input, or (N,) records with a field for each input.
            encode: Quantizes encoded tensors, in order of execution.
            known: Codes that readers see without asking ``encode`` first; needed for tensors outside the regions
                of ``targets``.
            targets: Values to compute, None for all. Only operations that these need are evaluated.

        Returns:
            The unquantized values of ``targets``, or of the network's outputs.
        """
        graph, semantics = self.graph, self.semantics
        wanted = list(graph.output_names) if targets is None else list(targets)
        operations = graph.operations if targets is None else self._needed(wanted)
        remaining = self._count_readers(operations, wanted)
        values: dict[str, ValueT] = {}
        codes: dict[str, NDArray[np.int32]] = dict(known or {})

        def define(name: str, value: ValueT) -> None:
            if name in graph.encodings and (targets is None or name in targets):
                codes[name] = encode(name, value)
            values[name] = value

        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for name, column in graph.columns(images).items():
                define(name, semantics.image(column))
            for operation in operations:
                for name, value in zip(operation.outputs, self._apply(operation, values, codes), strict=False):
                    if name:
                        define(name, value)
                for name in operation.inputs:
                    remaining[name] = remaining.get(name, 0) - 1
                    if remaining[name] <= 0 and name not in wanted:
                        values.pop(name, None)
        return {name: values[name] for name in wanted if name in values}

    def _apply(
        self, operation: Operation, values: Mapping[str, ValueT], codes: Mapping[str, NDArray[np.int32]]
    ) -> Sequence[ValueT]:
        """Outputs of one operation; of a table, only the entries that are looked up become values."""
        table = self.graph.tables.get(operation.inputs[0]) if operation.inputs else None
        inputs = [self._read(operation, name, values, codes) for name in operation.inputs[0 if table is None else 1 :]]
        if table is None:
            return self.semantics.apply(operation, inputs)
        try:
            indices = self.semantics.numbers(inputs[0])
            entries = np.take(table, indices, axis=int(operation.attribute("axis", 0)))
        except (LookupError, TypeError, ValueError) as error:
            raise operation.unsupported(str(error)) from error
        return [self.semantics.constant(entries)]

    def _read(
        self, operation: Operation, name: str, values: Mapping[str, ValueT], codes: Mapping[str, NDArray[np.int32]]
    ) -> ValueT | None:
        """What an operation sees at one of its inputs."""
        if not name:
            return None
        if self.graph.reads_codes(operation, name):
            return self.semantics.encoded(codes[name], self.graph.encodings[name])
        return self._constants[name] if name in self._constants else values[name]

    def _needed(self, targets: Sequence[str]) -> tuple[Operation, ...]:
        wanted = {operation.outputs for target in targets for operation in self.graph.region(target)}
        return tuple(operation for operation in self.graph.operations if operation.outputs in wanted)

    @staticmethod
    def _count_readers(operations: Sequence[Operation], wanted: Sequence[str]) -> dict[str, int]:
        counts: dict[str, int] = dict.fromkeys(wanted, 1)
        for operation in operations:
            for name in operation.inputs:
                counts[name] = counts.get(name, 0) + 1
        return counts


def _operation(node: onnx.NodeProto, opset: int) -> Operation:
    """Read one node."""
    if node.domain not in ("", "ai.onnx"):
        raise UnsupportedOperationError(f"{node.domain}::{node.op_type} is not a standard operation", where=node.name)
    return Operation(
        name=node.name,
        op_type=node.op_type,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes={attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute},
        node=node,
        opset=opset,
    )
