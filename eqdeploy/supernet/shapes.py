"""Shapes and dtypes of the tensors of a traced graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.supernet.inputs import Inputs, map_inputs, positional, shapes_of
from eqdeploy.supernet.modes import evaluation_mode

_SHAPE = "eqdeploy_shape"
_DTYPE = "eqdeploy_dtype"
_HOLDS_TENSOR = "eqdeploy_holds_tensor"
_BATCH_LEADS = "eqdeploy_batch_leads"


class _Recorder(fx.Interpreter):
    """Runs a graph and knows which node it is at."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.current: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.current = n
        return super().run_node(n)


class _ShapeRecorder(_Recorder):
    """Notes the shape and the dtype of every tensor on its node."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        is_tensor = isinstance(result, Tensor)
        n.meta[_SHAPE] = tuple(result.shape) if is_tensor else None
        n.meta[_DTYPE] = result.dtype if is_tensor else None
        n.meta[_HOLDS_TENSOR] = bool(tensors_in(result))
        return result


class _BatchRecorder(_Recorder):
    """Notes of every tensor whether only its first axis depends on the batch, given shapes for another batch."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta[_BATCH_LEADS] = isinstance(result, Tensor) and tuple(result.shape[1:]) == (tensor_shape(n) or ())[1:]
        return result


def propagate_shapes(graph_module: fx.GraphModule, example_input: Inputs) -> None:
    """Run the example through the graph once, in evaluation mode, and note every shape and dtype.

    Raises:
        UnsupportedOperationError: If an operation fails on the example.
    """
    _run(_ShapeRecorder(graph_module), graph_module, example_input)


def run_another_batch(graph_module: fx.GraphModule, images: Inputs) -> list[Tensor]:
    """Run a batch of another size in evaluation mode, note where the batch axis is, and return all outputs.

    Args:
        graph_module: Graph whose shapes are known, :func:`propagate_shapes`.
        images: Batch of another size than that of the shapes.

    Raises:
        UnsupportedOperationError: If an operation fails on the batch.
    """
    return tensors_in(_run(_BatchRecorder(graph_module), graph_module, images))


def _run(recorder: _Recorder, graph_module: fx.GraphModule, example_input: Inputs) -> Any:
    """Run a graph without gradients in evaluation mode."""
    try:
        with torch.no_grad(), evaluation_mode(graph_module):
            return recorder.run(*positional(graph_module.graph, map_inputs(Tensor.clone, example_input)))
    except Exception as error:  # the operations are the user's: they may raise anything
        where = None if recorder.current is None else recorder.current.name
        raise UnsupportedOperationError(
            f"fails on an input of shape {shapes_of(example_input)}: {str(error).strip().splitlines()[0]}",
            where=where,
        ) from error


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    found: list[Tensor] = []
    fx.node.map_aggregate(value, lambda item: found.append(item) if isinstance(item, Tensor) else None)
    return found


def holds_tensor(node: fx.Node) -> bool:
    """Whether a node's value is a tensor or a collection with one; a size is not."""
    return bool(node.meta.get(_HOLDS_TENSOR, True))


def batch_leads(node: fx.Node) -> bool:
    """Whether only the first axis of a node's tensor depends on the batch."""
    return bool(node.meta.get(_BATCH_LEADS, True))


def tensor_shape(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of a node's tensor, batch axis included; None when the node is no tensor."""
    shape: tuple[int, ...] | None = node.meta.get(_SHAPE)
    return shape


def tensor_dtype(node: fx.Node) -> torch.dtype | None:
    """Dtype of a node's tensor; None when the node is no tensor."""
    dtype: torch.dtype | None = node.meta.get(_DTYPE)
    return dtype
