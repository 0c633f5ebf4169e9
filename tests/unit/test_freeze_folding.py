"""Folding BatchNorm into integers: exact where the mathematics promises it, honest where it does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from eqdeploy.freeze.folding import SMALLEST_SCALE, ChannelAffine, FoldedWeight, fit_bias, fold
from eqdeploy.network import LayerInfo, OpKind
from eqdeploy.plan import BatchNormFolding, WeightPlan
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.form import Form, Granularity, Symmetry

Floats = NDArray[np.float64]
PER_TENSOR, PER_CHANNEL = Granularity.PER_TENSOR, Granularity.PER_CHANNEL
SYMMETRIC, ASYMMETRIC = Symmetry.SYMMETRIC, Symmetry.ASYMMETRIC

SHAPES = {OpKind.CONV: (5, 3, 2, 2), OpKind.LINEAR: (5, 7), OpKind.CONV_TRANSPOSE: (4, 5, 2, 2)}


def layer_of(op: OpKind, groups: int = 1) -> LayerInfo:
    return LayerInfo("layer", op, SHAPES[op], int(op is OpKind.CONV_TRANSPOSE), groups, "x", "y", "norm", 1)


def channels_of(layer: LayerInfo) -> int:
    return layer.weight_shape[1] * layer.groups if layer.op is OpKind.CONV_TRANSPOSE else layer.weight_shape[0]


def by_channel(values: Floats, layer: LayerInfo) -> Floats:
    """Shape one value per output channel so that it multiplies the weight, with loops for the grouped case."""
    if layer.op is not OpKind.CONV_TRANSPOSE:
        return values.reshape(-1, *[1] * (len(layer.weight_shape) - 1))
    shaped = np.empty((*layer.weight_shape[:2], 1, 1))
    inputs, outputs = layer.weight_shape[0] // layer.groups, layer.weight_shape[1]
    for row in range(layer.weight_shape[0]):
        for column in range(outputs):
            shaped[row, column] = values[(row // inputs) * outputs + column]
    return shaped


@st.composite
def weights(draw: st.DrawFn, layer: LayerInfo) -> tuple[NDArray[np.float32], Form, Encoding]:
    """A latent weight, its trained form, and numbers of that form."""
    bits = draw(st.integers(2, 8))
    symmetry = draw(st.sampled_from(Symmetry))
    narrow = symmetry is SYMMETRIC and draw(st.booleans())
    form = Form(bits, draw(st.sampled_from(Granularity)), symmetry, signed=True, narrow=narrow)
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    weight = generator.normal(size=layer.weight_shape).astype(np.float32)
    size = (layer.weight_shape[layer.channel_axis],) if form.granularity is PER_CHANNEL else ()
    zero_point = generator.integers(form.q_min, form.q_max + 1, size) if symmetry is ASYMMETRIC else np.zeros(size)
    encoding = Encoding(
        scale=(generator.uniform(0.5, 2.0, size) * 2.0 ** (1 - bits)).astype(np.float32),
        zero_point=np.asarray(zero_point, dtype=np.int32),
        q_min=form.q_min,
        q_max=form.q_max,
        bits=bits,
        signed=True,
        axis=layer.channel_axis if size else None,
    )
    return weight, form, encoding


def device_form(form: Form, granularity: Granularity, *, signed: bool = True) -> Form:
    return Form(form.bits, granularity, form.symmetry, signed=signed, narrow=form.narrow and signed)


def plan_of(form: Form, device: Form, folding: BatchNormFolding | None) -> WeightPlan:
    return WeightPlan("layer", form, device, folding, "test")


gains = st.one_of(
    st.floats(0.01, 100), st.floats(-100, -0.01), st.just(0.0), st.just(1e-20), st.just(-1e-20), st.just(1e9)
)


@settings(deadline=None, max_examples=120)
@given(data=st.data(), op=st.sampled_from(list(SHAPES)), signed=st.booleans())
def test_folding_into_the_scale_is_exact(data: st.DataObject, op: OpKind, signed: bool) -> None:
    layer = layer_of(op)
    weight, form, encoding = data.draw(weights(layer))
    gain = np.array(data.draw(st.lists(gains, min_size=5, max_size=5)))
    device = device_form(form, PER_CHANNEL, signed=signed)
    affine = ChannelAffine(gain, np.zeros(5))
    folded = fold(weight, encoding, affine, layer, plan_of(form, device, BatchNormFolding.INTO_SCALE))
    trained = encoding.quantize(weight)
    assert folded.encoding.axis == layer.channel_axis
    assert folded.encoding.signed == signed
    assert (folded.encoding.q_min <= folded.codes).all()
    assert (folded.codes <= folded.encoding.q_max).all()
    # Back in signed storage, so that codes can be compared with those that were trained.
    shift = folded.encoding.q_min - encoding.q_min
    codes = np.moveaxis(folded.codes - shift, layer.channel_axis, 0).reshape(5, -1)
    before = np.moveaxis(trained, layer.channel_axis, 0).reshape(5, -1)
    zero_points = np.broadcast_to(encoding.zero_point, (5,))
    lost = False
    for channel in range(5):
        if gain[channel] == 0.0:
            assert (codes[channel] == zero_points[channel]).all()
        elif gain[channel] > 0:
            assert (codes[channel] == before[channel]).all(), "the integers stay as trained"
            assert folded.encoding.zero_point[channel] - shift == zero_points[channel]
        elif form.symmetry is ASYMMETRIC:
            distance = codes[channel] - (folded.encoding.zero_point[channel] - shift)
            assert (distance == zero_points[channel] - before[channel]).all()
        else:
            unmatched = before[channel] == -(2 ** (form.bits - 1))
            assert (codes[channel] == np.where(unmatched, form.q_max, -before[channel])).all()
            lost |= bool(unmatched.any())
    assert folded.report.exact == (not lost)
    target = encoding.dequantize(trained).astype(np.float64) * by_channel(gain, layer)
    if not lost:
        assert np.allclose(folded.values, target, rtol=3e-7, atol=0)
        assert folded.report.relative_error < 1e-6
    assert folded.report.negated_channels == int((gain < 0).sum())
    assert folded.report.dead_channels >= int((gain == 0).sum())


def test_a_negative_gain_on_the_lowest_code_of_a_full_symmetric_range_costs_one_step() -> None:
    layer = layer_of(OpKind.LINEAR)
    form = Form(2, PER_CHANNEL, SYMMETRIC, signed=True)
    encoding = Encoding(np.full(5, 0.5, np.float32), np.zeros(5, np.int32), -2, 1, 2, True, 0)
    weight = np.zeros((5, 7), np.float32)
    weight[0, :4] = [-1.0, -0.5, 0.0, 0.5]
    gain = np.array([-3.0, 1.0, 1.0, 1.0, 1.0])
    plan = plan_of(form, form, BatchNormFolding.INTO_SCALE)
    folded = fold(weight, encoding, ChannelAffine(gain, np.zeros(5)), layer, plan)
    assert folded.codes[0, :4].tolist() == [1, 1, 0, -1]
    assert folded.encoding.scale[0] == 1.5
    assert (folded.report.exact, folded.report.negated_channels) == (False, 1)
    assert folded.report.relative_error > 0.1


@settings(deadline=None, max_examples=60)
@given(data=st.data(), groups=st.sampled_from([1, 2, 4]), signed=st.booleans())
def test_quantizing_again_is_as_good_as_the_form_allows(data: st.DataObject, groups: int, signed: bool) -> None:
    op = OpKind.CONV_TRANSPOSE if groups > 1 else data.draw(st.sampled_from(list(SHAPES)))
    layer = layer_of(op, groups)
    weight, form, encoding = data.draw(weights(layer))
    channels = channels_of(layer)
    gain = np.array(data.draw(st.lists(st.floats(0.5, 2.0), min_size=channels, max_size=channels)))
    gain[0] *= data.draw(st.sampled_from([1, -1, 0]))
    gain[1] += 2.0  # never all alike: one gain fits in any scale
    granularity = data.draw(st.sampled_from(Granularity))
    device = device_form(form, granularity, signed=signed)
    # Into the scale is impossible where the channels of different groups share a scale: quantized again as well.
    method = BatchNormFolding.INTO_SCALE if groups > 1 else BatchNormFolding.REQUANTIZE
    folded = fold(weight, encoding, ChannelAffine(gain, np.zeros(channels)), layer, plan_of(form, device, method))
    assert folded.report.method == "requantize"
    assert (folded.encoding.axis is None) == (granularity is PER_TENSOR)
    assert folded.encoding.bits == form.bits
    assert (folded.encoding.q_min <= folded.codes).all()
    assert (folded.codes <= folded.encoding.q_max).all()
    target = encoding.dequantize(encoding.quantize(weight)).astype(np.float64) * by_channel(gain, layer)
    norm = np.linalg.norm(target)
    error = np.linalg.norm(folded.values - target) / norm if norm else 0.0
    assert error == pytest.approx(folded.report.relative_error, rel=1e-3, abs=1e-9)
    assert error < {2: 0.7, 3: 0.4, 4: 0.2, 5: 0.1, 6: 0.05, 7: 0.03, 8: 0.015}[form.bits]


@settings(deadline=None, max_examples=80)
@given(data=st.data(), op=st.sampled_from(list(SHAPES)), signed=st.booleans(), gain=gains)
def test_one_gain_for_all_channels_goes_into_any_scale(
    data: st.DataObject, op: OpKind, signed: bool, gain: float
) -> None:
    layer = layer_of(op, 2 if op is OpKind.CONV_TRANSPOSE else 1)
    weight, form, encoding = data.draw(weights(layer))
    affine = ChannelAffine(np.full(channels_of(layer), gain), np.zeros(channels_of(layer)))
    plan = plan_of(form, device_form(form, form.granularity, signed=signed), BatchNormFolding.INTO_SCALE)
    folded = fold(weight, encoding, affine, layer, plan)
    assert folded.report.method == "into_scale"
    assert (folded.encoding.axis, folded.encoding.signed) == (encoding.axis, signed)
    trained = encoding.quantize(weight)
    if abs(gain) > 1e-19:
        assert np.allclose(folded.encoding.scale, encoding.scale.astype(np.float64) * abs(gain), rtol=1e-6)
    if gain > 1e-19:
        assert folded.report.exact
        assert np.array_equal(folded.codes - folded.encoding.q_min, trained - encoding.q_min), "as trained"
    target = encoding.dequantize(trained).astype(np.float64) * gain
    if folded.report.exact:
        assert np.allclose(folded.values, target, rtol=3e-7, atol=1e-18)


def test_one_scale_refuses_gains_that_differ() -> None:
    layer = layer_of(OpKind.CONV)
    form = Form(8, PER_TENSOR, SYMMETRIC, signed=True)
    encoding = Encoding.per_tensor(0.1, 0, -128, 127, 8, signed=True)
    affine = ChannelAffine(np.array([1.0, 1.0, 2.0, 1.0, 1.0]), np.zeros(5))
    with pytest.raises(ValueError, match="layer: one scale cannot take in gains"):
        fold(
            np.zeros(layer.weight_shape, np.float32),
            encoding,
            affine,
            layer,
            plan_of(form, form, BatchNormFolding.INTO_SCALE),
        )


def test_without_batch_norm_nothing_changes() -> None:
    layer = layer_of(OpKind.CONV)
    form = Form(4, PER_TENSOR, SYMMETRIC, signed=True)
    encoding = Encoding.per_tensor(0.25, 0, -8, 7, 4, signed=True)
    weight = np.random.default_rng(0).normal(size=layer.weight_shape).astype(np.float32)
    affine = ChannelAffine(np.ones(5), np.zeros(5))
    for signed in (True, False):
        folded = fold(
            weight, encoding, affine, layer, plan_of(form, device_form(form, PER_TENSOR, signed=signed), None)
        )
        assert np.array_equal(folded.codes - (0 if signed else 8), encoding.quantize(weight))
        assert np.array_equal(folded.values, encoding.dequantize(encoding.quantize(weight)))
        assert (folded.report.method, folded.report.exact, folded.report.relative_error) == ("none", True, 0.0)


def test_a_gain_without_a_method_is_refused() -> None:
    form = Form(4, PER_TENSOR, SYMMETRIC, signed=True)
    layer = layer_of(OpKind.CONV)
    affine = ChannelAffine(np.full(5, 2.0), np.zeros(5))
    encoding = Encoding.per_tensor(0.25, 0, -8, 7, 4, signed=True)
    with pytest.raises(ValueError, match="layer: .* folded"):
        fold(np.zeros(layer.weight_shape, np.float32), encoding, affine, layer, plan_of(form, form, None))


def frozen(
    weight: NDArray[np.float32], gain: Floats, *, granularity: Granularity = PER_CHANNEL, bits: int = 8
) -> tuple[FoldedWeight, LayerInfo]:
    layer = layer_of(OpKind.LINEAR)
    form = Form(bits, granularity, SYMMETRIC, signed=True)
    size = (5,) if granularity is PER_CHANNEL else ()
    encoding = Encoding(
        np.full(size, 2.0 ** (1 - bits), np.float32),
        np.zeros(size, np.int32),
        form.q_min,
        form.q_max,
        bits,
        True,
        0 if size else None,
    )
    method = BatchNormFolding.INTO_SCALE if size else BatchNormFolding.REQUANTIZE
    return fold(weight, encoding, ChannelAffine(gain, np.zeros(5)), layer, plan_of(form, form, method)), layer


def bias_codes(folded: FoldedWeight, shift: Floats, input_scale: float) -> tuple[Floats, Floats]:
    """Codes of the bias on the accumulator's grid, not clipped, and the grid."""
    product = (np.float32(input_scale) * folded.encoding.scale).astype(np.float32)
    grid = np.broadcast_to(product, shift.shape).astype(np.float64)
    return np.rint(shift / grid), grid


