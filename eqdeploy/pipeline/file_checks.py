"""Every file of an artifact: written again and compared, compared with other files, or named as not covered.

Devices read some of the files and people run others, so a file that nothing looked at is a hole in the proof. An
exporter is a pure function of the model: the model that was read from ``model.onnx`` gives its files once more.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from eqdeploy.artifact_folders import MANIFEST_FILE
from eqdeploy.calibration.record import CALIBRATION_FILE
from eqdeploy.encoding_table import write_encodings
from eqdeploy.errors import ValidationError
from eqdeploy.exporters.comparison import same_model
from eqdeploy.exporters.contract import export_checked, get_exporter
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.files import temporary_folder
from eqdeploy.json_file import read_json
from eqdeploy.pipeline.configuration import CONFIGURATION_FILE, SUBNET_FILE
from eqdeploy.pipeline.exporter_rules import exporter_options, naming
from eqdeploy.pipeline.proof import MODEL_FILE
from eqdeploy.pipeline.search_files import MAXIMUM_SEARCH_BYTES, RECORD_FILES, SEARCH_FILE, SEARCH_FOLDER
from eqdeploy.profile import DeviceProfile
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.report import FileCheck, FileRow
from eqdeploy.report.model import REPORT_FILE
from eqdeploy.subnet import SubnetConfig

_WRITTEN_AGAIN = "the model that model.onnx holds gives the same {}"

#: Files that every artifact has besides those of its model, and what is known of them.
_RECORDS = {
    MANIFEST_FILE: (FileCheck.COMPARED, "lists every other file; its origin is that of report.json"),
    CONFIGURATION_FILE: (
        FileCheck.COMPARED,
        "profile and origin are those of report.json; classes and preprocessing those of the supernet where it is at "
        "hand; what the export was asked for besides is a statement",
    ),
    SUBNET_FILE: (FileCheck.COMPARED, "its digest is that of report.json"),
    REPORT_FILE: (
        FileCheck.COMPARED,
        "origin, plan, coverage and verdict are compared; what was measured is measured again, not compared; folding, "
        "reasons and notes are statements",
    ),
    CALIBRATION_FILE: (
        FileCheck.COMPARED,
        "measured again and compared where supernet and images are at hand; the model's numbers follow from it",
    ),
}


def write_model_files(profile: DeviceProfile, model: QuantizedModel, folder: Path) -> None:
    """Write everything that follows from a model: the device's files, the model that is proved, the encodings.

    Args:
        profile: Names exporter, opset and options.
        model: The network with its numbers.
        folder: Folder that exists and is empty.

    Raises:
        ProfileError: If the exporter is not installed, an option is wrong, or the format cannot hold the model.
        ValidationError: If the model contradicts itself, or the files do not hold what it holds.
        OutputError: If a file cannot be written.
    """
    with naming(profile):
        exporter = get_exporter(profile.export.format)
        written = export_checked(exporter, model, folder, exporter_options(profile))
    if MODEL_FILE not in written:
        get_exporter("onnx_qdq").export(model, folder, {"opset": profile.runtime.opset})
    write_encodings(folder, replace(model, graph=read_model(folder / MODEL_FILE).graph))


def check_files(
    directory: Path, profile: DeviceProfile, model: QuantizedModel, subnet: SubnetConfig
) -> tuple[FileRow, ...]:
    """Look at every file of an artifact.

    Args:
        directory: The artifact, without links; its manifest and report may be missing still.
        profile: The profile that it names.
        model: The network with its numbers, as it was read from ``model.onnx``.
        subnet: Content of ``subnet.json``.

    Returns:
        What was done about each file, by name.

    Raises:
        ValidationError: If a file belongs to no artifact of the profile, is missing, or is not what the model gives.
    """
    paths = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir())
    present = {*paths, *_RECORDS}
    rows = [FileRow(file=name, check=check, detail=detail) for name, (check, detail) in _RECORDS.items()]
    with temporary_folder() as temporary:
        again = Path(temporary)
        write_model_files(profile, model, again)
        written = {path.relative_to(again).as_posix() for path in again.rglob("*") if path.is_file()}
        for name in sorted(written):
            rows.append(FileRow(file=name, check=FileCheck.REDERIVED, detail=_same(name, directory, again)))
    rows += _search_rows(directory, present, profile, subnet)
    unknown = sorted(present - {row.file for row in rows})
    if unknown:
        raise ValidationError(
            f"belongs to no artifact of the profile {profile.name!r}", where=str(directory / unknown[0])
        )
    return tuple(sorted(rows, key=lambda row: row.file))


def _same(name: str, directory: Path, again: Path) -> str:
    """Compare a file with the one that the model gives, and say in what they are the same.

    Raises:
        ValidationError: If they differ, or there is no such file.
    """
    found, expected = directory / name, again / name
    if not found.is_file():
        raise ValidationError("is missing", where=str(found))
    if filecmp.cmp(found, expected, shallow=False):
        return _WRITTEN_AGAIN.format("bytes")
    if found.suffix == ".onnx" and same_model(found, expected):
        return _WRITTEN_AGAIN.format("model, its constants in another order")
    raise ValidationError("is not what the model in model.onnx gives", where=str(found), hint="export it again")


def _search_rows(directory: Path, present: set[str], profile: DeviceProfile, subnet: SubnetConfig) -> Iterator[FileRow]:
    """The files of a search, where there is one: what it chose is compared, its evidence is not.

    Raises:
        ValidationError: If it was of another profile, or chose another subnet.
    """
    names = {f"{SEARCH_FOLDER}/{name}" for name in (SEARCH_FILE, SUBNET_FILE)}
    if not names & present:
        return
    for name in sorted(names - present):
        raise ValidationError("is missing", where=str(directory / name))
    if not filecmp.cmp(directory / SUBNET_FILE, directory / SEARCH_FOLDER / SUBNET_FILE, shallow=False):
        raise ValidationError("is not the subnet of the artifact", where=str(directory / SEARCH_FOLDER / SUBNET_FILE))
    yield FileRow(file=f"{SEARCH_FOLDER}/{SUBNET_FILE}", check=FileCheck.COMPARED, detail="the same as subnet.json")
    path = directory / SEARCH_FOLDER / SEARCH_FILE
    document = read_json(path, MAXIMUM_SEARCH_BYTES, ValidationError)
    origin = document.get("origin") if isinstance(document, dict) else None
    stated = (origin.get("profile_digest"), document.get("subnet_digest")) if isinstance(origin, dict) else None
    if stated != (profile.digest, subnet.digest):
        raise ValidationError("is about another profile or subnet", where=str(path))
    detail = "profile and subnet are those of the artifact; costs and evidence are statements"
    yield FileRow(file=f"{SEARCH_FOLDER}/{SEARCH_FILE}", check=FileCheck.COMPARED, detail=detail)
    for name in RECORD_FILES:
        if f"{SEARCH_FOLDER}/{name}" in present:
            yield FileRow(file=f"{SEARCH_FOLDER}/{name}", check=FileCheck.NOT_COVERED, detail="a record for people")
