"""The level origin: faults planted in folding, freezing and calibration are caught, networks as they are pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eqdeploy.calibration.batch_norm import BatchNormCalibration, calibrate_batch_norm
from eqdeploy.calibration.images import augmented_batches, plain_batches
from eqdeploy.calibration.ranges import sample_tensors
from eqdeploy.data import LabelledImages, Preprocessing
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.freeze import affine, freeze
from eqdeploy.freeze.float_graph import FloatGraph, export_float_graph
from eqdeploy.freeze.folding import ChannelAffine
from eqdeploy.freeze.ranges import tensors_to_calibrate
from eqdeploy.origin.checks import OriginReport
from eqdeploy.origin.prove import prove_origin
from eqdeploy.origin.repeated import calibration_digest, compare_repeated
from eqdeploy.origin.statistics import CalibrationEvidence
from eqdeploy.plan import DevicePlan
from eqdeploy.profile_loading import load_profile
from eqdeploy.quant import initialize
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedModel, QuantizedParameter
from eqdeploy.resolve import resolve
from eqdeploy.supernet.inputs import Inputs
from eqdeploy.supernet.supernet import Supernet
from tests.unit.freeze_support import CASE, SPACE_WITH_SEVEN, supernet_of
from tests.unit.shared_networks import block_called_twice, detection_head
from tests.unit.supernet_parts import Case

PREPROCESSING = Preprocessing((8, 8), 3, (0.4, 0.5, 0.6), (0.3, 0.25, 0.2))
AUGMENTATION = Augmentation(shift=1)
PROFILES = ("onnxruntime-x86", "onnxruntime-w4a4", "snpe-dsp", "tensorrt")
#: One whose scales take in the gains, and one whose weights are quantized again.
TWO = ("onnxruntime-w4a4", "snpe-dsp")


def pictures(count: int, seed: int = 0) -> LabelledImages:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), np.uint8)
    return LabelledImages(pixels, np.full(count, -1, np.int64), (), "noise")


IMAGES = pictures(257)  # the last one joins the batch before it
INPUTS = PREPROCESSING.apply(pictures(4, seed=1).images)


@cache
def prepared() -> tuple[Supernet, FloatGraph]:
    supernet = supernet_of(CASE, space=SPACE_WITH_SEVEN)
    return supernet, export_float_graph(supernet)


def plan_for(profile: str) -> DevicePlan:
    return resolve(load_profile(profile), prepared()[0].network)


def calibrated(plan: DevicePlan, batches: Sequence[Inputs] | None = None) -> BatchNormCalibration:
    supernet, _ = prepared()
    supernet.activate(plan.subnet)
    return calibrate_batch_norm(supernet, batches or augmented_batches(IMAGES, PREPROCESSING, AUGMENTATION, 3))


def frozen(plan: DevicePlan) -> tuple[QuantizedModel, dict[str, Tensor]]:
    supernet, graph = prepared()
    samples = sample_tensors(supernet, plain_batches(IMAGES, PREPROCESSING), tensors_to_calibrate(plan))
    return freeze.freeze(supernet, plan, graph, samples), samples


def proved(
    plan: DevicePlan,
    change: Callable[[QuantizedModel], QuantizedModel] = lambda model: model,
    calibration: BatchNormCalibration | None = None,
) -> OriginReport:
    calibration = calibrated(plan) if calibration is None else calibration
    model, samples = frozen(plan)
    evidence = CalibrationEvidence(IMAGES, PREPROCESSING, AUGMENTATION, 3, calibration, samples)
    return prove_origin(prepared()[0], plan, change(model), evidence, INPUTS)


def failed(report: OriginReport) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


@pytest.mark.parametrize("profile", PROFILES)
def test_what_was_frozen_right_passes(profile: str) -> None:
    report = proved(plan_for(profile))
    assert report.passed, report.summary
    assert "tensors on 4 images" in report.summary


def other_epsilon(original: Callable[..., ChannelAffine]) -> Callable[..., ChannelAffine]:
    def planted(supernet: Supernet, layer: Any) -> ChannelAffine:
        norm = None if layer.batch_norm is None else supernet.graph_module.get_submodule(layer.batch_norm)
        if norm is None:
            return original(supernet, layer)
        before, norm.eps = norm.eps, 1e-3  # type: ignore[assignment]
        try:
            return original(supernet, layer)
        finally:
            norm.eps = before

    return planted


def bias_times(factor: float) -> Callable[[Callable[..., ChannelAffine]], Callable[..., ChannelAffine]]:
    def plant(original: Callable[..., ChannelAffine]) -> Callable[..., ChannelAffine]:
        def planted(*arguments: Any) -> ChannelAffine:
            result = original(*arguments)
            return replace(result, shift=result.shift * factor)

        return planted

    return plant


@pytest.mark.parametrize("profile", TWO)
@pytest.mark.parametrize(
    ("plant", "check"),
    [(other_epsilon, "biases"), (bias_times(1.02), "biases"), (bias_times(0.0), "biases")],
    ids=["epsilon", "bias x 1.02", "bias forgotten"],
)
def test_faults_in_folding_are_caught(
    monkeypatch: pytest.MonkeyPatch, profile: str, plant: Callable[..., Any], check: str
) -> None:
    monkeypatch.setattr(freeze, "channel_affine", plant(affine.channel_affine))
    assert check in failed(proved(plan_for(profile)))


@pytest.mark.parametrize("profile", TWO)
def test_truncated_biases_are_caught(monkeypatch: pytest.MonkeyPatch, profile: str) -> None:
    original = freeze._integer_bias

    def planted(name: str, weight: Encoding, shift: Any, source: Encoding, layer: Any) -> QuantizedParameter:
        held = original(name, weight, shift, source, layer)
        codes = np.trunc(shift / held.encoding.scale.astype(np.float64)).astype(np.int32)
        return replace(held, codes=codes)

    monkeypatch.setattr(freeze, "_integer_bias", planted)
    assert "biases" in failed(proved(plan_for(profile)))


def test_a_bias_half_way_between_two_integers_goes_to_the_even_one(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_for("onnxruntime-x86")
    supernet = prepared()[0]
    plain = [layer.name for layer in supernet.network.layers if layer.batch_norm is None]
    biases = {name: supernet.graph_module.get_submodule(name).bias for name in plain}
    name, bias = next((name, bias) for name, bias in biases.items() if isinstance(bias, Tensor))
    before = bias.detach().clone()
    calibrated(plan)
    grid = torch.from_numpy(frozen(plan)[0].parameters[f"{name}.bias"].encoding.scale)
    original = freeze._integer_bias

    def half_up(name: str, weight: Encoding, shift: Any, source: Encoding, layer: Any) -> QuantizedParameter:
        held = original(name, weight, shift, source, layer)
        steps = shift / held.encoding.scale.astype(np.float64)
        return replace(held, codes=np.floor(steps + 0.5).astype(np.int32))

    with torch.no_grad():
        try:
            bias.copy_(grid / 2)
            calibration = calibrated(plan)
            assert proved(plan, calibration=calibration).passed
            monkeypatch.setattr(freeze, "_integer_bias", half_up)
            assert failed(proved(plan, calibration=calibration)) == {"biases"}
        finally:
            bias.copy_(before)


@pytest.mark.parametrize("change", [lambda s, z: (2 * s, z), lambda s, z: (s, z + 6)], ids=["twice", "zero-point"])
def test_a_search_that_does_not_find_the_best_range_is_caught(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> None:
    """Calibration and proof call the same search, so that it must be held against something else."""
    plan = plan_for("onnxruntime-x86")
    calibration = calibrated(plan)
    original = initialize._search_asymmetric

    def planted(best: initialize._Best, *arguments: Any) -> None:
        original(best, *arguments)
        scale, zero_point = change(best.scale, best.zero_point)
        best.scale, best.zero_point = scale, zero_point.clip(best.form.q_min, best.form.q_max)

    monkeypatch.setattr(initialize, "_search_asymmetric", planted)
    assert failed(proved(plan, calibration=calibration)) == {"encodings"}


def first_encoding(model: QuantizedModel, change: Callable[[Encoding], Encoding]) -> QuantizedModel:
    name = next(iter(model.activations))
    tensor = model.activations[name]
    return replace(model, activations={**model.activations, name: replace(tensor, encoding=change(tensor.encoding))})


def weights(model: QuantizedModel, change: Callable[[QuantizedParameter], QuantizedParameter]) -> QuantizedModel:
    changed = {name: change(p) if name.endswith("weight") else p for name, p in model.parameters.items()}
    return replace(model, parameters=changed)


def next_scale(encoding: Encoding) -> Encoding:
    return replace(encoding, scale=np.nextafter(encoding.scale, np.float32(np.inf)))


def one_code(parameter: QuantizedParameter) -> QuantizedParameter:
    codes = parameter.codes.copy()
    codes.flat[0] += 1 if codes.flat[0] < parameter.encoding.q_max else -1
    return replace(parameter, codes=codes)


@pytest.mark.parametrize("profile", TWO)
@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda model: first_encoding(model, next_scale), "encodings"),
        (lambda model: weights(model, one_code), "weights"),
        (lambda model: weights(model, lambda p: replace(p, codes=np.flip(p.codes, -1).copy())), "weights"),
        (lambda model: weights(model, lambda p: replace(p, codes=np.roll(p.codes, 1, 0))), "weights"),
    ],
    ids=["scale off by one ulp", "one code", "kernel flipped", "channels rotated"],
)
def test_changed_numbers_are_caught(
    profile: str, change: Callable[[QuantizedModel], QuantizedModel], check: str
) -> None:
    assert check in failed(proved(plan_for(profile), change))


def test_a_weight_scale_off_by_one_ulp_is_caught() -> None:
    report = proved(
        plan_for("onnxruntime-x86"),
        lambda model: weights(model, lambda p: replace(p, encoding=next_scale(p.encoding))),
    )
    assert "weights" in failed(report)


def test_calibration_without_mean_and_standard_deviation_is_caught() -> None:
    plan = plan_for("onnxruntime-x86")
    raw = replace(PREPROCESSING, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    batches = augmented_batches(IMAGES, raw, AUGMENTATION, 3)
    calibration = calibrated(plan, [batch for batch in batches if isinstance(batch, Tensor)])
    assert failed(proved(plan, calibration=calibration)) == {"statistics"}


def test_statistics_that_were_not_calibrated_are_caught() -> None:
    plan = plan_for("onnxruntime-x86")
    calibration = calibrated(plan)
    for module in prepared()[0].modules():
        if isinstance(module, nn.BatchNorm2d):
            assert isinstance(module.running_mean, Tensor)
            module.running_mean.mul_(1.001)
    assert failed(proved(plan, calibration=calibration)) == {"statistics"}


def edited(model: QuantizedModel, operator: str, attribute: str, value: list[int]) -> QuantizedModel:
    """The same numbers in a graph with another attribute at the first node of a kind that has it."""
    graph = type(model.graph)()
    graph.CopyFrom(model.graph)
    nodes = [node for node in graph.graph.node if node.op_type == operator]
    found = next(item for node in nodes for item in node.attribute if item.name == attribute)
    assert list(found.ints) != value
    found.ints[:] = value
    return replace(model, graph=graph)


def other_input(model: QuantizedModel) -> QuantizedModel:
    """The addition reads one of its branches twice."""
    graph = type(model.graph)()
    graph.CopyFrom(model.graph)
    add = next(node for node in graph.graph.node if node.op_type == "Add")
    add.input[0] = add.input[1]
    return replace(model, graph=graph)


@pytest.mark.parametrize(
    "change",
    [other_input, lambda model: edited(model, "Conv", "pads", [2, 0, 1, 1])],
    ids=["branch read twice", "padding moved"],
)
def test_another_structure_is_caught(change: Callable[[QuantizedModel], QuantizedModel]) -> None:
    assert "tensors" in failed(proved(plan_for("onnxruntime-x86"), change))


def test_freezing_again_gives_the_same_bits() -> None:
    plan = plan_for("snpe-dsp")
    calibrated(plan)
    model, samples = frozen(plan)
    again, _ = frozen(plan)
    assert compare_repeated(model, again).passed
    moved = first_encoding(model, next_scale)
    assert not compare_repeated(moved, again).passed
    flipped = weights(model, lambda p: replace(p, codes=np.flip(p.codes, 0).copy()))
    assert not compare_repeated(flipped, again).passed
    before = calibration_digest(prepared()[0], samples)
    calibrated(plan, [torch.randn(8, 3, 8, 8)])
    assert calibration_digest(prepared()[0], samples) != before


@pytest.mark.parametrize("profile", TWO)
def test_a_use_of_a_shared_layer_with_the_numbers_of_another_is_caught(
    monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    supernet = supernet_of(Case(detection_head), space=SPACE_WITH_SEVEN)
    graph = export_float_graph(supernet)
    monkeypatch.setattr(f"{__name__}.prepared", lambda: (supernet, graph))
    plan, network = plan_for(profile), supernet.network
    calibration = calibrated(plan)
    assert proved(plan, calibration=calibration).passed
    first, second = (network.layer[name].input_tensor for name in network.uses["tower.0"])

    def input_of_the_other(model: QuantizedModel) -> QuantizedModel:
        encoding = model.activations[first].encoding
        changed = replace(model.activations[second], encoding=encoding)
        return replace(model, activations={**model.activations, second: changed})

    def other_weight(model: QuantizedModel) -> QuantizedModel:
        name = f"{network.uses['tower.0'][1]}.weight"
        return replace(model, parameters={**model.parameters, name: one_code(model.parameters[name])})

    assert "encodings" in failed(proved(plan, input_of_the_other, calibration))
    assert "weights" in failed(proved(plan, other_weight, calibration))


@pytest.mark.parametrize("profile", TWO)
def test_a_norm_that_is_folded_into_both_uses_of_its_layer_passes(
    monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    supernet = supernet_of(Case(block_called_twice), space=SPACE_WITH_SEVEN)
    graph = export_float_graph(supernet)
    monkeypatch.setattr(f"{__name__}.prepared", lambda: (supernet, graph))
    assert [layer.batch_norm for layer in supernet.network.layers] == [None, "block.1", "block.1", None]
    plan = plan_for(profile)
    report = proved(plan)
    assert report.passed, report.summary
    monkeypatch.setattr(freeze, "channel_affine", bias_times(1.02)(affine.channel_affine))
    assert "biases" in failed(proved(plan))
