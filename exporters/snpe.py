"""Exporter ``snpe``: a float ONNX and an AIMET encodings file for Qualcomm's converter, with a proof model.

Files: ``snpe/model.onnx`` (float, no Q/DQ), ``snpe/model.encodings`` (JSON 0.6.1), ``snpe/convert.sh`` (the two
commands of the Qualcomm SDK) and ``model.onnx``, the same integers as a QDQ model that ONNX Runtime can run.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from pydantic import Field

from eqdeploy.errors import ProfileError, ValidationError
from eqdeploy.exporters import aimet_encodings
from eqdeploy.exporters.comparison import first_difference
from eqdeploy.exporters.contract import RecoveredEncodings, check_round_trip
from eqdeploy.exporters.files import load_ir, read_text, write_model, write_text
from eqdeploy.exporters.float_graph import (
    bounds_before_quantization,
    constant,
    expected_bias_scales,
    implied,
    to_ir,
    to_proto,
    weight_channel_axis,
)
from eqdeploy.exporters.metadata import EncodingFacts, attach_facts, facts_of, read_facts
from eqdeploy.exporters.model_checks import check_model
from eqdeploy.exporters.onnx_qdq import MODEL_FILE, OnnxQdqOptions, write_qdq_model
from eqdeploy.exporters.opset import OPSETS, convert_opset
from eqdeploy.exporters.options import parse_options
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.plan import DevicePlan
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedModel

FLOAT_FILE = "snpe/model.onnx"
ENCODINGS_FILE = "snpe/model.encodings"
COMMANDS_FILE = "snpe/convert.sh"

#: From here on the float32 value in the file, off by at most one part in 2^24, may be half a bias code off.
_LARGEST_EXACT_BIAS = 1 << 23


class SnpeOptions(OnnxQdqOptions):
    """Options of the exporter.

    Attributes:
        opset: Opset of the proof model.
        float_opset: Opset of the float model; by default the oldest that can express it, from 13 on, because
            the SDK's versions for the older DSPs read no newer ones.
        allow_low_bits: Write encodings below 4 bits, which the format's specification does not name.
    """

    float_opset: int | None = Field(default=None, ge=OPSETS[0], le=OPSETS[-1])
    allow_low_bits: bool = False


class SnpeExporter:
    """Writes and reads the files for Qualcomm's Neural Processing SDK."""

    name = "snpe"

    def describe(self) -> str:
        """What the exporter writes and what its format cannot hold."""
        return (
            "A float ONNX, AIMET encodings 0.6.1 and the converter commands, plus a QDQ model as proof. Every "
            "activation has one scale and one buffer, so no reader may see the float value; a range that ends "
            "before its last code must follow from an operation of the graph (ReLU6); per-channel weights use the "
            "output channels; integer biases are those of --bias_bitwidth 32 and are not in the file; below 4 bits "
            "only with allow_low_bits."
        )

    def check_options(self, options: Mapping[str, object]) -> None:
        """Check options; see :meth:`eqdeploy.exporters.contract.EarlyChecks.check_options`."""
        parse_options(SnpeOptions, options, self.name)

    def check_plan(self, plan: DevicePlan, options: Mapping[str, object]) -> None:
        """Check widths and readers; see :meth:`eqdeploy.exporters.contract.EarlyChecks.check_plan`."""
        allow_low_bits = parse_options(SnpeOptions, options, self.name).allow_low_bits
        for tensor in plan.tensors:
            if tensor.device is not None:
                _check_bits(tensor.tensor, tensor.device.bits, "activations.bits", allow_low_bits=allow_low_bits)
                _check_readers(tensor.tensor, tensor.float_readers)
        for weight in plan.weights:
            _check_bits(weight.layer, weight.device.bits, "weights.bits", allow_low_bits=allow_low_bits)

    def export(self, model: QuantizedModel, directory: Path, options: Mapping[str, object]) -> tuple[str, ...]:
        """Write all files; see :meth:`eqdeploy.exporters.contract.Exporter.export`."""
        parsed = parse_options(SnpeOptions, options, self.name)
        threshold = parsed.external_data_threshold
        graph = to_ir(model.graph).graph
        check_model(model, graph)
        _check_expressible(model, graph, allow_low_bits=parsed.allow_low_bits)
        float_model = _float_model(model, parsed.float_opset)
        files = write_qdq_model(model, directory, parsed)
        files += write_model(float_model, directory, FLOAT_FILE, external_data_threshold=threshold)
        weights = {name: parameter.encoding for name, parameter in model.parameters.items()}
        encodings = aimet_encodings.to_json(
            {name: tensor.encoding for name, tensor in model.activations.items()},
            {name: encoding for name, encoding in weights.items() if not _is_bias(encoding)},
        )
        return (
            *files,
            write_text(encodings, directory, ENCODINGS_FILE),
            write_text(_commands(float_model.graph), directory, COMMANDS_FILE),
        )

    def read(self, directory: Path) -> RecoveredEncodings:
        """Recover every encoding from the folder ``snpe``.

        The proof model must hold the same encodings and be the same network: it is what runs when the export is
        proved.
        """
        recovered = _read_device_files(directory)
        model = read_model(directory / MODEL_FILE)
        check_round_trip(model, recovered)
        _check_network(model, directory / FLOAT_FILE)
        return recovered


