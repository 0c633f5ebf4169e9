"""Write ONNX files whose bytes depend on nothing but the model, and read ONNX files that nobody vouches for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx import checker, shape_inference

from eqdeploy import __version__
from eqdeploy.errors import OutputError, ValidationError
from eqdeploy.large_models import LARGEST_DATA_BYTES, data_beside, data_bytes

#: Bytes of tensor data from which on the tensors move out by default.
EXTERNAL_DATA_THRESHOLD = LARGEST_DATA_BYTES


def write_model(model: ir.Model, directory: Path, name: str, *, external_data_threshold: int) -> tuple[str, ...]:
    """Check a model completely and write it.

    Args:
        model: The model.
        directory: Root of the export.
        name: Path of the file relative to it; missing folders are made.
        external_data_threshold: Bytes of tensor data from which on the tensors go to ``<name>.data``.

    Returns:
        Paths of the files written, relative to ``directory``.

    Raises:
        ValidationError: If the ONNX checker or shape inference finds a fault.
        OutputError: If a file cannot be written.
    """
    model.producer_name, model.producer_version = "eqdeploy", __version__
    path = directory / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if data_bytes(model) < external_data_threshold:
            proto = ir.to_proto(model)
            checker.check_model(proto, full_check=True)
            path.write_bytes(proto.SerializeToString(deterministic=True))
            return (name,)
        data = f"{path.name}.data"
        with data_beside(model, path.parent, data) as proto:
            path.write_bytes(proto.SerializeToString(deterministic=True))
        checker.check_model(str(path), full_check=True)
    except (checker.ValidationError, shape_inference.InferenceError) as error:
        raise ValidationError(f"the exported graph is not valid ONNX: {_first_line(error)}", where=name) from error
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror or error}", where=str(path)) from error
    return name, (Path(name).parent / data).as_posix()


def write_text(text: str, directory: Path, name: str) -> str:
    """Write a small text file in UTF-8 with plain line ends and return its relative path.

    Raises:
        OutputError: If it cannot be written.
    """
    path = directory / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror or error}", where=str(path)) from error
    return name


def read_text(path: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        ValidationError: If it is missing, unreadable or not text.
    """
    try:
        return path.read_bytes().decode()
    except OSError as error:
        raise ValidationError(f"cannot read: {error.strerror or error}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise ValidationError("is not UTF-8 text", where=str(path)) from error


def load_proto(path: Path) -> onnx.ModelProto:
    """Load an ONNX file that may be damaged or hostile.

    External tensors must lie in the folder of the file; they are not read here but when used.

    Raises:
        ValidationError: If the file is missing, truncated, refers to files elsewhere, or is not a valid model.
    """
    model = _parse(path)
    _check_external_data(model, path)
    try:
        checker.check_model(str(path), full_check=True)
    except (checker.ValidationError, shape_inference.InferenceError) as error:
        raise ValidationError(f"is not valid ONNX: {_first_line(error)}", where=str(path)) from error
    except (RuntimeError, ValueError, OSError) as error:
        raise ValidationError(f"cannot be checked: {_first_line(error)}", where=str(path)) from error
    return model


def refuse_outside_data(path: Path) -> None:
    """Refuse an ONNX file that names data outside of its folder, before a runtime opens them; nothing else is checked.

    Raises:
        ValidationError: If it does, or is no ONNX file.
    """
    _check_external_data(_parse(path), path)


def _parse(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file; data in other files are not read.

    Raises:
        ValidationError: If it is missing, truncated or something else.
    """
    try:
        str(path).encode()
        return onnx.load(path, load_external_data=False)
    except UnicodeEncodeError as error:
        raise ValidationError("ONNX opens only paths in UTF-8", where=str(path)) from error
    except OSError as error:
        raise ValidationError(f"cannot read: {error.strerror or error}", where=str(path)) from error
    except DecodeError as error:
        raise ValidationError("is truncated or not an ONNX file", where=str(path)) from error


def load_ir(path: Path) -> ir.Model:
    """Load an ONNX file like :func:`load_proto`, as onnx_ir with its metadata.

    Tensors in another file are mapped into memory, not read: the file must not change while the model is used.

    Raises:
        ValidationError: As :func:`load_proto`, or if external data is too short.
    """
    proto = load_proto(path)
    try:
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, path.parent)
        for value in model.graph.initializers.values():
            if isinstance(tensor := value.const_value, ir.ExternalTensor):
                value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
        return model
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OSError) as error:
        raise ValidationError(f"is inconsistent: {_first_line(error)}", where=str(path)) from error


def _check_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Refuse tensors stored outside the folder of the model, or behind links that lead there."""
    folder = path.parent.resolve()
    functions = (tensor for function in model.functions for tensor in _node_tensors(function.node))
    trained = (
        tensor
        for info in model.training_info
        for part in (info.initialization, info.algorithm)
        for tensor in _tensors(part)
    )
    for tensor in (*_tensors(model.graph), *functions, *trained):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        locations = [entry.value for entry in tensor.external_data if entry.key == "location"]
        where = f"{path}: {tensor.name}"
        if len(locations) != 1 or not locations[0]:
            raise ValidationError("its external data has no single location", where=where)
        target = folder / locations[0]
        if Path(locations[0]).is_absolute() or folder not in target.resolve().parents:
            raise ValidationError(f"its data lies outside the model's folder: {locations[0]!r}", where=where)
        if not target.is_file():
            raise ValidationError(f"its data file is missing: {locations[0]!r}", where=where)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph, those inside attributes and subgraphs included."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """Every tensor in the attributes of some nodes, those of subgraphs included."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for subgraph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(subgraph)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
