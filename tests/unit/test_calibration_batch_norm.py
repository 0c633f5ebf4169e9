"""BatchNorm statistics are those of all calibration images, exactly, and nothing else changes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.errors import DataError
from eqdeploy.quant.form import Granularity, Symmetry
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.supernet import Supernet
from tests.unit.supernet_models import CONVERTIBLE
from tests.unit.supernet_parts import SPACE, conv, made, randomize


def batches(*sizes: int, seed: int = 0, offset: float = 3.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(size, 3, 6, 6, generator=generator) * (1 + index) + offset * index
        for index, size in enumerate(sizes)
    ]


def statistics(module: nn.Module, path: str) -> tuple[Tensor, Tensor]:
    norm = module.get_submodule(path)
    assert isinstance(norm.running_mean, Tensor)
    assert isinstance(norm.running_var, Tensor)
    return norm.running_mean, norm.running_var


def pooled(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of every channel over everything, in float64."""
    rows = values.double().movedim(1, 0).reshape(values.shape[1], -1)
    return rows.mean(dim=1), rows.var(dim=1)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return randomize(
        nn.Sequential(
            conv(), nn.BatchNorm2d(4, momentum=0.37), nn.ReLU(), nn.Dropout(0.5), conv(4, 4), nn.BatchNorm2d(4)
        )
    )


@pytest.mark.parametrize("sizes", [(8,), (1, 7), (5, 2, 9, 1), (3,) * 20])
def test_statistics_are_pooled_exactly_whatever_the_batches(sizes: tuple[int, ...]) -> None:
    norm = nn.BatchNorm2d(3)
    images = batches(*sizes)
    result = calibrate_batch_norm(norm, images)
    assert (result.images, result.layers) == (sum(sizes), 1)
    mean, variance = pooled(torch.cat(images))
    assert torch.allclose(norm.running_mean.double(), mean, rtol=1e-6, atol=1e-6)  # type: ignore[union-attr]
    assert torch.allclose(norm.running_var.double(), variance, rtol=1e-6)  # type: ignore[union-attr]


def test_a_large_mean_does_not_swallow_the_variance() -> None:
    norm = nn.BatchNorm2d(3)
    images = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(i)) * 0.01 + 1000 for i in range(4)]
    calibrate_batch_norm(norm, images)
    _, variance = pooled(torch.cat(images))
    assert torch.allclose(norm.running_var.double(), variance, rtol=1e-3)  # type: ignore[union-attr]


def test_sequences_and_vectors() -> None:
    for shape in ((16, 5), (4, 5, 7)):
        norm = nn.BatchNorm1d(5)
        x = torch.randn(shape) * 3 + 1
        calibrate_batch_norm(norm, [x[:2], x[2:]])
        mean, variance = pooled(x)
        assert torch.allclose(norm.running_mean.double(), mean, atol=1e-6)  # type: ignore[union-attr]
        assert torch.allclose(norm.running_var.double(), variance, rtol=1e-5)  # type: ignore[union-attr]


def test_the_order_of_batches_does_not_matter_before_the_first_norm() -> None:
    images = batches(4, 2, 6, 1)
    results = []
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)):
        model = small_model()
        calibrate_batch_norm(model, [images[index] for index in order])
        results.append(torch.stack(statistics(model, "1")))
    for result in results[1:]:
        assert torch.allclose(result, results[0], rtol=1e-6, atol=1e-7)


def test_later_norms_see_inputs_normalized_by_batch_statistics() -> None:
    model, images = small_model(), batches(6, 6)
    calibrate_batch_norm(model, images)
    front = nn.Sequential(*list(small_model().children())[:5]).eval()
    front[1].train()
    with torch.no_grad():
        mean, variance = pooled(torch.cat([front(batch) for batch in images]))
    found = statistics(model, "5")
    assert torch.allclose(found[0].double(), mean, rtol=1e-5, atol=1e-6)
    assert torch.allclose(found[1].double(), variance, rtol=1e-5)


def snapshot(model: nn.Module) -> dict[str, object]:
    state: dict[str, object] = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        state[f"{name}.training"] = module.training
        state[f"{name}.momentum"] = getattr(module, "momentum", None)
        state[f"{name}.hooks"] = len(module._forward_pre_hooks)
    return state