def _is_bias(encoding: Encoding | EncodingFacts) -> bool:
    return encoding.bits > 8


def _check_expressible(model: QuantizedModel, graph: ir.Graph, *, allow_low_bits: bool) -> None:
    """Refuse what encodings 0.6.1 cannot say."""
    encodings = {name: tensor.encoding for name, tensor in model.activations.items()}
    bounds = bounds_before_quantization(graph, encodings)
    for name, tensor in model.activations.items():
        encoding = tensor.encoding
        _check_bits(name, encoding.bits, "activations.bits", allow_low_bits=allow_low_bits)
        if encoding.axis is not None:
            raise ProfileError("SNPE activations have one scale", where=name, hint="set granularity per_tensor")
        _check_readers(name, tensor.float_readers)
        if not implied(encoding, bounds[name], widest=_whole_range(encoding.bits, signed=encoding.signed)):
            raise ProfileError(
                f"nothing in the network keeps its codes inside [{encoding.q_min}, {encoding.q_max}], and an SNPE "
                f"encoding always has all {1 << encoding.bits} codes",
                where=name,
                hint="use the full range of the width",
            )
    parameters = {name: parameter.encoding for name, parameter in model.parameters.items()}
    for name, encoding in parameters.items():
        if _is_bias(encoding):
            if not expected_bias_scales(graph.initializers[name], encodings, parameters):
                raise ProfileError(
                    "an SNPE bias counts in units of input scale times weight scale, and its layer has none",
                    where=name,
                    hint="set bias: float, or encode the layer's input",
                )
            continue
        _check_bits(name, encoding.bits, "weights.bits", allow_low_bits=allow_low_bits)
        axis = weight_channel_axis(graph.initializers[name])
        if encoding.axis is not None and encoding.axis != axis:
            raise ProfileError(
                f"has its scales on axis {encoding.axis}; encodings 0.6.1 name no axis and mean axis {axis}", where=name
            )


def _check_readers(name: str, float_readers: Collection[str]) -> None:
    if float_readers:
        raise ProfileError(
            f"{', '.join(sorted(float_readers))} would read the float value of an encoded tensor, but an "
            "SNPE tensor is one buffer",
            where=name,
            hint="set activations.encode: all",
        )


def _check_bits(name: str, bits: int, key: str, *, allow_low_bits: bool) -> None:
    if bits < aimet_encodings.SMALLEST_DOCUMENTED_BITS and not allow_low_bits:
        raise ProfileError(
            f"has {bits} bits; encodings {aimet_encodings.VERSION} are specified from "
            f"{aimet_encodings.SMALLEST_DOCUMENTED_BITS} bits on",
            where=f"{key}: {name}",
            hint="raise the width, or set export.options.allow_low_bits: true if your SDK takes it",
        )


def _whole_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """First and last code of a width."""
    half = 1 << (bits - 1)
    return (-half, half - 1) if signed else (0, 2 * half - 1)


def _float_model(model: QuantizedModel, opset: int | None) -> ir.Model:
    """The float network with weights that are exactly the dequantized integers."""
    own = to_ir(model.graph).graph.opset_imports.get("", 0)
    float_model = to_ir(model.graph)
    for wanted in [opset] if opset is not None else range(min(13, own), own + 1):
        try:
            float_model = convert_opset(to_ir(model.graph), wanted)
            break
        except ProfileError:
            if wanted in (opset, own):
                raise
    for name, parameter in model.parameters.items():
        array = parameter.encoding.dequantize(parameter.codes)
        float_model.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    attach_facts(float_model, facts_of(model))
    return float_model


def _commands(graph: ir.Graph) -> str:
    """The commands that turn the files into a quantized DLC."""
    inputs = []
    for value in graph.inputs:
        sizes = [] if value.shape is None else [str(size) if isinstance(size, int) else "1" for size in value.shape]
        inputs.append(f"    --input_dim {shlex.quote(str(value.name))} {','.join(sizes)} \\\n")
    return (
        "#!/bin/sh\n"
        "# Turns model.onnx and model.encodings into a quantized DLC. Run it here, in a shell in which the\n"
        "# Qualcomm Neural Processing SDK is set up. The batch size must be 1 to quantize.\n"
        "set -e\n"
        "snpe-onnx-to-dlc \\\n"
        "    --input_network model.onnx \\\n"
        f"{''.join(inputs)}"
        "    --quantization_overrides model.encodings \\\n"
        "    --output_path model_float.dlc\n"
        "# Every range comes from model.encodings; --override_params makes the tool keep them. It wants an input\n"
        "# all the same: input_list.txt names one raw float32 file in the layout that snpe-dlc-info shows.\n"
        "snpe-dlc-quantize \\\n"
        "    --input_dlc model_float.dlc \\\n"
        "    --input_list input_list.txt \\\n"
        "    --override_params \\\n"
        "    --bias_bitwidth 32 \\\n"
        "    --output_dlc model.dlc\n"
    )


