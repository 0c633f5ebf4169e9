"""The numbers of a frozen network: trained integers, device encodings, integer biases, notes, and the same bytes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.errors import ProfileError, ValidationError
from eqdeploy.freeze.float_graph import FloatGraph, export_float_graph
from eqdeploy.freeze.freeze import freeze
from eqdeploy.freeze.ranges import tensors_to_calibrate
from eqdeploy.network import LayerInfo, OpKind
from eqdeploy.plan import BiasFormat, DevicePlan, EncodingSource, FixedEncoding
from eqdeploy.profile_loading import load_profile
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.resolve import resolve
from eqdeploy.supernet.supernet import Supernet
from tests.unit.freeze_support import (
    CASE,
    SPACE_WITH_SEVEN,
    Frozen,
    fingerprint,
    fresh_fingerprint,
    images_for,
    onnx_outputs,
    refreeze,
    supernet_of,
    torch_outputs,
)
from tests.unit.supernet_parts import Case

SUPERNET = supernet_of(CASE, space=SPACE_WITH_SEVEN)


@cache
def graph() -> FloatGraph:
    """The structure of the one supernet of this file."""
    return export_float_graph(SUPERNET)


def plan_for(profile: str) -> DevicePlan:
    return resolve(load_profile(profile), SUPERNET.network)


def frozen_by(plan: DevicePlan, images: Tensor | None = None) -> Frozen:
    """Freeze the one supernet of this file under a plan."""
    images = images_for(CASE, 24, seed=1) if images is None else images
    return Frozen(SUPERNET, plan, graph(), refreeze(SUPERNET, plan, graph(), images))


def gain_of(layer: LayerInfo) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Gain of the BatchNorm behind a layer, computed anew."""
    assert layer.batch_norm is not None
    norm = SUPERNET.graph_module.get_submodule(layer.batch_norm)
    weight, variance = (getattr(norm, name).detach().numpy().astype(np.float64) for name in ("weight", "running_var"))
    gain: np.ndarray[tuple[int], np.dtype[np.float64]] = weight / np.sqrt(variance + 1e-5)
    return gain


def trained_codes(layer: LayerInfo, plan: DevicePlan) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    weight = dict(SUPERNET.latent_weights())[layer.name].detach().numpy()
    codes: np.ndarray[tuple[int, ...], np.dtype[np.int32]] = (
        SUPERNET.weight_quantizer(layer.name).encoding(plan.weight[layer.name].trained).quantize(weight)
    )
    return codes


PROFILES = ("onnxruntime-x86", "snpe-dsp", "tensorrt")


@pytest.mark.parametrize("profile", PROFILES)
def test_the_graph_computes_with_the_devices_weights(profile: str) -> None:
    done = frozen_by(plan_for(profile))
    images = images_for(CASE, 5, seed=4)
    expected, found = torch_outputs(SUPERNET, done.model, images), onnx_outputs(done.model.graph, images)
    assert np.allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("profile", PROFILES)
def test_initializers_hold_exactly_the_dequantized_integers(profile: str) -> None:
    model = frozen_by(plan_for(profile)).model
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.graph.initializer}
    for name, parameter in model.parameters.items():
        assert np.array_equal(stored[name], parameter.encoding.dequantize(parameter.codes))
        assert parameter.codes.dtype == np.int32
        assert (parameter.encoding.q_min <= parameter.codes).all()
        assert (parameter.codes <= parameter.encoding.q_max).all()
        if name.endswith(".weight"):
            assert np.array_equal(parameter.encoding.quantize(stored[name]), parameter.codes), (
                "quantizing again is exact"
            )


