"""Supernets that are trained with BatchNorm folded: same float function, same integers on the device."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eqdeploy.calibration.batch_norm import calibrate_batch_norm
from eqdeploy.calibration.ranges import sample_tensors
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.errors import CheckpointError
from eqdeploy.exporters.contract import export_checked, get_exporter
from eqdeploy.freeze.float_graph import FloatGraph, export_float_graph
from eqdeploy.freeze.freeze import freeze
from eqdeploy.freeze.ranges import tensors_to_calibrate
from eqdeploy.network import BatchNormTraining, ElasticSpace, OpKind, Residual
from eqdeploy.plan import DevicePlan
from eqdeploy.profile import DeviceProfile, load_profile
from eqdeploy.quant.form import Granularity
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.resolve import resolve
from eqdeploy.supernet.checkpoint import ArchitectureReference, load_checkpoint, metadata_of, save_checkpoint
from eqdeploy.supernet.fold_batch_norms import fold_batch_norms
from eqdeploy.supernet.folded_norm import FoldedNorm, LayerNormalization
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.validation.parity import ParityVerdict, check_parity
from eqdeploy.validation.static import check_static
from eqdeploy.zoo import build
from tests.unit.freeze_support import CASE, images_for, onnx_outputs
from tests.unit.supernet_parts import Case, conv, conv1d, decoder, made
from tests.unit.training_support import CLASSES, small_model

FOLDED = tuple(kind for kind in BatchNormTraining if kind is not BatchNormTraining.SEPARATE)

CASES: Mapping[str, Case] = {
    "convolutions, depthwise and transposed": CASE,
    "grouped transposed convolution": Case(decoder, (4, 8, 8)),
    "1-d convolution": Case(conv1d, (3, 16)),
    "linear": Case(
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4), nn.BatchNorm1d(4)
        ),
        (3, 2, 2),
    ),
    "without gains, without running average": Case(
        lambda: nn.Sequential(
            conv(),
            nn.BatchNorm2d(4, affine=False, eps=1e-3),
            nn.ReLU(),
            conv(4, 4, bias=False),
            nn.BatchNorm2d(4, momentum=None),
        )
    ),
    "a BatchNorm that follows no layer": Case(
        lambda: nn.Sequential(nn.BatchNorm2d(3), conv(), nn.ReLU(), nn.BatchNorm2d(4), conv(4, 4), nn.BatchNorm2d(4))
    ),
}


def supernet_of(case: Case, kind: BatchNormTraining, **space: object) -> Supernet:
    """Converted, calibrated in float, not folded yet."""
    options = ElasticSpace(**{"bits": (2, 3, 4, 7, 8), "batch_norm": kind, **space})  # type: ignore[arg-type]
    supernet = Supernet.from_float(made(case), torch.zeros(2, *case.shape), options).eval()
    calibrate_batch_norm(supernet, [images_for(case, 24, seed=3)])
    return supernet


def folded_supernet(case: Case, kind: BatchNormTraining, **space: object) -> Supernet:
    """Folded and initialized."""
    supernet = supernet_of(case, kind, **space)
    fold_batch_norms(supernet)
    supernet.initialize(images_for(case, 16))
    return supernet


@cache
def prepared(kind: BatchNormTraining) -> tuple[Supernet, FloatGraph]:
    """One supernet of each kind, with its structure."""
    supernet = folded_supernet(CASE, kind)
    return supernet, export_float_graph(supernet)


def calibrated_model(supernet: Supernet, plan: DevicePlan, graph: FloatGraph, images: Tensor) -> QuantizedModel:
    """Activate, calibrate and freeze; the plan's subnet stays active."""
    supernet.activate(plan.subnet)
    calibrate_batch_norm(supernet, [images])
    return freeze(supernet, plan, graph, sample_tensors(supernet, [images], tensors_to_calibrate(plan)))


