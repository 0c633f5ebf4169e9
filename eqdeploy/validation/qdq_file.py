"""A QDQ file taken apart without trusting it: which nodes quantize which tensor, with which numbers.

This reader shares no code with the exporter's, so that a mistake in one is noticed by the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import external_data_helper, helper, numpy_helper

from eqdeploy.errors import ValidationError
from eqdeploy.exporters.files import load_proto
from eqdeploy.quantized_model import QuantizedModel, operation_of

QUANTIZE, DEQUANTIZE, CLIP = "QuantizeLinear", "DequantizeLinear", "Clip"


@dataclass(frozen=True, eq=False)
class Grid:
    """The numbers that one Q or DQ node applies.

    Attributes:
        scale: Scale as stored; None if it is not a constant.
        zero_point: Zero-point as stored; None if it is absent or not a constant.
        axis: Axis as stored, None if the node has no such attribute.
    """

    scale: NDArray[Any] | None
    zero_point: NDArray[Any] | None
    axis: int | None

    def same_as(self, other: Grid) -> bool:
        """Whether both nodes apply the same numbers in the same types."""
        return (
            _identical(self.scale, other.scale)
            and _identical(self.zero_point, other.zero_point)
            and (self.axis == other.axis or self.scale is None or self.scale.ndim == 0)
        )


@dataclass(frozen=True, eq=False)
class ActivationChain:
    """The nodes that quantize one tensor.

    Attributes:
        tensor: Name of the tensor.
        quantize: The Q node.
        clip: The integer Clip node between Q and DQ, if there is one.
        dequantize: The DQ nodes that read the integers.
        codes: Name of the value that holds the integers as readers see them.
        quantize_grid: Numbers of the Q node.
        dequantize_grids: Numbers of the DQ nodes.
        clip_range: Bounds of the integer Clip, None where there is no constant Clip.
    """

    tensor: str
    quantize: onnx.NodeProto
    clip: onnx.NodeProto | None
    dequantize: tuple[onnx.NodeProto, ...]
    codes: str
    quantize_grid: Grid
    dequantize_grids: tuple[Grid, ...]
    clip_range: tuple[NDArray[Any], NDArray[Any]] | None

    @property
    def container(self) -> np.dtype[Any] | None:
        """Type in which the integers are stored, None if it is unknown."""
        zero_point = self.quantize_grid.zero_point
        return None if zero_point is None else zero_point.dtype


@dataclass(frozen=True, eq=False)
class StoredParameter:
    """An integer initializer and the DQ nodes that read it.

    Attributes:
        name: Name of the initializer.
        integers: Its values as stored.
        dequantize: The DQ nodes.
        grids: Their numbers.
    """

    name: str
    integers: NDArray[Any]
    dequantize: tuple[onnx.NodeProto, ...]
    grids: tuple[Grid, ...]


@dataclass(frozen=True, eq=False)
class QdqFile:
    """A loaded QDQ model.

    Attributes:
        path: The file.
        proto: Its content as it is stored: tensors in other files are named, not read.
    """

    path: Path
    proto: onnx.ModelProto

    @staticmethod
    def load(path: Path) -> QdqFile:
        """Load a file.

        Raises:
            ValidationError: If it is missing, damaged, no valid ONNX, or refers to tensors outside its folder.
        """
        return QdqFile(path, load_proto(path))

    @cached_property
    def constants(self) -> dict[str, NDArray[Any]]:
        """Initializers and Constant nodes by value name.

        Raises:
            ValidationError: If the data of one do not fit its shape and type.
        """
        arrays = {tensor.name: self._array(tensor, tensor.name) for tensor in self.proto.graph.initializer}
        for node in self.proto.graph.node:
            if node.op_type == "Constant":
                value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
                if value is not None:
                    arrays[node.output[0]] = self._array(value, node.output[0])
        return arrays

    def _array(self, tensor: onnx.TensorProto, name: str) -> NDArray[Any]:
        """The array that a tensor holds, which the ONNX checker does not look at."""
        try:
            if external_data_helper.uses_external_data(tensor):
                # Mapped, not read.
                return ir.serde.deserialize_tensor(tensor, base_path=self.path.parent).numpy()
            return numpy_helper.to_array(tensor)
        except (ValueError, TypeError, OSError) as error:
            raise ValidationError(f"holds no array: {error}", where=f"{self.path}: {name}") from error

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        """The node that computes each value."""
        return {name: node for node in self.proto.graph.node for name in node.output if name}

    @cached_property
    def readers(self) -> dict[str, tuple[onnx.NodeProto, ...]]:
        """The nodes that read each value, each once."""
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.proto.graph.node:
            for name in dict.fromkeys(node.input):
                readers.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in readers.items()}

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the network's outputs."""
        return tuple(value.name for value in self.proto.graph.output)

    def grid(self, node: onnx.NodeProto) -> Grid:
        """The numbers that a Q or DQ node applies."""
        inputs = [*node.input, "", ""]
        axis = next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), None)
        return Grid(self.constants.get(inputs[1]), self.constants.get(inputs[2]), axis)

    def quantize_nodes(self) -> tuple[onnx.NodeProto, ...]:
        """All Q nodes in order."""
        return tuple(node for node in self.proto.graph.node if node.op_type == QUANTIZE)

    def dequantize_nodes(self) -> tuple[onnx.NodeProto, ...]:
        """All DQ nodes in order."""
        return tuple(node for node in self.proto.graph.node if node.op_type == DEQUANTIZE)

    def chain(self, quantize: onnx.NodeProto, tensor: str) -> ActivationChain:
        """Follow the integers from a Q node to their DQ nodes."""
        codes = quantize.output[0]
        clip = next((node for node in self.readers.get(codes, ()) if node.op_type == CLIP), None)
        clip_range = None
        if clip is not None:
            codes = clip.output[0]
            bounds = [self.constants.get(name) for name in clip.input[1:3]]
            low, high = (*bounds, None, None)[:2]
            clip_range = None if low is None or high is None else (low, high)
        dequantize = tuple(node for node in self.readers.get(codes, ()) if node.op_type == DEQUANTIZE)
        return ActivationChain(
            tensor=tensor,
            quantize=quantize,
            clip=clip,
            dequantize=dequantize,
            codes=codes,
            quantize_grid=self.grid(quantize),
            dequantize_grids=tuple(self.grid(node) for node in dequantize),
            clip_range=clip_range,
        )

    def chains(self, model: QuantizedModel) -> dict[str, tuple[ActivationChain, ...]]:
        """All chains by the tensor of the model that they quantize; unknown ones under their Q node's name."""
        chains: dict[str, list[ActivationChain]] = {}
        for node in self.quantize_nodes():
            name = self._tensor_of(node, model)
            chains.setdefault(name, []).append(self.chain(node, name))
        return {name: tuple(found) for name, found in chains.items()}

    def parameters(self) -> dict[str, StoredParameter]:
        """Integer initializers that DQ nodes read, by name."""
        nodes: dict[str, list[onnx.NodeProto]] = {}
        for node in self.dequantize_nodes():
            if node.input[0] in self.constants:
                nodes.setdefault(node.input[0], []).append(node)
        return {
            name: StoredParameter(name, self.constants[name], tuple(found), tuple(self.grid(node) for node in found))
            for name, found in nodes.items()
        }

    def _tensor_of(self, quantize: onnx.NodeProto, model: QuantizedModel) -> str:
        """The encoded tensor that a Q node quantizes: told by its name, its input, or the DQ's output."""
        producer = self.producers.get(quantize.input[0])
        readers = self.readers.get(quantize.output[0], ())
        candidates = [
            operation_of(quantize.name),
            quantize.input[0],
            operation_of(producer.name) if producer is not None else "",
            *(name for node in readers for name in node.output),
        ]
        return next((name for name in candidates if name in model.activations), quantize.name or quantize.output[0])


def attributes_of(node: onnx.NodeProto) -> Mapping[str, Any]:
    """Attribute values of a node by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _identical(left: NDArray[Any] | None, right: NDArray[Any] | None) -> bool:
    """Whether both arrays have the same type, shape and bytes, or both are missing."""
    if left is None or right is None:
        return left is right
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