def test_codes_stay_as_trained_when_the_gain_goes_into_the_scale() -> None:
    plan = plan_for("onnxruntime-x86")
    model = frozen_by(plan).model
    reports = {report.layer: report for report in model.folded}
    for layer in SUPERNET.network.layers:
        report, parameter = reports[layer.name], model.parameters[f"{layer.name}.weight"]
        if layer.name == "up":  # groups of a transposed convolution share scales
            assert (report.method, report.exact) == ("requantize", False)
            continue
        assert report.method == ("into_scale" if layer.batch_norm else "none")
        assert report.exact
        assert np.array_equal(parameter.codes, trained_codes(layer, plan))
        trained = SUPERNET.weight_quantizer(layer.name).encoding(plan.weight[layer.name].trained)
        gain = np.abs(gain_of(layer)) if layer.batch_norm else 1.0
        assert np.allclose(parameter.encoding.scale, trained.scale * gain, rtol=1e-6)


@pytest.mark.parametrize("profile", ["onnxruntime-x86", "snpe-dsp"])
def test_integer_biases_lie_on_the_accumulators_grid(profile: str) -> None:
    model = frozen_by(plan_for(profile)).model
    for layer in SUPERNET.network.layers:
        weight, bias = model.parameters[f"{layer.name}.weight"], model.parameters[f"{layer.name}.bias"]
        source = model.activations[layer.input_tensor].encoding
        grid = (source.scale * weight.encoding.scale).astype(np.float32)
        if layer.name == "up" and weight.encoding.axis is not None:
            grid = np.concatenate([grid, grid])
        assert bias.encoding.scale.tobytes() == grid.tobytes(), "bit for bit, as runtimes compute it"
        assert (bias.encoding.bits, bias.encoding.signed) == (32, True)
        assert not bias.encoding.zero_point.any()
        module = SUPERNET.graph_module.get_submodule(layer.name)
        shift = module.bias.detach().numpy().astype(np.float64) if isinstance(module.bias, Tensor) else 0.0
        if layer.batch_norm is not None:
            norm = SUPERNET.graph_module.get_submodule(layer.batch_norm)
            mean, beta = (getattr(norm, name).detach().numpy().astype(np.float64) for name in ("running_mean", "bias"))
            shift = beta + (shift - mean) * gain_of(layer)
        assert np.abs(bias.codes - shift / grid.astype(np.float64)).max() <= 0.5 + 1e-6


def test_a_float_bias_is_no_parameter() -> None:
    model = frozen_by(plan_for("tensorrt")).model
    assert all(name.endswith(".weight") for name in model.parameters)


def test_signed_symmetric_devices_get_half_the_grid_on_tensors_that_are_never_negative() -> None:
    plan = plan_for("tensorrt")
    model = frozen_by(plan).model
    checked = 0
    for tensor in plan.tensors:
        if tensor.source is EncodingSource.TRAINED and SUPERNET.network.tensor[tensor.tensor].non_negative:
            encoding = model.activations[tensor.tensor].encoding
            assert tensor.trained is not None
            trained = SUPERNET.activation_quantizers()[tensor.tensor].encoding(tensor.trained)
            assert (encoding.bits, encoding.signed, int(encoding.zero_point)) == (8, True, 0)
            assert tensor.trained.bits == 7
            assert encoding.scale == trained.scale
            checked += 1
    assert checked


@pytest.mark.parametrize("profile", PROFILES)
def test_the_range_of_a_clipped_tensor_ends_at_its_bound(profile: str) -> None:
    encoding = frozen_by(plan_for(profile)).model.activations["relu6"].encoding
    top = encoding.dequantize(np.array([encoding.q_max]))[0]
    assert top <= 6.0 + float(encoding.scale) / 2
    assert encoding.quantize(np.array([6.0, 1e9], np.float32))[0] == encoding.quantize(np.array([1e9], np.float32))[0]


def rescaled(plan: DevicePlan, tensor: str, **changes: object) -> DevicePlan:
    return replace(
        plan,
        tensors=tuple(replace(entry, **changes) if entry.tensor == tensor else entry for entry in plan.tensors),  # type: ignore[arg-type]
    )