def per_tensor_profile(bits: int, *, asymmetric: bool = False, granularity: str = "per_tensor") -> DeviceProfile:
    """ONNX Runtime with one scale per weight, quantizing weights again if it must."""
    profile = load_profile("onnxruntime-x86")
    data = profile.model_dump(mode="json", by_alias=True)
    data["name"] = f"per-tensor-{bits}"
    data["weights"] |= {
        "bits": [bits],
        "boundary_bits": bits,
        "granularity": [granularity],
        "batch_norm": "requantize",
        "operators": {},
    }
    if asymmetric:
        data["weights"]["symmetry"] = ["asymmetric"]
    return DeviceProfile.model_validate_json(json.dumps(data))


@pytest.mark.parametrize("kind", FOLDED)
@pytest.mark.parametrize("name", CASES)
def test_the_float_function_stays(name: str, kind: BatchNormTraining) -> None:
    case = CASES[name]
    supernet = supernet_of(case, kind)
    images = images_for(case, 8, seed=5)
    weights = {name: weight.detach().clone() for name, weight in supernet.latent_weights()}
    with torch.no_grad():
        before = supernet(images)
        fold_batch_norms(supernet)
        after = supernet(images)
    assert torch.allclose(after, before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))
    for layer in supernet.network.layers:
        folded = layer.batch_norm is not None
        if layer.batch_norm is not None:
            assert isinstance(supernet.graph_module.get_submodule(layer.batch_norm), FoldedNorm)
        changed = not torch.equal(dict(supernet.latent_weights())[layer.name], weights[layer.name])
        assert changed == folded, layer.name
    remaining = sum(isinstance(module, nn.BatchNorm2d) for module in supernet.modules())
    assert remaining == (2 if name.startswith("a BatchNorm") else 0)


@pytest.mark.parametrize("kind", FOLDED)
def test_recalibrating_the_folded_float_network_changes_nothing(kind: BatchNormTraining) -> None:
    """The statistics that are left are those of the same tensors."""
    supernet = supernet_of(CASE, kind)
    images = images_for(CASE, 24, seed=3)
    fold_batch_norms(supernet)
    with torch.no_grad():
        before = supernet(images)
        calibrate_batch_norm(supernet, [images])
        assert torch.allclose(supernet(images), before, rtol=1e-4, atol=1e-4)


def test_folding_twice_or_not_at_all() -> None:
    supernet = folded_supernet(CASE, BatchNormTraining.FOLDED)
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    fold_batch_norms(supernet)
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
    separate = supernet_of(CASE, BatchNormTraining.SEPARATE)
    fold_batch_norms(separate)
    assert not any(isinstance(module, FoldedNorm) for module in separate.modules())


@pytest.mark.parametrize("kind", FOLDED)
def test_training_reaches_every_parameter(kind: BatchNormTraining) -> None:
    supernet = folded_supernet(CASE, kind).train()
    supernet.activate(resolve(per_tensor_profile(4), supernet.network).subnet)
    supernet(images_for(CASE, 8)).square().sum().backward()
    supernet.canonicalize()
    for layer in supernet.network.layers:
        assert layer.batch_norm is not None or layer.name in ("b", "head")
        if layer.batch_norm is not None:
            norm = supernet.graph_module.get_submodule(layer.batch_norm)
            for name, parameter in norm.named_parameters():
                assert parameter.grad is not None, name
                assert bool(parameter.grad.any()), name


@pytest.mark.parametrize("kind", FOLDED)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_a_device_with_one_scale_gets_the_trained_integers(
    kind: BatchNormTraining, bits: int, asymmetric: bool
) -> None:
    supernet, graph = prepared(kind)
    plan = resolve(per_tensor_profile(bits, asymmetric=asymmetric), supernet.network)
    model = calibrated_model(supernet, plan, graph, images_for(CASE, 24, seed=1))
    for layer, report in zip(supernet.network.layers, model.folded, strict=True):
        quantizer, planned = supernet.weight_quantizer(layer.name), plan.weight[layer.name]
        trained = quantizer.encoding(planned.trained)
        latent = dict(supernet.latent_weights())[layer.name].detach().numpy()
        parameter = model.parameters[f"{layer.name}.weight"]
        assert planned.trained.granularity is Granularity.PER_TENSOR
        assert parameter.encoding.axis is None
        assert parameter.encoding.bits == bits
        shift = parameter.encoding.q_min - trained.q_min
        assert np.array_equal(parameter.codes - shift, trained.quantize(latent))
        assert report.exact
        assert report.method == ("into_scale" if layer.batch_norm else "none")
        assert report.relative_error < 1e-6


