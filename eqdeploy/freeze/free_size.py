"""A graph whose height and width are free, where the network allows it."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.freeze.agreement import check_agreement, folded_values
from eqdeploy.freeze.float_graph import FloatGraph
from eqdeploy.supernet.inputs import probe
from eqdeploy.supernet.modes import evaluation_mode
from eqdeploy.supernet.shapes import tensors_in
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.supernet.tracing import trace

#: Names of the free axes in the file.
HEIGHT, WIDTH = "height", "width"

#: Largest difference from the model at another size, relative to the largest output.
_TOLERANCE = 1e-3

_WHERE = "--dynamic-size"
_HINT = "only networks of convolutions and pools to one value have a free height and width: export with a fixed size"


def free_size(supernet: Supernet, graph: FloatGraph, model: nn.Module) -> FloatGraph:
    """Free height and width of the input of a graph, and prove that it computes the network at twice the size.

    Args:
        supernet: The network.
        graph: Its structure at the size of its input.
        model: The float model that it was made of, with whatever weights: it knows what it does at another size.

    Raises:
        UnsupportedOperationError: If the network has no image as its only input, or computes something else at another
            size than its graph; names the first tensor that does.
    """
    example = supernet.example
    if not isinstance(example, Tensor) or example.ndim != 4:
        raise UnsupportedOperationError("the network does not read one batch of images", where=_WHERE)
    larger = probe(torch.zeros((1, example.shape[1], 2 * example.shape[2], 2 * example.shape[3])), 3)
    assert isinstance(larger, Tensor)
    _require_same_function(model, example, larger)
    proto = graph.filled({})
    del proto.graph.value_info[:]
    constants = {initializer.name for initializer in proto.graph.initializer}
    read = next(value for value in proto.graph.input if value.name not in constants)
    for axis, name in ((2, HEIGHT), (3, WIDTH)):
        read.type.tensor_type.shape.dim[axis].dim_param = name
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
        freed = FloatGraph(ir.serde.deserialize_model(inferred))
        with freed.holding(folded_values(supernet)) as filled:
            check_agreement(supernet, filled, larger)
    except UnsupportedOperationError as error:
        raise UnsupportedOperationError(
            f"the graph is of one size only: {error.message}", where=error.where, hint=_HINT
        ) from error
    except Exception as error:  # whatever ONNX and its runtime raise about sizes that do not fit
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise UnsupportedOperationError(f"the graph is of one size only: {reason}", where=_WHERE, hint=_HINT) from error
    return freed


@torch.no_grad()
def _require_same_function(model: nn.Module, example: Tensor, larger: Tensor) -> None:
    """Refuse a model whose traced graph computes something else than the model at another size."""
    traced = trace(model, example)
    try:
        with evaluation_mode(model), evaluation_mode(traced):
            wanted, found = tensors_in(model(larger)), tensors_in(traced(larger))
    except Exception as error:  # the user's forward may raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        problem = f"the network fails at {larger.shape[2]}x{larger.shape[3]} pixels: {reason}"
        raise UnsupportedOperationError(problem, where=_WHERE, hint=_HINT) from error
    if len(wanted) != len(found) or not all(map(_equal_but_for_rounding, wanted, found)):
        raise UnsupportedOperationError(
            "the network's pools or branches depend on the size of its input", where=_WHERE, hint=_HINT
        )


def _equal_but_for_rounding(wanted: Tensor, found: Tensor) -> bool:
    """Whether two outputs are the same numbers in another order of additions."""
    if wanted.shape != found.shape:
        return False
    return torch.allclose(wanted, found, rtol=0.0, atol=_TOLERANCE * float(wanted.abs().max()))