def test_prescribed_and_shared_encodings() -> None:
    form = Form(8, Granularity.PER_TENSOR, Symmetry.ASYMMETRIC, signed=False)
    plan = rescaled(
        plan_for("onnxruntime-x86"), "b", source=EncodingSource.FIXED, fixed=FixedEncoding(1 / 256, 7), device=form
    )
    plan = rescaled(plan, "relu", source=EncodingSource.SHARED, shares_with="b", device=form)
    model = frozen_by(replace(plan, minimum_scale=0.01)).model
    encoding = model.activations["b"].encoding
    assert (float(encoding.scale), int(encoding.zero_point)) == (1 / 256, 7)
    assert (encoding.q_min, encoding.q_max) == (0, 255)
    assert model.activations["relu"].encoding.equals(encoding)


def test_scales_below_the_devices_minimum_are_raised_and_noted() -> None:
    plan = plan_for("onnxruntime-x86")
    before = frozen_by(plan).model
    minimum = 1.5 * float(before.activations["relu"].encoding.scale)
    model = frozen_by(replace(plan, minimum_scale=minimum)).model
    for name, tensor in model.activations.items():
        old = before.activations[name].encoding
        expected = old.scale if old.scale >= minimum else np.float32(minimum)
        assert tensor.encoding.scale == pytest.approx(expected, rel=1e-7)
        assert float(tensor.encoding.scale) >= minimum
        owner = plan.tensor[name].shares_with or name
        raised = any(note.startswith(f"{owner}: scale") for note in model.notes)
        assert raised == (float(old.scale) < minimum)


def with_tensor(tensor: Tensor, values: Tensor) -> Tensor:
    """Overwrite a parameter; return what it was."""
    kept = tensor.detach().clone()
    with torch.no_grad():
        tensor.copy_(values)
    return kept


@pytest.mark.parametrize("profile", PROFILES)
def test_dead_channels_and_tiny_gains_make_a_valid_network(profile: str) -> None:
    gain = SUPERNET.graph_module.get_submodule("norm2").weight
    weight = SUPERNET.graph_module.get_submodule("b").weight
    assert isinstance(gain, Tensor)
    assert isinstance(weight, Tensor)
    dead = gain.detach().clone()
    dead[0], dead[1] = 0.0, 1e-20
    zeroed = weight.detach().clone()
    zeroed[3] = 0.0
    kept = with_tensor(gain, dead), with_tensor(weight, zeroed)
    try:
        done = frozen_by(plan_for(profile))
        images = images_for(CASE, 4, seed=2)
        expected, found = torch_outputs(SUPERNET, done.model, images), onnx_outputs(done.model.graph, images)
    finally:
        with_tensor(gain, kept[0])
        with_tensor(weight, kept[1])
    assert np.allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
    reports = {report.layer: report for report in done.model.folded}
    assert reports["depthwise"].dead_channels >= 1
    assert reports["b"].dead_channels == 1
    for layer in SUPERNET.network.layers:
        assert (done.model.parameters[f"{layer.name}.weight"].encoding.scale >= 2.0**-81).all()


def test_a_variance_of_zero_without_epsilon_is_an_error_with_the_layers_name() -> None:
    norm = SUPERNET.graph_module.get_submodule("norm1")
    plan = plan_for("onnxruntime-x86")
    SUPERNET.activate(plan.subnet)
    calibrate_batch_norm(SUPERNET, [images_for(CASE, 8)])
    assert isinstance(norm.running_var, Tensor)
    kept = with_tensor(norm.running_var, torch.zeros(8))
    norm.eps = 0.0  # type: ignore[assignment]
    samples = {name: torch.ones(1, 4) for name in tensors_to_calibrate(plan)}
    try:
        with pytest.raises(ValidationError, match="norm1: channel 0 has gain"):
            freeze(SUPERNET, plan, graph(), samples)
    finally:
        norm.eps = 1e-5  # type: ignore[assignment]
        with_tensor(norm.running_var, kept)


def test_a_tensor_that_no_image_excites_is_noted() -> None:
    plan = plan_for("onnxruntime-x86")
    frozen_by(plan)
    form = Form(8, Granularity.PER_TENSOR, Symmetry.ASYMMETRIC, signed=False)
    plan = rescaled(plan, "b", source=EncodingSource.CALIBRATED, device=form, shares_with=None)
    samples = {name: torch.ones(1, 4) for name in tensors_to_calibrate(plan)} | {"b": torch.zeros(1, 4)}
    model = freeze(SUPERNET, plan, graph(), samples)
    assert [note for note in model.notes if "no calibration image" in note] == [
        "b: no calibration image excites this tensor, its scale is arbitrary"
    ]
    assert model.activations["b"].encoding.scale == 1.0


