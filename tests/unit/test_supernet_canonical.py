"""What tracing makes of operations that devices do not know, or that runtimes would mistake for others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from eqdeploy.network import NetworkDescription, OpKind
from eqdeploy.supernet.supernet import Supernet
from tests.unit.supernet_parts import SPACE, Net, conv, randomize


def converted(model: nn.Module, *shape: int) -> Supernet:
    """A supernet that computes what the model computes."""
    torch.manual_seed(0)
    model = randomize(model).eval()
    supernet = Supernet.from_float(model, torch.zeros(2, *shape), SPACE).eval()
    images = torch.randn(3, *shape)
    with torch.no_grad():
        torch.testing.assert_close(supernet(images), model(images))
    return supernet


def kinds(network: NetworkDescription) -> list[OpKind]:
    """Operations in order of execution, without the input."""
    return [tensor.op for tensor in network.tensors[1:]]


@pytest.mark.parametrize(
    ("first", "second", "kind", "upper_bound", "non_negative"),
    [
        (nn.ReLU(), nn.Hardtanh(-1, 1), OpKind.CLIP, 1.0, True),
        (nn.ReLU6(), nn.ReLU(inplace=True), OpKind.CLIP, 6.0, True),
        (nn.ReLU(), nn.ReLU(), OpKind.RELU, None, True),
        (nn.Hardtanh(-2, 3), nn.Hardtanh(-1, 5), OpKind.CLIP, 3.0, False),
        (nn.Hardtanh(-3, -1), nn.ReLU(), OpKind.CLIP, 0.0, True),
    ],
)
def test_clips_in_a_row_become_one(
    first: nn.Module, second: nn.Module, kind: OpKind, upper_bound: float | None, non_negative: bool
) -> None:
    network = converted(nn.Sequential(conv(), first, second, conv(4, 4)), 3, 8, 8).network
    assert kinds(network) == [OpKind.CONV, kind, OpKind.CONV]
    (clipped,) = [tensor for tensor in network.tensors if tensor.op is kind]
    assert (clipped.upper_bound, clipped.non_negative) == (upper_bound, non_negative)


def test_a_clip_whose_input_is_read_elsewhere_stays() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.a(x))
        result: Tensor = m.b(x.clamp(max=0.5)) + x
        return result

    assert kinds(converted(Net(body, a=conv(), b=conv(4, 4)), 3, 8, 8).network).count(OpKind.CLIP) == 1


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same"])
def test_the_padded_tensor_is_the_one_that_a_layer_reads(mode: Any, padding: Any) -> None:
    layer = nn.Conv2d(4, 4, 3, padding=padding, padding_mode=mode)
    supernet = converted(nn.Sequential(conv(), nn.ReLU(), layer), 3, 8, 8)
    padded = supernet.network.tensor[supernet.network.layers[1].input_tensor]
    assert padded.trained
    assert padded.non_negative  # it repeats values that are
    assert padded.inputs == ("_1",)
    assert not supernet.network.tensor["_1"].trained


def test_padding_of_sequences() -> None:
    layers = (nn.Conv1d(3, 4, 5, padding=2, padding_mode="reflect"), nn.BatchNorm1d(4), nn.ReLU())
    network = converted(nn.Sequential(*layers, nn.Conv1d(4, 4, 3)), 3, 12).network
    assert network.tensor[network.layers[0].input_tensor].shape == (3, 16)
    assert network.layers[0].batch_norm == "1"


@pytest.mark.parametrize(
    ("pool", "shape", "kind"),
    [
        (nn.AdaptiveAvgPool1d(1), (3, 12), OpKind.GLOBAL_AVERAGE_POOL),
        (nn.AdaptiveAvgPool1d(3), (3, 12), OpKind.AVERAGE_POOL),
        (nn.AdaptiveMaxPool1d(1), (3, 12), OpKind.MAX_POOL),
        (nn.AdaptiveAvgPool2d(1), (3, 8, 8), OpKind.GLOBAL_AVERAGE_POOL),
        (nn.AdaptiveMaxPool2d(1), (3, 8, 8), OpKind.MAX_POOL),
        (nn.AdaptiveMaxPool2d((2, None)), (3, 8, 8), OpKind.MAX_POOL),
    ],
)
def test_adaptive_pools_become_ordinary_ones(pool: nn.Module, shape: tuple[int, ...], kind: OpKind) -> None:
    layer = nn.Conv1d(3, 4, 3, padding=1) if len(shape) == 2 else conv()
    assert kinds(converted(nn.Sequential(layer, pool), *shape).network) == [layer_kind(layer), kind]


def layer_kind(layer: nn.Module) -> OpKind:
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    return OpKind.CONV


@pytest.mark.parametrize("function", [F.adaptive_max_pool1d, F.adaptive_avg_pool1d])
def test_adaptive_pools_as_functions(function: Any) -> None:
    network = converted(Net(lambda m, x: function(m.a(x), 1), a=nn.Conv1d(3, 4, 3)), 3, 12).network
    assert kinds(network)[1] in (OpKind.MAX_POOL, OpKind.GLOBAL_AVERAGE_POOL)


@pytest.mark.parametrize("axes", [-1, 2, [2], (-1,)])
def test_a_mean_over_the_sequence_is_a_global_pool(axes: Any) -> None:
    model = Net(lambda m, x: m.head(m.a(x).mean(axes)), a=nn.Conv1d(3, 4, 3), head=nn.Linear(4, 2))
    assert kinds(converted(model, 3, 12).network) == [
        OpKind.CONV,
        OpKind.GLOBAL_AVERAGE_POOL,
        OpKind.RESHAPE,
        OpKind.LINEAR,
    ]


def test_a_mean_over_the_channels_is_not() -> None:
    model = Net(lambda m, x: m.a(x).mean(1), a=nn.Conv1d(3, 4, 3))
    assert kinds(converted(model, 3, 12).network)[1] is OpKind.OTHER


NO_OPS: dict[str, Any] = {
    "whole slice": lambda x: x[:, :4],
    "slices and ellipsis": lambda x: x[:, 0:4:1, ...],
    "narrow": lambda x: x.narrow(1, 0, 4),
    "padding with nothing": lambda x: F.pad(x, (0, 0, 0, 0)),
    "factor one": lambda x: 1.0 * (x * 1) / 1,
    "term zero": lambda x: x + 0 - 0.0,
    "expand": lambda x: x.expand(-1, 4, 8, 8),
    "concatenation of one": lambda x: torch.cat([x], 1),
}


@pytest.mark.parametrize("name", NO_OPS)
def test_operations_that_return_their_input_vanish(name: str) -> None:
    model = Net(lambda m, x: m.b(NO_OPS[name](m.a(x))), a=conv(), b=conv(4, 4))
    assert kinds(converted(model, 3, 8, 8).network) == [OpKind.CONV, OpKind.CONV]


OPERATIONS: dict[str, Any] = {
    "part of the channels": lambda x: x[:, 1:],
    "reversed difference": lambda x: 0 - x,
    "reversed quotient": lambda x: 1 / (x + 2),
    "padding": lambda x: F.pad(x, (0, 1)),
    "cropping and padding": lambda x: F.pad(x, (-1, 1)),
    "broadcast": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_that_only_look_like_it_stay(name: str) -> None:
    model = Net(lambda m, x: OPERATIONS[name](m.a(x)), a=conv())
    assert len(kinds(converted(model, 3, 8, 8).network)) > 1


SELECTIONS: dict[str, Any] = {
    "slice": lambda x: x[:, 1:],
    "chunk": lambda x: x.chunk(2, 1)[1],
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "maximum": lambda x: x.amax((2, 3)),
    "stack": lambda x: torch.stack([x, x], 1),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_selected_values_stay_non_negative(name: str) -> None:
    model = Net(lambda m, x: SELECTIONS[name](F.relu(m.a(x))), a=conv())
    network = converted(model, 3, 8, 8).network
    assert network.tensors[-1].non_negative
    raw = converted(Net(lambda m, x: SELECTIONS[name](m.a(x)), a=conv()), 3, 8, 8).network
    assert not raw.tensors[-1].non_negative


def test_results_of_modules_with_several_outputs_have_no_known_sign() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        hidden: Tensor = m.recurrent(F.relu(m.a(x)))[0]
        return hidden

    model = Net(body, a=nn.Linear(5, 4), recurrent=nn.LSTM(4, 3, batch_first=True))
    assert not converted(model, 6, 5).network.tensors[-1].non_negative


def test_a_layer_may_be_asked_for_the_device_of_its_weight() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        result: Tensor = m.a(x) + torch.zeros(1, device=m.a.weight.device, dtype=m.a.weight.dtype)
        return result

    converted(Net(body, a=conv()), 3, 8, 8)
