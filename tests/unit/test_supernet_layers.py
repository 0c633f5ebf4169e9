"""Elastic layers compute torch's layer on the fake-quantized weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eqdeploy.network import ElasticSpace
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.supernet.layers import channel_axis, make_elastic

SPACE = ElasticSpace(bits=(2, 4, 8))

LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 12)),
    "conv1d-everything": (
        lambda: nn.Conv1d(4, 8, 5, stride=2, padding=4, dilation=2, groups=2, padding_mode="circular"),
        (2, 4, 12),
    ),
    "conv2d": (lambda: nn.Conv2d(3, 5, 3), (2, 3, 8, 8)),
    "conv2d-no-bias": (lambda: nn.Conv2d(3, 5, 3, bias=False), (2, 3, 8, 8)),
    "conv2d-depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1), (2, 4, 8, 8)),
    "conv2d-groups-dilation": (
        lambda: nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(2, 4), dilation=2, groups=2),
        (2, 4, 9, 11),
    ),
    "conv2d-circular": (lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="circular"), (2, 3, 8, 8)),
    "conv2d-reflect": (lambda: nn.Conv2d(3, 4, 3, padding=1, stride=2, padding_mode="reflect"), (2, 3, 8, 8)),
    "conv2d-replicate": (lambda: nn.Conv2d(3, 4, 5, padding=2, padding_mode="replicate"), (2, 3, 8, 8)),
    "conv2d-same": (lambda: nn.Conv2d(3, 4, (5, 3), padding="same", dilation=(1, 2)), (2, 3, 8, 8)),
    "conv-transpose": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5, 5)),
    "conv-transpose-groups": (
        lambda: nn.ConvTranspose2d(4, 6, (2, 3), stride=(2, 1), groups=2, dilation=2, bias=False),
        (2, 4, 5, 5),
    ),
    "linear": (lambda: nn.Linear(7, 5), (3, 7)),
    "linear-on-sequences": (lambda: nn.Linear(7, 5, bias=False), (3, 4, 7)),
}


def quantized_by_hand(weight: Tensor, form: Form, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    shape = [1] * weight.ndim
    if scale.ndim:
        shape[axis] = -1
    scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    codes = ((weight / scale).round() + zero_point).clamp(form.q_min, form.q_max)
    return (codes - zero_point) * scale


@pytest.mark.parametrize("name", LAYERS)
def test_forward_is_torchs_layer_on_the_quantized_weight(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make()
    elastic = make_elastic(layer, SPACE.weight_forms())
    x = torch.randn(shape)
    assert torch.equal(elastic(x), layer(x)), "without a form the layer is a float layer"
    elastic.weight_quantizer.initialize(layer.weight)
    latent = layer.weight.detach().clone()
    for form in SPACE.weight_forms():
        elastic.weight_quantizer.activate(form)
        scale, zero_point = (number.detach() for number in elastic.weight_quantizer.numbers(form))
        expected_channels = latent.shape[channel_axis(layer)] if form.granularity is Granularity.PER_CHANNEL else 1
        assert scale.numel() == expected_channels
        with torch.no_grad():
            found = elastic(x)
            layer.weight.copy_(quantized_by_hand(latent, form, scale, zero_point, channel_axis(layer)))
            expected = layer(x)  # shares its weight with the elastic layer
            layer.weight.copy_(latent)
        assert torch.equal(found, expected)
        assert not torch.equal(found, layer(x)), "quantization must show"
    elastic.weight_quantizer.activate(None)
    assert torch.equal(elastic(x), layer(x))


@pytest.mark.parametrize("name", LAYERS)
def test_weights_are_shared_and_only_the_active_form_is_trained(name: str) -> None:
    make, shape = LAYERS[name]
    layer = make()
    elastic = make_elastic(layer, SPACE.weight_forms())
    assert elastic.weight is layer.weight
    assert elastic.bias is layer.bias
    assert elastic.training == layer.training
    elastic.weight_quantizer.initialize(layer.weight)
    active = Form(4, Granularity.PER_CHANNEL, Symmetry.ASYMMETRIC, signed=True)
    elastic.weight_quantizer.activate(active)
    elastic(torch.randn(shape)).square().sum().backward()
    assert layer.weight.grad is not None
    for table in (elastic.weight_quantizer.log2_scale, elastic.weight_quantizer.zero_point):
        for key, parameter in table.items():
            assert (parameter.grad is not None) == (key == active.key), key


def test_the_scale_gradient_reaches_the_parameter_through_the_power_of_two() -> None:
    form = Form(4, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=True)
    elastic = make_elastic(nn.Linear(6, 4), [form])
    elastic.weight_quantizer.initialize(elastic.weight)
    elastic.weight_quantizer.activate(form)
    scale, _ = elastic.weight_quantizer.numbers(form)
    scale.retain_grad()
    parameter = elastic.weight_quantizer.log2_scale[form.key]
    scale.backward(torch.tensor(3.0))
    assert parameter.grad is not None
    assert parameter.grad.item() == pytest.approx(3.0 * scale.item() * 0.6931472, rel=1e-5)


def test_axes() -> None:
    for layer, axis in (
        (nn.Conv1d(1, 1, 1), 0),
        (nn.Conv2d(1, 1, 1), 0),
        (nn.ConvTranspose2d(1, 1, 1), 1),
        (nn.Linear(1, 1), 0),
    ):
        assert channel_axis(layer) == axis


def test_other_layers_are_refused() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    for layer in (nn.Embedding(2, 2), nn.Bilinear(2, 2, 2), Doubled(1, 1, 1)):
        with pytest.raises(TypeError, match="no quantizable layer"):
            make_elastic(layer, SPACE.weight_forms())


def test_an_output_size_is_refused() -> None:
    elastic = make_elastic(nn.ConvTranspose2d(1, 1, 2, stride=2), SPACE.weight_forms())
    with pytest.raises(ValueError, match="output_padding"):
        elastic(torch.zeros(1, 1, 4, 4), output_size=[8, 8])


def test_a_form_without_numbers_is_refused() -> None:
    elastic = make_elastic(nn.Linear(2, 2), SPACE.weight_forms())
    with pytest.raises(ValueError, match="5-per_tensor"):
        elastic.weight_quantizer.activate(Form(5, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=True))