def _read_device_files(directory: Path) -> RecoveredEncodings:
    """Recover encodings and integers from the float model and the encodings file."""
    float_path = directory / FLOAT_FILE
    float_model = load_ir(float_path)
    facts = read_facts(float_model, str(float_path))
    graph = to_ir(to_proto(float_model)).graph
    document = aimet_encodings.from_json(read_text(directory / ENCODINGS_FILE), str(directory / ENCODINGS_FILE))
    weights = {name: fact for name, fact in facts.parameters.items() if not _is_bias(fact)}
    for section, expected in (
        (document.activation_encodings, facts.activations),
        (document.param_encodings, weights),
    ):
        differing = sorted(set(section) ^ set(expected))
        if differing:
            raise ValidationError("is in only one of model.onnx and model.encodings", where=differing[0])
    activations = {
        name: _narrowed(name, aimet_encodings.decode(document.activation_encodings[name], axis=None, name=name), fact)
        for name, fact in facts.activations.items()
    }
    _check_ranges(graph, activations)
    parameters: dict[str, tuple[NDArray[np.int32] | None, Encoding]] = {}
    for name, fact in weights.items():
        parameters[name] = _read_weight(graph, name, document.param_encodings[name], fact)
    weight_encodings = {name: encoding for name, (_, encoding) in parameters.items()}
    for name, fact in facts.parameters.items():
        if _is_bias(fact):
            parameters[name] = _read_bias(graph, name, fact, activations, weight_encodings)
    return RecoveredEncodings(activations, {name: parameters[name] for name in facts.parameters})


def _check_network(model: QuantizedModel, path: Path) -> None:
    """The float model must be the network of the proof model, in the lower of their opsets."""
    found = load_ir(path)
    opset = min(found.graph.opset_imports.get("", 0), to_ir(model.graph).graph.opset_imports.get("", 0))
    expected = _float_model(model, opset)
    difference = first_difference(expected.graph, convert_opset(to_ir(to_proto(found)), opset).graph)
    if difference is not None:
        raise ValidationError("is another one in the proof model", where=f"{path}: {difference}")


def _check_ranges(graph: ir.Graph, activations: dict[str, Encoding]) -> None:
    """A range that ends early must follow from the operations, as the encodings file cannot say it."""
    bounds = bounds_before_quantization(graph, activations)
    for name, encoding in activations.items():
        if name not in bounds:
            raise ValidationError("has an encoding but is no tensor of the float model", where=name)
        if not implied(encoding, bounds[name], widest=_whole_range(encoding.bits, signed=encoding.signed)):
            raise ValidationError("nothing in the float model keeps its codes inside their range", where=name)


def _narrowed(name: str, grid: Encoding, facts: EncodingFacts) -> Encoding:
    """Bring an unsigned full-range encoding to the storage and range of the model."""
    if grid.bits != facts.bits:
        raise ValidationError(f"has {grid.bits} bits in the encodings and {facts.bits} in the model", where=name)
    stored = grid.stored_as(signed=facts.signed)
    if not stored.q_min <= facts.q_min <= facts.q_max <= stored.q_max:
        raise ValidationError(f"range [{facts.q_min}, {facts.q_max}] leaves its width", where=name)
    try:
        return Encoding(
            stored.scale, stored.zero_point, facts.q_min, facts.q_max, stored.bits, stored.signed, stored.axis
        )
    except ValueError as error:
        raise ValidationError(str(error), where=name) from error


def _read_weight(
    graph: ir.Graph, name: str, entries: list[aimet_encodings.AimetEncoding], facts: EncodingFacts
) -> tuple[NDArray[np.int32], Encoding]:
    """Quantize a float weight again, as the device's tools will, and insist that nothing is lost."""
    array = _float_parameter(graph, name)
    axis = weight_channel_axis(graph.initializers[name])
    if facts.axis not in (None, axis):
        raise ValidationError(f"has its scales on axis {facts.axis}, its layer needs axis {axis}", where=name)
    encoding = _narrowed(name, aimet_encodings.decode(entries, axis=facts.axis, name=name), facts)
    if facts.axis is not None and (facts.axis >= array.ndim or array.shape[facts.axis] != len(entries)):
        raise ValidationError(f"{len(entries)} entries do not fit shape {array.shape}", where=name)
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
