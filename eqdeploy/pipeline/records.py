"""The records of an artifact, read back and compared with each other.

A hash only shows that a file is the one that the manifest lists. Every fact that stands in two files is compared
here as well, so that no file can be exchanged for that of another artifact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from eqdeploy.calibration.record import CalibrationRecord, read_record
from eqdeploy.data import InputPreprocessing
from eqdeploy.encoding_table import check_encodings
from eqdeploy.errors import ProfileError, ValidationError
from eqdeploy.exporters.contract import check_round_trip, get_exporter
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.manifest import verify_manifest
from eqdeploy.pipeline.configuration import CONFIGURATION_FILE, SUBNET_FILE, Configuration, read_configuration
from eqdeploy.pipeline.file_checks import check_files
from eqdeploy.pipeline.proof import MODEL_FILE
from eqdeploy.pipeline.sources import load_subnet
from eqdeploy.profile import DeviceProfile
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.form import Form, Granularity
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.report import ArtifactReport, CoverageSummary, FileRow, PlanSummary, read_report
from eqdeploy.report.model import REPORT_FILE
from eqdeploy.subnet import SubnetConfig


@dataclass(frozen=True)
class Records:
    """What the files of an artifact say, all of them in agreement.

    Attributes:
        configuration: From what and with what it was made.
        preprocessing: How what is stored becomes inputs.
        report: The report of the export.
        subnet: The active forms of the supernet.
        model: The network with its numbers, recovered from the model file.
        files: What is known of every file.
        calibration: What calibration measured.
    """

    configuration: Configuration
    preprocessing: InputPreprocessing
    report: ArtifactReport
    subnet: SubnetConfig
    model: QuantizedModel
    files: tuple[FileRow, ...]
    calibration: CalibrationRecord


def read_records(directory: Path) -> Records:
    """Read all files of an artifact.

    Raises:
        ValidationError: If a file is missing, changed, added or damaged, or if two of them contradict each other.
        ProfileError: If the exporter that wrote the artifact is not installed.
    """
    manifest = verify_manifest(directory)
    report = read_report(directory)
    configuration = read_configuration(directory)
    profile = configuration.device_profile(where=str(directory / CONFIGURATION_FILE))
    preprocessing = configuration.preprocessing_of(where=str(directory / CONFIGURATION_FILE))
    subnet = _read_subnet(directory / SUBNET_FILE)
    if report.provenance != manifest.provenance:
        raise ValidationError("report and manifest disagree about the origin", where=str(directory))
    _check_origin(directory, report, configuration, profile, subnet)
    model = read_model(directory / MODEL_FILE)
    check_encodings(directory, model)
    check_round_trip(model, get_exporter(profile.export.format).read(directory))
    files = check_files(directory, profile, model, subnet)
    if report.files != files:
        raise ValidationError("lists other files, or other checks of them", where=f"{directory / REPORT_FILE}: files")
    where = f"{directory / REPORT_FILE}: plan"
    _check_plan(report.plan, model, where)
    coverage = {row.tensor: row.coverage for row in report.plan.tensors}
    reasons = {row.tensor: row.reason for row in report.plan.tensors}
    if CoverageSummary.of(coverage, reasons) != report.coverage:
        raise ValidationError("does not add up to the coverage of the report", where=where)
    model = replace(model, coverage=coverage, reasons=reasons, folded=report.folding, notes=report.notes)
    return Records(configuration, preprocessing, report, subnet, model, files, read_record(directory))


def _read_subnet(path: Path) -> SubnetConfig:
    """Read ``subnet.json``; here it is a file of an artifact, not one that the user chose."""
    try:
        subnet = load_subnet(path)
    except ProfileError as error:
        raise ValidationError(error.message, where=error.where, hint=error.hint) from error
    assert subnet is not None  # only without a path
    return subnet


def _check_origin(
    directory: Path,
    report: ArtifactReport,
    configuration: Configuration,
    profile: DeviceProfile,
    subnet: SubnetConfig,
) -> None:
    """Compare the origin with the configuration and the subnet that stand beside it."""
    origin = report.provenance
    for key, recorded, file, found in (
        ("profile", origin.profile, CONFIGURATION_FILE, profile.name),
        ("profile_digest", origin.profile_digest, CONFIGURATION_FILE, profile.digest),
        ("subnet_digest", origin.subnet_digest, SUBNET_FILE, subnet.digest),
        ("supernet", origin.supernet, CONFIGURATION_FILE, configuration.supernet),
        ("data", origin.data, CONFIGURATION_FILE, configuration.data),
        ("seed", origin.seed, CONFIGURATION_FILE, configuration.seed),
    ):
        if recorded != found:
            raise ValidationError(
                f"{key} is {recorded!r}, but that of {file} is {found!r}",
                where=f"{directory / REPORT_FILE}: provenance",
            )


def _check_plan(plan: PlanSummary, model: QuantizedModel, where: str) -> None:
    """Compare the forms that the plan gives the device with the numbers in the model."""
    readers = {row.tensor: frozenset(row.float_readers) for row in plan.tensors}
    for name, form, encoding in _planned(plan, model):
        if form is None:
            continue
        try:
            wanted = Form.from_key(form)
        except ValueError as error:
            raise ValidationError(str(error), where=f"{where}: {name}") from error
        per_channel = wanted.granularity is Granularity.PER_CHANNEL
        if encoding is None or (wanted.bits, wanted.signed) != (encoding.bits, encoding.signed):
            raise ValidationError(f"the model does not hold it as {form}", where=f"{where}: {name}")
        if per_channel != (encoding.axis is not None):
            raise ValidationError(f"the model does not have the scales of {form}", where=f"{where}: {name}")
    for name, tensor in model.activations.items():
        if tensor.float_readers != readers.get(name, frozenset()):
            raise ValidationError("other operations read it in float", where=f"{where}: {name}")


def _planned(plan: PlanSummary, model: QuantizedModel) -> Iterator[tuple[str, str | None, Encoding | None]]:
    """Name, planned form and encoding of every weight and tensor."""
    for row in plan.weights:
        parameter = model.parameters.get(f"{row.layer}.weight")
        yield row.layer, row.device, None if parameter is None else parameter.encoding
    for tensor in plan.tensors:
        activation = model.activations.get(tensor.tensor)
        yield tensor.tensor, tensor.device, None if activation is None else activation.encoding
