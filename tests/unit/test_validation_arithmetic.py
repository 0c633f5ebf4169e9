"""Float32 arithmetic of the reference against exact rational numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from eqdeploy.quant.encoding import Encoding
from eqdeploy.validation.reference.arithmetic import add_codes, logistic, multiply_add, multiply_codes, requantize

FLOATS = st.floats(-1e6, 1e6, width=32, allow_nan=False)
CODES = st.integers(0, 255)


def nearest_float32(exact: Fraction) -> np.float32:
    """Round a rational number to float32, ties to even, without any floating-point arithmetic."""
    guess = np.float32(float(exact))
    candidates = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    distances = [abs(Fraction(float(candidate)) - exact) for candidate in candidates]
    best = [candidate for candidate, far in zip(candidates, distances, strict=True) if far == min(distances)]
    return next(candidate for candidate in best if len(best) == 1 or candidate.view(np.int32) % 2 == 0)


def round_half_even(exact: Fraction) -> int:
    return round(exact)


def encoding(scale: float, zero_point: int, *, signed: bool = False) -> Encoding:
    low, high = (-128, 127) if signed else (0, 255)
    return Encoding.per_tensor(scale, zero_point, low, high, 8, signed=signed)


def codes(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


@settings(max_examples=300, deadline=None)
@given(FLOATS, FLOATS, FLOATS)
def test_multiply_add_rounds_once(a: float, b: float, c: float) -> None:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    assert multiply_add(np.float32(a), np.float32(b), np.float32(c)) == nearest_float32(exact)


def test_multiply_add_does_not_round_twice() -> None:
    # The product lies above a float32 midpoint by less than float64 resolves next to the large addend.
    a, b, c = np.float32(1 + 2**-12), np.float32(1 + 2**-12), np.float32(2**24)
    assert multiply_add(a, b, c) == nearest_float32(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))
    tiny = np.float32(2.0**-60)
    half = np.float32(2.0**-24)
    assert multiply_add(np.float32(1), np.float32(1), half) == np.float32(1)
    assert multiply_add(np.float32(1) + half * 2, np.float32(1), half) == np.float32(1) + half * 4
    assert multiply_add(tiny, np.float32(1), np.float32(1) + half * 2) == np.float32(1) + half * 2


@given(st.integers(-(2**31), 2**31 - 1), st.floats(1e-6, 1.0), st.floats(1e-3, 10.0), CODES)
def test_requantize_is_one_float32_product(total: int, input_scale: float, scale: float, zero_point: int) -> None:
    output = encoding(scale, zero_point)
    multiplier = nearest_float32(Fraction(float(np.float32(input_scale))) / Fraction(float(output.scale)))
    product = nearest_float32(Fraction(float(np.float32(total))) * Fraction(float(multiplier)))
    expected = min(max(round_half_even(Fraction(float(product))) + zero_point, 0), 255)
    assert requantize(np.array([total]), np.asarray(np.float32(input_scale)), output).tolist() == [expected]


def test_ties_go_to_even_before_the_zero_point_is_added() -> None:
    sums = np.array([1, 3, 5, -1, -3])
    for zero_point in (0, 3, 128):
        found = requantize(sums, np.asarray(np.float32(0.5)), encoding(1.0, zero_point)) - zero_point
        assert found.tolist() == np.clip([0, 2, 2, 0, -2], -zero_point, 255).tolist()


def test_sums_are_rounded_after_the_zero_point_is_added() -> None:
    one = (codes(1), encoding(0.5, 0))
    none = (codes(0), encoding(0.5, 0))
    assert add_codes(one, none, encoding(1.0, 0)).tolist() == [0]
    assert add_codes(one, none, encoding(1.0, 3)).tolist() == [4]  # 3.5 rounds up, 0.5 + 3 by the ONNX rule gives 3
    assert multiply_codes(one, (codes(1), encoding(1.0, 0)), encoding(1.0, 3)).tolist() == [4]


@given(CODES, CODES, CODES, CODES, st.integers(-6, 0), st.integers(-6, 0))
def test_sums_with_power_of_two_scales_are_exact(q1: int, q2: int, z1: int, z2: int, e1: int, e2: int) -> None:
    first, second, output = encoding(2.0**e1, z1), encoding(2.0**e2, z2), encoding(0.25, 100)
    exact = Fraction(2) ** e1 * (q1 - z1) + Fraction(2) ** e2 * (q2 - z2)
    expected = min(max(round_half_even(exact * 4 + 100), 0), 255)
    assert add_codes((codes(q1), first), (codes(q2), second), output).tolist() == [expected]
    product = Fraction(2) ** (e1 + e2) * (q1 - z1) * (q2 - z2)
    expected = min(max(round_half_even(product * 4 + 100), 0), 255)
    assert multiply_codes((codes(q1), first), (codes(q2), second), output).tolist() == [expected]


@pytest.mark.parametrize("shape", [(4, 1), (1,), (1, 1, 1)])
def test_the_operand_that_is_constant_along_rows_is_added_first(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    small = (random.integers(0, 256, shape).astype(np.int32), encoding(0.017, 13))
    large = (random.integers(0, 256, (4, 64)).astype(np.int32), encoding(0.031, 77))
    output = encoding(0.029, 91)
    assert np.array_equal(add_codes(small, large, output), add_codes(large, small, output))


def test_logistic_is_close_to_the_sigmoid_and_stays_inside_its_range() -> None:
    x = np.linspace(-30, 30, 60_001, dtype=np.float32)
    found = logistic(x)
    assert found.dtype == np.float32
    assert np.all((found >= 0) & (found <= 1))
    assert np.abs(found - 1 / (1 + np.exp(-x.astype(np.float64)))).max() < 1.7e-7
