"""Integers come back from a float model and grids, or the tensor that does not fit is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from eqdeploy.errors import ValidationError
from eqdeploy.exporters.contract import check_round_trip
from eqdeploy.exporters.float_sidecar import Grid, SideFile, float_model, write_float_model
from eqdeploy.exporters.float_sidecar_reader import check_same_network, read_float_model
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.testing import sample_model
from tests.contract.networks import ASYMMETRIC, LOW_BITS, NETWORKS, SIGNED

MODELS: dict[str, Callable[[], QuantizedModel]] = {
    "one scale": lambda: sample_model(ASYMMETRIC),
    "scales of channels": sample_model,
    "low widths": lambda: sample_model(LOW_BITS),
    "float biases": lambda: sample_model(SIGNED, skip_only=True),
    **{name: NETWORKS[name] for name in ("matrix_layers", "grouped_transposed", "transposed_weight")},
}


def write(model: QuantizedModel, folder: Path) -> Path:
    write_float_model(float_model(model), folder, "m.onnx", external_data_threshold=1 << 30)
    return folder / "m.onnx"


@pytest.mark.parametrize("signed", [None, True, False])
@pytest.mark.parametrize("name", MODELS)
def test_everything_comes_back_in_whatever_storage_the_file_counts(
    name: str, signed: bool | None, tmp_path: Path
) -> None:
    model = MODELS[name]()
    recovered = read_float_model(write(model, tmp_path), SideFile.of(model, signed=signed))
    check_round_trip(model, recovered)
    assert list(recovered.parameters) == list(model.parameters)
    assert all(codes is not None for codes, _ in recovered.parameters.values())


@pytest.mark.parametrize(("offset", "known"), [((1 << 23) - 1, True), (1 << 23, False)])
def test_a_bias_comes_back_as_far_as_float32_holds_it(offset: int, known: bool, tmp_path: Path) -> None:
    model = sample_model(ASYMMETRIC)
    bias = model.parameters["head.bias"]
    codes = np.zeros_like(bias.codes)
    codes[0] = offset
    model = replace(model, parameters={**model.parameters, "head.bias": replace(bias, codes=codes)})
    found, _ = read_float_model(write(model, tmp_path), SideFile.of(model)).parameters["head.bias"]
    assert (found is not None) is known
    if found is not None:
        np.testing.assert_array_equal(found, codes)


def edited(name: str, change: Callable[[Grid], Grid | None]) -> Callable[[SideFile], SideFile]:
    """Change the grid of one tensor, or leave it out."""

    def edit(side_file: SideFile) -> SideFile:
        parts: list[dict[str, Grid]] = []
        for part in (side_file.activations, side_file.weights):
            grids = {key: change(grid) if key == name else grid for key, grid in part.items()}
            parts.append({key: grid for key, grid in grids.items() if grid is not None})
        return SideFile(*parts)

    return edit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edited("gap", lambda grid: None), r"gap: is in only one of m\.onnx and its side file"),
        (edited("head.weight", lambda grid: None), r"head\.weight: is in only one of"),
        (lambda s: SideFile({**s.activations, "more": s.activations["gap"]}, s.weights), "more: is in only one of"),
        (edited("gap", lambda grid: replace(grid, bits=7)), "gap: has 7 bits in the side file and 8 in the model"),
        (edited("gap", lambda grid: replace(grid, per_channel=True)), "gap: 1 entries for a tensor with one scale"),
        (
            edited("head.weight", lambda grid: replace(grid, scales=(grid.scales[0] * 2, *grid.scales[1:]))),
            r"head\.weight: float weights do not lie on the grid",
        ),
        (
            edited("head.weight", lambda grid: replace(grid, scales=grid.scales[1:], zero_points=(0,) * 4)),
            r"head\.weight: 4 entries do not fit shape \(5, 6\)",
        ),
        (
            edited("x", lambda grid: replace(grid, scales=(grid.scales[0] * 1.5,))),
            r"stem\.bias: float biases do not lie on the grid of their layer",
        ),
    ],
)
def test_a_side_file_of_another_model_is_refused(
    change: Callable[[SideFile], SideFile], message: str, tmp_path: Path
) -> None:
    model = sample_model()
    path, side_file = write(model, tmp_path), SideFile.of(model)
    read_float_model(path, side_file)
    with pytest.raises(ValidationError, match=message):
        read_float_model(path, change(side_file))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head.weight", np.float32(np.nan), r"head\.weight: holds values that are not finite"),
        ("stem.bias", np.float32(np.inf), r"stem\.bias: holds values that are not finite"),
        ("stem.weight", np.float32(3e38), r"stem\.weight: float weights do not lie on the grid"),
        ("head.weight", np.float64(0), r"head\.weight: is no float32 initializer|is not valid ONNX"),
    ],
)
def test_a_float_model_with_other_values_is_refused(
    name: str, value: np.floating, message: str, tmp_path: Path
) -> None:
    model = sample_model()
    path = write(model, tmp_path)
    written = onnx.load(path)
    tensor = next(tensor for tensor in written.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor).astype(value.dtype)
    array.reshape(-1)[0] = value
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(written, path)
    with pytest.raises(ValidationError, match=message):
        read_float_model(path, SideFile.of(model))


@pytest.mark.parametrize(
    ("section", "name", "fact", "message"),
    [
        ("activations", "stem_relu", {"q_max": 100}, "stem_relu: nothing in the float model keeps its codes inside"),
        ("activations", "stem_relu", {"q_max": 400}, r"stem_relu: the range \[0, 400\] does not fit in 8 bits"),
        ("activations", "stem_relu", {"bits": 7, "q_max": 127}, "has 8 bits in the side file and 7 in the model"),
        ("parameters", "pointwise.weight", {"axis": 1}, "has its scales on axis 1, its layer needs axis 0"),
        ("parameters", "pointwise.weight", {"axis": None}, "8 entries for a tensor with one scale"),
    ],
)
def test_metadata_that_the_graph_contradicts_are_refused(
    section: str, name: str, fact: dict[str, object], message: str, tmp_path: Path
) -> None:
    model = sample_model()
    path = write(model, tmp_path)
    written = onnx.load(path)
    facts = json.loads(written.metadata_props[0].value)
    facts[section][name].update(fact)
    written.metadata_props[0].value = json.dumps(facts)
    onnx.save(written, path)
    with pytest.raises(ValidationError, match=message):
        read_float_model(path, SideFile.of(model))


def test_another_network_than_that_of_the_proof_model_is_named(tmp_path: Path) -> None:
    model = sample_model()
    path = write(model, tmp_path)
    check_same_network(model, path)
    written = onnx.load(path)
    next(node for node in written.graph.node if node.op_type == "Relu").op_type = "Neg"
    onnx.save(written, path)
    with pytest.raises(ValidationError, match=r"m\.onnx: node stem_relu: is another one in the proof model"):
        check_same_network(model, path)
