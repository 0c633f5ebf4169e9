"""Conversion keeps what a model computes, or says clearly why it cannot."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils import prune

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.supernet.layers import ElasticLayer
from eqdeploy.supernet.shapes import tensors_in
from eqdeploy.supernet.supernet import Supernet
from tests.unit.supernet_models import CONVERTIBLE
from tests.unit.supernet_parts import SPACE, Case, Net, conv, made


def images(case: Case, count: int = 3) -> Tensor:
    return torch.randn(count, *case.shape, generator=torch.Generator().manual_seed(1))


def converted(case: Case, model: nn.Module) -> Supernet:
    return Supernet.from_float(model, torch.zeros(2, *case.shape), SPACE)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CONVERTIBLE)
def test_the_float_output_is_that_of_the_model(name: str, training: bool) -> None:
    case = CONVERTIBLE[name]
    model = made(case)
    before = copy.deepcopy(model.state_dict())
    supernet = converted(case, model.train(training))
    assert supernet.training == training
    model.eval()
    supernet.eval()
    x = images(case)
    kept = x.clone()
    found = tensors_in(supernet(x))
    assert torch.equal(x, kept), "the supernet must not overwrite its input"
    dtype = next(model.parameters()).dtype
    expected = tensors_in(model(x.clone().to(dtype)))
    assert len(found) == len(expected)
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == torch.float32
        assert torch.allclose(got, wanted.float(), rtol=1e-5, atol=1e-5)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), f"conversion changed the model's {key}"
    assert not {t.data_ptr() for t in model.state_dict().values() if t.numel()} & {
        t.data_ptr() for t in supernet.state_dict().values() if t.numel()
    }, "supernet and model must share no tensor"


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", CONVERTIBLE)
def test_every_layer_in_the_graph_is_elastic_and_every_trained_tensor_has_a_quantizer(name: str) -> None:
    case = CONVERTIBLE[name]
    supernet = converted(case, made(case))
    elastic = {path for path, module in supernet.graph_module.named_modules() if isinstance(module, ElasticLayer)}
    assert elastic == {layer.name for layer in supernet.network.layers}
    trained = [tensor.name for tensor in supernet.network.tensors if tensor.trained]
    assert list(supernet.activation_quantizers()) == trained
    assert set(trained) == {layer.input_tensor for layer in supernet.network.layers}


def test_a_supernet_makes_another_batch_size() -> None:
    case = CONVERTIBLE["channel shuffle"]
    model = made(case)
    supernet = converted(case, model).eval()
    assert torch.allclose(supernet(images(case, 7)), model(images(case, 7)), atol=1e-5)


def test_functional_dropout_follows_the_mode() -> None:
    case = Case(lambda: Net(lambda m, x: m.head(F.dropout(x, 0.5, m.training)), head=nn.Linear(64, 64)), (64,))
    for training in (True, False):
        supernet = converted(case, case.make().train(training))
        x = images(case)
        assert torch.equal(supernet.eval()(x), supernet(x))
        supernet.train()
        assert not torch.equal(supernet(x), supernet(x))


def test_train_and_eval_reach_the_models_own_modules() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Dropout(0.5), conv(4, 4))
    model[1].eval()  # frozen statistics
    supernet = converted(Case(lambda: model), model)
    assert supernet.training
    assert not supernet.graph_module.get_submodule("1").training
    assert supernet.graph_module.get_submodule("2").training


def test_negative_gains_become_positive_and_nothing_else_changes() -> None:
    def model() -> nn.Module:
        return nn.Sequential(
            conv(bias=True),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 6, 3, groups=2),
            nn.BatchNorm2d(6),
            nn.Flatten(),
            nn.Linear(6 * 100, 8),
            nn.BatchNorm1d(8),
        )

    case = Case(model)
    original = made(case, seed=3)
    gains = [original.get_submodule(name).weight for name in "147"]
    assert all(bool((gain < 0).any()) for gain in gains if isinstance(gain, Tensor)), "the seed gives negative gains"
    supernet = converted(case, original).eval()
    for layer in supernet.network.layers:
        assert layer.batch_norm is not None
        gain = supernet.graph_module.get_submodule(layer.batch_norm).weight
        assert isinstance(gain, Tensor)
        assert (gain >= 0).all()
    x = images(case)
    assert torch.equal(supernet(x), original(x)), "changing signs is exact"
    # Batch statistics as well: the mean changes its sign with the layer's output.
    assert torch.allclose(supernet.train()(x), original.train()(x), atol=1e-6)


def test_canonicalizing_keeps_gains_from_going_negative() -> None:
    case = Case(lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4)))
    supernet = converted(case, made(case))
    gain = supernet.graph_module.get_submodule("1").weight
    assert isinstance(gain, Tensor)
    with torch.no_grad():
        gain.copy_(torch.tensor([-0.5, 0.0, 1.0, -1e-9]))
    supernet.canonicalize()
    assert gain.tolist() == [0.0, 0.0, 1.0, 0.0]


def test_gains_of_norms_that_are_not_folded_are_left_alone() -> None:
    case = CONVERTIBLE["output read by two norms"]
    original = made(case)
    supernet = converted(case, original)
    supernet.canonicalize()
    for name in ("norm", "norm2"):
        left, right = (m.get_submodule(name).weight for m in (original, supernet.graph_module))
        assert isinstance(left, Tensor)
        assert isinstance(right, Tensor)
        assert torch.equal(left, right)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv()

    def forward(self, x: Tensor) -> Any:
        return self.a(x) if x.sum() > 0 else x


def weight_norm_by_hooks() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.Sequential(nn.utils.weight_norm(conv()), nn.ReLU(), conv(4, 4))


def pruned() -> nn.Module:
    model = nn.Sequential(conv(), nn.ReLU(), conv(4, 4))
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def hooked(on_layer: bool) -> nn.Module:
    model = nn.Sequential(conv(), nn.ReLU(), conv(4, 4))
    (model[0] if on_layer else model).register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def transposed_twin() -> nn.Module:
    model = nn.Sequential(conv(4, 4), nn.ReLU(), nn.ConvTranspose2d(4, 4, 3))
    model[2].weight = model[0].weight
    return model


def overwrites_view(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    x.view(x.size(0), -1).relu_()
    return m.b(x)


def assigns_item(m: Any, x: Tensor) -> Any:
    x = m.a(x)
    x[:, 0] = 0.0
    return m.b(x)


def uncopyable() -> nn.Module:
    model = nn.Sequential(conv())
    model.extra = torch.ones(1, requires_grad=True) * 2
    return model


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv()

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.a(x + y)


#: Models that are refused: what makes them, what the message says, and where.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "control flow": (
        lambda: nn.Sequential(nn.Sequential(conv(3, 3), Branching())),
        "a decision depends on the values",
        "0.1",
    ),
    "item assignment": (lambda: Net(assigns_item, a=conv(), b=conv(4, 4)), "item assignment", "Net"),
    "overwriting a view": (lambda: Net(overwrites_view, a=conv(), b=conv(4, 4)), "something else", "Net"),
    "randomness": (lambda: Net(lambda m, x: m.a(x + torch.rand_like(x)), a=conv()), "another result each time", "Net"),
    "weight of layers of two kinds": (lambda: nn.Sequential(conv(3, 4), transposed_twin()), "different axes", "1.2"),
    "weight read outside the layer": (
        lambda: Net(lambda m, x: m.a(x) * m.a.weight.mean(), a=conv()),
        "also read outside",
        "a",
    ),
    "parametrized layer": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(conv()), nn.ReLU(), conv(4, 4)),
        "computed from other parameters",
        "0",
    ),
    "weight norm by hooks": (weight_norm_by_hooks, "computed from other parameters", "0"),
    "pruned layer": (pruned, "computed from other parameters", "0"),
    "hook on a layer": (lambda: hooked(True), "hooks", "0"),
    "hook on the model": (lambda: hooked(False), "something else", "Sequential"),
    "lazy layer": (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), "lazy", "0"),
    "several inputs": (TwoInputs, "missing 1 required|several inputs", "TwoInputs"),
    "no quantizable layer": (lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), "no quantizable layer", ""),
    "windows of unequal size": (lambda: nn.Sequential(conv(), nn.AdaptiveAvgPool2d(3)), "unequal size", "1"),
    "wrong input shape": (lambda: nn.Sequential(conv(5, 4)), "fails on an input of shape", "Sequential"),
    "fixed batch size": (
        lambda: Net(lambda m, x: m.a(x.view(2, 3, 8, 8)), a=conv()),
        "fails on an input of shape",
        "Net",
    ),
    "reserved name": (lambda: Net(lambda m, x: m.activation_quantizers(x), activation_quantizers=conv()), "name", ""),
    "uncopyable": (uncopyable, "cannot be copied", "Sequential"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_be_converted_are_refused_in_one_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, message, where = REFUSED[name]
    model = make()
    with pytest.raises(UnsupportedOperationError, match=message) as caught:
        Supernet.from_float(model, torch.zeros(2, 3, 8, 8), SPACE)
    assert "\n" not in str(caught.value)
    if where:
        assert (caught.value.where or "").removeprefix("_") == where
    assert capfd.readouterr() == ("", ""), "nothing is printed, no traceback above all"
