"""ONNX Runtime computes exactly the codes that the definition of quantization prescribes, at every level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from eqdeploy.exporters.contract import export_checked, get_exporter
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.plan import BiasFormat
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.testing import SampleForms, sample_model
from tests.contract.networks import ASYMMETRIC, LOW_BITS, NETWORKS, SIGNED
from tests.contract.runtime import LEVELS, fused_operators, image, run_codes, session, simulate

UNSIGNED = Form(8, Granularity.PER_TENSOR, Symmetry.ASYMMETRIC, signed=False)


def check_codes(model: QuantizedModel, path: Path) -> None:
    """Compare codes, outputs and the model read back from the file with the definition."""
    feeds = image(model)
    codes, reals = simulate(model, feeds)
    outputs = [info.name for info in model.graph.graph.output]
    assert any(len(np.unique(array)) > 1 for array in codes.values())
    for level in LEVELS:
        found = run_codes(path, list(codes), feeds, level)
        for name, array in codes.items():
            np.testing.assert_array_equal(found[name], array, err_msg=f"{level}: {name}")
        for name, array in zip(outputs, session(path, level).run(outputs, feeds), strict=True):
            np.testing.assert_array_equal(array, reals[name], err_msg=f"{level}: {name}")
            if name in model.activations:
                expected = model.activations[name].encoding.dequantize(found[name])
                np.testing.assert_array_equal(array, expected, err_msg=f"{level}: DQ of {name}")
    again, _ = simulate(read_model(path), feeds)
    for name, array in codes.items():
        np.testing.assert_array_equal(again[name], array, err_msg=f"read back: {name}")


@pytest.mark.parametrize("name", NETWORKS)
def test_special_networks_are_exact(name: str, tmp_path: Path) -> None:
    model = NETWORKS[name]()
    export_checked(get_exporter("onnx_qdq"), model, tmp_path, {})
    check_codes(model, tmp_path / "model.onnx")


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("granularity", Granularity)
@pytest.mark.parametrize("symmetry", Symmetry)
@pytest.mark.parametrize("signed", [True, False])
def test_every_weight_form_is_exact(
    bits: int, granularity: Granularity, symmetry: Symmetry, signed: bool, tmp_path: Path
) -> None:
    forms = SampleForms(
        weight=Form(bits, granularity, symmetry, signed=signed),
        activation=Form(max(2, bits), Granularity.PER_TENSOR, Symmetry.ASYMMETRIC, signed=False),
        power_of_two=True,
    )
    model = sample_model(forms)
    export_checked(get_exporter("onnx_qdq"), model, tmp_path, {})
    check_codes(model, tmp_path / "model.onnx")


@pytest.mark.parametrize("opset", range(13, 27))
def test_every_opset_is_exact(opset: int, tmp_path: Path) -> None:
    model = sample_model(LOW_BITS)
    export_checked(get_exporter("onnx_qdq"), model, tmp_path, {"opset": opset})
    written = onnx.load(tmp_path / "model.onnx")
    assert [(entry.domain, entry.version) for entry in written.opset_import] == [("", opset)]
    check_codes(model, tmp_path / "model.onnx")


def test_tensorrt_rules_are_exact(tmp_path: Path) -> None:
    model = sample_model(SIGNED, skip_only=True)
    export_checked(get_exporter("tensorrt"), model, tmp_path, {})
    check_codes(model, tmp_path / "model.onnx")


def test_snpe_proof_model_is_exact(tmp_path: Path) -> None:
    model = sample_model(ASYMMETRIC)
    export_checked(get_exporter("snpe"), model, tmp_path, {})
    check_codes(model, tmp_path / "model.onnx")


def test_external_data_is_exact(tmp_path: Path) -> None:
    model = sample_model(LOW_BITS)
    files = export_checked(get_exporter("onnx_qdq"), model, tmp_path, {"external_data_threshold": 1})
    assert files == ("model.onnx", "model.onnx.data")
    feeds = image(model)
    _, reals = simulate(model, feeds)
    for level in LEVELS:
        np.testing.assert_array_equal(session(tmp_path / "model.onnx", level).run(["head"], feeds)[0], reals["head"])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integer_kernels_are_used_at_every_width(bits: int, tmp_path: Path) -> None:
    forms = SampleForms(
        weight=Form(bits, Granularity.PER_CHANNEL, Symmetry.SYMMETRIC, signed=True),
        activation=Form(bits, Granularity.PER_TENSOR, Symmetry.ASYMMETRIC, signed=False),
    )
    export_checked(get_exporter("onnx_qdq"), sample_model(forms), tmp_path, {})
    fused = fused_operators(tmp_path / "model.onnx", tmp_path)
    assert fused.count("QLinearConv") == 4
    for kernel in ("QLinearAdd", "QLinearConcat", "QLinearGlobalAveragePool", "QGemm"):
        assert fused.count(kernel) == 1, kernel
    assert not {"Conv", "Gemm", "Relu", "Add", "Concat", "GlobalAveragePool"} & set(fused)
    assert "ConvTranspose" in fused  # ONNX Runtime has no integer kernel for it


def test_scales_of_any_size_agree_within_one_code(tmp_path: Path) -> None:
    """Away from powers of two float sums depend on their order: one code at a tie, nothing more."""
    model = sample_model(SampleForms(activation=UNSIGNED, bias=BiasFormat.INT32), seed=3)
    export_checked(get_exporter("onnx_qdq"), model, tmp_path, {})
    feeds = image(model, batch=8)
    codes, _ = simulate(model, feeds)
    for level in LEVELS:
        for name, array in run_codes(tmp_path / "model.onnx", list(codes), feeds, level).items():
            difference = np.abs(array - codes[name])
            assert difference.max() <= 1, (level, name)
            assert difference.mean() < 1e-3, (level, name)
