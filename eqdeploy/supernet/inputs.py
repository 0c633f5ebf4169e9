"""What a network is called with: one tensor, or several by the names of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

#: One batch: a tensor (N, …), or a tensor for each argument of ``forward``.
Inputs = Tensor | dict[str, Tensor]


def to_inputs(values: NDArray[Any]) -> Inputs:
    """Tensors of an array (N, …), or of the fields of records (N,); plain arrays share their memory."""
    if values.dtype.names is None:
        return torch.from_numpy(values)
    return {name: torch.from_numpy(np.ascontiguousarray(values[name])) for name in values.dtype.names}


def to_arrays(inputs: Inputs) -> NDArray[Any]:
    """The array, or the records, that :func:`to_inputs` makes such tensors of."""
    if isinstance(inputs, Tensor):
        return inputs.detach().cpu().numpy()
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in inputs.items()}
    records = np.empty(batch_size(inputs), [(name, array.dtype, array.shape[1:]) for name, array in arrays.items()])
    for name, array in arrays.items():
        records[name] = array
    return records


def map_inputs(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Apply a function to every tensor."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    return {name: function(tensor) for name, tensor in inputs.items()}


def parts(inputs: Inputs) -> list[Tensor]:
    """All tensors."""
    return [inputs] if isinstance(inputs, Tensor) else list(inputs.values())


def batch_size(inputs: Inputs) -> int:
    """Number of samples."""
    return len(parts(inputs)[0])


def concatenate(batches: list[Inputs]) -> Inputs:
    """Several batches as one."""
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat([batch for batch in batches if isinstance(batch, Tensor)])
    return {name: torch.cat([batch[name] for batch in batches if not isinstance(batch, Tensor)]) for name in first}


def split_evenly(inputs: Inputs, count: int) -> list[Inputs]:
    """``count`` batches of nearly equal size."""
    if isinstance(inputs, Tensor):
        return list(inputs.tensor_split(count))
    columns = {name: tensor.tensor_split(count) for name, tensor in inputs.items()}
    return [{name: column[index] for name, column in columns.items()} for index in range(count)]


def call(model: Callable[..., Any], inputs: Inputs) -> Any:
    """Call a model with a batch."""
    return model(inputs) if isinstance(inputs, Tensor) else model(**inputs)


def positional(graph: fx.Graph, inputs: Inputs) -> tuple[Tensor, ...]:
    """A batch in the order of a graph's placeholders, as an interpreter takes it."""
    if isinstance(inputs, Tensor):
        return (inputs,)
    return tuple(inputs[str(node.target)] for node in graph.nodes if node.op == "placeholder")


def probe(example: Inputs, count: int) -> Inputs:
    """Random inputs of which a network can make something: normal numbers, or values that the example has.

    Args:
        example: One batch.
        count: Number of samples.
    """
    tensors = parts(example)
    generator = torch.Generator(device=tensors[0].device).manual_seed(0)

    def draw(tensor: Tensor) -> Tensor:
        shape = (count, *tensor.shape[1:])
        if tensor.is_floating_point():
            return torch.randn(shape, generator=generator, device=tensor.device)
        known = tensor.flatten()
        rows = torch.randint(len(known), shape, generator=generator, device=tensor.device)
        return known[rows]

    return map_inputs(draw, example)


def shapes_of(inputs: Inputs) -> str:
    """The shapes of a batch, for messages."""
    if isinstance(inputs, Tensor):
        return str(tuple(inputs.shape))
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())


def in_order(inputs: Inputs | Mapping[str, Tensor], names: tuple[str, ...]) -> Inputs:
    """A batch with its tensors in another order."""
    return inputs if isinstance(inputs, Tensor) else {name: inputs[name] for name in names}
