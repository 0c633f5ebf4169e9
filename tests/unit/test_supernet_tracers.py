"""Models that branch on shapes, loop over them or compute with them are traced as what they do for their input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.supernet.tracing import trace
from tests.unit.supernet_parts import Net, conv


def _branch(m: Any, x: Tensor) -> Tensor:
    if x.shape[-1] > 16:
        x = F.avg_pool2d(x, 2)
    result: Tensor = m.conv(x).mean((2, 3))
    return result


def _pad_to_a_multiple(m: Any, x: Tensor) -> Tensor:
    """Blocks of MobileViT."""
    x = m.conv(x)
    batch, channels, height, width = x.shape
    wanted = math.ceil(height / 4) * 4, math.ceil(width / 4) * 4
    if wanted != (height, width):
        x = F.interpolate(x, size=wanted, mode="bilinear", align_corners=False)
    return x.reshape(batch * channels, -1).reshape(batch, channels, -1).mean(2)


def _loop(m: Any, x: Tensor) -> Tensor:
    parts = [x[:, :, row : row + 2] for row in range(0, x.size(2), 2)]
    assert len(parts) > 1
    assert x.dim() == x.ndim == 4
    total = torch.zeros(x.shape[0], 3, device=x.device)
    for part in torch.stack(parts, 1).unbind(1):
        total = total + part.mean((2, 3)) / float(x.shape[1])
    positions = torch.arange(x.shape[1])
    result: Tensor = m.conv(x).mean((2, 3))[:, :3] + total + positions
    return result


def _contexts(m: Any, x: Tensor) -> Tensor:
    with torch.autocast(device_type=x.device.type, enabled=False):
        if x.dtype == torch.float32 and x.shape[0] == x.size(0) and len(x.shape) == 4:
            x = x * 2
        for axis, size in enumerate(x.shape):
            if axis > 1:
                x = x * size
    result: Tensor = m.conv(x).mean((2, 3))
    return result


MODELS: dict[str, tuple[Callable[[Any, Tensor], Tensor], int]] = {
    "branch taken": (_branch, 20),
    "branch not taken": (_branch, 10),
    "padding to a multiple": (_pad_to_a_multiple, 10),
    "no padding": (_pad_to_a_multiple, 12),
    "loop": (_loop, 10),
    "contexts": (_contexts, 10),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_computes_the_model_for_every_batch_size(name: str) -> None:
    forward, size = MODELS[name]
    torch.manual_seed(0)
    model = Net(forward, conv=conv(3, 8)).eval()
    graph = trace(model, torch.zeros(2, 3, size, size)).eval()
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, size, size)
        torch.testing.assert_close(graph(x), model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("forward", "problem"),
    [
        (lambda m, x: m.conv(x) if x.sum() > 1 else x, "depends on the values of the tensor 'gt'"),
        (lambda m, x: m.conv(x) if x.shape[0] > 1 else x, "depends on the batch size"),
        (lambda m, x: m.conv(x) if x.shape[0] % 2 else x, "depends on the batch size"),
        (lambda m, x: m.conv(x) / float(x.shape[0]), "depends on the batch size"),
        (lambda m, x: sum(m.conv(image[None]) for image in x), "the length of 'x' depends on the batch size"),
    ],
)
def test_decisions_about_values_and_the_batch_are_refused(forward: Any, problem: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=problem) as caught:
        trace(Net(forward, conv=conv(3, 8)), torch.zeros(2, 3, 8, 8))
    assert "when the model is built" in str(caught.value)


def test_names_of_tensors_do_not_change_where_no_size_decides() -> None:
    """They are in checkpoints."""
    model = Net(lambda m, x: m.conv(x).reshape(x.shape[0], x.shape[1] * 2 * 16) * 2, conv=conv(4, 8))
    names = [node.name for node in trace(model, torch.zeros(2, 4, 4, 4)).graph.nodes]
    assert names[-3:] == ["reshape", "mul_2", "output"]


def test_leaves_no_wrapped_function_behind() -> None:
    model = Net(_loop, conv=conv(3, 8))
    before = torch.zeros
    assert "wrap(" not in trace(model, torch.zeros(2, 3, 10, 10)).code
    assert torch.zeros is before
    assert isinstance(nn.Linear(2, 2)(torch.zeros(1, 2)), Tensor)
