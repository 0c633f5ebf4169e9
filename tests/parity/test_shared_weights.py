"""Layers applied several times and tied weights: one weight, an encoding of what it reads for each use, proved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from eqdeploy.validation.parity import ParityVerdict
from tests.parity.proving import Proved, prove
from tests.unit.shared_networks import SHARED
from tests.unit.supernet_parts import randomize


def _proved(name: str, folder: Path, profile: str) -> Proved:
    torch.manual_seed(0)
    case = SHARED[name]
    return prove(randomize(case.make()), case.inputs(16), folder, profile)


@pytest.mark.parametrize("name", SHARED)
def test_every_use_is_exact_in_the_runtime(name: str, tmp_path: Path) -> None:
    proved = _proved(name, tmp_path, "onnxruntime-x86")
    assert proved.parity.verdict is not ParityVerdict.FAILED, proved.parity.summary
    assert proved.distance.passed, proved.distance.summary
    network, model = proved.supernet.network, proved.model
    assert {owner: names for owner, names in network.uses.items() if len(names) > 1} == SHARED[name].uses
    for owner, names in SHARED[name].uses.items():
        codes = model.parameters[f"{owner}.weight"].codes
        assert all(np.array_equal(model.parameters[f"{layer}.weight"].codes, codes) for layer in names)


@pytest.mark.parametrize("profile", ["tensorrt", "snpe-dsp"])
def test_heads_over_two_levels_are_exact_elsewhere(profile: str, tmp_path: Path) -> None:
    proved = _proved("detection head", tmp_path, profile)
    assert proved.parity.verdict is not ParityVerdict.FAILED, proved.parity.summary
    assert proved.distance.passed, proved.distance.summary


def test_each_use_has_the_scale_of_what_it_reads(tmp_path: Path) -> None:
    model = (proved := _proved("function beside the layer", tmp_path, "onnxruntime-x86")).model
    first, second = (proved.supernet.network.layer[name].input_tensor for name in ("fc", "fc_use_2"))
    scales = [float(model.activations[name].encoding.scale) for name in (first, second)]
    assert scales[1] == pytest.approx(2 * scales[0], rel=0.05), "the second use reads numbers twice as large"
    biases = [model.parameters.get(f"{name}.bias") for name in ("fc", "fc_use_2")]
    assert biases[0] is not None
    assert biases[1] is None, "the function adds no bias"
