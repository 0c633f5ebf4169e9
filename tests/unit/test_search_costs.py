"""Costs of subnets, recomputed from their plans, and budgets as users write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from eqdeploy.budget import average_bits
from eqdeploy.errors import UsageError
from eqdeploy.network import ElasticSpace, NetworkDescription
from eqdeploy.profile import DeviceProfile
from eqdeploy.search.budgets import Budget, number, parse_budget, parse_budgets, rounded_up
from eqdeploy.search.costs import CostModel, LatencyTable, Metric
from eqdeploy.search.integer_program import optimum
from eqdeploy.search.space import SearchSpace, search_space
from eqdeploy.search.tables import AdditiveTable
from eqdeploy.supernet.supernet import Supernet
from tests.unit.network_support import residual_network
from tests.unit.search_spaces import X86, bitops, device_widths, everything, model_bytes, resized, small_space
from tests.unit.test_search_space import made, networks, profiles


def times(space: SearchSpace, seed: int = 0) -> LatencyTable:
    """Random times of all layers at all widths."""
    random = np.random.default_rng(seed)
    return LatencyTable(
        {
            (layer.name, w, a): float(random.random())
            for layer in space.network.layers
            for w in range(1, 9)
            for a in range(1, 9)
        },
        "times.csv",
    )


@settings(max_examples=50, deadline=None)
@given(network=networks, profile=profiles, seed=st.integers(0, 10_000))
def test_costs_are_those_of_the_resolved_plan(network: NetworkDescription, profile: DeviceProfile, seed: int) -> None:
    space = made(profile, resized(network, seed))
    if space is None or not space.network.layers:
        return
    latency = times(space, seed)
    model = CostModel(space, latency)
    random = np.random.default_rng(seed)
    choices = np.asarray(random.integers(space.sizes, size=(4, len(space.genes))), np.int64)
    costs = model.costs(choices)
    for index, row in enumerate(choices):
        plan = space.plan(row)
        bits, widths = average_bits(plan, space.network), device_widths(plan)
        assert costs[Metric.AVG_WEIGHT_BITS][index] == bits.searchable_weights
        assert costs[Metric.AVG_ACTIVATION_BITS][index] == bits.searchable_activations
        assert costs[Metric.MODEL_BYTES][index] == model_bytes(plan, space.network)
        assert costs[Metric.BITOPS][index] == bitops(plan, space.network)
        measured = sum(
            latency.milliseconds[layer.name, plan.weight[layer.name].device.bits, widths[layer.input_tensor]]
            for layer in space.network.layers
        )
        assert costs[Metric.LATENCY_MS][index] == pytest.approx(measured, abs=1e-6 * len(space.network.layers))


def test_uniform_three_bits_cost_exactly_three() -> None:
    network = resized(residual_network(), 3)
    space = search_space(X86, network)
    model = CostModel(space)
    costs = model.costs(space.uniform())
    pairs = zip(costs[Metric.AVG_WEIGHT_BITS], costs[Metric.AVG_ACTIVATION_BITS], strict=True)
    assert sorted(pairs) == [(w, a) for w in range(2, 9) for a in range(2, 9)]


def test_layers_without_bias_cost_none_unless_a_norm_is_folded_into_them() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 10, 2, groups=2),
        nn.ReLU(),
        nn.Conv2d(10, 10, 3, groups=10, bias=False),
        nn.Flatten(),
        nn.Linear(10 * 3 * 3, 2),
    )
    network = Supernet.from_float(model, torch.zeros(2, 3, 8, 8), ElasticSpace(bits=(2, 8))).network
    assert [layer.bias for layer in network.layers] == [False, False, True, False, True]
    space = search_space(X86, network)
    lowest = np.zeros((1, len(space.genes)), np.int64)
    # boundary layers at 8 bits, the others at 2
    weights = 108 + (216 + 120 + 90) // 4 + 1 + 180
    assert CostModel(space).cost(Metric.MODEL_BYTES, lowest).tolist() == [weights + 4 * (6 + 10 + 2)]


def test_times_with_decimals_are_added_up_exactly() -> None:
    space = small_space(6)
    random = np.random.default_rng(0)
    tenths = {key: int(random.integers(1, 10)) for key in times(space).milliseconds}
    model = CostModel(space, LatencyTable({key: tenth / 10 for key, tenth in tenths.items()}, "times.csv"))
    rows = everything(space)
    found = model.cost(Metric.LATENCY_MS, rows)
    widths = [device_widths(space.plan(row)) for row in rows[::97]]
    weights = [space.plan(row).weight for row in rows[::97]]
    exact = [
        sum(tenths[layer.name, w[layer.name].device.bits, a[layer.input_tensor]] for layer in space.network.layers) / 10
        for w, a in zip(weights, widths, strict=True)
    ]
    assert found[::97].tolist() == exact
    assert [model.cost(Metric.LATENCY_MS, row[None])[0] for row in rows] == found.tolist(), "one by one"
    for limit in np.unique(found)[:20]:
        budget = Budget(Metric.LATENCY_MS, float(limit))
        best = optimum(AdditiveTable(tuple(-np.arange(float(size)) for size in space.sizes)), model, [budget])
        assert best is not None
        assert best.value == -rows[model.feasible(rows, [budget])].sum(axis=1).max()


def test_latency_needs_a_table() -> None:
    model = CostModel(small_space())
    assert Metric.LATENCY_MS not in model.tables
    with pytest.raises(UsageError, match="latency_ms needs a table of measured times"):
        model.feasible(np.zeros((1, 4), np.int64), [Budget(Metric.LATENCY_MS, 1.0)])


def test_latency_tables_must_fit_the_network() -> None:
    space = small_space()
    table = times(space)
    part = {key: value for key, value in table.milliseconds.items() if key[2] != 4}
    with pytest.raises(UsageError, match=r"times.csv: no time for conv1 W2A4, conv1 W4A4, conv1 W8A4 and 3 more"):
        CostModel(space, LatencyTable(part, "times.csv"))
    with pytest.raises(UsageError, match="the network has no layer 'other'"):
        CostModel(space, LatencyTable({**table.milliseconds, ("other", 8, 8): 1.0}, "times.csv"))


def test_latency_table_is_read(tmp_path: Path) -> None:
    path = tmp_path / "times.csv"
    path.write_text('layer,weight_bits,activation_bits,milliseconds\n"a,b",4,8,0.25\nc,2,2,1e-3\n', encoding="utf-8")
    table = LatencyTable.read(path)
    assert table.milliseconds == {("a,b", 4, 8): 0.25, ("c", 2, 2): 0.001}
    assert table.where == str(path)


HEADER = "layer,weight_bits,activation_bits,milliseconds\n"


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("", "1", "another header is expected"),
        ("layer,milliseconds\n", "1", "another header"),
        (HEADER, None, "no measurements"),
        (HEADER + "a,4,8\n", "2", "3 values instead of 4"),
        (HEADER + "a,4,8,1\n\na,4,8\n", "4", "3 values instead of 4"),
        (HEADER + "a,4,8,1e7\n", "2", "milliseconds: '1e7' is no time.*0 to 1000000"),
        (HEADER + f"a,{'0' * 5000}4,8,1\n", "2", "is no width"),
        (HEADER.replace(",", ";"), "1", "with commas"),
        (HEADER + "a,4,8,1\nb,9,8,1\n", "3", "weight_bits: '9' is no width"),
        (HEADER + "a,4,8.0,1\n", "2", "activation_bits: '8.0' is no width"),
        (HEADER + "a,4,8,nan\n", "2", "milliseconds: 'nan' is no time"),
        (HEADER + "a,4,8,-1\n", "2", "milliseconds: '-1' is no time"),
        (HEADER + "a,4,8,1\na,4,8,2\n", "3", "layer 'a' has W4A8 twice"),
        (HEADER + 'a,4,8,"1\n', "2", "not CSV"),
    ],
)
def test_broken_latency_tables_name_file_and_line(tmp_path: Path, content: str, line: str | None, message: str) -> None:
    path = tmp_path / "times.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=message) as caught:
        LatencyTable.read(path)
    assert caught.value.where == (str(path) if line is None else f"{path}:{line}")


def test_latency_tables_that_are_no_text_or_missing_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "times.csv"
    with pytest.raises(UsageError, match="No such file"):
        LatencyTable.read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="UTF-8"):
        LatencyTable.read(path)


@pytest.mark.parametrize(
    ("text", "metric", "limit"),
    [
        ("avg_weight_bits<=3.5", Metric.AVG_WEIGHT_BITS, 3.5),
        (" avg_activation_bits <= 3 ", Metric.AVG_ACTIVATION_BITS, 3.0),
        ("model_bytes<=200KiB", Metric.MODEL_BYTES, 204800.0),
        ("model_bytes<=0.5 MB", Metric.MODEL_BYTES, 500000.0),
        ("model_bytes<=12345", Metric.MODEL_BYTES, 12345.0),
        ("bitops<=1.1G", Metric.BITOPS, 1.1e9),
        ("bitops<=1e9", Metric.BITOPS, 1e9),
        ("latency_ms<=250us", Metric.LATENCY_MS, 0.25),
        ("latency_ms<=1.5", Metric.LATENCY_MS, 1.5),
    ],
)
def test_budgets_are_read(text: str, metric: Metric, limit: float) -> None:
    budget = parse_budget(text)
    assert budget == Budget(metric, limit)
    assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("avg_bits<=3", "unknown metric 'avg_bits' .*possible are avg_weight_bits, avg_activation_bits, model_bytes"),
        ("avg_weight_bits<3", "'<' is not possible.*write avg_weight_bits<="),
        ("avg_weight_bits>=3", "'>=' is not possible"),
        ("avg_weight_bits=3", "'=' is not possible"),
        ("model_bytes<=3 parsecs", "unknown unit 'parsecs' .*B, kB, MB, GB, KiB, MiB, GiB"),
        ("model_bytes<=3kb", "unknown unit 'kb'"),
        ("avg_weight_bits<=3KiB", "unknown unit 'KiB' .*units of avg_weight_bits: none"),
        ("bitops<=", "is not a number above 0"),
        ("bitops<=-1", "is not a number above 0"),
        ("bitops<=0", "is not a number above 0"),
        ("bitops<=1,5G", "is not a number above 0"),
        ("bitops<=1e999", "is not a number above 0"),
        ("model_bytes<=1e999999GiB", "is not a number above 0"),
        ("latency_ms<=1e-400", "is not a number above 0"),
        ("bitops<=nan", "'nan' is not a number above 0"),
        ("small", "not a budget"),
        ("", "not a budget"),
    ],
)
def test_wrong_budgets_say_what_is_right(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_budget(text)


def test_two_limits_of_one_metric_are_refused() -> None:
    assert len(parse_budgets(["avg_weight_bits<=3", "bitops<=1G"])) == 2
    with pytest.raises(UsageError, match="avg_weight_bits is limited twice"):
        parse_budgets(["avg_weight_bits<=3", "avg_weight_bits<=4"])


@given(value=st.floats(0.001, 1e12) | st.floats(1e12, 1e300))
def test_proposed_limits_are_never_too_small(value: float) -> None:
    assert rounded_up(value) >= value
    assert float(number(rounded_up(value))) == rounded_up(value)
