"""ONNX models beyond 2 GiB, where protobuf ends: their tensors lie in a file beside the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from eqdeploy.files import temporary_folder

#: Protobuf ends at 2 GiB; a quarter is left for everything that is not tensor data.
LARGEST_DATA_BYTES = 3 << 29

#: Smaller tensors stay in the model's own file.
_SMALL_TENSOR_BYTES = 1024


def data_bytes(model: onnx.ModelProto) -> int:
    """Size of the initializers that a model holds itself; the model as a whole may be too large to be measured."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


@contextmanager
def loadable(model: onnx.ModelProto) -> Iterator[bytes | str]:
    """What an inference session takes for a model in memory: its bytes, or a file while the context is open.

    Args:
        model: The model; it is used up, as its tensors may move to the file.

    Raises:
        OSError: If there is no room for the file in the folder for temporary files.
    """
    if data_bytes(model) < LARGEST_DATA_BYTES:
        yield model.SerializeToString()
        return
    with temporary_folder() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save_model(
            model,
            path,
            save_as_external_data=True,
            location=f"{path.name}.data",
            size_threshold=_SMALL_TENSOR_BYTES,
        )
        yield str(path)
