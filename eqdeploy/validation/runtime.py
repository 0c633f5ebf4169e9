"""ONNX Runtime sessions in which every quantized tensor can be seen.

The integers of each encoded tensor are made outputs of a copy of the model. That must not change what the runtime
fuses, so the optimized graphs with and without these outputs are compared, and tensors whose exposure disturbs the
fusion are observed in a session of their own.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from eqdeploy.errors import RuntimeRefusedError
from eqdeploy.validation.qdq_file import ActivationChain, QdqFile


class Level(StrEnum):
    """ONNX Runtime's levels of graph optimization, from none to all."""

    DISABLED = "disabled"
    BASIC = "basic"
    EXTENDED = "extended"
    ALL = "all"


#: Everything that ONNX Runtime raises; it has no common base class of its own.
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    state.EPFail,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoModel,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
    RuntimeError,
    ValueError,
)

_OPTIMIZATION = {
    Level.DISABLED: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    Level.BASIC: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    Level.EXTENDED: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    Level.ALL: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

#: Severity above which ONNX Runtime logs: fatal errors only, as errors are raised anyway.
_FATAL = 4

#: Operators that only change the layout in memory, and the names under which others run in another layout.
_LAYOUT = frozenset({"Transpose", "ReorderInput", "ReorderOutput"})
_RENAMED = {"NhwcMaxPool": "MaxPool"}

#: Suffix that layout changes give to node names.
_SUFFIX = re.compile(r"(_token_\d+|_nchwc|_nhwc)+$")


@dataclass(frozen=True)
class RuntimeNode:
    """One node of a graph as the runtime optimized it.

    Attributes:
        name: Node name without the suffixes that the runtime adds.
        op_type: Operator.
        domain: Domain of the operator, empty for standard ONNX.
        inputs: Value names.
        outputs: Value names.
    """

    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class OptimizedGraph:
    """What the runtime made of a model.

    Attributes:
        nodes: Nodes in order.
        integer_constants: Initializers of an 8-bit type.
    """

    nodes: tuple[RuntimeNode, ...]
    integer_constants: frozenset[str]

    def operators(self) -> Counter[str]:
        """How often each operator occurs, layout changes left out."""
        return Counter(_RENAMED.get(node.op_type, node.op_type) for node in self.nodes if node.op_type not in _LAYOUT)


class Session:
    """One ONNX Runtime session on the CPU: one thread unless told otherwise, deterministic, silent.

    Args:
        model: The model, or the file that holds it.
        level: Level of graph optimization.
        where: File name for error messages.
        threads: Threads inside an operator.
        optimized: File to write the optimized graph to.

    Raises:
        RuntimeRefusedError: If ONNX Runtime does not load the model.
    """

    def __init__(
        self, model: onnx.ModelProto | Path, level: Level, *, where: str, threads: int = 1, optimized: Path | None = None
    ) -> None:
        self._where = f"{where}: ONNX Runtime {onnxruntime.__version__}, level {level}"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = _OPTIMIZATION[level]
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        options.log_severity_level = _FATAL
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        self._session = self._guarded(
            lambda: onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        )
        self.input_name: str = self._session.get_inputs()[0].name
        self.output_names: tuple[str, ...] = tuple(output.name for output in self._session.get_outputs())

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Outputs by name for a batch of images.

        Raises:
            RuntimeRefusedError: If ONNX Runtime does not run the model on them.
        """
        results: list[NDArray[Any]] = self._guarded(lambda: self._session.run(None, {self.input_name: images}))
        return dict(zip(self.output_names, results, strict=True))

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """Turn whatever the runtime raises into one error on one line."""
        try:
            return call()
        except RUNTIME_ERRORS as error:
            message = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
            raise RuntimeRefusedError(message.strip(), where=self._where) from error


def optimized_graph(model: onnx.ModelProto | Path, level: Level, *, where: str) -> OptimizedGraph:
    """Let the runtime optimize a model and read what came out.

    Raises:
        RuntimeRefusedError: If ONNX Runtime does not load the model.
    """
    with tempfile.TemporaryDirectory(prefix="eqdeploy-") as folder:
        path = Path(folder) / "optimized.onnx"
        Session(model, level, where=where, optimized=path)
        graph = onnx.load(path, load_external_data=False).graph
    nodes = tuple(
        RuntimeNode(_SUFFIX.sub("", node.name), node.op_type, node.domain, tuple(node.input), tuple(node.output))
        for node in graph.node
    )
    small = (TensorProto.INT8, TensorProto.UINT8)
    return OptimizedGraph(nodes, frozenset(item.name for item in graph.initializer if item.data_type in small))


@dataclass(frozen=True, eq=False)
class Observation:
    """What one level computed for a batch of images.

    Attributes:
        codes: Integers by tensor name, from a session that fuses exactly like the model itself.
        disturbed: Integers of the tensors whose exposure changes the fusion, and of all others, from a session
            in which everything is exposed; empty if there are no such tensors.
        outputs: The network's outputs from the model itself.
    """

    codes: dict[str, NDArray[Any]]
    disturbed: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]


class ObservedModel:
    """A QDQ model at one level of optimization, with its integers exposed.

    Args:
        file: The model.
        chains: Quantization nodes by tensor name.
        level: Level of optimization.
        threads: Threads inside an operator.

    Raises:
        RuntimeRefusedError: If ONNX Runtime does not load the model.

    Attributes:
        graph: The optimized graph of the model itself.
        separate: Tensors whose exposure would change what is fused.
    """

    def __init__(self, file: QdqFile, chains: Mapping[str, ActivationChain], level: Level, *, threads: int = 1) -> None:
        self._file, self._chains, self._level = file, chains, level
        self._where = str(file.path)
        self.graph = optimized_graph(file.path, level, where=self._where)
        self._plain = Session(file.path, level, where=self._where, threads=threads)
        self.separate = () if level is Level.DISABLED else self._find_disturbing()
        exposed = [name for name in chains if name not in self.separate]
        self._main = Session(self._expose(exposed), level, where=self._where, threads=threads)
        self._full = (
            Session(self._expose(list(chains)), level, where=self._where, threads=threads) if self.separate else None
        )

    def run(self, images: NDArray[np.float32]) -> Observation:
        """Run a batch of images.

        Raises:
            RuntimeRefusedError: If ONNX Runtime does not run the model on them.
        """
        return Observation(
            codes=self._codes(self._main.run(images)),
            disturbed={} if self._full is None else self._codes(self._full.run(images)),
            outputs=self._plain.run(images),
        )

    def _codes(self, results: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {name: results[chain.codes] for name, chain in self._chains.items() if chain.codes in results}

    def _expose(self, names: Sequence[str]) -> onnx.ModelProto:
        """A copy of the model that also returns the integers of some tensors."""
        model = onnx.ModelProto()
        model.CopyFrom(self._file.proto)
        for name in names:
            chain = self._chains[name]
            kind = helper.np_dtype_to_tensor_dtype(chain.container or np.dtype(np.uint8))
            model.graph.output.append(helper.make_tensor_value_info(chain.codes, kind, None))
        return model

    def _fuses_alike(self, names: Sequence[str]) -> bool:
        """Whether the runtime fuses the same operators while these tensors are exposed."""
        exposed = optimized_graph(self._expose(names), self._level, where=self._where)
        return exposed.operators() == self.graph.operators()

    def _find_disturbing(self) -> tuple[str, ...]:
        """Tensors whose exposure changes the fusion, found by halving."""
        names = list(self._chains)
        if self._fuses_alike(names):
            return ()
        # The runtime stores an int8 tensor with a single reader as uint8, unless somebody looks at it.
        suspects = [name for name in names if _may_be_stored_otherwise(self._chains[name])]
        rest = [name for name in names if name not in suspects]
        if suspects and self._fuses_alike(rest):
            return tuple(suspects)
        found = set(self._bisect(names, []))
        return tuple(name for name in names if name in found)

    def _bisect(self, candidates: list[str], kept: list[str]) -> list[str]:
        """Those candidates that disturb the fusion when they are exposed besides ``kept``."""
        if not candidates or self._fuses_alike([*kept, *candidates]):
            return []
        if len(candidates) == 1:
            return candidates
        half = len(candidates) // 2
        first = self._bisect(candidates[:half], kept)
        harmless = [name for name in candidates[:half] if name not in first]
        return first + self._bisect(candidates[half:], [*kept, *harmless])


def _may_be_stored_otherwise(chain: ActivationChain) -> bool:
    return chain.container == np.int8 and len(chain.dequantize) == 1
