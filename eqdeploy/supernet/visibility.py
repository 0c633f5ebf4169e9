"""What softmax sees of the tensors before it: masks reach to −∞, the result does not.

An entry that lies d below the largest one of its row gets at most e⁻ᵈ of the largest probability. Where a tensor is
read by softmax alone, perhaps behind a sum with a mask, a choice by ``where`` or a change of shape, there is a floor
under it: what lies below counts as hidden, however deep it lies.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from eqdeploy.network import OpKind
from eqdeploy.supernet.operations import classify, module_of, vanishes
from eqdeploy.supernet.shapes import tensor_shape
from eqdeploy.supernet.supernet import ACTIVATION_QUANTIZERS

#: How deep encodings reach below the largest entry of a row: e⁻¹⁶ ≈ 1.1e-7, three orders below a step of 8 bits.
ENCODED_DEPTH = 16.0

#: How deep entries are told apart when tensors are compared: e⁻¹² ≈ 6e-6, below half a step of 16 bits. Less than the
#: encodings' depth, as the largest entries of other images lie elsewhere.
COMPARED_DEPTH = 12.0

_ADDITIONS = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})
#: Choices between values, with the positions of these among the arguments.
_CHOICES: Mapping[Any, tuple[int, ...]] = {
    torch.where: (1, 2),
    "where": (0, 2),
    torch.masked_fill: (0,),
    "masked_fill": (0,),
}
_MOVES = frozenset({OpKind.RESHAPE, OpKind.TRANSPOSE, OpKind.REQUANTIZE})
_MOVING_TARGETS = frozenset({"contiguous", "expand", "expand_as", "repeat", "select", operator.getitem})

#: From the values of tensors to the floor under one of them, a tensor that broadcasts with it.
_Floor = Callable[[Mapping[fx.Node, Tensor]], Tensor]


class SoftmaxViews:
    """Where softmax alone reads the tensors of a graph, and what its floors depend on.

    Args:
        graph_module: A traced graph with known shapes, with or without quantizers.
        depth: How far below the largest entry of a row the floor lies.
    """

    def __init__(self, graph_module: fx.GraphModule, depth: float) -> None:
        self._graph_module, self._depth = graph_module, depth
        self._needed: dict[fx.Node, frozenset[fx.Node]] = {}
        self._floors: dict[fx.Node, _Floor] = {}
        for node in reversed(graph_module.graph.nodes):
            self._visit(node)
        self._by_name = {node.name: node for node in self._floors}

    @property
    def names(self) -> frozenset[str]:
        """Tensors that softmax alone reads."""
        return frozenset(self._by_name)

    def needed(self, names: Collection[str]) -> frozenset[fx.Node]:
        """Nodes whose values the floors under some tensors are computed from."""
        nodes = (self._by_name[name] for name in names if name in self._by_name)
        return frozenset().union(*(self._needed[node] for node in nodes))

    def floor(self, name: str, values: Mapping[fx.Node, Tensor]) -> Tensor | None:
        """The floor under a tensor for one batch.

        Args:
            name: Name of the tensor.
            values: What the nodes of :meth:`needed` computed for the batch.

        Returns:
            A float32 tensor that broadcasts with the tensor; None if others than softmax read it. It holds −∞ where
            everything of a row is hidden.
        """
        node = self._by_name.get(name)
        return None if node is None else self._floors[node](values)

    def _visit(self, node: fx.Node) -> None:
        """Find what is known of a node whose readers are known already."""
        if node.op == "output" or not node.users or (tensor_shape(node) is None and not _is_quantizer(node)):
            return
        through = [self._through(node, reader) for reader in node.users]
        found = [entry for entry in through if entry is not None]
        if len(found) != len(through):
            return
        self._needed[node] = frozenset().union(*(needed for needed, _ in found))
        floors = [floor for _, floor in found]
        self._floors[node] = floors[0] if len(floors) == 1 else _lowest(floors)

    def _through(self, node: fx.Node, reader: fx.Node) -> tuple[frozenset[fx.Node], _Floor] | None:
        """The floor under a node that one reader brings; None if the reader sees everything."""
        if reader.op == "output" or list(reader.all_input_nodes).count(node) != 1:
            return None
        if _is_quantizer(reader):
            known = self._floors.get(reader)
            return None if known is None else (self._needed[reader], known)
        operation = classify(self._graph_module, reader)
        if operation.kind is OpKind.SOFTMAX:
            return self._softmax(node, reader)
        if reader.target in _ADDITIONS:
            return self._addition(node, reader)
        positions = _CHOICES.get(reader.target) if reader.op != "call_module" else None
        if positions is not None:
            chosen = [reader.args[position] for position in positions if position < len(reader.args)]
            return self._same(node, reader) if chosen.count(node) == 1 and reader.args.count(node) == 1 else None
        if operation.kind in _MOVES or reader.target in _MOVING_TARGETS or vanishes(self._graph_module, reader):
            return self._same(node, reader) if reader.args and reader.args[0] is node else None
        return None

    def _same(self, node: fx.Node, reader: fx.Node) -> tuple[frozenset[fx.Node], _Floor] | None:
        """The floor under the reader's result, one number if entries move."""
        floor = self._floors.get(reader)
        if floor is None:
            return None
        moved = tensor_shape(node) != tensor_shape(reader) or classify(self._graph_module, reader).kind in _MOVES
        return self._needed[reader], _single(floor) if moved else floor

    def _softmax(self, node: fx.Node, reader: fx.Node) -> tuple[frozenset[fx.Node], _Floor] | None:
        """A softmax over one axis."""
        axis, depth = _softmax_axis(self._graph_module, reader), self._depth
        if axis is None:
            return None
        return frozenset({node}), lambda values: values[node].float().amax(axis, keepdim=True) - depth

    def _addition(self, node: fx.Node, reader: fx.Node) -> tuple[frozenset[fx.Node], _Floor] | None:
        """A sum: what lies below its floor even with the largest value of the other summand is hidden."""
        floor = self._floors.get(reader)
        others = [argument for argument in reader.args if argument is not node]
        if floor is None or reader.kwargs or len(reader.args) != 2 or len(others) != 1:
            return None
        other = others[0]
        if isinstance(other, int | float):
            return self._needed[reader], lambda values: floor(values).amin() - other
        if not isinstance(other, fx.Node):
            return None
        summand: fx.Node = other
        return self._needed[reader] | {summand}, lambda values: floor(values).amin() - values[summand].float().amax()


def raised(values: Tensor, floor: Tensor | None) -> Tensor:
    """Values with everything below a floor raised to it; NaN stays NaN."""
    return values if floor is None else torch.maximum(values.float(), floor)


def _is_quantizer(node: fx.Node) -> bool:
    """Whether a node only quantizes its input."""
    return node.op == "call_module" and str(node.target).startswith(f"{ACTIVATION_QUANTIZERS}.")


def _single(floor: _Floor) -> _Floor:
    """The lowest floor of all entries."""
    return lambda values: floor(values).amin()


def _lowest(floors: list[_Floor]) -> _Floor:
    """The floor under what several readers read."""

    def lowest(values: Mapping[fx.Node, Tensor]) -> Tensor:
        result = floors[0](values)
        for floor in floors[1:]:
            result = torch.minimum(result, floor(values))
        return result

    return lowest


def _softmax_axis(graph_module: fx.GraphModule, node: fx.Node) -> int | None:
    """The axis of a softmax, None if it is not a constant."""
    module = module_of(graph_module, node)
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if isinstance(module, nn.Softmax):
        axis = module.dim
    return axis if isinstance(axis, int) else None
