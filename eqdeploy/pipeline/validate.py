"""``eqdeploy validate``: prove an artifact again, from its files alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from eqdeploy.encoding_table import check_encodings
from eqdeploy.errors import CheckpointError, DataError, ValidationError
from eqdeploy.exporters.contract import check_round_trip, get_exporter
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.manifest import verify_manifest
from eqdeploy.pipeline.configuration import SUBNET_FILE, Configuration, read_configuration
from eqdeploy.pipeline.proof import FLOAT, MODEL_FILE, SIMULATED, Subject, measure, prove
from eqdeploy.pipeline.sources import ImageSets, load_image_sets, load_subnet, load_supernet, shipped_supernets
from eqdeploy.pipeline.subnets import activate_calibrated
from eqdeploy.plan import Coverage
from eqdeploy.profile import DeviceProfile
from eqdeploy.progress import Progress
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.report import ArtifactReport, read_report
from eqdeploy.requests import Gates, ValidateRequest
from eqdeploy.validation.accuracy import Accuracy, torch_classifier


def validate_artifact(directory: Path, request: ValidateRequest, progress: Progress) -> ArtifactReport:
    """Check an artifact's hashes, read its numbers back from every file in it, and run all three levels again.

    Gates that the request does not set are those of the export. Float and simulated accuracy are measured again
    when the supernet is at hand: a shipped one, or the one that the request names.

    Raises:
        ValidationError: If a file is missing, changed or added, or the files contradict each other.
        DataError: If the images are not at hand or do not fit.
        RuntimeRefusedError: If ONNX Runtime does not load or run the model.
    """
    with progress.stage("checking files"):
        manifest = verify_manifest(directory)
        stored = read_report(directory)
        configuration = read_configuration(directory)
        model = _read_back(directory, configuration, stored)
    if stored.provenance != manifest.provenance:
        raise ValidationError("report and manifest disagree about the origin", where=str(directory))
    images = load_image_sets(
        request.data or configuration.data,
        configuration.preprocessing_of(where=str(directory)),
        tuple(configuration.classes),
        calibration=configuration.calibration_images,
    )
    same_images = images.digest == stored.provenance.data_digest
    if request.data is None and not same_images:
        raise DataError(
            "holds other images than those of the export", where=configuration.data, hint="name the images with --data"
        )
    others = _measure_others(directory, request, configuration, stored, images, progress)
    proof = prove(
        Subject(model=model, directory=directory, preprocessing=configuration.preprocessing_of(where=str(directory))),
        images.held_out,
        others,
        _gates(request, configuration),
        parity_images=request.parity_images,
        progress=progress,
    )
    return stored.model_copy(
        update={
            "static": proof.static,
            "parity": proof.parity,
            "accuracy": proof.accuracy,
            "operators": proof.operators,
            "notes": stored.notes if same_images else (*stored.notes, f"proved on other images: {images.name}"),
        }
    )


def _read_back(directory: Path, configuration: Configuration, stored: ArtifactReport) -> QuantizedModel:
    """Recover the model from the files, and compare all records of its numbers with each other."""
    model = read_model(directory / MODEL_FILE)
    check_encodings(directory, model)
    profile = DeviceProfile.model_validate_json(json.dumps(configuration.profile))
    check_round_trip(model, get_exporter(profile.export.format).read(directory))
    coverage = {row.tensor: Coverage(row.coverage) for row in stored.plan.tensors}
    return replace(
        model,
        coverage=coverage,
        reasons={row.tensor: row.reason for row in stored.plan.tensors},
        folded=stored.folding,
        notes=stored.notes,
    )


def _measure_others(
    directory: Path,
    request: ValidateRequest,
    configuration: Configuration,
    stored: ArtifactReport,
    images: ImageSets,
    progress: Progress,
) -> tuple[Accuracy | None, ...]:
    """Accuracy of the float network and of the simulated subnet, if the supernet is at hand."""
    reference = request.supernet or (configuration.supernet if configuration.supernet in shipped_supernets() else None)
    if reference is None:
        progress.note(f"{configuration.supernet} is not at hand: float and simulated accuracy are left out")
        return ()
    with progress.stage(f"loading {reference}"):
        loaded = load_supernet(reference, request.model)
    if loaded.digest != stored.provenance.supernet_digest:
        raise CheckpointError(
            "is not the supernet that the artifact was made from", where=reference, hint="export again"
        )
    rows: list[Accuracy | None] = []
    checkpoint = loaded.checkpoint
    for name, subnet in ((FLOAT, None), (SIMULATED, load_subnet(directory / SUBNET_FILE))):
        activate_calibrated(checkpoint, subnet, images.calibration, configuration.seed, progress)
        classifier = torch_classifier(checkpoint.supernet)
        rows.append(measure(name, classifier, images.held_out, checkpoint.preprocessing, progress))
    return tuple(rows)


def _gates(request: ValidateRequest, configuration: Configuration) -> Gates:
    """The request's gates, or those of the export."""
    asked, given = request.gates, configuration
    return Gates(
        min_accuracy=given.min_accuracy if asked.min_accuracy is None else asked.min_accuracy,
        max_drop=given.max_drop if asked.max_drop is None else asked.max_drop,
    )
