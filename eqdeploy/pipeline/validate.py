"""``eqdeploy validate``: prove an artifact again, from its files alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from eqdeploy.calibration.choice import Statistics
from eqdeploy.data import LabelledImages
from eqdeploy.errors import CheckpointError, DataError, UsageError, ValidationError
from eqdeploy.float_share import float_share
from eqdeploy.pipeline.answers import FLOAT, SIMULATED, answer
from eqdeploy.pipeline.baseline import float_network
from eqdeploy.pipeline.configuration import CONFIGURATION_FILE, Configuration
from eqdeploy.pipeline.origin import prove_again, repeat_calibration
from eqdeploy.pipeline.proof import Subject, Yardstick, prove
from eqdeploy.pipeline.records import Records, read_records
from eqdeploy.pipeline.sources import load_image_sets, load_supernet, shipped_supernets
from eqdeploy.pipeline.subnets import activate_calibrated, calibrated_classifier
from eqdeploy.progress import Progress
from eqdeploy.report import ArtifactReport
from eqdeploy.requests import Gates, ValidateRequest
from eqdeploy.resolve import resolve
from eqdeploy.supernet.costs import count_costs


def validate_artifact(directory: Path, request: ValidateRequest, progress: Progress) -> ArtifactReport:
    """Check an artifact's hashes, read its numbers back from every file in it, and run all levels again.

    Gates that the request does not set are those of the export. When the supernet is at hand, a shipped one or the one
    that the request names, it is frozen again and compared, and float and simulated accuracy are measured again.
    Otherwise the level ``origin`` is not run, and the verdict is unproven.

    Raises:
        ValidationError: If a file is missing, changed or added, or the files contradict each other.
        DataError: If the images are not at hand or do not fit.
        RuntimeRefusedError: If ONNX Runtime does not load or run the model.
    """
    with progress.stage("checking files"):
        records = read_records(directory)
    stored, configuration = records.report, records.configuration
    images = load_image_sets(
        request.data or _own_data(configuration),
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
    calibration = images.calibration if same_images else _original_calibration(records)
    yardstick = _yardstick(request, records, calibration, images.held_out, progress)
    proof = prove(
        Subject(
            model=records.model,
            directory=directory,
            preprocessing=records.preprocessing,
            power_of_two_scales=stored.plan.power_of_two_scales,
        ),
        images.held_out,
        yardstick,
        _gates(request, configuration, yardstick),
        parity_images=request.parity_images,
        progress=progress,
    )
    return stored.model_copy(
        update={
            **proof.levels,
            "operators": proof.operators,
            "files": records.files,
            "notes": stored.notes if same_images else (*stored.notes, f"proved on other images: {images.name}"),
        }
    )


def _own_data(configuration: Configuration) -> str:
    """The data that an artifact names: shipped ones, or a name in the working directory.

    Raises:
        DataError: If it names a place elsewhere. An export writes names only, and what is read from where is the
            user's choice, not the artifact's.
    """
    name = configuration.data
    if Path(name).name != name or name in (".", ".."):
        raise DataError("the artifact names data by a path", where=name, hint="name the images with --data")
    return name


def _original_calibration(records: Records) -> LabelledImages | None:
    """The calibration images of the export, None if they are not at hand."""
    configuration = records.configuration
    try:
        images = load_image_sets(
            _own_data(configuration),
            records.preprocessing,
            tuple(configuration.classes),
            calibration=configuration.calibration_images,
        )
    except (DataError, UsageError):
        return None
    return images.calibration if images.digest == records.report.provenance.data_digest else None


def _yardstick(
    request: ValidateRequest,
    records: Records,
    calibration: LabelledImages | None,
    held_out: LabelledImages,
    progress: Progress,
) -> Yardstick:
    """What the artifact is held against, if the supernet and the images that it was calibrated on are at hand."""
    configuration = records.configuration
    if calibration is None:
        progress.note(f"{configuration.data} of the export is not at hand: nothing is compared with the supernet")
        return Yardstick()
    reference = request.supernet or (configuration.supernet if configuration.supernet in shipped_supernets() else None)
    if reference is None:
        progress.note(f"{configuration.supernet} is not at hand: nothing is compared with it; name it with --supernet")
        return Yardstick()
    with progress.stage(f"loading {reference}"):
        loaded = load_supernet(reference, request.model, progress)
    if loaded.digest != records.report.provenance.supernet_digest:
        raise CheckpointError(
            "is not the supernet that the artifact was made from", where=reference, hint="export again"
        )
    checkpoint = loaded.checkpoint
    if (checkpoint.preprocessing, checkpoint.metadata.classes) != (records.preprocessing, configuration.classes):
        raise ValidationError("the artifact has another preprocessing or other classes", where=reference)
    seed = configuration.seed
    network = float_network(checkpoint, calibration, seed, progress)
    float_answers = answer(FLOAT, network.classifier, held_out, checkpoint.preprocessing, progress)
    recorded = records.report.calibration
    only = None if recorded is None else Statistics(recorded.statistics)
    choice, measured = activate_calibrated(checkpoint, records.subnet, calibration, seed, progress, only=only)
    profile = configuration.device_profile(where=CONFIGURATION_FILE)
    plan = resolve(profile, checkpoint.supernet.network, records.subnet)
    repeated = repeat_calibration(checkpoint, plan, records, calibration, measured, choice.chosen, progress)
    classifier = calibrated_classifier(checkpoint, records.subnet)
    simulated = answer(SIMULATED, classifier, held_out, checkpoint.preprocessing, progress)
    costs = count_costs(checkpoint.supernet)
    share = float_share(plan, checkpoint.supernet.network, costs.macs, costs.parameters)
    origin = prove_again(checkpoint, plan, records, repeated, held_out, progress)
    return Yardstick(network, float_answers, simulated, share, origin)


def _gates(request: ValidateRequest, configuration: Configuration, yardstick: Yardstick) -> Gates:
    """The request's gates, or those of the export; its limit on the drop needs the float network at hand."""
    given = configuration.gates
    return request.gates.or_else(given if yardstick.network is not None else replace(given, max_drop=None))
