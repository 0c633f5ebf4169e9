"""``eqdeploy eval``: accuracy of an exported model, of a subnet or of the float network on labelled data."""

from __future__ import annotations

from pathlib import Path

from eqdeploy.data import LoadOptions, load_data
from eqdeploy.errors import UsageError
from eqdeploy.exporters.files import refuse_outside_data
from eqdeploy.manifest import refuse_links
from eqdeploy.pipeline.answers import EXPORTED, FLOAT, SIMULATED, answer
from eqdeploy.pipeline.configuration import read_configuration
from eqdeploy.pipeline.judging import missed_gate
from eqdeploy.pipeline.proof import MODEL_FILE
from eqdeploy.pipeline.sources import check_classes, load_image_sets, load_subnet, load_supernet
from eqdeploy.pipeline.subnets import activate_calibrated, calibrated_classifier
from eqdeploy.profile import load_profile
from eqdeploy.progress import Progress
from eqdeploy.requests import EvaluateRequest
from eqdeploy.resolve import resolve
from eqdeploy.results import EvaluationResult
from eqdeploy.validation.accuracy import Accuracy, onnx_classifier


def evaluate(request: EvaluateRequest, progress: Progress) -> EvaluationResult:
    """Measure top-1 accuracy.

    Raises:
        UsageError: If the target does not exist, or is given together with a profile or a subnet.
        ValidationError: If the target names data outside of its folder, by links or otherwise, or is no model.
        DataError: If the data are missing, unlabelled or do not fit.
        CheckpointError: If the supernet cannot be loaded.
        ProfileError: If profile or subnet are invalid or cannot be served.
        RuntimeRefusedError: If ONNX Runtime does not run the target.
    """
    if request.target is None:
        return _evaluate_supernet(request, progress)
    if request.profile is not None or request.subnet is not None:
        raise UsageError("an exported model has its subnet in it", hint="leave out --profile and --subnet")
    return _evaluate_file(request, request.target, progress)


def _evaluate_file(request: EvaluateRequest, target: Path, progress: Progress) -> EvaluationResult:
    """Measure an exported model."""
    if target.is_dir():
        folder, path = target, target / MODEL_FILE
        refuse_links(folder)
        configuration = read_configuration(folder)
        preprocessing, classes = configuration.preprocessing_of(where=str(folder)), tuple(configuration.classes)
    elif not target.is_file():
        problem = "is not a plain file" if target.exists() else "no such file or folder"
        raise UsageError(problem, where=str(target), hint="name an artifact or an ONNX model")
    else:
        path = target
        with progress.stage(f"loading {request.supernet}"):
            checkpoint = load_supernet(request.supernet, request.model, progress).checkpoint
        preprocessing, classes = checkpoint.preprocessing, tuple(checkpoint.metadata.classes)
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UsageError("ONNX Runtime opens only paths in UTF-8", where=str(path)) from error
    refuse_outside_data(path)
    options = LoadOptions(run_code=request.run_code)
    images = load_data(request.data, split="test", preprocessing=preprocessing, options=options)
    check_classes(images, classes, request.data)
    with progress.stage(f"loading {path}"):
        classifier = onnx_classifier(path)
    row = answer(EXPORTED, classifier, images, preprocessing, progress).accuracy
    rows = () if row is None else (row,)
    return EvaluationResult(data=images.source, rows=rows, failure=missed_gate(rows, request.gates))


def _evaluate_supernet(request: EvaluateRequest, progress: Progress) -> EvaluationResult:
    """Measure the float network, and the subnet that is asked for."""
    profile = None if request.profile is None else load_profile(request.profile)
    subnet = load_subnet(request.subnet)
    with progress.stage(f"loading {request.supernet}"):
        loaded = load_supernet(request.supernet, request.model, progress)
    checkpoint = loaded.checkpoint
    if profile is not None:
        subnet = resolve(profile, checkpoint.supernet.network, subnet).subnet
    images = load_image_sets(
        request.data,
        checkpoint.preprocessing,
        tuple(checkpoint.metadata.classes),
        calibration=request.calibration_images,
        run_code=request.run_code,
    )
    held_out = images.held_out.require_labels()
    rows: list[Accuracy] = []
    for name, config in ((FLOAT, None), (SIMULATED, subnet)):
        if name == SIMULATED and config is None:
            continue
        activate_calibrated(checkpoint, config, images.calibration, request.seed, progress)
        classifier = calibrated_classifier(checkpoint, config)
        row = answer(name, classifier, held_out, checkpoint.preprocessing, progress).accuracy
        rows += [] if row is None else [row]
    return EvaluationResult(data=held_out.source, rows=tuple(rows), failure=missed_gate(rows, request.gates))
