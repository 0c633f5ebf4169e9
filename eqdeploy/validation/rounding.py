"""How far rounding itself moves the codes of a network: what nobody can tell a runtime's arithmetic from.

Every tensor of a quantized network is rounded, by up to half a step, and the layers behind it carry on what that
changes, with whatever gain and correlation they have. The same layers carry on a runtime's differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.validation.reference.integer import IntegerReference

#: By how many bits the grids are made finer: what is rounded then is a thousandth of a step.
_FINER_BITS = 10


class RoundingNoise:
    """Compares a network with itself on grids that are a thousand times finer, over the same ranges.

    Args:
        model: The network.
    """

    def __init__(self, model: QuantizedModel) -> None:
        self._encodings = {name: tensor.encoding for name, tensor in model.activations.items()}
        self._finer = IntegerReference(finer(model))

    def squares(self, images: NDArray[Any], codes: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """Sum of the squared distances of all codes of a tensor from where they lie without rounding.

        Args:
            images: Shape (N, …) of the network's input, or (N,) records with a field for each input.
            codes: What the network computes for them, by tensor name.

        Returns:
            In squared steps of the tensor's scale, by tensor name.
        """
        found = self._finer.run(images).codes
        distances = {
            name: found[name].astype(np.float64) / (1 << _FINER_BITS) - codes[name] for name in self._encodings
        }
        return {name: float(np.square(distance).sum()) for name, distance in distances.items()}


def finer(model: QuantizedModel) -> QuantizedModel:
    """The same network, its tensors on finer grids over the same ranges; weights and biases stay as they are."""
    return replace(
        model,
        activations={
            name: replace(tensor, encoding=_finer(tensor.encoding)) for name, tensor in model.activations.items()
        },
    )


def _finer(encoding: Encoding) -> Encoding:
    """The same range in smaller steps."""
    factor = 1 << _FINER_BITS
    return replace(
        encoding,
        scale=(encoding.scale / np.float32(factor)).astype(np.float32),
        zero_point=(encoding.zero_point * np.int32(factor)).astype(np.int32),
        q_min=encoding.q_min * factor,
        q_max=encoding.q_max * factor,
        bits=encoding.bits + _FINER_BITS,
    )
