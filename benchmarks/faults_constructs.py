"""Faults planted in an export of the network of :mod:`faults_network`: what needs its constructs to do any harm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from faults_changes import (
    activation,
    away_from_zero,
    believing,
    bgr_classifier,
    bgr_input,
    bgr_preprocessing,
    bias_rounding,
    biased_variance,
    codes,
    constant,
    covering,
    encoding_of,
    epsilon_of,
    explicit_padding,
    half_up,
    in_single_precision,
    mean_of_batches,
    next_label,
    of_layer,
    other_axis,
    parameter,
    part_twice,
    parts_exchanged,
    plain_statistics,
    range_end,
    requantize_half_up,
    requantize_too_large,
    reversed_channels,
    search_gives,
    skip_reads,
    swapped,
    transposed_operand,
    with_attributes,
    without_axis,
    written,
)
from faults_kinds import Make, Planted, after
from faults_planted import graph_fault, one_code

from eqdeploy.calibration import batch_norm, choice, ranges
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.exporters import onnx_qdq, qdq_graph
from eqdeploy.exporters.metadata import DroppedClip
from eqdeploy.freeze import folding, freeze
from eqdeploy.pipeline import export, file_checks, proof, sources, subnets
from eqdeploy.quant import encoding as encodings_module
from eqdeploy.quant import initialize
from eqdeploy.validation import runtime
from eqdeploy.validation.reference import kernels, values, windows

_NETWORK = "constructs"


def _planted(
    name: str, stage: str, owner: Any, attribute: str, make: Make, profile: str = "onnxruntime-x86", **more: Any
) -> Planted:
    return Planted(name, stage, owner, attribute, make, profile, network=_NETWORK, **more)


def _graph(name: str, change: Callable[[onnx.GraphProto], None], profile: str = "onnxruntime-x86") -> Planted:
    return replace(graph_fault(name, change), network=_NETWORK, profile=profile)


_PLAIN = ((subnets, "choose_statistics", plain_statistics),)
_BLIND = ((file_checks, "export_checked", believing),)


_CLIPS_DROPPED = ((qdq_graph, "_needless_clip", lambda _: lambda value, encoding: DroppedClip(low=0.0, high=6.0)
                   if value.name == "relu6" else None),)  # fmt: skip


def _writer(name: str, change: Callable[[Any], Any]) -> Planted:
    return _planted(name, "writing", onnx_qdq, "build_qdq", written(change), also=_BLIND)


_ENCODINGS = "_activation_encodings"

CONSTRUCTS: tuple[Planted, ...] = (
    _planted("weights rounded half up", "rounding", encodings_module, "quantize", half_up),
    _planted("weights rounded half away from zero", "rounding", encodings_module, "quantize", away_from_zero),
    _planted(
        "biases rounded half up", "rounding", freeze, "_integer_bias", bias_rounding(lambda x: np.floor(x + 0.5))
    ),
    _planted(
        "biases rounded half down", "rounding", freeze, "_integer_bias", bias_rounding(lambda x: np.ceil(x - 0.5))
    ),
    _planted("scales of the other axis", "weights", freeze, "fold", of_layer("mix", other_axis)),
    _planted("square weight transposed", "weights", freeze, "fold", of_layer("hidden", codes(np.transpose))),
    _planted(
        "first layer reads BGR", "weights", freeze, "fold", of_layer("stem", codes(lambda c: np.flip(c, 1)))
    ),
    _planted("unsigned storage not shifted", "weights", folding, "_stored", lambda _: lambda folded, device: folded,
             "snpe-dsp"),
    _planted(
        "codes not shifted with their zero-point", "weights", folding, "_stored",
        lambda _: lambda folded, device: replace(folded, encoding=folded.encoding.stored_as(signed=device.signed)),
        "snpe-dsp",
    ),
    _planted("epsilon of another layer", "folding", freeze, "channel_affine", epsilon_of("right_norm")),
    _planted("folded in single precision", "folding", freeze, "channel_affine", after(in_single_precision)),
    _planted("range of a clip not ended", "encodings", freeze, "_clipped", lambda _: lambda encoding, tensor: encoding),
    _planted("range of a clip ends one code late", "encodings", freeze, "_clipped", range_end(1)),
    _planted("range of a clip ends one code early", "encodings", freeze, "_clipped", range_end(-1)),
    _planted("two tensors share an encoding", "encodings", freeze, _ENCODINGS,
             encoding_of("relu6_1", lambda found: found["relu6"])),
    _planted("concatenated parts exchange encodings", "encodings", freeze, _ENCODINGS,
             swapped("left_norm", "cat")),
    _planted("an encoding of its own where one is shared", "encodings", freeze, _ENCODINGS,
             encoding_of("flatten", lambda found: replace(found["flatten"], scale=found["flatten"].scale * 2))),
    _planted("residual scale of the other branch", "encodings", freeze, _ENCODINGS,
             swapped("mix_norm", "avg_pool2d")),
    _planted("signed zero-point on unsigned codes", "encodings", freeze, _ENCODINGS,
             encoding_of("mix_norm", lambda found: replace(
                 found["mix_norm"], zero_point=np.asarray((int(found["mix_norm"].zero_point) + 128) % 256, np.int32)))),
    _planted("ranges cover all values", "calibration", ranges, "minimize_error", covering),
    _planted("the search for scales returns twice the best", "calibration", initialize, "_search_asymmetric",
             search_gives(lambda scale, zero: (2 * scale, zero))),
    _planted("the search for scales is one zero-point off", "calibration", initialize, "_search_asymmetric",
             search_gives(lambda scale, zero: (scale, (zero + 4).clip(0, 250)))),
    _planted("variance not corrected for the number of values", "calibration", batch_norm._Moments, "write",
             biased_variance, also=_PLAIN),
    _planted("statistics are the mean of the batches'", "calibration", batch_norm._Moments, "write", mean_of_batches,
             also=_PLAIN),
    _planted("BatchNorm calibrated on BGR", "calibration", choice, "augmented_batches", reversed_channels,
             also=_PLAIN),
    _planted("ranges calibrated on BGR", "calibration", subnets, "plain_batches", reversed_channels),
    _graph("ReLU6 ends at 5", constant("relu6/input2", lambda x: x - 1)),
    _graph("ReLU6 begins at 0.5", constant("relu6_1/input1", lambda x: x + 0.5)),
    _graph("padding with code 0 instead of the zero-point", explicit_padding(-2.0)),
    _graph("average counts padding", with_attributes("AveragePool", count_include_pad=1)),
    _graph("average of a smaller window", with_attributes("AveragePool", kernel_shape=[2, 2], pads=[0, 0, 0, 0])),
    _graph("sizes rounded down", with_attributes("MaxPool", ceil_mode=0)),
    _graph("parts of a concatenation exchanged", parts_exchanged),
    _graph("one part twice", part_twice),
    _graph("softmax over the other axis", with_attributes("Softmax", axis=1)),
    _graph("square operand transposed", transposed_operand),
    _graph("square Gemm transposed", with_attributes("Gemm", transB=0)),
    _graph("addition reads one branch twice", skip_reads, "snpe-dsp"),
    _planted("BGR to the runtime of parity", "feeding", runtime.ObservedModel, "run", bgr_input),
    _planted("BGR to the runtime of accuracy", "feeding", proof, "onnx_classifier", bgr_classifier),
    _planted("BGR to the simulated subnet", "feeding", export, "calibrated_classifier", bgr_classifier),
    _planted("BGR preprocessing everywhere", "data", Preprocessing, "apply", bgr_preprocessing),
    _planted("BGR images", "data", sources, "load_images", after(
        lambda loaded: replace(loaded, images=loaded.images[:, ::-1].copy(), digest=""))),
    _planted("labels count from one", "data", sources, "load_images", next_label),
    _planted("calibrated on the images that are judged", "data", sources, "load_images",
             lambda original: lambda reference, *, split, **options: original(reference, split="test", **options)),
    _planted("axis not written", "writing", qdq_graph._Builder, "node", without_axis),
    _planted("axis not written, reader believing", "writing", qdq_graph._Builder, "node", without_axis, also=_BLIND),
    _writer("scale of another tensor written",
            lambda m: activation("relu", scale=lambda _: m.activations["relu_1"].encoding.scale)(m)),
    _writer("zero-point of the other storage written",
            activation("mix_norm", zero_point=lambda e: np.asarray((int(e.zero_point) + 128) % 256, np.int32))),
    _planted("integer Clip ends late", "writing", onnx_qdq, "build_qdq",
             written(activation("relu6", q_max=lambda _: 255)), also=_CLIPS_DROPPED),
    _writer("one weight off by one written",
            parameter("mix.weight", lambda p: replace(p, codes=one_code(p.codes)))),
    _writer("weight written transposed",
            parameter("hidden.weight", lambda p: replace(p, codes=np.ascontiguousarray(p.codes.T)))),
    _planted("reference forgets zero-points", "reference", values.Quantized, "steps",
             lambda _: property(lambda self: self.integers)),
    _planted("reference rounds half up", "reference", values, "requantize", lambda _: requantize_half_up),
    _planted("reference averages over padding", "reference", windows.Windows, "counts",
             lambda original: lambda self, include_padding: original(self, include_padding=True)),
    _planted("reference pads with code 0", "reference", kernels, "exact_sums",
             lambda original: lambda operator, data, weight: original(operator, data + 3, weight)),
    _planted("reference scales 2 % too much", "reference", values, "requantize", lambda _: requantize_too_large),
)  # fmt: skip
