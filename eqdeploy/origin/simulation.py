"""The subnet in torch and float64, every operation fed with the codes that a device would read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from eqdeploy.origin.layers import LayerTarget, convert_to_double
from eqdeploy.quantized_model import QuantizedTensor
from eqdeploy.supernet.copies import copy_sharing_weights
from eqdeploy.supernet.inputs import positional, to_inputs
from eqdeploy.supernet.operations import vanishes
from eqdeploy.supernet.supernet import ACTIVATION_QUANTIZERS, Supernet


class Simulation:
    """Computes each tensor of a subnet from given codes of the encoded tensors before it.

    The graph is the supernet's own: torch's modules, BatchNorm with its calibrated statistics, weights as the
    supernet's quantizers give them. In float64, so that what differs from the device is what freezing rounded.

    Args:
        supernet: Is copied. BatchNorm calibrated.
        targets: Its layers, from :func:`eqdeploy.origin.layers.layer_targets`.
        activations: Which tensors are encoded, and who reads them in float.
    """

    def __init__(
        self, supernet: Supernet, targets: Mapping[str, LayerTarget], activations: Mapping[str, QuantizedTensor]
    ) -> None:
        copied = copy_sharing_weights(supernet).eval()
        copied.deactivate()
        for name, module in list(copied.graph_module.named_modules()):
            if name in targets:
                module.weight = nn.Parameter(torch.from_numpy(targets[name].trained), requires_grad=False)
        self._graph_module = convert_to_double(copied.graph_module)
        self._names = frozenset(tensor.name for tensor in supernet.network.tensors)
        self._activations = activations

    @torch.no_grad()
    def run(
        self, images: NDArray[Any], codes: Mapping[str, NDArray[Any]]
    ) -> tuple[dict[str, NDArray[Any]], tuple[NDArray[Any], ...]]:
        """Compute a batch of images.

        Args:
            images: Shape (N, …) of the network's input, or (N,) records with a field for each input.
            codes: Of every encoded tensor, the codes that its readers see.

        Returns:
            The real value of every tensor of the network, before its own quantizer, by name; and the outputs in order.
        """
        read = {
            name: torch.from_numpy(
                (codes[name].astype(np.int64) - int(tensor.encoding.zero_point)) * float(tensor.encoding.scale)
            ).contiguous()
            for name, tensor in self._activations.items()
        }
        graph_module = self._graph_module
        assert isinstance(graph_module, fx.GraphModule)
        interpreter = _Interpreter(graph_module, self._activations, read)
        result = interpreter.run(*positional(graph_module.graph, to_inputs(images)))
        values = {
            node.name: _in_double(value)
            for node, value in interpreter.env.items()
            if node.name in self._names and isinstance(value, Tensor)
        }
        outputs = tuple(map(_in_double, _tensors(result)))
        return values, outputs


class _Interpreter(fx.Interpreter):
    """Runs a supernet's graph; who reads an encoded tensor gets its codes, unless the device has it read the value."""

    def __init__(
        self, graph_module: fx.GraphModule, activations: Mapping[str, QuantizedTensor], read: Mapping[str, Tensor]
    ) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self._activations = activations
        self._given = read

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[Any, Any]:
        """Arguments as the reader ``n`` sees them."""

        def look_up(source: fx.Node) -> Any:
            return self._read(n, source)

        return fx.node.map_arg(n.args, look_up), fx.node.map_arg(n.kwargs, look_up)

    def _read(self, reader: fx.Node, source: fx.Node) -> Any:
        while self._passes_through(source):
            source = source.all_input_nodes[0]
        tensor = self._activations.get(source.name)
        if tensor is not None and reader.name not in tensor.float_readers:
            return self._given[source.name]
        value = self.env[source]
        if isinstance(value, Tensor):
            value = value.contiguous()  # what was passed through may have been there to make it so
        # The graph may make float32 constants of its own, or convert to float32.
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    def _passes_through(self, node: fx.Node) -> bool:
        if node.op == "call_module" and str(node.target).startswith(f"{ACTIVATION_QUANTIZERS}."):
            return True
        module = self.module
        assert isinstance(module, fx.GraphModule)
        return node.op not in ("placeholder", "get_attr", "output") and vanishes(module, node)


def _in_double(value: Tensor) -> NDArray[Any]:
    """Values for a comparison: what was looked up in a table is float32 still."""
    array: NDArray[Any] = (value.double() if value.is_floating_point() else value).numpy()
    return array


def _tensors(value: object) -> list[Tensor]:
    """All tensors of a nested result, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in _tensors(item)]
    return []
