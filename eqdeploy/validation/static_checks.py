"""What a QDQ file must satisfy. Each function names the tensors or nodes that do not, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from eqdeploy.errors import ProfileError
from eqdeploy.exporters.float_graph import bounds_before_quantization, implied, to_ir
from eqdeploy.exporters.opset import OPSETS
from eqdeploy.plan import Coverage
from eqdeploy.quant.encoding import Encoding, are_powers_of_two
from eqdeploy.quantized_model import QuantizedModel, operation_of
from eqdeploy.validation.qdq_file import DEQUANTIZE, QUANTIZE, ActivationChain, Grid, QdqFile, StoredParameter
from eqdeploy.validation.reference.graph import Graph, Operation
from eqdeploy.validation.reference.kernels import LINEAR
from eqdeploy.validation.runtime import loads_ir_version
from eqdeploy.validation.structure import StructureComparison

#: A tensor or node and what is wrong with it.
Fault = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Subject:
    """What is checked.

    Attributes:
        graph: The network.
        file: The file that was written for it.
    """

    graph: Graph
    file: QdqFile

    @property
    def model(self) -> QuantizedModel:
        """The network with its numbers."""
        return self.graph.model

    @cached_property
    def chains(self) -> dict[str, tuple[ActivationChain, ...]]:
        """Quantization nodes of activations by tensor name."""
        return self.file.chains(self.model)

    @cached_property
    def parameters(self) -> dict[str, StoredParameter]:
        """Integer initializers of the file by name."""
        return self.file.parameters()

    @cached_property
    def known_chains(self) -> list[tuple[ActivationChain, Encoding]]:
        """Chains of tensors that the model encodes."""
        encodings = self.graph.encodings
        return [(chain, encodings[name]) for name, found in self.chains.items() if name in encodings for chain in found]

    def nodes(self) -> Iterator[tuple[onnx.NodeProto, Grid]]:
        """All Q and DQ nodes with their numbers."""
        for node in (*self.file.quantize_nodes(), *self.file.dequantize_nodes()):
            yield node, self.file.grid(node)


def file_format(subject: Subject) -> Iterator[Fault]:
    """The opset must be one that is written, the IR version one that the installed ONNX Runtime loads."""
    proto = subject.file.proto
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version not in OPSETS:
            yield "opset", f"is {entry.version}, not one of {OPSETS.start} to {OPSETS.stop - 1}"
    if not loads_ir_version(proto.ir_version):
        yield "ir_version", f"is {proto.ir_version}, which ONNX Runtime {onnxruntime.__version__} does not load"


def scales(subject: Subject) -> Iterator[Fault]:
    """Scales must be finite, positive, normal float32 constants."""
    for node, grid in subject.nodes():
        scale = grid.scale
        if scale is None or scale.dtype != np.float32:
            yield node.name, "its scale is not a float32 constant"
        elif not bool(np.all(np.isfinite(scale) & (scale >= np.finfo(np.float32).tiny))):
            yield node.name, "a scale is not finite, positive and normal"


def powers_of_two(subject: Subject) -> Iterator[Fault]:
    """Scales must be powers of two."""
    for node, grid in subject.nodes():
        if grid.scale is not None and not bool(np.all(are_powers_of_two(grid.scale))):
            yield node.name, "a scale is no power of two"


def zero_points(subject: Subject) -> Iterator[Fault]:
    """Zero-points must be constants of the container's type inside the range."""
    for node, grid in subject.nodes():
        if grid.zero_point is None:
            yield node.name, "its zero-point is not a constant"
        elif grid.scale is not None and grid.zero_point.shape != grid.scale.shape:
            yield node.name, "its zero-point and its scale have different shapes"
    for chain, encoding in subject.known_chains:
        yield from _zero_point_faults(chain.tensor, chain.quantize_grid, encoding)
    for name, stored in subject.parameters.items():
        parameter = subject.model.parameters.get(name)
        if parameter is not None:
            for grid in stored.grids:
                yield from _zero_point_faults(name, grid, parameter.encoding)


def _zero_point_faults(name: str, grid: Grid, encoding: Encoding) -> Iterator[Fault]:
    """Check the type and the range of one zero-point."""
    zero_point = grid.zero_point
    if zero_point is None:
        return
    if zero_point.dtype != encoding.container:
        yield name, f"its zero-point is {zero_point.dtype}, its codes are {encoding.container}"
    elif bool(np.any((zero_point < encoding.q_min) | (zero_point > encoding.q_max))):
        yield name, f"its zero-point lies outside [{encoding.q_min}, {encoding.q_max}]"


