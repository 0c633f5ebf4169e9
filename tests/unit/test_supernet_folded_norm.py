"""What remains of a BatchNorm after folding: values, gradients, statistics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.supernet.folded_norm import FOLDED_NORMS, FoldedNorm, LayerNormalization, LearnedBias, MeanNorm

KINDS = tuple(FOLDED_NORMS.values())
SHAPES = ((6, 3), (4, 3, 5), (4, 3, 5, 2))


def drawn(kind: type[FoldedNorm], channels: int = 3, *, momentum: float | None = 0.1) -> FoldedNorm:
    """A norm with random parameters and statistics."""
    torch.manual_seed(0)
    norm = kind(channels, momentum=momentum)
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2.0)
    return norm


def expected(norm: FoldedNorm, x: Tensor) -> Tensor:
    """The definition, written with autograd's operations."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean, gain = torch.zeros_like(norm.bias), torch.ones(())
    if isinstance(norm, MeanNorm | LayerNormalization):
        mean = x.mean(axes) if norm.training else norm.running_mean
    if isinstance(norm, LayerNormalization):
        variance = norm.running_var
        if norm.training:
            variance = (x - mean.reshape(shape)).square().mean()
        gain = norm.weight / (variance + norm.eps).sqrt()
    return gain * (x - mean.reshape(shape)) + norm.bias.reshape(shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients(kind: type[FoldedNorm], shape: tuple[int, ...], training: bool) -> None:
    norm = drawn(kind).double().train(training)
    x = (torch.randn(shape, dtype=torch.float64) * 2 + 3).requires_grad_()
    target = torch.randn(shape, dtype=torch.float64)
    leaves = [x, *norm.parameters()]
    wanted = torch.autograd.grad((expected(norm, x) * target).sum(), leaves)
    y = norm(x)
    found = torch.autograd.grad((y * target).sum(), leaves)
    assert torch.allclose(y, expected(norm, x))
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-6)


def test_memory_formats_and_half_precision_agree() -> None:
    norm = drawn(LayerNormalization, 8)
    x = torch.randn(4, 8, 6, 6) * 2 + 1
    target = torch.randn_like(x)
    results = []
    for value, upstream in (
        (x, target),
        (x.contiguous(memory_format=torch.channels_last), target.contiguous(memory_format=torch.channels_last)),
        (x, target.contiguous(memory_format=torch.channels_last)),
        (x.bfloat16(), target.bfloat16()),
    ):
        leaf = value.detach().requires_grad_()
        y = norm(leaf)
        assert y.dtype == value.dtype
        y.backward(upstream)
        results.append((y.float(), leaf.grad.float() if leaf.grad is not None else None))
    for y, gradient in results[1:3]:
        assert torch.allclose(y, results[0][0], atol=1e-5)
        assert gradient is not None
        assert torch.allclose(gradient, results[0][1], atol=1e-4)  # type: ignore[arg-type]
    assert torch.allclose(results[3][0], results[0][0], atol=0.05)


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_running_statistics_move_as_those_of_batch_norm(momentum: float | None) -> None:
    reference, norm, means = nn.BatchNorm2d(3, momentum=momentum), LayerNormalization(3, momentum=momentum), MeanNorm(3)
    means.momentum = momentum
    for seed in range(3):
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 3 + seed
        for module in (reference, norm, means):
            module(x)
    assert isinstance(reference.running_mean, Tensor)
    assert isinstance(reference.running_var, Tensor)
    assert torch.allclose(norm.running_mean, reference.running_mean, atol=1e-6)
    assert torch.allclose(means.running_mean, reference.running_mean, atol=1e-6)
    # A mean over channels commutes with averages over batches.
    assert torch.allclose(norm.running_var, reference.running_var.mean(), rtol=1e-5)
    assert int(norm.num_batches_tracked) == int(means.num_batches_tracked) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_pools_all_images_and_touches_nothing_else(kind: type[FoldedNorm]) -> None:
    norm = drawn(kind, momentum=0.3).eval()
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    images = [torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(n)) * n for n in (2, 7, 3)]
    done = calibrate_batch_norm(nn.Sequential(norm), images)
    assert done.layers == (0 if kind is LearnedBias else 1)
    values = torch.cat(images).double().movedim(1, 0).reshape(3, -1)
    if norm.running_mean is not None:
        before["running_mean"] = values.mean(1).float()
    if norm.running_var is not None:
        before["running_var"] = values.var(1).mean().float()
    for name, tensor in norm.state_dict().items():
        assert torch.allclose(tensor, before[name], rtol=1e-6, atol=1e-6), name
    assert norm.momentum == 0.3
    assert not norm.training


@pytest.mark.parametrize("kind", [MeanNorm, LayerNormalization])
def test_a_single_value_has_no_statistics(kind: type[FoldedNorm]) -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        kind(3).train()(torch.zeros(1, 3))
    kind(3).eval()(torch.zeros(1, 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_the_bias_lies_on_the_accumulators_grid_and_gradients_pass(kind: type[FoldedNorm], training: bool) -> None:
    norm = drawn(kind).double().train(training)
    grid = torch.tensor([0.25, 0.5, 0.0], dtype=torch.float64)
    # What a layer computes is a multiple of the grid, too; so is all that leaves the norm, up to its gain.
    codes = torch.randint(-9, 9, (8, 3, 4), generator=torch.Generator().manual_seed(0))
    x = (codes * torch.where(grid > 0, grid, 0.1).reshape(1, -1, 1)).requires_grad_()
    target = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    leaves = [x, *norm.parameters()]
    plain = norm(x)
    wanted = torch.autograd.grad((plain * target).sum(), leaves)
    norm.accumulator_scale = grid
    y = norm(x)
    for one, other in zip(torch.autograd.grad((y * target).sum(), leaves), wanted, strict=True):
        assert torch.allclose(one, other), "straight through"
    gain = 1.0
    if isinstance(norm, LayerNormalization):
        centered = x - x.mean((0, 2)).reshape(1, -1, 1)
        variance = centered.square().mean() if training else norm.running_var
        gain = float((norm.weight / (variance + norm.eps).sqrt()).detach())
    steps = y[:, :2] / (gain * grid[:2].reshape(1, -1, 1))
    assert torch.allclose(steps, steps.round(), atol=1e-6)
    assert ((y - plain).abs() <= gain * grid.reshape(1, -1, 1) / 2 + 1e-9).all()
    assert torch.allclose(y[:, 2], plain[:, 2])
    assert not torch.allclose(y[:, 0], plain[:, 0])
