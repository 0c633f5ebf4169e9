"""Changes that faults make: to what functions return, to encodings, weights, graphs and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from faults_kinds import Make, after
from onnx import helper, numpy_helper

from eqdeploy.calibration import choice
from eqdeploy.quant.encoding import Encoding


def half_up(original: Any) -> Any:
    """Round half up."""

    def quantize(x: Any, scale: Any, zero_point: Any, q_min: Any, q_max: Any) -> Any:
        return (np.floor(x / scale + np.float32(0.5)) + zero_point).clip(q_min, q_max)

    return quantize


def away_from_zero(original: Any) -> Any:
    """Round half away from zero."""

    def quantize(x: Any, scale: Any, zero_point: Any, q_min: Any, q_max: Any) -> Any:
        steps = x / scale
        return (np.sign(steps) * np.floor(np.abs(steps) + np.float32(0.5)) + zero_point).clip(q_min, q_max)

    return quantize


def bias_rounding(rule: Callable[[Any], Any]) -> Make:
    """Round biases by another rule."""

    def make(original: Any) -> Any:
        def planted(name: str, weight: Any, shift: Any, source: Any, layer: Any) -> Any:
            held = original(name, weight, shift, source, layer)
            return replace(held, codes=rule(shift / held.encoding.scale.astype(np.float64)).astype(np.int32))

        return planted

    return make


def of_layer(layer_name: str, change: Callable[[Any], Any]) -> Make:
    """Change what a function of (…, layer, …) returns for one layer."""

    def make(original: Any) -> Any:
        def planted(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            named = any(getattr(value, "name", None) == layer_name for value in args)
            return change(result) if named else result

        return planted

    return make


def codes(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Change the codes of a folded weight."""
    return lambda folded: replace(folded, codes=np.ascontiguousarray(change(folded.codes)).astype(np.int32))


def other_axis(folded: Any) -> Any:
    """Scales lie along axis 1."""
    return replace(folded, encoding=replace(folded.encoding, axis=1))


def epsilon_of(name: str) -> Make:
    """Every layer is folded with the epsilon of one of them."""

    def make(original: Any) -> Any:
        def planted(supernet: Any, layer: Any) -> Any:
            if layer.batch_norm is None:
                return original(supernet, layer)
            norm = supernet.graph_module.get_submodule(layer.batch_norm)
            before, norm.eps = norm.eps, supernet.graph_module.get_submodule(name).eps
            try:
                return original(supernet, layer)
            finally:
                norm.eps = before

        return planted

    return make


def in_single_precision(affine: Any) -> Any:
    """Round gain and shift to float32."""
    gain = affine.gain.astype(np.float32)
    return replace(affine, gain=gain.astype(np.float64), shift=affine.shift.astype(np.float32).astype(np.float64))


def encoding_of(tensor: str, change: Callable[[dict[str, Any]], Encoding]) -> Make:
    """Change the encoding of one tensor."""
    return after(lambda encodings: {**encodings, tensor: change(encodings)})


def swapped(first: str, second: str) -> Make:
    """Exchange the encodings of two tensors."""
    return after(lambda encodings: {**encodings, first: encodings[second], second: encodings[first]})


def range_end(steps: int) -> Make:
    """Move the end of a range that ends early."""

    def change(original: Any) -> Any:
        def planted(encoding: Any, tensor: Any) -> Any:
            found = original(encoding, tensor)
            return replace(found, q_max=min(found.q_max + steps, 255)) if found.q_max != encoding.q_max else found

        return planted

    return change


def covering(original: Any) -> Any:
    """The whole range of the values, instead of the range with the smallest error."""

    def planted(samples: Any, form: Any) -> Any:
        low, high = samples.amin(dim=1).clip(max=0), samples.amax(dim=1).clip(min=0)
        scale = ((high - low) / (form.q_max - form.q_min)).clip(min=1e-12)
        return scale, (form.q_min - low / scale).round().clip(form.q_min, form.q_max)

    return planted


def search_gives(change: Callable[[Any, Any], Any]) -> Make:
    """The search that every initialization, calibration and proof calls returns something else."""

    def make(original: Any) -> Any:
        def planted(best: Any, *args: Any) -> Any:
            original(best, *args)
            best.scale, best.zero_point = change(best.scale, best.zero_point)

        return planted

    return make


def biased_variance(original: Any) -> Any:
    """The variance is that of the values, not of what they are drawn from."""

    def planted(self: Any, module: Any) -> None:
        original(self, module)
        module.running_var.mul_((self.count - 1) / self.count)

    return planted


def mean_of_batches(original: Any) -> Any:
    """Statistics are the mean of those of the batches, whatever their sizes, as a momentum would have it."""

    def planted(self: Any, module: Any) -> None:
        original(self, module)
        module.running_mean.copy_(torch.stack([part.mean for part in self.batches]).mean(0))
        module.running_var.copy_(torch.stack([part.variance for part in self.batches]).mean(0))

    return planted


