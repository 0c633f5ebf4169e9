"""Deliberate corruptions of a QDQ file, each as something that could go wrong in an exporter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from eqdeploy.exporters.opset import OPSETS

Mutation = Callable[[onnx.ModelProto], None]

#: Corruptions by name: what changes the numbers that the file computes.
COMPUTED: dict[str, Mutation] = {}

#: Corruptions by name: what may leave the numbers on the images alone, or makes no valid file.
FORMAL: dict[str, Mutation] = {}


def computed(mutation: Mutation) -> Mutation:
    COMPUTED[mutation.__name__] = mutation
    return mutation


def formal(mutation: Mutation) -> Mutation:
    FORMAL[mutation.__name__] = mutation
    return mutation


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in model.graph.node if node.name == name)
    return found


def array(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    return np.array(numpy_helper.to_array(next(item for item in model.graph.initializer if item.name == name)))


def _is_entry(codes: NDArray[Any], index: int) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = np.arange(codes.size).reshape(codes.shape) == index
    return mask


def put(model: onnx.ModelProto, name: str, values: Any, like: NDArray[Any] | None = None) -> None:
    tensor = next(item for item in model.graph.initializer if item.name == name)
    dtype = numpy_helper.to_array(tensor).dtype if like is None else like.dtype
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values, dtype), name))


def change(model: onnx.ModelProto, name: str, function: Callable[[NDArray[Any]], Any]) -> None:
    put(model, name, function(array(model, name)))


def new(model: onnx.ModelProto, name: str, values: Any, dtype: type[np.generic]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
    return name


def attribute(model: onnx.ModelProto, name: str, key: str, value: Any) -> None:
    target = node(model, name)
    kept = [item for item in target.attribute if item.name != key]
    del target.attribute[:]
    target.attribute.extend([*kept, helper.make_attribute(key, value)])


@computed
def scale_of_an_activation_is_doubled(model: onnx.ModelProto) -> None:
    change(model, "stem_relu_scale", lambda scale: scale * 2)


@computed
def scale_of_a_dq_is_not_that_of_its_q(model: onnx.ModelProto) -> None:
    node(model, "add_relu/dequantize").input[1] = new(model, "other", array(model, "add_relu_scale") * 1.5, np.float32)


@computed
def zero_point_of_an_activation_is_one_more(model: onnx.ModelProto) -> None:
    change(model, "x_zero_point", lambda zero_point: zero_point + 1)


@computed
def zero_point_of_a_dq_alone_is_one_more(model: onnx.ModelProto) -> None:
    other = new(model, "other", array(model, "pointwise_zero_point") + 1, np.uint8)
    node(model, "pointwise/dequantize").input[2] = other


@computed
def clip_ends_one_code_early(model: onnx.ModelProto) -> None:
    change(model, "stem_relu_q_max", lambda code: code - 1)


@computed
def clip_starts_one_code_late(model: onnx.ModelProto) -> None:
    change(model, "stem_relu_q_min", lambda code: code + 1)


@computed
def clip_is_left_out(model: onnx.ModelProto) -> None:
    clip = node(model, "x/clip")
    node(model, "x/dequantize").input[0] = clip.input[0]
    model.graph.node.remove(clip)


@computed
def scale_of_one_weight_channel_is_halved(model: onnx.ModelProto) -> None:
    change(model, "stem.weight_scale", lambda scale: scale * np.where(np.arange(scale.size) == 3, 0.5, 1))


@computed
def scales_of_weight_channels_are_reversed(model: onnx.ModelProto) -> None:
    change(model, "pointwise.weight_scale", lambda scale: scale[::-1])


@computed
def axis_of_a_weight_is_that_of_its_inputs(model: onnx.ModelProto) -> None:
    attribute(model, "pointwise.weight/dequantize", "axis", 1)


@computed
def zero_point_of_a_weight_is_one(model: onnx.ModelProto) -> None:
    change(model, "stem.weight_zero_point", lambda zero_point: zero_point + 1)


@computed
def one_weight_is_another(model: onnx.ModelProto) -> None:
    change(model, "depthwise.weight", lambda codes: np.where(_is_entry(codes, 4), -codes - 1, codes))


@computed
def weight_is_transposed(model: onnx.ModelProto) -> None:
    change(model, "pointwise.weight", lambda codes: codes.transpose(1, 0, 2, 3).copy())


@computed
def weight_is_that_of_another_layer(model: onnx.ModelProto) -> None:
    change(model, "depthwise.weight", lambda codes: array(model, "stem.weight")[:, :1])


@computed
def weight_is_stored_shifted_by_half_its_range(model: onnx.ModelProto) -> None:
    put(model, "head.weight", array(model, "head.weight").view(np.uint8), np.zeros(0, np.uint8))
    put(model, "head.weight_zero_point", array(model, "head.weight_zero_point").view(np.uint8), np.zeros(0, np.uint8))


@computed
def bias_is_altered(model: onnx.ModelProto) -> None:
    change(model, "narrow.bias", lambda codes: codes + 40)


@computed
def bias_is_left_out(model: onnx.ModelProto) -> None:
    del node(model, "stem").input[2:]


@computed
def bias_counts_in_other_units(model: onnx.ModelProto) -> None:
    change(model, "depthwise.bias_scale", lambda scale: scale * 8)


@computed
def one_reader_bypasses_the_dq(model: onnx.ModelProto) -> None:
    node(model, "add").input[1] = node(model, "stem_relu/quantize").input[0]


@computed
def tensor_is_not_quantized(model: onnx.ModelProto) -> None:
    node(model, "add").input[0] = node(model, "pointwise/quantize").input[0]
    for ending in ("dequantize", "clip", "quantize"):
        model.graph.node.remove(node(model, f"pointwise/{ending}"))


@computed
def output_is_returned_unquantized(model: onnx.ModelProto) -> None:
    node(model, "head/dequantize").output[0] = "unused"
    node(model, "head/quantize").input[0] = "head"
    node(model, "head").output[0] = "head"


@computed
def relu_is_left_out(model: onnx.ModelProto) -> None:
    relu = node(model, "add_relu")
    node(model, "add_relu/quantize").input[0] = relu.input[0]
    model.graph.node.remove(relu)
    # The container's range clips like the Relu did, so give it room below zero.
    change(model, "add_relu_zero_point", lambda zero_point: zero_point + 1)


@computed
def padding_is_on_the_other_side(model: onnx.ModelProto) -> None:
    attribute(model, "narrow", "pads", [0, 0, 2, 2])


@computed
def pooling_averages_instead_of_taking_the_maximum(model: onnx.ModelProto) -> None:
    node(model, "pool").op_type = "AveragePool"


@computed
def parts_of_a_concat_are_swapped(model: onnx.ModelProto) -> None:
    names = list(node(model, "concat").input)
    node(model, "concat").input[:] = names[::-1]


@computed
def gain_is_applied_after_the_layer(model: onnx.ModelProto) -> None:
    attribute(model, "head", "alpha", 1.25)


@formal
def scale_differs_in_the_last_bit(model: onnx.ModelProto) -> None:
    change(model, "gap_scale", lambda scale: np.nextafter(scale, np.float32(np.inf)))


@formal
def scale_is_negative(model: onnx.ModelProto) -> None:
    change(model, "pool_scale", lambda scale: -scale)


@formal
def scale_is_not_a_number(model: onnx.ModelProto) -> None:
    change(model, "stem.weight_scale", lambda scale: np.where(np.arange(scale.size) == 0, np.nan, scale))


@formal
def scale_is_denormal(model: onnx.ModelProto) -> None:
    change(model, "stem_relu_scale", lambda scale: np.float32(1e-42))


@formal
def clip_range_is_wider_than_the_codes(model: onnx.ModelProto) -> None:
    change(model, "up_relu_q_max", lambda code: code + 1)


@formal
def weight_code_leaves_its_range(model: onnx.ModelProto) -> None:
    change(model, "stem.weight", lambda codes: np.where(_is_entry(codes, 0), 100, codes))


@formal
def axis_is_not_written_down(model: onnx.ModelProto) -> None:
    del node(model, "up.weight/dequantize").attribute[:]


@formal
def bias_has_a_zero_point(model: onnx.ModelProto) -> None:
    change(model, "stem.bias_zero_point", lambda zero_point: zero_point + 1)


@formal
def bias_is_stored_as_float(model: onnx.ModelProto) -> None:
    real = (array(model, "stem.bias") * array(model, "stem.bias_scale")).astype(np.float32)
    node(model, "stem").input[2] = new(model, "stem.bias_float", real, np.float32)
    model.graph.node.remove(node(model, "stem.bias/dequantize"))


@formal
def weight_is_stored_as_float(model: onnx.ModelProto) -> None:
    scale = array(model, "stem.weight_scale").reshape(-1, 1, 1, 1)
    real = (array(model, "stem.weight") * scale).astype(np.float32)
    node(model, "stem").input[1] = new(model, "stem.weight_float", real, np.float32)
    model.graph.node.remove(node(model, "stem.weight/dequantize"))


@formal
def tensor_is_quantized_twice(model: onnx.ModelProto) -> None:
    old = node(model, "add_relu/dequantize")
    again = helper.make_node("QuantizeLinear", [old.output[0], *old.input[1:]], ["again"], name="again/quantize")
    back = helper.make_node("DequantizeLinear", ["again", *old.input[1:]], ["back"], name="again/dequantize")
    index = list(model.graph.node).index(old) + 1
    model.graph.node.insert(index, again)
    model.graph.node.insert(index + 1, back)
    node(model, "pool").input[0] = "back"


@formal
def dq_is_read_by_nobody(model: onnx.ModelProto) -> None:
    old = node(model, "gap/dequantize")
    model.graph.node.append(helper.make_node("DequantizeLinear", list(old.input), ["extra"], name="extra"))


@formal
def q_has_no_dq(model: onnx.ModelProto) -> None:
    old = node(model, "gap/quantize")
    model.graph.node.append(helper.make_node("QuantizeLinear", ["flatten", *old.input[1:]], ["extra"], name="extra"))


@formal
def opset_is_too_new(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = OPSETS.stop


@formal
def ir_version_is_too_new(model: onnx.ModelProto) -> None:
    model.ir_version = 1000


@formal
def opset_is_too_old(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = OPSETS.start - 1


@formal
def graph_is_out_of_order(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes[::-1])


@formal
def node_is_of_an_unknown_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    node(model, "add").domain = "com.microsoft"
