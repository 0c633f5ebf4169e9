"""Kit for formats that are a float model beside a file of encodings: what is read back.

Nothing in the files is trusted. Weights are quantized again, as the tools of the device will, and must lie on their
grids; ranges that end early must follow from the operations; biases must count in units of their layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from eqdeploy.errors import ValidationError
from eqdeploy.exporters.comparison import first_difference
from eqdeploy.exporters.contract import RecoveredEncodings
from eqdeploy.exporters.files import load_ir
from eqdeploy.exporters.float_graph import (
    bounds_before_quantization,
    constant,
    expected_bias_scales,
    implied,
    to_ir,
    to_proto,
    weight_channel_axis,
)
from eqdeploy.exporters.float_sidecar import Grid, SideFile, float_model, is_integer_bias, whole_range
from eqdeploy.exporters.metadata import EncodingFacts, read_facts
from eqdeploy.exporters.opset import convert_opset
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedModel

#: From here on the float32 value in the file, off by at most one part in 2^24, may be half a bias code off.
_LARGEST_EXACT_BIAS = 1 << 23


def read_float_model(path: Path, side_file: SideFile) -> RecoveredEncodings:
    """Recover every encoding and every integer from a float model and its side file.

    Args:
        path: ONNX file with what :func:`eqdeploy.exporters.float_sidecar.float_model` made.
        side_file: What the side file holds, read by the exporter.

    Returns:
        All encodings in the storage of the model; codes of a bias are None where one is so large that its float32 value
        no longer tells it from its neighbours.

    Raises:
        ValidationError: If the model is damaged, the two files name other tensors, or values do not lie on their grids.
    """
    model = load_ir(path)
    facts = read_facts(model, str(path))
    graph = to_ir(to_proto(model)).graph
    weights = {name: fact for name, fact in facts.parameters.items() if not is_integer_bias(fact)}
    _check_names(path, side_file.activations, facts.activations)
    _check_names(path, side_file.weights, weights)
    activations = {
        name: _stored(name, side_file.activations[name].encoding(None, name), fact)
        for name, fact in facts.activations.items()
    }
    _check_ranges(graph, activations)
    parameters: dict[str, tuple[NDArray[np.int32] | None, Encoding]] = {}
    for name, fact in weights.items():
        parameters[name] = _read_weight(graph, name, side_file.weights[name], fact)
    weight_encodings = {name: encoding for name, (_, encoding) in parameters.items()}
    for name, fact in facts.parameters.items():
        if is_integer_bias(fact):
            parameters[name] = _read_bias(graph, name, fact, activations, weight_encodings)
    return RecoveredEncodings(activations, {name: parameters[name] for name in facts.parameters})


def check_same_network(model: QuantizedModel, path: Path) -> None:
    """Check that a float model holds the network of another file, in the lower of their opsets.

    For exporters that write a proof model besides: it is what runs when an export is proved.

    Args:
        model: What :func:`eqdeploy.exporters.qdq_reader.read_model` read from the proof model.
        path: The float model.

    Raises:
        ValidationError: Names the first input, output or node that differs.
    """
    found = load_ir(path)
    opset = min(found.graph.opset_imports.get("", 0), to_ir(model.graph).graph.opset_imports.get("", 0))
    expected = float_model(model, opset)
    difference = first_difference(expected.graph, convert_opset(to_ir(to_proto(found)), opset).graph)
    if difference is not None:
        raise ValidationError("is another one in the proof model", where=f"{path}: {difference}")


def _check_names(path: Path, found: Mapping[str, Grid], expected: Mapping[str, EncodingFacts]) -> None:
    differing = sorted(set(found) ^ set(expected))
    if differing:
        raise ValidationError(f"is in only one of {path.name} and its side file", where=differing[0])


def _check_ranges(graph: ir.Graph, activations: dict[str, Encoding]) -> None:
    """A range that ends early must follow from the operations, as the side file cannot say it."""
    bounds = bounds_before_quantization(graph, activations)
    for name, encoding in activations.items():
        if name not in bounds:
            raise ValidationError("has an encoding but is no tensor of the float model", where=name)
        if not implied(encoding, bounds[name], widest=whole_range(encoding.bits, signed=encoding.signed)):
            raise ValidationError("nothing in the float model keeps its codes inside their range", where=name)


def _stored(name: str, grid: Encoding, facts: EncodingFacts) -> Encoding:
    """Bring an encoding of the side file to the storage and range of the model."""
    if grid.bits != facts.bits:
        raise ValidationError(f"has {grid.bits} bits in the side file and {facts.bits} in the model", where=name)
    stored = grid.stored_as(signed=facts.signed)
    try:
        return Encoding(
            stored.scale, stored.zero_point, facts.q_min, facts.q_max, stored.bits, stored.signed, stored.axis
        )
    except ValueError as error:
        raise ValidationError(str(error), where=name) from error


def _read_weight(graph: ir.Graph, name: str, grid: Grid, facts: EncodingFacts) -> tuple[NDArray[np.int32], Encoding]:
    """Quantize a float weight again, as the device's tools will, and insist that nothing is lost."""
    array = _float_parameter(graph, name)
    axis = weight_channel_axis(graph.initializers[name])
    if facts.axis not in (None, axis):
        raise ValidationError(f"has its scales on axis {facts.axis}, its layer needs axis {axis}", where=name)
    encoding = _stored(name, grid.encoding(facts.axis, name), facts)
    if facts.axis is not None and (facts.axis >= array.ndim or array.shape[facts.axis] != encoding.scale.size):
        raise ValidationError(f"{encoding.scale.size} entries do not fit shape {array.shape}", where=name)
    with np.errstate(over="ignore"):
        codes = encoding.quantize(array)
    if not np.array_equal(encoding.dequantize(codes), array):
        raise ValidationError("float weights do not lie on the grid of their encoding", where=name)
    return codes, encoding