@pytest.mark.parametrize("kind", FOLDED)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_simulation_and_export_are_one_function(kind: BatchNormTraining, granularity: str) -> None:
    """With activations in float on both sides nothing is left but the order of sums: biases are integers on both."""
    supernet, graph = prepared(kind)
    plan = resolve(per_tensor_profile(2, granularity=granularity), supernet.network)
    images = images_for(CASE, 24, seed=1)
    model = calibrated_model(supernet, plan, graph, images)
    simulated = copy.deepcopy(supernet)
    for layer in simulated.network.layers:
        if layer.batch_norm is None:  # biases of other layers are simulated in float
            bias = model.parameters[f"{layer.name}.bias"]
            module = simulated.graph_module.get_submodule(layer.name)
            module.bias = nn.Parameter(torch.from_numpy(bias.encoding.dequantize(bias.codes)))
    for quantizer in simulated.activation_quantizers().values():
        quantizer.activate(None)
    with torch.no_grad():
        expected = simulated(images).numpy()
    found = onnx_outputs(model.graph, images)[0]
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_the_grid_of_the_bias_follows_the_active_subnet() -> None:
    supernet = folded_supernet(CASE, BatchNormTraining.FOLDED)
    images = images_for(CASE, 8)
    with torch.no_grad():
        before = supernet(images)
        supernet.activate(resolve(per_tensor_profile(2), supernet.network).subnet)
        norms = [module for module in supernet.modules() if isinstance(module, FoldedNorm)]
        assert all(bool((norm.accumulator_scale > 0).all()) for norm in norms)
        rounded = supernet(images)
        for norm in norms:
            norm.accumulator_scale = torch.zeros_like(norm.bias)
        assert not torch.equal(supernet(images), rounded)
        supernet.update_accumulator_scales()
        assert torch.equal(supernet(images), rounded)
        export_float_graph(supernet)  # compares with the float network on the way
        assert torch.equal(supernet(images), rounded)
        supernet.deactivate()
        assert torch.equal(supernet(images), before)
    assert not any("accumulator_scale" in name for name in supernet.state_dict())


@pytest.mark.parametrize("kind", FOLDED)
def test_exported_models_run_as_simulated(kind: BatchNormTraining, tmp_path: Path) -> None:
    supernet, graph = prepared(kind)
    images = images_for(CASE, 24, seed=1)
    for profile in (load_profile("snpe-dsp"), per_tensor_profile(2)):
        model = calibrated_model(supernet, resolve(profile, supernet.network), graph, images)
        assert all(report.exact for report in model.folded)
        folder = tmp_path / profile.name
        folder.mkdir()
        export_checked(get_exporter("onnx_qdq"), model, folder, {"opset": 21})
        assert check_static(model, folder / "model.onnx").passed
        parity = check_parity(model, folder / "model.onnx", images.numpy())
        assert parity.verdict is not ParityVerdict.FAILED


