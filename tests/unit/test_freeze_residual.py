"""Numbers and nodes of networks whose additions read unquantized tensors in training."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from eqdeploy.calibration.ranges import sample_tensors
from eqdeploy.freeze.float_graph import FloatGraph, export_float_graph
from eqdeploy.freeze.freeze import freeze
from eqdeploy.freeze.ranges import tensors_to_calibrate
from eqdeploy.network import ElasticSpace, OpKind, Residual
from eqdeploy.plan import Coverage
from eqdeploy.profile import load_profile
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.resolve import resolve
from eqdeploy.supernet.supernet import Supernet
from tests.unit.freeze_support import fingerprint, images_for
from tests.unit.supernet_parts import made
from tests.unit.test_supernet_residual import CASES


@cache
def exported(name: str, residual: Residual) -> tuple[Supernet, FloatGraph]:
    case = CASES[name][0]
    space = ElasticSpace(bits=(2, 4, 7, 8), residual=residual)
    supernet = Supernet.from_float(made(case), torch.zeros(2, *case.shape), space).eval()
    supernet.initialize(images_for(case, 16))
    return supernet, export_float_graph(supernet)


def frozen(name: str, profile: str, residual: Residual, bits: int | None = None) -> QuantizedModel:
    """Freeze with the float network's statistics and ranges, which are the same for both kinds of addition.

    Activations have the profile's width, or ``bits``, boundary included.
    """
    supernet, graph = exported(name, residual)
    network = supernet.network
    plan = resolve(load_profile(profile), network)
    if bits is not None:
        forms = {
            tensor: network.space.activation_form(bits, form.symmetry, non_negative=network.tensor[tensor].non_negative)
            for tensor, form in plan.subnet.activations
        }
        subnet = replace(plan.subnet, activations=tuple(forms.items()))
        plan = resolve(load_profile(profile), network, subnet)
    samples = sample_tensors(supernet, [images_for(CASES[name][0], 16)], tensors_to_calibrate(plan))
    return freeze(supernet, plan, graph, samples)


def without(model: QuantizedModel, names: set[str]) -> QuantizedModel:
    """The model with some tensors not listed."""
    return replace(
        model,
        coverage={name: kind for name, kind in model.coverage.items() if name not in names},
        reasons={name: reason for name, reason in model.reasons.items() if name not in names},
    )


@pytest.mark.parametrize("name", ["identity", "linear", "pre_activation", "several", "dropout_both", "input"])
def test_at_eight_bits_nothing_differs_from_quantized_additions(name: str) -> None:
    for profile in ("onnxruntime-x86", "snpe-dsp", "tensorrt"):
        ours, today = (frozen(name, profile, residual) for residual in (Residual.FLOAT, Residual.QUANTIZED))
        copies = {f"{source}_requantize" for source in CASES[name][1]}
        assert {ours.coverage[copy] for copy in copies} == {Coverage.INSIDE_FUSED_GROUP}
        assert fingerprint(without(ours, copies)) == fingerprint(today), profile


@pytest.mark.parametrize("name", ["identity", "linear", "several", "subsampled", "dropout_both"])
def test_with_fewer_bits_the_copy_has_the_trained_numbers(name: str) -> None:
    supernet, model = exported(name, Residual.FLOAT)[0], frozen(name, "onnxruntime-w4a4", Residual.FLOAT, bits=4)
    quantizers = supernet.activation_quantizers()
    seen = 0
    nodes = {node.output[0]: node for node in model.graph.graph.node}
    for tensor in supernet.network.tensors:
        if tensor.op is not OpKind.REQUANTIZE:
            continue
        seen += 1
        (source,) = tensor.inputs
        encoding = model.activations[tensor.name].encoding
        assert (nodes[tensor.name].op_type, list(nodes[tensor.name].input)) == ("Identity", [source])
        assert encoding.bits == 4
        trained = {quantizers[tensor.name].encoding(form).scale.item() for form in quantizers[tensor.name].forms}
        assert encoding.scale.item() in trained
        assert model.activations[source].encoding.bits == 8
        # Eight bits resolve finer than four over the same values.
        assert model.activations[source].encoding.scale < encoding.scale
    assert seen > 0
