"""ONNX models beyond 2 GiB, where protobuf ends: their tensors lie in a file beside the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir

from eqdeploy.files import temporary_folder

#: Protobuf ends at 2 GiB; a quarter is left for everything that is not tensor data.
LARGEST_DATA_BYTES = 3 << 29

#: Tensors up to this size stay in the model file when the others move out, so that shapes can be inferred.
_SMALL_TENSOR_BYTES = 128


def data_bytes(model: ir.Model) -> int:
    """Size of the initializers of a model."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


@contextmanager
def data_beside(model: ir.Model, folder: Path, data: str) -> Iterator[onnx.ModelProto]:
    """Write the larger tensors of a model to a file, in the order of their names.

    A model that was read has its constants in another order than the one that was written: its data must not be laid
    out differently, as the files of both are compared.

    Args:
        model: Unchanged when the context ends.
        folder: Where the model's own file is to be.
        data: Name of the file with the tensors, in the same folder.

    Yields:
        The model with its tensors named, not held.

    Raises:
        OSError: If the file cannot be written.
    """
    initializers = [value for _, value in sorted(model.graph.initializers.items())]
    large = [
        (value, tensor)
        for value in initializers
        if (tensor := value.const_value) is not None and tensor.nbytes > _SMALL_TENSOR_BYTES
    ]
    beside = ir.external_data.convert_tensors_to_external([tensor for _, tensor in large], folder, data)
    try:
        for (value, _), tensor in zip(large, beside, strict=True):
            value.const_value = tensor
        yield ir.to_proto(model)
    finally:
        for value, held in large:
            value.const_value = held


@contextmanager
def session_source(model: ir.Model, outputs: Sequence[onnx.ValueInfoProto] = ()) -> Iterator[bytes | str]:
    """What an inference session takes for a model in memory: its bytes, or a file while the context is open.

    Args:
        model: The model; it is left as it is.
        outputs: Values that are returned besides its own outputs.

    Raises:
        OSError: If there is no room for the file in the folder for temporary files.
    """
    if data_bytes(model) < LARGEST_DATA_BYTES:
        proto = ir.to_proto(model)
        proto.graph.output.extend(outputs)
        yield proto.SerializeToString()
        return
    with temporary_folder() as folder:
        path = Path(folder) / "model.onnx"
        with data_beside(model, path.parent, f"{path.name}.data") as proto:
            proto.graph.output.extend(outputs)
            path.write_bytes(proto.SerializeToString())
        yield str(path)
