"""A look into a file without running or trusting anything in it: checkpoints, ONNX models, JSON documents.

Kinds are told by content, not by name. Of a checkpoint only the header is read.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqdeploy.errors import CheckpointError, UsageError, ValidationError
from eqdeploy.files import read_bounded
from eqdeploy.json_file import parse_json, refuse_repeated_tensors

#: Largest JSON document and ONNX model (protobuf's own limit) that is opened.
MAXIMUM_JSON_BYTES = 256 << 20
MAXIMUM_ONNX_BYTES = 2 << 30

_HEAD_BYTES = 16

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Table:
    """Rows of equal length under a title.

    Attributes:
        title: What the rows are.
        columns: Names of the columns.
        rows: Values.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Scalar, ...], ...]


@dataclass(frozen=True)
class Inspection:
    """What a file holds.

    Attributes:
        path: The file.
        kind: ``"checkpoint"``, ``"onnx"``, or the kind of JSON document.
        size: Length in bytes.
        facts: Plain JSON values by name.
        tables: Lists, e.g. of tensors.
    """

    path: Path
    kind: str
    size: int
    facts: dict[str, Any]
    tables: tuple[Table, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data; each table becomes a list of objects."""
        return {
            "path": self.path.as_posix(),
            "kind": self.kind,
            "size": self.size,
            "facts": self.facts,
            "tables": {
                table.title: [dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in self.tables
            },
        }


def inspect_file(path: Path) -> Inspection:
    """Tell what a file holds.

    Args:
        path: A safetensors checkpoint, an ONNX model or a JSON document.

    Raises:
        UsageError: If there is no such file, or it is of another kind.
        CheckpointError: If it is a damaged or unsafe checkpoint.
        ValidationError: If it is a damaged model or document.
    """
    if path.is_dir():
        raise UsageError("is a folder", where=str(path), hint="name a file in it, or use 'eqdeploy validate'")
    if path.exists() and not path.is_file():
        raise UsageError("is not a plain file", where=str(path))
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
            size = stream.seek(0, 2)
    except OSError as reason:
        raise UsageError(reason.strerror or "cannot be read", where=str(path)) from reason
    if not head:
        raise UsageError("is empty", where=str(path))
    if head.startswith(b"PK\x03\x04"):
        _refuse_other_archives(path)
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise CheckpointError(
            "looks like a pickled checkpoint, which is never opened, since loading it can run code",
            where=str(path),
            hint="save its state_dict as safetensors",
        )
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return _inspect_checkpoint(path, size)
    if head.lstrip()[:1] in (b"{", b"[") and path.suffix != ".onnx":
        return _inspect_json(path, size)
    if path.suffix in (".yaml", ".yml"):
        raise UsageError("is a YAML file", where=str(path), hint="a profile is shown by 'eqdeploy profiles show'")
    return _inspect_onnx_text(path, size)


def _refuse_other_archives(path: Path) -> None:
    """Refuse a zip archive in which no pickle can be; one that cannot be listed may hold anything.

    Raises:
        UsageError: Says what kind of archive it looks like.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return
    if any(name.endswith((".pkl", ".pickle")) for name in names):
        return
    if names and all(name.endswith(".npy") for name in names):
        raise UsageError("is a NumPy archive, a data set", where=str(path), hint="images are given with --data")
    listed = ", ".join(ascii(name) for name in sorted(names)[:3])
    raise UsageError(
        f"is a zip archive, a file of another tool; it holds {listed}",
        where=str(path),
        hint="checkpoints (.safetensors), ONNX models and JSON documents are inspected",
    )


def _inspect_checkpoint(path: Path, size: int) -> Inspection:
    """List the tensors of a safetensors file from its header."""
    from safetensors import SafetensorError, safe_open

    try:
        # The library bounds the header's length and checks that every tensor lies inside the file.
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            slices = [(name, file.get_slice(name)) for name in sorted(file.keys())]
            tensors = [(name, str(entry.get_dtype()), tuple(entry.get_shape())) for name, entry in slices]
        refuse_repeated_tensors(path, CheckpointError)
    except (SafetensorError, OSError) as reason:
        raise CheckpointError(f"not a safetensors file: {reason}", where=str(path)) from reason
    facts: dict[str, Any] = {"tensors": len(tensors)}
    for key in sorted(metadata):
        facts |= _metadata_facts(key, metadata[key])
    rows = tuple((name, dtype, _shape(shape)) for name, dtype, shape in tensors)
    return Inspection(path, "checkpoint", size, facts, (Table("tensors", ("name", "type", "shape"), rows),))


def _metadata_facts(key: str, text: str) -> dict[str, Any]:
    """One entry of a checkpoint's metadata; a JSON object in it becomes one fact for each of its keys."""
    try:
        value = json.loads(text, parse_constant=str, parse_float=_finite)
    except (ValueError, RecursionError):
        return {key: text}
    return {f"{key}.{name}": part for name, part in value.items()} if isinstance(value, dict) else {key: text}


def _inspect_onnx_text(path: Path, size: int) -> Inspection:
    """Summarize an ONNX model whose names are text, as they should be."""
    no_text = ValidationError("holds a name that is not UTF-8", where=str(path))
    try:
        inspection = _inspect_onnx(path, size)
    except (UnicodeDecodeError, TypeError) as reason:  # protobuf hands on such a name as bytes, or fails to
        raise no_text from reason
    cells = (cell for table in inspection.tables for row in table.rows for cell in row)
    if any(isinstance(cell, bytes) for cell in (*cells, *inspection.facts.values())):
        raise no_text
    return inspection


def _inspect_onnx(path: Path, size: int) -> Inspection:
    """Summarize an ONNX model; weights in other files are not read."""
    import onnx
    from google.protobuf.message import DecodeError

    content = read_bounded(path, MAXIMUM_ONNX_BYTES, ValidationError)
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError as reason:
        raise _unknown_kind(path) from reason
    if not model.graph.node and not model.opset_import:
        raise _unknown_kind(path)
    facts: dict[str, Any] = {
        "ir_version": model.ir_version,
        "opset": ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "nodes": len(model.graph.node),
        "initializers": len(model.graph.initializer),
    }
    values = [("input", value) for value in model.graph.input] + [("output", value) for value in model.graph.output]
    operators = Counter((node.domain or "ai.onnx", node.op_type) for node in model.graph.node)
    return Inspection(
        path,
        "onnx",
        size,
        facts,
        (
            Table(
                "inputs and outputs",
                ("role", "name", "type", "shape"),
                tuple((role, value.name, *_onnx_type(value.type)) for role, value in values),
            ),
            Table(
                "operators",
                ("operator", "domain", "count"),
                tuple((name, domain, count) for (domain, name), count in sorted(operators.items())),
            ),
            Table(
                "initializers",
                ("name", "type", "shape"),
                tuple(
                    (tensor.name, _onnx_dtype(tensor.data_type), _shape(tuple(tensor.dims)))
                    for tensor in model.graph.initializer
                ),
            ),
        ),
    )


def _unknown_kind(path: Path) -> UsageError:
    """The error for a file that is nothing we know."""
    return UsageError("neither a checkpoint, an ONNX model nor a JSON document", where=str(path))


def _onnx_type(value: Any) -> tuple[str, str]:
    """Element type and shape of an ONNX value; symbolic sizes by name."""
    tensor = value.tensor_type
    sizes = tuple(size.dim_param or size.dim_value for size in tensor.shape.dim)
    return _onnx_dtype(tensor.elem_type), _shape(sizes)


def _onnx_dtype(code: int) -> str:
    """Name of an ONNX element type."""
    import onnx

    known = onnx.TensorProto.DataType.values()
    return onnx.TensorProto.DataType.Name(code).lower() if code in known else f"unknown ({code})"


#: Kinds of JSON documents by the keys that each must have.
_JSON_KINDS: tuple[tuple[str, frozenset[str]], ...] = (
    ("manifest", frozenset({"artifact", "files", "provenance"})),
    ("report", frozenset({"verdict", "plan", "coverage"})),
    ("subnet", frozenset({"schema", "weights", "activations"})),
    ("encodings", frozenset({"activation_encodings", "param_encodings"})),
)


def _inspect_json(path: Path, size: int) -> Inspection:
    """Summarize a JSON document: its kind and its top level."""
    content = read_bounded(path, MAXIMUM_JSON_BYTES, ValidationError)
    try:
        document = parse_json(content, str(path), ValidationError, parse_float=_finite, parse_constant=str)
    except ValidationError as reason:
        if path.suffix != ".json":
            raise _unknown_kind(path) from reason
        raise
    if not isinstance(document, dict):
        return Inspection(path, "json list", size, {"entries": len(document)})
    kind = next((name for name, keys in _JSON_KINDS if keys <= set(document)), "json")
    facts: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict | list):
            facts[str(key)] = f"{len(value)} entries"
        else:
            facts[str(key)] = value
    return Inspection(path, kind, size, facts, _json_tables(kind, document))


