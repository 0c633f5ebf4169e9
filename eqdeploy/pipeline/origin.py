"""The level ``origin``: that the numbers of an artifact are those of the supernet that it names."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from eqdeploy.calibration.batch_norm import BatchNormCalibration
from eqdeploy.calibration.choice import Statistics
from eqdeploy.data import LabelledImages
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.errors import EqDeployError
from eqdeploy.freeze.float_graph import FloatGraph
from eqdeploy.origin.checks import OriginCheck, OriginReport
from eqdeploy.origin.prove import images_to_compare, prove_origin
from eqdeploy.origin.repeated import calibration_digest, compare_repeated
from eqdeploy.origin.statistics import CalibrationEvidence
from eqdeploy.pipeline.records import Records
from eqdeploy.pipeline.sources import ImageSets
from eqdeploy.pipeline.subnets import Frozen, freeze_active
from eqdeploy.plan import DevicePlan
from eqdeploy.progress import Progress
from eqdeploy.report import Level, PlanSummary
from eqdeploy.supernet.checkpoint import Checkpoint

#: Key of the level's details under which stands what calibration measured.
_CALIBRATION = "calibration"


def prove_frozen(
    checkpoint: Checkpoint,
    plan: DevicePlan,
    frozen: Frozen,
    images: ImageSets,
    calibration: BatchNormCalibration,
    statistics: Statistics,
    seed: int,
    progress: Progress,
) -> Level:
    """Compare what was just frozen with the supernet that it was frozen from.

    Args:
        checkpoint: Its supernet is calibrated for the plan's subnet.
        plan: What was to be frozen.
        frozen: What was frozen.
        images: Calibration images, and held-out ones on which tensors are compared.
        calibration: What calibrating BatchNorm measured.
        statistics: Where the BatchNorm statistics come from.
        seed: Seed of the augmentation.
        progress: Listener.
    """
    with progress.stage("comparing with the supernet"):
        evidence = _evidence(checkpoint, frozen, images.calibration, calibration, statistics, seed)
        inputs = _inputs(checkpoint, images.held_out)
        report = prove_origin(checkpoint.supernet, plan, frozen.model, evidence, inputs)
    return _level(report, checkpoint, frozen)


def prove_again(
    checkpoint: Checkpoint,
    plan: DevicePlan,
    records: Records,
    images: LabelledImages,
    held_out: LabelledImages,
    calibration: BatchNormCalibration,
    statistics: Statistics,
    progress: Progress,
) -> Level:
    """Freeze the supernet again, compare it like :func:`prove_frozen`, and the artifact's numbers with it.

    The structure is that of the artifact, which is compared with torch's graph tensor by tensor.

    Args:
        checkpoint: Its supernet is calibrated for the artifact's subnet, on the images of the export.
        plan: What profile, network and subnet give.
        records: What the artifact says.
        images: The calibration images of the export.
        held_out: Images on which tensors are compared.
        calibration: What calibrating BatchNorm measured.
        statistics: Where the BatchNorm statistics come from.
        progress: Listener.
    """
    same_plan = _decisions(PlanSummary.of(plan)) == _decisions(records.report.plan)
    plans = OriginCheck.of(
        "plan",
        "profile, network and subnet give the plan of the report",
        [] if same_plan else [("plan", "is not what profile, network and subnet give")],
    )
    try:
        graph = FloatGraph(ir.serde.deserialize_model(records.model.graph))
        frozen = freeze_active(checkpoint, plan, graph, images, progress)
        with progress.stage("comparing with the supernet"):
            digest = records.report.origin.details.get(_CALIBRATION)
            same = digest == calibration_digest(checkpoint.supernet, frozen.samples)
            numbers = compare_repeated(records.model, frozen.model, same_arithmetic=same)
            evidence = _evidence(checkpoint, frozen, images, calibration, statistics, records.configuration.seed)
            inputs = _inputs(checkpoint, held_out)
            report = prove_origin(checkpoint.supernet, plan, frozen.model, evidence, inputs)
    except (EqDeployError, KeyError, ValueError) as error:
        # Names, shapes and encodings that cannot be are what this level is there to find.
        return Level.of(False, f"the supernet cannot be frozen into this artifact: {error}", {"passed": False})
    return _level(OriginReport((plans, numbers, *report.checks)), checkpoint, frozen)


def _decisions(plan: PlanSummary) -> dict[str, Any]:
    """A plan without its reasons: that a form was chosen by the profile is, in the artifact, that its subnet has it."""
    document = plan.model_dump()
    for row in (*document["weights"], *document["tensors"]):
        del row["reason"]
    return document


def _evidence(
    checkpoint: Checkpoint,
    frozen: Frozen,
    images: LabelledImages,
    calibration: BatchNormCalibration,
    statistics: Statistics,
    seed: int,
) -> CalibrationEvidence:
    """What a subnet was calibrated with, and what that measured."""
    return CalibrationEvidence(
        images=images,
        preprocessing=checkpoint.preprocessing,
        augmentation=Augmentation() if statistics is Statistics.PLAIN else checkpoint.augmentation,
        seed=seed,
        batch_norm=calibration,
        samples=frozen.samples,
        own=checkpoint.statistics if statistics is Statistics.OWN else None,
    )


def _inputs(checkpoint: Checkpoint, held_out: LabelledImages) -> NDArray[Any]:
    """The inputs on which tensors are compared."""
    count = images_to_compare(checkpoint.supernet.network)
    return checkpoint.preprocessing.apply(held_out.spread(count).images)


def _level(report: OriginReport, checkpoint: Checkpoint, frozen: Frozen) -> Level:
    digest = calibration_digest(checkpoint.supernet, frozen.samples)
    return Level.of(report.passed, report.summary, {**report.to_json(), _CALIBRATION: digest})
