"""Scales that are powers of two: trained so, chosen at export where they were not, and exact everywhere."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from eqdeploy.errors import ProfileError
from eqdeploy.exporters.contract import export_checked, get_exporter
from eqdeploy.freeze.float_graph import FloatGraph, export_float_graph
from eqdeploy.freeze.folding import next_power_of_two
from eqdeploy.network import BatchNormTraining, ElasticSpace, ScaleTraining
from eqdeploy.pipeline import export_profiles, validate_artifact
from eqdeploy.profile import DeviceProfile, load_profile
from eqdeploy.progress import SilentProgress
from eqdeploy.quant.affine import dequantize, quantize
from eqdeploy.quant.elastic_quantizer import ElasticQuantizer
from eqdeploy.quant.encoding import are_powers_of_two
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quant.initialize import minimize_error, nearest_powers_of_two
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.report.model import LevelStatus
from eqdeploy.requests import ExportRequest, ValidateRequest
from eqdeploy.resolve import resolve
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.validation.parity import ParityVerdict, check_parity
from eqdeploy.validation.static import check_static
from tests.unit.freeze_support import CASE, images_for, refreeze
from tests.unit.test_supernet_folded import folded_supernet

FREE, POWER_OF_TWO = ScaleTraining.FREE, ScaleTraining.POWER_OF_TWO
SEPARATE, FOLDED, FOLDED_MEAN = BatchNormTraining.SEPARATE, BatchNormTraining.FOLDED, BatchNormTraining.FOLDED_MEAN
TRAININGS = [(kind, scales) for kind in (SEPARATE, FOLDED, FOLDED_MEAN) for scales in ScaleTraining]


def profile_of(granularity: str, symmetry: str, *, bits: int = 8, minimum_scale: float = 0.0) -> DeviceProfile:
    """A device like ONNX Runtime that multiplies by shifting."""
    data = load_profile("onnxruntime-x86").model_dump(mode="json", by_alias=True)
    data["name"] = "shifts"
    data["weights"] |= {
        "bits": [bits],
        "boundary_bits": bits,
        "granularity": [granularity],
        "symmetry": [symmetry],
        "batch_norm": "requantize",
        "scale": "power_of_two",
        "operators": {},
    }
    data["activations"] |= {"scale": "power_of_two", "minimum_scale": minimum_scale}
    return DeviceProfile.model_validate_json(json.dumps(data))


@cache
def prepared(kind: BatchNormTraining, scales: ScaleTraining) -> tuple[Supernet, FloatGraph]:
    supernet = folded_supernet(CASE, kind, bits=(2, 4, 8), scales=scales)
    return supernet, export_float_graph(supernet)


def frozen(kind: BatchNormTraining, scales: ScaleTraining, profile: DeviceProfile) -> QuantizedModel:
    supernet, graph = prepared(kind, scales)
    return refreeze(supernet, resolve(profile, supernet.network), graph, images_for(CASE, 24, seed=1))


forms = st.builds(
    Form, st.integers(2, 8), st.just(Granularity.PER_TENSOR), st.sampled_from(Symmetry), signed=st.just(True)
)


@settings(deadline=None, max_examples=80)
@given(form=forms, size=st.integers(-100, 100), seed=st.integers(0, 1000), offset=st.floats(-3, 3))
def test_the_better_neighbour_is_taken(form: Form, size: int, seed: int, offset: float) -> None:
    values = torch.randn(3, 200, generator=torch.Generator().manual_seed(seed)) + offset
    values = torch.ldexp(values, torch.tensor(size))
    scale, zero_point = minimize_error(values, form)
    found, moved = nearest_powers_of_two(values, scale, zero_point, form)
    assert are_powers_of_two(found.numpy()).all()
    assert ((found <= 2 * scale) & (found >= scale / 2)).all()
    assert ((moved >= form.q_min) & (moved <= form.q_max) & (moved == moved.round())).all()

    def error(scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
        # Brought near 1 first, or squares leave float32.
        near, small = (torch.ldexp(tensor, torch.tensor(-size)) for tensor in (values, scale))
        codes = quantize(near, small[:, None], zero_point[:, None], form.q_min, form.q_max)
        return (dequantize(codes, small[:, None], zero_point[:, None]) - near).square().mean(1)

    below = torch.exp2(torch.frexp(scale).exponent.float() - 1)
    for candidate in (below, torch.where(below == scale, below, 2 * below)):
        assert (error(found, moved) <= error(candidate, zero_point) * (1 + 1e-5)).all()
    again = nearest_powers_of_two(values, found, moved, form)
    assert torch.equal(again[0], found)
    assert torch.equal(again[1], moved)


@given(value=st.floats(1e-30, 1e30))
def test_the_next_power_of_two_is_the_smallest_that_is_not_smaller(value: float) -> None:
    found = float(next_power_of_two(np.asarray(value)))
    assert found >= value > found / 2
    assert np.frexp(found)[0] == 0.5


@pytest.mark.parametrize("granularity", Granularity)
@pytest.mark.parametrize("symmetry", Symmetry)
def test_a_quantizer_keeps_to_powers_of_two_whatever_it_learns(granularity: Granularity, symmetry: Symmetry) -> None:
    form = Form(4, granularity, symmetry, signed=True)
    quantizer = ElasticQuantizer([form], channels=3, power_of_two=True)
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1e-4], [1.0], [300.0]])
    quantizer.initialize(x)
    assert torch.equal(quantizer.log2_scale[form.key], quantizer.log2_scale[form.key].round())
    quantizer.activate(form)
    for exponent in (-60.0, -7.49, 0.3, 59.9, 1e6):
        quantizer.log2_scale[form.key].data.fill_(exponent)
        quantizer(x).sum().backward()
        scale = quantizer.encoding(form).scale
        assert are_powers_of_two(scale).all()
        assert (scale == 2.0 ** round(min(exponent, 60.0))).all()


def test_the_gradient_passes_straight_through_the_rounding() -> None:
    form = Form(4, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=True)
    gradients = []
    for power_of_two, exponent in ((True, -2.7), (False, -3.0)):
        quantizer = ElasticQuantizer([form], power_of_two=power_of_two)
        quantizer.log2_scale[form.key].data.fill_(exponent)
        quantizer.activate(form)
        x = torch.randn(50, generator=torch.Generator().manual_seed(1))
        (quantizer(x) * x).sum().backward()
        gradient = quantizer.log2_scale[form.key].grad
        assert gradient is not None
        gradients.append(gradient)
    assert torch.equal(*gradients)
    assert bool(gradients[0].any())


@pytest.mark.parametrize(("kind", "scales"), TRAININGS)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("symmetry", ["symmetric", "asymmetric"])
def test_every_scale_is_a_power_of_two(
    kind: BatchNormTraining, scales: ScaleTraining, granularity: str, symmetry: str
) -> None:
    supernet, _ = prepared(kind, scales)
    profile = profile_of(granularity, symmetry, minimum_scale=0.003)
    model, plan = frozen(kind, scales, profile), resolve(profile, supernet.network)
    assert plan.power_of_two_scales
    encodings = {name: tensor.encoding for name, tensor in model.activations.items()}
    encodings |= {name: parameter.encoding for name, parameter in model.parameters.items()}
    for name, encoding in encodings.items():
        assert are_powers_of_two(encoding.scale).all(), name
    for tensor in model.activations.values():
        assert tensor.encoding.scale >= 0.003
    # Exact where the supernet was trained so and nothing but powers of two is folded; honest elsewhere.
    for layer, report in zip(supernet.network.layers, model.folded, strict=True):
        expected = scales is POWER_OF_TWO and (layer.batch_norm is None or kind is FOLDED_MEAN)
        assert report.exact == expected, layer.name
        assert (report.relative_error == 0.0) == expected
        assert report.relative_error < 0.05
    rounded = [note for note in model.notes if "rounded to powers of two" in note]
    assert len(rounded) == (scales is FREE)


def test_trained_powers_of_two_are_exported_as_they_are() -> None:
    supernet, _ = prepared(FOLDED_MEAN, POWER_OF_TWO)
    profile = profile_of("per_tensor", "symmetric", bits=2)
    model, plan = frozen(FOLDED_MEAN, POWER_OF_TWO, profile), resolve(profile, supernet.network)
    for layer in supernet.network.layers:
        trained = supernet.weight_quantizer(layer.name).encoding(plan.weight[layer.name].trained)
        latent = dict(supernet.latent_weights())[layer.name].detach().numpy()
        parameter = model.parameters[f"{layer.name}.weight"]
        assert np.array_equal(parameter.codes, trained.quantize(latent))
        assert parameter.encoding.equals(trained)
    for name, quantizer in supernet.activation_quantizers().items():
        trained = quantizer.encoding(dict(plan.subnet.activations)[name])
        assert model.activations[name].encoding.scale == trained.scale


@pytest.mark.parametrize(("kind", "scales"), [(SEPARATE, FREE), (FOLDED_MEAN, POWER_OF_TWO)])
def test_files_run_as_simulated(kind: BatchNormTraining, scales: ScaleTraining, tmp_path: Path) -> None:
    model = frozen(kind, scales, profile_of("per_channel", "symmetric", bits=4))
    export_checked(get_exporter("onnx_qdq"), model, tmp_path, {"opset": 21})
    path = tmp_path / "model.onnx"
    report = check_static(model, path, power_of_two_scales=True)
    assert report.passed
    assert "powers_of_two" in {check.name for check in report.checks}
    proto = onnx.load(path)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    scaled = [node.input[1] for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert scaled
    assert all(are_powers_of_two(stored[name]).all() for name in scaled)
    parity = check_parity(model, path, images_for(CASE, 8, seed=2).numpy())
    assert parity.verdict is ParityVerdict.IDENTICAL


def test_a_file_with_another_scale_fails_the_check(tmp_path: Path) -> None:
    supernet, graph = prepared(SEPARATE, FREE)
    model = refreeze(
        supernet, resolve(load_profile("onnxruntime-x86"), supernet.network), graph, images_for(CASE, 24, seed=1)
    )
    export_checked(get_exporter("onnx_qdq"), model, tmp_path, {"opset": 21})
    assert check_static(model, tmp_path / "model.onnx").passed
    report = check_static(model, tmp_path / "model.onnx", power_of_two_scales=True)
    assert not report.passed
    assert "no power of two" in report.summary


def test_powers_of_two_also_serve_devices_with_free_scales() -> None:
    supernet, graph = prepared(SEPARATE, POWER_OF_TWO)
    plan = resolve(load_profile("onnxruntime-x86"), supernet.network)
    model = refreeze(supernet, plan, graph, images_for(CASE, 24, seed=1))
    assert all(report.exact for report in model.folded if report.layer != "up")


def test_a_prescribed_scale_must_be_a_power_of_two() -> None:
    data = profile_of("per_tensor", "symmetric").model_dump(mode="json", by_alias=True)
    for scale in (1 / 256, 1 / 255):
        data["operators"]["fixed"] = {"softmax": {"bits": 8, "storage": "unsigned", "scale": scale, "zero_point": 0}}
        data["operators"]["quantized"] = sorted({*data["operators"]["quantized"], "softmax"})
        profile = DeviceProfile.model_validate_json(json.dumps(data))
        network = prepared(SEPARATE, FREE)[0].network
        if scale == 1 / 256:
            resolve(profile, network)
        else:
            with pytest.raises(ProfileError, match=r"operators\.fixed\.softmax\.scale.*no power of two"):
                resolve(profile, network)


def test_the_reason_says_why_weights_are_quantized_again() -> None:
    for kind, scales, text in (
        (FOLDED, POWER_OF_TWO, "its gain is no power of two"),
        (FOLDED_MEAN, POWER_OF_TWO, "folded before training"),
        (FOLDED_MEAN, FREE, "trained with free scales"),
    ):
        plan = resolve(profile_of("per_tensor", "symmetric"), prepared(kind, scales)[0].network)
        assert plan.weight["a"].reason.endswith(text)


def test_the_space_says_which_scales_are_trained() -> None:
    assert ElasticSpace().scales is FREE
    for scales in ScaleTraining:
        quantizers = prepared(SEPARATE, scales)[0].activation_quantizers().values()
        assert all(quantizer.power_of_two == (scales is POWER_OF_TWO) for quantizer in quantizers)


def test_the_whole_way_from_a_profile_to_a_proof(tmp_path: Path) -> None:
    profile = tmp_path / "shifts.yaml"
    profile.write_text(
        "schema: 1\nname: shifts\ndescription: d\ninherits: onnxruntime-x86\n"
        "weights: {bits: 8, granularity: per_tensor, batch_norm: requantize, scale: power_of_two}\n"
        "activations: {scale: power_of_two}\n"
    )
    request = ExportRequest(profiles=(str(profile),), output=tmp_path, calibration_images=64, parity_images=8)
    (result,) = export_profiles(request, SilentProgress())
    again = validate_artifact(result.directory, ValidateRequest(parity_images=8), SilentProgress())
    for report in (result.report, again):
        assert report.plan.power_of_two_scales
        assert report.static.status is LevelStatus.PASSED
        assert report.parity.status is LevelStatus.PASSED
        assert "powers_of_two" in json.dumps(report.static.details["checks"])
    assert any("rounded to powers of two" in note for note in result.report.notes)
