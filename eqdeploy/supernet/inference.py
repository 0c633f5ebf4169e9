"""A supernet prepared for evaluating many subnets: nothing is computed again that does not depend on the images.

Compared with the supernet itself, which computes the same numbers bit for bit:

* the fake-quantized weight of a layer and form is computed once and kept;
* scales and zero-points are plain numbers, and zero-points that are zero are left out;
* fake quantization overwrites what nobody else reads, and takes in the ReLU before it: clamping at code 0 is that ReLU.

Its module can be compiled: the scales are then tensors, so that one graph serves all subnets; sums are then rounded in
another order.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn

from eqdeploy.network import NetworkDescription, OpKind
from eqdeploy.quant.affine import dequantize, quantize, quantize_dequantize
from eqdeploy.quant.form import Form
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.copies import copy_sharing_weights
from eqdeploy.supernet.inputs import Inputs, call
from eqdeploy.supernet.layers import ElasticLayer
from eqdeploy.supernet.operations import BATCH_NORM_MODULES
from eqdeploy.supernet.shared_layers import float_parameters
from eqdeploy.supernet.supernet import ACTIVATION_QUANTIZERS, Supernet

#: Memory for quantized weights. What does not fit is quantized whenever it is needed.
WEIGHT_CACHE_BYTES = 2 << 30

#: Name under which the fixed quantizers live among the modules.
_FIXED_QUANTIZERS = "fixed_activation_quantizers"

#: Modules and functions that always return a tensor that is new.
_FRESH_MODULES = (*BATCH_NORM_MODULES, *get_args(ElasticLayer))
_FRESH_FUNCTIONS: tuple[Callable[..., Any], ...] = (operator.add, torch.add)


@dataclass(frozen=True)
class _Numbers:
    """Scale, zero-point and range of a form as plain numbers."""

    scale: float
    zero_point: float
    q_min: int
    q_max: int


class _FixedQuantizer(nn.Module):
    """Fake-quantizes a tensor with numbers that are set from outside; without them it computes the float network.

    Args:
        rectify: Whether the ReLU before it was taken in; its ranges then begin at code 0.
        overwrite: Whether its input may be overwritten.
    """

    def __init__(self, *, rectify: bool, overwrite: bool) -> None:
        super().__init__()
        self.rectify = rectify
        self.overwrite = overwrite
        self.numbers: _Numbers | None = None
        self.operands: Tensor
        self.register_buffer("operands", torch.zeros(4), persistent=False)

    def set(self, numbers: _Numbers | None) -> None:
        """Choose the numbers; None for the float network."""
        self.numbers = numbers
        if numbers is not None:
            self.operands.copy_(torch.tensor(astuple(numbers)))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as ``x``, float32."""
        numbers = self.numbers
        if numbers is None:
            return torch.relu(x) if self.rectify else x
        if torch.compiler.is_compiling():
            scale, zero_point, q_min, q_max = self.operands.unbind()
            return dequantize(quantize(x, scale, zero_point, q_min, q_max), scale, zero_point)
        return quantize_dequantize(x, *astuple(numbers), out=x if self.overwrite else None)


