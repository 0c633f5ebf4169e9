"""Trace a float model and bring its graph into the few forms that the rest of eqdeploy knows."""

from __future__ import annotations

import copy
import inspect

import torch
from torch import Tensor, fx, nn

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.supernet.arguments import NAMED_HINT, check_arguments, failure_hint
from eqdeploy.supernet.attention import write_out_attention
from eqdeploy.supernet.canonical import (
    merge_bounds,
    pass_inputs_by_position,
    remove_no_ops,
    rename_clashing,
    replace_adaptive_pools,
    split_gated_activations,
    split_padding,
    split_spatial_means,
    use_dropout_modules,
    use_float_bounds,
)
from eqdeploy.supernet.functional_layers import use_layer_modules
from eqdeploy.supernet.functional_norm import use_batch_norm_modules
from eqdeploy.supernet.given_model import (
    refuse_batch_statistics,
    refuse_mixed_samples,
    refuse_nan_constants,
    refuse_opaque_modules,
)
from eqdeploy.supernet.in_place import make_out_of_place
from eqdeploy.supernet.inputs import Inputs, batch_size, call, map_inputs, probe, shapes_of
from eqdeploy.supernet.modes import evaluation_mode
from eqdeploy.supernet.operations import ELASTIC_MODULES
from eqdeploy.supernet.scaled_dot_product import write_out_scaled_dot_products
from eqdeploy.supernet.shapes import propagate_shapes, run_another_batch, tensors_in
from eqdeploy.supernet.shared_layers import separate_uses
from eqdeploy.supernet.tracers import ConstantShapeTracer, PathTracer
from eqdeploy.zoo.wrappers import unwrapped

#: Largest difference between the model and its canonical graph, relative to the largest output.
_TOLERANCE = 1e-3


def trace(model: nn.Module, example_input: Inputs) -> fx.GraphModule:
    """Trace a model into a graph of out-of-place, canonical operations with known shapes.

    The model is traced as it behaves in evaluation mode; functional dropout still follows the mode. SiLU and
    Hardswish become a gate and a multiplication, a mean over height and width keeps its axes, adaptive average
    pools become ordinary ones, in-place operations are replaced, torch's attention is written out, functional layers
    with parameters of the model become modules. Optional arguments take their defaults. The result is compared with
    the model on random values.

    Args:
        model: Any module that torch.fx can trace, wrapped by ``nn.DataParallel`` or ``torch.compile`` or not; it is
            copied, not changed. Parameters become float32.
        example_input: One batch, shape (N, ...), N >= 2; several inputs by the names of the arguments of ``forward``,
            in their order. Floating-point values do not matter, integers must be valid ones.

    Returns:
        A graph module with copies of the model's modules and a shape for every tensor,
        :func:`eqdeploy.supernet.shapes.tensor_shape`.

    Raises:
        UnsupportedOperationError: If the model cannot be traced, fails on the example, takes other inputs, computes
            something else than its graph, or mixes the samples of a batch.
    """
    model = unwrapped(model)
    refuse_opaque_modules(model)
    refuse_batch_statistics(model)
    _refuse_computed_weights(model)
    check_arguments(model, example_input)
    try:
        model = copy.deepcopy(model).float()
    except Exception as error:  # copying runs code of the user's modules
        raise UnsupportedOperationError(
            f"the model cannot be copied: {_first_line(error)}", where=type(model).__name__
        ) from error
    modes = {name: module.training for name, module in model.named_modules()}
    model.eval()
    another = probe(example_input, batch_size(example_input) + 1)  # one sample more: a fixed batch size shows
    expected = _run(model, another)
    refuse_mixed_samples(model, another, expected)
    model = write_out_attention(model)
    graph_module = _symbolic_trace(model, example_input)
    propagate_shapes(graph_module, example_input)
    _canonicalize(graph_module)
    refuse_nan_constants(graph_module)
    propagate_shapes(graph_module, example_input)
    _compare(expected, run_another_batch(graph_module, another), type(model).__name__)
    for name, module in graph_module.named_modules():
        module.training = modes.get(name, modes[""])
    return graph_module


