"""Operations that only rearrange, select or compare entries, so that they do to codes what they do to real numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import defs, helper
from onnx.reference import ReferenceEvaluator

from eqdeploy.validation.reference.graph import Operation
from eqdeploy.validation.reference.resize import resize, resize_mode
from eqdeploy.validation.reference.values import Move
from eqdeploy.validation.reference.windows import Windows, accumulate

#: Operations without arithmetic whose first input alone is data.
MOVES = frozenset(
    {
        *("DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GlobalMaxPool", "Identity", "MaxPool"),
        *("Pad", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)

#: Operations that ONNX's reference implementation lacks, and that the standard defines by other operations.
_DEFINED_BY_OTHERS = frozenset({"Gelu"})

_PadMode = Literal["constant", "reflect", "edge", "wrap"]


def evaluate(operation: Operation, arrays: Sequence[NDArray[Any] | None]) -> list[NDArray[Any]]:
    """Evaluate any standard operation with ONNX's own reference implementation, in the dtypes of the inputs.

    Args:
        operation: The operation.
        arrays: One per input, None where an optional input is absent.

    Raises:
        UnsupportedOperationError: If ONNX has no implementation or refuses the inputs.
    """
    try:
        body = _definition(operation, arrays)
        names = operation.inputs if body is None else body.input
        feeds = {name: array for name, array in zip(names, arrays, strict=False) if name and array is not None}
        proto, opsets = (operation.node, {"": operation.opset}) if body is None else (body, None)
        results = ReferenceEvaluator(proto, opsets=opsets).run(None, feeds, attributes={})
    except (NotImplementedError, RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise operation.unsupported(str(error)) from error
    return [np.asarray(result) for result in results]


def _definition(operation: Operation, arrays: Sequence[NDArray[Any] | None]) -> onnx.FunctionProto | None:
    """What an operation is in terms of simpler ones, where the standard defines it so and ONNX has no code for it."""
    if operation.op_type not in _DEFINED_BY_OTHERS:
        return None
    schema = defs.get_schema(operation.op_type, operation.opset)
    types = [
        onnx.TypeProto()
        if array is None
        else helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for array in arrays
    ]
    version = max(schema.context_dependent_function_opset_versions)  # type: ignore[attr-defined]  # not in the stubs
    serialized = schema.get_context_dependent_function_with_opset_version(  # type: ignore[attr-defined]
        version, operation.node.SerializeToString(), [item.SerializeToString() for item in types]
    )
    body = onnx.FunctionProto()
    body.ParseFromString(serialized)
    return body


def moves_of(operation: Operation, arguments: Sequence[NDArray[Any] | None], zero: int) -> list[Move] | None:
    """What an operation does to the entries of its first input, one function per output.

    Args:
        operation: One of :data:`MOVES`.
        arguments: The other inputs, None where one is absent.
        zero: What stands for a real zero in the data: its zero-point, or 0 for real numbers.

    Returns:
        None if this node computes new numbers after all (interpolation, padding with other values than 0).
    """
    if operation.op_type == "MaxPool":
        return None if len(operation.outputs) > 1 else [lambda data: _max_pool(operation, data)]
    if operation.op_type == "Pad":
        return [lambda data: _pad(operation, arguments, data, zero)] if _pads_with_zero(operation, arguments) else None
    if operation.op_type == "Resize":
        nearest = resize_mode(operation) == "nearest"
        return [lambda data: resize(operation, arguments, data)] if nearest else None

    def output(index: int) -> Move:
        return lambda data: evaluate(operation, [data, *arguments])[index]

    return [output(index) for index in range(len(operation.outputs))]


def _max_pool(operation: Operation, data: NDArray[Any]) -> NDArray[Any]:
    """The largest entry of each window; padding never wins."""
    is_float = np.issubdtype(data.dtype, np.floating)
    fill = -np.inf if is_float else np.iinfo(data.dtype).min
    return accumulate(Windows.of(operation, data.shape).slices(data, fill), np.maximum)


def _pads_with_zero(operation: Operation, arguments: Sequence[NDArray[Any] | None]) -> bool:
    """Whether the padding is a real zero or repeats entries of the data."""
    value = arguments[1] if len(arguments) > 1 else None
    return operation.attribute("mode", b"constant") != b"constant" or value is None or not np.any(value)


def _pad(operation: Operation, arguments: Sequence[NDArray[Any] | None], data: NDArray[Any], zero: int) -> NDArray[Any]:
    """Pad, or crop where a size is negative."""
    pads, _, axes = [*arguments, None, None, None][:3]
    if pads is None:
        raise operation.unsupported("the sizes of the padding are not given")
    places = range(data.ndim) if axes is None else [int(axis) % data.ndim for axis in axes]
    margins = [(0, 0)] * data.ndim
    for place, axis in enumerate(places):
        margins[axis] = int(pads[place]), int(pads[place + len(places)])
    mode = cast(_PadMode, operation.attribute("mode", b"constant").decode())
    widths = [(max(before, 0), max(after, 0)) for before, after in margins]
    padded = np.pad(data, widths, constant_values=zero) if mode == "constant" else np.pad(data, widths, mode)
    crop = tuple(slice(max(-before, 0), -after if after < 0 else None) for before, after in margins)
    cropped: NDArray[Any] = padded[crop]
    return cropped
