"""The supernet's forward and backward pass, compiled once for all subnets.

A form is no part of the graph: scale, zero-point and range enter as tensors, and a scale that all channels share is
repeated for each of them. So one graph serves every subnet, and quantizers fuse with their neighbours.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch

from eqdeploy.errors import TrainingError
from eqdeploy.quant.fake_quantize import Operands
from eqdeploy.supernet.inputs import Inputs, batch_size, call, map_inputs
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.objective import map_outputs


def compiler_available() -> bool:
    """Whether torch can compile for the processor: it needs a C++ compiler."""
    return any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)


class CompiledSupernet:
    """Runs the active subnet, or the float network, as one compiled graph.

    The first call in each mode (quantized or float; training or not) and with each batch size compiles for half a
    minute; switching subnets afterwards compiles nothing. Outside of training, fewer images than before are filled up
    to as many: the last batch of a data set compiles nothing either.

    Args:
        supernet: Is used, not copied: activate subnets there.
    """

    def __init__(self, supernet: Supernet) -> None:
        self._supernet = supernet
        self._run = torch.compile(supernet.graph_module, dynamic=False)
        self._evaluation_batch = 0

    def __call__(self, images: Inputs) -> Any:
        """Compute outputs, as ``supernet(images)`` does up to the rounding of sums.

        Raises:
            TrainingError: If the compiler fails.
        """
        count = batch_size(images)
        if not self._supernet.training:
            self._evaluation_batch = max(self._evaluation_batch, count)
            missing = self._evaluation_batch - count
            if missing:
                images = map_inputs(lambda part: torch.cat([part, part[:1].expand(missing, *part.shape[1:])]), images)
        self._bind(count if self._supernet.training else self._evaluation_batch)
        try:
            return map_outputs(lambda result: result[:count], call(self._run, images))
        except RuntimeError as error:
            # Imported late: it takes a second where nothing is compiled.
            from torch._dynamo.exc import TorchDynamoException

            if not isinstance(error, TorchDynamoException):
                raise
            reason = next((line for line in str(error).splitlines() if line), type(error).__name__)
            raise TrainingError(
                f"the network cannot be compiled: {reason}", where="execution.compile", hint="set it to false"
            ) from error
        finally:
            self._release()

    def _bind(self, batch_size: int) -> None:
        """Evaluate the numbers of the active forms, with the gradient's path to their parameters."""
        for name, weight in self._supernet.latent_weights():
            quantizer = self._supernet.weight_quantizer(name)
            if quantizer.active is not None:
                quantizer.bound = _for_graph(quantizer.operands(quantizer.active, shape=weight.shape, by_channel=True))
        tensors = self._supernet.network.tensor
        for name, quantizer in self._supernet.activation_quantizers().items():
            if quantizer.active is not None:
                shape = (batch_size, *tensors[name].shape)
                quantizer.bound = _for_graph(quantizer.operands(quantizer.active, shape=shape))

    def _release(self) -> None:
        """Forget the numbers: they belong to the parameters as they were."""
        for name, _ in self._supernet.latent_weights():
            self._supernet.weight_quantizer(name).bound = None
        for quantizer in self._supernet.activation_quantizers().values():
            quantizer.bound = None


def _for_graph(operands: Operands) -> Operands:
    """Make all numbers tensors, and ask for the gradient of every zero-point: whether it is wanted is in the graph."""
    operands = operands.as_tensors()
    if torch.is_grad_enabled() and not operands.zero_point.requires_grad:
        operands.zero_point.requires_grad_()
    return operands