@pytest.mark.parametrize("training", [True, False])
def test_only_statistics_change(training: bool) -> None:
    model = small_model().train(training)
    model.get_submodule("5").eval()
    before = snapshot(model)
    calibrate_batch_norm(model, batches(4, 4))
    after = snapshot(model)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"1.running_mean", "1.running_var", "5.running_mean", "5.running_var"}


def test_dropout_stays_off_and_calibrating_twice_is_calibrating_once() -> None:
    first, second = small_model(), small_model()
    calibrate_batch_norm(first, batches(5, 5))
    calibrate_batch_norm(second, batches(3, 9, seed=7))
    calibrate_batch_norm(second, batches(5, 5))
    assert snapshot(first) == snapshot(second)


def failing() -> Iterator[Tensor]:
    yield from batches(4)
    raise RuntimeError("the disk is gone")


def spoiled() -> Iterator[Tensor]:
    yield from batches(4)
    yield torch.full((2, 3, 6, 6), math.nan)


def overflowing() -> Iterator[Tensor]:
    yield from batches(4)
    yield torch.full((2, 3, 6, 6), 3e38)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (list, DataError, "empty"),
        (failing, RuntimeError, "disk"),
        (spoiled, DataError, "not finite"),
        (overflowing, DataError, "not finite"),
    ],
)
def test_after_an_error_the_model_is_as_before(images: object, error: type[Exception], message: str) -> None:
    assert callable(images)
    model = small_model().train()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        calibrate_batch_norm(model, images())
    assert snapshot(model) == before


def test_a_single_image_is_enough_for_maps_but_not_for_vectors() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4))
    calibrate_batch_norm(model, batches(1))
    assert torch.isfinite(statistics(model, "1")[1]).all()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(108, 4), nn.BatchNorm1d(4))
    before = snapshot(flat)
    with pytest.raises(DataError, match="1 image") as caught:
        calibrate_batch_norm(flat, batches(1))
    assert caught.value.hint is not None
    assert snapshot(flat) == before


def test_norms_without_statistics_are_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3, momentum=None))
    result = calibrate_batch_norm(model, batches(4))
    assert result.layers == 1
    assert model[1].momentum is None


def test_progress_counts_images() -> None:
    counted: list[int] = []
    calibrate_batch_norm(nn.BatchNorm2d(3), batches(4, 1, 3), counted.append)
    assert counted == [4, 1, 3]


def test_a_norm_that_the_model_applies_as_a_function_is_calibrated_and_trained() -> None:
    case = CONVERTIBLE["norm as a function"]
    supernet = Supernet.from_float(made(case), torch.zeros(2, *case.shape), SPACE)
    images = batches(6, 6)
    assert calibrate_batch_norm(supernet, images).layers == 2
    with torch.no_grad():
        mean, variance = pooled(torch.cat([supernet.graph_module.get_submodule("0")(batch) for batch in images]))
    assert torch.allclose(statistics(supernet.graph_module, "1")[0].double(), mean, rtol=1e-5, atol=1e-6)
    assert torch.allclose(statistics(supernet.graph_module, "1")[1].double(), variance, rtol=1e-5)
    before = statistics(supernet.graph_module, "1")[0].clone()
    supernet.train()(images[0])
    assert not torch.equal(statistics(supernet.graph_module, "1")[0], before)


def test_each_subnet_has_statistics_of_its_own() -> None:
    torch.manual_seed(0)
    supernet = Supernet.from_float(small_model(), torch.zeros(2, 3, 6, 6), SPACE).eval()
    images = batches(16, 16, offset=0.5)
    supernet.initialize(images[0])
    found = {}
    for bits in (2, 8):
        supernet.activate(
            SubnetConfig.uniform(
                supernet.network,
                weight_bits=bits,
                activation_bits=bits,
                granularity=Granularity.PER_TENSOR,
                weight_symmetry=Symmetry.SYMMETRIC,
                activation_symmetry=Symmetry.SYMMETRIC,
                boundary_bits=bits,
            )
        )
        calibrate_batch_norm(supernet, images)
        with torch.no_grad():
            layer, quantizer = supernet.graph_module.get_submodule("0"), supernet.activation_quantizers()["input_1"]
            mean, variance = pooled(torch.cat([layer(quantizer(batch)) for batch in images]))
        found[bits] = statistics(supernet.graph_module, "1")[1].clone()
        assert torch.allclose(found[bits].double(), variance, rtol=1e-5)
        assert torch.allclose(statistics(supernet.graph_module, "1")[0].double(), mean, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found[2], found[8], rtol=1e-2)
