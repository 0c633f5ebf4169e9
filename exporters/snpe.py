"""Exporter ``snpe``: a float ONNX and an AIMET encodings file for Qualcomm's converter, with a proof model.

Files: ``snpe/model.onnx`` (float, no Q/DQ), ``snpe/model.encodings`` (JSON 0.6.1), ``snpe/convert.sh`` (the two
commands of the Qualcomm SDK) and ``model.onnx``, the same integers as a QDQ model that ONNX Runtime can run.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from pydantic import Field

from eqdeploy.exporters import aimet_encodings
from eqdeploy.exporters.contract import RecoveredEncodings, check_round_trip
from eqdeploy.exporters.files import read_text, write_text
from eqdeploy.exporters.float_sidecar import SideFile, SideFileRules, float_model, write_float_model
from eqdeploy.exporters.float_sidecar_reader import check_same_network, read_float_model
from eqdeploy.exporters.onnx_qdq import MODEL_FILE, OnnxQdqOptions, write_qdq_model
from eqdeploy.exporters.opset import OPSETS
from eqdeploy.exporters.options import parse_options
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.plan import DevicePlan
from eqdeploy.quantized_model import QuantizedModel

FLOAT_FILE = "snpe/model.onnx"
ENCODINGS_FILE = "snpe/model.encodings"
COMMANDS_FILE = "snpe/convert.sh"


class SnpeOptions(OnnxQdqOptions):
    """Options of the exporter.

    Attributes:
        opset: Opset of the proof model.
        float_opset: Opset of the float model; by default the oldest that can express it, from 13 on, because
            the SDK's versions for the older DSPs read no newer ones.
        allow_low_bits: Write encodings below 4 bits, which the format's specification does not name.
    """

    float_opset: int | None = Field(default=None, ge=OPSETS[0], le=OPSETS[-1])
    allow_low_bits: bool = False


class SnpeExporter:
    """Writes and reads the files for Qualcomm's Neural Processing SDK."""

    name = "snpe"

    def describe(self) -> str:
        """What the exporter writes and what its format cannot hold."""
        return (
            "A float ONNX, AIMET encodings 0.6.1 and the converter commands, plus a QDQ model as proof. Every "
            "activation has one scale and one buffer, so no reader may see the float value; a range that ends "
            "before its last code must follow from an operation of the graph (ReLU6); per-channel weights use the "
            "output channels; integer biases are those of --bias_bitwidth 32 and are not in the file; below 4 bits "
            "only with allow_low_bits."
        )

    def check_options(self, options: Mapping[str, object]) -> None:
        """Check options; see :meth:`eqdeploy.exporters.contract.EarlyChecks.check_options`."""
        parse_options(SnpeOptions, options, self.name)

    def check_plan(self, plan: DevicePlan, options: Mapping[str, object]) -> None:
        """Check widths and readers; see :meth:`eqdeploy.exporters.contract.EarlyChecks.check_plan`."""
        _rules(parse_options(SnpeOptions, options, self.name)).check_plan(plan)

    def export(self, model: QuantizedModel, directory: Path, options: Mapping[str, object]) -> tuple[str, ...]:
        """Write all files; see :meth:`eqdeploy.exporters.contract.Exporter.export`."""
        parsed = parse_options(SnpeOptions, options, self.name)
        threshold = parsed.external_data_threshold
        _rules(parsed).check_model(model)
        network = float_model(model, parsed.float_opset)
        files = write_qdq_model(model, directory, parsed)
        files += write_float_model(network, directory, FLOAT_FILE, external_data_threshold=threshold)
        return (
            *files,
            write_text(aimet_encodings.to_json(SideFile.of(model, signed=False)), directory, ENCODINGS_FILE),
            write_text(_commands(network.graph), directory, COMMANDS_FILE),
        )

    def read(self, directory: Path) -> RecoveredEncodings:
        """Recover every encoding from the folder ``snpe``.

        The proof model must hold the same encodings and be the same network: it is what runs when the export is
        proved.
        """
        path = directory / ENCODINGS_FILE
        document = aimet_encodings.from_json(read_text(path), str(path))
        recovered = read_float_model(directory / FLOAT_FILE, aimet_encodings.side_file(document))
        model = read_model(directory / MODEL_FILE)
        check_round_trip(model, recovered)
        check_same_network(model, directory / FLOAT_FILE)
        return recovered


def _rules(options: SnpeOptions) -> SideFileRules:
    """What Qualcomm's SDK takes; the specification of the encodings starts at 4 bits."""
    narrowest = 1 if options.allow_low_bits else aimet_encodings.SMALLEST_DOCUMENTED_BITS
    return SideFileRules(
        device="SNPE",
        activation_bits=(narrowest, 8),
        weight_bits=(narrowest, 8),
        bits_hint=f"encodings {aimet_encodings.VERSION} are specified from {narrowest} bits on; raise the width, or "
        "set export.options.allow_low_bits: true if your SDK takes it",
    )


def _commands(graph: ir.Graph) -> str:
    """The commands that turn the files into a quantized DLC."""
    inputs = []
    for value in graph.inputs:
        sizes = [] if value.shape is None else [str(size) if isinstance(size, int) else "1" for size in value.shape]
        inputs.append(f"    --input_dim {shlex.quote(str(value.name))} {','.join(sizes)} \\\n")
    return (
        "#!/bin/sh\n"
        "# Turns model.onnx and model.encodings into a quantized DLC. Run it here, in a shell in which the\n"
        "# Qualcomm Neural Processing SDK is set up. The batch size must be 1 to quantize.\n"
        "set -e\n"
        "snpe-onnx-to-dlc \\\n"
        "    --input_network model.onnx \\\n"
        f"{''.join(inputs)}"
        "    --quantization_overrides model.encodings \\\n"
        "    --output_path model_float.dlc\n"
        "# Every range comes from model.encodings; --override_params makes the tool keep them. It wants an input\n"
        "# all the same: input_list.txt names one raw float32 file in the layout that snpe-dlc-info shows.\n"
        "snpe-dlc-quantize \\\n"
        "    --input_dlc model_float.dlc \\\n"
        "    --input_list input_list.txt \\\n"
        "    --override_params \\\n"
        "    --bias_bitwidth 32 \\\n"
        "    --output_dlc model.dlc\n"
    )
