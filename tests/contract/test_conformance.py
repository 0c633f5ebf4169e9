"""Independent readers of the files: OpenVINO runs the QDQ model, AIMET rebuilds one from the encodings.

Both are optional: ``pip install 'eqdeploy[conformance]'``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from eqdeploy.exporters.contract import Exporter, export_checked, get_exporter
from eqdeploy.plan import BiasFormat
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.testing import ModelBuilder, SampleForms, sample_model
from tests.contract.documented import EXPORTER, documented_files
from tests.contract.networks import ASYMMETRIC, LOW_BITS, NETWORKS, SIGNED
from tests.contract.runtime import image, session, simulate


def optional(name: str) -> Any:
    """Import a package or skip; its own warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError)


def run_openvino(path: Path, feeds: dict[str, NDArray[Any]], outputs: list[str]) -> list[NDArray[Any]]:
    """Run a model in float32, as it is written.

    OpenVINO's own low-precision transformations would move the grid at adds, and its dynamic quantization would round
    what a Gemm reads a second time.
    """
    openvino = optional("openvino")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "LP_TRANSFORMS_MODE": "NO",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "INFERENCE_NUM_THREADS": 1,
        }
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
        results = compiled(feeds)
    return [results[compiled.output(name)] for name in outputs]


MODELS = {
    "8 bits": lambda: sample_model(SampleForms(power_of_two=True)),
    "4 bits": lambda: sample_model(LOW_BITS),
    "asymmetric": lambda: sample_model(ASYMMETRIC),
    **{name: NETWORKS[name] for name in ("output_read_inside", "grouped_transposed", "clips", "matrix_layers")},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("opset", [13, 21])
def test_openvino_computes_the_same(name: str, opset: int, tmp_path: Path) -> None:
    model = MODELS[name]()
    export_checked(get_exporter("onnx_qdq"), model, tmp_path, {"opset": opset})
    feeds = image(model)
    outputs = [info.name for info in model.graph.graph.output]
    _, reals = simulate(model, feeds)
    for output, array in zip(outputs, run_openvino(tmp_path / "model.onnx", feeds, outputs), strict=True):
        np.testing.assert_array_equal(array, reals[output])


def read_by_a_batch_norm(*, second_reader: bool) -> QuantizedModel:
    """A convolution whose encoded result is read by a BatchNorm that follows no layer, and by a sigmoid or not."""
    b = ModelBuilder(SampleForms(power_of_two=True))
    b.layer("conv", "Conv", b.encode(b.input("x", 3, 6, 6)), (8, 3, 1, 1), kernel_shape=[1, 1])
    read = b.encode("conv")
    numbers = {"scale": 2.0, "shift": 0.5, "mean": 0.25, "variance": 1.0}
    steps = np.arange(8, dtype=np.float32) / 8
    constants = [b.constant(f"norm.{name}", steps + value) for name, value in numbers.items()]
    norm = b.node("norm", "BatchNormalization", [read, *constants])
    result = b.encode(b.node("relu", "Relu", [norm]), non_negative=True)
    if second_reader:
        result = b.node("sum", "Add", [result, b.node("gate", "Sigmoid", [read])])
    return b.build(result)


@pytest.mark.parametrize(
    "second_reader",
    [False, pytest.param(True, marks=pytest.mark.xfail(reason="OpenVINO 2026.4 misreads it"))],
)
def test_openvino_reads_a_batch_norm_between_quantizers(second_reader: bool, tmp_path: Path) -> None:
    model = read_by_a_batch_norm(second_reader=second_reader)
    export_checked(get_exporter("onnx_qdq"), model, tmp_path, {"opset": 21})
    feeds = image(model)
    output = model.graph.graph.output[0].name
    (expected,) = session(onnx.load(tmp_path / "model.onnx"), "disabled").run([output], feeds)
    found = run_openvino(tmp_path / "model.onnx", feeds, [output])[0]
    np.testing.assert_allclose(found, expected, atol=float(model.activations["relu"].encoding.scale) * 1.01)


def test_openvino_computes_the_same_under_tensorrt_rules(tmp_path: Path) -> None:
    model = sample_model(SIGNED, skip_only=True)
    export_checked(get_exporter("tensorrt"), model, tmp_path, {})
    feeds = image(model)
    _, reals = simulate(model, feeds)
    np.testing.assert_array_equal(run_openvino(tmp_path / "model.onnx", feeds, ["head"])[0], reals["head"])


def per_channel() -> QuantizedModel:
    return sample_model(SampleForms(power_of_two=True, bias=BiasFormat.FLOAT))


def four_bits() -> QuantizedModel:
    forms = SampleForms(
        weight=Form(4, Granularity.PER_CHANNEL, Symmetry.SYMMETRIC, signed=True),
        activation=Form(8, Granularity.PER_TENSOR, Symmetry.ASYMMETRIC, signed=False),
        power_of_two=True,
    )
    return sample_model(forms)


def documented_exporter() -> Exporter:
    """The exporter of docs/adding-an-exporter.md, whose files are encodings of version 1.0.0."""
    namespace: dict[str, Any] = {"__name__": "eqdeploy_qnn"}
    exec(compile(documented_files()[EXPORTER], EXPORTER, "exec", dont_inherit=True), namespace)
    exporter: Exporter = namespace["QnnExporter"]()
    return exporter


def snpe() -> Exporter:
    return get_exporter("snpe")


@pytest.mark.parametrize(
    ("exporter", "make", "options"),
    [
        (snpe, lambda: sample_model(ASYMMETRIC), {}),
        (snpe, per_channel, {}),
        (snpe, four_bits, {"float_opset": 21}),
        (documented_exporter, lambda: sample_model(ASYMMETRIC), {}),
        (documented_exporter, per_channel, {}),
        (documented_exporter, four_bits, {}),
    ],
)
def test_aimet_rebuilds_the_same_network(
    exporter: Callable[[], Exporter], make: Callable[[], QuantizedModel], options: dict[str, object], tmp_path: Path
) -> None:
    """AIMET's converter turns float model and encodings into a QDQ model of its own; outputs agree exactly."""
    quantsim = optional("aimet_onnx.quantsim")
    model = make()
    files = export_checked(exporter(), model, tmp_path, options)
    encodings = next(tmp_path / name for name in files if name.endswith(".encodings"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rebuilt = quantsim.encodings_to_onnx_qdq(str(encodings.with_suffix(".onnx")), str(encodings))
    rebuilt.ir_version = min(rebuilt.ir_version, 10)
    feeds = image(model, batch=4)
    _, reals = simulate(model, feeds)
    np.testing.assert_array_equal(session(rebuilt, "disabled").run(["head"], feeds)[0], reals["head"])
    quantizers = {node.op_type for node in rebuilt.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    assert len(quantizers) == 2, onnx.printer.to_text(rebuilt.graph)
