"""``eqdeploy validate``: prove an artifact again, from its files alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eqdeploy.errors import CheckpointError, DataError, ValidationError
from eqdeploy.pipeline.configuration import Configuration
from eqdeploy.pipeline.proof import FLOAT, SIMULATED, Subject, measure, prove
from eqdeploy.pipeline.records import Records, read_records
from eqdeploy.pipeline.sources import ImageSets, load_image_sets, load_supernet, shipped_supernets
from eqdeploy.pipeline.subnets import activate_calibrated, calibrated_classifier
from eqdeploy.progress import Progress
from eqdeploy.report import ArtifactReport
from eqdeploy.requests import Gates, ValidateRequest
from eqdeploy.validation.accuracy import Accuracy


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
        records = read_records(directory)
    stored, configuration = records.report, records.configuration
    images = load_image_sets(
        request.data or configuration.data,
        records.preprocessing,
        tuple(configuration.classes),
        calibration=configuration.calibration_images,
        run_code=request.run_code and request.data is not None,
    )
    same_images = images.digest == stored.provenance.data_digest
    if request.data is None and not same_images:
        raise DataError(
            "holds other images than those of the export", where=configuration.data, hint="name the images with --data"
        )
    others = _measure_others(request, records, images, progress)
    proof = prove(
        Subject(
            model=records.model,
            directory=directory,
            preprocessing=records.preprocessing,
            power_of_two_scales=stored.plan.power_of_two_scales,
        ),
        images.held_out,
        others,
        _gates(request, configuration, others),
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


def _measure_others(
    request: ValidateRequest, records: Records, images: ImageSets, progress: Progress
) -> tuple[Accuracy | None, ...]:
    """Accuracy of the float network and of the simulated subnet, if the supernet is at hand."""
    configuration = records.configuration
    reference = request.supernet or (configuration.supernet if configuration.supernet in shipped_supernets() else None)
    if reference is None:
        progress.note(f"{configuration.supernet} is not at hand: float and simulated accuracy are left out")
        return ()
    with progress.stage(f"loading {reference}"):
        loaded = load_supernet(reference, request.model)
    if loaded.digest != records.report.provenance.supernet_digest:
        raise CheckpointError(
            "is not the supernet that the artifact was made from", where=reference, hint="export again"
        )
    checkpoint = loaded.checkpoint
    if (checkpoint.preprocessing, checkpoint.metadata.classes) != (records.preprocessing, configuration.classes):
        raise ValidationError("the artifact has another preprocessing or other classes", where=reference)
    rows: list[Accuracy | None] = []
    for name, subnet in ((FLOAT, None), (SIMULATED, records.subnet)):
        activate_calibrated(checkpoint, subnet, images.calibration, configuration.seed, progress)
        classifier = calibrated_classifier(checkpoint, subnet)
        rows.append(measure(name, classifier, images.held_out, checkpoint.preprocessing, progress))
    return tuple(rows)


def _gates(request: ValidateRequest, configuration: Configuration, others: Sequence[Accuracy | None]) -> Gates:
    """The request's gates, or those of the export; its limit on the drop needs the float network at hand."""
    asked, given = request.gates, configuration
    return Gates(
        min_accuracy=given.min_accuracy if asked.min_accuracy is None else asked.min_accuracy,
        max_drop=(given.max_drop if others else None) if asked.max_drop is None else asked.max_drop,
    )
