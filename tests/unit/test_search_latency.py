"""Single layers as models of their own, their times, and the table of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.calibration.ranges import sample_tensors
from eqdeploy.errors import OutputError, RuntimeRefusedError
from eqdeploy.freeze.float_graph import export_float_graph
from eqdeploy.freeze.freeze import freeze
from eqdeploy.freeze.ranges import tensors_to_calibrate
from eqdeploy.network import ElasticSpace
from eqdeploy.pipeline import measure_latency
from eqdeploy.pipeline.layer_times import median_milliseconds
from eqdeploy.pipeline.single_layers import single_layers
from eqdeploy.pipeline.sources import load_supernet
from eqdeploy.profile import load_profile
from eqdeploy.progress import SilentProgress
from eqdeploy.requests import LatencyRequest
from eqdeploy.resolve import resolve
from eqdeploy.search.costs import CostModel
from eqdeploy.search.latency import LatencyTable
from eqdeploy.search.space import search_space
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.validation.reference.integer import IntegerReference
from tests.unit.supernet_parts import randomize
from tests.unit.test_search_costs_from_onnx import MODELS


@pytest.mark.parametrize("profile", ["onnxruntime-x86", "tensorrt", "onnxruntime-w4a4"])
@pytest.mark.parametrize("name", ["joined", "transformer", "every kind of layer", "sound"])
def test_layers_compute_what_they_compute_in_the_network(name: str, profile: str) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    images = torch.randn(12, *shape)
    supernet = Supernet.from_float(randomize(make()).eval(), images[:2], ElasticSpace(bits=(2, 4, 7, 8))).eval()
    calibrate_batch_norm(supernet, [images])
    supernet.initialize(images)
    plan = resolve(load_profile(profile), supernet.network)
    supernet.activate(plan.subnet)
    samples = sample_tensors(supernet, [images], tensors_to_calibrate(plan))
    model = freeze(supernet, plan, export_float_graph(supernet), samples)
    codes = IntegerReference(model).run(images[:3].numpy()).codes
    layers = dict(single_layers(model, supernet.network, 21))
    assert list(layers) == [layer.name for layer in supernet.network.layers]
    compared = 0
    for layer in supernet.network.layers:
        proto = onnx.load_from_string(layers[layer.name])
        onnx.checker.check_model(proto, full_check=True)
        assert sum(tensor.name == f"{layer.name}.weight" for tensor in proto.graph.initializer) == 1
        session = onnxruntime.InferenceSession(layers[layer.name], providers=["CPUExecutionProvider"])
        (entry,) = session.get_inputs()
        assert entry.name == layer.input_tensor
        if entry.type == "tensor(float)":
            continue
        dtype = np.int8 if entry.type == "tensor(int8)" else np.uint8
        (result,) = session.run(None, {entry.name: codes[layer.input_tensor].astype(dtype)})
        if result.dtype == np.float32:
            continue
        output = session.get_outputs()[0].name.removesuffix("_clipped").removesuffix("_quantized")
        # Both round the same real number; sums in float32 may fall on the other side of a tie.
        difference = np.abs(result.astype(int) - codes[output])
        assert difference.max() <= 1
        assert np.count_nonzero(difference) <= 0.01 * difference.size
        compared += 1
    assert compared >= (1 if profile == "tensorrt" else len(layers) // 2)


def test_the_table_has_every_width_that_a_search_asks_for(tmp_path: Path) -> None:
    request = LatencyRequest(tmp_path / "deep" / "times.csv", "onnxruntime-x86", runs=3)
    result = measure_latency(request, SilentProgress())
    table = LatencyTable.read(request.output)
    network = load_supernet("digits", None).checkpoint.supernet.network
    costs = CostModel(search_space(load_profile("onnxruntime-x86"), network), table)  # refuses what lacks something
    assert result.rows == len(table.milliseconds) == sum(len(w) * len(a) for w, a in costs.widths.values())
    assert list(result.milliseconds) == [layer.name for layer in network.layers]
    for (layer, _, _), time in table.milliseconds.items():
        assert time == pytest.approx(result.milliseconds[layer], abs=1e-6)
    with pytest.raises(OutputError, match="exists already"):
        measure_latency(request, SilentProgress())
    assert [path.name for path in request.output.parent.iterdir()] == ["times.csv"]


def test_larger_layers_take_longer_and_broken_ones_are_refused() -> None:
    def product(size: int) -> bytes:
        weight = onnx.numpy_helper.from_array(np.ones((size, size), np.float32), "w")
        values = [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size]) for name in ("x", "y")
        ]
        node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
        graph = onnx.helper.make_graph([node], "product", values[:1], values[1:], [weight])
        opset = [onnx.helper.make_opsetid("", 21)]
        return bytes(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString())

    models = {"small": product(16), "large": product(1024)}
    times = median_milliseconds(models, runs=5, threads=1, progress=SilentProgress())
    assert times["large"] > 3 * times["small"] >= 0
    with pytest.raises(RuntimeRefusedError, match="broken"):
        median_milliseconds({"broken": b"nothing"}, runs=1, threads=1, progress=SilentProgress())


def test_names_of_layers_survive_the_table(tmp_path: Path) -> None:
    table = LatencyTable({('a,"b"', 8, 8): 0.25, ("c", 4, 2): 1e-6}, "times.csv")
    path = tmp_path / "times.csv"
    path.write_text(table.to_csv(), encoding="utf-8")
    assert LatencyTable.read(path).milliseconds == table.milliseconds
