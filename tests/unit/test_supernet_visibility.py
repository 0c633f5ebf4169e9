"""What softmax sees of the tensors before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from eqdeploy.calibration.ranges import sample_tensors
from eqdeploy.errors import DataError, UnsupportedOperationError
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.supernet.tracing import trace
from eqdeploy.supernet.visibility import SoftmaxViews, raised
from eqdeploy.testing import sample_model
from eqdeploy.validation.distance import DistanceMeter, DistanceReport, FloatValues
from eqdeploy.validation.reference.integer import IntegerReference
from tests.unit.supernet_parts import SPACE, Net

MASK = torch.tensor([0.0, 0.0, -math.inf, -10000.0])
DEPTH = 16.0


def traced(body: Callable[[Any, Tensor], Any], **parts: Any) -> fx.GraphModule:
    return trace(Net(body, mask=MASK, layer=nn.Linear(4, 4), **parts), torch.zeros(2, 3, 4))


class _Run(fx.Interpreter):
    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=False)


def floors(graph_module: fx.GraphModule, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All values, and the floors of those that have one, by tensor name."""
    views, run = SoftmaxViews(graph_module, DEPTH), _Run(graph_module)
    run.run(x)
    kept = {node: run.env[node] for node in views.needed(views.names)}
    found = {name: views.floor(name, kept) for name in views.names}
    values = {node.name: value for node, value in run.env.items() if isinstance(value, Tensor)}
    return values, {name: floor for name, floor in found.items() if floor is not None}


BODIES: dict[str, tuple[Callable[[Any, Tensor], Tensor], set[str]]] = {
    "sum": (lambda m, x: (m.layer(x) + m.mask).softmax(-1), {"mask", "layer", "add"}),
    "two sums": (lambda m, x: ((m.layer(x) + 1.0) + m.mask).softmax(-1), {"mask", "layer", "add", "add_1"}),
    "filled": (lambda m, x: m.layer(x).masked_fill(m.mask < 0, -1e9).softmax(-1), {"layer", "masked_fill"}),
    "where": (
        lambda m, x: F.softmax(torch.where(m.mask < 0, m.mask, m.layer(x)), dim=2),
        {"layer", "where"},
    ),
    "moved": (
        lambda m, x: (m.layer(x) + m.mask).unsqueeze(1).transpose(1, 3).softmax(1),
        {"mask", "layer", "add", "unsqueeze", "transpose"},
    ),
    "two softmaxes": (
        lambda m, x: (y := m.layer(x) + m.mask).softmax(-1) + y.contiguous().softmax(-1),
        {"mask", "layer", "add", "contiguous"},
    ),
}
EVERYTHING: dict[str, Callable[[Any, Tensor], Any]] = {
    "logarithm": lambda m, x: F.log_softmax(m.layer(x) + m.mask, -1),
    "also returned": lambda m, x: (y := m.layer(x) + m.mask, y.softmax(-1)),
    "also summed": lambda m, x: (y := m.layer(x) + m.mask).softmax(-1) + y,
    "twice": lambda m, x: ((y := m.layer(x)) + y).softmax(-1),
    "scaled": lambda m, x: (m.layer(x) * m.mask.exp()).softmax(-1),
    "as the choice": lambda m, x: torch.where(m.layer(x) > 0, m.mask, 0.0).softmax(-1),
}


GRAPHS = {name: traced(body) for name, (body, _) in BODIES.items()}


@pytest.mark.parametrize("name", BODIES)
def test_floors_reach_through_what_stands_before_softmax(name: str) -> None:
    expected, graph_module = BODIES[name][1], GRAPHS[name]
    values, found = floors(graph_module, torch.randn(2, 3, 4))
    assert expected <= found.keys()
    assert "x" not in found, "the layer sees all of its input"
    for tensor in expected - {"mask"}:
        assert bool(torch.isfinite(raised(values[tensor], found[tensor])).all())


@pytest.mark.parametrize("name", EVERYTHING)
def test_what_others_read_has_no_floor(name: str) -> None:
    graph_module = traced(EVERYTHING[name])
    assert "layer" not in SoftmaxViews(graph_module, DEPTH).names


@given(
    seed=st.integers(0, 1000), spread=st.floats(0.1, 50.0), name=st.sampled_from(["sum", "filled", "moved", "where"])
)
def test_raising_to_the_floor_changes_no_probability(seed: int, spread: float, name: str) -> None:
    """Any tensor may be raised: each entry that rises adds at most e⁻¹⁶ of the largest probability."""
    torch.manual_seed(seed)
    graph_module = GRAPHS[name]
    x = torch.randn(2, 3, 4) * spread
    with torch.no_grad():
        expected, found = graph_module(x), floors(graph_module, x)[1]
        for tensor, floor in found.items():
            changed = _Raised(graph_module, tensor, floor).run(x)
            assert float((changed - expected).abs().max()) <= 4 * math.exp(-DEPTH) + 1e-6


class _Raised(fx.Interpreter):
    """Runs a graph with one tensor raised to its floor."""

    def __init__(self, graph_module: fx.GraphModule, name: str, floor: Tensor) -> None:
        super().__init__(graph_module)
        self._name, self._floor = name, floor

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        return raised(result, self._floor) if n.name == self._name else result


