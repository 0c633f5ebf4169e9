"""``encodings.json``: every scale, zero-point, range and float constant of an artifact in a neutral form.

Written beside the model as a second, independent record: validation compares it with what the readers recover from
the model files.
"""

from __future__ import annotations

import hashlib
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
_MAXIMUM_BYTES = 256 << 20


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
    stored = read_json(path, _MAXIMUM_BYTES, ValidationError)
    expected = encoding_table(model)
    if not isinstance(stored, dict) or stored.get("schema") != _SCHEMA:
        raise ValidationError(
            f"not a table of encodings of schema {_SCHEMA}", where=str(path), hint="export the artifact again"
        )
    for section in ("activations", "parameters", "constants", "nodes"):
        table = stored.get(section)
        if not isinstance(table, dict):
            raise ValidationError(f"has no {section}", where=str(path))
        for name in (*expected[section], *table):
            if table.get(name) != expected[section].get(name):
                raise ValidationError("the model file and the table of encodings disagree", where=f"{path}: {name}")


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
    digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _node_digest(node: onnx.NodeProto) -> str:
    """SHA-256 of a node: its operator, what it reads and returns, its attributes."""
    return hashlib.sha256(node.SerializeToString(deterministic=True)).hexdigest()


def _digest(codes: NDArray[np.int32]) -> str:
    """SHA-256 of integer codes."""
    return hashlib.sha256(np.ascontiguousarray(codes, dtype="<i4").tobytes()).hexdigest()