@settings(deadline=None, max_examples=120)
@given(
    data=st.data(),
    granularity=st.sampled_from(Granularity),
    input_scale=st.floats(1e-6, 1e3),
    seed=st.integers(0, 1000),
)
def test_a_fitted_bias_is_a_32_bit_integer_and_accurate(
    data: st.DataObject, granularity: Granularity, input_scale: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    weight = generator.uniform(-1, 1, (5, 7)).astype(np.float32)
    weight[data.draw(st.integers(0, 4))] = 0.0
    gain = np.array(data.draw(st.lists(gains, min_size=5, max_size=5)))
    shift = np.array(data.draw(st.lists(st.floats(-1e6, 1e6), min_size=5, max_size=5)))
    folded, layer = frozen(weight, gain, granularity=granularity)
    fitted = fit_bias(folded, layer, shift, input_scale)
    codes, grid = bias_codes(fitted, shift, input_scale)
    assert (np.abs(codes) <= 2.0**30 * (1 + 1e-6)).all(), "half of int32 is left to the sum of products"
    error = np.abs(codes * grid - shift)
    assert (error <= grid * (0.5 + 1e-6)).all()
    constant = (fitted.codes == 0).all(axis=1)
    if granularity is PER_CHANNEL:
        half_step = 0.500001 * float(SMALLEST_SCALE) * input_scale  # no bias has a finer grid
        tolerance = np.maximum(2.0**-22 * np.abs(shift[constant]), half_step)
        assert (error[constant] <= tolerance).all(), "constant outputs are exact"
        kept = fitted.encoding.scale == folded.encoding.scale
        assert np.array_equal(fitted.codes[kept], folded.codes[kept])
    assert (fitted.encoding.scale >= SMALLEST_SCALE).all()
    assert fitted.report.exact or fitted.report.relative_error > 0 or not folded.report.exact


def test_nothing_changes_where_the_bias_fits_already() -> None:
    weight = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    folded, layer = frozen(weight, np.ones(5))
    assert fit_bias(folded, layer, np.linspace(-3, 3, 5), 0.1) is folded


def test_a_channel_is_widened_when_its_bias_would_overflow() -> None:
    weight = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    gain = np.array([1.0, 1e-9, 1.0, 1.0, 1.0])
    folded, layer = frozen(weight, gain)
    shift = np.full(5, 2.0)
    before, _ = bias_codes(folded, shift, 0.01)
    assert abs(before[1]) > 2.0**31, "the case is a case"
    fitted = fit_bias(folded, layer, shift, 0.01)
    codes, grid = bias_codes(fitted, shift, 0.01)
    assert abs(codes[1]) <= 2.0**30
    assert codes[1] * grid[1] == pytest.approx(2.0, rel=1e-6)
    assert (fitted.report.widened_channels, fitted.report.exact) == (1, False)
    assert np.array_equal(fitted.codes[[0, 2, 3, 4]], folded.codes[[0, 2, 3, 4]])


def test_a_layer_of_zeros_keeps_its_bias() -> None:
    for granularity in Granularity:
        folded, layer = frozen(np.zeros((5, 7), np.float32), np.ones(5), granularity=granularity)
        shift = np.array([1e-3, -2e-3, 0.0, 5e-4, 1e-3])
        fitted = fit_bias(folded, layer, shift, 0.5)
        codes, grid = bias_codes(fitted, shift, 0.5)
        assert np.allclose(codes * grid, shift, rtol=1e-4, atol=1e-9)
        assert (fitted.codes == 0).all()
        assert fitted.report.dead_channels == 5


def test_bias_of_a_grouped_transposed_convolution_fits_the_largest_of_its_scale() -> None:
    layer = layer_of(OpKind.CONV_TRANSPOSE, groups=2)
    form = Form(8, PER_CHANNEL, SYMMETRIC, signed=True)
    encoding = Encoding(np.full(5, 1e-9, np.float32), np.zeros(5, np.int32), -128, 127, 8, True, 1)
    weight = np.full(layer.weight_shape, 5e-8, np.float32)
    folded = fold(weight, encoding, ChannelAffine(np.ones(10), np.zeros(10)), layer, plan_of(form, form, None))
    shift = np.zeros(10)
    shift[7] = 4.0  # second group, third output
    fitted = fit_bias(folded, layer, shift, 0.1)
    widened = fitted.encoding.scale > folded.encoding.scale
    assert widened.tolist() == [False, False, True, False, False]
    assert shift[7] / (0.1 * float(fitted.encoding.scale[2])) <= 2.0**30 * (1 + 1e-6)
