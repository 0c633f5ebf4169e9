"""Rewrite in-place operations of a traced graph as operations that return a new tensor."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx

from eqdeploy.supernet.operations import module_of
from eqdeploy.supernet.shapes import tensor_shape

#: Python's augmented assignments and what they are short for.
_AUGMENTED: Mapping[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.imatmul: operator.matmul,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
}


def make_out_of_place(graph_module: fx.GraphModule) -> None:
    """Make every operation return a new tensor, so that each tensor of the graph keeps its value.

    What reads a tensor after it was overwritten reads the new tensor. A tensor that was overwritten through
    another one (a view of it) is not noticed here.

    Args:
        graph_module: Traced graph with known shapes.
    """
    order = {node: index for index, node in enumerate(graph_module.graph.nodes)}
    for node in [node for node in order if _overwrites(graph_module, node)]:
        overwritten = node.args[0] if node.args else None
        _rewrite(graph_module, node)
        if isinstance(overwritten, fx.Node) and tensor_shape(overwritten) is not None:
            for user in list(overwritten.users):
                if order[user] > order[node]:
                    user.replace_input_with(overwritten, node)


def _overwrites(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an operation overwrites its first argument."""
    if node.op == "call_module":
        return bool(getattr(module_of(graph_module, node), "inplace", False))
    if node.op == "call_method":
        return _method_counterpart(str(node.target)) is not None
    if node.op == "call_function" and callable(node.target):
        return _function_counterpart(node.target) is not None or bool(_inplace_argument(node))
    return False


def _rewrite(graph_module: fx.GraphModule, node: fx.Node) -> None:
    """Replace an in-place operation by its counterpart."""
    if node.op == "call_module":
        graph_module.get_submodule(str(node.target)).inplace = False  # type: ignore[assignment]
    elif node.op == "call_method":
        node.target = _method_counterpart(str(node.target)) or node.target
    elif callable(node.target):
        node.target = _function_counterpart(node.target) or node.target
        position = _inplace_position(node.target)
        if position is not None and len(node.args) > position:
            node.update_arg(position, False)
        elif "inplace" in node.kwargs:
            node.update_kwarg("inplace", False)


def _method_counterpart(name: str) -> str | None:
    """``"relu"`` for ``"relu_"``; None for methods that overwrite nothing."""
    other = name.removesuffix("_")
    return other if other != name and not name.endswith("__") and callable(getattr(Tensor, other, None)) else None


def _function_counterpart(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """``torch.relu`` for ``torch.relu_``; None for functions that overwrite nothing by name."""
    if function in _AUGMENTED:
        return _AUGMENTED[function]
    name = getattr(function, "__name__", "")
    other = name.removesuffix("_")
    if other == name or name.endswith("__") or function not in (getattr(F, name, None), getattr(torch, name, None)):
        return None
    counterpart: Callable[..., Any] | None = getattr(F, other, None) or getattr(torch, other, None)
    return counterpart


def _inplace_argument(node: fx.Node) -> Any:
    """The value of a function's ``inplace`` argument."""
    assert callable(node.target)
    position = _inplace_position(node.target)
    if position is not None and len(node.args) > position:
        return node.args[position]
    return node.kwargs.get("inplace", False)


def _inplace_position(function: Callable[..., Any]) -> int | None:
    """Position of a function's ``inplace`` argument; None where it has none or tells no signature."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None
