"""Exporter ``tensorrt``: a QDQ ONNX under TensorRT's rules for explicit quantization.

int8 with zero-point 0 everywhere, one scale per activation, weights with one scale or one per output channel,
float biases, and nothing between a Q and its DQ. Sources: TensorRT documentation, Working with Quantized Types;
NVIDIA/Model-Optimizer, modelopt/onnx/quantization; NVIDIA/TensorRT, issues 1694 and 2380 (ConvTranspose).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from pydantic import Field

from eqdeploy.errors import ProfileError, ValidationError
from eqdeploy.exporters.contract import RecoveredEncodings
from eqdeploy.exporters.files import read_text, write_model, write_text
from eqdeploy.exporters.float_graph import bounds_before_quantization, implied, to_ir, weight_channel_axis
from eqdeploy.exporters.float_sidecar import write_float_model
from eqdeploy.exporters.metadata import attach_facts, facts_of
from eqdeploy.exporters.model_checks import check_model
from eqdeploy.exporters.onnx_qdq import MODEL_FILE
from eqdeploy.exporters.options import ExporterOptions, parse_options
from eqdeploy.exporters.qdq_graph import build_qdq, float_ir
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.plan import BiasFormat, DevicePlan
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.form import Form, Symmetry
from eqdeploy.quantized_model import QuantizedModel, QuantizedParameter

FLOAT_FILE = "tensorrt/model.onnx"
CACHE_FILE = "tensorrt/calibration.cache"

#: First line of a calibration cache: version and kind of calibrator.
_CACHE_HEADER = "TRT-8601-EntropyCalibration2"
_INT8 = (-128, 127)


class TensorRtOptions(ExporterOptions):
    """Options of the exporter.

    Attributes:
        opset: ONNX opset; 13 is the first with per-channel scales, 25 the newest that TensorRT 11 reads.
        calibration_cache: Also write a float model and a calibration cache, for builds with implicit
            quantization (older TensorRT, DLA), where the weights are TensorRT's own.
    """

    opset: int = Field(default=21, ge=13, le=25)
    calibration_cache: bool = False


class TensorRtExporter:
    """Writes and reads the QDQ model for TensorRT."""

    name = "tensorrt"

    def describe(self) -> str:
        """What the exporter writes and what its format cannot hold."""
        return (
            "A QDQ ONNX for TensorRT: signed 8-bit integers with zero-point 0, float biases, no Clip between Q and "
            "DQ, so an activation uses all 8 bits unless an operation before it (ReLU6) keeps its codes in a "
            "narrower range. Weights may use fewer bits. A ConvTranspose has one scale for its weight, as its kernels "
            "take none per output channel."
        )

    def check_options(self, options: Mapping[str, object]) -> None:
        """Check options; see :meth:`eqdeploy.exporters.contract.EarlyChecks.check_options`."""
        parse_options(TensorRtOptions, options, self.name)

    def check_plan(self, plan: DevicePlan, options: Mapping[str, object]) -> None:
        """Check biases, signs and symmetry; see :meth:`eqdeploy.exporters.contract.EarlyChecks.check_plan`."""
        if plan.bias is BiasFormat.INT32:
            raise _integer_bias("bias")
        for tensor in plan.tensors:
            if tensor.device is not None:
                _check_form(tensor.tensor, tensor.device, "activations")
        for weight in plan.weights:
            _check_form(weight.layer, weight.device, "weights")

    def export(self, model: QuantizedModel, directory: Path, options: Mapping[str, object]) -> tuple[str, ...]:
        """Write all files; see :meth:`eqdeploy.exporters.contract.Exporter.export`."""
        parsed = parse_options(TensorRtOptions, options, self.name)
        threshold = parsed.external_data_threshold
        graph = to_ir(model.graph).graph
        check_model(model, graph)
        _check_rules(model, graph)
        cache = _cache(model) if parsed.calibration_cache else None
        qdq = build_qdq(_saturating(model), parsed.opset)
        attach_facts(qdq.model, facts_of(model, qdq.dropped_clips))
        files = write_model(qdq.model, directory, MODEL_FILE, external_data_threshold=threshold)
        if cache is not None:
            float_model = float_ir(model, parsed.opset)
            files += write_float_model(float_model, directory, FLOAT_FILE, external_data_threshold=threshold)
            files += (write_text(cache, directory, CACHE_FILE),)
        return files

    def read(self, directory: Path) -> RecoveredEncodings:
        """Recover every encoding from ``model.onnx``; a calibration cache must hold the same scales."""
        model = read_model(directory / MODEL_FILE)
        try:
            _check_rules(model, to_ir(model.graph).graph)
        except ProfileError as error:
            raise ValidationError(error.message, where=f"{directory / MODEL_FILE}: {error.where}") from error
        if (directory / CACHE_FILE).exists():
            _check_cache(model, directory / CACHE_FILE)
        return RecoveredEncodings.of(model)


def _check_rules(model: QuantizedModel, graph: ir.Graph) -> None:
    """Refuse what TensorRT does not accept, naming the tensor and the key of the profile."""
    bounds = bounds_before_quantization(graph, {name: tensor.encoding for name, tensor in model.activations.items()})
    for name, tensor in model.activations.items():
        _check_storage(name, tensor.encoding, "activations")
        if tensor.encoding.axis is not None:
            raise ProfileError("TensorRT activations have one scale", where=name, hint="set granularity: per_tensor")
        if not implied(tensor.encoding, bounds[name], widest=_INT8):
            raise ProfileError(
                f"its codes end at [{tensor.encoding.q_min}, {tensor.encoding.q_max}], which needs a Clip between Q "
                "and DQ that TensorRT does not take",
                where=name,
                hint="set activations.bits: 8 and the full range",
            )
    for name, parameter in model.parameters.items():
        _check_parameter(name, parameter, graph.initializers[name])


def _check_parameter(name: str, parameter: QuantizedParameter, value: ir.Value) -> None:
    """Check one weight."""
    encoding = parameter.encoding
    if encoding.bits > 8:
        raise _integer_bias(name)
    _check_storage(name, encoding, "weights")
    if encoding.axis is None:
        return
    if any(use.node.op_type == "ConvTranspose" for use in value.uses()):
        raise ProfileError(
            "TensorRT takes no scale per output channel of a ConvTranspose",
            where=name,
            hint="set weights.operators.conv_transpose: {granularity: per_tensor, batch_norm: requantize}",
        )
    axis = weight_channel_axis(value)
    if encoding.axis != axis:
        raise ProfileError(
            f"has its scales on axis {encoding.axis}; TensorRT takes the output channels, here axis {axis}", where=name
        )


def _integer_bias(where: str) -> ProfileError:
    return ProfileError("TensorRT does not quantize biases", where=where, hint="set bias: float")


def _check_form(name: str, form: Form, section: str) -> None:
    """Integers must be signed, and their grid must have zero-point 0 whatever the values."""
    _check_signed(name, section, signed=form.signed)
    if form.symmetry is Symmetry.ASYMMETRIC:
        raise ProfileError(
            "an asymmetric grid has a zero-point, and TensorRT's is 0",
            where=name,
            hint=f"set {section} symmetry: symmetric",
        )


def _check_signed(name: str, section: str, *, signed: bool) -> None:
    if not signed:
        raise ProfileError("TensorRT integers are signed", where=name, hint=f"set {section} storage: signed")


def _check_storage(name: str, encoding: Encoding, section: str) -> None:
    """Integers must be signed with zero-point 0."""
    _check_signed(name, section, signed=encoding.signed)
    if bool(np.any(encoding.zero_point)):
        raise ProfileError(
            f"zero-point {int(np.max(np.abs(encoding.zero_point)))} is not 0",
            where=name,
            hint=f"set {section} symmetry: symmetric",
        )


def _saturating(model: QuantizedModel) -> QuantizedModel:
    """The same grids over the whole of int8, where Q saturates by itself; no code changes, as was checked."""
    return replace(
        model,
        activations={
            name: replace(tensor, encoding=replace(tensor.encoding, q_min=_INT8[0], q_max=_INT8[1], bits=8))
            for name, tensor in model.activations.items()
        },
    )


def _cache(model: QuantizedModel) -> str:
    """A calibration cache: one line per tensor with the big-endian bits of its float32 scale."""
    lines = [_CACHE_HEADER]
    for name, tensor in model.activations.items():
        if ":" in name or any(character.isspace() for character in name):
            raise ProfileError("a calibration cache cannot hold this tensor name", where=name)
        lines.append(f"{name}: {struct.pack('>f', float(tensor.encoding.scale)).hex()}")
    return "\n".join(lines) + "\n"


def _check_cache(model: QuantizedModel, path: Path) -> None:
    """Check that a calibration cache belongs to the model."""
    if read_text(path) != _cache(model):
        raise ValidationError("does not hold the scales of model.onnx", where=str(path))
