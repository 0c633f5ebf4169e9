"""Turn BatchNorm that a model applies as a function back into modules."""

from __future__ import annotations

import inspect
from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from eqdeploy.supernet.shapes import tensor_shape

_PARTS = ("running_mean", "running_var", "weight", "bias")
_MODULES: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
}


def use_batch_norm_modules(graph_module: fx.GraphModule) -> None:
    """Replace ``F.batch_norm`` with the statistics of one module by a BatchNorm in that module's place.

    Subclasses of BatchNorm that add an activation apply it so. As a function it would keep its statistics for ever:
    neither training nor calibration would change them, and it could not be folded.

    Args:
        graph_module: Traced graph with known shapes.
    """
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function" or node.target is not F.batch_norm:
            continue
        bound = inspect.signature(F.batch_norm).bind(*node.args, **node.kwargs)
        bound.apply_defaults()
        owner = _owner(graph_module, node, bound.arguments)
        kind = _MODULES.get(len(tensor_shape(bound.arguments["input"]) or ()))
        if owner is None or kind is None or bound.arguments["training"] is not False:
            continue
        graph_module.set_submodule(owner, _module(kind, graph_module.get_submodule(owner), bound.arguments))
        with graph_module.graph.inserting_before(node):
            normalized = graph_module.graph.call_module(owner, (bound.arguments["input"],))
        normalized.meta = dict(node.meta)
        node.replace_all_uses_with(normalized)
        graph_module.graph.erase_node(node)


def _owner(graph_module: fx.GraphModule, node: fx.Node, arguments: dict[str, Any]) -> str | None:
    """Path of the module whose statistics and parameters, and nothing else, a call reads; None if there is none."""
    paths = set()
    for name in _PARTS:
        part = arguments[name]
        if part is None and name in ("weight", "bias"):
            continue
        if not isinstance(part, fx.Node) or part.op != "get_attr":
            return None
        path, _, attribute = str(part.target).rpartition(".")
        if attribute != name or set(part.users) != {node}:
            return None
        paths.add(path)
    path = paths.pop()
    readers = [other for other in graph_module.graph.nodes if other.op in ("get_attr", "call_module")]
    used = sum(str(other.target) == path or str(other.target).startswith(f"{path}.") for other in readers)
    given = sum(arguments[name] is not None for name in _PARTS)
    return path if path and not paths and used == given else None


def _module(kind: type[nn.BatchNorm1d | nn.BatchNorm2d], owner: nn.Module, arguments: dict[str, Any]) -> nn.Module:
    """A BatchNorm that shares the tensors of the module that owned them."""
    mean = owner.running_mean
    assert isinstance(mean, Tensor)
    norm = kind(mean.numel(), eps=arguments["eps"], momentum=arguments["momentum"] or 0.1, device="meta")
    for name in ("weight", "bias"):
        norm._parameters[name] = owner._parameters.get(name) if arguments[name] is not None else None
    for name in ("running_mean", "running_var"):
        norm._buffers[name] = owner._buffers[name]
    norm._buffers["num_batches_tracked"] = mean.new_zeros((), dtype=norm._buffers["num_batches_tracked"].dtype)  # type: ignore[union-attr]
    return norm
