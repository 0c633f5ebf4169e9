"""Kit for formats that are a float model beside a file of encodings: what is written.

SNPE and QNN, NCNN, RKNN, MNN and Ascend take a network this way: a float model whose weights lie on their grids, and a
*side file* that gives scale and zero-point of each tensor by name. An exporter of such a format needs only to say in
which words its side file puts a :class:`Grid`:

* :class:`SideFileRules` refuses plans and models that such a format cannot hold;
* :func:`float_model` makes the float network, the real values of the integers in place of its weights, and
  :func:`write_float_model` writes it;
* :class:`SideFile` has the grid of each tensor that belongs into the side file;
* :func:`eqdeploy.exporters.float_sidecar_reader.read_float_model` recovers every integer from the two files.

docs/adding-an-exporter.md builds an exporter with it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from eqdeploy.errors import ProfileError, ValidationError
from eqdeploy.exporters.files import write_model
from eqdeploy.exporters.float_graph import (
    bounds_before_quantization,
    expected_bias_scales,
    implied,
    to_ir,
    weight_channel_axis,
)
from eqdeploy.exporters.metadata import EncodingFacts, attach_facts, facts_of
from eqdeploy.exporters.model_checks import check_model
from eqdeploy.exporters.opset import OPSETS, convert_opset
from eqdeploy.large_models import data_bytes
from eqdeploy.plan import DevicePlan
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.form import Form, Symmetry
from eqdeploy.quantized_model import QuantizedModel


def is_integer_bias(encoding: Encoding | EncodingFacts) -> bool:
    """Whether a parameter is an integer bias, whose scale follows from its layer and stands in no side file."""
    return encoding.bits > 8


def whole_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """First and last code of a width.

    >>> whole_range(8, signed=True)
    (-128, 127)
    """
    half = 1 << (bits - 1)
    return (-half, half - 1) if signed else (0, 2 * half - 1)


@dataclass(frozen=True)
class Grid:
    """What a side file says about one tensor: ``real = scale * (code - zero_point)`` over every code of a width.

    Side files name no channel axis (it is that of the output channels) and no range that ends early (it follows from
    the float model); the reader takes both from there.

    Attributes:
        scales: One scale, or one for each output channel; float32 numbers.
        zero_points: As many zero-points.
        bits: Width of the codes, 1 to 32; :meth:`encoding` refuses others.
        signed: Whether the codes are signed.
        per_channel: Whether scales are those of channels, also where there is only one.
    """

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    bits: int
    signed: bool
    per_channel: bool

    @staticmethod
    def of(encoding: Encoding, *, signed: bool | None = None) -> Grid:
        """Take the grid from an encoding.

        Args:
            encoding: Encoding of a tensor.
            signed: Storage in which the format counts; codes and zero-points move there. None keeps the encoding's.
        """
        stored = encoding.stored_as(signed=encoding.signed if signed is None else signed)
        return Grid(
            scales=tuple(stored.scale.reshape(-1).tolist()),
            zero_points=tuple(stored.zero_point.reshape(-1).tolist()),
            bits=stored.bits,
            signed=stored.signed,
            per_channel=stored.axis is not None,
        )

    @property
    def is_symmetric(self) -> bool:
        """Whether every zero-point is the middle of the codes: 0, or ``2^(bits-1)`` of unsigned ones."""
        middle = 0 if self.signed else 1 << max(self.bits - 1, 0)
        return all(zero_point == middle for zero_point in self.zero_points)

    def encoding(self, axis: int | None, name: str) -> Encoding:
        """The encoding over the whole range of the width.

        Args:
            axis: Channel axis, None for a tensor with one scale.
            name: Tensor name for messages.

        Raises:
            ValidationError: If there is more than one scale without an axis, a scale is no positive float32 number, or
                the width or a zero-point is impossible.
        """
        count = len(self.scales)
        if axis is None and (count != 1 or self.per_channel):
            raise ValidationError(f"{count} entries for a tensor with one scale", where=name)
        if not 1 <= self.bits <= 32 or len(self.zero_points) != count:
            raise ValidationError(f"{self.bits} bits, {count} scales, {len(self.zero_points)} zero-points", where=name)
        with np.errstate(over="ignore"):
            exact = np.array(self.scales, np.float64).astype(np.float32)
        if exact.astype(np.float64).tolist() != list(self.scales):
            raise ValidationError("a scale is not a float32 number", where=name)
        q_min, q_max = whole_range(self.bits, signed=self.signed)
        shape = () if axis is None else (count,)
        try:
            zero_points = np.array(self.zero_points, np.int32).reshape(shape)
            return Encoding(exact.reshape(shape), zero_points, q_min, q_max, self.bits, self.signed, axis)
        except (ValueError, OverflowError) as error:
            raise ValidationError(str(error), where=name) from error


@dataclass(frozen=True)
class SideFile:
    """Content of a side file, whatever its syntax.

    Attributes:
        activations: Grids by name of the tensor in the float model.
        weights: Grids by name of the initializer in the float model; biases have none.
    """

    activations: Mapping[str, Grid]
    weights: Mapping[str, Grid]

    @staticmethod
    def of(model: QuantizedModel, *, signed: bool | None = None) -> SideFile:
        """All grids of a model, in alphabetical order: the model that is read back may have another.

        Args:
            model: The frozen network.
            signed: Storage in which the format counts; None keeps that of each tensor.
        """
        activations = {name: tensor.encoding for name, tensor in model.activations.items()}
        parameters = {name: parameter.encoding for name, parameter in model.parameters.items()}
        weights = {name: encoding for name, encoding in parameters.items() if not is_integer_bias(encoding)}
        return SideFile(
            activations={name: Grid.of(activations[name], signed=signed) for name in sorted(activations)},
            weights={name: Grid.of(weights[name], signed=signed) for name in sorted(weights)},
        )


@dataclass(frozen=True)
class SideFileRules:
    """What a device with a side file takes. All such devices have one buffer and one scale for each activation.

    Attributes:
        device: Name of the device or its SDK, for messages.
        activation_bits: Narrowest and widest activation.
        weight_bits: Narrowest and widest weight.
        symmetric_activations: Whether zero must be the middle of the codes of every activation.
        symmetric_weights: The same for weights.
        bits_hint: What to do about a width that is refused.
    """

    device: str
    activation_bits: tuple[int, int] = (1, 8)
    weight_bits: tuple[int, int] = (1, 8)
    symmetric_activations: bool = False
    symmetric_weights: bool = False
    bits_hint: str = "choose another width"

    def check_plan(self, plan: DevicePlan) -> None:
        """Refuse a plan before images are read; see :meth:`eqdeploy.exporters.contract.EarlyChecks.check_plan`.

        Raises:
            ProfileError: Names the layer or tensor and the key of the profile.
        """
        for tensor in plan.tensors:
            if tensor.device is not None:
                self._check_bits(tensor.tensor, tensor.device.bits, "activations")
                self._check_symmetry(tensor.tensor, "activations", is_symmetric=_is_symmetric(tensor.device))
                self._check_readers(tensor.tensor, tensor.float_readers)
        for weight in plan.weights:
            self._check_bits(weight.layer, weight.device.bits, "weights")
            self._check_symmetry(weight.layer, "weights", is_symmetric=_is_symmetric(weight.device))

    def check_model(self, model: QuantizedModel) -> None:
        """Refuse a model that contradicts itself, or that a float model and a side file cannot hold.

        Raises:
            ValidationError: If the model contradicts itself.
            ProfileError: If the format cannot hold it; names the tensor and what to change.
        """
        graph = to_ir(model.graph).graph
        check_model(model, graph)
        encodings = {name: tensor.encoding for name, tensor in model.activations.items()}
        parameters = {name: parameter.encoding for name, parameter in model.parameters.items()}
        bounds = bounds_before_quantization(graph, encodings)
        for name, tensor in model.activations.items():
            self._check_activation(name, tensor.encoding)
            self._check_readers(name, tensor.float_readers)
            self._check_range(name, tensor.encoding, bounds[name])
        for name, encoding in parameters.items():
            if not is_integer_bias(encoding):
                self._check_weight(name, encoding, weight_channel_axis(graph.initializers[name]))
            elif not expected_bias_scales(graph.initializers[name], encodings, parameters):
                raise ProfileError(
                    f"an integer bias of {self.device} counts in units of input scale times weight scale, and its "
                    "layer has none",
                    where=name,
                    hint="set bias: float, or encode the layer's input",
                )

    def _check_activation(self, name: str, encoding: Encoding) -> None:
        self._check_bits(name, encoding.bits, "activations")
        self._check_symmetry(name, "activations", is_symmetric=Grid.of(encoding).is_symmetric)
        if encoding.axis is not None:
            raise ProfileError(
                f"activations of {self.device} have one scale", where=name, hint="set granularity per_tensor"
            )

    def _check_weight(self, name: str, encoding: Encoding, channel_axis: int | None) -> None:
        self._check_bits(name, encoding.bits, "weights")
        self._check_symmetry(name, "weights", is_symmetric=Grid.of(encoding).is_symmetric)
        if encoding.axis is not None and encoding.axis != channel_axis:
            raise ProfileError(
                f"has its scales on axis {encoding.axis}; the file for {self.device} names no axis and means axis "
                f"{channel_axis}, that of the output channels",
                where=name,
            )

    def _check_bits(self, name: str, bits: int, section: str) -> None:
        narrowest, widest = self.activation_bits if section == "activations" else self.weight_bits
        if not narrowest <= bits <= widest:
            raise ProfileError(
                f"has {bits} bits; the file for {self.device} holds {narrowest} to {widest}",
                where=f"{section}.bits: {name}",
                hint=self.bits_hint,
            )

    def _check_symmetry(self, name: str, section: str, *, is_symmetric: bool) -> None:
        required = self.symmetric_activations if section == "activations" else self.symmetric_weights
        if required and not is_symmetric:
            raise ProfileError(
                f"has a zero-point of its own, and the file for {self.device} has no place for one",
                where=name,
                hint=f"set {section} symmetry: symmetric",
            )

    def _check_readers(self, name: str, float_readers: Collection[str]) -> None:
        if float_readers:
            raise ProfileError(
                f"{', '.join(sorted(float_readers))} would read the float value of an encoded tensor, but a tensor of "
                f"{self.device} is one buffer",
                where=name,
                hint="set activations.encode: all",
            )

    def _check_range(self, name: str, encoding: Encoding, bounds: tuple[float, float]) -> None:
        if not implied(encoding, bounds, widest=whole_range(encoding.bits, signed=encoding.signed)):
            raise ProfileError(
                f"nothing in the network keeps its codes inside [{encoding.q_min}, {encoding.q_max}], and the file for "
                f"{self.device} always means all {1 << encoding.bits} codes",
                where=name,
                hint="use the full range of the width",
            )


def _is_symmetric(form: Form) -> bool:
    return form.symmetry is Symmetry.SYMMETRIC


def float_model(model: QuantizedModel, opset: int | None = None) -> ir.Model:
    """The float network with weights and biases that are exactly the real values of the integers.

    Tensors, nodes and initializers keep the names that the model gives them. Widths, ranges and axes, for which side
    files have no words, go into the metadata (:mod:`eqdeploy.exporters.metadata`), where readers check them.

    Args:
        model: The frozen network; it is left unchanged.
        opset: ONNX opset; None for the oldest, from 13 on, that can express the network.

    Raises:
        ProfileError: If an operation cannot be expressed in that opset.
    """
    own = to_ir(model.graph).graph.opset_imports.get("", 0)
    network = to_ir(model.graph)
    for wanted in [opset] if opset is not None else range(min(OPSETS[0], own), own + 1):
        try:
            network = convert_opset(to_ir(model.graph), wanted)
            break
        except ProfileError:
            if wanted in (opset, own):
                raise
    for name, parameter in model.parameters.items():
        array = parameter.encoding.dequantize(parameter.codes)
        network.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    attach_facts(network, facts_of(model))
    return network


def write_float_model(
    network: ir.Model, directory: Path, name: str, *, external_data_threshold: int
) -> tuple[str, ...]:
    """Check a float network completely and write it; see :func:`eqdeploy.exporters.files.write_model`.

    The model that is read back has its constants in another order. In one file that is no difference; beside it, the
    order decides which bytes stand where, so constants that move out are sorted by name.

    Args:
        network: The network; its constants may be put into another order.
        directory: Root of the export.
        name: Path of the file relative to it.
        external_data_threshold: Bytes of tensor data from which on the tensors go to ``<name>.data``.

    Returns:
        Paths of the files written, relative to ``directory``.

    Raises:
        ValidationError: If the ONNX checker or shape inference finds a fault.
        OutputError: If a file cannot be written.
    """
    if data_bytes(network) >= external_data_threshold:
        initializers = network.graph.initializers
        for key in sorted(initializers):
            network.graph.register_initializer(initializers.pop(key))
    return write_model(network, directory, name, external_data_threshold=external_data_threshold)