def _read_bias(
    graph: ir.Graph,
    name: str,
    facts: EncodingFacts,
    activations: dict[str, Encoding],
    weights: dict[str, Encoding],
) -> tuple[NDArray[np.int32] | None, Encoding]:
    """Quantize a float bias in units of input scale times weight scale.

    Returns:
        Codes, or None if one is so large that its float32 value no longer tells it from its neighbours; and the
        encoding.
    """
    array = _float_parameter(graph, name)
    scales = expected_bias_scales(graph.initializers[name], activations, weights)
    if not scales:
        raise ValidationError("no layer gives this bias a scale", where=name)
    shape = () if facts.axis is None else array.shape
    try:
        encoding = Encoding(
            scale=np.array(np.broadcast_to(scales[0], shape), np.float32),
            zero_point=np.zeros(shape, np.int32),
            q_min=facts.q_min,
            q_max=facts.q_max,
            bits=facts.bits,
            signed=facts.signed,
            axis=facts.axis,
        )
    except ValueError as error:
        raise ValidationError(str(error), where=name) from error
    with np.errstate(over="ignore"):
        codes = np.rint(array.astype(np.float64) / encoding.scale)
    if codes.size and float(np.abs(codes).max()) >= _LARGEST_EXACT_BIAS:
        return None, encoding
    integers = codes.astype(np.int32)
    if not np.array_equal(encoding.dequantize(integers), array):
        raise ValidationError("float biases do not lie on the grid of their layer", where=name)
    return integers, encoding


def _float_parameter(graph: ir.Graph, name: str) -> NDArray[np.float32]:
    """The float32 values of an initializer."""
    array = constant(graph.initializers.get(name))
    if array is None or array.dtype != np.float32:
        raise ValidationError("is no float32 initializer of the float model", where=name)
    if not bool(np.all(np.isfinite(array))):
        raise ValidationError("holds values that are not finite", where=name)
    return array.astype(np.float32)