@pytest.mark.parametrize("residual", Residual)
def test_residual_networks(residual: Residual) -> None:
    case = Case(lambda: build("digits-resnet", {}), (1, 8, 8))
    supernet = folded_supernet(case, BatchNormTraining.FOLDED, residual=residual)
    graph = export_float_graph(supernet)
    for profile in (per_tensor_profile(2), load_profile("snpe-dsp")):
        plan = resolve(profile, supernet.network)
        model = calibrated_model(supernet, plan, graph, images_for(case, 16, seed=1))
        assert all(report.exact for report in model.folded)
        layers = [layer for layer in supernet.network.layers if layer.batch_norm is not None]
        for layer in layers:
            norm = supernet.graph_module.get_submodule(str(layer.batch_norm))
            assert isinstance(norm, LayerNormalization)
            grid = model.parameters[f"{layer.name}.bias"].encoding.scale
            gain = float(norm.weight.detach() / (norm.running_var + norm.eps).sqrt())
            assert np.allclose(grid, norm.accumulator_scale[0] * gain, rtol=1e-5), "training saw the device's grid"


def test_a_grouped_transposed_convolution_folds_exactly() -> None:
    case = CASES["grouped transposed convolution"]
    supernet = folded_supernet(case, BatchNormTraining.FOLDED)
    plan = resolve(load_profile("tensorrt"), supernet.network)
    up = next(layer for layer in supernet.network.layers if layer.op is OpKind.CONV_TRANSPOSE and layer.groups > 1)
    assert "was folded before training" in plan.weight[up.name].reason


@pytest.mark.parametrize("kind", [BatchNormTraining.SEPARATE, *FOLDED])
def test_a_checkpoint_knows_that_it_is_folded(kind: BatchNormTraining, tmp_path: Path) -> None:
    case = Case(small_model, (1, 8, 8))
    supernet = folded_supernet(case, kind)
    metadata = metadata_of(
        supernet,
        architecture=ArchitectureReference(name="small"),
        preprocessing=Preprocessing(image_size=(8, 8), channels=1, mean=(0.3,), std=(0.2,)),
        augmentation=Augmentation(),
        classes=tuple(str(index) for index in range(CLASSES)),
        provenance={},
    )
    assert ("batch_norm" in metadata.space.model_dump()) == (kind is not BatchNormTraining.SEPARATE)
    path = tmp_path / "supernet.safetensors"
    save_checkpoint(supernet, metadata, path)
    loaded = load_checkpoint(path, lambda name, arguments: small_model())
    assert loaded.supernet.network == supernet.network
    images = images_for(case, 4)
    for network in (supernet, loaded.supernet):
        network.activate(resolve(per_tensor_profile(2), network.network).subnet)
    with torch.no_grad():
        assert torch.equal(loaded.supernet(images), supernet.eval()(images))
    again = tmp_path / "again.safetensors"
    save_checkpoint(loaded.supernet, metadata, again)
    assert again.read_bytes() == path.read_bytes()


def test_a_checkpoint_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    supernet = folded_supernet(Case(small_model, (1, 8, 8)), BatchNormTraining.FOLDED)
    metadata = metadata_of(
        supernet,
        architecture=ArchitectureReference(name="small"),
        preprocessing=Preprocessing(image_size=(8, 8), channels=1, mean=(0.3,), std=(0.2,)),
        augmentation=Augmentation(),
        classes=("a",),
        provenance={},
    )
    space = metadata.space.model_copy(update={"batch_norm": "half_folded"})
    path = tmp_path / "supernet.safetensors"
    save_checkpoint(supernet, metadata.model_copy(update={"space": space}), path)
    with pytest.raises(CheckpointError, match="half_folded"):
        load_checkpoint(path, lambda name, arguments: small_model())
    separate = metadata.space.model_copy(update={"batch_norm": "separate"})
    save_checkpoint(supernet, metadata.model_copy(update={"space": separate}), path)
    with pytest.raises(CheckpointError, match="wrong shape or dtype|missing"):
        load_checkpoint(path, lambda name, arguments: small_model())


def test_loading_is_pure() -> None:
    """A folded network keeps no tensor of the model that it was made of."""
    model = made(CASE)
    supernet = Supernet.from_float(
        model, torch.zeros(2, *CASE.shape), ElasticSpace(bits=(2, 8), batch_norm=BatchNormTraining.FOLDED)
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fold_batch_norms(supernet)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert isinstance(next(iter(supernet.parameters())), Tensor)