def _symbolic_trace(model: nn.Module, example_input: Inputs) -> fx.GraphModule:
    """Run torch's tracer; optional arguments that are no inputs take their defaults.

    A model that torch's tracer gives up on, because it branches on shapes, is traced with sizes as numbers. Not every
    model is: computations on sizes are nodes, and the names of tensors, which checkpoints hold, count them.
    """
    parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
    given = 1 if isinstance(example_input, Tensor) else len(example_input)
    defaults = {
        parameter.name: parameter.default
        for parameter in parameters[given:]
        if parameter.default is None or type(parameter.default) in (bool, int, float, str)
    }
    tracers: tuple[PathTracer, ...] = (PathTracer(), ConstantShapeTracer(example_input))
    for tracer in tracers:
        try:
            graph = tracer.trace(model, concrete_args=defaults or None)
            break
        except Exception as error:  # tracing runs the user's forward
            failed, reason = tracer, error
    else:
        raise UnsupportedOperationError(
            f"torch.fx cannot trace this model: {_first_line(reason)}",
            where=failed.path[-1] if failed.path else type(model).__name__,
            hint="make the decision when the model is built, express it by torch.where, "
            "or wrap that part in a module without quantizable layers",
        ) from reason
    for extra in [node for node in graph.nodes if node.op == "placeholder"][given:]:
        _remove_optional_input(graph, extra)
    return fx.GraphModule(model, graph, class_name=type(model).__name__)


def _remove_optional_input(graph: fx.Graph, node: fx.Node) -> None:
    """Remove an input that is unused or has a default.

    Raises:
        UnsupportedOperationError: If the model needs the input.
    """
    users = list(node.users)
    for user in users:  # the tracer's own check that the argument has its default
        for check in list(user.users):
            if check.target is torch._assert:
                graph.erase_node(check)
        if not user.users:
            graph.erase_node(user)
    if node.users:
        if not node.args:
            raise UnsupportedOperationError("the model needs this input", where=node.name, hint=NAMED_HINT)
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    graph.erase_node(node)


def _canonicalize(graph_module: fx.GraphModule) -> None:
    """Bring a traced graph with known shapes into canonical form."""
    graph = graph_module.graph
    pass_inputs_by_position(graph)
    make_out_of_place(graph_module)
    remove_no_ops(graph_module)
    use_dropout_modules(graph_module)
    use_batch_norm_modules(graph_module)
    use_layer_modules(graph_module)
    merge_bounds(graph_module)
    use_float_bounds(graph_module)
    split_padding(graph_module)
    split_spatial_means(graph)
    replace_adaptive_pools(graph_module)
    split_gated_activations(graph_module)
    write_out_scaled_dot_products(graph_module)
    graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    separate_uses(graph_module)
    rename_clashing(graph_module)
    graph.lint()
    graph_module.recompile()


def _refuse_computed_weights(model: nn.Module) -> None:
    """Refuse quantizable layers whose weight or output is computed by something outside the layer.

    Raises:
        UnsupportedOperationError: If a layer has hooks, parametrizations or lazy parameters.
    """
    for name, module in model.named_modules():
        if any(nn.parameter.is_lazy(parameter) for parameter in module.parameters(recurse=False)):
            raise UnsupportedOperationError(
                "a lazy layer has no weights yet", where=name, hint="run the model once before converting it"
            )
        if not any(isinstance(module, kind) for kind in ELASTIC_MODULES):
            continue
        if module._parameters.get("weight") is None:
            raise UnsupportedOperationError(
                "the weight is computed from other parameters",
                where=name,
                hint="call remove_parametrizations, remove_weight_norm or prune.remove first",
            )
        if module._forward_hooks or module._forward_pre_hooks:
            raise UnsupportedOperationError(
                "the layer has forward hooks, which are not traced", where=name, hint="remove them"
            )


@torch.no_grad()
def _run(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All tensors that a model returns for a batch, in evaluation mode.

    Raises:
        UnsupportedOperationError: If the model fails on the input.
    """
    try:
        with evaluation_mode(model):
            returned = call(model, map_inputs(Tensor.clone, inputs))
    except Exception as error:  # the user's forward may raise anything
        raise UnsupportedOperationError(
            f"the model fails on an input of shape {shapes_of(inputs)}: {_first_line(error)}",
            where=type(model).__name__,
            hint=failure_hint(model, inputs),
        ) from error
    return tensors_in(returned)


def _compare(expected: list[Tensor], found: list[Tensor], where: str) -> None:
    """Refuse a graph that does not compute what the model computes.

    Raises:
        UnsupportedOperationError: If the outputs differ by more than rounding.
    """
    if len(expected) == len(found) and all(map(_equal_but_for_rounding, expected, found)):
        return
    raise UnsupportedOperationError(
        "the traced graph computes something else than the model",
        where=where,
        hint="common causes: overwriting a view of a tensor, hooks on the model, randomness in evaluation mode",
    )


def _equal_but_for_rounding(first: Tensor, second: Tensor) -> bool:
    """Whether two outputs are equal but for rounding."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    largest = float(first.nan_to_num().abs().max()) if first.numel() and first.is_floating_point() else 0.0
    return torch.allclose(second, first, rtol=0.0, atol=_TOLERANCE * largest, equal_nan=True)


def _first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
