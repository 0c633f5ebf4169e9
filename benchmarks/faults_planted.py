"""Faults planted in the stages of an export, each a change of one function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from faults_kinds import Make, Planted, after
from onnx import numpy_helper

from eqdeploy.calibration import choice
from eqdeploy.calibration.batch_norm import BatchNormCalibration
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.freeze import float_graph, freeze
from eqdeploy.pipeline import export, subnets
from eqdeploy.quant import elastic_quantizer
from eqdeploy.quant.form import Granularity
from eqdeploy.supernet.inference import _FixedQuantizer


def _affine(name: str, change: Callable[[Any], Any], profile: str = "onnxruntime-x86") -> Planted:
    return Planted(name, "folding", freeze, "channel_affine", after(change), profile)


def _epsilon(original: Callable[..., Any]) -> Callable[..., Any]:
    def planted(supernet: Any, layer: Any) -> Any:
        norm = None if layer.batch_norm is None else supernet.graph_module.get_submodule(layer.batch_norm)
        if norm is None:
            return original(supernet, layer)
        before, norm.eps = norm.eps, 1e-3
        try:
            return original(supernet, layer)
        finally:
            norm.eps = before

    return planted


def _bias(rounding: Callable[[Any], Any]) -> Make:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def planted(name: str, weight: Any, shift: Any, source: Any, layer: Any) -> Any:
            held = original(name, weight, shift, source, layer)
            return replace(held, codes=rounding(shift / held.encoding.scale.astype(np.float64)).astype(np.int32))

        return planted

    return make


def _codes(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda folded: replace(folded, codes=np.ascontiguousarray(change(folded.codes)).astype(np.int32))


def _scales(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def planted(folded: Any) -> Any:
        encoding = folded.encoding
        return replace(folded, encoding=replace(encoding, scale=np.asarray(change(encoding.scale), np.float32)))

    return planted


def _fold(name: str, change: Callable[[Any], Any], profile: str = "onnxruntime-x86") -> Planted:
    return Planted(name, "weights", freeze, "fold", after(change), profile)


def one_code(codes: Any) -> Any:
    """Move one code by one."""
    changed = codes.copy()
    changed.flat[0] += 1 if changed.flat[0] < 0 else -1
    return changed


def _encoding(name: str, index: int, profile: str = "onnxruntime-x86", **change: Callable[[Any], Any]) -> Planted:
    """Change the encoding of one tensor, by position."""

    def planted(encodings: dict[str, Any]) -> dict[str, Any]:
        key = list(encodings)[index]
        fields = {field: function(encodings[key]) for field, function in change.items()}
        return {**encodings, key: replace(encodings[key], **fields)}

    return Planted(name, "encodings", freeze, "_activation_encodings", after(planted), profile)


def _exchanged(encodings: dict[str, Any]) -> dict[str, Any]:
    """Exchange the encodings of the two tensors that the first addition reads."""
    names = list(encodings)
    first, second = names[1], names[3]
    return {**encodings, first: encodings[second], second: encodings[first]}


def _four_as_eight(original: Callable[..., Any]) -> Callable[..., Any]:
    def planted(quantizer: Any, form: Any) -> Any:
        wide = form.bits == 4 and form.granularity is Granularity.PER_CHANNEL
        return original(quantizer, replace(form, bits=8) if wide else form)

    return planted


def _rotated(original: Callable[..., Any]) -> Callable[..., Any]:
    def planted(supernet: Any, layer: Any, plan: Any, source: Any) -> Any:
        frozen = original(supernet, layer, plan, source)
        if layer != supernet.network.layers[-1]:
            return frozen

        def rolled(item: Any) -> Any:
            scale = np.roll(item.encoding.scale, 1) if item.encoding.scale.ndim else item.encoding.scale
            return replace(item, codes=np.roll(item.codes, 1, 0), encoding=replace(item.encoding, scale=scale))

        return replace(frozen, weight=rolled(frozen.weight), bias=rolled(frozen.bias))

    return planted


def _raw(position: int) -> Make:
    """Without mean and standard deviation."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def planted(*args: Any) -> Any:
            changed = list(args)
            channels = changed[position].channels
            changed[position] = replace(changed[position], mean=(0.0,) * channels, std=(1.0,) * channels)
            return original(*changed)

        return planted

    return make


