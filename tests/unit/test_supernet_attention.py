"""Torch's attention and Transformer modules compute what they did once they are written out."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.network import ElasticSpace, OpKind
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.supernet.tracing import trace
from tests.unit.supernet_parts import Net, randomize

CAUSAL = nn.Transformer.generate_square_subsequent_mask(5)


def _assert_equal(model: nn.Module, *shape: int) -> Any:
    torch.manual_seed(0)
    randomize(model).eval()
    graph = trace(model, torch.zeros(2, *shape)).eval()
    for batch in (1, 3):
        x = torch.randn(batch, *shape)
        torch.testing.assert_close(graph(x), model(x), rtol=0, atol=2e-5)
    assert not any("Transformer" in type(module).__name__ for module in graph.modules())
    return graph


@pytest.mark.parametrize(
    ("norm_first", "activation", "bias"),
    [*itertools.product((False, True), ("relu", F.gelu, nn.SiLU()), (True, False))],
)
def test_encoder_layers_are_equal_in_float(norm_first: bool, activation: Any, bias: bool) -> None:
    layer = nn.TransformerEncoderLayer(
        8, 2, 12, batch_first=True, norm_first=norm_first, activation=activation, bias=bias
    )
    _assert_equal(nn.Sequential(nn.Linear(6, 8), layer), 5, 6)


def _causal(m: Any, x: Tensor) -> Tensor:
    result: Tensor = m.encoder(x, mask=m.mask, is_causal=True)
    return result


def test_encoders_with_norm_and_a_mask_are_equal_in_float() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2, nn.LayerNorm(8))
    model = Net(_causal, encoder=encoder)
    model.register_buffer("mask", CAUSAL)
    graph = _assert_equal(model, 5, 8)
    assert sum(type(module) is nn.Linear for module in graph.modules()) == 2 * 6


def _decode(m: Any, x: Tensor) -> Tensor:
    result: Tensor = m.decoder(x, x * 2, tgt_mask=m.mask)
    return result


def test_decoders_are_equal_in_float() -> None:
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 12, batch_first=True), 2)
    model = Net(_decode, decoder=decoder)
    model.register_buffer("mask", CAUSAL)
    _assert_equal(model, 5, 8)


MASKS = {"none": None, "float": CAUSAL, "boolean": CAUSAL < 0}


@pytest.mark.parametrize("mask", MASKS)
def test_attention_of_other_sizes_and_orders_is_equal_in_float(mask: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        swapped = x.transpose(0, 1)
        first, weights = m.first(swapped, m.key(swapped), m.value(swapped), attn_mask=MASKS[mask])
        second, _ = m.second(x, x, x, need_weights=False, key_padding_mask=x[:, :, 0] > 1.0)
        result: Tensor = first.transpose(0, 1) * second + weights.mean((1, 2), keepdim=True)
        return result

    _assert_equal(
        Net(
            forward,
            first=nn.MultiheadAttention(8, 4, kdim=6, vdim=3),
            second=nn.MultiheadAttention(8, 1, batch_first=True, bias=False),
            key=nn.Linear(8, 6),
            value=nn.Linear(8, 3),
        ),
        5,
        8,
    )


def test_a_shared_attention_stays_one() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    graph = trace(
        Net(lambda m, x: m.a(x, x, x)[0] + m.b(x * 2, x, x)[0], a=attention, b=attention), torch.zeros(2, 5, 8)
    )
    assert len({id(module.weight) for module in graph.modules() if type(module) is nn.Linear}) == 4


def test_projections_are_layers_and_probabilities_are_tensors_with_a_kind() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 12, batch_first=True))
    network = Supernet.from_float(model.eval(), torch.zeros(2, 5, 6), ElasticSpace(bits=(4, 8))).network
    assert [layer.name for layer in network.layers] == [
        *("0", "1.self_attn.q_proj", "1.self_attn.k_proj", "1.self_attn.v_proj", "1.self_attn.out_proj"),
        *("1.linear1", "1.linear2"),
    ]
    kinds = [tensor.op for tensor in network.tensors]
    assert kinds.count(OpKind.MATMUL) == 2
    assert kinds.count(OpKind.SOFTMAX) == 1
    others = {tensor.operation for tensor in network.tensors if tensor.op is OpKind.OTHER}
    assert others == {"torch.nn.LayerNorm"}


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_extra_keys_are_refused(option: str) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True, **{option: True})
    with pytest.raises(UnsupportedOperationError, match=r"a: add_bias_kv and add_zero_attn.*build the attention"):
        trace(Net(lambda m, x: m.a(x, x, x)[0], a=attention), torch.zeros(2, 5, 8))


def _both(m: Any, x: Tensor) -> Tensor:
    x = x + m.one(x, x, x, need_weights=False)[0]
    result: Tensor = x + m.two(x, x, x, need_weights=False)[0]
    return result


def _two_attentions() -> Any:
    return Net(_both, **{name: nn.MultiheadAttention(8, 2, batch_first=True) for name in ("one", "two")})


@pytest.mark.parametrize("name", ["in_proj_weight", "in_proj_bias"])
def test_projections_that_two_attentions_share_are_refused(name: str) -> None:
    model = _two_attentions()
    setattr(model.two, name, getattr(model.one, name))
    with pytest.raises(UnsupportedOperationError, match=f"its {name} is also two.{name}") as caught:
        trace(model.eval(), torch.zeros(2, 5, 8))
    assert "call one MultiheadAttention twice" in str(caught.value)


def test_the_output_projection_that_two_attentions_share_stays_one() -> None:
    model = _two_attentions()
    model.two.out_proj.weight = model.one.out_proj.weight
    graph = _assert_equal(model, 5, 8)
    assert graph.get_submodule("two.out_proj").weight is graph.get_submodule("one.out_proj").weight
    network = Supernet.from_float(model, torch.zeros(2, 5, 8), ElasticSpace(bits=(8,))).network
    assert network.layer["two.out_proj"].shares_weight_with == "one.out_proj"
