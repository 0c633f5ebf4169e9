"""The integer reference as a user sees it: images in, integer codes of every encoded tensor out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from eqdeploy.errors import DataError
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.validation.reference.graph import Graph, Walk
from eqdeploy.validation.reference.kernels import IntegerKernels
from eqdeploy.validation.reference.values import Value


@dataclass(frozen=True, eq=False)
class ReferenceResult:
    """What the integer reference computes for a batch of images.

    Attributes:
        codes: Codes of every encoded activation by tensor name, in the dtype in which a device stores them, shape
            (N, …) of the tensor.
        outputs: The network's outputs by name, float32.
    """

    codes: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[np.float32]]


class IntegerReference:
    """Evaluates a quantized model with exact integer sums and the rounding of fused integer kernels.

    Args:
        model: The model.

    Raises:
        ValidationError: If its encodings do not belong to its graph.
        UnsupportedOperationError: If a node is not of ONNX's default operator set.
    """

    def __init__(self, model: QuantizedModel) -> None:
        self.graph = Graph.of(model)
        self._walk: Walk[Value] = Walk(self.graph, IntegerKernels())

    def run(self, images: NDArray[Any]) -> ReferenceResult:
        """Evaluate a batch of images.

        Args:
            images: Shape (N, …) of the network's input, or (N,) records with a field for each input.

        Raises:
            DataError: If the images are not of the right type and shape.
            UnsupportedOperationError: If an operation cannot be evaluated.
        """
        check_images(self.graph, images)
        return self.follow(images, {})

    def follow(self, images: NDArray[Any], observed: Mapping[str, NDArray[Any]]) -> ReferenceResult:
        """Evaluate every region of the graph from codes that were observed elsewhere.

        Args:
            images: Shape (N, …) of the network's input, or (N,) records with a field for each input.
            observed: Codes by tensor name. Tensors that are missing are computed like in :meth:`run`.

        Returns:
            For every tensor the codes that follow from the *observed* codes of the tensors before it.
        """
        encodings = self.graph.encodings
        codes: dict[str, NDArray[Any]] = {}

        def encode(name: str, value: Value) -> NDArray[np.int32]:
            integers = value.codes(encodings[name])
            codes[name] = integers.astype(encodings[name].container)
            return observed[name].astype(np.int32) if name in observed else integers

        values = self._walk.run(images, encode)
        outputs = {
            name: encodings[name].dequantize(observed.get(name, codes[name]))
            if name in encodings
            else values[name].output()
            for name in self.graph.output_names
        }
        return ReferenceResult(codes, outputs)


def check_images(graph: Graph, images: NDArray[Any]) -> None:
    """Check that images, or records with a field for each input, fit the network's inputs.

    Raises:
        DataError: If they do not.
    """
    inputs = {value.name: value for value in graph.model.graph.graph.input}
    for name, column in graph.columns(images).items():
        _check_input(inputs[name], column)


def _check_input(wanted: onnx.ValueInfoProto, images: NDArray[Any]) -> None:
    """Check what one input gets."""
    kind = wanted.type.tensor_type
    sizes = [axis.dim_value if axis.HasField("dim_value") else None for axis in kind.shape.dim]
    expected = tuple(sizes[1:])
    shape = images.shape[1:]
    fits = len(shape) == len(expected) and all(
        size is None or size == actual for size, actual in zip(expected, shape, strict=True)
    )
    if not fits or images.ndim == 0:
        raise DataError(
            f"images of shape {images.shape} do not fit the network's input",
            where=wanted.name,
            hint=f"expected (images, {', '.join('any' if size is None else str(size) for size in expected)})",
        )
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if images.dtype != dtype:
        raise DataError(f"images must be {dtype}, got {images.dtype}", where=wanted.name)
    if dtype.kind == "f" and not bool(np.isfinite(images).all()):
        raise DataError("an image holds values that are not finite", where=wanted.name)