def reversed_channels(original: Any) -> Any:
    """Turn the channels of every batch over."""

    def planted(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for batch in original(*args, **kwargs):
            yield batch.flip(1)

    return planted


def plain_statistics(original: Any) -> Any:
    """Without a choice by measurement, which turns bad statistics down."""
    return lambda *args, **options: original(*args, **{**options, "only": choice.Statistics.PLAIN})


def bgr_input(original: Any) -> Any:
    """The first argument has its channels turned over."""
    return lambda self, images: original(self, images[:, ::-1].copy())


def bgr_preprocessing(original: Any) -> Any:
    """What is preprocessed has its channels turned over."""
    return lambda self, images: original(self, images)[:, ::-1].copy()


def bgr_classifier(original: Any) -> Any:
    """A classifier gets its images with the channels turned over."""

    def planted(*args: Any, **kwargs: Any) -> Any:
        classify = original(*args, **kwargs)
        return lambda images: classify(images[:, ::-1].copy())

    return planted


def next_label(original: Any) -> Any:
    """Labels count from one where the network counts from zero."""

    def planted(*args: Any, **kwargs: Any) -> Any:
        loaded = original(*args, **kwargs)
        return replace(loaded, labels=(loaded.labels + 1) % len(loaded.classes), digest="")

    return planted


def first_node(graph: onnx.GraphProto, operator: str, position: int = 0) -> onnx.NodeProto:
    """The first node of an operator, or a later one."""
    return [node for node in graph.node if node.op_type == operator][position]


def with_attributes(operator: str, position: int = 0, **attributes: Any) -> Callable[[onnx.GraphProto], None]:
    """Give a node other attributes."""

    def change(graph: onnx.GraphProto) -> None:
        node = first_node(graph, operator, position)
        for name, value in attributes.items():
            kept = [item for item in node.attribute if item.name != name]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def constant(name: str, change: Callable[[Any], Any]) -> Callable[[onnx.GraphProto], None]:
    """Change a constant that a node of the graph reads."""

    def edit(graph: onnx.GraphProto) -> None:
        (item,) = [item for item in graph.initializer if item.name == name]
        array = numpy_helper.to_array(item)
        item.CopyFrom(numpy_helper.from_array(np.asarray(change(array), array.dtype), name))

    return edit


def parts_exchanged(graph: onnx.GraphProto) -> None:
    """The parts of a Concat stand in the other order."""
    concat = first_node(graph, "Concat")
    concat.input[:] = list(concat.input)[::-1]


def part_twice(graph: onnx.GraphProto) -> None:
    """A Concat joins one part with itself."""
    concat = first_node(graph, "Concat")
    concat.input[:] = [concat.input[1], concat.input[1]]


def explicit_padding(value: float) -> Callable[[onnx.GraphProto], None]:
    """The second convolution's input is padded with a number of its own instead of zeros."""

    def change(graph: onnx.GraphProto) -> None:
        conv = first_node(graph, "Conv")
        with_attributes("Conv", pads=[0, 0, 0, 0])(graph)
        pads = numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), f"{conv.name}/input8")
        number = numpy_helper.from_array(np.array(value, np.float32), f"{conv.name}/input9")
        graph.initializer.extend([pads, number])
        node = helper.make_node("Pad", [conv.input[0], pads.name, number.name], [f"{conv.name}/0"], f"{conv.name}/0")
        place = list(graph.node).index(conv)
        graph.node.insert(place, node)
        graph.node[place + 1].input[0] = f"{conv.name}/0"

    return change


def transposed_operand(graph: onnx.GraphProto) -> None:
    """The product of two activations reads its square operand turned over."""
    product = first_node(graph, "MatMul")
    name = f"{product.name}/0"
    place = list(graph.node).index(product)
    graph.node.insert(place, helper.make_node("Transpose", [product.input[1]], [name], name, perm=[0, 2, 1]))
    graph.node[place + 1].input[1] = name


def skip_reads(graph: onnx.GraphProto) -> None:
    """The addition reads what the skip branch is the average of at its corner: the result of another layer."""
    add = first_node(graph, "Add")
    add.input[1] = add.input[0]


def without_axis(original: Any) -> Any:
    """The axis of per-channel scales is not written; 1 is the format's default."""
    return lambda self, op_type, inputs, name, output, like, axis=None: original(
        self, op_type, inputs, name, output, like
    )


def believing(original: Any) -> Any:
    """The exporter's own reader notices nothing."""
    return lambda exporter, model, directory, options: exporter.export(model, directory, options)


def written(change: Callable[[Any], Any]) -> Make:
    """The exporter writes another model than the one that it is given."""
    return lambda original: lambda model, opset: original(change(model), opset)


def activation(tensor: str, **change: Callable[[Encoding], Any]) -> Callable[[Any], Any]:
    """Change the encoding of one tensor of a model."""

    def planted(model: Any) -> Any:
        held = model.activations[tensor]
        fields = {name: function(held.encoding) for name, function in change.items()}
        changed = replace(held, encoding=replace(held.encoding, **fields))
        return replace(model, activations={**model.activations, tensor: changed})

    return planted


def parameter(name: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Change one parameter of a model."""
    return lambda model: replace(model, parameters={**model.parameters, name: change(model.parameters[name])})


def requantize_half_up(sums: Any, scale: Any, encoding: Encoding) -> Any:
    """Bring sums to a grid, rounding half up."""
    steps = sums.astype(np.float32) * (scale / encoding.scale)
    return np.clip(np.floor(steps + np.float32(0.5)) + encoding.zero_point, encoding.q_min, encoding.q_max).astype(
        np.int32
    )


def requantize_too_large(sums: Any, scale: Any, encoding: Encoding) -> Any:
    """Bring sums to a grid with a scale that is 2 % too large."""
    steps = sums.astype(np.float32) * scale * np.float32(1.02) / encoding.scale
    return np.clip(np.rint(steps) + encoding.zero_point, encoding.q_min, encoding.q_max).astype(np.int32)