class InferenceNetwork:
    """Computes subnets of a supernet, one after another, in evaluation mode and without gradients.

    Args:
        supernet: Is copied. Its weights and scales must not change afterwards.
        cache_bytes: Memory for quantized weights.

    Attributes:
        module: The network: images (N, …) to logits. :func:`~eqdeploy.calibration.batch_norm.calibrate_batch_norm`
            takes it, too.
    """

    def __init__(self, supernet: Supernet, *, cache_bytes: int = WEIGHT_CACHE_BYTES) -> None:
        latent = dict(supernet.latent_weights())
        self._supernet = copy_sharing_weights(supernet, but=latent.values()).eval()
        _separate_float_readers(self._supernet)
        self._latent = {name: weight.detach() for name, weight in latent.items()}
        self._weights: dict[tuple[str, Form], Tensor] = {}
        self._numbers: dict[tuple[str, Form], _Numbers] = {}
        self._room = cache_bytes
        self._fixed = _fix_quantizers(self._supernet)
        self.module = self._supernet.graph_module

    @property
    def network(self) -> NetworkDescription:
        """Layers and tensors."""
        return self._supernet.network

    @torch.no_grad()
    def activate(self, subnet: SubnetConfig | None) -> None:
        """Switch to a subnet, or with None to the float network. BatchNorm statistics stay as they are.

        Raises:
            ProfileError: If the subnet does not fit the network.
        """
        supernet = self._supernet
        if subnet is None:
            supernet.deactivate()
        else:
            supernet.activate(subnet)
        for name, weight in supernet.latent_weights():
            quantizer = supernet.weight_quantizer(name)
            weight.copy_(self._latent[name] if quantizer.active is None else self._weight(name, quantizer.active))
            quantizer.active = None  # the weight is quantized already
        for name, quantizer in supernet.activation_quantizers().items():
            self._fixed[name].set(None if quantizer.active is None else self._number(name, quantizer.active))

    def evaluate(self, images: Inputs) -> Any:
        """Outputs of the active subnet, logits as a rule, for a batch of shape (N, …)."""
        with torch.inference_mode():
            return call(self.module, images)

    def _weight(self, name: str, form: Form) -> Tensor:
        """The fake-quantized weight of a layer."""
        found = self._weights.get((name, form))
        if found is None:
            latent = self._latent[name]
            numbers = self._supernet.weight_quantizer(name).operands(form, shape=latent.shape)
            codes = quantize(latent, numbers.scale, numbers.zero_point, numbers.q_min, numbers.q_max)
            found = dequantize(codes, numbers.scale, numbers.zero_point)
            size = found.numel() * found.element_size()
            if size <= self._room:
                self._room -= size
                self._weights[name, form] = found
        return found

    def _number(self, name: str, form: Form) -> _Numbers:
        """Scale and zero-point of a tensor's form."""
        found = self._numbers.get((name, form))
        if found is None:
            scale, zero_point = self._supernet.activation_quantizers()[name].numbers(form)
            found = _Numbers(float(scale), float(zero_point), form.q_min, form.q_max)
            self._numbers[name, form] = found
        return found


def _separate_float_readers(supernet: Supernet) -> None:
    """Give layers weights of their own where a module that stays float, such as an embedding, has the same ones."""
    graph_module, network = supernet.graph_module, supernet.network
    floats = float_parameters(graph_module, network.layer.keys())
    for name, weight in list(supernet.latent_weights()):
        if id(weight) in floats:
            own = nn.Parameter(weight.detach().clone(), requires_grad=False)
            for use in network.uses[name]:
                graph_module.get_submodule(use).weight = own


def _fix_quantizers(supernet: Supernet) -> dict[str, _FixedQuantizer]:
    """Put fixed quantizers in the place of the elastic ones, which remain as owners of the numbers."""
    graph_module, tensors = supernet.graph_module, supernet.network.tensor
    holder = nn.Module()
    fixed: dict[str, _FixedQuantizer] = {}
    for node in list(graph_module.graph.nodes):
        prefix, _, name = str(node.target).rpartition(".")
        if node.op != "call_module" or prefix != ACTIVATION_QUANTIZERS:
            continue
        source = node.args[0]
        rectify = tensors[name].op is OpKind.RELU and _only_read_by(source, node)
        if rectify:
            before = source.args[0] if source.args else source.kwargs["input"]
            node.update_arg(0, before)
            graph_module.graph.erase_node(source)
            source = before
        overwrite = _only_read_by(source, node) and _is_fresh(graph_module, source)
        fixed[name] = _FixedQuantizer(rectify=rectify, overwrite=overwrite)
        holder.add_module(name, fixed[name])
        node.target = f"{_FIXED_QUANTIZERS}.{name}"
    graph_module.add_module(_FIXED_QUANTIZERS, holder)
    graph_module.graph.lint()
    graph_module.recompile()
    return fixed


def _only_read_by(node: fx.Node, reader: fx.Node) -> bool:
    """Whether nobody else reads a value."""
    return list(node.users) == [reader]


def _is_fresh(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a value is surely a tensor of its own, no view of another one and no input."""
    if node.op == "call_module":
        return isinstance(graph_module.get_submodule(str(node.target)), _FRESH_MODULES)
    return node.op == "call_function" and node.target in _FRESH_FUNCTIONS
