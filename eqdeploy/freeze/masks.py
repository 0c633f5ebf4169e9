"""Constants that hide what softmax reads, as finite numbers that every device can hold.

Where a sum with such a constant, or a choice of it, is quantized, everything below the encoding's range becomes the
lowest code. A number that is low enough and finite gives the same codes as −∞, and no device has to divide or convert
an infinity, in half precision or while it quantizes the constant itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from eqdeploy.quantized_model import QuantizedTensor

#: Smallest number of half precision, and one to add to that stays inside it.
_LOWEST_HALF, HIDING = -65504.0, -32768.0

#: What a sum or a choice with a constant becomes in ONNX.
_OPERATORS = frozenset({"Add", "Where"})


def make_masks_finite(model: onnx.ModelProto, activations: Mapping[str, QuantizedTensor]) -> onnx.ModelProto:
    """Raise constants below half precision to −32768 where only quantized sums and choices read them.

    The codes stay the same as long as the other summand is below 16384, half of it, and the range begins above −16384.

    Args:
        model: The float graph; changed in place.
        activations: Encoded tensors by name.

    Returns:
        The same graph.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in model.graph.output}

    def saturates(name: str) -> bool:
        """Whether all that reads a value is quantized to a range that begins far above what hides."""
        nodes = readers.get(name, [])
        return bool(nodes) and name not in outputs and all(map(is_quantized, nodes))

    def is_quantized(node: onnx.NodeProto) -> bool:
        held = activations.get(node.output[0])
        if node.op_type not in _OPERATORS or held is None or held.float_readers:
            return node.op_type in _OPERATORS and held is None and saturates(node.output[0])
        encoding = held.encoding
        return float(encoding.scale) * (encoding.q_min - int(encoding.zero_point)) > HIDING / 2

    for initializer in model.graph.initializer:
        if initializer.data_type != onnx.TensorProto.FLOAT:
            continue
        if not saturates(initializer.name):  # asked first: what is read there is small
            continue
        values = numpy_helper.to_array(initializer)
        deep = values < _LOWEST_HALF
        if deep.any():
            finite = np.where(deep, np.float32(HIDING), values)
            initializer.CopyFrom(numpy_helper.from_array(np.asarray(finite, np.float32), initializer.name))
    return model
