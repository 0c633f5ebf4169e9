"""The frozen network: one float ONNX graph and a table of integers. No torch beyond this point.

Exporters turn it into files, the integer reference runs it, validation compares the two.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from eqdeploy.plan import Coverage
from eqdeploy.quant.encoding import Encoding


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """One activation with an encoding.

    Attributes:
        name: Name of the ONNX value in :attr:`QuantizedModel.graph`.
        encoding: Its grid.
        float_readers: Operations that read the unquantized value; compare with :func:`operation_of`.
    """

    name: str
    encoding: Encoding
    float_readers: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class QuantizedParameter:
    """One weight or bias stored as integers.

    Attributes:
        name: Name of the initializer in :attr:`QuantizedModel.graph`.
        codes: int32 codes, the shape of the initializer. Real values are ``encoding.dequantize(codes)``.
        encoding: Its grid. A bias has 32 bits, zero-point 0 and scale ``s_x * s_w``.
    """

    name: str
    codes: NDArray[np.int32]
    encoding: Encoding


@dataclass(frozen=True)
class FoldedLayer:
    """What freezing did to one layer, for the report.

    Attributes:
        layer: Layer name.
        method: ``into_scale``, ``requantize`` (also where a scale had to become a power of two) or ``none``.
        exact: Whether the integers on the device are those that were trained.
        relative_error: Norm of (device weight − subnet's folded weight) over the norm of the latter.
        negated_channels: Channels with a negative BatchNorm gain.
        dead_channels: Channels with gain zero or an all-zero weight: constant output.
        widened_channels: Channels whose weight scale was raised so that the bias fits in int32.
    """

    layer: str
    method: str
    exact: bool
    relative_error: float
    negated_channels: int = 0
    dead_channels: int = 0
    widened_channels: int = 0


class Constants(dict[str, NDArray[Any]]):
    """Arrays by name; unlike a plain dictionary, it can be referred to weakly."""


#: Where a model keeps the reference to its constants.
_HELD = "_constants"


@dataclass(frozen=True, eq=False)
class QuantizedModel:
    """A network with every number that a device needs.

    Attributes:
        graph: Float ONNX model, opset 21 or lower, BatchNorm folded, one input. Weights and integer biases
            hold dequantized integers. Each node that computes tensor ``t`` is named ``t`` or ``t/<k>``.
        activations: Encoded activations by value name.
        parameters: Integer weights and biases by initializer name.
        coverage: For every tensor of the network, whether it is quantized or why not.
        reasons: For every tensor of the network, the reason in words.
        folded: What freezing did to each layer.
        notes: Remarks that belong in the report (unexcited layers, raised scales).
    """

    graph: onnx.ModelProto
    activations: dict[str, QuantizedTensor]
    parameters: dict[str, QuantizedParameter]
    coverage: dict[str, Coverage]
    reasons: dict[str, str]
    folded: tuple[FoldedLayer, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def constants(self) -> Constants:
        """Initializers of the graph that are no parameters, by name.

        Reading them copies them, so all who use them at a time share what is read; nobody, and they are forgotten.
        """
        held: weakref.ref[Constants] | None = self.__dict__.get(_HELD)
        found = None if held is None else held()
        if found is None:
            found = Constants(
                (initializer.name, numpy_helper.to_array(initializer))
                for initializer in self.graph.graph.initializer
                if initializer.name not in self.parameters
            )
            self.__dict__[_HELD] = weakref.ref(found)
        return found


def operation_of(node_name: str) -> str:
    """Name of the tensor that an ONNX node of :attr:`QuantizedModel.graph` helps to compute.

    >>> operation_of("layer1_add/0")
    'layer1_add'
    """
    return node_name.split("/", 1)[0]


def constant_name(node_name: str, position: int) -> str:
    """Name of a constant of :attr:`QuantizedModel.graph` that is no parameter, by the node that reads it first.

    >>> constant_name("relu6", 2)
    'relu6/input2'
    """
    return f"{node_name}/input{position}"
