"""Quantize and dequantize against exact rational arithmetic, ONNX's reference and ONNX Runtime."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from eqdeploy.quant.affine import dequantize, quantize, quantize_dequantize
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.form import Form, Granularity, Symmetry

F32 = np.float32


def exact_codes(x: NDArray[np.float32], scale: float, zero_point: int, q_min: int, q_max: int) -> list[int]:
    """Codes by the text of the specification: one float32 division, then whole numbers."""
    codes = []
    for value in x.reshape(-1):
        ratio = Fraction(float(F32(value) / F32(scale))) if np.isfinite(F32(value) / F32(scale)) else None
        if ratio is None:
            codes.append(q_max if value > 0 else q_min)
            continue
        codes.append(min(max(round(ratio) + zero_point, q_min), q_max))  # Python rounds fractions half to even
    return codes


def qdq_model(encoding: Encoding, rank: int) -> bytes:
    """QuantizeLinear, integer Clip, DequantizeLinear; returns codes and values."""
    container = {np.dtype(np.int8): TensorProto.INT8, np.dtype(np.uint8): TensorProto.UINT8}[encoding.container]
    limits = [np.array(limit, dtype=encoding.container) for limit in (encoding.q_min, encoding.q_max)]
    attributes: dict[str, Any] = {} if encoding.axis is None else {"axis": encoding.axis}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
            helper.make_node("Clip", ["q", "low", "high"], ["codes"]),
            helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["values"], **attributes),
        ],
        "qdq",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * rank)],
        [
            helper.make_tensor_value_info("codes", container, [None] * rank),
            helper.make_tensor_value_info("values", TensorProto.FLOAT, [None] * rank),
        ],
        [
            numpy_helper.from_array(encoding.scale, "s"),
            numpy_helper.from_array(encoding.zero_point.astype(encoding.container), "z"),
            numpy_helper.from_array(limits[0], "low"),
            numpy_helper.from_array(limits[1], "high"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


def run_onnxruntime(model: bytes, x: NDArray[np.float32]) -> list[NDArray[np.generic]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    outputs: list[NDArray[np.generic]] = session.run(["codes", "values"], {"x": x})
    return outputs


def run_reference(model: bytes, x: NDArray[np.float32]) -> list[NDArray[np.generic]]:
    return [np.asarray(output) for output in ReferenceEvaluator(model).run(None, {"x": x})]


def encoding_of(form: Form, scale: float, zero_point: int) -> Encoding:
    return Encoding.per_tensor(scale, zero_point, form.q_min, form.q_max, form.bits, signed=form.signed)


@st.composite
def forms(draw: st.DrawFn) -> Form:
    bits = draw(st.integers(1, 8))
    signed = draw(st.booleans())
    narrow = signed and bits >= 2 and draw(st.booleans())
    return Form(bits, Granularity.PER_TENSOR, draw(st.sampled_from(Symmetry)), signed=signed, narrow=narrow)


@st.composite
def encodings(draw: st.DrawFn) -> Encoding:
    form = draw(forms())
    scale = F32(10.0 ** draw(st.floats(-12, 12)))
    return encoding_of(form, float(scale), draw(st.integers(form.q_min, form.q_max)))


def values_around(encoding: Encoding) -> st.SearchStrategy[NDArray[np.float32]]:
    """Values from far below to far above the range, many of them exact ties between two codes."""
    scale = float(encoding.scale)
    tie = st.integers(-600, 600).map(lambda half_steps: half_steps / 2 * scale)
    any_value = st.floats(-400 * scale, 400 * scale)
    far = st.sampled_from([0.0, -0.0, 3.4e38, -3.4e38, 1e-45, -1e-45])
    return st.lists(st.one_of(tie, any_value, far), min_size=1, max_size=40).map(lambda xs: np.array(xs, dtype=F32))


@pytest.mark.parametrize("zero_point", [0, 1, 2, 127])
def test_ties_go_to_the_even_ratio_and_only_then_the_zero_point_is_added(zero_point: int) -> None:
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], dtype=F32)
    expected = np.array([-2, -2, 0, 0, 2, 2]) + zero_point
    encoding = Encoding.per_tensor(1.0, zero_point, -128, 127, 8, signed=True)
    assert encoding.quantize(x).tolist() == expected.clip(-128, 127).tolist()
    assert run_onnxruntime(qdq_model(encoding, 1), x)[0].tolist() == expected.clip(-128, 127).tolist()


def test_division_is_not_multiplication_by_the_inverse() -> None:
    scale = F32(0.1)
    x = np.arange(-1000, 1000, dtype=F32) / F32(20)
    inverse = (x * (F32(1) / scale)).round().clip(-128, 127).astype(np.int32)
    encoding = Encoding.per_tensor(float(scale), 0, -128, 127, 8, signed=True)
    codes = encoding.quantize(x)
    assert codes.tolist() == exact_codes(x, float(scale), 0, -128, 127)
    assert (codes != inverse).any(), "these values do not tell division from multiplication"
    assert run_onnxruntime(qdq_model(encoding, 1), x)[0].tolist() == codes.tolist()


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_numpy_torch_and_the_specification_agree_in_every_code(data: st.DataObject) -> None:
    encoding = data.draw(encodings())
    x = data.draw(values_around(encoding))
    zero_point = int(encoding.zero_point)
    with np.errstate(over="ignore"):
        codes = encoding.quantize(x)
        wanted = exact_codes(x, float(encoding.scale), zero_point, encoding.q_min, encoding.q_max)
    assert codes.tolist() == wanted
    in_torch = quantize(
        torch.from_numpy(x), torch.tensor(encoding.scale), float(zero_point), encoding.q_min, encoding.q_max
    )
    assert in_torch.dtype == torch.float32
    assert in_torch.numpy().astype(np.int32).tolist() == codes.tolist()
    values = dequantize(in_torch, torch.tensor(encoding.scale), float(zero_point)).numpy()
    assert np.array_equal(values, encoding.dequantize(codes))
    numbers = (float(encoding.scale), float(zero_point), encoding.q_min, encoding.q_max)
    given_values = torch.from_numpy(x.copy())
    at_once = quantize_dequantize(given_values, *numbers)
    assert np.array_equal(at_once.numpy(), values)
    assert np.array_equal(given_values.numpy(), x)
    assert quantize_dequantize(given_values, *numbers, out=given_values) is given_values
    assert np.array_equal(given_values.numpy(), values)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_runtimes_agree_in_every_code_and_every_bit(data: st.DataObject) -> None:
    encoding = data.draw(encodings())
    x = data.draw(values_around(encoding))
    with np.errstate(over="ignore"):
        codes = encoding.quantize(x)
    model = qdq_model(encoding, 1)
    for outputs in (run_onnxruntime(model, x), run_reference(model, x) if np.abs(x).max() < 1e30 else None):
        if outputs is not None:
            assert outputs[0].dtype == encoding.container
            assert outputs[0].astype(np.int32).tolist() == codes.tolist()
            assert np.array_equal(outputs[1], encoding.dequantize(codes))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("signed", [True, False])
def test_per_channel_along_any_axis_as_in_onnxruntime(axis: int, signed: bool) -> None:
    generator = np.random.default_rng(axis)
    form = Form(5, Granularity.PER_CHANNEL, Symmetry.ASYMMETRIC, signed=signed)
    x = generator.normal(size=(3, 4, 5)).astype(F32)
    channels = x.shape[axis]
    encoding = Encoding(
        scale=generator.uniform(0.01, 0.3, (channels,)).astype(F32),
        zero_point=generator.integers(form.q_min, form.q_max + 1, (channels,)).astype(np.int32),
        q_min=form.q_min,
        q_max=form.q_max,
        bits=5,
        signed=signed,
        axis=axis,
    )
    codes, values = run_onnxruntime(qdq_model(encoding, 3), x)
    assert np.array_equal(codes.astype(np.int32), encoding.quantize(x))
    assert np.array_equal(values, encoding.dequantize(encoding.quantize(x)))


@settings(deadline=None)
@given(data=st.data())
def test_codes_and_real_zero_survive_a_round_trip(data: st.DataObject) -> None:
    encoding = data.draw(encodings())
    codes = np.arange(encoding.q_min, encoding.q_max + 1, dtype=np.int32)
    values = encoding.dequantize(codes)
    assert np.array_equal(encoding.quantize(values), codes)
    assert encoding.dequantize(encoding.zero_point.reshape(1))[0] == 0.0
    assert encoding.quantize(np.zeros(1, dtype=F32))[0] == encoding.zero_point


@settings(deadline=None)
@given(data=st.data())
def test_quantizing_twice_changes_nothing(data: st.DataObject) -> None:
    encoding = data.draw(encodings())
    with np.errstate(over="ignore"):
        once = encoding.dequantize(encoding.quantize(data.draw(values_around(encoding))))
    assert np.array_equal(encoding.dequantize(encoding.quantize(once)), once)


@settings(deadline=None)
@given(data=st.data())
def test_order_is_kept(data: st.DataObject) -> None:
    encoding = data.draw(encodings())
    with np.errstate(over="ignore"):
        codes = encoding.quantize(np.sort(data.draw(values_around(encoding))))
    assert (np.diff(codes) >= 0).all()


@settings(deadline=None)
@given(data=st.data())
def test_inside_the_range_the_error_is_at_most_half_a_step(data: st.DataObject) -> None:
    encoding = data.draw(encodings())
    ends = encoding.dequantize(np.array([encoding.q_min, encoding.q_max])).astype(np.float64)
    part = data.draw(st.floats(0, 1))
    x = np.array([ends[0] + part * (ends[1] - ends[0])], dtype=F32)
    error = abs(float(encoding.dequantize(encoding.quantize(x))[0]) - float(x[0]))
    assert error <= float(encoding.scale) * (0.5 + 1e-4)
