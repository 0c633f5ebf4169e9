"""Initial scales and zero-points against a brute-force search, and on values that leave little to search."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from eqdeploy.network import ElasticSpace
from eqdeploy.quant.elastic_quantizer import ElasticQuantizer
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quant.initialize import minimize_error, subsample

SYMMETRIC, ASYMMETRIC = Symmetry.SYMMETRIC, Symmetry.ASYMMETRIC


def error_of(values: Tensor, scale: Tensor, zero_point: Tensor, form: Form) -> Tensor:
    """Mean squared error of each candidate, written out; values (N,), candidates (K,)."""
    codes = ((values / scale[:, None]).round() + zero_point[:, None]).clip(form.q_min, form.q_max)
    return ((codes - zero_point[:, None]) * scale[:, None] - values).square().mean(dim=1)


def brute_force(values: Tensor, form: Form) -> float:
    """Smallest error over a fine grid of scales and all zero-points."""
    extent = float(values.abs().max())
    scales = torch.logspace(-3.2, 0.3, 900) * extent
    zero_points = [0.0] if form.symmetry is SYMMETRIC else [float(z) for z in range(form.q_min, form.q_max + 1)]
    return min(
        float(error_of(values, scales, torch.full_like(scales, zero_point), form).min()) for zero_point in zero_points
    )


def found_error(values: Tensor, form: Form) -> float:
    scale, zero_point = minimize_error(values.reshape(1, -1), form)
    return float(error_of(values.reshape(-1), scale, zero_point, form))


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


DISTRIBUTIONS: dict[str, Callable[[], Tensor]] = {
    "gaussian": lambda: torch.randn(1500, generator=random(0)),
    "uniform": lambda: torch.rand(1500, generator=random(1)) * 2 - 1,
    "relu": lambda: torch.randn(1500, generator=random(2)).relu(),
    "silu": lambda: torch.nn.functional.silu(2 * torch.randn(1500, generator=random(3))),
    "heavy-tailed": lambda: torch.randn(1500, generator=random(4)) / (torch.rand(1500, generator=random(5)) + 0.01),
    "one outlier": lambda: torch.cat([torch.randn(1500, generator=random(6)), torch.tensor([60.0])]),
    "all positive": lambda: torch.rand(1500, generator=random(7)) * 0.5 + 0.5,
    "all negative": lambda: -torch.rand(1500, generator=random(8)) * 0.5 - 0.5,
    "two clusters": lambda: (
        torch.randn(1500, generator=random(9)).sign() + 0.05 * torch.randn(1500, generator=random(10))
    ),
}


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("symmetry", list(Symmetry))
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_close_to_the_best_of_a_fine_grid(name: str, symmetry: Symmetry, bits: int) -> None:
    values = DISTRIBUTIONS[name]()
    form = Form(bits, Granularity.PER_TENSOR, symmetry, signed=True)
    # Between two clusters the error has many narrow valleys; anywhere else a coarse search finds the widest.
    tolerance = 1.1 if name == "two clusters" else 1.02
    assert found_error(values, form) <= tolerance * brute_force(values, form)


@pytest.mark.parametrize("name", ["gaussian", "uniform", "heavy-tailed", "all positive"])
def test_close_to_the_best_of_a_fine_grid_at_eight_bits(name: str) -> None:
    values = DISTRIBUTIONS[name]()
    form = Form(8, Granularity.PER_TENSOR, SYMMETRIC, signed=True)
    assert found_error(values, form) <= 1.02 * brute_force(values, form)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ["relu", "silu", "all positive"])
def test_unsigned_forms_of_activations(name: str, bits: int) -> None:
    values = DISTRIBUTIONS[name]()
    form = Form(bits, Granularity.PER_TENSOR, SYMMETRIC, signed=False)
    assert found_error(values, form) <= 1.02 * brute_force(values, form)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_free_zero_point_does_no_harm(name: str, bits: int) -> None:
    values = DISTRIBUTIONS[name]()
    symmetric = found_error(values, Form(bits, Granularity.PER_TENSOR, SYMMETRIC, signed=True))
    asymmetric = found_error(values, Form(bits, Granularity.PER_TENSOR, ASYMMETRIC, signed=True))
    assert asymmetric <= 1.05 * symmetric


@pytest.mark.parametrize("symmetry", list(Symmetry))
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (32, 1, 3, 3), (10, 64)])
def test_finer_granularity_starts_no_worse(shape: tuple[int, ...], bits: int, symmetry: Symmetry) -> None:
    spread = torch.logspace(-1, 0, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    weight = torch.randn(shape, generator=random(bits)) * spread
    errors = {}
    for granularity in Granularity:
        form = Form(bits, granularity, symmetry, signed=True)
        quantizer = ElasticQuantizer([form], channels=shape[0])
        quantizer.initialize(weight)
        quantizer.activate(form)
        with torch.no_grad():
            errors[granularity] = float((quantizer(weight) - weight).square().mean())
    assert errors[Granularity.PER_CHANNEL] <= 1.02 * errors[Granularity.PER_TENSOR]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetry", list(Symmetry))
@pytest.mark.parametrize("value", [0.7, -0.7, 3e-20, -5e20])
def test_a_single_value_is_represented(value: float, symmetry: Symmetry, bits: int) -> None:
    values = torch.full((1, 5), value)
    form = Form(bits, Granularity.PER_TENSOR, symmetry, signed=True)
    scale, zero_point = minimize_error(values, form)
    code = ((values / scale).round() + zero_point).clip(form.q_min, form.q_max)
    assert float(((code - zero_point) * scale)[0, 0]) == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("form", [*ElasticSpace(bits=(2, 8)).weight_forms()], ids=lambda form: form.key)
def test_rows_scale_exactly_with_powers_of_two(form: Form) -> None:
    row = torch.randn(1, 200, generator=random(0))
    exponents = torch.tensor([-90.0, -31.0, 0.0, 17.0, 80.0])
    scale, zero_point = minimize_error(row * torch.exp2(exponents)[:, None], form)
    assert torch.equal(scale, scale[2] * torch.exp2(exponents))
    assert torch.equal(zero_point, zero_point[2].expand(5))


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("symmetry", list(Symmetry))
def test_rows_with_nothing_to_fit_get_usable_numbers(symmetry: Symmetry, signed: bool, bits: int) -> None:
    form = Form(bits, Granularity.PER_CHANNEL, symmetry, signed=signed)
    rows = torch.stack(
        [
            torch.zeros(6),
            torch.full((6,), 0.3),
            torch.full((6,), -0.3),
            torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1e-44]),
            torch.tensor([3.4e38, -3.4e38, 0.0, 1.0, -1.0, 0.5]),
            torch.arange(6) / 6,
        ]
    )
    scale, zero_point = minimize_error(rows, form)
    assert (torch.isfinite(scale) & (scale > 0)).all()
    assert ((zero_point >= form.q_min) & (zero_point <= form.q_max) & (zero_point == zero_point.round())).all()


def test_nothing_but_zeros_gets_scale_one() -> None:
    for form in ElasticSpace(bits=(2, 8)).weight_forms():
        scale, zero_point = minimize_error(torch.zeros(3, 4), form)
        assert scale.tolist() == [1.0, 1.0, 1.0]
        assert zero_point.tolist() == [0.0, 0.0, 0.0]


def test_a_dead_row_takes_the_scale_of_the_largest() -> None:
    rows = torch.randn(3, 100, generator=random(1)) * torch.tensor([[1.0], [0.0], [5.0]])
    scale, _ = minimize_error(rows, Form(4, Granularity.PER_CHANNEL, SYMMETRIC, signed=True))
    assert scale[1] == scale[2] > scale[0]


@pytest.mark.parametrize("count", [1, 99, 100, 101, 199, 1000])
def test_a_subsample_is_small_and_keeps_the_extremes(count: int) -> None:
    values = torch.randn(4, count, generator=random(count))
    sample = subsample(values, 100)
    assert sample.shape[1] <= 102
    assert torch.equal(sample.amin(dim=1), values.amin(dim=1))
    assert torch.equal(sample.amax(dim=1), values.amax(dim=1))
    assert torch.isin(sample, values).all()


@pytest.mark.parametrize("shape", [(64, 16, 32, 32), (96, 24, 14, 14), (40, 3, 56, 56)])
@pytest.mark.parametrize("limit", [1 << 10, 1 << 13])
def test_a_subsample_of_images_takes_every_column_alike(shape: tuple[int, ...], limit: int) -> None:
    columns = torch.arange(shape[-1], dtype=torch.float32).expand(shape).reshape(1, -1)
    counts = torch.bincount(subsample(columns, limit)[0].long(), minlength=shape[-1])
    expected = limit / shape[-1]
    assert counts.min() > 0.5 * expected
    assert counts.max() < 1.5 * expected + 2


def test_large_tensors_start_near_the_optimum_of_all_their_values() -> None:
    values = torch.randn(300_000, generator=random(2))
    form = Form(4, Granularity.PER_TENSOR, SYMMETRIC, signed=True)
    quantizer = ElasticQuantizer([form])
    quantizer.initialize(values)
    quantizer.activate(form)
    with torch.no_grad():
        found = float((quantizer(values) - values).square().mean())
    whole = found_error(values, form)
    assert found <= 1.02 * whole


def test_initialization_repeats_and_fills_every_form() -> None:
    space = ElasticSpace(bits=(2, 4, 8))
    weight = torch.randn(4, 8, 3, 3, generator=random(3))
    first, second = (ElasticQuantizer(space.weight_forms(), channels=4) for _ in range(2))
    first.initialize(weight)
    second.initialize(weight)
    for form in space.weight_forms():
        assert first.encoding(form).equals(second.encoding(form))
        relative = (
            first.encoding(form).dequantize(first.encoding(form).quantize(weight.numpy())) - weight.numpy()
        ) ** 2
        assert relative.mean() < {2: 0.2, 4: 0.02, 8: 1e-4}[form.bits] * float(weight.square().mean())


def test_the_number_of_threads_changes_no_bit() -> None:
    values = torch.randn(1, 70_000, generator=random(5))  # more than torch adds up in one thread
    form = Form(8, Granularity.PER_TENSOR, ASYMMETRIC, signed=False)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(torch.stack(minimize_error(values, form)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