def _json_tables(kind: str, document: dict[str, Any]) -> tuple[Table, ...]:
    """Tables of the documents that eqdeploy writes itself."""
    if kind == "subnet":
        return tuple(
            Table(title, ("name", "form"), tuple((str(name), str(form)) for name, form in document[title].items()))
            for title in ("weights", "activations")
            if isinstance(document[title], dict)
        )
    if kind == "encodings":
        return tuple(
            Table(
                title,
                ("name", "scales", "bits"),
                tuple((str(name), *_encoding_facts(entries)) for name, entries in document[title].items()),
            )
            for title in ("activation_encodings", "param_encodings")
            if isinstance(document[title], dict)
        )
    if kind == "manifest" and isinstance(document["files"], dict):
        rows = tuple(
            (str(name), _scalar(entry, "size"), _scalar(entry, "sha256")) for name, entry in document["files"].items()
        )
        return (Table("files", ("name", "size", "sha256"), rows),)
    return ()


def _encoding_facts(entries: Any) -> tuple[int, Scalar]:
    """Number of scales, and bits, of one entry of an encodings file."""
    listed = entries if isinstance(entries, list) else [entries]
    return len(listed), _scalar(listed[0], "bitwidth") if listed else None


def _finite(text: str) -> float | str:
    """A number of a JSON document; one beyond the range of a float stays as it is written."""
    value = float(text)
    return value if math.isfinite(value) else text


def _scalar(entry: Any, key: str) -> Scalar:
    """A plain value of a mapping, None if it is not there or not plain."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, str | int | float | bool) else None


def _shape(sizes: tuple[int | str, ...]) -> str:
    """Write a shape like ``16x3x3x3``; a scalar has none."""
    return "x".join(str(size) for size in sizes) or "scalar"
