"""Small frozen networks, each with one thing that exporters and readers easily get wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from eqdeploy.plan import BiasFormat
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.testing import ModelBuilder, SampleForms

#: Scales that are powers of two: every sum is exact, so every code must agree everywhere.
EXACT = SampleForms(power_of_two=True)
SIGNED = SampleForms(
    activation=Form(8, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=True),
    bias=BiasFormat.FLOAT,
    power_of_two=True,
    transposed=Form(8, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=True),
)
ASYMMETRIC = SampleForms(weight=Form(8, Granularity.PER_TENSOR, Symmetry.ASYMMETRIC, signed=False), power_of_two=True)
LOW_BITS = SampleForms(
    weight=Form(3, Granularity.PER_CHANNEL, Symmetry.SYMMETRIC, signed=True, narrow=True),
    activation=Form(4, Granularity.PER_TENSOR, Symmetry.ASYMMETRIC, signed=False),
    power_of_two=True,
)


def output_read_inside() -> QuantizedModel:
    """Two outputs; the first is encoded, returned and read by the layer behind it."""
    b = ModelBuilder(EXACT)
    x = b.encode(b.input("x", 3, 6, 6))
    first = b.encode(b.layer("first", "Conv", x, (4, 3, 1, 1), bias=4, kernel_shape=[1, 1]))
    second = b.encode(b.layer("second", "Conv", first, (2, 4, 3, 3), bias=2, kernel_shape=[3, 3]))
    return b.build(first, second)


def float_output() -> QuantizedModel:
    """The network's output carries no encoding."""
    b = ModelBuilder(EXACT)
    x = b.encode(b.input("x", 3, 4, 4))
    return b.build(b.layer("last", "Conv", x, (5, 3, 1, 1), bias=5, kernel_shape=[1, 1]))


def same_tensor_added() -> QuantizedModel:
    """An Add that reads one tensor twice."""
    b = ModelBuilder(EXACT)
    x = b.encode(b.input("x", 3, 4, 4))
    return b.build(b.encode(b.node("twice", "Add", [x, x])))


def float_reader() -> QuantizedModel:
    """A residual add that reads the float value on its main branch and the quantized value on the other."""
    b = ModelBuilder(SIGNED)
    x = b.encode(b.input("x", 4, 6, 6))
    main = b.layer("main", "Conv", x, (4, 4, 1, 1), bias=4, kernel_shape=[1, 1])
    b.node("add", "Add", [main, x])
    b.encode("add", float_readers=["sum"])
    after = b.layer("after", "Conv", "add", (4, 4, 1, 1), bias=4, kernel_shape=[1, 1])
    return b.build(b.node("sum", "Add", [after, "add"]))


def shared_weight() -> QuantizedModel:
    """Two layers with one weight and one bias on inputs of one scale."""
    b = ModelBuilder(EXACT)
    x = b.encode(b.input("x", 4, 6, 6))
    once = b.encode(
        b.layer("tied", "Conv", x, (4, 4, 1, 1), bias=4, kernel_shape=[1, 1]), encoding=b.encoded[x].encoding
    )
    b.node("again", "Conv", [once, "tied.weight", "tied.bias"], kernel_shape=[1, 1])
    return b.build(b.encode("again"))


def grouped_transposed() -> QuantizedModel:
    """ConvTranspose in two groups: three scales serve six output channels."""
    b = ModelBuilder(EXACT)
    x = b.encode(b.input("x", 4, 5, 5))
    b.layer("up", "ConvTranspose", x, (4, 3, 2, 2), bias=6, group=2, kernel_shape=[2, 2], strides=[2, 2])
    return b.build(b.encode(b.node("up_relu", "Relu", ["up"]), non_negative=True))


def one_dimensional() -> QuantizedModel:
    """A dilated 1-d convolution with pooling."""
    b = ModelBuilder(LOW_BITS)
    x = b.encode(b.input("x", 4, 32))
    b.layer("conv", "Conv", x, (6, 4, 3), bias=6, kernel_shape=[3], dilations=[2], pads=[2, 2])
    relu = b.encode(b.node("relu", "Relu", ["conv"]), non_negative=True)
    pool = b.node("pool", "MaxPool", [relu], kernel_shape=[2], strides=[2])
    return b.build(b.encode(pool, encoding=b.encoded[relu].encoding))


