"""What explains a difference also bounds it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from eqdeploy.exporters.onnx_qdq import OnnxQdqExporter
from eqdeploy.plan import BiasFormat
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.testing import ModelBuilder, SampleForms, sample_model
from eqdeploy.validation import parity
from eqdeploy.validation.bounds import bias_rounding_steps, rounded_biases, saturated_layer
from eqdeploy.validation.differences import Examiner, Kind, TensorDifferences
from eqdeploy.validation.parity import LevelParity, ParityReport, ParityVerdict, check_parity
from eqdeploy.validation.reference.graph import Graph
from eqdeploy.validation.reference.integer import IntegerReference
from eqdeploy.validation.runtime import Exposure, Level

IMAGES = np.random.default_rng(0).normal(0, 1.5, (16, 3, 8, 8)).astype(np.float32)
FLOAT_BIAS = SampleForms(
    weight=Form(8, Granularity.PER_CHANNEL, Symmetry.SYMMETRIC, signed=True), bias=BiasFormat.FLOAT
)


def with_large_bias(model: QuantizedModel, weight: str, channel: int) -> QuantizedModel:
    """The model with one channel pruned: a weight scale so small that int32 cannot hold its float bias."""
    parameter = model.parameters[weight]
    scale = parameter.encoding.scale.copy()
    scale[channel] = 1e-14
    changed = replace(parameter, encoding=replace(parameter.encoding, scale=scale))
    graph = onnx.ModelProto()
    graph.CopyFrom(model.graph)
    initializer = next(item for item in graph.graph.initializer if item.name == weight)
    initializer.CopyFrom(numpy_helper.from_array(changed.encoding.dequantize(changed.codes), weight))
    bias = next(item for item in graph.graph.initializer if item.name == weight.replace("weight", "bias"))
    values = numpy_helper.to_array(bias).copy()
    values[channel] = 3.0
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    return replace(model, graph=graph, parameters={**model.parameters, weight: changed})


def test_a_bias_that_the_runtime_saturates_fails_and_names_the_layer(tmp_path: Path) -> None:
    model = sample_model(FLOAT_BIAS)
    weight = next(name for name in model.parameters if name.startswith("stem"))
    pruned = with_large_bias(model, weight, 2)
    (name,) = [name for name, bias in rounded_biases(Graph.of(pruned)).items() if bias.saturated]
    assert rounded_biases(Graph.of(pruned))[name].saturated == (2,)
    OnnxQdqExporter().export(pruned, tmp_path, {})
    report = check_parity(pruned, tmp_path / "model.onnx", IMAGES)
    assert report.level(Level.DISABLED).verdict is not ParityVerdict.FAILED
    fused = report.level(Level.ALL)
    assert fused.verdict is ParityVerdict.FAILED
    assert fused.total.kinds[Kind.RUNTIME_BIAS_SATURATION] > 0
    assert fused.total.kinds.get(Kind.UNEXPLAINED, 0) == 0
    assert report.verdict is ParityVerdict.FAILED
    assert "saturates the bias of stem (channels 2)" in report.summary


def test_rounding_a_bias_moves_codes_by_no_more_than_its_grid_allows(tmp_path: Path) -> None:
    model = sample_model(FLOAT_BIAS)
    graph = Graph.of(model)
    biases = rounded_biases(graph)
    bounds = {name: bias_rounding_steps(graph, name, biases) for name in graph.encodings}
    assert saturated_layer(graph, "stem_relu", biases) is None
    OnnxQdqExporter().export(model, tmp_path, {})
    report = check_parity(model, tmp_path / "model.onnx", IMAGES)
    assert report.verdict is ParityVerdict.EXPLAINED
    seen = 0
    for name, tensor in report.level(Level.ALL).tensors.items():
        found = tensor.steps.get(Kind.RUNTIME_BIAS_ROUNDING, 0)
        seen += found
        bound = bounds[name]
        assert bound is None or found <= bound
    assert seen
    grid = {bias.layer: bias.error for bias in biases.values()}
    assert bounds["stem_relu"] == int(grid["stem"] / float(graph.encodings["stem_relu"].scale) * 1.001 + 1e-3) + 1


@pytest.mark.parametrize("steps", [1, 3])
def test_a_rounded_bias_explains_no_code_that_it_does_not_give(steps: int) -> None:
    """One step is within what rounding may do; that it was done must still follow from the rounded bias."""
    reference = IntegerReference(sample_model(FLOAT_BIAS))
    expected = reference.run(IMAGES[:2]).codes
    moved = np.minimum(expected["stem_relu"].astype(np.int32) + steps, 255).astype(np.uint8)
    observed = reference.follow(IMAGES[:2], {"stem_relu": moved}).codes | {"stem_relu": moved}
    found = Examiner(reference).compare(IMAGES[:2], expected, observed, [])
    kinds = found["stem_relu"].kinds
    assert kinds[Kind.UNEXPLAINED] > 0.9 * found["stem_relu"].differing
    others = {kind for name, tensor in found.items() if name != "stem_relu" for kind in tensor.kinds}
    assert others <= {Kind.PROPAGATED}


def level_of(tensors: dict[str, TensorDifferences], *, decisions: int = 0, differing: int = 0) -> LevelParity:
    return LevelParity(Level.ALL, tensors, Exposure.MODEL, decisions, differing, 0.0, True, None)


def test_explained_differences_fail_where_they_add_up() -> None:
    kinds = {Kind.PROPAGATED: 50}
    small = TensorDifferences(100, 50, kinds, 1, kinds, squares=50.0, allowed=100.0)
    large = TensorDifferences(100, 50, kinds, 9, kinds, squares=50.0 * 81, allowed=100.0)
    assert level_of({"t": small}).verdict is ParityVerdict.EXPLAINED
    assert level_of({"t": small, "u": large}).verdict is ParityVerdict.FAILED
    assert "tensor u" in str(level_of({"t": small, "u": large}).problem)
    assert large.plus(small).squares == 50 * 82
    assert large.plus(small).allowed == 200


@pytest.mark.parametrize(("differing", "verdict"), [(5, ParityVerdict.IDENTICAL), (90, ParityVerdict.FAILED)])
def test_decisions_at_a_level_are_judged(differing: int, verdict: ParityVerdict) -> None:
    level = level_of({"t": TensorDifferences(10, 0, {}, 0)}, decisions=200, differing=differing)
    assert level.verdict is verdict


def test_an_image_must_not_depend_on_its_batch(tmp_path: Path) -> None:
    builder = ModelBuilder()
    x = builder.encode(builder.input("x", 3, 8, 8))
    mean = builder.node("mean", "ReduceMean", [x, builder.constant("axes", [0, 2, 3], np.int64)], keepdims=1)
    builder.encode(builder.node("centred", "Sub", [x, mean]))
    model = builder.build("centred")
    OnnxQdqExporter().export(model, tmp_path, {})
    report = check_parity(model, tmp_path / "model.onnx", IMAGES)
    assert all(level.verdict is not ParityVerdict.FAILED for level in (*report.levels, *report.singles))
    assert report.batch_dependent[0] == "centred"
    assert report.verdict is ParityVerdict.FAILED
    assert "depends on the other images of its batch" in report.summary


def test_single_images_are_compared_at_every_level(tmp_path: Path) -> None:
    model = sample_model()
    OnnxQdqExporter().export(model, tmp_path, {})
    report = check_parity(model, tmp_path / "model.onnx", IMAGES)
    assert report.batch_dependent == ()
    document = report.to_json()["single_images"]
    assert document["images"] == 2
    assert set(document["levels"]) == {str(level) for level in Level}
    codes = {level.level: level.total.codes for level in report.singles}
    assert all(count * 8 == report.level(level).total.codes for level, count in codes.items())


def test_every_batch_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An output that does not follow from the codes in the first batch is not made good by the second."""
    model = sample_model()
    OnnxQdqExporter().export(model, tmp_path, {})
    monkeypatch.setattr(parity, "BATCH_IMAGES", 8)
    monkeypatch.setattr(Examiner, "output_is_explained", lambda _, images, *__: not np.array_equal(images, IMAGES[:8]))
    report = check_parity(model, tmp_path / "model.onnx", IMAGES, levels=(Level.DISABLED,))
    assert report.verdict is ParityVerdict.FAILED
    assert "outputs do not follow" in report.summary


def test_decisions_of_all_batches_are_counted() -> None:
    tally = parity._Tally(frozenset(), 0.75)
    scores = np.eye(4, dtype=np.float32)
    for output in (np.roll(scores, 1, 0), scores):
        tally._add_decisions(scores, output)
    assert (tally.decisions, tally.decisions_differing) == (8, 4)


def test_a_failure_of_single_images_fails_the_whole() -> None:
    good = level_of({"t": TensorDifferences(10, 0, {}, 0)})
    bad = level_of({"t": TensorDifferences(10, 1, {Kind.UNEXPLAINED: 1}, 1, allowed=10.0)})
    assert ParityReport(1, 1, (good,), 1, (good,)).verdict is ParityVerdict.IDENTICAL
    report = ParityReport(1, 1, (good,), 1, (bad,))
    assert report.verdict is ParityVerdict.FAILED
    assert report.summary.startswith("one image at a time: ")