def _raw_statistics(original: Callable[..., Any]) -> Callable[..., Any]:
    """Statistics are estimated on images without mean and standard deviation, and taken.

    Without the last part nothing is wrong: the choice by measurement turns such statistics down (-0.4 dB from float).
    """

    def planted(checkpoint: Any, *args: Any, **options: Any) -> Any:
        preprocessing = checkpoint.preprocessing
        channels = preprocessing.channels
        raw = replace(preprocessing, mean=(0.0,) * channels, std=(1.0,) * channels)
        return original(replace(checkpoint, preprocessing=raw), *args, **{**options, "only": choice.Statistics.PLAIN})

    return planted


def _skipped(original: Callable[..., Any]) -> Callable[..., Any]:
    def planted(model: Any, batches: Any, advance: Any = None) -> BatchNormCalibration:
        return BatchNormCalibration(sum(len(batch) for batch in batches), 0)

    return planted


def _float_network(original: Callable[..., Any]) -> Callable[..., Any]:
    """The subnet is not active while its statistics or ranges are measured."""

    def planted(supernet: Any, *args: Any) -> Any:
        forms = {quantizer: quantizer.active for quantizer in supernet._quantizers()}
        supernet.deactivate()
        try:
            return original(supernet, *args)
        finally:
            for quantizer, form in forms.items():
                quantizer.activate(form)

    return planted


def _float_statistics(original: Callable[..., Any]) -> Callable[..., Any]:
    """The tensors of the subnet are not quantized while its statistics are measured."""

    def planted(model: Any, *args: Any) -> Any:
        fixed = [module for module in model.modules() if isinstance(module, _FixedQuantizer)]
        numbers = [module.numbers for module in fixed]
        for module in fixed:
            module.set(None)
        try:
            return original(model, *args)
        finally:
            for module, kept in zip(fixed, numbers, strict=True):
                module.set(kept)

    return planted


