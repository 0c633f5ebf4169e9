"""Torch's graph of a module as ONNX, at a cost in proportion to its operators that stays small.

``torch.onnx.export`` traces a captured program a second time, to decompose operators that ONNX does not know. For a
deep network that is most of the time. A program whose operators all have an ONNX form of their own, as convolutional
networks have, comes out of it as it went in, and skips it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch import fx, nn
from torch.export import ExportedProgram

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.freeze.markers import MARKER, translations
from eqdeploy.supernet.modes import evaluation_mode

OPSET = 21

#: Name of the symbolic batch axis.
BATCH = "batch"

_ATEN = torch.ops.aten
#: Operators that torch translates as they are: decomposing a program of these alone changes nothing but the spelling of
#: ``reshape``.
_TRANSLATED = frozenset(
    {
        MARKER,
        _ATEN.add.Tensor,
        _ATEN.cat.default,
        _ATEN.conv1d.default,
        _ATEN.conv2d.default,
        _ATEN.hardtanh.default,
        _ATEN.linear.default,
        _ATEN.max_pool2d.default,
        _ATEN.mean.dim,
        _ATEN.mul.Tensor,
        _ATEN.relu.default,
        _ATEN.sigmoid.default,
        _ATEN.view.default,
    }
)


def capture(module: nn.Module, example: tuple[Any, ...]) -> ir.Model:
    """Write a marked module as ONNX.

    Args:
        module: What to write; its graph is traced in evaluation mode.
        example: One batch for each argument; the first axis of each becomes symbolic.

    Returns:
        The model as torch writes it, markers included.

    Raises:
        UnsupportedOperationError: If torch cannot express an operation in ONNX.
    """
    batch = {0: torch.export.Dim(BATCH)}
    shapes = (batch,) * len(example)
    try:
        with _quiet(), evaluation_mode(module):
            whole = _program_to_translate(module, example, shapes)
            program = torch.onnx.export(
                module if whole is None else whole,
                () if whole is not None else example,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=shapes if whole is None else None,
                optimize=False,
                verbose=False,
                custom_translation_table=dict(translations()),
            )
    except Exception as error:
        reason = str(error.__cause__ or error).strip().splitlines()
        raise UnsupportedOperationError(
            f"torch cannot export this network to ONNX: {reason[0] if reason else type(error).__name__}"
        ) from error
    assert program is not None  # dynamo=True without a file always returns a program
    model: ir.Model = program.model
    if whole is not None:
        _name_batch(model.graph)
    return model


def _program_to_translate(
    module: nn.Module, example: tuple[Any, ...], shapes: tuple[dict[int, Any], ...]
) -> ExportedProgram | None:
    """The captured program if there is nothing to decompose in it; None for torch to do everything."""
    try:
        program = torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
    except Exception:  # torch's exporter knows other ways to capture, and what to say if none works
        return None
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target is _ATEN.reshape.default:
            node.target = _ATEN.view.default  # as the decomposition spells it
    if not all(_is_translated(node) for node in program.graph.nodes):
        return None
    program.run_decompositions = lambda decomp_table=None: program
    return program


def _is_translated(node: fx.Node) -> bool:
    """Whether a node is no operation, or one that needs no decomposition."""
    return node.op != "call_function" or node.target in _TRANSLATED


def _name_batch(graph: ir.Graph) -> None:
    """Name the symbolic axis, which a program has under a name of torch's."""
    symbols = {dimension.value for value in graph.inputs for dimension in _dimensions(value)[:1]}
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape(
                [
                    ir.SymbolicDim(BATCH) if isinstance(item, ir.SymbolicDim) and item.value in symbols else item
                    for item in value.shape
                ]
            )


def _dimensions(value: ir.Value) -> list[ir.SymbolicDim]:
    """Symbolic axes of a value."""
    return [] if value.shape is None else [item for item in value.shape if isinstance(item, ir.SymbolicDim)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about its own internals from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
