"""Gradients of the fake quantizer: the formulas of LSQ and LSQ+, element by element."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eqdeploy.quant.elastic_quantizer import ElasticQuantizer
from eqdeploy.quant.fake_quantize import Operands, clamp_recoverably, fake_quantize, round_straight_through
from eqdeploy.quant.form import Form, Granularity, Symmetry


def form_of(bits: int, *, signed: bool, per_channel: bool = False, asymmetric: bool = True) -> Form:
    return Form(
        bits,
        Granularity.PER_CHANNEL if per_channel else Granularity.PER_TENSOR,
        Symmetry.ASYMMETRIC if asymmetric else Symmetry.SYMMETRIC,
        signed=signed,
    )


def formula(x: float, s: float, z: float, q_min: int, q_max: int) -> tuple[float, float, float]:
    """(d/dx, d/ds, d/dz) of the dequantized value, in float32 arithmetic where the comparison needs it."""
    ratio = float(np.float32(x) / np.float32(s))
    position = float(np.float32(ratio) + np.float32(z))
    if position < q_min:
        return 0.0, q_min - z, -s
    if position > q_max:
        return 0.0, q_max - z, -s
    return 1.0, float(np.rint(np.float32(ratio))) - ratio, 0.0


def operands(x: Tensor, s: Tensor, z: Tensor, form: Form) -> Operands:
    return Operands.of(form, s, z, sharing=x.numel() // s.numel())


def gradients(x: Tensor, s: Tensor, z: Tensor, form: Form, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, s, z = (tensor.clone().requires_grad_() for tensor in (x, s, z))
    found = torch.autograd.grad(fake_quantize(x, operands(x, s, z, form)), (x, s, z), upstream)
    return found[0], found[1], found[2]


@settings(deadline=None, max_examples=150)
@given(
    data=st.data(),
    bits=st.integers(1, 8),
    signed=st.booleans(),
    scale=st.floats(1e-3, 1e3),
)
def test_one_element_has_the_gradients_of_the_formulas(
    data: st.DataObject, bits: int, signed: bool, scale: float
) -> None:
    form = form_of(bits, signed=signed)
    z = float(data.draw(st.integers(form.q_min, form.q_max)))
    steps = data.draw(st.one_of(st.floats(-300, 300), st.integers(-600, 600).map(lambda n: n / 2)))
    s = torch.tensor(scale, dtype=torch.float32)
    x = (steps * s).reshape(1)
    expected = formula(x.item(), s.item(), z, form.q_min, form.q_max)
    found = gradients(x, s, torch.tensor(z), form, torch.ones(1))
    scaling = 1 / math.sqrt(max(form.q_max, 1))
    assert found[0].item() == expected[0]
    assert found[1].item() == pytest.approx(expected[1] * scaling, rel=1e-5, abs=1e-4)
    assert found[2].item() == pytest.approx(expected[2] * scaling, rel=1e-5)


@pytest.mark.parametrize(("position", "inside"), [(-8.0, True), (-8.25, False), (-8.5, False), (-7.5, True)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_inside_means_before_rounding(position: float, inside: bool, mirrored: bool) -> None:
    form = form_of(4, signed=True)
    # 7.25 rounds to 7, which is in range, but 7.25 is not: only its clamped gradient pulls the scale up.
    position = -1 - position if mirrored else position
    x_gradient, s_gradient, _ = gradients(
        torch.tensor([position]), torch.tensor(1.0), torch.tensor(0.0), form, torch.ones(1)
    )
    assert x_gradient.item() == float(inside)
    if not inside:
        assert s_gradient.item() == pytest.approx((7 if mirrored else -8) / math.sqrt(7))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("signed", [True, False])
def test_channels_sum_their_own_elements_and_scale_by_their_number(axis: int, signed: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    form = form_of(3, signed=signed, per_channel=True)
    x = torch.randn(4, 5, 3, 3, generator=generator)
    upstream = torch.randn(x.shape, generator=generator)
    channels = x.shape[axis]
    s = torch.rand(channels, generator=generator) * 0.3 + 0.1
    z = torch.randint(form.q_min, form.q_max + 1, (channels,), generator=generator).float()
    shape = [1] * 4
    shape[axis] = -1
    found = gradients(x, s.reshape(shape), z.reshape(shape), form, upstream)
    scaling = 1 / math.sqrt(x.numel() / channels * form.q_max)
    for channel in range(channels):
        rows = x.select(axis, channel).reshape(-1), upstream.select(axis, channel).reshape(-1)
        parts = [formula(v.item(), s[channel].item(), z[channel].item(), form.q_min, form.q_max) for v in rows[0]]
        expected_x = torch.tensor([part[0] for part in parts]) * rows[1]
        assert torch.equal(found[0].select(axis, channel).reshape(-1), expected_x)
        for index in (1, 2):
            expected = sum(part[index] * up.item() for part, up in zip(parts, rows[1], strict=True)) * scaling
            assert found[index].reshape(-1)[channel].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_straight_through_estimation_written_with_plain_operations_gives_the_same(bits: int, per_channel: bool) -> None:
    generator = torch.Generator().manual_seed(bits)
    form = form_of(bits, signed=True, per_channel=per_channel)
    x = torch.randn(6, 4, 3, 3, generator=generator)
    upstream = torch.randn(x.shape, generator=generator)
    size = (6, 1, 1, 1) if per_channel else ()
    s = torch.rand(size, generator=generator) * 0.2 + 2.0 / 2**bits
    z = torch.randint(-1, 1, size, generator=generator).float()
    found = gradients(x, s, z, form, upstream)

    x0, s0, z0 = (tensor.clone().requires_grad_() for tensor in (x, s, z))
    ratio = x0 / s0
    # Clamping real positions, then rounding: the same value where z is whole, and autograd masks by the position.
    clamped = (ratio + z0).clamp(form.q_min, form.q_max)
    rounded = (ratio.round() + z0).clamp(form.q_min, form.q_max)
    plain = s0 * (clamped + (rounded - clamped).detach() - z0)
    plain.backward(upstream)
    scaling = 1 / math.sqrt(x.numel() / s.numel() * form.q_max)
    assert torch.allclose(plain, fake_quantize(x, operands(x, s, z, form)), rtol=0, atol=1e-6)
    assert x0.grad is not None
    assert s0.grad is not None
    assert z0.grad is not None
    assert torch.allclose(found[0], x0.grad, rtol=0, atol=1e-6)
    assert torch.allclose(found[1], s0.grad * scaling, rtol=1e-4, atol=1e-5)
    assert torch.allclose(found[2], z0.grad * scaling, rtol=1e-4, atol=1e-5)


def test_what_needs_no_gradient_gets_none() -> None:
    x = torch.randn(8)
    scale = torch.tensor(0.1, requires_grad=True)
    fake_quantize(x, operands(x, scale, torch.tensor(0.0), form_of(4, signed=True))).sum().backward()
    assert x.grad is None
    assert scale.grad is not None


@given(value=st.floats(-300, 300))
def test_rounding_straight_through_is_exactly_whole(value: float) -> None:
    x = torch.tensor(value, dtype=torch.float32, requires_grad=True)
    rounded = round_straight_through(x)
    assert rounded.item() == float(np.rint(np.float32(value)))
    rounded.backward()
    assert x.grad == 1.0


@pytest.mark.parametrize(
    ("value", "gradient", "passed"),
    [(0.0, 3.0, True), (1.0, -3.0, True), (1.5, -3.0, False), (1.5, 3.0, True), (-2.0, 3.0, False), (-2.0, -3.0, True)],
)
def test_the_recoverable_clamp_blocks_only_steps_that_lead_further_out(
    value: float, gradient: float, passed: bool
) -> None:
    x = torch.tensor(value, requires_grad=True)
    clamped = clamp_recoverably(x, -1.0, 1.0)
    assert clamped.item() == min(max(value, -1.0), 1.0)
    clamped.backward(torch.tensor(gradient))
    assert x.grad == (gradient if passed else 0.0)


def asymmetric_quantizer(values: Tensor, form: Form) -> ElasticQuantizer:
    quantizer = ElasticQuantizer([form], channels=values.shape[0])
    quantizer.initialize(values)
    quantizer.activate(form)
    return quantizer


@pytest.mark.parametrize("per_channel", [False, True])
def test_negative_zero_points_stay_negative_while_training(per_channel: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(3, 400, generator=generator) * 1.5 - 0.3  # mostly positive: the zero-point is negative
    form = form_of(4, signed=True, per_channel=per_channel)
    quantizer = asymmetric_quantizer(values, form)
    before = quantizer.encoding(form).zero_point
    assert (before < 0).all()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        (quantizer(values) - values).square().mean().backward()
        optimizer.step()
    after = quantizer.encoding(form)
    assert (after.zero_point < 0).all()
    error = torch.from_numpy(after.dequantize(after.quantize(values.numpy()))) - values
    assert error.square().mean() < 0.01 * values.square().mean()


def test_a_zero_point_beyond_the_range_comes_back() -> None:
    values = torch.rand(1, 500) * 2.0 - 1.6  # wants a zero-point near 4 on signed 4 bits
    form = form_of(4, signed=True)
    quantizer = asymmetric_quantizer(values, form)
    wanted = int(quantizer.encoding(form).zero_point)
    with torch.no_grad():
        quantizer.zero_point[form.key].fill_(form.q_max + 2.0)
    assert int(quantizer.encoding(form).zero_point) == form.q_max
    optimizer = torch.optim.Adam(quantizer.zero_point.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (quantizer(values) - values).square().mean().backward()
        optimizer.step()
    assert abs(int(quantizer.encoding(form).zero_point) - wanted) <= 2


@pytest.mark.parametrize("step", [1e3, -1e3, 1e30, -1e30, 3e38, -3e38])
def test_scales_stay_positive_and_normal_after_absurd_steps(step: float) -> None:
    form = form_of(4, signed=True, per_channel=True)
    values = torch.randn(3, 50)
    quantizer = asymmetric_quantizer(values, form)
    with torch.no_grad():
        quantizer.log2_scale[form.key].add_(step)
        quantizer.zero_point[form.key].add_(step)
    encoding = quantizer.encoding(form)  # its constructor refuses scales that are not finite and positive
    assert (encoding.scale >= 2.0**-60).all()
    assert (encoding.scale <= 2.0**60).all()
    assert torch.isfinite(quantizer(values)).all()