def _halved(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda images, *args: original(images.spread(len(images) // 2), *args)


def _shifted(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda images, preprocessing, _, seed: original(images, preprocessing, Augmentation(shift=1), seed)


def graph_fault(name: str, change: Callable[[onnx.GraphProto], None]) -> Planted:
    """Change the structure that is frozen."""

    def edited(model: onnx.ModelProto) -> onnx.ModelProto:
        change(model.graph)
        return model

    return Planted(name, "structure", float_graph.FloatGraph, "filled", after(edited))


def _first(graph: onnx.GraphProto, operator: str, position: int = 0) -> onnx.NodeProto:
    return [node for node in graph.node if node.op_type == operator][position]


def _pads(graph: onnx.GraphProto) -> None:
    next(item for item in _first(graph, "Conv").attribute if item.name == "pads").ints[:] = [2, 0, 1, 1]


def _twice(graph: onnx.GraphProto) -> None:
    add = _first(graph, "Add")
    add.input[0] = add.input[1]


def _other_branch(graph: onnx.GraphProto) -> None:
    """The addition behind the first block reads what its first convolution writes, not its second."""
    _first(graph, "Add").input[0] = _first(graph, "Conv", 1).output[0]


def _operator(before: str, after_: str) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        _first(graph, before).op_type = after_

    return change


def _negated(graph: onnx.GraphProto) -> None:
    """The last layer's product is subtracted."""
    _first(graph, "Gemm").attribute.append(onnx.helper.make_attribute("alpha", -1.0))


def smuggled(path: Any) -> None:
    """Multiply the first output of a file by 1.5."""
    model = onnx.load(path)
    output = model.graph.output[0].name
    producer = next(node for node in model.graph.node if output in node.output)
    producer.output[list(producer.output).index(output)] = f"{output}_before"
    factor = numpy_helper.from_array(np.asarray(1.5, np.float32), "smuggled_factor")
    model.graph.initializer.append(factor)
    model.graph.node.append(onnx.helper.make_node("Mul", [f"{output}_before", factor.name], [output], "smuggled"))
    path.write_bytes(model.SerializeToString())


def _smuggle(original: Callable[..., Any]) -> Callable[..., Any]:
    def planted(profile: Any, model: Any, folder: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(profile, model, folder, *args, **kwargs)
        for path in folder.rglob("*.onnx"):
            smuggled(path)
        return result

    return planted


def _plus(number: int) -> Callable[[Any], Any]:
    return lambda encoding: (encoding.zero_point + np.int32(number)).astype(np.int32)


def _next(encoding: Any) -> Any:
    return np.nextafter(encoding.scale, np.float32(np.inf))


PLANTED: tuple[Planted, ...] = (
    Planted("BatchNorm epsilon 1e-3", "folding", freeze, "channel_affine", _epsilon),
    Planted("BatchNorm epsilon 1e-3, requantized", "folding", freeze, "channel_affine", _epsilon, "snpe-dsp"),
    _affine("biases x 1.02", lambda a: replace(a, shift=a.shift * 1.02)),
    _affine("biases x 1.02, requantized", lambda a: replace(a, shift=a.shift * 1.02), "snpe-dsp"),
    _affine("biases x 1.02, float", lambda a: replace(a, shift=a.shift * 1.02), "tensorrt"),
    _affine("biases forgotten", lambda a: replace(a, shift=a.shift * 0)),
    _affine("biases negated", lambda a: replace(a, shift=-a.shift)),
    _affine("biases of the neighbouring channel", lambda a: replace(a, shift=np.roll(a.shift, 1))),
    _affine("gain forgotten", lambda a: replace(a, gain=np.ones_like(a.gain))),
    _affine("variance instead of standard deviation", lambda a: replace(a, gain=a.gain**2)),
    _affine("gains of the neighbouring channel", lambda a: replace(a, gain=np.roll(a.gain, 1))),
    Planted("biases truncated", "folding", freeze, "_integer_bias", _bias(np.trunc)),
    Planted("biases rounded down", "folding", freeze, "_integer_bias", _bias(np.floor)),
    Planted("biases one step too large", "folding", freeze, "_integer_bias", _bias(lambda x: np.rint(x) + 1)),
    _fold("weight scales off by one ulp", _scales(lambda s: np.nextafter(s, np.float32(np.inf)))),
    _fold(
        "weight scales off by one ulp, 4 bits", _scales(lambda s: np.nextafter(s, np.float32(1))), "onnxruntime-w4a4"
    ),
    _fold("channel scales rotated", _scales(lambda s: np.roll(s, 1))),
    _fold("weight scales rounded to powers of two", _scales(lambda s: np.exp2(np.rint(np.log2(s))))),
    _fold("one code changed", _codes(one_code)),
    _fold("one code changed, requantized", _codes(one_code), "snpe-dsp"),
    _fold("kernels flipped", _codes(lambda c: np.flip(c, -1))),
    _fold("output channels reversed", _codes(lambda c: np.flip(c, 0))),
    _fold("input channels rotated", _codes(lambda c: np.roll(c, 1, 1) if c.shape[1] > 1 else np.flip(c, -1))),
    _fold("weights negated", _codes(lambda c: np.clip(-c, -128, 127))),
    Planted(
        "4-bit weights shipped as 8",
        "weights",
        elastic_quantizer.ElasticQuantizer,
        "encoding",
        _four_as_eight,
        "onnxruntime-w4a4",
    ),
    Planted("classes rotated", "weights", freeze, "_freeze_layer", _rotated),
    _encoding("input scale off by one ulp", 0, scale=_next),
    _encoding("activation scale off by one ulp", 2, scale=_next),
    _encoding("calibrated scale off by one ulp", 9, scale=_next),
    _encoding("input zero-point +3", 0, zero_point=_plus(3)),
    _encoding("activation zero-point +3", 3, zero_point=_plus(3), profile="snpe-dsp"),
    _encoding("range ends too early", 2, q_max=lambda e: e.q_max - 100),
    _encoding("activation scale rounded to a power of two", 1, scale=lambda e: np.exp2(np.rint(np.log2(e.scale)))),
    Planted("residual scales exchanged", "encodings", freeze, "_activation_encodings", after(_exchanged)),
    Planted(
        "calibrated without mean and standard deviation", "calibration", subnets, "choose_statistics", _raw_statistics
    ),
    Planted("BatchNorm calibration skipped", "calibration", choice, "calibrate_batch_norm", _skipped),
    Planted("BatchNorm of the float network", "calibration", choice, "calibrate_batch_norm", _float_statistics),
    Planted("BatchNorm of images that are shifted", "calibration", choice, "augmented_batches", _shifted),
    Planted("half of the calibration images", "calibration", choice, "augmented_batches", _halved),
    Planted("ranges without mean and standard deviation", "calibration", subnets, "plain_batches", _raw(1)),
    Planted("ranges of the float network", "calibration", subnets, "sample_tensors", _float_network),
    graph_fault("padding moved", _pads),
    graph_fault("residual branch read twice", _twice),
    graph_fault("addition reads another branch", _other_branch),
    graph_fault("average pool written as maximum", _operator("GlobalAveragePool", "GlobalMaxPool")),
    graph_fault("ReLU left out", _operator("Relu", "Identity")),
    graph_fault("last layer subtracted", _negated),
    Planted("node smuggled into the file", "writing", export, "write_model_files", _smuggle),
    Planted("node smuggled into the TensorRT file", "writing", export, "write_model_files", _smuggle, "tensorrt"),
)