def channels(subject: Subject) -> Iterator[Fault]:
    """One scale per channel must fit its axis, and the axis must be written down."""
    for chain, _ in subject.known_chains:
        if chain.quantize_grid.scale is not None and chain.quantize_grid.scale.ndim:
            yield chain.tensor, "an activation has more than one scale"
    for name, stored in subject.parameters.items():
        for grid in stored.grids:
            scale, axis, shape = grid.scale, grid.axis, stored.integers.shape
            if scale is None or scale.ndim == 0:
                continue
            if axis is None or not -len(shape) <= axis < len(shape):
                yield name, "its axis is not stated or does not exist"
            elif scale.shape != (shape[axis],):
                yield name, f"{scale.size} scales for {shape[axis]} channels on axis {axis}"


def weight_codes(subject: Subject) -> Iterator[Fault]:
    """Weight codes must lie in their range."""
    for name, stored in subject.parameters.items():
        parameter = subject.model.parameters.get(name)
        if parameter is None or stored.integers.size == 0:
            continue
        low, high = int(stored.integers.min()), int(stored.integers.max())
        encoding = parameter.encoding
        if low < encoding.q_min or high > encoding.q_max:
            yield name, f"codes from {low} to {high} leave [{encoding.q_min}, {encoding.q_max}]"


def biases(subject: Subject) -> Iterator[Fault]:
    """Integer biases must be int32 on the grid s_x · s_w with zero-point 0."""
    graph = subject.graph
    stored = {name: item for name, item in subject.parameters.items() if item.integers.dtype == np.int32}
    for name, item in stored.items():
        if any(grid.zero_point is not None and bool(np.any(grid.zero_point)) for grid in item.grids):
            yield name, "its zero-point is not 0"
    for operation, bias in _layers_with_bias(graph):
        if bias not in stored:
            continue
        data, weight = operation.inputs[:2]
        encoding, parameter = graph.encodings.get(data), subject.parameters.get(weight)
        if encoding is None or not graph.reads_codes(operation, data):
            yield bias, f"is an integer, but its layer's input {data} carries no encoding"
        elif parameter is not None and parameter.grids[0].scale is not None:
            chain = subject.chains.get(data, ())
            input_scale = chain[0].quantize_grid.scale if chain else None
            scale = (encoding.scale if input_scale is None else input_scale) * parameter.grids[0].scale
            groups = operation.attribute("group", 1) if operation.op_type == "ConvTranspose" else 1
            scale = np.asarray(np.tile(scale, groups) if scale.ndim and groups > 1 else scale, np.float32)
            for grid in stored[bias].grids:
                if not _same_scales(grid.scale, scale):
                    yield bias, "its scale is not float32(s_x · s_w)"


def _layers_with_bias(graph: Graph) -> Iterator[tuple[Operation, str]]:
    """Operations that multiply by a weight, with the name of the bias that is added to their result."""
    for operation in graph.operations:
        if operation.op_type in LINEAR and len(operation.inputs) > 2:
            yield operation, operation.inputs[2]
        elif operation.op_type == "Add":
            for result, bias in (operation.inputs[:2], operation.inputs[1::-1]):
                producer = graph.producers.get(result)
                if producer is not None and producer.op_type == "MatMul":
                    yield producer, bias


def _same_scales(found: NDArray[Any] | None, expected: NDArray[np.float32]) -> bool:
    """Whether one scale, or one scale per channel, are the same in every bit."""
    if found is None:
        return False
    comparable = found.shape == expected.shape or 0 in (found.ndim, expected.ndim)
    return comparable and bool(np.all(found == expected))


def ranges(subject: Subject) -> Iterator[Fault]:
    """Codes must be kept inside their range: by the container, an integer Clip, or the operations before."""
    bounds = bounds_before_quantization(to_ir(subject.model.graph).graph, subject.graph.encodings)
    for chain, encoding in subject.known_chains:
        if chain.clip is not None:
            limits = tuple(int(bound.reshape(-1)[0]) for bound in chain.clip_range or ())
            if limits != (encoding.q_min, encoding.q_max):
                yield chain.tensor, f"its integer Clip is {limits}, not ({encoding.q_min}, {encoding.q_max})"
            continue
        limit = np.iinfo(encoding.container)
        if not implied(encoding, bounds[chain.tensor], widest=(int(limit.min), int(limit.max))):
            yield chain.tensor, f"nothing keeps its codes inside [{encoding.q_min}, {encoding.q_max}]"


