"""Small ONNX models that ask for much: they read what the shipped digits are, and give ten scores for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import FunctionProto, NodeProto, TensorProto, helper, numpy_helper

_OPSET = helper.make_opsetid("", 17)
_DOMAIN = "nested"


def asks_for_memory(path: Path, size: int) -> None:
    """Write a model that fills a tensor of so many bytes."""
    one = numpy_helper.from_array(np.ones(1, np.float32))
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["large"], value=one),
        helper.make_node("ReduceMax", ["large"], ["one"], keepdims=0),
        helper.make_node("Mul", ["scores", "one"], ["y"]),
    ]
    _save(path, nodes, {"size": np.array([size // 4], np.int64)})


def never_ends(path: Path) -> None:
    """Write a model with a loop that has no end."""
    value = helper.make_tensor_value_info
    go, go_on = value("go", TensorProto.BOOL, []), value("go_on", TensorProto.BOOL, [])
    before, after = value("before", TensorProto.FLOAT, None), value("after", TensorProto.FLOAT, None)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["before"], ["after"])],
        "body",
        [value("i", TensorProto.INT64, []), go, before],
        [go_on, after],
    )
    _save(path, [helper.make_node("Loop", ["", "true", "scores"], ["y"], body=body)], {"true": np.array(True)})


def nests_functions(path: Path, depth: int) -> None:
    """Write a model of functions that call the one below twice: 2^depth nodes."""
    functions: list[FunctionProto] = []
    for level in range(depth):
        kind, domain = ("Identity", "") if level == 0 else (f"f{level - 1}", _DOMAIN)
        nodes = [helper.make_node(kind, [x], [y], domain=domain) for x, y in (("a", "b"), ("b", "c"))]
        opsets = [_OPSET, helper.make_opsetid(_DOMAIN, 1)]
        functions.append(helper.make_function(_DOMAIN, f"f{level}", ["a"], ["c"], nodes, opsets))
    _save(path, [helper.make_node(f"f{depth - 1}", ["scores"], ["y"], domain=_DOMAIN)], {}, functions)


def _save(
    path: Path, nodes: list[NodeProto], constants: dict[str, NDArray[Any]], functions: list[FunctionProto] | None = None
) -> None:
    """Write a model that makes ``scores`` of the input first."""
    first = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Slice", ["flat", "start", "end", "axis"], ["scores"]),
    ]
    constants = {**constants, "start": np.array([0]), "end": np.array([10]), "axis": np.array([1])}
    graph = helper.make_graph(
        [*first, *nodes],
        "hostile",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [_OPSET, helper.make_opsetid(_DOMAIN, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=functions or [], ir_version=9), path)
