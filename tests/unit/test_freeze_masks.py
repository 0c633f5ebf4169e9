"""Constants that hide become finite only where nobody can tell."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from eqdeploy.freeze.masks import HIDING, make_masks_finite
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedTensor


def graph(*, also_returned: bool = False, operator: str = "Add") -> onnx.ModelProto:
    """Scores plus a mask, twice."""
    mask = numpy_helper.from_array(np.array([0.0, -30.0, -1e9, -math.inf], np.float32), "mask")
    nodes = [helper.make_node("Add", ["x", "mask"], ["once"]), helper.make_node(operator, ["once", "mask"], ["twice"])]
    outputs = ["twice", "once"] if also_returned else ["twice"]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", *outputs)]
    return helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], [mask]))


def encoded(scale: float, *float_readers: str) -> dict[str, QuantizedTensor]:
    encoding = Encoding.per_tensor(scale, 200, 0, 255, 8, signed=False)
    return {"twice": QuantizedTensor("twice", encoding, frozenset(float_readers))}


def mask_of(model: onnx.ModelProto) -> list[float]:
    values: list[float] = numpy_helper.to_array(model.graph.initializer[0]).tolist()
    return values


def test_what_half_precision_cannot_hold_becomes_finite() -> None:
    assert mask_of(make_masks_finite(graph(), encoded(0.1))) == [0.0, -30.0, HIDING, HIDING]


def test_codes_stay_the_same() -> None:
    encoding = encoded(0.1)["twice"].encoding
    scores = np.linspace(-100, 100, 4, dtype=np.float32)
    before, after = (
        np.asarray(mask, np.float32) for mask in (mask_of(graph()), mask_of(make_masks_finite(graph(), encoded(0.1))))
    )
    assert np.array_equal(encoding.quantize(scores + 2 * before), encoding.quantize(scores + 2 * after))


@pytest.mark.parametrize(
    ("model", "activations"),
    [
        (graph(also_returned=True), encoded(0.1)),
        (graph(operator="Mul"), encoded(0.1)),
        (graph(), encoded(0.1, "softmax")),
        (graph(), encoded(1000.0)),
        (graph(), {}),
    ],
    ids=["returned", "another operation", "read in float", "range too wide", "not quantized"],
)
def test_what_others_see_stays(model: onnx.ModelProto, activations: dict[str, QuantizedTensor]) -> None:
    assert mask_of(make_masks_finite(model, activations)) == mask_of(graph())
