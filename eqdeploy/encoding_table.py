"""``encodings.json``: every scale, zero-point, range and float constant of an artifact in a neutral form.

Written beside the model as a second, independent record: validation compares it with what the readers recover from
the model files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from eqdeploy.errors import ValidationError
from eqdeploy.files import write_json
from eqdeploy.json_file import read_json
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedModel

ENCODINGS_FILE = "encodings.json"
_SCHEMA = 2
_MAXIMUM_BITS = 64
_SECTIONS = ("activations", "parameters", "constants", "nodes")
_MAXIMUM_BYTES = 256 << 20


@dataclass(frozen=True)
class Encodings:
    """Every encoding of an artifact.

    Attributes:
        activations: Encoding of each quantized tensor by name.
        parameters: Encoding of each weight and of each integer bias by name.
    """

    activations: Mapping[str, Encoding]
    parameters: Mapping[str, Encoding]


def encoding_table(model: QuantizedModel) -> dict[str, Any]:
    """All numbers of a model as plain data, what is large as its SHA-256.

    Integer codes are hashed as int32, little-endian, row-major; a float constant (a bias, the bound of a Clip) with its
    type and shape; a node as ONNX writes it. The nodes are those of the model's own graph.
    """
    graph = model.graph.graph
    return {
        "schema": _SCHEMA,
        "activations": {
            name: {**_plain(tensor.encoding), "float_readers": sorted(tensor.float_readers)}
            for name, tensor in model.activations.items()
        },
        "parameters": {
            name: {**_plain(parameter.encoding), "codes_sha256": _digest(parameter.codes)}
            for name, parameter in model.parameters.items()
        },
        "constants": {
            tensor.name: _constant_digest(tensor) for tensor in graph.initializer if tensor.name not in model.parameters
        },
        "nodes": {node.name: _node_digest(node) for node in graph.node},
    }


def write_encodings(directory: Path, model: QuantizedModel) -> None:
    """Write ``encodings.json`` into an artifact.

    Raises:
        OutputError: If the file cannot be written.
    """
    write_json(directory / ENCODINGS_FILE, encoding_table(model))


def check_encodings(directory: Path, model: QuantizedModel) -> None:
    """Compare ``encodings.json`` of an artifact with a model that was read back from it.

    Raises:
        ValidationError: If the file is missing or damaged, or an entry differs; names the first one.
    """
    path = directory / ENCODINGS_FILE
    found, expected = _read_table(path), encoding_table(model)
    for section, table in found.items():
        for name in (*expected[section], *table):
            if table.get(name) != expected[section].get(name):
                raise ValidationError("the model file and the table of encodings disagree", where=f"{path}: {name}")


def read_encodings(directory: Path) -> Encodings:
    """Read the encodings of an artifact; nothing is compared with the model file.

    Raises:
        ValidationError: If the file is missing or damaged.
    """
    path = directory / ENCODINGS_FILE
    table = _read_table(path)
    return Encodings(
        *(
            {name: _encoding(entry, f"{path}: {name}") for name, entry in table[section].items()}
            for section in ("activations", "parameters")
        )
    )


def _read_table(path: Path) -> dict[str, dict[str, Any]]:
    """The sections of a file.

    Raises:
        ValidationError: If it is missing, damaged or of another schema.
    """
    stored = read_json(path, _MAXIMUM_BYTES, ValidationError)
    if not isinstance(stored, dict) or stored.get("schema") != _SCHEMA:
        raise ValidationError(
            f"not a table of encodings of schema {_SCHEMA}", where=str(path), hint="export the artifact again"
        )
    for section in _SECTIONS:
        if not isinstance(stored.get(section), dict):
            raise ValidationError(f"has no {section}", where=str(path))
    return {section: stored[section] for section in _SECTIONS}


def _encoding(entry: Any, where: str) -> Encoding:
    """The encoding that :func:`_plain` wrote.

    Raises:
        ValidationError: If it is none.
    """
    try:
        scale, zero_point = (np.asarray(entry[key]) for key in ("scale", "zero_point"))
        if scale.dtype.kind not in "if" or zero_point.dtype.kind != "i":
            raise ValueError("scale and zero_point must hold numbers, the latter whole ones")
        fields = {key: entry[key] for key in ("q_min", "q_max", "bits", "signed", "axis")}
        if any(not isinstance(value, int | None) for value in fields.values()):
            raise ValueError("a field is not a whole number")
        if not 1 <= fields["bits"] <= _MAXIMUM_BITS:  # numbers of that many bits are about to be made
            raise ValueError(f"bits must be 1 to {_MAXIMUM_BITS}, got {fields['bits']}")
        narrowed = zero_point.astype(np.int32)
        if not np.array_equal(narrowed, zero_point):
            raise ValueError("a zero-point does not fit in 32 bits")
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which no scale may be
            return Encoding(scale=scale.astype(np.float32), zero_point=narrowed, **fields)
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise ValidationError(f"not an encoding: {error}", where=where) from error


def _plain(encoding: Encoding) -> dict[str, Any]:
    """One encoding as plain data; float32 scales are written so that they read back exactly."""
    return {
        "bits": encoding.bits,
        "signed": encoding.signed,
        "q_min": encoding.q_min,
        "q_max": encoding.q_max,
        "axis": encoding.axis,
        "scale": encoding.scale.astype(np.float64).tolist(),
        "zero_point": encoding.zero_point.tolist(),
    }


def _constant_digest(tensor: onnx.TensorProto) -> str:
    """SHA-256 of a constant's type, shape and values (little-endian, row-major)."""
    array = numpy_helper.to_array(tensor)
    digest = hashlib.sha256(f"{tensor.data_type} {list(array.shape)} ".encode())
    digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _node_digest(node: onnx.NodeProto) -> str:
    """SHA-256 of a node: its operator, what it reads and returns, its attributes."""
    return hashlib.sha256(node.SerializeToString(deterministic=True)).hexdigest()


def _digest(codes: NDArray[np.int32]) -> str:
    """SHA-256 of integer codes."""
    return hashlib.sha256(np.ascontiguousarray(codes, dtype="<i4").reshape(-1).view(np.uint8).data).hexdigest()
