"""ONNX Runtime sessions in which every quantized tensor can be seen.

The integers of each encoded tensor are made outputs of a copy of the model. That must not change what the runtime
fuses, so the optimized graphs with and without these outputs are compared. Where it does, because the runtime stores
some int8 tensors as uint8 unless somebody looks at them, the graph that the runtime has fused is taken instead.
"""

from __future__ import annotations

import re
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
from eqdeploy.files import temporary_folder
from eqdeploy.validation.qdq_file import QUANTIZE, ActivationChain, QdqFile


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

#: Option that names the folder of tensors beside a model that is loaded from memory.
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"

#: Operators without arithmetic of their own, and the names under which others run in another memory layout.
NEUTRAL = frozenset({"Transpose", "ReorderInput", "ReorderOutput", "QuantizeLinear", "DequantizeLinear"})
_RENAMED = {"NhwcMaxPool": "MaxPool"}

#: Start of the names of tensors that the runtime stores as uint8 although the file says int8.
_STORED_UNSIGNED = "qdq_s8_to_u8_quant"

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
        proto: The whole model; tensors that lay in other files are named, not held.
    """

    nodes: tuple[RuntimeNode, ...]
    integer_constants: frozenset[str]
    proto: onnx.ModelProto

    def arithmetic(self) -> Counter[str]:
        """How often each operator occurs that computes new numbers: no layout changes, no Q, no DQ."""
        return Counter(_RENAMED.get(node.op_type, node.op_type) for node in self.nodes if node.op_type not in NEUTRAL)


class Session:
    """One ONNX Runtime session on the CPU: one thread unless told otherwise, deterministic, silent.

    Args:
        model: The model, or the file that holds it.
        level: Level of graph optimization.
        where: File name for error messages.
        threads: Threads inside an operator.
        optimized: File to write the optimized graph to.
        folder: Where the tensors lie that a model in memory names but does not hold.

    Raises:
        RuntimeRefusedError: If ONNX Runtime does not load the model.
    """

    def __init__(
        self,
        model: onnx.ModelProto | Path,
        level: Level,
        *,
        where: str,
        threads: int = 1,
        optimized: Path | None = None,
        folder: Path | None = None,
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
        if folder is not None:
            options.add_session_config_entry(_EXTERNAL_FOLDER, str(folder.absolute()))
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        self._session = self._guarded(
            lambda: onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        )
        self.input_names: tuple[str, ...] = tuple(read.name for read in self._session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(output.name for output in self._session.get_outputs())

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Outputs by name for a batch of images; of several inputs, for records with a field for each.

        Raises:
            RuntimeRefusedError: If ONNX Runtime does not run the model on them.
        """
        results: list[NDArray[Any]] = self._guarded(lambda: self._session.run(None, feeds_of(self.input_names, images)))
        return dict(zip(self.output_names, results, strict=True))

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """Turn whatever the runtime raises into one error on one line."""
        try:
            return call()
        except RUNTIME_ERRORS as error:
            message = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
            raise RuntimeRefusedError(message.strip(), where=self._where) from error


