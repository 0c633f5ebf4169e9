"""Ranges of tensors that training gave no scale."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from eqdeploy.calibration.ranges import calibrate_encodings, sample_tensors
from eqdeploy.errors import DataError
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.supernet import Supernet
from tests.unit.supernet_parts import SPACE, Net, conv

UNSIGNED = Form(4, Granularity.PER_TENSOR, Symmetry.ASYMMETRIC, signed=False)


def body(m: Net, x: Tensor) -> Tensor:
    x = torch.relu(m.a(x))  # type: ignore[operator]
    return x + m.b(x)  # type: ignore[operator, no-any-return]


def supernet_at(bits: int) -> Supernet:
    torch.manual_seed(0)
    model = Net(body, a=conv(), b=conv(4, 4), drop=nn.Dropout(0.5))
    supernet = Supernet.from_float(model, torch.zeros(2, 3, 8, 8), SPACE)
    supernet.initialize(images(16)[0])
    supernet.activate(
        SubnetConfig.uniform(
            supernet.network,
            weight_bits=bits,
            activation_bits=bits,
            granularity=Granularity.PER_CHANNEL,
            weight_symmetry=Symmetry.SYMMETRIC,
            activation_symmetry=Symmetry.ASYMMETRIC,
            boundary_bits=bits,
        )
    )
    return supernet


def images(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, 3, 8, 8, generator=generator) for size in sizes]


def test_samples_are_taken_before_the_tensors_own_quantizer() -> None:
    supernet = supernet_at(2)
    samples = sample_tensors(supernet, images(4, 2), ["relu", "add"])
    quantizers = supernet.activation_quantizers()
    with torch.no_grad():
        x = quantizers["x"](torch.cat(images(4, 2)))
        relu = torch.relu(supernet.graph_module.get_submodule("a")(x))
        quantized = quantizers["relu"](relu)
        add = quantized + supernet.graph_module.get_submodule("b")(quantized)
    assert samples["relu"].shape == (1, 6 * 4 * 64), "few enough values are all kept"
    assert torch.equal(samples["relu"].reshape(-1), relu.reshape(-1))
    assert torch.equal(samples["add"].reshape(-1), add.reshape(-1))
    assert len(torch.unique(samples["relu"])) > 4 >= len(torch.unique(quantized))


def test_sampling_repeats_and_keeps_modes() -> None:
    supernet = supernet_at(4).train()
    supernet.graph_module.get_submodule("a").eval()
    first, second = (sample_tensors(supernet, images(3, 3), ["add", "x"]) for _ in range(2))
    assert supernet.training
    assert not supernet.graph_module.get_submodule("a").training
    for name in first:
        assert torch.equal(first[name], second[name])


def test_large_tensors_are_thinned_out_but_keep_every_batchs_extremes() -> None:
    model = nn.Sequential(conv(1, 1, 1))
    supernet = Supernet.from_float(model, torch.zeros(2, 1, 64, 64), SPACE)
    batches = [torch.randn(16, 1, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    batches[1][3, 0, 5, 7] = 99.0
    samples = sample_tensors(supernet, batches, ["input_1"])["input_1"]
    assert samples.shape[1] < 3 * 10_000
    assert samples.max() == 99.0
    for batch in batches:
        assert (samples == batch.min()).any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused_by_tensor(value: float) -> None:
    supernet = supernet_at(8)
    batch = images(2)[0]
    batch[0, 0, 0, 0] = value
    with pytest.raises(DataError, match="x: .*not finite"):
        sample_tensors(supernet, [batch], ["x"])
    supernet.deactivate()
    with pytest.raises(DataError, match="add: .*not finite"):
        sample_tensors(supernet, [batch], ["add"])


def test_no_image_at_all() -> None:
    with pytest.raises(DataError, match="empty"):
        sample_tensors(supernet_at(8), [], ["add"])


def test_encodings_have_the_form_and_little_error() -> None:
    samples = {"a": torch.randn(1, 5000), "b": torch.rand(1, 5000) * 7}
    forms = {"a": UNSIGNED, "b": Form(3, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=False)}
    encodings = calibrate_encodings(samples, forms)
    for name, form in forms.items():
        encoding = encodings[name]
        assert (encoding.q_min, encoding.q_max, encoding.bits, encoding.signed, encoding.axis) == (
            form.q_min,
            form.q_max,
            form.bits,
            form.signed,
            None,
        )
        values = samples[name].numpy()
        error = encoding.dequantize(encoding.quantize(values)) - values
        assert (error**2).mean() < (0.02 if name == "a" else 0.11)


@pytest.mark.parametrize("form", [UNSIGNED, Form(8, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=True)])
def test_tensors_that_no_image_excites_and_extreme_ones(form: Form) -> None:
    samples = {
        "zero": torch.zeros(1, 10),
        "constant": torch.full((1, 10), 0.3),
        "negative": torch.full((1, 10), -0.3),
        "tiny": torch.full((1, 10), 1e-30),
        "huge": torch.tensor([[3e38, -3e38]]),
    }
    encodings = calibrate_encodings(samples, dict.fromkeys(samples, form))
    assert encodings["zero"].scale == 1.0
    for name, encoding in encodings.items():
        assert 2.0**-60 <= float(encoding.scale) <= 2.0**60
        if name in ("constant", "negative"):
            values = samples[name].numpy()
            assert encoding.dequantize(encoding.quantize(values)) == pytest.approx(values, rel=1e-2)
