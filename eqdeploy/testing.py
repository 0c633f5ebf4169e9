"""Tests that every exporter must pass, and small frozen networks to run them on.

A package that registers an exporter inherits :class:`ExporterContract` in its own tests; pytest does the rest.
Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from eqdeploy.errors import EqDeployError, ProfileError
from eqdeploy.exporters.comparison import same_model
from eqdeploy.exporters.contract import (
    EarlyChecks,
    Exporter,
    RecoveredEncodings,
    check_round_trip,
    export_checked,
    get_exporter,
)
from eqdeploy.exporters.onnx_qdq import MODEL_FILE, read_model
from eqdeploy.plan import BiasFormat, Coverage
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quantized_model import QuantizedModel, QuantizedParameter, QuantizedTensor, constant_name

#: Largest absolute value that the activations of a sample network are given codes for.
ACTIVATION_RANGE = 4.0

_WEIGHT = Form(8, Granularity.PER_CHANNEL, Symmetry.SYMMETRIC, signed=True)
_ACTIVATION = Form(8, Granularity.PER_TENSOR, Symmetry.ASYMMETRIC, signed=False)


@dataclass(frozen=True)
class SampleForms:
    """Forms that a sample network uses throughout.

    Attributes:
        weight: Form of every weight; ``signed`` says how its integers are stored.
        activation: Form of every activation. A non-negative one gets zero-point 0.
        bias: Integer or float biases.
        power_of_two: Scales that are powers of two make every float sum exact in any order, so that runtimes
            must agree in every code.
        transposed: Form of the weights of transposed convolutions; that of the others unless one is given.
    """

    weight: Form = _WEIGHT
    activation: Form = _ACTIVATION
    bias: BiasFormat = BiasFormat.INT32
    power_of_two: bool = False
    transposed: Form | None = None


@dataclass(eq=False)
class ModelBuilder:
    """Builds a small frozen network operation by operation; every method returns the name of the tensor it makes.

    Attributes:
        forms: Forms of weights, activations and biases.
        seed: Seed of the weights.
        encoded: Encodings given so far by tensor name.
    """

    forms: SampleForms = SampleForms()
    seed: int = 0
    encoded: dict[str, QuantizedTensor] = field(default_factory=dict)
    _nodes: list[onnx.NodeProto] = field(default_factory=list)
    _constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    _parameters: dict[str, QuantizedParameter] = field(default_factory=dict)
    _inputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def input(self, name: str, *shape: int) -> str:
        """Add a network input; ``shape`` is without the batch axis."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]))
        return name

    def node(self, name: str, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add any operation with one output."""
        self._nodes.append(helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: Any, dtype: type[np.generic] = np.float32) -> str:
        """Add a constant that is no quantized parameter."""
        self._constants[name] = np.asarray(values, dtype)
        return name

    def clip(self, name: str, source: str, low: float, high: float) -> str:
        """Add a float Clip, as ReLU6 becomes."""
        bounds = [self.constant(constant_name(name, index), bound) for index, bound in enumerate((low, high), start=1)]
        return self.node(name, "Clip", [source, *bounds])

    def layer(
        self, name: str, op_type: str, source: str, weight_shape: tuple[int, ...], *, bias: int = 0, **attributes: Any
    ) -> str:
        """Add a Conv, ConvTranspose, Gemm or MatMul with a quantized weight.

        Args:
            name: Tensor name; the parameters are ``<name>.weight`` and ``<name>.bias``.
            op_type: ONNX operation.
            source: Tensor that it reads.
            weight_shape: Shape of the weight as ONNX stores it.
            bias: Number of output channels of the bias, 0 for none.
            **attributes: ONNX attributes.
        """
        axis = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1, "Gemm": 1 - attributes.get("transB", 0)}[op_type]
        form = (self.forms.transposed if op_type == "ConvTranspose" else None) or self.forms.weight
        weight = self._weight(f"{name}.weight", weight_shape, axis, form)
        inputs = [source, weight.name]
        if bias:
            inputs.append(self._bias(f"{name}.bias", source, weight.encoding, bias))
        return self.node(name, op_type, inputs, **attributes)

    def drop(self, name: str) -> None:
        """Remove an operation again but keep its parameters, to read them in another way."""
        self._nodes = [node for node in self._nodes if node.name != name]

    def encode(
        self,
        name: str,
        *,
        non_negative: bool = False,
        upper_bound: float = np.inf,
        encoding: Encoding | None = None,
        float_readers: Sequence[str] = (),
    ) -> str:
        """Give a tensor an encoding.

        Args:
            name: The tensor.
            non_negative: Whether its range starts at a real zero.
            upper_bound: Where a ReLU6 ends the range.
            encoding: Use this one instead.
            float_readers: Operations that go on reading the float value.
        """
        made = self.activation_encoding(non_negative, upper_bound) if encoding is None else encoding
        self.encoded[name] = QuantizedTensor(name, made, frozenset(float_readers))
        return name

    def activation_encoding(self, non_negative: bool = False, upper_bound: float = np.inf) -> Encoding:
        """The encoding that :meth:`encode` gives."""
        form = self.forms.activation
        reach = min(ACTIVATION_RANGE, 1.15 * upper_bound)
        if form.signed:
            zero_point, steps = 0, max(form.q_max, 1)
        elif non_negative:
            zero_point, steps = 0, form.q_max
        else:  # even, because ONNX Runtime's integer Add breaks ties the other way at odd zero-points
            zero_point = (form.q_max // 2) // 2 * 2 if form.symmetry is Symmetry.ASYMMETRIC else (form.q_max + 1) // 2
            steps = max(form.q_max - zero_point, 1)
        scale = self._rounded(np.float32(reach / steps))
        grid = Encoding.per_tensor(float(scale), zero_point, form.q_min, form.q_max, form.bits, signed=form.signed)
        first, last = grid.quantize(np.array([0.0, upper_bound], np.float32)).tolist()
        if not np.isfinite(upper_bound):
            first = form.q_min
        return Encoding(grid.scale, grid.zero_point, first, last, form.bits, form.signed)

    def build(self, *outputs: str) -> QuantizedModel:
        """Finish the network; ``outputs`` are the tensors that it returns.

        Raises:
            onnx.checker.ValidationError: If the operations do not fit together.
        """
        constants = dict(self._constants)
        for parameter in self._parameters.values():
            constants[parameter.name] = parameter.encoding.dequantize(parameter.codes)
        graph = helper.make_graph(
            self._nodes,
            "network",
            self._inputs,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        onnx.checker.check_model(model, full_check=True)
        names = [info.name for info in self._inputs] + [node.output[0] for node in self._nodes]
        covered = {name: Coverage.QUANTIZED if name in self.encoded else Coverage.INSIDE_FUSED_GROUP for name in names}
        return QuantizedModel(
            graph=model,
            activations=dict(self.encoded),
            parameters=dict(self._parameters),
            coverage=covered,
            reasons=dict.fromkeys(names, "sample"),
        )

    def _weight(self, name: str, shape: tuple[int, ...], axis: int, form: Form) -> QuantizedParameter:
        """Make random codes and scales with which a layer keeps the variance of its input."""
        if name in self._parameters:
            return self._parameters[name]
        codes = self._random.integers(form.q_min, form.q_max, size=shape, endpoint=True, dtype=np.int32)
        fan_in = max(1, codes.size // shape[axis])
        spread = max(1.0, (form.q_max - form.q_min) / 3.5)
        base = np.float32(1.0 / (spread * np.sqrt(fan_in)))
        middle = (form.q_min + form.q_max + 1) // 2
        if form.granularity is Granularity.PER_TENSOR:
            factors, offsets = np.ones((), np.float32), np.zeros((), np.int32)
        else:
            factors = self._random.choice(np.array([0.5, 1.0, 2.0], np.float32), size=shape[axis])
            offsets = self._random.integers(-1, 1, size=shape[axis], endpoint=True, dtype=np.int32)
        if form.symmetry is Symmetry.SYMMETRIC:
            offsets, middle = np.zeros_like(offsets), 0 if form.signed else middle
        encoding = Encoding(
            scale=np.asarray(self._rounded(base) * factors, np.float32),
            zero_point=np.asarray(np.clip(middle + offsets, form.q_min, form.q_max), np.int32),
            q_min=form.q_min,
            q_max=form.q_max,
            bits=form.bits,
            signed=form.signed,
            axis=None if form.granularity is Granularity.PER_TENSOR else axis,
        )
        self._parameters[name] = QuantizedParameter(name, codes, encoding)
        return self._parameters[name]

    def _bias(self, name: str, source: str, weight: Encoding, channels: int) -> str:
        """Make a bias of the scale that the layer's input and weight prescribe."""
        real = self._random.normal(0, 0.1, size=channels).astype(np.float32)
        if self.forms.bias is BiasFormat.FLOAT or source not in self.encoded:
            return self.constant(name, np.round(real * 1024) / 1024)
        scale = np.asarray(self.encoded[source].encoding.scale * weight.scale, np.float32)
        if scale.ndim and scale.size != channels:
            scale = np.tile(scale, channels // scale.size)
        limits = np.iinfo(np.int32)
        axis = 0 if scale.ndim else None
        encoding = Encoding(scale, np.zeros(scale.shape, np.int32), int(limits.min), int(limits.max), 32, True, axis)
        self._parameters[name] = QuantizedParameter(name, encoding.quantize(real.astype(np.float64)), encoding)
        return name

    def _rounded(self, scale: np.float32) -> np.float32:
        """The scale, or the next power of two."""
        return np.float32(2.0 ** np.ceil(np.log2(scale))) if self.forms.power_of_two else np.float32(scale)


def sample_model(forms: SampleForms | None = None, *, seed: int = 0, skip_only: bool = False) -> QuantizedModel:
    """A residual network of a few thousand weights that uses every kind of encoding.

    It has an encoded input, Conv + ReLU, a depthwise Conv + ReLU6, a residual add with ReLU, max pooling, a concat
    whose parts share one encoding, a transposed convolution, global average pooling, and a Gemm whose output is
    encoded and returned.

    Args:
        forms: Forms of weights, activations and biases.
        seed: Seed of the weights.
        skip_only: Encode only what a layer or the skip branch of the add reads, as TensorRT wants.
    """
    b = ModelBuilder(forms or SampleForms(), seed)
    x = b.encode(b.input("x", 3, 8, 8))
    b.layer("stem", "Conv", x, (8, 3, 3, 3), bias=8, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    stem = b.encode(b.node("stem_relu", "Relu", ["stem"]), non_negative=True)
    b.layer("depthwise", "Conv", stem, (8, 1, 3, 3), bias=8, group=8, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    hidden = b.encode(b.clip("depthwise_relu6", "depthwise", 0.0, 2.0), non_negative=True, upper_bound=2.0)
    branch = b.layer("pointwise", "Conv", hidden, (8, 8, 1, 1), bias=8, kernel_shape=[1, 1])
    if not skip_only:
        b.encode(branch)
    b.node("add", "Add", [branch, stem])
    joined = b.encode(b.node("add_relu", "Relu", ["add"]), non_negative=True)
    pooled = b.node("pool", "MaxPool", [joined], kernel_shape=[2, 2], strides=[2, 2])
    shared = b.encode(pooled, encoding=b.encoded[joined].encoding)
    b.layer("narrow", "Conv", shared, (4, 8, 3, 3), bias=4, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    narrow = b.encode(b.node("narrow_relu", "Relu", ["narrow"]), encoding=b.encoded[joined].encoding)
    concat = b.encode(b.node("concat", "Concat", [shared, narrow], axis=1), encoding=b.encoded[joined].encoding)
    b.layer("up", "ConvTranspose", concat, (12, 6, 2, 2), bias=6, kernel_shape=[2, 2], strides=[2, 2])
    up = b.encode(b.node("up_relu", "Relu", ["up"]), non_negative=True)
    gap = b.node("gap", "GlobalAveragePool", [up])
    if not skip_only:
        b.encode(gap, non_negative=True)
    flat = b.encode(b.node("flatten", "Flatten", [gap]), encoding=b.activation_encoding(True))
    head = b.layer("head", "Gemm", flat, (5, 6), bias=5, transB=1)
    return (b if skip_only else _encoded(b, head)).build(head)


def _encoded(builder: ModelBuilder, name: str) -> ModelBuilder:
    builder.encode(name)
    return builder


class ExporterContract:
    """Tests that any exporter must pass. Inherit, name the class ``Test…`` and say what to export.

    >>> class TestMine(ExporterContract):
    ...     def make_exporter(self): ...
    """

    def make_exporter(self) -> Exporter:
        """Make the exporter under test."""
        raise NotImplementedError

    def make_model(self) -> QuantizedModel:
        """Make a model that the format can hold; the default has everything."""
        return sample_model()

    def make_options(self) -> Mapping[str, object]:
        """Make the options to export with; none by default."""
        return {}

    def test_describes_itself(self) -> None:
        """An exporter satisfies the protocol and explains its format."""
        exporter = self.make_exporter()
        assert isinstance(exporter, Exporter)
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", exporter.name)
        assert exporter.describe().strip()

    def test_every_encoding_survives(self, tmp_path: Path) -> None:
        """The reader recovers every scale, zero-point, range and code, and the file list is complete."""
        files = export_checked(self.make_exporter(), self.make_model(), tmp_path, self.make_options())
        assert len(files) == len(set(files)) > 0

    def test_a_changed_encoding_is_noticed(self, tmp_path: Path) -> None:
        """The round trip depends on the files: those of another model do not pass for this one."""
        exporter, model = self.make_exporter(), self.make_model()
        name, tensor = next(iter(model.activations.items()))
        old = tensor.encoding
        scale = np.nextafter(old.scale, np.float32(np.inf))
        other = Encoding(scale, old.zero_point, old.q_min, old.q_max, old.bits, old.signed, old.axis)
        exporter.export(model, tmp_path, self.make_options())
        read = exporter.read(tmp_path)
        changed = RecoveredEncodings({**read.activations, name: other}, read.parameters)
        with pytest.raises(EqDeployError, match=name):
            check_round_trip(model, changed)

    def test_same_model_gives_same_bytes(self, tmp_path: Path) -> None:
        """Two exports of one model are identical, and the model is not changed by being exported."""
        exporter, model = self.make_exporter(), self.make_model()
        before = model.graph.SerializeToString(deterministic=True)
        written = [self._export(exporter, model, tmp_path / str(index)) for index in range(2)]
        assert written[0] == written[1]
        assert model.graph.SerializeToString(deterministic=True) == before

    def test_the_model_read_back_gives_the_same_files(self, tmp_path: Path) -> None:
        """No file depends on what ``model.onnx`` does not hold: an artifact is checked by writing its files from it."""
        exporter, model = self.make_exporter(), self.make_model()
        written = self._export(exporter, model, tmp_path / "first")
        proof = tmp_path / ("first" if MODEL_FILE in written else "proof")
        if MODEL_FILE not in written:
            proof.mkdir()
            opset = {name: value for name, value in self.make_options().items() if name == "opset"}
            get_exporter("onnx_qdq").export(model, proof, opset)
        again = self._export(exporter, read_model(proof / MODEL_FILE), tmp_path / "again")
        assert sorted(again) == sorted(written)
        for name, content in written.items():
            same = content == again[name] or (
                name.endswith(".onnx") and same_model(tmp_path / "first" / name, tmp_path / "again" / name)
            )
            assert same, f"{name} is another one when it is written from {MODEL_FILE}"

    def test_unknown_option_is_refused(self, tmp_path: Path) -> None:
        """An option that nobody reads is an error of the profile."""
        with pytest.raises(ProfileError, match="no_such_option"):
            self.make_exporter().export(self.make_model(), tmp_path, {**self.make_options(), "no_such_option": 1})

    def test_unknown_option_is_refused_at_once(self) -> None:
        """An exporter that checks early refuses an unknown option early, and no option that it takes."""
        exporter = self.make_exporter()
        if not isinstance(exporter, EarlyChecks):
            pytest.skip("checks nothing early")
        exporter.check_options(self.make_options())
        with pytest.raises(ProfileError, match="no_such_option"):
            exporter.check_options({**self.make_options(), "no_such_option": 1})

    def test_damaged_files_are_refused(self, tmp_path: Path) -> None:
        """A truncated, emptied or missing file raises an error of this library, or holds nothing that is read."""
        exporter, model = self.make_exporter(), self.make_model()
        for name, content in self._export(exporter, model, tmp_path).items():
            for damaged in (content[: len(content) // 2], content[:-1], b"", None):
                path = tmp_path / name
                path.unlink() if damaged is None else path.write_bytes(damaged)
                try:
                    recovered = exporter.read(tmp_path)
                except EqDeployError:
                    continue
                finally:
                    path.write_bytes(content)
                check_round_trip(model, recovered)

    def _export(self, exporter: Exporter, model: QuantizedModel, directory: Path) -> dict[str, bytes]:
        """Export to a new folder and return the content of every file."""
        directory.mkdir(exist_ok=True)
        files = exporter.export(model, directory, self.make_options())
        return {name: (directory / name).read_bytes() for name in files}
