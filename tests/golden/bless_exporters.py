"""Write the golden files of the exporters anew, after a change of format that was meant.

Run from the repository root and look at the difference before committing it:

    python -m tests.golden.bless_exporters
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx

from eqdeploy import __version__
from eqdeploy.exporters.contract import get_exporter
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.testing import sample_model
from tests.contract.networks import ASYMMETRIC, LOW_BITS, SIGNED

FOLDER = Path(__file__).resolve().parent / "exporters"

#: Options by exporter; together the files hold every kind of encoding.
OPTIONS: dict[str, Mapping[str, object]] = {"onnx_qdq": {}, "snpe": {}, "tensorrt": {"calibration_cache": True}}


def golden_model(exporter: str) -> QuantizedModel:
    """The hand-made model that an exporter's golden files are made from."""
    if exporter == "tensorrt":
        return sample_model(SIGNED, skip_only=True)
    return sample_model(LOW_BITS if exporter == "onnx_qdq" else ASYMMETRIC)


def without_version(name: str, content: bytes) -> bytes:
    """The content without the version of this package, so that a release changes no golden file."""
    if not name.endswith(".onnx"):
        return content.replace(f'"version": "{__version__}"'.encode(), b'"version": ""')
    model = onnx.load_from_string(content)
    model.producer_version = ""
    return bytes(model.SerializeToString(deterministic=True))


def written_files(exporter: str, directory: Path) -> dict[str, bytes]:
    """Export the golden model and return what is compared."""
    files = get_exporter(exporter).export(golden_model(exporter), directory, OPTIONS[exporter])
    return {name: without_version(name, (directory / name).read_bytes()) for name in files}


def bless() -> None:
    """Replace the golden files."""
    for exporter in OPTIONS:
        folder, scratch = FOLDER / exporter, FOLDER / f"{exporter}.new"
        scratch.mkdir(parents=True)
        contents = written_files(exporter, scratch)
        shutil.rmtree(scratch)
        shutil.rmtree(folder, ignore_errors=True)
        for name, content in contents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


if __name__ == "__main__":
    bless()
