"""Masks of attention, however deep they reach: what softmax does not see takes no part of an encoding's range."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from onnx import numpy_helper
from torch import Tensor, nn

from eqdeploy.validation.parity import ParityVerdict
from tests.parity.proving import prove
from tests.unit.supernet_parts import Net

LENGTH, WIDTH = 6, 8
IMAGES = torch.randn(24, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))
#: The last two positions are hidden from all others.
HIDDEN = torch.arange(LENGTH) >= LENGTH - 2


def padding(depth: float) -> Tensor:
    return torch.zeros(LENGTH).masked_fill(HIDDEN, depth)


def causal() -> Tensor:
    return torch.full((LENGTH, LENGTH), -math.inf).triu(1)


def additive(m: Any, scores: Tensor, x: Tensor) -> Tensor:
    result: Tensor = scores + m.mask
    return result


def filled(value: float) -> Callable[[Any, Tensor, Tensor], Tensor]:
    return lambda m, scores, x: scores.masked_fill(m.mask, value)


def chosen(m: Any, scores: Tensor, x: Tensor) -> Tensor:
    return torch.where(m.mask, torch.finfo(torch.float32).min, scores)


def computed(m: Any, scores: Tensor, x: Tensor) -> Tensor:
    """A mask that depends on the input, as of padding."""
    hidden = (x[..., 0] > 5).unsqueeze(1) | m.mask
    result: Tensor = scores + hidden.float() * -10000.0
    return result


def twice(m: Any, scores: Tensor, x: Tensor) -> Tensor:
    result: Tensor = (scores + m.mask) + m.mask
    return result


def moved(m: Any, scores: Tensor, x: Tensor) -> Tensor:
    """Entries move between the mask and the softmax."""
    result: Tensor = (scores.unsqueeze(1) + m.mask).reshape(-1, LENGTH, LENGTH)
    return result


def attend(mask: Callable[[Any, Tensor, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    def body(m: Any, x: Tensor) -> Tensor:
        weights = torch.softmax(mask(m, m.query(x) @ m.key(x).transpose(1, 2), x), -1)
        result: Tensor = m.head((weights @ m.value(x)).mean(1))
        return result

    return body


def sdpa(**arguments: Any) -> Callable[[Any, Tensor], Tensor]:
    def body(m: Any, x: Tensor) -> Tensor:
        mask = None if arguments.get("is_causal") else m.mask
        y = F.scaled_dot_product_attention(m.query(x), m.key(x), m.value(x), attn_mask=mask, **arguments)
        result: Tensor = m.head(y.mean(1))
        return result

    return body


Network = tuple[Callable[[Any, Tensor], Tensor], Tensor]
MASKS: Mapping[str, Network] = {
    "-10000": (attend(additive), padding(-10000.0)),
    "-inf twice": (attend(twice), padding(-math.inf)),
    "moved": (attend(moved), padding(-10000.0)),
    "causal": (attend(additive), causal()),
    "filled with -inf": (attend(filled(-math.inf)), HIDDEN),
    "chosen by where": (attend(chosen), HIDDEN),
    "computed": (attend(computed), HIDDEN),
    "function, causal": (sdpa(scale=1.0, is_causal=True), causal()),
}
MILD = (attend(additive), padding(-30.0))
MILD_CAUSAL = (attend(additive), causal().clamp(min=-30.0))


def made(network: Network) -> nn.Module:
    torch.manual_seed(0)
    body, mask = network
    parts: dict[str, nn.Module] = {name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")}
    return Net(body, mask=mask, head=nn.Linear(WIDTH, 4), **parts)


@pytest.fixture(scope="module")
def yardsticks(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, float]:
    """Distance from float in dB of the same network with a mask of −30, causal or not."""
    return {
        is_causal: prove(made(network), IMAGES, tmp_path_factory.mktemp("mild")).distance.tensors[-1].sqnr or math.inf
        for is_causal, network in ((False, MILD), (True, MILD_CAUSAL))
    }


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_costs_no_more_than_a_mild_one(name: str, yardsticks: dict[bool, float], tmp_path: Path) -> None:
    proved = prove(made(MASKS[name]), IMAGES, tmp_path)
    assert proved.parity.verdict is not ParityVerdict.FAILED, proved.parity.summary
    assert proved.distance.passed, proved.distance.summary
    output = proved.distance.tensors[-1]
    assert output.is_output
    assert (output.sqnr or math.inf) > yardsticks["causal" in name] - 3.0
    for initializer in proved.model.graph.graph.initializer:
        values = numpy_helper.to_array(initializer)
        if values.dtype == np.float32:
            assert bool((np.abs(values) <= 65504).all()), f"{initializer.name} does not fit in half precision"
