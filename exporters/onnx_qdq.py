"""Exporter ``onnx_qdq``: one ``model.onnx`` with standard Q/DQ nodes, which ONNX Runtime and OpenVINO read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from eqdeploy.exporters.contract import RecoveredEncodings
from eqdeploy.exporters.files import write_model
from eqdeploy.exporters.metadata import attach_facts, facts_of
from eqdeploy.exporters.opset import OPSETS
from eqdeploy.exporters.options import ExporterOptions, parse_options
from eqdeploy.exporters.qdq_graph import build_qdq
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.plan import DevicePlan
from eqdeploy.quantized_model import QuantizedModel

__all__ = ["MODEL_FILE", "OnnxQdqExporter", "OnnxQdqOptions", "read_model", "write_qdq_model"]

MODEL_FILE = "model.onnx"


class OnnxQdqOptions(ExporterOptions):
    """Options of the exporter.

    Attributes:
        opset: ONNX opset, one of :data:`eqdeploy.exporters.opset.OPSETS`.
    """

    opset: int = Field(default=21, ge=OPSETS[0], le=OPSETS[-1])


class OnnxQdqExporter:
    """Writes and reads the canonical QDQ model."""

    name = "onnx_qdq"

    def describe(self) -> str:
        """What the exporter writes and what its format cannot hold."""
        return (
            "A QDQ ONNX model: codes of any width from 1 to 8 in 8-bit containers, narrower ranges by an integer "
            "Clip between Q and DQ, int32 or float biases, per-tensor or per-channel weights on any one axis. A "
            "grouped ConvTranspose has one scale for the same output position of every group, as its weight has "
            "only C_out/groups entries on axis 1."
        )

    def check_options(self, options: Mapping[str, object]) -> None:
        """Check options; see :meth:`eqdeploy.exporters.contract.EarlyChecks.check_options`."""
        parse_options(OnnxQdqOptions, options, self.name)

    def check_plan(self, plan: DevicePlan, options: Mapping[str, object]) -> None:
        """Every plan can be written."""

    def export(self, model: QuantizedModel, directory: Path, options: Mapping[str, object]) -> tuple[str, ...]:
        """Write ``model.onnx``; see :meth:`eqdeploy.exporters.contract.Exporter.export`."""
        return write_qdq_model(model, directory, parse_options(OnnxQdqOptions, options, self.name))

    def read(self, directory: Path) -> RecoveredEncodings:
        """Recover every encoding from ``model.onnx``."""
        return RecoveredEncodings.of(read_model(directory / MODEL_FILE))


def write_qdq_model(model: QuantizedModel, directory: Path, options: OnnxQdqOptions) -> tuple[str, ...]:
    """Write the canonical QDQ model of a network as ``model.onnx``.

    Args:
        model: The frozen network; it is left unchanged.
        directory: Folder to write to.
        options: Opset and external data.

    Returns:
        Paths of the files written, relative to ``directory``.

    Raises:
        ValidationError: If the model contradicts itself.
        ProfileError: If an operation does not exist in the opset.
        OutputError: If a file cannot be written.
    """
    qdq = build_qdq(model, options.opset)
    attach_facts(qdq.model, facts_of(model, qdq.dropped_clips))
    return write_model(qdq.model, directory, MODEL_FILE, external_data_threshold=options.external_data_threshold)