def supernet_with(mask: Tensor) -> Supernet:
    torch.manual_seed(0)
    net = Net(lambda m, x: (m.layer(x) + m.mask).softmax(-1), mask=mask, layer=nn.Linear(4, 4))
    return Supernet.from_float(net, torch.zeros(2, 3, 4), SPACE)


@pytest.mark.parametrize("depth", [-30.0, -10000.0, -1e9, torch.finfo(torch.float32).min, -math.inf])
def test_samples_do_not_depend_on_how_deep_a_mask_is(depth: float) -> None:
    supernet = supernet_with(torch.tensor([0.0, 0.0, depth, depth]))
    x = torch.randn(16, 3, 4, generator=torch.Generator().manual_seed(0))
    sample = sample_tensors(supernet, [x[:8], x[8:]], ["add"])["add"]
    largest = supernet_with(torch.zeros(4)).graph_module.get_submodule("layer")(x)[..., :2].amax(-1).detach()
    assert sample.min().item() == pytest.approx(float(largest.min()) - DEPTH, rel=1e-5)
    assert sample.max().item() == pytest.approx(float(largest.max()), rel=1e-5)


def test_a_row_that_is_hidden_altogether_is_refused_by_name() -> None:
    supernet = supernet_with(torch.full((4,), -math.inf))
    with pytest.raises(DataError, match=r"add: .* everything is hidden"):
        sample_tensors(supernet, [torch.randn(4, 3, 4)], ["add"])


def test_a_constant_that_holds_nan_is_refused_with_the_cure() -> None:
    mask = torch.triu(torch.ones(4, 4), 1) * -math.inf  # 0 · ∞ below the diagonal
    with pytest.raises(UnsupportedOperationError, match=r"the constant holds NaN; add reads it") as caught:
        trace(Net(lambda m, x: (m.a(x) + m.mask).softmax(-1), mask=mask, a=nn.Linear(4, 4)), torch.zeros(2, 4, 4))
    assert "torch.full" in str(caught.value)


@pytest.mark.parametrize(
    "arguments", [{"is_causal": True}, {"scale": 0.3}, {"attn_mask": "numbers"}, {"attn_mask": "truth"}]
)
def test_scaled_dot_products_are_written_out(arguments: dict[str, Any]) -> None:
    masks = {"numbers": torch.full((3, 3), -1e4).triu(1), "truth": torch.ones(3, 3, dtype=torch.bool).tril()}
    given_mask = masks.get(str(arguments.get("attn_mask")))
    known = {key: value for key, value in arguments.items() if key != "attn_mask"}

    def body(m: Any, x: Tensor) -> Tensor:
        mask = None if given_mask is None else m.mask
        return F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x), mask, **known)

    net = Net(body, mask=torch.zeros(1) if given_mask is None else given_mask, **{n: nn.Linear(4, 4) for n in "qkv"})
    graph_module = trace(net, torch.zeros(2, 3, 4))  # compares both on random values
    targets = {node.target for node in graph_module.graph.nodes}
    assert F.scaled_dot_product_attention not in targets
    assert torch.softmax in targets


@pytest.mark.parametrize("arguments", [{"dropout_p": 0.0, "enable_gqa": True}])
def test_other_scaled_dot_products_stay(arguments: dict[str, Any]) -> None:
    net = Net(
        lambda m, x: F.scaled_dot_product_attention(m.q(x)[:, None], m.q(x)[:, None], x[:, None], **arguments),
        q=nn.Linear(4, 4),
    )
    assert F.scaled_dot_product_attention in {node.target for node in trace(net, torch.zeros(2, 3, 4)).graph.nodes}


REFERENCE = IntegerReference(sample_model())
IMAGES = np.random.default_rng(0).normal(0, 1.5, (6, 3, 8, 8)).astype(np.float32)
FOUND = REFERENCE.run(IMAGES)
NAME = next(iter(FOUND.codes))
VALUES = REFERENCE.graph.encodings[NAME].dequantize(FOUND.codes[NAME])


def measured(wanted: NDArray[np.float32], floor: float | None) -> DistanceReport:
    floors_of = {} if floor is None else {NAME: np.full((len(IMAGES), 1, 1, 1), floor, np.float32)}
    meter = DistanceMeter(REFERENCE.graph, lambda images, names: FloatValues({NAME: wanted}, floors_of))
    meter.add(IMAGES, FOUND)
    return meter.report()


def test_how_deep_something_is_hidden_is_no_distance() -> None:
    lowest = float(VALUES.min())
    hidden = VALUES.min(axis=-1, keepdims=True) == VALUES
    wanted = np.where(lowest == VALUES, np.float32(-1e4), VALUES)
    assert hidden.any()
    assert not measured(wanted, None).tensors[0].passed
    assert measured(wanted, lowest + 1e-6).tensors[0].sqnr is None


def test_what_one_network_sees_and_the_other_does_not_is_a_distance() -> None:
    """Neither something hidden that appears nor something seen that vanishes goes unnoticed."""
    middle = float(np.median(VALUES))
    appears = np.where(middle < VALUES, np.float32(-1e4), VALUES)
    vanishes = np.where(middle >= VALUES, np.float32(VALUES.max()), VALUES)
    for wanted in (appears, vanishes):
        tensor = measured(wanted, middle).tensors[0]
        assert tensor.sqnr is not None
        assert tensor.largest_difference == pytest.approx(VALUES.max() - middle, rel=0.01)
