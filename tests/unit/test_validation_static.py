"""Static checks on numbers that a file alone does not show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eqdeploy.exporters.onnx_qdq import OnnxQdqExporter
from eqdeploy.exporters.opset import OPSETS
from eqdeploy.plan import BiasFormat, Coverage
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.testing import ModelBuilder, SampleForms, sample_model
from eqdeploy.validation.accumulators import INT32_LIMIT, accumulator_bounds
from eqdeploy.validation.reference.graph import Graph
from eqdeploy.validation.static import StaticReport, check_static


def checked(model: QuantizedModel, folder: Path, **options: object) -> StaticReport:
    OnnxQdqExporter().export(model, folder, options)
    return check_static(model, folder / "model.onnx")


@pytest.mark.parametrize("skip_only", [False, True])
@pytest.mark.parametrize("bias", list(BiasFormat))
@pytest.mark.parametrize("symmetry", list(Symmetry))
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_what_the_exporter_writes_passes(
    bits: int, symmetry: Symmetry, bias: BiasFormat, skip_only: bool, tmp_path: Path
) -> None:
    forms = SampleForms(
        weight=Form(bits, Granularity.PER_CHANNEL, symmetry, signed=True),
        activation=Form(bits, Granularity.PER_TENSOR, symmetry, signed=symmetry is Symmetry.SYMMETRIC),
        bias=bias,
    )
    report = checked(sample_model(forms, skip_only=skip_only), tmp_path)
    assert report.passed, report.summary
    assert sum(report.coverage.values()) == 17


@pytest.mark.parametrize("opset", [OPSETS[0], 18, 24, OPSETS[-1]])
def test_every_opset_passes(opset: int, tmp_path: Path) -> None:
    assert checked(sample_model(), tmp_path, opset=opset).passed


def test_the_report_is_plain_data_and_adds_up(tmp_path: Path) -> None:
    model = sample_model()
    document = checked(model, tmp_path).to_json()
    assert document["passed"]
    assert sum(document["coverage"].values()) == len(model.coverage)
    assert document["coverage"][str(Coverage.QUANTIZED)] == len(model.activations)
    assert all(set(check) == {"name", "passed", "detail", "tensors"} for check in document["checks"])
    assert "12 of 17 tensors quantized" in document["summary"]


def test_accumulators_are_bounded_by_the_largest_input() -> None:
    builder = ModelBuilder(SampleForms(), seed=1)
    x = builder.encode(builder.input("x", 40))
    builder.encode(builder.layer("fc", "Gemm", x, (3, 40), bias=3, transB=1))
    model = builder.build("fc")
    weight, bias = model.parameters["fc.weight"].codes, model.parameters["fc.bias"].codes
    grid = model.activations["x"].encoding
    reach = max(grid.q_max - int(grid.zero_point), int(grid.zero_point) - grid.q_min)
    expected = int((np.abs(weight).sum(axis=1) * reach + np.abs(bias)).max())
    assert accumulator_bounds(Graph.of(model)) == {"fc": expected}
    worst = np.where(weight[np.argmax(np.abs(weight).sum(axis=1) * reach + np.abs(bias))] > 0, reach, -reach)
    assert abs(int((weight * worst).sum(axis=1).max())) <= expected


def test_an_accumulator_that_may_overflow_fails(tmp_path: Path) -> None:
    model = sample_model()
    bias = model.parameters["stem.bias"]
    codes = np.full_like(bias.codes, INT32_LIMIT - 100)
    model = replace(model, parameters={**model.parameters, "stem.bias": replace(bias, codes=codes)})
    report = checked(model, tmp_path)
    (failed,) = (check for check in report.checks if not check.passed)
    assert (failed.name, failed.tensors) == ("accumulators", ("stem",))
    assert "int32 ends at 2147483647" in failed.detail


def test_groups_of_a_transposed_convolution_are_bounded_apart() -> None:
    builder = ModelBuilder(SampleForms(), seed=2)
    x = builder.encode(builder.input("x", 6, 4, 4))
    builder.encode(builder.layer("up", "ConvTranspose", x, (6, 2, 2, 2), group=3))
    model = builder.build("up")
    weight = model.parameters["up.weight"].codes
    grid = model.activations["x"].encoding
    reach = max(grid.q_max - int(grid.zero_point), int(grid.zero_point))
    groups = [np.abs(weight[2 * group : 2 * group + 2]).sum(axis=(0, 2, 3)).max() for group in range(3)]
    assert accumulator_bounds(Graph.of(model)) == {"up": max(groups) * reach}