def pairs(subject: Subject) -> Iterator[Fault]:
    """Every Q and its DQ must apply the same numbers."""
    for name, found in subject.chains.items():
        for chain in found:
            if any(not chain.quantize_grid.same_as(grid) for grid in chain.dequantize_grids):
                yield name, "its Q and DQ have different scales, zero-points or types"
    for name, stored in subject.parameters.items():
        if any(not stored.grids[0].same_as(grid) for grid in stored.grids):
            yield name, "its DQ nodes apply different numbers"


def orphans(subject: Subject) -> Iterator[Fault]:
    """Every Q needs a DQ, every DQ a Q or an integer constant."""
    file = subject.file
    paired = {node.output[0] for found in subject.chains.values() for chain in found for node in chain.dequantize}
    for name, found in subject.chains.items():
        if any(not chain.dequantize for chain in found):
            yield name, "its Q has no DQ"
    for node in file.dequantize_nodes():
        if node.output[0] not in paired and node.input[0] not in file.constants:
            yield node.name, "this DQ has no Q and no integer constant"
        elif not file.readers.get(node.output[0]) and node.output[0] not in file.output_names:
            yield node.name, "nobody reads this DQ"


def quantized_once(subject: Subject) -> Iterator[Fault]:
    """Every encoded tensor must be quantized once, and no other."""
    for name in subject.graph.encodings:
        count = len(subject.chains.get(name, ()))
        if count != 1:
            yield name, f"is quantized {count} times"
    for name in subject.chains:
        if name not in subject.graph.encodings:
            yield name, "a Q that belongs to no encoded tensor"
    for node in subject.file.quantize_nodes():
        before = subject.file.producers.get(node.input[0])
        if before is not None and before.op_type in (QUANTIZE, DEQUANTIZE):
            yield node.name, "quantizes a tensor that was just dequantized"


def encodings(subject: Subject) -> Iterator[Fault]:
    """The file must hold the encodings and codes of the model."""
    for chain, encoding in subject.known_chains:
        yield from _encoding_faults(chain.tensor, chain.quantize_grid, encoding)
    for name, parameter in subject.model.parameters.items():
        stored = subject.parameters.get(name)
        if stored is None:
            yield name, "is not stored as integers with a DQ"
            continue
        for grid in stored.grids:
            yield from _encoding_faults(name, grid, parameter.encoding)
        if stored.integers.shape != parameter.codes.shape:
            yield name, f"has shape {stored.integers.shape} instead of {parameter.codes.shape}"
        elif not np.array_equal(stored.integers.astype(np.int64), parameter.codes):
            count = int((stored.integers.astype(np.int64) != parameter.codes).sum())
            yield name, f"{count} of {parameter.codes.size} integers differ from the model's"
        elif stored.integers.dtype != parameter.encoding.container:
            yield name, f"is stored as {stored.integers.dtype}, not {parameter.encoding.container}"
    for name in subject.parameters:
        if name not in subject.model.parameters:
            yield name, "is stored as integers, but the model has no such parameter"


def _encoding_faults(name: str, grid: Grid, encoding: Encoding) -> Iterator[Fault]:
    """Compare the numbers of one Q or DQ node with the model's."""
    if grid.scale is None or not np.array_equal(grid.scale, encoding.scale):
        yield name, "its scale is not the model's"
    if grid.zero_point is None or not np.array_equal(grid.zero_point.astype(np.int64), encoding.zero_point):
        yield name, "its zero-point is not the model's"
    if encoding.axis is not None and grid.axis != encoding.axis:
        yield name, f"its axis is {grid.axis}, the model's is {encoding.axis}"


def structure(subject: Subject) -> Iterator[Fault]:
    """The file must be the network with quantization nodes and nothing else."""
    try:
        comparison = StructureComparison(subject.graph, subject.file, subject.chains)
    except ProfileError as error:
        yield "opset", f"the network cannot be compared there: {error.message}"
        return
    yield from comparison.faults()


def coverage(subject: Subject) -> Iterator[Fault]:
    """Every tensor of the network must be quantized or listed with a reason, and no other tensor may be listed."""
    model, graph = subject.model, subject.graph
    tensors = dict.fromkeys([*graph.input_names, *(operation_of(operation.name) for operation in graph.operations)])
    for name in tensors:
        if name not in model.coverage:
            yield name, "is neither quantized nor listed"
    for name, kind in model.coverage.items():
        if (kind is Coverage.QUANTIZED) != (name in model.activations):
            listed = "quantized" if kind is Coverage.QUANTIZED else "not quantized"
            yield name, f"is listed as {listed}, which it is not"
        if not model.reasons.get(name, "").strip():
            yield name, "has no reason"
    for name in model.activations:
        if name not in model.coverage and name not in tensors:
            yield name, "is quantized but not listed"
