"""The supernet: one set of weights that serves every form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from eqdeploy.errors import ProfileError, TrainingError, UnsupportedOperationError
from eqdeploy.network import BatchNormTraining, ElasticSpace, NetworkDescription, Residual, ScaleTraining
from eqdeploy.quant.elastic_quantizer import ElasticQuantizer
from eqdeploy.quant.form import Form
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.describe import describe
from eqdeploy.supernet.folded_norm import FoldedNorm
from eqdeploy.supernet.inputs import Inputs, call, map_inputs
from eqdeploy.supernet.layers import ElasticLayer, make_elastic
from eqdeploy.supernet.modes import evaluation_mode
from eqdeploy.supernet.residual import split_residual_reads
from eqdeploy.supernet.shared_layers import make_gains_positive
from eqdeploy.supernet.tracing import trace

#: Name under which the activation quantizers live among the model's own modules.
ACTIVATION_QUANTIZERS = "activation_quantizers"


class Supernet(nn.Module):
    """A traced model whose layers and tensors can be quantized in every form of a space.

    Made by :meth:`from_float`. Until :meth:`activate` is called, and after :meth:`deactivate`, it computes the
    float network.

    Attributes:
        network: Description of layers and tensors.
        graph_module: The traced model; module paths and parameter names are those of the original.
        example: A batch that it was tried on.
    """

    def __init__(self, graph_module: fx.GraphModule, network: NetworkDescription, example: Inputs) -> None:
        super().__init__()
        self.training = graph_module.training
        self.graph_module = graph_module
        self.network = network
        self.example = example

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input without the batch axis; () where there are several inputs."""
        return tuple(self.example.shape[1:]) if isinstance(self.example, Tensor) else ()

    @staticmethod
    def from_float(model: nn.Module, example_input: Inputs, space: ElasticSpace) -> Supernet:
        """Convert a float model.

        Args:
            model: Any module that torch.fx can trace; it is copied, not changed.
            example_input: One batch, shape (N, ...), N >= 2: a tensor, or a dictionary with a tensor for each
                argument of ``forward``. Where it holds integers, they must be ones that the model takes.
            space: Forms to train.

        Returns:
            A supernet that shares no tensor with the model. Its scales are not initialized yet: load a
            checkpoint or call :meth:`initialize`.

        Raises:
            UnsupportedOperationError: If the model cannot be traced or converted; the message names the
                operation and what to do.
        """
        graph_module = trace(model, example_input)
        if space.residual is Residual.FLOAT:
            split_residual_reads(graph_module)
        network = describe(graph_module, space)
        make_gains_positive(graph_module, network.layers)
        _make_layers_elastic(graph_module, network)
        _insert_activation_quantizers(graph_module, network)
        return Supernet(graph_module, network, map_inputs(_kept, example_input))

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """Compute the active subnet (float if none is active) on a batch, inputs and outputs as the model's."""
        return self.graph_module(*inputs, **named)

    def activate(self, config: SubnetConfig) -> None:
        """Switch to a subnet. Costs one assignment per layer and tensor, copies nothing.

        A supernet that is trained folded takes the grids of its biases from the scales as they are now.

        Raises:
            ProfileError: If the configuration names other layers or tensors than the network has, a form that the
                supernet was not trained for, or different forms for layers with one weight.
        """
        self.network.refuse_different_forms(dict(config.weights), where="subnet")
        weights = {layer.name: self.weight_quantizer(layer.name) for layer in self.network.layers}
        activations = self.activation_quantizers()
        switches = [
            *_switches(dict(config.weights), weights, "layer"),
            *_switches(dict(config.activations), activations, "tensor"),
        ]
        for quantizer, form in switches:
            quantizer.activate(form)
        self.update_accumulator_scales()

    def deactivate(self) -> None:
        """Switch to the float network."""
        for quantizer in self._quantizers():
            quantizer.activate(None)
        self.update_accumulator_scales()

    @torch.no_grad()
    def update_accumulator_scales(self) -> None:
        """Tell the folded norms behind quantized layers the grid s_x · s_w on which a device adds their bias."""
        if self.network.space.batch_norm is BatchNormTraining.SEPARATE:
            return
        activations = self.activation_quantizers()
        for layer in self.network.layers:
            norm = None if layer.batch_norm is None else self.graph_module.get_submodule(layer.batch_norm)
            if not isinstance(norm, FoldedNorm):
                continue
            weight, source = self.weight_quantizer(layer.name), activations[layer.input_tensor]
            if weight.active is None or source.active is None:
                norm.accumulator_scale = torch.zeros_like(norm.bias)
                continue
            scale = weight.numbers(weight.active)[0] * source.numbers(source.active)[0]
            # One scale may serve all channels, or one channel of every group of a transposed convolution.
            norm.accumulator_scale = scale.repeat(norm.num_features // scale.numel())

    def weight_quantizer(self, layer: str) -> ElasticQuantizer:
        """The quantizer of a layer's weight."""
        quantizer = self.graph_module.get_submodule(layer).weight_quantizer
        assert isinstance(quantizer, ElasticQuantizer)
        return quantizer

    def activation_quantizers(self) -> dict[str, ElasticQuantizer]:
        """The quantizers of all trained tensors, by tensor name, in network order."""
        quantizers = self.graph_module.get_submodule(ACTIVATION_QUANTIZERS)
        return {
            name: quantizer
            for name, quantizer in quantizers.named_children()
            if isinstance(quantizer, ElasticQuantizer)
        }

    def latent_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Float weights of the quantizable layers, each once, with their owners' names, in network order."""
        for layer in self.network.weight_owners:
            weight = self.graph_module.get_submodule(layer.name).weight
            assert isinstance(weight, nn.Parameter)
            yield layer.name, weight

    @torch.no_grad()
    def initialize(self, images: Inputs) -> None:
        """Give every form of every quantizer the numbers with the smallest error.

        Weights are taken as they are, activations from the float network in evaluation mode.

        Args:
            images: Preprocessed calibration images, shape (N, ...); 256 are plenty.

        Raises:
            TrainingError: If a weight or an activation is not finite.
        """
        for name, weight in self.latent_weights():
            if not bool(torch.isfinite(weight).all()):
                raise TrainingError("the weight is not finite", where=name)
            self.weight_quantizer(name).initialize(weight)
        self.deactivate()
        handles = [
            quantizer.register_forward_pre_hook(_Initialization(name))
            for name, quantizer in self.activation_quantizers().items()
        ]
        try:
            with evaluation_mode(self):
                call(self, images)
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def canonicalize(self) -> None:
        """Keep the BatchNorm gains behind quantized layers from going negative; call after optimizer steps.

        A negative gain would flip the sign of a folded channel, and a full symmetric range has no opposite for
        its lowest value.
        """
        for layer in self.network.layers:
            if layer.batch_norm is not None:
                gain = self.graph_module.get_submodule(layer.batch_norm).weight
                if isinstance(gain, nn.Parameter):
                    gain.clamp_(min=0.0)

    def _quantizers(self) -> Iterator[ElasticQuantizer]:
        """All quantizers."""
        for layer in self.network.layers:
            yield self.weight_quantizer(layer.name)
        yield from self.activation_quantizers().values()


def _kept(tensor: Tensor) -> Tensor:
    """Two samples of an example: their integers matter, of other values only the shape."""
    return torch.zeros_like(tensor[:2]) if tensor.is_floating_point() else tensor[:2].clone()


def _switches(
    forms: Mapping[str, Form], quantizers: Mapping[str, ElasticQuantizer], noun: str
) -> list[tuple[ElasticQuantizer, Form]]:
    """Pair each quantizer with its form; nothing is switched yet, so that an error leaves the old subnet whole."""
    for name in (*forms, *quantizers):
        if (name in forms) != (name in quantizers):
            problem = "has no form" if name in quantizers else "does not exist in this network"
            raise ProfileError(f"{noun} {name!r} {problem}", where="subnet")
        if forms[name].key not in quantizers[name].log2_scale:
            raise ProfileError(f"{noun} {name!r} was not trained for {forms[name].key}", where="subnet")
    return [(quantizers[name], form) for name, form in forms.items()]


class _Initialization:
    """A hook that initializes a quantizer from the tensor that reaches it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, ElasticQuantizer)
        # NaN and infinity reach the extremes: one pass, a tenth of the whole initialization cheaper.
        if not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(inputs[0])):
            raise TrainingError("the activation is not finite", where=self.name)
        module.initialize(inputs[0])


def _make_layers_elastic(graph_module: fx.GraphModule, network: NetworkDescription) -> None:
    """Replace every layer by its elastic counterpart; those with one weight get one quantizer for it."""
    made: dict[nn.Module, ElasticLayer] = {}
    quantizers: dict[str, ElasticQuantizer] = {}
    for layer in network.layers:
        module = graph_module.get_submodule(layer.name)
        if module not in made:
            made[module] = make_elastic(
                module,
                network.space.weight_forms(),
                power_of_two=network.space.scales is ScaleTraining.POWER_OF_TWO,
            )
        elastic = made[module]
        elastic.weight_quantizer = quantizers.setdefault(layer.weight_owner, elastic.weight_quantizer)
        parent, _, name = layer.name.rpartition(".")
        setattr(graph_module.get_submodule(parent), name, elastic)


def _insert_activation_quantizers(graph_module: fx.GraphModule, network: NetworkDescription) -> None:
    """Put one quantizer behind every tensor that a layer reads; all readers read the quantized tensor."""
    if hasattr(graph_module, ACTIVATION_QUANTIZERS):
        raise UnsupportedOperationError(
            "the model already has an attribute of this name", where=ACTIVATION_QUANTIZERS, hint="rename it"
        )
    quantizers = nn.Module()
    graph_module.add_module(ACTIVATION_QUANTIZERS, quantizers)
    nodes = {node.name: node for node in graph_module.graph.nodes}
    for tensor in network.tensors:
        if not tensor.trained:
            continue
        quantizers.add_module(
            tensor.name,
            ElasticQuantizer(
                network.space.activation_forms(non_negative=tensor.non_negative),
                power_of_two=network.space.scales is ScaleTraining.POWER_OF_TWO,
            ),
        )
        node = nodes[tensor.name]
        with graph_module.graph.inserting_after(node):
            quantized = graph_module.graph.call_module(f"{ACTIVATION_QUANTIZERS}.{tensor.name}", (node,))
        node.replace_all_uses_with(quantized, delete_user_cb=lambda user, keep=quantized: user is not keep)
    graph_module.graph.lint()
    graph_module.recompile()