def matrix_layers() -> QuantizedModel:
    """Linear layers on tokens: MatMul with a transposed weight and an added bias, then a Gemm without transB."""
    b = ModelBuilder(EXACT)
    x = b.encode(b.input("x", 6, 8))
    b.layer("stored", "MatMul", x, (8, 5))
    b.node("tokens", "Add", ["stored", b.constant("tokens.bias", np.linspace(-1, 1, 5))])
    tokens = b.encode("tokens")
    flat = b.encode(b.node("flat", "Flatten", [tokens]), encoding=b.encoded[tokens].encoding)
    return b.build(b.encode(b.layer("head", "Gemm", flat, (30, 7), bias=7)))


def transposed_weight() -> QuantizedModel:
    """A weight that reaches its MatMul through a Transpose, as torch writes a Linear on tokens."""
    b = ModelBuilder(EXACT)
    x = b.encode(b.input("x", 6, 8))
    b.layer("dead", "Gemm", x, (5, 8), transB=1)
    b.drop("dead")
    b.node("tokens/0", "Transpose", ["dead.weight"], perm=[1, 0])
    return b.build(b.encode(b.node("tokens", "MatMul", [x, "tokens/0"])))


def clips() -> QuantizedModel:
    """ReLU6 whose integer range does its work; one that somebody reads in float; one with wider bounds."""
    b = ModelBuilder(LOW_BITS)
    x = b.encode(b.input("x", 4, 6, 6))
    conv = b.layer("conv", "Conv", x, (4, 4, 1, 1), bias=4, kernel_shape=[1, 1])
    dropped = b.encode(b.clip("dropped", conv, 0.0, 2.0), non_negative=True, upper_bound=2.0)
    kept = b.encode(b.clip("kept", conv, 0.0, 2.0), non_negative=True, upper_bound=2.0, float_readers=["sum"])
    wider = b.encode(b.clip("wider", conv, -1.0, 2.0))
    b.node("sum", "Add", [dropped, kept])
    joined = b.encode("sum")
    last = b.layer("last", "Conv", kept, (4, 4, 1, 1), kernel_shape=[1, 1])
    b.node("join", "Add", [last, wider])
    output = b.clip("output", "join", 0.0, 2.0)
    return b.build(b.encode(output, non_negative=True, upper_bound=2.0), joined)


def unlucky_names() -> QuantizedModel:
    """Tensors with the very names that an exporter gives to its own."""
    b = ModelBuilder(EXACT)
    x = b.encode(b.input("x", 3, 4, 4))
    quantized = b.encode(b.layer("x_quantized", "Conv", x, (3, 3, 1, 1), bias=3, kernel_shape=[1, 1]))
    scale = b.encode(b.layer("x_scale", "Conv", quantized, (3, 3, 1, 1), kernel_shape=[1, 1]))
    b.node("x_dequantized", "Add", [scale, x])
    return b.build(b.encode("x_dequantized"))


def clip_of_codes() -> QuantizedModel:
    """A clip behind an encoded tensor, with an encoding of another scale that ends where the clip does."""
    b = ModelBuilder(EXACT)
    x = b.encode(b.input("x", 3, 6, 6))
    conv = b.encode(b.layer("conv", "Conv", x, (4, 3, 3, 3), bias=4, kernel_shape=[3, 3]))
    clip = b.clip("clip", conv, 0.0, 1.0)
    b.encode(clip, encoding=Encoding.per_tensor(0.0078125, 0, 0, 128, 8, signed=False))
    return b.build(b.encode(b.layer("head", "Conv", clip, (2, 4, 1, 1), bias=2, kernel_shape=[1, 1])))


NETWORKS: dict[str, Callable[[], QuantizedModel]] = {
    function.__name__: function
    for function in (
        output_read_inside,
        float_output,
        same_tensor_added,
        float_reader,
        shared_weight,
        grouped_transposed,
        one_dimensional,
        matrix_layers,
        transposed_weight,
        clips,
        clip_of_codes,
        unlucky_names,
    )
}
