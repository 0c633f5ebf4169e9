"""Exact numbers and their bounds: float32 arithmetic in any order must stay inside, and a wrong number must not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.testing import ModelBuilder
from eqdeploy.validation.reference.exact import (
    UNIT_ROUNDOFF,
    Estimate,
    ExactCodes,
    ExactIntegerSums,
    ExactNumbers,
    ExactValue,
    estimate,
    gamma,
)
from eqdeploy.validation.reference.graph import Graph, Walk

UNSIGNED = Encoding.per_tensor(0.037, 113, 0, 255, 8, signed=False)


def value_of(model: QuantizedModel, name: str, batch: NDArray[np.float32], numbers: ExactNumbers) -> Estimate:
    """Exact numbers of one tensor, from the codes that the input gets."""
    graph = Graph.of(model)
    walk: Walk[ExactValue] = Walk(graph, numbers)
    known = {"x": graph.encodings["x"].quantize(batch)}
    return estimate(walk.run(batch, lambda *_: np.zeros(0, np.int32), known=known, targets=[name])[name])


def summed_in_float32(terms: NDArray[np.float32], order: NDArray[np.int64]) -> np.float32:
    """Add float32 numbers one after the other in some order."""
    total = np.float32(0)
    for index in order:
        total = np.float32(total + terms[index])
    return total


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200))
def test_sums_in_any_order_stay_inside_the_bound(seed: int, length: int) -> None:
    random = np.random.default_rng(seed)
    builder = ModelBuilder(seed=seed % 1000)
    x = builder.encode(builder.input("x", length), encoding=UNSIGNED)
    builder.layer("fc", "Gemm", x, (1, length), bias=1, transB=1)
    model = builder.build("fc")
    batch = random.normal(0, 2, (1, length)).astype(np.float32)
    found = value_of(model, "fc", batch, ExactNumbers())
    weight, bias = model.parameters["fc.weight"], model.parameters["fc.bias"]
    data = UNSIGNED.dequantize(UNSIGNED.quantize(batch))[0]
    terms = data * weight.encoding.dequantize(weight.codes)[0]
    terms = np.append(terms, bias.encoding.dequantize(bias.codes)).astype(np.float32)
    for order in (np.arange(terms.size), np.argsort(terms), np.argsort(-np.abs(terms)), random.permutation(terms.size)):
        assert abs(float(summed_in_float32(terms, order)) - found.value.item()) <= found.error.item()


def test_the_bound_is_not_vacuous() -> None:
    builder = ModelBuilder()
    x = builder.encode(builder.input("x", 64), encoding=UNSIGNED)
    builder.layer("fc", "Gemm", x, (4, 64), bias=4, transB=1)
    model = builder.build("fc")
    batch = np.random.default_rng(0).normal(0, 2, (8, 64)).astype(np.float32)
    found = value_of(model, "fc", batch, ExactNumbers())
    integer = value_of(model, "fc", batch, ExactIntegerSums())
    assert np.array_equal(found.value, integer.value)
    assert found.error.max() < 1e-3
    assert np.all(integer.error <= 8 * UNIT_ROUNDOFF * np.abs(integer.value) + 1e-30)
    assert integer.error.max() < found.error.max() / 20


def _float32(array: NDArray[Any]) -> NDArray[np.float32]:
    return array.astype(np.float32)


@pytest.mark.parametrize(
    ("op_type", "attributes", "in_float32"),
    [
        ("Sigmoid", {}, lambda x: 1 / (1 + np.exp(-x))),
        ("HardSigmoid", {"alpha": 0.2, "beta": 0.5}, lambda x: np.clip(np.float32(0.2) * x + np.float32(0.5), 0, 1)),
        ("Tanh", {}, np.tanh),
        ("Exp", {}, np.exp),
        ("Relu", {}, lambda x: np.maximum(x, 0)),
        ("GlobalAveragePool", {}, lambda x: x.mean(axis=(2, 3), keepdims=True, dtype=np.float32)),
        (
            "AveragePool",
            {"kernel_shape": [2, 2]},
            lambda x: (x[..., :-1, :-1] + x[..., :-1, 1:] + x[..., 1:, :-1] + x[..., 1:, 1:]) / np.float32(4),
        ),
        ("MaxPool", {"kernel_shape": [1, 2]}, lambda x: np.maximum(x[..., :-1], x[..., 1:])),
        ("Transpose", {"perm": [0, 2, 3, 1]}, lambda x: x.transpose(0, 2, 3, 1)),
    ],
)
def test_other_operations_stay_inside_their_bounds(op_type: str, attributes: dict[str, Any], in_float32: Any) -> None:
    builder = ModelBuilder()
    x = builder.encode(builder.input("x", 3, 6, 6), encoding=UNSIGNED)
    builder.node("y", op_type, [x], **attributes)
    batch = np.random.default_rng(0).normal(0, 2, (4, 3, 6, 6)).astype(np.float32)
    found = value_of(builder.build("y"), "y", batch, ExactNumbers())
    data = UNSIGNED.dequantize(UNSIGNED.quantize(batch))
    computed = _float32(in_float32(data))
    assert computed.shape == found.value.shape
    assert np.all(np.abs(computed - found.value) <= found.error + 1e-30)
    assert np.max(found.error) < 1e-2 * np.max(np.abs(found.value))


@pytest.mark.parametrize(("op_type", "function"), [("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply)])
def test_errors_grow_through_chains_of_operations(op_type: str, function: Any) -> None:
    builder = ModelBuilder()
    x = builder.encode(builder.input("x", 50), encoding=UNSIGNED)
    previous = x
    for index in range(6):
        previous = builder.node(f"y{index}", op_type, [previous, x])
    model = builder.build(previous)
    batch = np.random.default_rng(0).normal(0, 1, (20, 50)).astype(np.float32)
    data = UNSIGNED.dequantize(UNSIGNED.quantize(batch))
    computed = data
    for index in range(6):
        computed = function(computed, data)
        found = value_of(model, f"y{index}", batch, ExactNumbers())
        assert np.all(np.abs(computed - found.value) <= found.error)


def test_codes_near_a_boundary_may_be_either_neighbour() -> None:
    grid = Encoding.per_tensor(0.5, 10, 0, 20, 8, signed=False)
    steps = np.array([2.0, 2.5, 2.5 - 1e-9, 2.4, -2.5, 99.0])
    error = np.array([1e-6, 1e-6, 1e-6, 1e-6, 1e-6, 1e-6])
    exact = ExactCodes(steps, error, grid)
    assert exact.lowest().tolist() == [12, 12, 12, 12, 7, 20]
    assert exact.highest().tolist() == [12, 13, 13, 12, 8, 20]
    assert exact.is_tie(1e-12).tolist() == [False, True, False, False, True, False]


def test_the_error_of_codes_counts_steps() -> None:
    grid = Encoding.per_tensor(0.25, 0, 0, 255, 8, signed=False)
    number = Estimate(np.array([10.0]), np.array([0.5]), np.array([10.0]))
    exact = ExactCodes.of(number, grid)
    assert exact.steps.item() == 40
    assert 2.0 <= exact.error.item() <= 2.0 + 1e-4


def test_gamma_is_the_bound_of_repeated_rounding() -> None:
    for count in (1, 10, 1000):
        assert (1 + UNIT_ROUNDOFF) ** count - 1 <= gamma(count) <= 1.001 * count * UNIT_ROUNDOFF


def test_float_biases_keep_the_bound_of_float_sums() -> None:
    builder = ModelBuilder()
    x = builder.encode(builder.input("x", 16), encoding=UNSIGNED)
    builder.layer("fc", "Gemm", x, (2, 16), bias=2, transB=1)
    model = builder.build("fc")
    model = replace(model, parameters={"fc.weight": model.parameters["fc.weight"]})
    batch = np.random.default_rng(0).normal(0, 2, (8, 16)).astype(np.float32)
    loose = value_of(model, "fc", batch, ExactNumbers())
    kept = value_of(model, "fc", batch, ExactIntegerSums())
    assert np.array_equal(loose.error, kept.error)