def loads_ir_version(ir_version: int) -> bool:
    """Whether the installed ONNX Runtime loads files of an IR version, asked with a network that does nothing."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "empty", [value], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=ir_version)
    try:
        Session(model, Level.DISABLED, where="")
    except RuntimeRefusedError:
        return False
    return True


def feeds_of(names: Sequence[str], images: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """What each input of a model gets of a batch.

    Args:
        names: Inputs of the model.
        images: (N, …), or (N,) records with a field for each input, in their order.

    Raises:
        ValueError: If there are more or fewer of them.
    """
    fields = images.dtype.names
    columns = [images] if fields is None else [np.ascontiguousarray(images[field]) for field in fields]
    return dict(zip(names, columns, strict=True))


def optimize(
    model: onnx.ModelProto | Path, level: Level, *, where: str, threads: int = 1, folder: Path | None = None
) -> tuple[Session, OptimizedGraph]:
    """Load a model and read what the runtime made of it.

    Args:
        model: The model, or the file that holds it.
        level: Level of graph optimization.
        where: File name for error messages.
        threads: Threads inside an operator.
        folder: Where the tensors lie that a model in memory names but does not hold.

    Raises:
        RuntimeRefusedError: If ONNX Runtime does not load the model.
    """
    with temporary_folder() as temporary:
        path = Path(temporary) / "optimized.onnx"
        session = Session(model, level, where=where, threads=threads, optimized=path, folder=folder)
        # Tensors in other files stay where they are: only names and types are looked at.
        proto = onnx.load(path, load_external_data=False)
    nodes = tuple(
        RuntimeNode(_SUFFIX.sub("", node.name), node.op_type, node.domain, tuple(node.input), tuple(node.output))
        for node in proto.graph.node
    )
    small = (TensorProto.INT8, TensorProto.UINT8)
    integers = frozenset(item.name for item in proto.graph.initializer if item.data_type in small)
    return session, OptimizedGraph(nodes, integers, proto)


class Exposure(StrEnum):
    """How the integers inside a model are made visible."""

    #: As further outputs of the model; the runtime fuses the same operators.
    MODEL = "model"
    #: As further outputs of the graph that the runtime had fused already, because outputs of the model itself
    #: would change the fusion.
    FUSED_GRAPH = "fused_graph"
    #: As further outputs of the model, although that changes the fusion.
    DISTURBING = "disturbing"


@dataclass(frozen=True, eq=False)
class Observation:
    """What one level computed for a batch of images.

    Attributes:
        codes: Integers by tensor name.
        outputs: The network's outputs from the session whose integers were seen.
        plain_outputs: The network's outputs from the model as it is.
    """

    codes: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]
    plain_outputs: dict[str, NDArray[Any]]


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
        graph: The optimized graph of the model as it is.
        exposure: How the integers are exposed.
    """

    def __init__(self, file: QdqFile, chains: Mapping[str, ActivationChain], level: Level, *, threads: int = 1) -> None:
        self._chains, self._level, self._where, self._threads = chains, level, str(file.path), threads
        self._folder = file.path.parent
        self._plain, self.graph = self._load(file.path)
        self._values = {name: chain.codes for name, chain in chains.items()}
        self._observed, seen = self._load(_expose(file.proto, self._values, chains))
        self.exposure = Exposure.MODEL
        if seen.arithmetic() != self.graph.arithmetic():
            fused = self._exposed_after_fusion(file)
            self.exposure = Exposure.DISTURBING if fused is None else Exposure.FUSED_GRAPH
            self._observed = self._observed if fused is None else fused

    def run(self, images: NDArray[Any]) -> Observation:
        """Run a batch of images.

        Raises:
            RuntimeRefusedError: If ONNX Runtime does not run the model on them.
        """
        results = self._observed.run(images)
        codes = {name: _as_stored(results[value], self._chains[name]) for name, value in self._values.items()}
        plain = self._plain.run(images)
        return Observation(codes, {name: results[name] for name in plain}, plain)

    def _load(self, model: onnx.ModelProto | Path) -> tuple[Session, OptimizedGraph]:
        return optimize(model, self._level, where=self._where, threads=self._threads, folder=self._folder)

    def _exposed_after_fusion(self, file: QdqFile) -> Session | None:
        """The fused graph with its integers exposed; None if they cannot be found or that disturbs it, too.

        Layout changes come after the fusion and hide tensors, so the graph of level EXTENDED is taken even for
        level ALL, which only changes layouts beyond it.
        """
        if self._level not in (Level.EXTENDED, Level.ALL):
            return None
        _, fused = optimize(file.path, Level.EXTENDED, where=self._where)
        values = {name: _value_after_fusion(fused, file, chain) for name, chain in self._chains.items()}
        found = {name: value for name, value in values.items() if value is not None}
        if len(found) < len(values):
            return None
        session, seen = self._load(_expose(fused.proto, found, self._chains))
        if seen.arithmetic() != self.graph.arithmetic():
            return None
        self._values = found
        return session


def _expose(
    model: onnx.ModelProto, values: Mapping[str, str], chains: Mapping[str, ActivationChain]
) -> onnx.ModelProto:
    """A copy of a model that also returns the integers of some tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {info.name: info for info in copy.graph.value_info}
    for name, value in values.items():
        kind = helper.np_dtype_to_tensor_dtype(chains[name].container or np.dtype(np.uint8))
        if value in known:
            kind = known[value].type.tensor_type.elem_type
        elif value.startswith(_STORED_UNSIGNED):
            kind = TensorProto.UINT8
        copy.graph.output.append(helper.make_tensor_value_info(value, kind, None))
    return copy


def _value_after_fusion(fused: OptimizedGraph, file: QdqFile, chain: ActivationChain) -> str | None:
    """The value that holds the integers of a tensor in a fused graph, None if there is none."""
    if any(chain.codes in node.outputs for node in fused.nodes):
        return chain.codes
    # The Q node is still there under its name, or was merged into the operation before it.
    names = [chain.quantize.name]
    producer = file.producers.get(chain.quantize.input[0])
    while producer is not None:
        names.append(producer.name)
        absorbed = producer.op_type in ("Relu", "Clip")
        producer = file.producers.get(producer.input[0]) if absorbed else None
    for node in fused.nodes:
        if node.name in names and node.outputs[0].startswith(_STORED_UNSIGNED):
            moved = node.op_type == QUANTIZE and node.inputs[0] != chain.quantize.input[0]  # before a Transpose, say
            return None if moved else node.outputs[0]
    return None


def _as_stored(codes: NDArray[Any], chain: ActivationChain) -> NDArray[Any]:
    """Codes in the type of the file, where the runtime stores signed ones shifted by 128."""
    if codes.dtype == np.uint8 and chain.container == np.int8:
        return (codes.astype(np.int16) - 128).astype(np.int8)
    return codes
