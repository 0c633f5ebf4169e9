"""Freeze a calibrated subnet under a plan: compute every number that a device gets, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from eqdeploy.calibration.measured import MeasuredRanges, Range
from eqdeploy.errors import ProfileError, ValidationError
from eqdeploy.freeze.affine import channel_affine, to_numpy
from eqdeploy.freeze.float_graph import FloatGraph, without_nodes
from eqdeploy.freeze.folding import ChannelAffine, fit_bias, fold, next_power_of_two
from eqdeploy.freeze.masks import make_masks_finite
from eqdeploy.freeze.ranges import search_ranges, trained_encoding
from eqdeploy.network import LayerInfo, OpKind, TensorInfo
from eqdeploy.plan import BiasFormat, DevicePlan, EncodingSource, TensorPlan
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import FoldedLayer, QuantizedModel, QuantizedParameter, QuantizedTensor
from eqdeploy.supernet.supernet import Supernet

_INT32 = np.iinfo(np.int32)
#: Larger gains and biases leave float32 once they are multiplied by scales.
_LARGEST_GAIN = 2.0**40


@dataclass(frozen=True)
class _FrozenLayer:
    """All parameters of one layer."""

    weight: QuantizedParameter
    bias: QuantizedParameter | None
    float_bias: NDArray[np.float32] | None
    report: FoldedLayer


def freeze(supernet: Supernet, plan: DevicePlan, graph: FloatGraph, samples: Mapping[str, Tensor]) -> QuantizedModel:
    """Search the ranges that training did not fix, and turn the active, calibrated subnet into integers.

    Args:
        supernet: As for :func:`freeze_measured`.
        plan: What the device wants.
        graph: Structure of this supernet.
        samples: Values of the tensors of :func:`tensors_to_calibrate`.

    Raises:
        ProfileError: See :func:`freeze_measured`.
        ValidationError: See :func:`freeze_measured`.
    """
    return freeze_measured(supernet, plan, graph, search_ranges(supernet, plan, samples))


def freeze_measured(
    supernet: Supernet, plan: DevicePlan, graph: FloatGraph, measured: MeasuredRanges
) -> QuantizedModel:
    """Turn the active, calibrated subnet into integers: the same ones on every processor.

    Args:
        supernet: With ``plan.subnet`` active and BatchNorm calibrated.
        plan: What the device wants.
        graph: Structure of this supernet, from :func:`eqdeploy.freeze.float_graph.export_float_graph`.
        measured: The encodings that depend on calibration images.

    Raises:
        ProfileError: If a layer reads a tensor without encoding but the device wants an integer bias.
        ValidationError: If a number of a layer is not finite or leaves float32.
    """
    notes = list(measured.notes)
    encodings = _activation_encodings(supernet, plan, measured, notes)
    layers = [
        _freeze_layer(supernet, layer, plan, encodings.get(layer.input_tensor)) for layer in supernet.network.layers
    ]
    values = _other_values(supernet, graph)
    for layer in layers:
        values[layer.weight.name] = layer.weight.encoding.dequantize(layer.weight.codes)
        if layer.bias is not None:
            values[layer.bias.name] = layer.bias.encoding.dequantize(layer.bias.codes)
        elif layer.float_bias is not None:
            values[layer.weight.name.removesuffix("weight") + "bias"] = layer.float_bias
    parameters = [layer.weight for layer in layers] + [layer.bias for layer in layers if layer.bias is not None]
    merged = {tensor.merged_copy: tensor.tensor for tensor in plan.tensors if tensor.merged_copy is not None}
    activations = {
        tensor.tensor: QuantizedTensor(tensor.tensor, encodings[tensor.tensor], frozenset(tensor.float_readers))
        for tensor in plan.tensors
        if tensor.tensor in encodings and tensor.tensor not in merged
    }
    return QuantizedModel(
        graph=make_masks_finite(without_nodes(graph.filled(values), merged), activations),
        activations=activations,
        parameters={parameter.name: parameter for parameter in parameters},
        coverage={tensor.tensor: tensor.coverage for tensor in plan.tensors},
        reasons={tensor.tensor: tensor.reason for tensor in plan.tensors},
        folded=tuple(layer.report for layer in layers),
        notes=tuple(notes),
    )


def _activation_encodings(
    supernet: Supernet, plan: DevicePlan, measured: MeasuredRanges, notes: list[str]
) -> dict[str, Encoding]:
    """Encodings of all tensors that carry one, in network order; merged copies have that of their tensor."""
    owners = _owner_encodings(supernet, plan, measured)
    for name, encoding in owners.items():
        if plan.tensor[name].source is not EncodingSource.FIXED:
            owners[name] = _at_least(encoding, plan, name, notes)
    encodings: dict[str, Encoding] = {}
    for tensor in plan.tensors:
        if tensor.source is not EncodingSource.NONE:
            owner = tensor.shares_with if tensor.source is EncodingSource.SHARED else tensor.tensor
            assert owner is not None  # promised by the plan
            encodings[tensor.tensor] = _clipped(owners[owner], supernet.network.tensor[tensor.tensor])
            if tensor.merged_copy is not None:
                encodings[tensor.merged_copy] = encodings[tensor.tensor]
    return encodings


def _owner_encodings(supernet: Supernet, plan: DevicePlan, measured: MeasuredRanges) -> dict[str, Encoding]:
    """Encodings of the tensors that have one of their own: trained, calibrated or fixed."""
    owners: dict[str, Encoding] = {}
    for tensor in plan.tensors:
        found = measured.ranges.get(tensor.tensor)
        if tensor.source is EncodingSource.TRAINED:
            encoding = trained_encoding(supernet, tensor)
            owners[tensor.tensor] = encoding if found is None else _at(encoding, found)
        elif tensor.source is EncodingSource.CALIBRATED:
            assert found is not None  # every calibrated tensor was measured
            assert tensor.device is not None  # promised by the plan
            form = tensor.device
            owners[tensor.tensor] = Encoding.per_tensor(
                found.scale, found.zero_point, form.q_min, form.q_max, form.bits, signed=form.signed
            )
        elif tensor.source is EncodingSource.FIXED:
            owners[tensor.tensor] = _fixed(tensor)
    return owners


def _at(encoding: Encoding, found: Range) -> Encoding:
    """An encoding with a measured scale and zero-point."""
    return replace(
        encoding,
        scale=np.asarray(found.scale, dtype=np.float32),
        zero_point=np.asarray(found.zero_point, dtype=np.int32),
    )


def _fixed(tensor: TensorPlan) -> Encoding:
    """A prescribed encoding."""
    assert tensor.fixed is not None  # promised by the plan
    assert tensor.device is not None
    form = tensor.device
    return Encoding.per_tensor(
        tensor.fixed.scale, tensor.fixed.zero_point, form.q_min, form.q_max, form.bits, signed=form.signed
    )


def _at_least(encoding: Encoding, plan: DevicePlan, name: str, notes: list[str]) -> Encoding:
    """Raise a scale to the smallest one that the device accepts."""
    minimum = plan.minimum_scale
    if plan.power_of_two_scales and minimum > 0:
        minimum = float(next_power_of_two(np.asarray(minimum)))
    if minimum <= 0 or float(encoding.scale) >= minimum:
        return encoding
    notes.append(f"{name}: scale {float(encoding.scale):.3g} raised to the device's minimum {minimum:.3g}")
    scale = np.float32(minimum)
    scale = scale if float(scale) >= minimum else np.nextafter(scale, np.float32(np.inf))
    return replace(encoding, scale=np.asarray(scale, dtype=np.float32))


def _clipped(encoding: Encoding, tensor: TensorInfo) -> Encoding:
    """End the range where a clip before the quantizer ends: min(x, c) and rounding commute."""
    if tensor.op is not OpKind.CLIP or tensor.upper_bound is None:
        return encoding
    zero_point = int(encoding.zero_point)
    bound = float(np.rint(np.float32(tensor.upper_bound) / encoding.scale)) + zero_point
    return replace(encoding, q_max=int(max(min(encoding.q_max, bound), zero_point)))


def _freeze_layer(supernet: Supernet, layer: LayerInfo, plan: DevicePlan, source: Encoding | None) -> _FrozenLayer:
    """Fold and quantize one layer."""
    module = supernet.graph_module.get_submodule(layer.name)
    weight_plan = plan.weight[layer.name]
    weight = to_numpy(module.weight)
    affine = _channel_affine(supernet, layer)
    folded = fold(
        weight,
        supernet.weight_quantizer(layer.name).encoding(weight_plan.trained),
        affine,
        layer,
        weight_plan,
        power_of_two=plan.power_of_two_scales,
    )
    has_bias = layer.batch_norm is not None or getattr(module, "bias", None) is not None
    inside = has_bias and _takes_integer_bias(supernet, layer)
    integer_bias = plan.bias is BiasFormat.INT32 and inside
    name = f"{layer.name}.bias"
    bias: QuantizedParameter | None = None
    if inside and source is not None:
        # A float bias, too: runtimes round it to the accumulator's grid when they fuse the layer.
        folded = fit_bias(folded, layer, affine.shift, float(source.scale), power_of_two=plan.power_of_two_scales)
    if integer_bias:
        if source is None:
            raise ProfileError(
                f"an int32 bias needs an encoding of the layer's input {layer.input_tensor!r}",
                where=f"{plan.profile}: {layer.name}",
                hint="set bias.format to float or let operator inputs carry encodings",
            )
        bias = _integer_bias(name, folded.encoding, affine.shift, source, layer)
    return _FrozenLayer(
        weight=QuantizedParameter(f"{layer.name}.weight", folded.codes, folded.encoding),
        bias=bias,
        float_bias=affine.shift.astype(np.float32) if has_bias and bias is None else None,
        report=folded.report,
    )


def _takes_integer_bias(supernet: Supernet, layer: LayerInfo) -> bool:
    """Whether ONNX adds the bias inside the layer; on inputs of rank 3 and more a Linear is MatMul, then Add."""
    return layer.op is not OpKind.LINEAR or len(supernet.network.tensor[layer.input_tensor].shape) == 1


def _channel_affine(supernet: Supernet, layer: LayerInfo) -> ChannelAffine:
    """BatchNorm and bias of a layer as gain and shift, in float64.

    Raises:
        ValidationError: If BatchNorm makes one not finite or too large for float32.
    """
    affine = channel_affine(supernet, layer)
    if layer.batch_norm is None:
        return affine
    usable = (np.abs(affine.gain) < _LARGEST_GAIN) & (np.abs(affine.shift) < _LARGEST_GAIN)  # false for NaN
    if not usable.all():
        worst = int(np.argmin(usable))
        raise ValidationError(
            f"channel {worst} has gain {affine.gain[worst]:.3g} and bias {affine.shift[worst]:.3g} after calibration",
            where=layer.batch_norm,
            hint="its variance is zero or its parameters are damaged",
        )
    return affine


def _integer_bias(
    name: str, weight: Encoding, shift: NDArray[np.float64], source: Encoding, layer: LayerInfo
) -> QuantizedParameter:
    """Quantize a bias on the grid of the accumulator, s_x · s_w, which runtimes compute in float32."""
    scale = (source.scale * weight.scale).astype(np.float32)
    if weight.axis is not None and scale.size != shift.size:
        scale = np.tile(scale, layer.groups)
    codes = np.rint(shift / scale.astype(np.float64)).clip(_INT32.min, _INT32.max)
    encoding = Encoding(
        scale=scale,
        zero_point=np.zeros(scale.shape, dtype=np.int32),
        q_min=int(_INT32.min),
        q_max=int(_INT32.max),
        bits=32,
        signed=True,
        axis=0 if scale.ndim else None,
    )
    return QuantizedParameter(name, codes.astype(np.int32), encoding)


def _other_values(supernet: Supernet, graph: FloatGraph) -> dict[str, NDArray[Any]]:
    """Current values of parameters that stay float, such as those of a BatchNorm that cannot be folded."""
    known = set(graph.initializer_names)
    return {name: to_numpy(value) for name, value in supernet.graph_module.state_dict().items() if name in known}