def test_members_of_a_shared_encoding_are_calibrated_together() -> None:
    plan = plan_for("onnxruntime-x86")
    frozen_by(plan)
    form = Form(8, Granularity.PER_TENSOR, Symmetry.ASYMMETRIC, signed=False)
    plan = rescaled(plan, "b", source=EncodingSource.CALIBRATED, device=form, shares_with=None)
    plan = rescaled(plan, "add", source=EncodingSource.SHARED, device=form, shares_with="b")
    samples = {name: torch.ones(1, 4) for name in tensors_to_calibrate(plan)}
    assert {"b", "add"} <= set(samples)
    samples |= {"b": torch.tensor([[-1.0, 0.5]]), "add": torch.tensor([[3.0, 0.0]])}
    model = freeze(SUPERNET, plan, graph(), samples)
    encoding = model.activations["b"].encoding
    assert model.activations["add"].encoding.equals(encoding)
    values = np.array([-1.0, 3.0], np.float32)
    assert encoding.dequantize(encoding.quantize(values)) == pytest.approx(values, abs=0.02)


def test_an_integer_bias_without_an_input_encoding_is_refused() -> None:
    plan = replace(plan_for("tensorrt"), bias=BiasFormat.INT32)
    plan = rescaled(plan, "x", source=EncodingSource.NONE, device=None)
    with pytest.raises(ProfileError, match=r"tensorrt: a: an int32 bias needs an encoding of .*'x'"):
        frozen_by(plan)


def test_a_linear_on_a_sequence_keeps_a_float_bias() -> None:
    case = Case(lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)), (5, 8))
    supernet = supernet_of(case)
    plan = resolve(load_profile("onnxruntime-x86"), supernet.network)
    model = refreeze(supernet, plan, export_float_graph(supernet), images_for(case, 8))
    assert set(model.parameters) == {"0.weight", "2.weight"}
    images = images_for(case, 3, seed=1)
    assert np.allclose(onnx_outputs(model.graph, images)[0], torch_outputs(supernet, model, images)[0], atol=1e-5)
    kinds = [node.op_type for node in model.graph.graph.node]
    assert kinds.count("MatMul") == 2


PROGRAM = """
import hashlib
from tests.unit.freeze_support import fresh_fingerprint
print(hashlib.sha256(b"|".join(fresh_fingerprint())).hexdigest())
"""


def test_the_same_inputs_give_the_same_bytes_in_every_process() -> None:
    printed = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert printed.split() == [hashlib.sha256(b"|".join(fresh_fingerprint())).hexdigest()]


def test_freezing_again_gives_the_same_bytes() -> None:
    plan = plan_for("snpe-dsp")
    assert fingerprint(frozen_by(plan).model) == fingerprint(frozen_by(plan).model)


def test_a_supernet_can_be_frozen_for_one_device_after_the_other() -> None:
    first = fingerprint(frozen_by(plan_for("onnxruntime-x86")).model)
    frozen_by(plan_for("tensorrt"))
    assert fingerprint(frozen_by(plan_for("onnxruntime-x86")).model) == first


def test_freezing_uses_the_plans_subnet_whatever_is_active() -> None:
    plan = plan_for("onnxruntime-x86")
    done = frozen_by(plan)
    samples = {name: torch.ones(1, 4) for name in tensors_to_calibrate(plan)}
    one = freeze(SUPERNET, plan, graph(), samples)
    SUPERNET.deactivate()
    other = freeze(SUPERNET, plan, graph(), samples)
    assert fingerprint(one) == fingerprint(other)
    assert isinstance(SUPERNET, Supernet)
    assert any(tensor.op is OpKind.CLIP for tensor in done.supernet.network.tensors)
