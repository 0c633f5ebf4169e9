"""Sessions, exposure, and the ways in which ONNX Runtime deviates from what its operations mean."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from eqdeploy.errors import DataError, ParityError, RuntimeRefusedError
from eqdeploy.plan import BiasFormat
from eqdeploy.progress import Advance
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.testing import ModelBuilder, SampleForms, sample_model
from eqdeploy.validation.bounds import rounded_biases
from eqdeploy.validation.differences import Examiner, Kind, with_rounded_biases
from eqdeploy.validation.parity import ParityVerdict, check_parity, decisions
from eqdeploy.validation.qdq_file import QdqFile
from eqdeploy.validation.reference import IntegerReference
from eqdeploy.validation.runtime import Exposure, Level, ObservedModel, Session, loads_ir_version
from tests.parity.networks import exported, noise

IMAGES = noise(32, 5, 3, 8, 8) * 1.5
SIGNED = SampleForms(activation=Form(8, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=True))


def unsigned(scale: float, zero_point: int) -> Encoding:
    return Encoding.per_tensor(scale, zero_point, 0, 255, 8, signed=False)


def observed(model: QuantizedModel, path: Path, level: Level) -> ObservedModel:
    file = QdqFile.load(path)
    return ObservedModel(file, {name: chains[0] for name, chains in file.chains(model).items()}, level)


@pytest.mark.parametrize("skip_only", [False, True])
@pytest.mark.parametrize("forms", [SampleForms(), SIGNED], ids=["unsigned", "signed"])
def test_looking_at_integers_does_not_change_what_is_computed(
    forms: SampleForms, skip_only: bool, tmp_path: Path
) -> None:
    model = sample_model(forms, skip_only=skip_only)
    path = exported(model, tmp_path)
    for level in Level:
        seen = observed(model, path, level)
        result = seen.run(IMAGES)
        assert set(result.codes) == set(model.activations)
        for name, codes in result.codes.items():
            assert codes.dtype == model.activations[name].encoding.container
        fuses = level in (Level.EXTENDED, Level.ALL)
        hidden = forms is SIGNED and fuses
        assert seen.exposure is (Exposure.FUSED_GRAPH if hidden else Exposure.MODEL)
        for name, output in result.plain_outputs.items():
            assert np.array_equal(output, result.outputs[name])


def test_signed_tensors_are_seen_although_the_runtime_stores_them_unsigned(tmp_path: Path) -> None:
    model = sample_model(SIGNED)
    path = exported(model, tmp_path)
    plain = observed(model, path, Level.DISABLED).run(IMAGES).codes
    fused = observed(model, path, Level.ALL).run(IMAGES).codes
    for name, codes in plain.items():
        assert (codes != fused[name]).mean() < 1e-3


def test_rounding_a_float_bias_is_what_the_runtime_does(tmp_path: Path) -> None:
    forms = SampleForms(weight=Form(4, Granularity.PER_CHANNEL, Symmetry.SYMMETRIC, signed=True), bias=BiasFormat.FLOAT)
    model = sample_model(forms)
    path = exported(model, tmp_path)
    graph = IntegerReference(model).graph
    rounded = with_rounded_biases(graph, rounded_biases(graph))
    assert rounded is not None
    assert len(rounded.parameters) == len(model.parameters) + 6
    expected = IntegerReference(rounded).run(IMAGES).codes
    found = observed(model, path, Level.ALL).run(IMAGES).codes
    for name in ("x", "stem_relu", "depthwise_relu6", "pointwise", "add_relu", "pool", "narrow_relu", "concat"):
        assert np.array_equal(found[name], expected[name])
    report = check_parity(model, path, IMAGES)
    assert report.verdict is ParityVerdict.EXPLAINED
    assert Kind.RUNTIME_BIAS_ROUNDING not in report.level(Level.DISABLED).total.kinds
    for level in (Level.BASIC, Level.EXTENDED, Level.ALL):
        assert report.level(level).total.kinds[Kind.RUNTIME_BIAS_ROUNDING] > 100


def test_ties_at_odd_zero_points_are_told_apart(tmp_path: Path) -> None:
    builder = ModelBuilder()
    x = builder.encode(builder.input("x", 3, 8, 8), encoding=unsigned(2.0**-5, 101))
    half = builder.encode(builder.node("half", "Sigmoid", [x]), encoding=unsigned(2.0**-8, 0))
    builder.encode(builder.node("sum", "Add", [x, half]), encoding=unsigned(2.0**-4, 77))
    report = check_parity(builder.build("sum"), exported(builder.build("sum"), tmp_path), IMAGES)
    for level in (Level.EXTENDED, Level.ALL):
        assert report.level(level).verdict is ParityVerdict.IDENTICAL
    for level in (Level.DISABLED, Level.BASIC):
        total = report.level(level).total
        assert set(total.kinds) == {Kind.TIE}
        assert total.differing > 10
        assert total.max_lsb == 1


@pytest.mark.parametrize(("scale", "kinds"), [(1 / 256, set()), (1 / 255, {Kind.RUNTIME_SOFTMAX})])
def test_a_softmax_scale_that_the_runtime_floors_is_named(scale: float, kinds: set[Kind], tmp_path: Path) -> None:
    builder = ModelBuilder()
    x = builder.encode(builder.input("x", 3, 8, 8), encoding=unsigned(0.05, 120))
    builder.encode(builder.node("soft", "Softmax", [x], axis=1), encoding=unsigned(scale, 0))
    model = builder.build("soft")
    report = check_parity(model, exported(model, tmp_path), IMAGES)
    assert report.verdict is not ParityVerdict.FAILED
    assert report.level(Level.ALL).operators is not None
    assert report.level(Level.ALL).operators.fused["QLinearSoftmax"] == 1  # type: ignore[union-attr]
    assert set(report.level(Level.ALL).total.kinds) - {Kind.FLOAT_ROUNDING, Kind.TIE} == kinds
    assert not set(report.level(Level.DISABLED).total.kinds) - {Kind.FLOAT_ROUNDING, Kind.TIE}


def test_an_average_that_the_runtime_divides_by_the_wrong_count_fails(tmp_path: Path) -> None:
    builder = ModelBuilder()
    x = builder.encode(builder.input("x", 3, 8, 8), encoding=unsigned(0.05, 120))
    geometry = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1}
    builder.encode(builder.node("mean", "AveragePool", [x], **geometry), encoding=unsigned(0.02, 120))
    model = builder.build("mean")
    report = check_parity(model, exported(model, tmp_path), IMAGES)
    assert report.level(Level.DISABLED).verdict is not ParityVerdict.FAILED
    assert report.level(Level.ALL).verdict is ParityVerdict.FAILED
    assert "unexplained differing codes at level extended, the first in tensor mean" in report.summary


def test_what_the_runtime_refuses_is_one_line(tmp_path: Path) -> None:
    builder = ModelBuilder()
    x = builder.encode(builder.input("x", 3, 8, 8), encoding=unsigned(0.05, 120))
    name = builder.node("mean", "AveragePool", [x], kernel_shape=[2, 2], dilations=[2, 2])
    builder.encode(name, encoding=unsigned(0.05, 120))
    model = builder.build("mean")
    path = exported(model, tmp_path)
    assert check_parity(model, path, IMAGES, levels=(Level.DISABLED, Level.BASIC)).verdict is not ParityVerdict.FAILED
    with pytest.raises(RuntimeRefusedError) as failure:
        check_parity(model, path, IMAGES)
    text = str(failure.value)
    assert "\n" not in text
    assert "level extended" in text
    assert "dilations" in text
    assert str(path) in text


def test_a_file_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = exported(sample_model(), tmp_path)
    proto = onnx.load(path)
    proto.ir_version = next(version for version in range(proto.ir_version, 1000) if not loads_ir_version(version))
    with pytest.raises(RuntimeRefusedError, match=f"IR version: {proto.ir_version}"):
        Session(proto, Level.ALL, where="model.onnx")


def test_images_of_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    model = sample_model()
    path = exported(model, tmp_path)
    with pytest.raises(DataError):
        check_parity(model, path, IMAGES[:, :, :7])
    with pytest.raises(DataError, match="at least one image"):
        check_parity(model, path, IMAGES[:0])
    with pytest.raises(RuntimeRefusedError, match="invalid dimensions"):
        Session(path, Level.ALL, where="model.onnx").run(IMAGES[:, :, :7])


def test_a_flipped_code_is_judged_where_it_arises() -> None:
    model = sample_model()
    reference = IntegerReference(model)
    batch = IMAGES[:4]
    expected = reference.run(batch).codes
    # 40 steps in one code of an early tensor, and everything after it computed right from there.
    altered = {**expected, "stem_relu": expected["stem_relu"].copy()}
    altered["stem_relu"][1, 2, 3, 3] ^= 40
    seen = {**reference.follow(batch, altered).codes, "stem_relu": altered["stem_relu"]}
    for name in reference.graph.encodings:  # until nothing changes any more, in order of execution
        seen[name] = altered["stem_relu"] if name == "stem_relu" else reference.follow(batch, seen).codes[name]
    for float_operations in (frozenset(), frozenset(node.name for node in model.graph.graph.node)):
        found = Examiner(reference).compare(batch, expected, seen, float_operations)
        assert found["x"].differing == 0
        assert found["stem_relu"].kinds == {Kind.UNEXPLAINED: 1}
        assert found["stem_relu"].max_lsb == 40
        assert set(found["depthwise_relu6"].kinds) == {Kind.PROPAGATED}
        later = [entry for name, entry in found.items() if name not in ("x", "stem_relu")]
        assert {kind for entry in later for kind in entry.kinds} == {Kind.PROPAGATED}


def test_integer_kernels_are_held_to_tighter_bounds_than_float_ones() -> None:
    builder = ModelBuilder()
    x = builder.encode(builder.input("x", 4096), encoding=unsigned(1.0, 128))
    builder.layer("fc", "Gemm", x, (1, 4096), transB=1)
    scale = float(builder.build("fc").parameters["fc.weight"].encoding.scale[0])
    builder.encode("fc", encoding=unsigned(200 * scale, 128))
    reference = IntegerReference(builder.build("fc"))
    batch = np.round(noise(400, 8, 4096) * 40)
    expected = reference.run(batch).codes
    flipped = {**expected, "fc": expected["fc"] + 1}
    loose = Examiner(reference).compare(batch, expected, flipped, frozenset({"fc"}))["fc"]
    tight = Examiner(reference).compare(batch, expected, flipped, frozenset())["fc"]
    assert loose.differing == tight.differing == 400
    assert loose.kinds.get(Kind.FLOAT_ROUNDING, 0) > tight.kinds.get(Kind.FLOAT_ROUNDING, 0)
    assert tight.kinds[Kind.UNEXPLAINED] > loose.kinds.get(Kind.UNEXPLAINED, 0)


def test_a_tensor_that_the_file_does_not_quantize_is_named(tmp_path: Path) -> None:
    model = sample_model()
    path = exported(replace(model, activations={k: v for k, v in model.activations.items() if k != "gap"}), tmp_path)
    with pytest.raises(ParityError, match="gap: the file quantizes this tensor 0 times"):
        check_parity(model, path, IMAGES)


class Listener:
    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.done: list[int] = []

    @contextmanager
    def stage(self, description: str, *, total: int | None = None) -> Iterator[Advance]:
        self.stages.append((description, total))
        self.done.append(0)

        def advance(amount: int) -> None:
            self.done[-1] += amount

        yield advance

    def note(self, message: str) -> None:
        raise AssertionError(message)

    def detail(self, message: str) -> None:
        raise AssertionError(message)


def test_progress_counts_every_image(tmp_path: Path) -> None:
    model = sample_model()
    listener = Listener()
    check_parity(model, exported(model, tmp_path), noise(70, 1, 3, 8, 8), progress=listener)
    assert [total for _, total in listener.stages] == [4, 70, 2]
    assert listener.done == [4, 70, 2]


def test_the_report_is_plain_repeatable_data(tmp_path: Path) -> None:
    model = sample_model(SampleForms(bias=BiasFormat.FLOAT))
    path = exported(model, tmp_path)
    first, second = (json.dumps(check_parity(model, path, IMAGES).to_json(), allow_nan=False) for _ in range(2))
    assert first == second
    document = json.loads(first)
    assert set(document["levels"]) == {"disabled", "basic", "extended", "all"}
    level = document["levels"]["all"]
    assert level["differing"] == sum(level["kinds"].values())
    assert level["differing"] == sum(tensor["differing"] for tensor in level["differing_tensors"].values())
    assert level["operators"]["fused"]["QLinearConv"] == 4
    assert [item["name"] for item in level["operators"]["float"]] == ["up"]
    assert document["levels"]["basic"]["operators"] is None


def test_256_images_of_a_small_network_take_seconds(tmp_path: Path) -> None:
    model = sample_model(SampleForms(bias=BiasFormat.FLOAT))
    path = exported(model, tmp_path)
    started = time.process_time()
    report = check_parity(model, path, noise(256, 2, 3, 8, 8))
    assert time.process_time() - started < 8
    assert report.images == 256


def test_decisions_are_made_for_images_and_for_pixels() -> None:
    assert decisions(np.array([[0, 2, 1], [3, 0, 0]])).tolist() == [1, 0]
    maps = np.zeros((2, 3, 2, 2))
    maps[0, 2, 1, 1] = 1
    assert decisions(maps).tolist() == [[[0, 0], [0, 2]], [[0, 0], [0, 0]]]
    assert decisions(np.zeros((4, 1))).size == 0
    assert decisions(np.zeros(4)).size == 0
