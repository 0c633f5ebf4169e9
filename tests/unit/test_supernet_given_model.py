"""What is asked of a model before it is traced."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.network import ElasticSpace
from eqdeploy.supernet.given_model import not_finite
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.supernet.tracing import trace
from eqdeploy.zoo.wrappers import unwrapped, unwrapped_names

EXAMPLE = torch.zeros(2, 1, 6, 6)

#: torch itself warns of TorchScript, also where it imports its compiler.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def compiled(net: nn.Module) -> nn.Module:
    wrapper: object = torch.compile(net)
    assert isinstance(wrapper, nn.Module)
    return wrapper


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        compiled,
        lambda net: nn.DataParallel(compiled(net)),
        torch.optim.swa_utils.AveragedModel,
    ],
)
def test_a_wrapped_model_is_the_model_in_it(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = plain()
    inner = unwrapped(wrap(net))
    assert type(inner) is nn.Sequential
    assert inner.state_dict().keys() == net.state_dict().keys()
    supernet = Supernet.from_float(wrap(net), EXAMPLE, ElasticSpace())
    assert [layer.name for layer in supernet.network.layers] == ["0", "4"]


def test_a_class_of_the_users_own_that_is_called_like_a_wrapper_stays() -> None:
    class DataParallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = plain()

        def forward(self, x: Tensor) -> Tensor:
            doubled: Tensor = self.module(x) * 2.0
            return doubled

    own = DataParallel()
    assert unwrapped(own) is own


@pytest.mark.parametrize("part", [False, True])
def test_torchscript_is_refused_with_the_cure(part: bool) -> None:
    script = torch.jit.trace(plain().eval(), torch.zeros(2, 1, 6, 6))
    model = nn.Sequential(script, nn.ReLU()) if part else script
    with pytest.raises(UnsupportedOperationError, match="TorchScript.*pass the Python module"):
        trace(model, EXAMPLE)


def test_a_wrapped_part_is_refused_with_the_cure() -> None:
    with pytest.raises(
        UnsupportedOperationError, match=r"0: this part.*OptimizedModule \(use the module in it, \._orig"
    ):
        trace(nn.Sequential(compiled(plain()), nn.ReLU()), EXAMPLE)


class Mixing(nn.Module):
    """A convolution, and something that looks at the whole batch."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.mix = nn.Conv2d(1, 4, 3), mix

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.conv(x))


def test_batch_norm_without_statistics_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(UnsupportedOperationError, match=r"1: BatchNorm without running.*track_running_stats=True"):
        trace(model, EXAMPLE)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: nn.functional.batch_norm(x, None, None, training=True),
        lambda x: x - x.mean(0, keepdim=True),
        lambda x: x.softmax(0),
        lambda x: x / x.abs().max(),
    ],
)
def test_results_that_depend_on_other_images_are_refused(mix: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UnsupportedOperationError, match="depends on the other images of the batch"):
        trace(Mixing(mix), EXAMPLE)


@pytest.mark.parametrize("mix", [lambda x: x.softmax(1), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), lambda x: x.mean(1)])
def test_results_of_each_image_alone_are_accepted(mix: Callable[[Tensor], Tensor]) -> None:
    trace(Mixing(mix), EXAMPLE)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "state_dict.model.", "net."])
def test_prefixes_of_wrappers_are_stripped(prefix: str) -> None:
    state = plain().state_dict()
    found = unwrapped_names({prefix + name: tensor for name, tensor in state.items()}, set(state))
    assert found.keys() == state.keys()


def test_a_compiled_part_leaves_a_name_in_the_middle() -> None:
    state = {"features._orig_mod.0.weight": torch.zeros(1)}
    assert unwrapped_names(state, {"features.0.weight"}).keys() == {"features.0.weight"}


def test_prefixes_stay_where_the_model_has_them_or_not_all_names_do() -> None:
    own = {"model.weight": torch.zeros(1)}
    assert unwrapped_names(own, {"model.weight"}) == own
    mixed = {"model.weight": torch.zeros(1), "loss.weight": torch.zeros(1)}
    assert unwrapped_names(mixed, {"weight"}) == mixed


def test_infinities_are_allowed_where_the_model_has_them() -> None:
    mask = torch.tensor([0.0, float("-inf")])
    assert not not_finite(mask, mask.clone())
    assert not_finite(mask)
    assert not_finite(mask, -mask)
    assert not_finite(mask.flip(0), mask)
    assert not_finite(torch.full((2,), float("nan")), torch.full((2,), float("nan")))
    assert not not_finite(torch.tensor([1]))
