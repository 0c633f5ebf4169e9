"""What a network looks like to everything that never touches its weights: layers, tensors and the elastic space.

A description is made once from a traced model and is all that resolving a profile or searching needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from eqdeploy.errors import ProfileError
from eqdeploy.quant.form import Form, Granularity, Symmetry


class OpKind(StrEnum):
    """The operation that produces a tensor, in the terms in which profiles speak of operators."""

    INPUT = "input"
    CONV = "conv"
    CONV_TRANSPOSE = "conv_transpose"
    LINEAR = "linear"
    BATCH_NORM = "batch_norm"
    RELU = "relu"
    CLIP = "clip"
    SIGMOID = "sigmoid"
    HARD_SIGMOID = "hard_sigmoid"
    TANH = "tanh"
    SOFTMAX = "softmax"
    ADD = "add"
    MUL = "mul"
    MATMUL = "matmul"
    CONCAT = "concat"
    MAX_POOL = "max_pool"
    AVERAGE_POOL = "average_pool"
    GLOBAL_AVERAGE_POOL = "global_average_pool"
    RESHAPE = "reshape"
    TRANSPOSE = "transpose"
    RESIZE = "resize"
    REQUANTIZE = "requantize"
    OTHER = "other"


#: Operations with trained, quantized weights.
LAYER_KINDS = frozenset({OpKind.CONV, OpKind.CONV_TRANSPOSE, OpKind.LINEAR})

#: Operations whose output lies between the smallest and the largest of their inputs.
BOUND_PRESERVING_KINDS = frozenset(
    {
        OpKind.MAX_POOL,
        OpKind.AVERAGE_POOL,
        OpKind.GLOBAL_AVERAGE_POOL,
        OpKind.RESHAPE,
        OpKind.TRANSPOSE,
        OpKind.RESIZE,
        OpKind.CONCAT,
        OpKind.REQUANTIZE,
    }
)


class BatchNormTraining(StrEnum):
    """What a supernet trains behind a layer that a BatchNorm follows.

    All but ``separate`` fold the gain of each channel into the weight before training, so that the quantizer sees
    the weight that a device gets; what remains behind the layer has one gain for all channels, which any weight scale
    takes in exactly.

    Attributes:
        SEPARATE: The BatchNorm itself: statistics and gain per channel.
        FOLDED: Mean per channel, one variance and one gain for the layer, bias per channel.
        FOLDED_MEAN: Mean and bias per channel; the gain is 1.
        FOLDED_BIAS: Bias per channel, no statistics; the gain is 1.
    """

    SEPARATE = "separate"
    FOLDED = "folded"
    FOLDED_MEAN = "folded_mean"
    FOLDED_BIAS = "folded_bias"


class ScaleTraining(StrEnum):
    """Which scales a supernet is trained with: any, or powers of two only."""

    FREE = "free"
    POWER_OF_TWO = "power_of_two"


class Residual(StrEnum):
    """What a residual addition reads of a tensor that a layer reads, too.

    Attributes:
        QUANTIZED: The same quantized value as the layer.
        FLOAT: The value itself; the layer reads a quantized copy, a tensor of kind :attr:`OpKind.REQUANTIZE`.
    """

    QUANTIZED = "quantized"
    FLOAT = "float"


@dataclass(frozen=True)
class ElasticSpace:
    """The forms that a supernet is trained for.

    Attributes:
        bits: Widths of weights and activations, ascending.
        granularities: Granularities of weights. Activations are always per-tensor.
        symmetries: Symmetries of weights, and of activations that take negative values.
        narrow: Whether symmetric weights use the narrow range.
        boundary_bits: Width that the first and the last layer are deployed with; must be one of ``bits``.
        batch_norm: What is trained behind layers that a BatchNorm follows.
        scales: Which scales are trained.
        residual: What a residual addition reads of a tensor that a layer reads, too.

    Raises:
        ValueError: If a field is empty, unsorted, repeated or out of range.
    """

    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    granularities: tuple[Granularity, ...] = (Granularity.PER_TENSOR, Granularity.PER_CHANNEL)
    symmetries: tuple[Symmetry, ...] = (Symmetry.SYMMETRIC, Symmetry.ASYMMETRIC)
    narrow: bool = False
    boundary_bits: int = 8
    batch_norm: BatchNormTraining = BatchNormTraining.SEPARATE
    scales: ScaleTraining = ScaleTraining.FREE
    residual: Residual = Residual.QUANTIZED

    def __post_init__(self) -> None:
        for name in ("bits", "granularities", "symmetries"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must hold at least one value, each once")
        if list(self.bits) != sorted(self.bits):
            raise ValueError("bits must be ascending")
        if self.boundary_bits not in self.bits:
            raise ValueError(f"boundary_bits {self.boundary_bits} is not one of bits {list(self.bits)}")
        self.weight_forms()  # refuses widths and ranges that no form has

    def weight_form(self, bits: int, granularity: Granularity, symmetry: Symmetry) -> Form:
        """The trained form of a weight: always a signed range, narrow only when symmetric."""
        return Form(bits, granularity, symmetry, signed=True, narrow=self.narrow and symmetry is Symmetry.SYMMETRIC)

    def weight_forms(self) -> tuple[Form, ...]:
        """Every form that every weight owns a scale for."""
        return tuple(
            self.weight_form(bits, granularity, symmetry)
            for bits in self.bits
            for granularity in self.granularities
            for symmetry in self.symmetries
        )

    def activation_form(self, bits: int, symmetry: Symmetry, *, non_negative: bool) -> Form:
        """The trained form of an activation.

        A non-negative tensor has one form per width, unsigned with zero-point 0: a free zero-point could only
        waste codes. Otherwise symmetric is signed and asymmetric is unsigned with a learned zero-point.
        """
        if non_negative:
            return Form(bits, Granularity.PER_TENSOR, Symmetry.SYMMETRIC, signed=False)
        return Form(bits, Granularity.PER_TENSOR, symmetry, signed=symmetry is Symmetry.SYMMETRIC)

    def activation_forms(self, *, non_negative: bool) -> tuple[Form, ...]:
        """Every form that an activation quantizer owns a scale for."""
        return tuple(
            dict.fromkeys(
                self.activation_form(bits, symmetry, non_negative=non_negative)
                for bits in self.bits
                for symmetry in self.symmetries
            )
        )


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the network: the output of one operation.

    Attributes:
        name: Unique name; the operation that produces the tensor is known by the same name.
        shape: Shape without the batch axis.
        op: Kind of the operation that produces it.
        operation: The operation in the user's terms, e.g. ``"torch.nn.ReLU6"``.
        inputs: Names of the tensors it is computed from, in argument order.
        readers: Names of the tensors computed from it.
        layer: Module path of the quantizable layer that produces it, if one does.
        non_negative: Whether the graph guarantees that it is never negative.
        upper_bound: Largest value that the graph guarantees (6 after ReLU6, 1 after a sigmoid), else None.
        trained: Whether the supernet owns trained scales for it (it feeds a quantizable layer).
        is_output: Whether the network returns it.
        integer: Whether it holds integers that no quantizer touches, such as ids.
    """

    name: str
    shape: tuple[int, ...]
    op: OpKind
    operation: str
    inputs: tuple[str, ...]
    readers: tuple[str, ...]
    layer: str | None = None
    non_negative: bool = False
    upper_bound: float | None = None
    trained: bool = False
    is_output: bool = False
    integer: bool = False

    @property
    def elements(self) -> int:
        """Number of values for one image."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class LayerInfo:
    """One quantizable layer.

    Attributes:
        name: Module path, e.g. ``"layer1.0.conv1"``.
        op: CONV, CONV_TRANSPOSE or LINEAR.
        weight_shape: Shape of the weight as torch stores it.
        channel_axis: Axis of the output channels (of the group's output channels for CONV_TRANSPOSE).
        groups: Convolution groups, 1 for LINEAR.
        input_tensor: Name of the tensor it reads.
        output_tensor: Name of the tensor it writes, before BatchNorm and activation.
        batch_norm: Module path of the BatchNorm that can be folded into it, if any.
        macs: Multiply-accumulate operations for one image.
        bias: Whether it has a bias of its own. On a device every layer with a folded BatchNorm has one.
        shares_weight_with: Name of the first layer that has the same weight, None if it is the first itself.
    """

    name: str
    op: OpKind
    weight_shape: tuple[int, ...]
    channel_axis: int
    groups: int
    input_tensor: str
    output_tensor: str
    batch_norm: str | None
    macs: int
    bias: bool = True
    shares_weight_with: str | None = None

    @property
    def weight_owner(self) -> str:
        """Name of the first layer that has this weight."""
        return self.shares_weight_with or self.name

    @property
    def parameters(self) -> int:
        """Number of weights."""
        count = 1
        for size in self.weight_shape:
            count *= size
        return count


@dataclass(frozen=True)
class NetworkDescription:
    """Layers and tensors of a traced network, in order of execution.

    Attributes:
        layers: Quantizable layers, several for one weight that is used several times. The first and the last are the
            boundary layers, and so are those that share a weight with one of them.
        tensors: All tensors, inputs first.
        space: Forms that the network is trained for.
    """

    layers: tuple[LayerInfo, ...]
    tensors: tuple[TensorInfo, ...]
    space: ElasticSpace = field(default_factory=ElasticSpace)

    @cached_property
    def layer(self) -> dict[str, LayerInfo]:
        """Layers by name."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def tensor(self) -> dict[str, TensorInfo]:
        """Tensors by name."""
        return {tensor.name: tensor for tensor in self.tensors}

    @cached_property
    def weight_owners(self) -> tuple[LayerInfo, ...]:
        """The layers without those that share the weight of an earlier one."""
        return tuple(layer for layer in self.layers if layer.shares_weight_with is None)

    @cached_property
    def uses(self) -> dict[str, tuple[str, ...]]:
        """For each owner of a weight the names of all layers that have it, itself first."""
        names: dict[str, tuple[str, ...]] = {}
        for layer in self.layers:
            names[layer.weight_owner] = (*names.get(layer.weight_owner, ()), layer.name)
        return names

    def with_owners_forms(self, weights: Mapping[str, Form]) -> tuple[tuple[str, Form], ...]:
        """Forms of all layers by name, in network order; layers that share a weight have its owner's."""
        return tuple((layer.name, weights[layer.weight_owner]) for layer in self.layers)

    def refuse_different_forms(self, weights: Mapping[str, Form], *, where: str) -> None:
        """Refuse two forms for one weight; layers that are missing are passed over.

        Args:
            weights: Forms by layer.
            where: Where they stand, for the message.

        Raises:
            ProfileError: If layers that share a weight have different forms; names two of them.
        """
        for layer in self.layers:
            own, owners = weights.get(layer.name), weights.get(layer.weight_owner)
            if own is not None and owners is not None and own != owners:
                raise ProfileError(
                    f"layer {layer.name!r} has {own.key}, {layer.weight_owner!r} has {owners.key}, "
                    "and they share one weight",
                    where=where,
                    hint="give both the same form",
                )

    @property
    def _ends(self) -> tuple[LayerInfo, ...]:
        """The first and the last layer."""
        return (self.layers[0], self.layers[-1]) if self.layers else ()

    @property
    def boundary_layers(self) -> tuple[str, ...]:
        """Names of the first and the last layer, and of those that share a weight with one of them."""
        return tuple(dict.fromkeys(name for layer in self._ends for name in self.uses[layer.weight_owner]))

    @property
    def boundary_tensors(self) -> tuple[str, ...]:
        """Names of the tensors that the first and the last layer read."""
        return tuple(dict.fromkeys(layer.input_tensor for layer in self._ends))
